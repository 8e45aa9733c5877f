"""llama.cpp through ctypes: one model, one context, several sequences. No policy here, and no thread but the caller's.

The native library speaks through one global log callback; what it says during a load is caught per thread, because its
error messages and buffer sizes are told nowhere else.
"""

import contextlib
import ctypes
import logging
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from lfx_local_runtimes.errors import EngineFailure, LoadFailed
from lfx_local_runtimes.optional import require

logger = logging.getLogger(__name__)

ENVIRONMENT: Mapping[str, str] = {"GOMP_SPINCOUNT": "10000"}
"""For a process that has this engine to itself, set before the library is loaded. OpenMP's threads then spin for about 0.1
ms at a barrier before they sleep; by default it is about 3 ms, and with two busy processes on two cores that is time the
others need."""

_WARN, _ERROR = 2, 3
_SPLIT_NONE, _SPLIT_LAYERS = 0, 1
_FLASH_ATTENTION_OFF = 0
_caught = threading.local()
_CARD = re.compile(r"CUDA(\d+)(?!\w)")
_BUFFER = re.compile(r"(\S+)\s+(?:model|KV|RS|compute|output) buffer size\s*=\s*([\d.]+) MiB")


@lru_cache(maxsize=1)
def library() -> Any:
    """The binding, initialised once per process.

    Raises:
        MissingExtra: llama-cpp-python is not installed.
    """
    llama = require("llama_cpp", "llamacpp")
    callback = llama.llama_log_callback(_on_log)
    library.callback = callback  # type: ignore[attr-defined]  # the native side keeps a bare pointer to it
    llama.llama_log_set(callback, ctypes.c_void_p(0))
    llama.llama_backend_init()
    return llama


def warm() -> None:
    """Import ahead what a load imports."""
    library()


def _on_log(level: int, text: bytes, _: object) -> None:
    lines: list[tuple[int, str]] | None = getattr(_caught, "lines", None)
    line = text.decode("utf-8", "replace").rstrip()
    if lines is not None:
        lines.append((level, line))
    elif level in (_WARN, _ERROR) and line:
        logger.log(logging.ERROR if level == _ERROR else logging.DEBUG, "%s", line)


@contextlib.contextmanager
def _catch_log() -> Iterator[list[tuple[int, str]]]:
    _caught.lines = []
    try:
        yield _caught.lines
    finally:
        _caught.lines = None


def reason(lines: list[tuple[int, str]]) -> str:
    """The first error among llama.cpp's log lines."""
    errors = [line.partition(": ")[2] or line for level, line in lines if level == _ERROR and line]
    return errors[0] if errors else "llama.cpp gave no reason"


@dataclass(frozen=True)
class Options:
    """How a model is loaded."""

    n_ctx: int
    """Context of a sequence in tokens."""
    n_seq: int
    """Sequences that are held at once, each with a cache of its own."""
    n_batch: int
    """Rows of one `decode` at most."""
    n_threads: int
    """CPU threads."""
    gpu: int | None
    """Index of the accelerator, None for the CPU."""
    gpu_layers: int | None
    """Layers on the accelerator, None for all."""
    split: Mapping[int, int]
    """Layers on each accelerator by its index, the output counted as one. Empty: all of them on `gpu`."""
    exact: bool
    """On the CPU, compute a token to the same bits in any company: weights stay as they are in the file, and attention
    uses the plain kernels. Otherwise weights are rearranged for faster batches and attention is computed in one go (flash
    attention); both round in another way from call to call."""


