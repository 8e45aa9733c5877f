"""`SeeingRuntime`: a model that gives labels, boxes, vectors or maps for pictures, whatever computes it."""

from collections.abc import Sequence
from typing import Any, Protocol

from lfx_local_runtimes.runtimes.engines.encoder.runtime import Network, PieceRuntime
from lfx_local_runtimes.runtimes.engines.encoder.scheduler import Job
from lfx_local_runtimes.runtimes.tasks.text.reading import Piece, Tokens
from lfx_local_runtimes.runtimes.tasks.vision.seeing import Look, Pixels

SLICE = 8
"""Pictures of a job that are decoded at once, while those before them are computed."""


class SightNetwork(Network, Protocol):
    """A loaded model for pictures; some also read texts. `look` and `tokenize` are called beside `compute`."""

    def look(self, look: Look) -> Pixels:
        """Decode a picture, and scale it as the model takes it.

        Raises:
            InvalidInput: it cannot be decoded, or is over a limit.
        """

    def tokenize(self, pieces: Sequence[Piece]) -> list[list[Tokens]]:
        """For each text its one row.

        Raises:
            WrongTask: the model reads no texts.
        """


class SeeingRuntime(PieceRuntime[SightNetwork]):
    """A model that sees."""

    slice = SLICE

    @property
    def tasks(self) -> frozenset[str]:
        """The model's own task, and those that it can also serve: a model of pictures and texts also gives vectors."""
        if self._network is None:
            return frozenset()
        task = self._network.spec.task
        also = {
            "zero_shot_image_classification": ("image_embedding", "embedding"),
        }.get(task, ())
        return frozenset({task, *also})

    def _rows(self, network: SightNetwork, job: Job, pieces: Sequence[Any]) -> list[list[Any]]:
        rows: list[list[Any]] = []
        for piece in pieces:
            if job.request.cancelled:  # its rows are dropped by the scheduler
                break
            rows.append([network.look(piece)] if isinstance(piece, Look) else network.tokenize([piece])[0])
        return rows
