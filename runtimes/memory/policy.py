"""Eviction as a pure function: which models have to leave so that another one fits."""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Amounts = Mapping[str, int]
"""Resources by name: bytes per device, and `models`, the number of loaded models."""


KeyT = TypeVar("KeyT", bound=Hashable)


@dataclass(frozen=True)
class Candidate(Generic[KeyT]):
    """A model that may leave: what it holds, and when it was last used (monotonic seconds)."""

    name: KeyT
    holds: Amounts
    last_used: float


def choose_victims(shortage: Amounts, candidates: Iterable[Candidate[KeyT]]) -> tuple[KeyT, ...] | None:
    """The models to evict, least recently used first. None if all of them together are not enough.

    Takes candidates in the order of their last use until every shortage is covered. Then goes through them again, most
    recently used first, and keeps each model that turned out not to be needed. So one large model leaves, and not the
    large one and three small ones.

    Args:
        shortage: how much of each resource is missing.
        candidates: models that may leave; the caller has left out those in use or pinned.
    """
    missing = {resource: amount for resource, amount in shortage.items() if amount > 0}
    helpful = [c for c in candidates if any(c.holds.get(resource, 0) > 0 for resource in missing)]
    chosen: list[Candidate[KeyT]] = []
    for candidate in sorted(helpful, key=lambda c: (c.last_used, str(c.name))):
        if _covered(missing, chosen):
            break
        chosen.append(candidate)
    if not _covered(missing, chosen):
        return None
    for candidate in reversed(chosen.copy()):
        without = [c for c in chosen if c is not candidate]
        if _covered(missing, without):
            chosen = without
    return tuple(candidate.name for candidate in chosen)


def _covered(missing: Amounts, chosen: Iterable[Candidate[Any]]) -> bool:
    chosen = list(chosen)
    return all(sum(c.holds.get(resource, 0) for c in chosen) >= amount for resource, amount in missing.items())
