"""The Document Reader node."""

from lfx.io import HandleInput, StrInput

from lfx_local_runtimes.nodes import (
    DocumentReaderBaseComponent,
    document_files_input,
    loading_inputs,
    model_input,
    other_model_input,
)


class DocumentReaderComponent(DocumentReaderBaseComponent):
    """Documents as text, Markdown and tables."""

    display_name = "Document Reader"
    description = (
        "Read PDF, DOCX and PPTX files and pictures as Markdown, pages and tables. Scanned pages are recognised by a model "
        "that runs on this machine."
    )
    icon = "ScanText"
    name = "DocumentReader"
    documentation = "/api/v1/runtime/manual#the-nodes"
    metadata = {"keywords": ["ocr", "pdf", "docx", "pptx", "scan", "markdown", "table", "rapidocr", "offline"]}

    inputs = [
        model_input(
            value="pp-ocrv6-small",
            info="The model that reads scanned pages and pictures. Text that is in the file needs none, and is read as it is.",
        ),
        other_model_input(),
        document_files_input(),
        HandleInput(
            name="message",
            display_name="Message",
            input_types=["Message", "Data", "JSON"],
            is_list=True,
            required=False,
            info="A message whose files are read, such as one of Chat Input, or data with a file_path.",
        ),
        StrInput(
            name="path",
            display_name="Path",
            value="",
            advanced=True,
            info="The file to read if there is no other: its path in a folder of LOCAL_RUNTIMES_MEDIA_DIRS. For flows that run "
            "without a user interface.",
        ),
        StrInput(
            name="pages",
            display_name="Pages",
            value="",
            info="The pages to read, such as 1-3, 7, 10-. Empty: all.",
        ),
        StrInput(
            name="languages",
            display_name="Languages",
            value=[],
            is_list=True,
            advanced=True,
            list_add_label="Add language",
            info="The languages of scanned pages, as codes such as en or de. The node fails if the model does not read one.",
        ),
        *loading_inputs(engines=("auto", "rapidocr")),
    ]
