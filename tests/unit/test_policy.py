"""Eviction: nobody leaves for nothing, the longest unused first, and never the wrong device."""

from hypothesis import given
from hypothesis import strategies as st

from lfx_local_runtimes.runtimes.memory.policy import Candidate, choose_victims


def test_least_recently_used_leaves_first() -> None:
    candidates = [Candidate("new", {"cpu": 10}, 9.0), Candidate("old", {"cpu": 10}, 1.0)]
    assert choose_victims({"cpu": 5}, candidates) == ("old",)


def test_small_ones_are_spared_when_a_large_one_suffices() -> None:
    candidates = [Candidate("small", {"cpu": 2}, 1.0), Candidate("large", {"cpu": 10}, 2.0)]
    assert choose_victims({"cpu": 8}, candidates) == ("large",)


def test_only_the_device_that_is_short_counts() -> None:
    candidates = [Candidate("ram", {"cpu": 100}, 1.0), Candidate("card", {"cuda:0": 5}, 2.0)]
    assert choose_victims({"cuda:0": 5}, candidates) == ("card",)


def test_not_enough_is_none_and_nothing_missing_is_nobody() -> None:
    assert choose_victims({"cpu": 11}, [Candidate("a", {"cpu": 10}, 1.0)]) is None
    assert choose_victims({"cpu": 1}, []) is None
    assert choose_victims({"cpu": 0}, [Candidate("a", {"cpu": 10}, 1.0)]) == ()


amounts = st.dictionaries(st.sampled_from(["cpu", "cuda:0", "models"]), st.integers(0, 50), max_size=3)
lists = st.lists(st.tuples(amounts, st.floats(0, 100)), max_size=8)


@given(shortage=amounts, models=lists)
def test_victims_cover_the_shortage_and_each_is_needed(
    shortage: dict[str, int], models: list[tuple[dict[str, int], float]]
) -> None:
    candidates = {str(i): Candidate(str(i), holds, used) for i, (holds, used) in enumerate(models)}

    def covers(names: set[str]) -> bool:
        return all(sum(candidates[n].holds.get(r, 0) for n in names) >= amount for r, amount in shortage.items())

    victims = choose_victims(shortage, candidates.values())
    if victims is None:
        assert not covers(set(candidates))
    else:
        assert covers(set(victims))
        assert not any(covers(set(victims) - {name}) for name in victims)
