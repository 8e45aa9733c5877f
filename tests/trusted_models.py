"""Model folders that bring code, made by hand."""

import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest

from lfx_local_runtimes.runtimes.formats.inspect import read_model
from lfx_local_runtimes.runtimes.trust import scan, worker
from lfx_local_runtimes.runtimes.trust.report import CodeReport
from lfx_local_runtimes.runtimes.trust.scan import scan_pickle, scan_remote_code
from tests.routes_app import write_model

MODELING = "from transformers import PreTrainedModel\nclass Mine(PreTrainedModel):\n    pass\n"


def write_code(folder: Path, source: str | bytes = MODELING, *, reference: Any = "modeling.Mine", **files: str) -> Path:
    """A model whose configuration names `modeling.py`; `files` are others beside it, without their ending."""
    write_model(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModelForCausalLM": reference}}))
    (folder / "modeling.py").write_bytes(source if isinstance(source, bytes) else source.encode())
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def scan_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scan without the process, which takes a tenth of a second to start."""
    monkeypatch.setattr(scan, "_ask", lambda request: scan._Found(**worker.answer(request)))


class Calls:
    """Pickled, it is a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


def torch_zip(*pickles: bytes, name: str = "archive/data.pkl") -> bytes:
    """What torch.save writes, without the weights."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for content in pickles:
            archive.writestr(name, content)
    return buffer.getvalue()


def write_pickle(folder: Path, content: bytes | None = None) -> Path:
    """A model whose weights are `pytorch_model.bin`."""
    write_model(folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(torch_zip(pickle.dumps({}, 2)) if content is None else content)
    return folder


def code_of(folder: Path) -> CodeReport:
    """The report on the Python files of a folder that has some."""
    report = scan_remote_code(read_model(folder))
    assert report is not None
    return report


def pickle_of(folder: Path) -> CodeReport:
    """The report on the pickle weights of a folder."""
    report = scan_pickle(read_model(folder))
    assert report is not None
    return report
