"""`EncoderRuntime`: a model that reads texts and writes none, whatever computes it. What it shares with models that see."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from lfx_local_runtimes.errors import ContextOverflow, InvalidInput
from lfx_local_runtimes.runtimes.base import Inbox, LoadContext
from lfx_local_runtimes.runtimes.batching import BatchingRuntime
from lfx_local_runtimes.runtimes.config import DeviceType, ModelConfig
from lfx_local_runtimes.runtimes.engines.encoder.scheduler import EncoderScheduler, Job, Row, Slice
from lfx_local_runtimes.runtimes.planning import LoadPlan
from lfx_local_runtimes.runtimes.requests import Request
from lfx_local_runtimes.runtimes.tasks import task_row
from lfx_local_runtimes.runtimes.tasks.base import Ask
from lfx_local_runtimes.runtimes.tasks.text.reading import Piece, Spec, Tokens
from lfx_local_runtimes.runtimes.tasks.text.zero_shot import entailment

SLICE = 256
"""Pieces of a job that are tokenized at once, while those before them are computed."""

BUDGET = {DeviceType.CPU: 2048, DeviceType.CUDA: 32_768, DeviceType.MPS: 8192}
"""Tokens of a batch, padding included, or pictures that take as long."""


class Network(Protocol):
    """A loaded model that gives something for each row. `compute` is called on the model's thread."""

    spec: Spec

    @property
    def memory(self) -> Mapping[str, int]:
        """Bytes taken, by device."""

    @property
    def about(self) -> Mapping[str, Any]:
        """dtype and engine_version, for a result's metadata."""

    def compute(self, batch: Sequence[Any]) -> Any:
        """What the model gives for inputs of one shape: float32 of shape (rows, …), or a list with something for each row."""


class TextNetwork(Network, Protocol):
    """An encoder: states or logits of shape (rows, tokens, width) or (rows, labels)."""

    def tokenize(self, pieces: Sequence[Piece], *, chunks: bool) -> list[list[Tokens]]:
        """For each piece the rows to compute; one, unless it is too long and read in chunks. Called beside `compute`."""


NetworkT = TypeVar("NetworkT", bound=Network)


class PieceRuntime(BatchingRuntime, Generic[NetworkT]):
    """A model whose requests are divided into pieces, with dynamic batching. An engine implements `_open`."""

    slice: ClassVar[int]
    """Pieces of a job that are prepared at once, while those before them are computed."""

    def __init__(self, config: ModelConfig, plan: LoadPlan | None = None) -> None:
        super().__init__(config, plan)
        self._network: NetworkT | None = None
        self._scheduler: EncoderScheduler | None = None

    @abstractmethod
    def _open(self, plan: LoadPlan, context: LoadContext) -> NetworkT:
        """Load the model.

        Raises:
            RuntimeFault: it cannot be loaded.
        """

    @abstractmethod
    def _rows(self, network: NetworkT, job: Job, pieces: Sequence[Any]) -> list[list[Any]]:
        """For each of these pieces of a job, which begin at `job.arrived`, the inputs to compute. Runs beside the model.

        Raises:
            RuntimeFault: one of them cannot be served.
        """

    def _load(self, plan: LoadPlan, context: LoadContext) -> None:
        self._network = self._open(plan, context)

    def _close(self) -> None:
        self._network = self._scheduler = None

    def _measure(self) -> dict[str, int]:
        assert self._network is not None
        return dict(self._network.memory)

    def _work(self, inbox: Inbox) -> None:
        network, plan = self._network, self._plan
        assert network is not None
        assert plan is not None

        def about() -> dict[str, Any]:
            device = {"engine": self.engine, "device": plan.device.key, "warnings": list(self.warnings)}
            return {**device, **network.about}

        self._scheduler = EncoderScheduler(
            network.compute, network.spec, BUDGET[plan.device.type], lambda job: inbox.put(job.request), about
        )
        self._batch_work(inbox, self._scheduler)

    def _prepare(self, request: Request[Any]) -> Slice:
        """The next rows of a request.

        Raises:
            RuntimeFault: it cannot be served.
        """
        network = self._network
        assert network is not None
        job: Job | None = request.job
        if job is None:
            reading = task_row(request.task).work
            job = request.job = Job(request, reading, reading.pieces(request.ask, network.spec))
        first = job.arrived
        parts = self._rows(network, job, job.pieces[first : first + self.slice])
        rows = [Row(one, first + index, len(those)) for index, those in enumerate(parts) for one in those]
        return Slice(job, rows, min(first + self.slice, len(job.pieces)))


class EncoderRuntime(PieceRuntime[TextNetwork]):
    """A model that reads texts."""

    slice = SLICE

    @property
    def tasks(self) -> frozenset[str]:
        """Its own, and what it can do besides: labels, where it has some; labels of one's own, where it tells what follows
        from what, or how like two texts are.
        """
        if self._network is None:
            return frozenset()
        spec = self._network.spec
        also = {"rerank": "classification", "zero_shot": "classification", "embedding": "zero_shot"}.get(spec.task)
        if spec.task == "classification" and entailment(spec.labels) is not None:
            also = "zero_shot"
        return frozenset({spec.task, also or spec.task})

    def _rows(self, network: TextNetwork, job: Job, pieces: Sequence[Any]) -> list[list[Any]]:
        return text_rows(network, job.request.ask, pieces, range(job.arrived, job.arrived + len(pieces)))


def text_rows(network: TextNetwork, ask: Ask[Any], pieces: Sequence[Piece], places: Sequence[int]) -> list[list[Any]]:
    """The rows of texts, as the ask says what happens to those that are too long. `places`: their numbers, for errors.

    Raises:
        InvalidInput: a text has no tokens.
        ContextOverflow: a text is too long, and the ask wants an error then.
    """
    overflow = getattr(ask, "overflow", "truncate")
    parts = network.tokenize(pieces, chunks=overflow == "chunk")
    for place, those in zip(places, parts, strict=True):
        if not all(tokens.ids for tokens in those):
            raise InvalidInput(f"Input {place} has no tokens.", hint="Leave it out.")
        cut = next((one for one in those if one.cut), None)
        if overflow == "error" and cut is not None:
            raise ContextOverflow(
                f"Input {place} has {len(cut.ids) + cut.cut:,} tokens, the model reads {network.spec.max_length:,}.",
                hint="Shorten it, or let it be truncated.",
            )
    return list(parts)
