"""Encoders in llama.cpp: embeddings and cross-encoders from GGUF files, pooled by the library itself."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lfx_local_runtimes.errors import InvalidInput, LoadFailed
from lfx_local_runtimes.runtimes.base import LoadContext
from lfx_local_runtimes.runtimes.config import DeviceType
from lfx_local_runtimes.runtimes.engines.encoder.runtime import EncoderRuntime
from lfx_local_runtimes.runtimes.engines.encoder.tokens import unwrapped
from lfx_local_runtimes.runtimes.engines.host import physical_cores, release_memory
from lfx_local_runtimes.runtimes.engines.llama_cpp.native import LlamaModel, Options, Row, reason
from lfx_local_runtimes.runtimes.engines.llama_cpp.offer import CALL
from lfx_local_runtimes.runtimes.formats.info import ModelInfo
from lfx_local_runtimes.runtimes.planning import LoadPlan
from lfx_local_runtimes.runtimes.requests import Progress
from lfx_local_runtimes.runtimes.tasks.text.reading import Piece, Spec, Tokens

TEXTS = 64
"""Texts of one call at most."""

_MEAN, _CLS, _LAST, _RANK = 1, 2, 3, 4
"""llama.cpp's `llama_pooling_type`."""

_POOLINGS = {"mean": _MEAN, "cls": _CLS, "lasttoken": _LAST}

_ROBERTAS = ("bert", "jina-bert-v2", "jina-bert-v3", "nomic-bert-moe")
"""Architectures whose byte-pair and unigram vocabularies are those of RoBERTa and XLM-RoBERTa."""

_FLASH_ATTENTION = 1


class LlamaCppEncoder(EncoderRuntime):
    """A GGUF model that reads."""

    engine = "llama_cpp"
    _network: "LlamaNetwork | None"

    def _open(self, plan: LoadPlan, context: LoadContext) -> "LlamaNetwork":
        size = plan.info.size_bytes

        def progress(share: float) -> bool:
            context.report(Progress("load", int(share * size), size))
            return not context.cancelled

        pooling = _pooling(plan, self.config.pooling)
        if pooling == _RANK and plan.info.metadata.get("tokenizer.ggml.token_type_count", 1) > 1:
            self.warnings.append(
                "llama.cpp does not tell the two texts of a pair apart, which this model was trained to: its scores are "
                "those of Transformers only nearly."
            )
        options = Options(
            n_ctx=plan.context_length,
            n_seq=TEXTS,
            n_batch=max(CALL, plan.context_length),
            n_threads=self.config.threads or physical_cores(),
            gpu=None if plan.device.type is DeviceType.CPU else plan.device.index,
            gpu_layers=self.config.gpu_layers,
            split={},
            exact=self.config.deterministic,
        )
        return LlamaNetwork(LlamaEncoder(plan.info.files[0], options, pooling, progress), plan)

    def _close(self) -> None:
        network = self._network
        super()._close()
        if network is not None:
            network.close()
            release_memory()


def _pooling(plan: LoadPlan, wanted: str | None) -> int:
    """An embedding model's as wanted, else as the file says; where neither does, the mean for encoders and the last
    token for decoders.

    Raises:
        InvalidInput: llama.cpp does not pool as wanted.
        LoadFailed: it cannot do the task.
    """
    info = plan.info
    told = info.metadata.get(f"{info.architecture}.pooling_type")
    if plan.task == "embedding":
        if wanted is not None:
            if wanted not in _POOLINGS:
                raise InvalidInput(
                    f"{info.path.name} cannot be pooled by {wanted}: llama.cpp pools by {', '.join(_POOLINGS)}.",
                    hint="Set pooling to one of these, or use a safetensors copy of the model.",
                )
            return _POOLINGS[wanted]
        return told if told in (_MEAN, _CLS, _LAST) else _LAST if info.layers else _MEAN
    if told != _RANK or plan.task not in ("rerank", "classification"):
        raise LoadFailed(
            f"{info.path.name} has nothing that does {plan.task}.",
            hint="Register it with the model_type that its files name, or use a safetensors copy of the model.",
        )
    if "tokenizer.chat_template.rerank" in info.metadata:
        raise LoadFailed(f"{info.path.name} is asked by a prompt of its own, which is not served here.")
    return _RANK


