"""`EncoderRuntime`: a model that reads texts and writes none, whatever computes it."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from lfx_local_runtimes.errors import ContextOverflow, InvalidInput
from lfx_local_runtimes.runtimes.base import Inbox, LoadContext
from lfx_local_runtimes.runtimes.batching import BatchingRuntime
from lfx_local_runtimes.runtimes.config import DeviceType, ModelConfig
from lfx_local_runtimes.runtimes.engines.encoder.scheduler import EncoderScheduler, Job, Row, Slice
from lfx_local_runtimes.runtimes.planning import LoadPlan
from lfx_local_runtimes.runtimes.requests import Request
from lfx_local_runtimes.runtimes.tasks import task_row
from lfx_local_runtimes.runtimes.tasks.text.reading import Piece, Spec, Tokens
from lfx_local_runtimes.runtimes.tasks.text.zero_shot import entailment

SLICE = 256
"""Pieces of a job that are tokenized at once, while those before them are computed."""

BUDGET = {DeviceType.CPU: 2048, DeviceType.CUDA: 32_768, DeviceType.MPS: 8192}
"""Tokens of a batch, padding included."""


class Network(Protocol):
    """A loaded encoder. `tokenize` and `compute` are called on different threads."""

    spec: Spec

    @property
    def memory(self) -> Mapping[str, int]:
        """Bytes taken, by device."""

    @property
    def about(self) -> Mapping[str, Any]:
        """dtype and engine_version, for a result's metadata."""

    def tokenize(self, pieces: Sequence[Piece], *, chunks: bool) -> list[list[Tokens]]:
        """For each piece the rows to compute; one, unless it is too long and read in chunks."""

    def compute(self, batch: Sequence[Tokens]) -> Any:
        """States or logits, float32, of shape (rows, tokens, width) or (rows, labels)."""


class EncoderRuntime(BatchingRuntime):
    """An encoder with dynamic batching. An engine implements `_open`."""

    def __init__(self, config: ModelConfig, plan: LoadPlan | None = None) -> None:
        super().__init__(config, plan)
        self._network: Network | None = None
        self._scheduler: EncoderScheduler | None = None

    @abstractmethod
    def _open(self, plan: LoadPlan, context: LoadContext) -> Network:
        """Load the model.

        Raises:
            RuntimeFault: it cannot be loaded.
        """

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
        overflow = request.ask.overflow
        first = job.arrived
        parts = network.tokenize(job.pieces[first : first + SLICE], chunks=overflow == "chunk")
        rows = [Row(tokens, first + index, len(those)) for index, those in enumerate(parts) for tokens in those]
        empty = next((row for row in rows if not row.tokens.ids), None)
        if empty is not None:
            raise InvalidInput(
                f"Input {empty.piece} has no tokens.", model_name=self.config.model_name, hint="Leave it out."
            )
        too_long = next((row for row in rows if row.tokens.cut), None)
        if overflow == "error" and too_long is not None:
            length = len(too_long.tokens.ids) + too_long.tokens.cut
            raise ContextOverflow(
                f"Input {too_long.piece} has {length:,} tokens, the model reads {network.spec.max_length:,}.",
                model_name=self.config.model_name, hint="Shorten it, or let it be truncated.",
            )  # fmt: skip
        return Slice(job, rows, min(first + SLICE, len(job.pieces)))
