"""Which sequence a request gets, and what of its prompt is there already. Pure bookkeeping, without a model.

A prompt reuses every token that it shares with a sequence, prompt and answer. An exact model reuses prompts only, in whole
blocks: a token's result depends on the company it is evaluated in, and so an answer is the same after a hit as without one.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

BLOCK = 16
"""Tokens. Prompts are cut for evaluation at multiples of it, and no piece is shorter unless the prompt is; an exact model
also reuses them so. Without flash attention llama.cpp's CPU kernels then give every token the same result, bit for bit,
wherever the cuts are."""

WORTH_MOVING = 64
"""Tokens that a copy or a restore must save to be worth its time."""


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two prompts share from the first on."""
    limit = min(len(one), len(other))
    if one[:limit] == other[:limit]:
        return limit
    return next(index for index in range(limit) if one[index] != other[index])


def reusable_prefix(prompt: Sequence[int], cached: Sequence[int], block: int) -> int:
    """How much of a prompt a cached one spares: whole blocks, and a block at the end is always left to evaluate."""
    common = common_prefix(prompt[:-block], cached)
    return common - common % block


def next_piece(left: int, room: int) -> int:
    """How many of the `left` tokens of a prompt to evaluate where `room` tokens have room; 0 is none yet."""
    if left <= room:
        return left
    size = room - room % BLOCK
    return size if left - size >= BLOCK else max(0, size - BLOCK)


@dataclass(eq=False)
class Cached:
    """A sequence of the context: what it holds, and whether a request has it."""

    id: int
    tokens: list[int] = field(default_factory=list)
    """Whose state is in the cache."""
    prompt: list[int] = field(default_factory=list)
    """The request's, or the last one's."""
    busy: bool = False
    used: int = 0
    """When it was last given away, in requests."""

    @property
    def evaluated(self) -> Sequence[int]:
        """The part of the prompt that is in the cache, without its last token: that may have been evaluated in company."""
        return self.prompt[: len(self.tokens)][: len(self.prompt) - 1]


@dataclass(frozen=True)
class Placement:
    """A sequence for a request: `keep` tokens of its prompt are there, or come from `source` or `saved`."""

    target: Cached
    keep: int = 0
    source: Cached | None = None
    saved: tuple[int, ...] | None = None


class StateStore:
    """States of sequences that had to go, in host memory: the least recently used leave first.

    Args:
        limit: bytes held at most.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._states: OrderedDict[tuple[int, ...], bytes] = OrderedDict()
        self.size = 0
        """Bytes held."""

    def put(self, tokens: tuple[int, ...], state: bytes) -> None:
        """Keep a state; those whose tokens begin it are not needed any more."""
        for known in [known for known in self._states if tokens[: len(known)] == known]:
            self._drop(known)
        if len(state) > self._limit:
            return
        self._states[tokens] = state
        self.size += len(state)
        while self.size > self._limit:
            self._drop(next(iter(self._states)))

    def _drop(self, tokens: tuple[int, ...]) -> None:
        self.size -= len(self._states.pop(tokens))

    def holds(self, tokens: tuple[int, ...]) -> bool:
        """Whether a state begins with these tokens."""
        return any(known[: len(tokens)] == tokens for known in self._states)

    def find(self, prompt: Sequence[int], block: int) -> tuple[int, tuple[int, ...] | None]:
        """The state that spares the most of a prompt, and how many tokens it spares."""
        found = ((reusable_prefix(prompt, list(known), block), known) for known in self._states)
        return max(found, default=(0, None), key=lambda pair: pair[0])

    def get(self, tokens: tuple[int, ...]) -> bytes:
        """A state that `find` named."""
        self._states.move_to_end(tokens)
        return self._states[tokens]


def _oldest(places: Sequence[Cached]) -> Cached:
    return min(places, key=lambda one: (bool(one.tokens), one.used))


class SequenceTable:
    """The sequences of a context.

    Args:
        count: how many there are.
        store: what had to go.
        exact: reuse only what was evaluated to the same bits as it would be now.
    """

    def __init__(self, count: int, store: StateStore, *, exact: bool = False) -> None:
        self.sequences = [Cached(index) for index in range(count)]
        self.store = store
        self._exact = exact
        self._block = BLOCK if exact else 1
        self._clock = 0

    def place(self, prompt: Sequence[int]) -> Placement | None:
        """Choose a sequence for a prompt; None while it has to wait.

        It waits when all are busy, or when one is evaluating a prompt that begins alike: what that has done is then
        reused. The caller does the work and calls `take`.
        """
        places = self._places()
        if not places:
            return None
        best = max(self.sequences, key=lambda one: (self._spares(prompt, one), one in places))
        keep = self._spares(prompt, best)
        coming = max(
            (reusable_prefix(prompt, one.prompt, self._block) for one in self.sequences if one.busy), default=0
        )
        if coming >= keep + WORTH_MOVING:
            return None
        oldest = _oldest(places)
        stored, saved = self.store.find(prompt, self._block)
        if stored >= keep + WORTH_MOVING:
            return Placement(oldest, stored, saved=saved)
        if best in places and len(best.evaluated) - keep < WORTH_MOVING:
            return Placement(best, keep)
        if oldest is not best and keep >= WORTH_MOVING:
            return Placement(oldest, keep, source=best)
        return Placement(oldest, self._spares(prompt, oldest))

    def place_whole(self) -> Placement | None:
        """Choose a sequence for a prompt of which nothing may be reused; None while it has to wait."""
        places = self._places()
        return Placement(_oldest(places)) if places else None

    def held(self, sequence: Cached) -> Sequence[int]:
        """The tokens of a sequence that may be reused."""
        return sequence.evaluated if self._exact else sequence.tokens

    def _spares(self, prompt: Sequence[int], sequence: Cached) -> int:
        return reusable_prefix(prompt, self.held(sequence), self._block)

    def _places(self) -> list[Cached]:
        """Idle sequences, next to busy ones if there are any: llama.cpp decodes neighbours together, others apart."""
        busy = {one.id for one in self.sequences if one.busy}
        idle = [one for one in self.sequences if not one.busy]
        return [one for one in idle if not busy or {one.id - 1, one.id + 1} & busy]

    def is_worth_saving(self, placement: Placement) -> bool:
        """Whether what the target holds beyond the part that stays should be kept in the store."""
        target = placement.target
        return len(target.evaluated) - placement.keep >= WORTH_MOVING and not self.store.holds(tuple(self.held(target)))

    def take(self, target: Cached, prompt: list[int], keep: int) -> None:
        """Give a sequence to a request; the first `keep` tokens of its prompt are in it."""
        self._clock += 1
        target.busy, target.used = True, self._clock
        target.prompt, target.tokens = prompt, prompt[:keep]

    def release(self, sequence: Cached) -> None:
        """The request is over; what may be reused stays."""
        sequence.busy = False
        del sequence.tokens[len(self.held(sequence)) :]

    def empty(self, sequence: Cached) -> None:
        """What the sequence holds is lost."""
        sequence.tokens, sequence.prompt = [], []
