"""The words that nodes use for options, and the table that Runtime Status shows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lfx.schema.message import ErrorMessage

from lfx_local_runtimes.components.local_runtimes.gemma import GemmaComponent
from lfx_local_runtimes.components.local_runtimes.local_model import LocalModelComponent
from lfx_local_runtimes.components.local_runtimes.object_detector import ObjectDetectorComponent
from lfx_local_runtimes.components.local_runtimes.runtime_status import RuntimeStatusComponent
from lfx_local_runtimes.components.local_runtimes.zero_shot_classifier import ZeroShotClassifierComponent
from lfx_local_runtimes.components.local_runtimes.zero_shot_image_classifier import ZeroShotImageClassifierComponent
from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.nodes.inputs import KEEP_ALIVES, score_input
from lfx_local_runtimes.nodes.models import TASKS
from tests.scripted_manager import Theatre, theatre


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Theatre]:
    with theatre(tmp_path, monkeypatch) as stage:
        yield stage


def options_of(node: type, name: str) -> list[str]:
    return next(field.options for field in node.inputs if field.name == name)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("auto", None), ("Unload at once", 0), ("5 minutes", 300), ("1 hour", 3600), ("Never", -1),
        ("0", 0), ("300", 300), ("3600", 3600), ("-1", -1), ("90", 90), (45, 45), ("", None),
    ],
)  # fmt: skip
def test_keep_alive_is_chosen_in_words_and_older_flows_have_seconds(said: Any, seconds: float | None) -> None:
    assert LocalModelComponent(model_name="parrot", keep_alive=said).build_model().keep_alive == seconds


def test_the_words_for_keep_alive_are_offered() -> None:
    assert options_of(LocalModelComponent, "keep_alive") == list(KEEP_ALIVES)


@pytest.mark.parametrize("node", [LocalModelComponent, GemmaComponent])
def test_engines_that_nobody_has_to_choose_are_not_offered(node: type) -> None:
    assert options_of(node, "runtime_type") == ["auto", "llama_cpp", "transformers"]


def test_an_engine_that_is_not_offered_can_still_be_named() -> None:
    assert GemmaComponent(runtime_type="gemma_streaming").build_model().runtime_type == "gemma_streaming"


async def test_the_status_table_fits_a_chat(stage: Theatre) -> None:
    await stage.manager.load_model("parrot")
    with stage.manager._residency.slots() as slots:
        for slot in slots.values():
            slot.restarts, slot.last_exit = (
                1,
                "It was killed by the signal SIGKILL. The last lines it printed: " + "x" * 500,
            )
    rows = (await RuntimeStatusComponent(loaded_only=False).models()).to_dict(orient="records")
    table = {row["model_name"]: row for row in rows}
    assert table["parrot"]["problem"] == "It was killed by the signal SIGKILL. …"
    assert table["owl"]["problem"] == ""
    assert table["owl"]["memory_used_mb"] == ""
    assert len(rows[0]) <= 6
    assert "nan" not in str(rows)


def test_langflow_shows_what_to_do_about_an_error() -> None:
    """It shows the first argument of an exception that has a code."""
    shown = ErrorMessage(InvalidInput("There is no picture.", hint="Choose a file."))
    assert str(shown.text).strip() == "There is no picture. Choose a file."


@pytest.mark.parametrize(
    "node", [ObjectDetectorComponent, ZeroShotImageClassifierComponent, ZeroShotClassifierComponent]
)
def test_the_ends_of_a_score_are_named(node: type) -> None:
    """Langflow writes "Precise" and "Creative" there if they are not. That is right for a temperature only."""
    fields = [score_input(), *(field for field in node.inputs if field.name == "threshold")]  # type: ignore[attr-defined]
    assert len(fields) == 2
    assert all(field.min_label and field.max_label and field.min_label_icon for field in fields)


def test_a_list_says_what_a_model_for_questions_does() -> None:
    assert TASKS["vqa"] == "question answering"
