"""The flows with an embedding model, a reranker and a text model: answers from a text or a document, with their sources."""

import json
from pathlib import Path
from typing import Any

from lfx.components.input_output.chat import ChatInput
from lfx.components.input_output.chat_output import ChatOutput
from lfx.components.models_and_agents.prompt import PromptComponent
from lfx.components.processing.parser import ParserComponent
from lfx.components.processing.split_text import SplitTextComponent

from lfx_local_runtimes.components.local_runtimes.document_reader import DocumentReaderComponent
from lfx_local_runtimes.components.local_runtimes.local_embeddings import LocalEmbeddingsComponent
from lfx_local_runtimes.components.local_runtimes.local_model import LocalModelComponent
from lfx_local_runtimes.components.local_runtimes.local_rerank import LocalRerankComponent
from lfx_local_runtimes.flows.canvas import Flow
from lfx_local_runtimes.flows.in_memory_faiss import InMemoryFaissComponent
from lfx_local_runtimes.flows.text import BASE_MODEL

CORPUS = Path(__file__).parent / "corpus"

SPLIT: dict[str, Any] = {"separator": "\\n\\n", "chunk_size": 320, "chunk_overlap": 0}
"""One chunk per passage: no passage is longer than a chunk, and no two passages fit into one chunk."""

SENTENCES: dict[str, Any] = {"separator": ". ", "keep_separator": "End", "chunk_size": 1, "chunk_overlap": 0}
"""One chunk per sentence: a chunk of one character cannot hold two."""

CANDIDATES = 15
PASSAGES = 3
DOCUMENT = "handbook.pdf"
QUESTION = "May I charge my e-bike on board?"

INSTRUCTIONS = """Answer the question with the words of the handbook, as in these examples.

Question: The handbook says: "Children below seven travel free." May my baby come for free?
Answer: The handbook says: "Children below seven travel free."
Question: The handbook says: "Lights are switched off at nine; reading is not allowed." May I read at night?
Answer: The handbook says: "Lights are switched off at nine; reading is not allowed."
Question: The handbook says: "Lost keys are kept at the desk for ten days." Where is my key?
Answer: The handbook says: "Lost keys are kept at the desk for ten days.\""""

ASKED = """The handbook says: "{quote}" {question}"""

ANSWER = """{answer}

Sources:

{passages}"""


def local_rag() -> Flow:
    """Answers a question from a handbook: search, rerank, answer, show the sources."""
    flow = Flow("Local RAG", "Answers from a handbook with their sources, with local models only.", "local-rag")
    flow.note(
        "### Local RAG\n"
        "Ask about the handbook of a ferry line, which no model knows.\n\n"
        f"1. `all-minilm-l6-v2` embeds its passages, and FAISS finds the {CANDIDATES} nearest to the question.\n"
        f"2. `ms-marco-minilm-l12` reads each of them together with the question and keeps the best {PASSAGES}.\n"
        "3. The same model finds the best sentence of the best passage.\n"
        f"4. `{BASE_MODEL}` quotes it as the answer, so that it says what the handbook says. The passages are shown below as "
        "its **sources**.\n\n"
        "It needs FAISS: `pip install 'lfx-local-runtimes[rag,demo]'`\n\n"
        "**Your own text**: put a *File* node here, upload a file, and connect its *Raw Content* to *Split Text* instead of the "
        "*Handbook*. For text without empty lines between passages, set *Separator* and *Chunk Size*.\n\n"
        f"`{BASE_MODEL}` is a small base model, so it quotes. An instruct model of a billion parameters or more can answer in "
        "its own words: choose it, and write ordinary instructions.\n\n"
        f"Headless: `lfx run flows/local_rag.json \"{QUESTION}\"`",
        -1, width=380,
    )  # fmt: skip
    question = flow.add(ChatInput, "question", 0, 1.3, input_value=QUESTION)
    text = flow.add(PromptComponent, "handbook", 0, 0, title="Handbook", template=handbook())
    return _with_answers(flow, question, (text, "prompt"))


