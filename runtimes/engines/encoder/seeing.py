"""`SeeingRuntime`: a model that gives labels, boxes, vectors or maps for pictures, whatever computes it."""

from collections.abc import Sequence
from typing import Any, Protocol

from lfx_local_runtimes.runtimes.engines.encoder.runtime import PieceRuntime, TextNetwork, text_rows
from lfx_local_runtimes.runtimes.engines.encoder.scheduler import Job
from lfx_local_runtimes.runtimes.tasks.text.reading import Piece
from lfx_local_runtimes.runtimes.tasks.vision.seeing import Look, Pixels

SLICE = 8
"""Pictures of a job that are decoded at once, while those before them are computed."""


class SightNetwork(TextNetwork, Protocol):
    """A loaded model for pictures; some also read texts. `look` and `tokenize` are called beside `compute`."""

    def look(self, look: Look) -> Pixels:
        """Decode a picture, and scale it as the model takes it.

        Raises:
            InvalidInput: it cannot be decoded, or is over a limit.
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
        also = ("image_embedding", "embedding") if task == "zero_shot_image_classification" else ()
        return frozenset({task, *also})

    def _rows(self, network: SightNetwork, job: Job, pieces: Sequence[Any]) -> list[list[Any]]:
        places = range(job.arrived, job.arrived + len(pieces))
        texts = [(place, piece) for place, piece in zip(places, pieces, strict=True) if isinstance(piece, Piece)]
        rows: dict[int, list[Any]] = {}
        if texts:
            numbers, those = zip(*texts, strict=True)
            rows = dict(zip(numbers, text_rows(network, job.request.ask, those, numbers), strict=True))
        for place, piece in zip(places, pieces, strict=True):
            if isinstance(piece, Look):
                if job.request.cancelled:
                    return []  # the scheduler drops the job
                rows[place] = [network.look(piece)]
        return [rows[place] for place in places]
