"""The flow from a document to JSON."""

from lfx.components.input_output.chat import ChatInput
from lfx.components.input_output.chat_output import ChatOutput

from lfx_local_runtimes.components.local_runtimes.document_reader import DocumentReaderComponent
from lfx_local_runtimes.components.local_runtimes.local_model import LocalModelComponent
from lfx_local_runtimes.flows.canvas import Flow
from lfx_local_runtimes.flows.text import BASE_MODEL

INVOICE = "invoice.pdf"
REQUEST = "Read this invoice"

FIELDS = [
    {"name": "invoice_number", "description": "The number of the invoice.", "type": "str", "multiple": "False"},
    {"name": "date", "description": "The day of the invoice.", "type": "str", "multiple": "False"},
    {"name": "total", "description": "The amount to pay.", "type": "float", "multiple": "False"},
]


def invoice_to_json() -> Flow:
    """The number, the day and the amount of an invoice, as JSON."""
    flow = Flow(
        "Invoice to JSON", "A document becomes text, and the text becomes JSON with given fields.", "invoice-to-json"
    )
    flow.note(
        "### Invoice to JSON\n"
        "Attach an invoice to a message in the **Playground**: a PDF, a DOCX or a photo. *Document Reader* turns it into text, and "
        f"`{BASE_MODEL}` writes the fields of its *Output Schema*: the answer can only be JSON with these fields.\n\n"
        f"`{BASE_MODEL}` is a small model: it finds what the text says plainly. Choose a larger one for real invoices.\n\n"
        "It needs `pip install 'lfx-local-runtimes[documents,demo]'`\n\n"
        f"Headless: put a file `{INVOICE}` into a folder of `LOCAL_RUNTIMES_MEDIA_DIRS`, then "
        f"`lfx run flows/invoice_to_json.json \"{REQUEST}\"`",
        -1, width=380,
    )  # fmt: skip
    request = flow.add(ChatInput, "file", 0, 0.2, input_value=REQUEST)
    reader = flow.add(DocumentReaderComponent, "invoice", 0.9, 0, title="Invoice", path=INVOICE)
    model = flow.add(
        LocalModelComponent, "fields", 1.8, 0, title="Fields", model_name=BASE_MODEL, output_schema=FIELDS, max_tokens=100,
        temperature=0.0, stream=False,
    )  # fmt: skip
    answer = flow.add(ChatOutput, "json", 2.7, 0.2)
    flow.connect(request, "message", reader, "message")
    flow.connect(reader, "document", model, "input_value")
    flow.connect(model, "structured_output", answer, "input_value")
    return flow
