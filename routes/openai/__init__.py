"""OpenAI's API over the runtime manager: models, chat/completions, completions, responses, embeddings; and
rerank, classify, ner, which OpenAI does not have.

This package reads requests with its own types and writes answers with those of the `openai` package. To import that takes
most of a second, so the first request imports the modules that need it (`chunks`, `output`, `vectors`).
"""
