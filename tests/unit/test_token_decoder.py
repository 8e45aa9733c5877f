"""Text from tokens as they come."""

from hypothesis import given, settings
from hypothesis import strategies as st

from lfx_local_runtimes.runtimes.engines.transformers.token_text import TokenDecoder

WORDS = ["▁the", "▁cat", "s", "▁", "é", "<0xF0>", "<0x9F>", "<0x99>", "<0x82>", "<end>"]
END = WORDS.index("<end>")


def decode(ids: list[int]) -> str:
    """As SentencePiece does: bytes are put together, the first space goes, special tokens read as nothing."""
    data = bytearray()
    for token in ids:
        word = WORDS[token]
        if word.startswith("<0x"):
            data.append(int(word[3:5], 16))
        elif token != END:
            data += word.replace("▁", " ").encode()
    return data.decode("utf-8", "replace").removeprefix(" ")


def pieces(tokens: list[int], context: tuple[int, ...] = ()) -> list[str]:
    decoder = TokenDecoder(decode, context)
    return [*(decoder.push(token) for token in tokens), decoder.flush()]


def test_a_leading_space_is_kept_after_a_prompt() -> None:
    assert pieces([1, 2], context=(0,)) == [" cat", "s", ""]


def test_a_space_after_a_special_token_is_kept() -> None:
    assert pieces([0, END, 1]) == ["the", "", " cat", ""]


def test_a_character_of_four_tokens_comes_whole() -> None:
    assert pieces([2, 5, 6, 7, 8, 2]) == ["s", "", "", "", "🙂", "s", ""]


def test_an_unfinished_character_ends_as_a_replacement() -> None:
    assert "".join(pieces([2, 5, 6])) == "s\ufffd"


def test_broken_bytes_are_not_held_back_for_ever() -> None:
    assert "".join(pieces([6] * 40)[:-1]).count("\ufffd") >= 32


@given(st.lists(st.sampled_from([0, 1, 2, 3, 4, END]), max_size=60), st.lists(st.sampled_from([0, 1, 2]), max_size=12))
def test_pieces_make_up_the_whole(tokens: list[int], context: list[int]) -> None:
    tail = context[-8:]
    assert "".join(pieces(tokens, tuple(context))) == decode([*tail, *tokens])[len(decode(tail)) :]


@settings(max_examples=20)
@given(st.lists(st.sampled_from([0, 1, 2, END]), min_size=200, max_size=400))
def test_the_cost_of_a_token_does_not_grow(tokens: list[int]) -> None:
    lengths: list[int] = []

    def counting(ids: list[int]) -> str:
        lengths.append(len(ids))
        return decode(ids)

    decoder = TokenDecoder(counting)
    for token in tokens:
        decoder.push(token)
    assert max(lengths) <= 2 * 17
