"""The report of the benchmarks: which targets were missed, and what becomes of a measurement that raises."""

import sys
from collections import Counter
from collections.abc import Callable
from types import ModuleType

import pytest

import benchmarks.__main__ as program
from benchmarks import mutants, report
from benchmarks.report import Targets, in_turns, print_all, print_table, row, verdict


@pytest.fixture(autouse=True)
def targets(monkeypatch: pytest.MonkeyPatch) -> Targets:
    """A count of the test's own."""
    targets = Targets()
    monkeypatch.setattr(report, "TARGETS", targets)
    return targets


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run the program with topics that are functions."""

    def run(**topics: Callable[[], None]) -> int:
        for name, main in topics.items():
            module = ModuleType(f"benchmarks.{name}")
            module.main = main  # type: ignore[attr-defined]
            monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(program, "TOPICS", (*topics,))
        return program.main([])

    return run


def broken() -> list[str]:
    raise RuntimeError("no such | thing")


def test_a_verdict_is_counted(targets: Targets) -> None:
    assert [verdict(2, at_least=2), verdict(2, at_most=2), verdict(3, at_least=1, at_most=2)] == ["✓", "✓", "✗ by 50 %"]
    assert (targets.count, targets.missed) == (3, 1)


def test_a_missed_target_says_by_how_much() -> None:
    assert verdict(0.91, at_least=0.97) == "✗ by 6.2 %"
    assert verdict(3, at_most=0) == "✗ by 3"
    assert verdict(12.5, at_most=10) == "✗ by 25 %"


def test_the_program_of_a_long_topic_fails_too(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = Counter({mutants.STUCK: 1, "answered": 9})
    monkeypatch.setattr(mutants, "outcomes", lambda mode, first, count: ends)
    assert mutants.program(["--count", "10"]) == 1
    monkeypatch.setattr(report, "TARGETS", Targets())
    del ends[mutants.STUCK]
    assert mutants.program(["--count", "10"]) == 0


@pytest.mark.parametrize(
    ("values", "status", "last"),
    [
        ([1, 2], 0, "All 2 targets were reached."),
        ([1, 0], 1, "1 of 2 targets was missed."),
        ([0, 0, 1], 1, "2 of 3 targets were missed."),
    ],
)
def test_the_exit_status_and_the_last_line_say_what_was_missed(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str], values: list[int], status: int, last: str
) -> None:
    def main() -> None:
        print_table(
            "Speed", ["", "ratio"], [row("one", lambda value: [verdict(value, at_least=1)], value) for value in values]
        )

    assert run(speed=main) == status
    assert capsys.readouterr().out.splitlines()[-1] == last


def test_a_row_that_raises_shows_the_error_and_leaves_the_others(
    targets: Targets, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row("good", lambda: ["1.00 " + verdict(1, at_least=1), "≥ 1"]), row("bad", broken)]
    print_table("Speed", ["", "ratio", "target"], rows)
    said = capsys.readouterr()
    assert said.out.splitlines()[-3:-1] == ["| good | 1.00 ✓ | ≥ 1 |", "| bad | RuntimeError: no such / thing ✗ |  |"]
    assert "in broken" in said.err
    assert (targets.count, targets.missed) == (2, 1)


def test_a_table_and_a_topic_that_raise_leave_the_others(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        print_all(broken, lambda: print_table("Good", ["a"], [["b"]]))

    assert run(missing_library=broken, good=main) == 1
    said = capsys.readouterr().out
    assert "### No table: missing_library" in said
    assert "### No table: broken" in said
    assert "### Good" in said
    assert said.splitlines()[-1] == "2 of 2 targets were missed."


def test_ctrl_c_is_no_error_of_a_row() -> None:
    def interrupted() -> list[str]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        row("one", interrupted)


def test_sides_take_turns_and_the_first_round_warms_up() -> None:
    asked: list[tuple[str, int]] = []

    def side(name: str) -> Callable[[int], str]:
        return lambda number: asked.append((name, number)) or f"{name}{number}"  # type: ignore[func-returns-value]

    samples = in_turns({"a": side("a"), "b": side("b")}, 2)
    assert [number for _, number in asked] == [0, 0, 1, 1, 2, 2]
    assert {frozenset(asked[at : at + 2]) for at in (0, 2, 4)} == {frozenset([("a", at), ("b", at)]) for at in range(3)}
    assert (samples["a"], samples["b"]) == (["a1", "a2"], ["b1", "b2"])


def test_a_side_that_raises_leaves_the_others(targets: Targets) -> None:
    def fails(number: int) -> float:
        if number == 1:
            raise ValueError("cut off")
        return 1.0

    samples = in_turns({"raw": lambda number: 2.0, "ours": fails}, 3)
    rows = [row(name, lambda name=name: [f"{sum(samples[name]):.0f}"]) for name in ("raw", "ours")]  # type: ignore[misc]
    assert rows == [["raw", "6"], ["ours", "ValueError: cut off ✗"]]
    assert targets.missed == 1
