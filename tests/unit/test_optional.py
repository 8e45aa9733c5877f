"""Optional dependencies: what is said when one is not there."""

import sys

import pytest

from lfx_local_runtimes.errors import MissingExtra
from lfx_local_runtimes.optional import require, require_installed


@pytest.mark.parametrize("check", [require, require_installed])
def test_a_missing_library_names_the_extra(check: object) -> None:
    with pytest.raises(MissingExtra, match=r"no_such_library is not installed.*lfx-local-runtimes\[onnx\]"):
        check("no_such_library", "onnx")  # type: ignore[operator]


def test_a_check_imports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "this", raising=False)
    require_installed("this", "onnx")
    assert "this" not in sys.modules