def _ends_twice(info: ModelInfo, adds_sep: bool) -> bool:
    """Whether the end of a text stands twice between the two of a pair: in RoBERTa and its kin, not in BERT.

    Args:
        info: of the file.
        adds_sep: what llama.cpp makes of the file's `add_sep_token` and its pre-tokenizer. Where a file has no such key,
            it says yes of WordPiece, and means the only separator, and no of unigrams.
    """
    kind = info.metadata.get("tokenizer.ggml.model")
    if kind == "bert":
        return False
    silent = "tokenizer.ggml.add_sep_token" not in info.metadata
    return adds_sep or (silent and kind in ("t5", "gpt2") and info.architecture in _ROBERTAS)


class LlamaEncoder(LlamaModel):
    """A loaded model whose every call reads whole texts, each in a sequence of its own.

    Args:
        path: the GGUF file, the first one of a split model.
        options: how to load it; `n_batch` holds the longest text.
        pooling: llama.cpp's number for it.
        progress: as for `LlamaModel`.

    Raises:
        LoadFailed: llama.cpp refused the file or the context, with its reason.
    """

    def __init__(self, path: Path, options: Options, pooling: int, progress: Callable[[float], bool]) -> None:
        self._pooling = pooling
        super().__init__(path, options, progress)
        count = self.lib.llama_model_n_cls_out if pooling == _RANK else self.lib.llama_model_n_embd_out
        self.width = int(count(self._model))
        """Numbers that a text gets: dimensions, or labels."""
        self.output_bytes = 4 * options.n_batch * (self.n_vocab + self.width)
        """What llama.cpp puts the results of the largest call in: it makes room for every token's logits too."""

    def _open(self, options: Options, lines: list[tuple[int, str]]) -> None:
        params = self.lib.llama_context_default_params()
        params.embeddings, params.pooling_type = True, self._pooling
        params.n_ctx = params.n_batch = params.n_ubatch = options.n_batch  # a text is read at once
        params.n_seq_max, params.kv_unified = options.n_seq, True
        params.n_threads = params.n_threads_batch = options.n_threads
        params.offload_kqv = params.op_offload = options.gpu is not None
        params.flash_attn_type = _FLASH_ATTENTION  # without it every head's comparisons would be kept
        params.no_perf = True
        self.context = self.lib.llama_init_from_model(self._model, params)
        if not self.context:
            self.close()
            raise LoadFailed(
                f"llama.cpp cannot make a context of {options.n_batch:,} tokens: {reason(lines)}.",
                hint="Load it with a shorter context_length.",
            )

    def encode(self, texts: Sequence[Sequence[int]]) -> Any:
        """What is made of each text: float32, of shape (texts, width).

        Raises:
            EngineFailure: llama.cpp failed, with its code.
        """
        import numpy as np

        if self._memory:  # a decoder's
            self.lib.llama_memory_clear(self._memory, False)
        self.decode([
            Row(token, position, sequence, True)
            for sequence, ids in enumerate(texts) for position, token in enumerate(ids)
        ])  # fmt: skip
        found = (self.lib.llama_get_embeddings_seq(self.context, sequence) for sequence in range(len(texts)))
        return np.stack([np.ctypeslib.as_array(pointer, (self.width,)) for pointer in found])

    @property
    def adds_sep(self) -> bool:
        """llama.cpp puts a separator between the texts of a pair, after the first one's end."""
        return bool(self.lib.llama_vocab_get_add_sep(self._vocab))

    @property
    def labels(self) -> tuple[str, ...]:
        """Of a classifier, as the file names them."""
        names = (self.lib.llama_model_cls_label(self._model, index) for index in range(self.width))
        return tuple(name.decode("utf-8", "replace") if name else f"LABEL_{i}" for i, name in enumerate(names))


