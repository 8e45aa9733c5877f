"""Encoders in ONNX Runtime. The plan names the ONNX file; `export` has made it if the model came without one."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lfx_local_runtimes.errors import DeviceFailed, DeviceUnavailable, LoadFailed
from lfx_local_runtimes.optional import require
from lfx_local_runtimes.runtimes.base import LoadContext
from lfx_local_runtimes.runtimes.config import DeviceType
from lfx_local_runtimes.runtimes.engines.encoder.runtime import EncoderRuntime
from lfx_local_runtimes.runtimes.engines.encoder.spec import read_spec
from lfx_local_runtimes.runtimes.engines.encoder.tokens import PieceTokenizer, padded
from lfx_local_runtimes.runtimes.engines.hf_tokenizer import read_tokenizer
from lfx_local_runtimes.runtimes.engines.host import physical_cores, release_memory
from lfx_local_runtimes.runtimes.planning import LoadPlan
from lfx_local_runtimes.runtimes.tasks.text.reading import Tokens

_EXTRA = "onnx"
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_STATES = ("last_hidden_state", "token_embeddings")
_ERRORS_ONLY = 3


class OnnxEncoder(EncoderRuntime):
    """A model that reads, computed by ONNX Runtime."""

    engine = "onnx"

    def _open(self, plan: LoadPlan, context: LoadContext) -> "OnnxNetwork":
        session = _session(plan.info.files[0], plan, self.config.threads or physical_cores())
        tokenizer = read_tokenizer(plan.info.folder)
        return OnnxNetwork(session, tokenizer, plan, plan.info.weight_bytes or 0, self.config.pooling)

    def _close(self) -> None:
        super()._close()
        release_memory()


def _session(file: Path, plan: LoadPlan, threads: int) -> Any:
    """The file, ready to run.

    Raises:
        DeviceUnavailable: this build of ONNX Runtime does not know the device.
        LoadFailed: the runtime refuses the file.
    """
    runtime = require("onnxruntime", _EXTRA)
    providers: list[Any] = ["CPUExecutionProvider"]
    if plan.device.type is not DeviceType.CPU:
        provider = "CUDAExecutionProvider" if plan.device.type is DeviceType.CUDA else None
        if provider not in runtime.get_available_providers():
            raise DeviceUnavailable(
                f"ONNX Runtime {runtime.__version__} here does not run on {plan.device.key}.",
                hint="Install onnxruntime-gpu for CUDA, or use the Transformers engine.",
            )
        providers = [(provider, {"device_id": plan.device.index}), *providers]
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _ERRORS_ONLY
    try:
        return runtime.InferenceSession(str(file), options, providers=providers)
    except Exception as error:  # the runtime's faults have no common base
        raise LoadFailed(f"ONNX Runtime refuses {file.name}: {str(error)[:500]}") from error


class OnnxNetwork:
    """The session and its tokenizer.

    Args:
        session: on its device.
        tokenizer: a fast one.
        plan: of the load.
        weight_bytes: what the file holds.
        pooling: instead of what the files say.

    Raises:
        LoadFailed: it wants, or gives, something else than an encoder.
    """

    def __init__(self, session: Any, tokenizer: Any, plan: LoadPlan, weight_bytes: int, pooling: str | None) -> None:
        self._session, self._device = session, plan.device
        self._names = [given.name for given in session.get_inputs()]
        strange = [name for name in self._names if name not in _INPUTS]
        if strange:
            raise LoadFailed(f"{plan.info.path.name} wants {', '.join(strange[:5])}, which encoders do not have.")
        outputs = [given.name for given in session.get_outputs()]
        wanted = _STATES if plan.task == "embedding" else ("logits",)
        found = [name for name in wanted if name in outputs]
        if not found:
            raise LoadFailed(
                f"{plan.info.path.name} gives {', '.join(outputs[:5])}, and {' or '.join(wanted)} is needed for {plan.task}."
            )
        self._output = found[0]
        self.spec = read_spec(plan, int(tokenizer.model_max_length), pooling)
        self.tokenize = PieceTokenizer(tokenizer, self.spec.max_length)
        self._pad = tokenizer.pad_token_id or 0
        self.memory: Mapping[str, int] = {plan.device.key: weight_bytes}
        version = require("onnxruntime", _EXTRA).__version__
        self.about: Mapping[str, Any] = {"engine_version": version, "dtype": plan.dtype, "quantization": plan.dtype}

    def compute(self, batch: Sequence[Tokens]) -> Any:
        """States or logits of padded rows, as float32."""
        import numpy as np

        feed = padded(batch, self._pad)
        try:
            (output,) = self._session.run([self._output], {name: feed[name] for name in self._names})
        except Exception as error:  # the runtime's faults have no common base
            if self._device.type is DeviceType.CUDA and re.search("CUDA|CUDNN|CUBLAS", str(error)):
                raise DeviceFailed(f"{self._device.key} failed: {str(error)[:500]}") from error
            raise
        return output.astype(np.float32, copy=False)
