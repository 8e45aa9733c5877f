"""An ONNX file made from a safetensors model, once, and kept in the data folder.

It is made in a process of its own: torch's exporter changes the state of the process it runs in, takes several times the
model's memory, and cannot be interrupted. The process is confined as a model's is: it reads the model, and writes one
folder.
"""

import hashlib
import os
import re
from dataclasses import replace
from pathlib import Path

from lfx_local_runtimes.errors import EngineFailure, LoadFailed
from lfx_local_runtimes.optional import require_installed
from lfx_local_runtimes.runtimes.base import LoadContext
from lfx_local_runtimes.runtimes.config import ModelConfig
from lfx_local_runtimes.runtimes.engines.onnx.offer import with_file
from lfx_local_runtimes.runtimes.formats.info import ModelFormat
from lfx_local_runtimes.runtimes.formats.onnx import read_onnx
from lfx_local_runtimes.runtimes.planning import LoadPlan
from lfx_local_runtimes.runtimes.processes.child import Child, ChildDied, ChildNotStarted
from lfx_local_runtimes.runtimes.processes.cleaner import remove
from lfx_local_runtimes.runtimes.processes.confinement import Policy
from lfx_local_runtimes.runtimes.processes.environment import child_environment
from lfx_local_runtimes.runtimes.processes.frames import Frame, ProtocolError
from lfx_local_runtimes.runtimes.processes.paths import files_of
from lfx_local_runtimes.runtimes.processes.written import overrun
from lfx_local_runtimes.runtimes.requests import Progress
from lfx_local_runtimes.runtimes.sources.locks import held_lock
from lfx_local_runtimes.runtimes.trust.report import REMOTE_CODE

_VERSION = 1
"""Of what is written: a new one makes the files anew."""
_WORKER = "lfx_local_runtimes.runtimes.engines.onnx.export_worker"
_POLL_S = 0.1
_LARGEST = 1_500 * 2**20
"""Bytes: past that torch writes several files, and protobuf holds no more than 2 GiB in one."""
_MAX_FILE = 2 * 2**30
_BASE_MEMORY, _TIMES = 4 * 2**30, 8
"""Bytes of private memory that the worker may take, and so many times the model in fp32 besides."""
_BASE_FILES, _FILES = 256 * 2**20, 8
"""The same for what it may write."""


def with_export(plan: LoadPlan, config: ModelConfig, context: LoadContext) -> LoadPlan:
    """The plan with an ONNX file to load. The file is made if the plan has none.

    Raises:
        RuntimeFault: as `exported`.
    """
    if plan.info.format is ModelFormat.ONNX:
        return plan
    return replace(plan, info=with_file(plan.info, read_onnx(exported(plan, config, context))))


def exported(plan: LoadPlan, config: ModelConfig, context: LoadContext) -> Path:
    """The ONNX file of a model, in fp32 or int8 as planned; made where it is not there yet, once for all processes.

    Raises:
        LoadFailed: the exporter does not know the architecture, what it made computes something else, the model is too
            large for one file, or cancelled.
        EngineFailure: the data folder cannot be written.
        MissingExtra: torch or the exporter is not installed.
    """
    folder = context.settings.home.absolute() / "onnx" / _key(plan)
    target = folder / f"model_{plan.dtype}.onnx"
    if target.is_file():
        return target
    require_installed("torch", "transformers")
    require_installed("onnxscript", "onnx")
    if 4 * (plan.info.parameters or 0) > _LARGEST:
        raise LoadFailed(
            f"{plan.info.path.name} has {plan.info.parameters:,} parameters, too many for one ONNX file.",
            hint="Use the Transformers engine, or ONNX files that come with the model.",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with held_lock(folder / ".lock", lambda: context.cancelled):
            whole = folder / "model_fp32.onnx"
            if not whole.is_file():
                code = context.may_run(REMOTE_CODE)
                model = {"model": os.fspath(plan.info.path.absolute()), "task": plan.task, "trust_remote_code": code}
                _make({"do": "export", **model}, whole, plan, context)
            if not target.is_file():
                _make({"do": "quantize", "source": os.fspath(whole), "trust_remote_code": False}, target, plan, context)
    except OSError as error:
        raise EngineFailure(
            f"{target} cannot be written: {error}", hint="Free some space, or set LOCAL_RUNTIMES_HOME."
        ) from error
    return target


def _key(plan: LoadPlan) -> str:
    """A folder's name that changes with the model's files and task."""
    told: list[object] = [_VERSION, plan.task]
    for file in (*plan.info.files, plan.info.folder / "config.json"):
        stat = file.stat()
        told += [os.fspath(file.resolve()), stat.st_size, stat.st_mtime_ns]
    name = re.sub(r"[^\w.-]+", "-", plan.info.name or "").strip(".")[:60] or "model"
    return f"{name}-{hashlib.sha256(repr(told).encode()).hexdigest()[:16]}"


def _make(request: dict[str, object], target: Path, plan: LoadPlan, context: LoadContext) -> None:
    """Have the worker write a file. It works in a folder of its own, of which nothing else stays."""
    work = target.with_name(".work")
    remove(os.fspath(work))  # of a process that was killed
    work.mkdir()
    context.report(Progress(str(request["do"]), 0, plan.info.size_bytes))
    try:
        child = Child(_WORKER, name="The export", environment=child_environment(scratch=work), folder=work)
        try:
            limits = _limits(request, work, plan, context)
            child.send(Frame({**request, "target": os.fspath(work / target.name), **limits}))
            _wait(child, context, work, _FILES * 4 * (plan.info.parameters or 0) + _BASE_FILES)
        finally:
            child.close(0)
        (work / target.name).replace(target)
    except ChildNotStarted as error:
        raise LoadFailed(str(error)) from error
    except (ChildDied, ProtocolError) as error:
        hint = "It may have run out of memory. Use the Transformers engine."
        raise LoadFailed(str(error), hint=hint) from error
    finally:
        remove(os.fspath(work))


def _limits(request: dict[str, object], work: Path, plan: LoadPlan, context: LoadContext) -> dict[str, object]:
    """What the worker gives up, and whether it must be all of it."""
    settings, clearance = context.settings, context.clearance
    code = bool(request["trust_remote_code"]) and clearance is not None and clearance.needs_full
    needs_full = code or settings.confine == "require"
    if settings.confine == "off":
        return {"policy": None, "needs_full": needs_full}
    source = request.get("source")
    read = files_of(plan.info, settings.model_roots) if source is None else (Path(str(source)),)
    memory = _BASE_MEMORY + _TIMES * 4 * (plan.info.parameters or 0)
    policy = Policy(read=read, write=(work,), memory=memory, file_size=_MAX_FILE)
    return {"policy": policy.to_json(), "needs_full": needs_full}


def _wait(child: Child, context: LoadContext, work: Path, most: int) -> None:
    """Until the worker has ended well.

    Raises:
        LoadFailed: it failed, it wrote more bytes than `most`, or the load was cancelled.
        ChildDied: it ended without a word.
    """
    while child.wait(_POLL_S) is None:
        if context.cancelled:
            raise LoadFailed("The export was cancelled.")
        if why := overrun(work, child.pid, most, _MAX_FILE):
            raise LoadFailed(f"The export was killed: {why}.", hint="Use the Transformers engine.")
    answer = child.receive().header  # it ends after its one frame
    if "message" in answer:
        raise LoadFailed(answer["message"], hint=answer["hint"])
