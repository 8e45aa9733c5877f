"""llama.cpp through ctypes: one model, one context, one sequence. No policy here, and no thread but the caller's.

The native library speaks through one global log callback; what it says during a load is caught per thread, because its
error messages and buffer sizes are told nowhere else.
"""

import contextlib
import ctypes
import logging
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from lfx_local_runtimes.errors import EngineFailure, LoadFailed
from lfx_local_runtimes.optional import require
from lfx_local_runtimes.runtimes.config import GenerationConfig

logger = logging.getLogger(__name__)

_WARN, _ERROR = 2, 3
_SPLIT_NONE = 0
_caught = threading.local()
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


def _reason(lines: list[tuple[int, str]]) -> str:
    errors = [line.partition(": ")[2] or line for level, line in lines if level == _ERROR and line]
    return errors[0] if errors else "llama.cpp gave no reason"


class LlamaModel:
    """A loaded model and its context. Use and close it on one thread.

    Args:
        path: the GGUF file, the first one of a split model.
        n_ctx: context in tokens.
        n_batch: tokens of a prefill chunk.
        n_threads: CPU threads.
        gpu: index of the accelerator, None for the CPU.
        gpu_layers: layers on the accelerator, None for all.
        progress: called with the share done (0..1); returning False aborts the load.

    Raises:
        LoadFailed: llama.cpp refused the file or the context, with its reason.
    """

    def __init__(
        self, path: Path, *, n_ctx: int, n_batch: int, n_threads: int, gpu: int | None, gpu_layers: int | None,
        progress: Callable[[float], bool],
    ) -> None:  # fmt: skip
        self.lib = library()
        self.n_batch = n_batch
        self._model = self.context = self._batch = None
        self.buffers: dict[str, int] = {}
        """Bytes by ggml's buffer name (`CPU_Mapped`, `CUDA0` …), as the library logged them."""
        if gpu is not None and not self.lib.llama_supports_gpu_offload():
            raise LoadFailed(
                "llama-cpp-python was built without GPU support.",
                hint="Reinstall it with the CMAKE_ARGS of your accelerator to use the GPU.",
            )
        with _catch_log() as lines:
            self._load(path, gpu, gpu_layers, progress, lines)
            self._open(n_ctx, n_threads, gpu, lines)
        for _, line in lines:
            for name, mib in _BUFFER.findall(line):
                self.buffers[name] = self.buffers.get(name, 0) + int(float(mib) * 2**20)
        self._memory = self.lib.llama_get_memory(self.context)
        self._vocab = self.lib.llama_model_get_vocab(self._model)
        self._batch = self.lib.llama_batch_init(n_batch, 0, 1)
        self._piece = ctypes.create_string_buffer(256)
        self.n_ctx = int(self.lib.llama_n_ctx(self.context))
        self.n_vocab = int(self.lib.llama_vocab_n_tokens(self._vocab))

    def _load(
        self,
        path: Path,
        gpu: int | None,
        gpu_layers: int | None,
        progress: Callable[[float], bool],
        lines: list[tuple[int, str]],
    ) -> None:
        params = self.lib.llama_model_default_params()
        params.n_gpu_layers = 0 if gpu is None else -1 if gpu_layers is None else gpu_layers
        if gpu is not None:
            params.split_mode, params.main_gpu = _SPLIT_NONE, gpu
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
                "The load was cancelled." if stopped else f"llama.cpp cannot load {path.name}: {_reason(lines)}."
            )

    def _open(self, n_ctx: int, n_threads: int, gpu: int | None, lines: list[tuple[int, str]]) -> None:
        params = self.lib.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = params.n_ubatch = self.n_batch
        params.n_seq_max = params.n_outputs_max = 1
        params.n_threads = params.n_threads_batch = n_threads
        params.offload_kqv = params.op_offload = gpu is not None
        params.no_perf = True
        self.context = self.lib.llama_init_from_model(self._model, params)
        if not self.context:
            self.close()
            raise LoadFailed(f"llama.cpp cannot make a context of {n_ctx:,} tokens: {_reason(lines)}.")

    def close(self) -> None:
        """Free context and model."""
        if self._batch is not None:
            self.lib.llama_batch_free(self._batch)
        if self.context:
            self.lib.llama_free(self.context)
        if self._model:
            self.lib.llama_model_free(self._model)
        self._model = self.context = self._batch = None

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

    def _special(self, token: int) -> tuple[int, str] | None:
        if token < 0:
            return None
        return token, (self.lib.llama_vocab_get_text(self._vocab, token) or b"").decode("utf-8", "replace")

    # -- computing ---------------------------------------------------------------------------------------------------

    def keep(self, length: int) -> bool:
        """Cut the cache to its first `length` tokens. False when it cannot be cut: then it is empty."""
        if self.lib.llama_memory_seq_rm(self._memory, 0, length, -1):
            return True
        self.lib.llama_memory_clear(self._memory, False)
        return False

    def decode(self, tokens: Sequence[int], position: int) -> None:
        """Evaluate up to `n_batch` tokens from `position` on; the last one's logits are then there to sample from.

        Raises:
            EngineFailure: llama.cpp failed, with its code.
        """
        batch: Any = self._batch
        last = len(tokens) - 1
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, position + i, 1, 0
            batch.logits[i] = i == last
        batch.n_tokens = last + 1
        code = self.lib.llama_decode(self.context, batch)
        if code != 0:
            raise EngineFailure(f"llama_decode failed with code {code} at token {position}.")

    def sampler(self, config: GenerationConfig, seed: int, prompt: Sequence[int]) -> "Sampler":
        """A sampler for one request."""
        return Sampler(self, config, seed, prompt)


class Sampler:
    """llama.cpp's own chain: repetition penalty, top-k, top-p, min-p, temperature, draw. Close it after use."""

    def __init__(self, model: LlamaModel, config: GenerationConfig, seed: int, prompt: Sequence[int]) -> None:
        lib = self._lib = model.lib
        self._context = model.context
        self._chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())

        def add(link: Any) -> None:
            lib.llama_sampler_chain_add(self._chain, link)

        if config.repetition_penalty != 1.0:
            add(lib.llama_sampler_init_penalties(model.n_vocab, model.n_ctx, config.repetition_penalty, 0.0, 0.0))
            for token in prompt:
                lib.llama_sampler_accept(self._chain, token)
        if config.temperature == 0:
            add(lib.llama_sampler_init_greedy())
            return
        if config.top_k:
            add(lib.llama_sampler_init_top_k(config.top_k))
        if config.top_p < 1:
            add(lib.llama_sampler_init_top_p(config.top_p, 1))
        if config.min_p > 0:
            add(lib.llama_sampler_init_min_p(config.min_p, 1))
        add(lib.llama_sampler_init_temp(config.temperature))
        add(lib.llama_sampler_init_dist(seed))

    def sample(self) -> int:
        """Draw the next token from the last logits."""
        return int(self._lib.llama_sampler_sample(self._chain, self._context, -1))

    def close(self) -> None:
        """Free the chain."""
        self._lib.llama_sampler_free(self._chain)