def document_rag() -> Flow:
    """The same from a PDF."""
    flow = Flow("Document RAG", "Answers from a PDF with their sources, with local models only.", "document-rag")
    flow.note(
        "### Document RAG\n"
        "Ask about a document: a PDF, a DOCX, a PPTX or a scan. It is the flow *Local RAG*, and its text comes from a file.\n\n"
        "1. *Document Reader* turns the file into Markdown. Pages with text of their own are read; scanned pages are recognised "
        "by `pp-ocrv6-small`.\n"
        "2. The text is split at its paragraphs, embedded, searched and reranked, and the best sentence is quoted, with its "
        "**sources**.\n\n"
        "**Upload your file** in the field *Files* of the *Document Reader*.\n\n"
        "It needs `pip install 'lfx-local-runtimes[documents,rag,demo]'`\n\n"
        f"Headless: put a file `{DOCUMENT}` into a folder of `LOCAL_RUNTIMES_MEDIA_DIRS`, then "
        f"`lfx run flows/document_rag.json \"{QUESTION}\"`",
        -1, width=380,
    )  # fmt: skip
    question = flow.add(ChatInput, "question", 0, 1.3, input_value=QUESTION)
    reader = flow.add(DocumentReaderComponent, "handbook", 0, 0, title="Handbook", path=DOCUMENT)
    return _with_answers(flow, question, (reader, "document"))


def _with_answers(flow: Flow, question: str, text: tuple[str, str]) -> Flow:
    """The rest of the flow: from the question and the text, a node with its output, to the answer."""
    chunks = flow.add(SplitTextComponent, "passages", 0.9, 0, **SPLIT, clean_output=True)
    embeddings = flow.add(LocalEmbeddingsComponent, "embed", 0.9, 1, model_name="all-minilm-l6-v2")
    store = flow.add(InMemoryFaissComponent, "search", 1.8, 0.3, number_of_results=CANDIDATES)
    rerank = flow.add(LocalRerankComponent, "rerank", 2.7, 0.5, model_name="ms-marco-minilm-l12", top_n=PASSAGES)
    sources = flow.add(
        ParserComponent, "sources", 3.6, 0.3, title="Sources", pattern="[{rank}] {text}", sep="\n\n"
    )  # Markdown shows each in a paragraph of its own
    best = flow.add(
        LocalRerankComponent, "best", 3.6, 1.4, title="Best Passage", model_name="ms-marco-minilm-l12", top_n=1
    )
    sentences = flow.add(
        SplitTextComponent, "sentences", 4.5, 1.4, title="Its Sentences", **SENTENCES, clean_output=True
    )
    sentence = flow.add(
        LocalRerankComponent, "sentence", 5.4, 1.4, title="Best Sentence", model_name="ms-marco-minilm-l12", top_n=1
    )
    quote = flow.add(ParserComponent, "quote", 6.3, 1.4, title="Quote", pattern="{text}")
    asked = flow.add(PromptComponent, "ask", 7.2, 1.4, title="Question with Quote", template=ASKED)
    model = flow.add(
        LocalModelComponent, "answer", 8.1, 1, model_name=BASE_MODEL, system_message=INSTRUCTIONS, max_tokens=128,
        temperature=0.0, stop_sequences=["\\n"], stream=False,
    )  # fmt: skip
    cited = flow.add(PromptComponent, "cited", 9, 0.3, title="Answer with Sources", template=ANSWER)
    answer = flow.add(ChatOutput, "say", 9.9, 0.5)
    for source, output, target, field in (
        (*text, chunks, "data_inputs"),
        (chunks, "dataframe", store, "ingest_data"),
        (embeddings, "embeddings", store, "embedding"),
        (question, "message", store, "search_query"),
        (store, "dataframe", rerank, "documents"),
        (question, "message", rerank, "input_value"),
        (rerank, "ranked", sources, "input_data"),
        (rerank, "ranked", best, "documents"),
        (question, "message", best, "input_value"),
        (best, "ranked", sentences, "data_inputs"),
        (sentences, "dataframe", sentence, "documents"),
        (question, "message", sentence, "input_value"),
        (sentence, "ranked", quote, "input_data"),
        (quote, "parsed_text", asked, "quote"),
        (question, "message", asked, "question"),
        (asked, "prompt", model, "input_value"),
        (model, "text_output", cited, "answer"),
        (sources, "parsed_text", cited, "passages"),
        (cited, "prompt", answer, "input_value"),
    ):
        flow.connect(source, output, target, field)
    return flow


def handbook() -> str:
    """The text that is searched: passages with an empty line between them, each with its title before the colon."""
    return (CORPUS / "handbook.md").read_text(encoding="utf-8").strip()


def questions() -> list[dict[str, Any]]:
    """Questions about it: a `question`, and the titles of the `passages` that answer it."""
    rows: list[dict[str, Any]] = json.loads((CORPUS / "questions.json").read_text(encoding="utf-8"))
    return rows
