"""A folder's tokenizer, by Hugging Face's library. Torch is not needed."""

import logging
from pathlib import Path
from typing import Any

from lfx_local_runtimes.errors import LoadFailed
from lfx_local_runtimes.optional import require


def read_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer that lies in a folder.

    Args:
        folder: with tokenizer.json, or what else the tokenizer's kind needs.
        trust_remote_code: code that came with it may run.

    Raises:
        LoadFailed: there is none.
        MissingExtra: the library is not installed.
    """
    transformers = require("transformers", "onnx")  # the other extra has torch besides
    logging.getLogger("transformers").setLevel(logging.ERROR)
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        str(folder), local_files_only=True, trust_remote_code=trust_remote_code
    )
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # the library makes one without words where files are missing
        raise LoadFailed(f"{folder.name} has no tokenizer.", hint="Fetch its tokenizer files (tokenizer.json …) too.")
    return tokenizer
