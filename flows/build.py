"""Writes the example flows from the nodes as they are now: `python -m lfx_local_runtimes.flows.build`.

A flow contains the source of its nodes. So it is out of date when a node changes; a test checks that.
"""

from pathlib import Path

from lfx_local_runtimes.flows import documents, pictures, retrieval, text, triage

FOLDER = Path(__file__).parent

FLOWS = {
    "local_chat": text.local_chat,
    "code_pipeline": text.code_pipeline,
    "model_status": text.model_status,
    "tools_agent": text.tools_agent,
    "parallel_branches": text.parallel_branches,
    "triage": triage.triage,
    "local_rag": retrieval.local_rag,
    "document_rag": retrieval.document_rag,
    "invoice_to_json": documents.invoice_to_json,
    "look_and_tell": pictures.look_and_tell,
}


def main() -> None:
    """Write every flow beside this file."""
    for name, build in FLOWS.items():
        (FOLDER / f"{name}.json").write_text(build().as_json(), encoding="utf-8")


if __name__ == "__main__":
    main()
