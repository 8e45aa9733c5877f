"""Sequences and their caches, without a model."""

from lfx_local_runtimes.runtimes.engines.llama_cpp.sequences import (
    BLOCK,
    WORTH_MOVING,
    SequenceTable,
    StateStore,
    common_prefix,
    next_piece,
    reusable_prefix,
)

WHOLE = 20 * BLOCK
LONG = WHOLE + 1
"""A prompt's last token is never reused."""


def prompt(start: int, length: int = LONG) -> list[int]:
    return list(range(start, start + length))


def answered(table: SequenceTable, tokens: list[int], answer: int = 5) -> None:
    """A request with this prompt came, was answered and went."""
    placement = table.place(tokens)
    assert placement is not None
    table.take(placement.target, tokens, placement.keep)
    placement.target.tokens += tokens[placement.keep :] + [9] * answer
    table.release(placement.target)


def table(count: int = 3, limit: int = 0, *, exact: bool = True) -> SequenceTable:
    return SequenceTable(count, StateStore(limit), exact=exact)


def test_what_two_prompts_share() -> None:
    assert common_prefix([1, 2, 3], [1, 2, 4]) == 2
    assert common_prefix([1, 2], [1, 2, 4]) == 2
    assert common_prefix([], [1]) == 0


def test_reuse_is_in_whole_blocks_and_leaves_one_to_evaluate() -> None:
    tokens = prompt(0)
    assert reusable_prefix(tokens, tokens, BLOCK) == WHOLE - BLOCK
    assert reusable_prefix(tokens, tokens[: BLOCK + 3], BLOCK) == BLOCK
    assert reusable_prefix(tokens, tokens[: BLOCK - 1], BLOCK) == 0
    assert reusable_prefix(tokens[: BLOCK + 1], tokens, BLOCK) == 0
    assert reusable_prefix(tokens, tokens, 1) == len(tokens) - 1
    assert reusable_prefix(tokens, tokens[:3], 1) == 3


def test_a_prompt_is_cut_at_blocks_and_never_into_crumbs() -> None:
    for length in range(1, 6 * BLOCK):
        for room in (BLOCK, 2 * BLOCK, 3 * BLOCK + 5):
            left, pieces = length, []
            while left:
                size = next_piece(left, max(room, 2 * BLOCK))
                pieces.append(size)
                left -= size
            assert all(piece % BLOCK == 0 for piece in pieces[:-1])
            assert pieces[-1] >= min(length, BLOCK)
    assert next_piece(100, BLOCK - 1) == 0


def test_a_conversation_goes_on_where_it_was() -> None:
    one = table()
    answered(one, prompt(0))
    answered(one, prompt(1000))
    placement = one.place(prompt(0) + [7] * 40)
    assert placement is not None
    assert (placement.target.id, placement.keep, placement.source) == (0, WHOLE, None)


def test_the_answer_is_reused_too() -> None:
    one = table(exact=False)
    answered(one, prompt(0), answer=40)
    placement = one.place(prompt(0) + [9] * 40 + [1] * 5)
    assert placement is not None
    assert (placement.target.id, placement.keep) == (0, len(prompt(0)) + 40)


def test_another_answer_to_the_same_prompt_takes_the_place_of_the_first() -> None:
    one = table(exact=False)
    answered(one, prompt(0), answer=200)
    placement = one.place(prompt(0))
    assert placement is not None
    assert (placement.target.id, placement.keep) == (0, len(prompt(0)) - 1)


def test_an_exact_answer_is_not_reused() -> None:
    one = table()
    answered(one, prompt(0), answer=3 * BLOCK)
    placement = one.place(prompt(0) + [9] * 3 * BLOCK + [1] * 2 * BLOCK)
    assert placement is not None
    assert placement.keep == WHOLE


def test_a_shared_beginning_is_copied_rather_than_another_conversation_lost() -> None:
    one = table()
    answered(one, prompt(0))
    placement = one.place(prompt(0, WHOLE // 2) + prompt(5000))
    assert placement is not None
    assert placement.source is one.sequences[0]
    assert placement.target is not one.sequences[0]
    assert placement.keep == WHOLE // 2


def test_the_oldest_goes_first_and_empty_ones_before() -> None:
    one = table(2)
    answered(one, prompt(0))
    answered(one, prompt(1000))
    answered(one, prompt(0))
    placement = one.place(prompt(5000))
    assert placement is not None
    assert placement.target.prompt == prompt(1000)


def test_a_request_waits_for_the_prompt_it_shares() -> None:
    one = table()
    first = one.place(prompt(0))
    assert first is not None
    one.take(first.target, prompt(0), 0)
    assert one.place([*prompt(0), 1]) is None
    assert one.place(prompt(1000)) is not None, "others need not"
    first.target.tokens += prompt(0)
    second = one.place(prompt(0) + [1] * BLOCK)
    assert second is not None
    assert second.source is first.target


def test_requests_sit_next_to_each_other() -> None:
    one = table(8)
    for start in range(0, 8000, 1000):
        answered(one, prompt(start))
    for start in (4000, 9000, 7000, 1000):
        placement = one.place(prompt(start) + [1] * BLOCK)
        assert placement is not None
        assert placement.keep == (0 if start == 9000 else WHOLE)
        one.take(placement.target, prompt(start) + [1] * BLOCK, placement.keep)
        busy = [sequence.id for sequence in one.sequences if sequence.busy]
        assert busy == list(range(busy[0], busy[0] + len(busy)))


def test_a_hole_between_requests_is_filled() -> None:
    one = table(4)
    for start in range(0, 4000, 1000):
        placement = one.place(prompt(start))
        assert placement is not None
        one.take(placement.target, prompt(start), 0)
    one.release(one.sequences[1])
    again = one.place(prompt(9000))
    assert again is not None
    assert again.target.id == 1


def test_all_busy_is_no_place() -> None:
    one = table(1)
    placement = one.place(prompt(0))
    assert placement is not None
    one.take(placement.target, prompt(0), 0)
    assert one.place(prompt(1000)) is None


def test_what_had_to_go_is_found_again() -> None:
    one = table(1, limit=100)
    answered(one, prompt(0))
    placement = one.place(prompt(1000))
    assert placement is not None
    assert one.is_worth_saving(placement)
    one.store.put(tuple(placement.target.evaluated), b"x" * 60)
    answered(one, prompt(1000))
    again = one.place(prompt(0) + [3] * BLOCK)
    assert again is not None
    assert again.saved == tuple(prompt(0)[:-1])
    assert again.keep == WHOLE
    assert one.store.get(again.saved) == b"x" * 60


def test_the_store_is_bounded_and_forgets_the_oldest() -> None:
    store = StateStore(100)
    store.put((1, 2), b"x" * 60)
    store.put((3, 4), b"x" * 60)
    assert store.size == 60
    assert not store.holds((1, 2))
    assert store.holds((3,))
    store.put((5,), b"x" * 101)
    assert not store.holds((5,))
    store.put((3, 4, 5), b"x" * 80)
    assert store.size == 80, "a longer one replaces what it begins with"


def test_a_little_reuse_does_not_cost_a_long_prompt() -> None:
    one = table(2)
    answered(one, prompt(0))
    placement = one.place(prompt(0, WORTH_MOVING // 2) + prompt(7000))
    assert placement is not None
    assert placement.target is one.sequences[1]
