"""Every fault this package raises on purpose.

RuntimeFault
├── InvalidInput            a request or a configuration that cannot be served as written
│   ├── ContextOverflow     the prompt is longer than the context
│   ├── TemplateFault       the chat template failed, or ran past its limits
│   ├── WrongTask           the model cannot do this task
│   └── InvalidModelFile    a model file that is corrupt, truncated or hostile
├── ModelNotFound           no model has that name, and it is neither a path nor a hub id of one
├── RequestNotFound         no running request has that id
├── DownloadNotFound        no download has that id
├── RequestCancelled        somebody cancelled the request
├── ModelConflict           the name has another configuration
├── ModelBusy               the model is in use
│   └── QueueFull           too many requests wait for it
├── DoesNotFit              not enough memory; the message has the numbers
├── NotAllowed              refused by policy
│   ├── PathNotAllowed      outside the allowed model roots
│   ├── DownloadTooLarge    larger than a request may download
│   ├── PickleRefused       weights that can run code when they are read
│   └── RemoteCodeRefused   code that came with a model
├── MissingExtra            an optional dependency is not installed
├── DeviceUnavailable       the requested device is not there
├── DownloadFailed          a download broke off, or its checksum is wrong
│   ├── DiskFull            not enough free disk for it; the message has the numbers
│   ├── NotDownloaded       the model is not on this machine, and its download was not asked for, or was stopped
│   └── Offline             the model is not on this machine, and downloads are off
├── EngineFailure           an engine failed while it worked
│   ├── LoadFailed          an engine could not load the model
│   ├── DeviceFailed        an accelerator failed while it computed
│   └── EngineDied          the model's process crashed, ran out of memory, or hung and was killed
└── SettingsFault           settings that contradict each other or do not suit this machine

Each has the model's name, if there is one, and a hint that says what to do. They know nothing of HTTP: the routes map the
types to statuses in one table.
"""


class RuntimeFault(Exception):
    """Base of the tree.

    Args:
        message: what happened. It names the wrong input.
        model_name: the model concerned, if any.
        hint: what the reader can do about it.
    """

    code = "runtime_fault"
    default_hint = ""

    def __init__(self, message: str, *, model_name: str | None = None, hint: str | None = None) -> None:
        super().__init__()
        self.message = message
        self.model_name = model_name
        self.hint = self.default_hint if hint is None else hint
        self.args = (str(self),)  # Langflow shows this, and not str(): without it a node's error would have no hint

    def __str__(self) -> str:
        subject = f"{self.model_name}: " if self.model_name and self.model_name not in self.message else ""
        return f"{subject}{self.message}" + (f" {self.hint}" if self.hint else "")


class InvalidInput(RuntimeFault):
    """A request or a configuration that cannot be served as written."""

    code = "invalid_input"


class ContextOverflow(InvalidInput):
    """The prompt does not fit the model's context."""

    code = "context_overflow"


class TemplateFault(InvalidInput):
    """A chat template failed to render within its limits."""

    code = "template_fault"


class WrongTask(InvalidInput):
    """The model cannot do the task of the request."""

    code = "wrong_task"


class InvalidModelFile(InvalidInput):
    """A model file that is corrupt, truncated or hostile."""

    code = "invalid_model_file"


class ModelNotFound(RuntimeFault):
    """No model has that name."""

    code = "model_not_found"


class RequestNotFound(RuntimeFault):
    """No running request has that id."""

    code = "request_not_found"


class DownloadNotFound(RuntimeFault):
    """No download has that id."""

    code = "download_not_found"
    default_hint = "GET downloads lists them. Those of an earlier process are not in it: start the download again."


class RequestCancelled(RuntimeFault):
    """A request was cancelled: by its id, by a forced unload, or because the server stops."""

    code = "cancelled"
    default_hint = "Send it again if you still want it."

    @classmethod
    def of(cls, request_id: str) -> "RequestCancelled":
        """The fault of a request."""
        return cls(f"Request {request_id} was cancelled before its end.")


class ModelConflict(RuntimeFault):
    """The name is registered with another configuration."""

    code = "model_conflict"


class ModelBusy(RuntimeFault):
    """The model is in use."""

    code = "model_busy"


class QueueFull(ModelBusy):
    """Too many requests wait for the model."""

    code = "queue_full"
    default_hint = "Send it again later, or raise the model's max_queued."


class DoesNotFit(RuntimeFault):
    """Not enough memory, and no idle model is left to unload."""

    code = "does_not_fit"


class NotAllowed(RuntimeFault):
    """Refused by policy."""

    code = "not_allowed"


class PathNotAllowed(NotAllowed):
    """A path outside the allowed model roots."""

    code = "path_not_allowed"


class DownloadTooLarge(NotAllowed):
    """A model is larger than a request may download."""

    code = "download_too_large"


class PickleRefused(NotAllowed):
    """Pickle weights run code when they are read."""

    code = "pickle_refused"
    default_hint = (
        "Use a safetensors or GGUF copy of the model, or set LOCAL_RUNTIMES_ALLOW_PICKLE=true if you trust it."
    )


class RemoteCodeRefused(NotAllowed):
    """The model brings Python code of its own."""

    code = "remote_code_refused"
    default_hint = (
        "It runs only with trust_remote_code in the model's config and LOCAL_RUNTIMES_TRUST_REMOTE_CODE=true."
    )


class MissingExtra(RuntimeFault):
    """An optional dependency is not installed."""

    code = "missing_extra"


class DeviceUnavailable(RuntimeFault):
    """The requested device is not there."""

    code = "device_unavailable"


class DownloadFailed(RuntimeFault):
    """A download broke off, or its checksum is wrong."""

    code = "download_failed"


class DiskFull(DownloadFailed):
    """There is not enough free disk for a download."""

    code = "disk_full"


class NotDownloaded(DownloadFailed):
    """The model is not on this machine. A first use may not download it, or its download was paused or cancelled."""

    code = "not_downloaded"


class Offline(DownloadFailed):
    """The model is not on this machine, and downloads are off."""

    code = "offline"


class EngineFailure(RuntimeFault):
    """An engine failed while it worked."""

    code = "engine_failure"


class LoadFailed(EngineFailure):
    """No engine could load the model."""

    code = "load_failed"


class DeviceFailed(EngineFailure):
    """An accelerator failed while it computed. The model has to be loaded again, on another device if there is one."""

    code = "device_failed"


class EngineDied(EngineFailure):
    """The process of a model ended while it was needed: it crashed, ran out of memory, or hung and was killed."""

    code = "engine_died"


class SettingsFault(RuntimeFault):
    """Settings that contradict each other or do not suit this machine."""

    code = "settings_fault"


def as_fault(error: BaseException, kind: type[RuntimeFault], what: str, model_name: str) -> RuntimeFault:
    """A fault for any exception: the exception itself if it is a fault, else a `kind` that says `what` failed and keeps the cause."""
    if isinstance(error, RuntimeFault):
        error.model_name = error.model_name or model_name
        return error
    fault = kind(f"{what}: {str(error) or type(error).__name__}", model_name=model_name)
    fault.__cause__ = error
    return fault
