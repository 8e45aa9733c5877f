"""The scan against the real libraries: it sees every file that Transformers runs, and knows torch's own weights."""

import os
import pickle
from pathlib import Path

import pytest

from tests.trusted_models import Calls, code_of, pickle_of, write_code, write_pickle

pytestmark = pytest.mark.integration

torch = pytest.importorskip("torch")
dynamic = pytest.importorskip("transformers.dynamic_module_utils")


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_of_torch_have_nothing_notable(tmp_path: Path, zipped: bool) -> None:
    folder = write_pickle(tmp_path / "m")
    layer = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)).to(torch.bfloat16)
    weights = {
        **layer.state_dict(),
        "parameter": layer[0].weight,
        "ids": torch.arange(3),
        "half": torch.zeros(2).half(),
    }
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    report = pickle_of(folder)
    assert (report.findings, report.problems) == ((), ())
    assert "torch._utils._rebuild_tensor_v2" in report.imports

    torch.save({"w": Calls(os.system, "true")}, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    assert [one.group for one in pickle_of(folder).findings] == ["programs"]
    with pytest.raises(pickle.UnpicklingError):
        torch.load(folder / "pytorch_model.bin", weights_only=True)


def test_every_file_that_transformers_would_run_is_in_the_report(tmp_path: Path) -> None:
    folder = write_code(
        tmp_path / "m", "from .layers import Layer\nif True:\n    from .late import Late\n",
        layers="from .deep import Deep\n", deep="x = 1\n", late="from .layers import Layer\n", unused="1",
    )  # fmt: skip
    main = folder / "modeling.py"
    wanted = {"modeling.py", *(Path(file).name for file in dynamic.get_relative_import_files(main))}
    assert wanted == {"modeling.py", "layers.py", "late.py", "deep.py"}
    assert set(code_of(folder).files) == wanted
