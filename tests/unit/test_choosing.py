"""Which model a Local Model node takes if its user has not chosen one."""

from typing import Any

import pytest

from lfx_local_runtimes.nodes.choosing import best_text_model
from lfx_local_runtimes.runtimes.status import ModelStatus


def model(name: str, **fields: Any) -> ModelStatus:
    """A text model on this machine that fits."""
    values = {
        "model_id": name, "model_type": "llm", "source": "folder", "format": "gguf", "state": "registered",
        "instruct": True, "parameters": 1_000, "memory_estimate_mb": 100.0, "keep_alive_s": 300, "server_pid": 1,
    }  # fmt: skip
    return ModelStatus.model_validate({"model_name": name, **values, **fields})


def best(*models: ModelStatus) -> str | None:
    return best_text_model(models, 1000)


def test_an_instruct_model_goes_before_a_larger_base_model() -> None:
    assert best(model("base", instruct=False, parameters=9_000), model("instruct")) == "instruct"
    assert best(model("not read yet", instruct=None, parameters=9_000), model("instruct")) == "instruct"


def test_a_larger_model_goes_before_a_smaller_one() -> None:
    assert best(model("small"), model("large", parameters=2_000)) == "large"
    assert best(model("small", instruct=False), model("large", instruct=False, parameters=2_000)) == "large"


def test_the_choice_does_not_depend_on_the_order() -> None:
    twins = [model("a"), model("b")]
    assert best(*twins) == best(*reversed(twins))


def test_a_model_that_does_not_fit_is_left_out() -> None:
    assert best(model("huge", parameters=9_000, memory_estimate_mb=1001.0), model("small")) == "small"


@pytest.mark.parametrize(
    "fields",
    [
        {"model_type": "embedding"}, {"error": "broken"}, {"source": "variant"}, {"source": "request"},
        {"source": "registered", "format": None},
    ],
)  # fmt: skip
def test_what_cannot_answer_now_is_left_out(fields: dict[str, Any]) -> None:
    assert best(model("other", parameters=9_000, **fields)) is None


def test_a_model_in_a_package_counts_before_it_is_unpacked() -> None:
    fields = {"source": "package", "format": None, "instruct": None, "parameters": None, "memory_estimate_mb": None}
    assert best(model("packaged", **fields)) == "packaged"