class LlamaModel:
    """A loaded model and its context. Use and close it on one thread.

    Args:
        path: the GGUF file, the first one of a split model.
        options: how to load it.
        progress: called with the share done (0..1); returning False aborts the load.

    Raises:
        LoadFailed: llama.cpp refused the file or the context, with its reason.
    """

    def __init__(self, path: Path, options: Options, progress: Callable[[float], bool]) -> None:
        self.lib = library()
        self.n_batch = options.n_batch
        self._model = self.context = None
        self.buffers: dict[str, int] = {}
        """Bytes by ggml's buffer name (`CPU_Mapped`, `CUDA0` …), as the library logged them."""
        if options.gpu is not None and not self.lib.llama_supports_gpu_offload():
            raise LoadFailed(
                "llama-cpp-python was built without GPU support.",
                hint="Reinstall it with the CMAKE_ARGS of your accelerator to use the GPU.",
            )
        with _catch_log() as lines:
            self._load(path, options, progress, lines)
            self._open(options, lines)
        for _, line in lines:
            for name, mib in _BUFFER.findall(line):
                self.buffers[name] = self.buffers.get(name, 0) + int(float(mib) * 2**20)
        self._memory = self.lib.llama_get_memory(self.context)
        self._vocab = self.lib.llama_model_get_vocab(self._model)
        self._batch = _Batch(self.lib, options.n_batch)
        self._piece = ctypes.create_string_buffer(256)
        self._ends: list[int] | None = None
        self.n_ctx = int(self.lib.llama_n_ctx_seq(self.context))
        self.n_vocab = int(self.lib.llama_vocab_n_tokens(self._vocab))

    def _load(
        self, path: Path, options: Options, progress: Callable[[float], bool], lines: list[tuple[int, str]]
    ) -> None:
        gpu = options.gpu
        params = self.lib.llama_model_default_params()
        params.use_extra_bufts = not options.exact
        params.n_gpu_layers = 0 if gpu is None else -1 if options.gpu_layers is None else options.gpu_layers
        if gpu is not None:
            params.split_mode, params.main_gpu = _SPLIT_NONE, gpu
        if len(options.split) == 1:  # the other cards stay untouched
            ((params.main_gpu, params.n_gpu_layers),) = options.split.items()
        elif options.split:
            shares = [options.split.get(index, 0) for index in range(self.lib.llama_max_devices())]
            params.n_gpu_layers = sum(shares)
            params.split_mode, params.tensor_split = _SPLIT_LAYERS, (ctypes.c_float * len(shares))(*shares)
        stopped = False

        def on_progress(share: float, _: object) -> bool:
            nonlocal stopped
            stopped = stopped or not progress(share)
            return not stopped

        callback = self.lib.llama_progress_callback(on_progress)
        params.progress_callback = callback
        self._model = self.lib.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise LoadFailed(
                "The load was cancelled." if stopped else f"llama.cpp cannot load {path.name}: {reason(lines)}."
            )

    def _open(self, options: Options, lines: list[tuple[int, str]]) -> None:
        params = self.lib.llama_context_default_params()
        params.n_ctx = options.n_ctx * options.n_seq
        params.n_batch = params.n_ubatch = options.n_batch
        params.n_seq_max = params.n_outputs_max = options.n_seq
        params.n_threads = params.n_threads_batch = options.n_threads
        params.offload_kqv = params.op_offload = options.gpu is not None
        if options.exact and options.gpu is None:
            params.flash_attn_type = _FLASH_ATTENTION_OFF
        params.no_perf = True
        self.context = self.lib.llama_init_from_model(self._model, params)
        if not self.context:
            self.close()
            raise LoadFailed(
                f"llama.cpp cannot make a context of {options.n_seq} × {options.n_ctx:,} tokens: {reason(lines)}.",
                hint="Load it with a shorter context_length, or fewer requests in parallel.",
            )

    def memory(self, device: str, other: Mapping[str, int]) -> dict[str, int]:
        """Bytes by device: llama.cpp's buffers, and what else the caller knows of.

        Args:
            device: the accelerator's key, or the CPU's.
            other: bytes by device.
        """
        taken = Counter(other)
        for name, size in self.buffers.items():
            card = _CARD.match(name)
            host = name.startswith("CPU") or name.endswith("_Host")
            taken["cpu" if host else f"cuda:{card[1]}" if card else device] += size
        return dict(taken)

    def close(self) -> None:
        """Free context and model."""
        if self.context:
            self.lib.llama_free(self.context)
        if self._model:
            self.lib.llama_model_free(self._model)
        self._model = self.context = None

    # -- text --------------------------------------------------------------------------------------------------------

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        """Token ids; markers such as `<bos>` in the text become their tokens."""
        data = text.encode("utf-8", "replace")
        size = len(data) + 8
        tokens = (self.lib.llama_token * size)()
        count = self.lib.llama_tokenize(self._vocab, data, len(data), tokens, size, add_special, True)
        if count < 0:
            raise EngineFailure(f"llama.cpp could not tokenize {len(data):,} bytes (code {count}).")
        return list(tokens[:count])

    def piece(self, token: int) -> bytes:
        """The bytes of a token; control tokens have none."""
        size = self.lib.llama_token_to_piece(self._vocab, token, self._piece, len(self._piece), 0, False)
        if size < 0:
            self._piece = ctypes.create_string_buffer(-size)
            size = self.lib.llama_token_to_piece(self._vocab, token, self._piece, len(self._piece), 0, False)
        return self._piece.raw[:size]

    def is_end(self, token: int) -> bool:
        """The model says it is done."""
        return bool(self.lib.llama_vocab_is_eog(self._vocab, token))

    @property
    def bos(self) -> tuple[int, str] | None:
        """Id and text of the begin-of-sequence token."""
        return self._special(self.lib.llama_vocab_bos(self._vocab))

    @property
    def eos(self) -> tuple[int, str] | None:
        """Id and text of the end-of-sequence token."""
        return self._special(self.lib.llama_vocab_eos(self._vocab))

    @property
    def fim(self) -> tuple[int, int, int] | None:
        """The tokens for filling in the middle: prefix, suffix, middle. None: the model has none."""
        lib, vocab = self.lib, self._vocab
        tokens = (lib.llama_vocab_fim_pre(vocab), lib.llama_vocab_fim_suf(vocab), lib.llama_vocab_fim_mid(vocab))
        return tokens if min(tokens) >= 0 else None

    def tokenize_gap(self, before: str, after: str) -> list[int]:
        """Token ids of a text with a gap, which the model goes on to fill. The model must have `fim`."""
        assert self.fim is not None
        prefix, suffix, middle = self.fim
        start = [self.bos[0]] if self.bos and self.bos[0] in self.tokenize("", add_special=True) else []
        texts = (self.tokenize(text, add_special=False) for text in (before, after))
        return [*start, prefix, *next(texts), suffix, *next(texts), middle]

    def _special(self, token: int) -> tuple[int, str] | None:
        if token < 0:
            return None
        return token, (self.lib.llama_vocab_get_text(self._vocab, token) or b"").decode("utf-8", "replace")

    def end_tokens(self) -> list[int]:
        """Every token that ends an answer. The first call asks for each of the vocabulary."""
        if self._ends is None:
            self._ends = [token for token in range(self.n_vocab) if self.is_end(token)]
        return self._ends

    @property
    def vocabulary(self) -> int:
        """The address of the native vocabulary, for libraries that read it themselves."""
        return ctypes.cast(self._vocab, ctypes.c_void_p).value or 0

    # -- computing ---------------------------------------------------------------------------------------------------

    def use_threads(self, count: int) -> None:
        """Compute with this many threads from the next call on."""
        self.lib.llama_set_n_threads(self.context, count, count)

    def decode(self, rows: Sequence["Row"]) -> None:
        """Evaluate up to `n_batch` rows; `logits` are then there for those that asked for them.

        Raises:
            EngineFailure: llama.cpp failed, with its code. What the rows' sequences hold from there on is not known.
        """
        code = self.lib.llama_decode(self.context, self._batch.of(rows))
        if code != 0:
            where = ", ".join(sorted({f"{row.sequence} at {row.position}" for row in rows}))[:200]
            raise EngineFailure(f"llama_decode failed with code {code} (sequence {where}).")

    def logits(self, row: int) -> Any:
        """The scores after a row of the last `decode`, a float32 array of the vocabulary's length; may be changed."""
        import numpy as np

        return np.ctypeslib.as_array(self.lib.llama_get_logits_ith(self.context, row), (self.n_vocab,))

    def cut(self, sequence: int, length: int) -> bool:
        """Keep a sequence's first `length` tokens. False when its cache cannot be cut there: then it is empty."""
        if self._holds(sequence, length) and self.lib.llama_memory_seq_rm(self._memory, sequence, length, -1):
            return True
        self.lib.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        return False

    def _holds(self, sequence: int, length: int) -> bool:
        """Whether every one of the first tokens is there: a window that moved on, or an empty cache, has lost some."""
        if length == 0:
            return True
        first = self.lib.llama_memory_seq_pos_min(self._memory, sequence)
        return bool(first == 0 and self.lib.llama_memory_seq_pos_max(self._memory, sequence) >= length - 1)

    def copy(self, source: int, target: int) -> None:
        """Make `target` hold what `source` holds."""
        self.lib.llama_memory_seq_rm(self._memory, target, -1, -1)
        self.lib.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def save(self, sequence: int) -> bytes:
        """A sequence's state, to `restore` later."""
        size = self.lib.llama_state_seq_get_size(self.context, sequence)
        data = (ctypes.c_uint8 * size)()
        written = self.lib.llama_state_seq_get_data(self.context, data, size, sequence)
        return bytes(memoryview(data)[:written])

    def restore(self, sequence: int, state: bytes) -> bool:
        """Put a saved state into a sequence. False when it does not fit; the sequence is empty then."""
        self.lib.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        data = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        if self.lib.llama_state_seq_set_data(self.context, data, len(state), sequence):
            return True
        self.lib.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        return False


