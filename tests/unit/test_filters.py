"""Stop strings and characters across any cut of the text."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lfx_local_runtimes.runtimes.chat.filters import StopFilter, Utf8Decoder

LETTERS = st.text(alphabet="ab\n", max_size=40)
STOPS = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=5), max_size=3)


def whole(text: str, stops: list[str]) -> tuple[str, bool]:
    """The contract by brute force: the first stop string to be complete, the longest of those."""
    for end in range(len(text) + 1):
        lengths = [len(stop) for stop in stops if text[:end].endswith(stop)]
        if lengths:
            return text[: end - max(lengths)], True
    return text, False


def cut(text, places):
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[a:b] for a, b in pairwise(edges)]


@given(LETTERS, STOPS, st.lists(st.integers(0, 100), max_size=10))
def test_any_cut_gives_what_the_whole_text_gives(text, stops, places):
    stop_filter = StopFilter(stops)
    delivered = "".join(stop_filter.push(piece) for piece in cut(text, places)) + stop_filter.flush()
    assert (delivered, stop_filter.stopped) == whole(text, stops)


@given(LETTERS, STOPS, st.lists(st.integers(0, 100), max_size=10))
def test_holds_back_no_more_than_may_begin_a_stop_string(text, stops, places):
    stop_filter, delivered, seen = StopFilter(stops), "", ""
    for piece in cut(text, places):
        delivered += stop_filter.push(piece)
        seen += piece
        if stop_filter.stopped:
            break
        held = seen[len(delivered) :]
        proper = [
            held[i:] for i in range(len(held)) for stop in stops if stop.startswith(held[i:]) and held[i:] != stop
        ]
        longest = max((len(part) for part in proper), default=0)
        assert seen == delivered + held
        assert len(held) == longest


def test_stop_string_across_pieces():
    stop_filter = StopFilter(["\nQuestion:"])
    assert stop_filter.push("Paris\nQues") == "Paris"
    assert stop_filter.push("tion: What") == ""
    assert stop_filter.stopped
    assert stop_filter.push("more") == ""
    assert stop_filter.flush() == ""


def test_false_alarm_is_delivered():
    stop_filter = StopFilter(["\nQuestion:"])
    assert stop_filter.push("a\nQuest") == "a"
    assert stop_filter.push("s\nQ") == "\nQuests"
    assert stop_filter.flush() == "\nQ"
    assert not stop_filter.stopped


def test_without_stop_strings_everything_passes():
    assert StopFilter([]).push("abc") == "abc"
    assert StopFilter([""]).push("abc") == "abc"


class CountingStr(str):
    """Counts how often one of its characters is looked at."""

    looks = 0

    def __getitem__(self, key):
        self.looks += 1
        return super().__getitem__(key)


def test_work_is_linear_for_a_stop_string_that_always_almost_matches():
    stop = CountingStr("a" * 1000 + "b")
    stop_filter = StopFilter([stop])
    before = stop.looks
    delivered = "".join(stop_filter.push("a") for _ in range(20_000))
    assert len(delivered) == 19_000
    assert stop.looks - before <= 3 * 20_000


@given(st.text(max_size=30), st.lists(st.integers(0, 200), max_size=10))
def test_characters_survive_any_cut_of_their_bytes(text, places):
    decoder = Utf8Decoder()
    pieces = cut(text.encode(), places)
    assert "".join(decoder.push(piece) for piece in pieces) + decoder.flush() == text


@given(st.binary(max_size=30), st.lists(st.integers(0, 200), max_size=10))
def test_broken_bytes_are_replaced_alike_in_any_cut(data, places):
    decoder = Utf8Decoder()
    pieces = cut(data, places)
    assert "".join(decoder.push(piece) for piece in pieces) + decoder.flush() == data.decode(errors="replace")


@pytest.mark.parametrize("data", [b"\xf0\x9f", b"\xe2"])
def test_unfinished_character_waits_then_becomes_a_replacement(data):
    decoder = Utf8Decoder()
    assert decoder.push(data) == ""
    assert decoder.flush() == "\ufffd"
    assert decoder.push(b"a") == "a"