class LlamaNetwork:
    """The model and its tokenizer.

    A vector comes as a row's only state, which "cls" takes as it is. Its length is made 1, as by llama.cpp's own
    programs: the files do not say.
    """

    def __init__(self, model: LlamaEncoder, plan: LoadPlan) -> None:
        self._model, self._plan = model, plan
        embeds = plan.task == "embedding"
        labels = () if embeds else model.labels
        self.spec = Spec(
            task=plan.task,
            max_length=plan.context_length,
            labels=labels,
            pooling="cls",
            normalize=embeds,
            activation="sigmoid" if len(labels) == 1 else "softmax",
        )
        self.tokenize = VocabularyTokenizer(
            model, plan.context_length, ends_twice=_ends_twice(plan.info, model.adds_sep)
        )
        self.about: Mapping[str, Any] = {
            "engine_version": model.lib.__version__, "dtype": plan.dtype, "quantization": plan.dtype,
        }  # fmt: skip

    @property
    def memory(self) -> Mapping[str, int]:
        """Bytes of weights and buffers, and of the results of the largest call."""
        return self._model.memory(self._plan.device.key, {"cpu": self._model.output_bytes})

    def compute(self, batch: Sequence[Tokens]) -> Any:
        """Vectors as (rows, 1, width), or logits as (rows, labels)."""
        import numpy as np

        found = np.concatenate([self._model.encode([row.ids for row in call]) for call in _calls(batch)])
        return found[:, None] if self.spec.task == "embedding" else found

    def close(self) -> None:
        """Free the model."""
        self._model.close()


def _calls(batch: Sequence[Tokens]) -> Iterator[list[Tokens]]:
    """The rows in order, in calls of `CALL` tokens and `TEXTS` rows at most; a longer row has one of its own."""
    call: list[Tokens] = []
    size = 0
    for row in batch:
        if call and (size + len(row.ids) > CALL or len(call) == TEXTS):
            yield call
            call, size = [], 0
        call.append(row)
        size += len(row.ids)
    yield call


class VocabularyTokenizer:
    """Pieces to rows with llama.cpp's tokenizer. Cuts at the longest input and tells how much.

    Args:
        model: a loaded one.
        limit: tokens of a row, special ones included.
        ends_twice: a text's end stands twice between the texts of a pair.
    """

    def __init__(self, model: LlamaModel, limit: int, *, ends_twice: bool = False) -> None:
        self._model, self._limit = model, limit
        marked, plain = (model.tokenize("a", add_special=special) for special in (True, False))
        start = next(place for place in range(len(marked)) if marked[place : place + len(plain)] == plain)
        self._before, self._after = marked[:start], marked[start + len(plain) :]
        self._between = self._after * (2 if ends_twice else 1)

    def __call__(self, pieces: Sequence[Piece], *, chunks: bool) -> list[list[Tokens]]:
        """For each piece the rows to compute.

        Raises:
            InvalidInput: a token id is not in the vocabulary.
        """
        return [[self._pair(piece)] if piece.pair is not None else self._rows(piece, chunks) for piece in pieces]

    def _ids(self, text: str | tuple[int, ...]) -> list[int]:
        if isinstance(text, str):
            return self._model.tokenize(text, add_special=False)
        wrong = next((one for one in text if not 0 <= one < self._model.n_vocab), None)
        if wrong is not None:
            raise InvalidInput(
                f"Token id {wrong} is not in the model's vocabulary of {self._model.n_vocab:,}.", hint="Send the text."
            )
        return list(unwrapped(text, self._before, self._after))

    def _rows(self, piece: Piece, chunks: bool) -> list[Tokens]:
        ids = self._ids(piece.text)
        room = max(1, self._limit - len(self._before) - len(self._after))
        parts = [ids[start : start + room] for start in range(0, len(ids), room)] or [[]]
        cut = 0 if chunks else len(ids) - len(parts[0])
        rows = [[*self._before, *part, *self._after] for part in (parts if chunks else parts[:1])]
        return [Tokens(row, [0] * len(row), cut=cut) for row in rows]

    def _pair(self, piece: Piece) -> Tokens:
        """Both texts between the special tokens of one, and those of its end between them; the longer one is cut."""
        one, two = self._ids(piece.text), self._ids(piece.pair or "")
        room = max(2, self._limit - len(self._before) - len(self._between) - len(self._after))
        kept = min(len(one), max(room - len(two), (room + (len(one) > len(two))) // 2))
        others = min(len(two), room - kept)
        row = [*self._before, *one[:kept], *self._between, *two[:others], *self._after]
        return Tokens(row, [0] * len(row), cut=len(one) + len(two) - kept - others)
