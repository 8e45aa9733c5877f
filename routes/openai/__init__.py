"""OpenAI's API over the runtime manager: models, chat/completions, completions, responses, embeddings; and
rerank, classify, ner, which OpenAI does not have.

Requests are read by models of our own, answers are written with the types of the `openai` package, which takes most of a
second to import: the modules that need it (`chunks`, `output`, `vectors`) are imported by the first request.
"""