class Row(NamedTuple):
    """One token to evaluate."""

    token: int
    position: int
    sequence: int
    wants_logits: bool


class _Batch:
    """A `llama_batch` over arrays of our own, which numpy fills."""

    def __init__(self, lib: Any, size: int) -> None:
        import numpy as np

        self._tokens, self._positions, self._sequences = (np.zeros(size, np.int32) for _ in range(3))
        self._counts, self._outputs = np.ones(size, np.int32), np.zeros(size, np.int8)
        start = self._sequences.ctypes.data
        pointer = ctypes.POINTER(ctypes.c_int32)
        self._lists = (pointer * size)(*(ctypes.cast(start + 4 * row, pointer) for row in range(size)))
        self._native = lib.llama_batch()
        self._native.embd = None
        for name, array in (
            ("token", self._tokens), ("pos", self._positions), ("n_seq_id", self._counts), ("logits", self._outputs),
        ):  # fmt: skip
            setattr(self._native, name, ctypes.cast(array.ctypes.data, type(getattr(self._native, name))))
        self._native.seq_id = ctypes.cast(self._lists, type(self._native.seq_id))

    def of(self, rows: Sequence[Row]) -> Any:
        """The native batch of these rows."""
        count = len(rows)
        tokens, positions, sequences, outputs = zip(*rows, strict=True)
        self._tokens[:count], self._positions[:count] = tokens, positions
        self._sequences[:count], self._outputs[:count] = sequences, outputs
        self._native.n_tokens = count
        return self._native
