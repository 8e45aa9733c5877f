"""The routes over a manager whose one engine does as the test says, and a way to leave in the middle of an answer."""

import asyncio
import contextlib
import itertools
import json
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Header, HTTPException, Request, Response, WebSocket, WebSocketException
from starlette.types import Message

from lfx_local_runtimes.routes import PREFIX, build_router
from lfx_local_runtimes.runtimes.config import ModelConfig
from lfx_local_runtimes.runtimes.engines.registry import register_engine
from lfx_local_runtimes.runtimes.manager import RuntimeManager
from lfx_local_runtimes.runtimes.planning import LoadPlan
from lfx_local_runtimes.runtimes.requests import Event
from lfx_local_runtimes.runtimes.requests import Request as EngineRequest
from lfx_local_runtimes.runtimes.tasks.generation import GenerationConfig, GenerationResult, TokenLogprob
from lfx_local_runtimes.runtimes.testing import ScriptedRuntime, Step
from lfx_local_runtimes.settings import Settings

KEY = {"x-api-key": "let me in"}
MODEL = "tiny puppet"
PATIENCE_S = 20.0
LANGFLOW_LAYERS = 6
layers = pytest.mark.parametrize("layers", [0, LANGFLOW_LAYERS])

LOGPROBS = (
    TokenLogprob(token="He", logprob=-0.5, bytes=(72, 101), top=(TokenLogprob(token="Ho", logprob=-1.5, bytes=(72, 111)),)),
    TokenLogprob(token="llo", logprob=-0.25, bytes=(108, 108, 111)),
)  # fmt: skip


def a_result(**fields: Any) -> GenerationResult:
    """Of the model's; what the test does not name is made up."""
    made = {
        "text": "Hello", "model_name": MODEL, "tokens_generated": 4, "prompt_tokens": 7, "finish_reason": "stop",
        "execution_time": 0.1, "time_to_first_token": 0.05, "metadata": {"cached_tokens": 3},
    }  # fmt: skip
    return GenerationResult.model_validate({**made, **fields})


class Stage:
    """What the test decides and sees of its engine."""

    def __init__(self) -> None:
        self.load_fault: Exception | None = None
        self.serve_fault: Exception | None = None
        self.fault_after = 0
        self.events: list[Event] = []
        """If there are any, these are the answer."""
        self.requests: list[EngineRequest] = []
        self.go_on = threading.Event()
        self.go_on.set()
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Requests stop after their first token, until the block ends or they are cancelled."""
        self.go_on.clear()
        try:
            yield
        finally:
            self.go_on.set()

    def script(self, config: GenerationConfig) -> Iterator[Step]:
        """Endless: `max_tokens` ends it."""
        for index in itertools.count():
            if self.serve_fault is not None and index == self.fault_after:
                yield self.serve_fault
            yield f"t{index} "
            yield self.go_on

    def note(self, request: EngineRequest) -> None:
        with self._changed:
            self.requests.append(request)
            self._changed.notify_all()

    async def serving(self, count: int = 1) -> EngineRequest:
        """The newest request, once so many have reached the engine."""
        return await asyncio.to_thread(self._serving, count)

    async def answered(self) -> None:
        """Until the first request has ended."""
        request, ended = await self.serving(), threading.Event()
        request.on_end(ended.set)
        assert await asyncio.to_thread(ended.wait, PATIENCE_S)

    def _serving(self, count: int) -> EngineRequest:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.requests) >= count, PATIENCE_S)
            return self.requests[-1]

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """For what happens in the background and can only be asked for."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline
            threading.Event().wait(0.01)


class Puppet(ScriptedRuntime):
    """Says t0, t1, t2 … as its stage lets it."""

    engine = "puppet"

    def __init__(self, stage: Stage, config: ModelConfig, plan: LoadPlan | None) -> None:
        super().__init__(config, plan, script=stage.script, load_error=stage.load_fault)
        self._stage = stage

    def _serve(self, request: EngineRequest) -> None:
        self._stage.note(request)
        for event in self._stage.events:
            request.emit(event)
        if not self._stage.events:
            super()._serve(request)


def write_model(folder: Path) -> None:
    """The smallest model: one tensor of four zeros."""
    folder.mkdir(parents=True, exist_ok=True)
    header = json.dumps({"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))


def make_manager(stage: Stage, models: Path) -> RuntimeManager:
    """A manager whose engine `puppet` follows `stage`; `models` is the allowed root."""
    register_engine("puppet", lambda config, plan: Puppet(stage, config, plan))
    return RuntimeManager(Settings(home=models.parent / "home", model_dirs=(models,), offline=True, hf_token=None))


def register_puppet(manager: RuntimeManager, folder: Path) -> None:
    """Register the model in `folder` as `MODEL`."""
    manager.register_model(
        ModelConfig.model_validate({"model_id": str(folder), "model_name": MODEL, "runtime_type": "puppet"})
    )


def http_auth(x_api_key: str = Header(default="")) -> None:
    if x_api_key != KEY["x-api-key"]:
        raise HTTPException(403, "no key")


def ws_auth(websocket: WebSocket) -> None:
    if websocket.headers.get("x-api-key") != KEY["x-api-key"]:
        raise WebSocketException(1008, "no key")


def make_app(manager: RuntimeManager, layers: int = 0) -> FastAPI:
    """The routes, under as many `BaseHTTPMiddleware` layers as wanted: Langflow has `LANGFLOW_LAYERS`."""
    app = _application(layers)
    app.state.manager = manager
    return app


@lru_cache
def _application(layers: int) -> FastAPI:
    app = FastAPI()
    app.include_router(build_router(lambda: app.state.manager, http_auth, ws_auth))

    async def pass_on(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        return await call_next(request)

    for _ in range(layers):
        app.middleware("http")(pass_on)
    return app


class Exchange:
    """One HTTP request, spoken in ASGI: the body may come in chunks, and the client may leave when it likes."""

    def __init__(
        self,
        app: FastAPI,
        path: str,
        *chunks: bytes,
        method: str = "POST",
        window: int = 0,
        headers: dict[str, str] | None = None,
    ) -> None:
        """`window`: how many messages fit between the application and a client that does not read; 0 is no limit."""
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        for index, chunk in enumerate(chunks):
            self._inbox.put_nowait({"type": "http.request", "body": chunk, "more_body": index + 1 < len(chunks)})
        self._sent: asyncio.Queue[Message] = asyncio.Queue(window)
        scope = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": method,
            "scheme": "http", "path": PREFIX + path, "raw_path": (PREFIX + path).encode(), "query_string": b"",
            "root_path": "", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "state": {},
            "headers": [
                (name.encode(), value.encode())
                for name, value in {"content-type": "application/json", **KEY, **(headers or {})}.items()
            ],
        }  # fmt: skip
        self.ended = asyncio.ensure_future(app(scope, self._inbox.get, self._sent.put))
        self.status = 0
        self.headers: dict[str, str] = {}
        self._text = ""
        self._complete = False

    @property
    def unread(self) -> int:
        """Chunks of the body that the application has not taken."""
        return self._inbox.qsize()

    def leave(self) -> None:
        self._inbox.put_nowait({"type": "http.disconnect"})

    async def start(self) -> int:
        """The status, once the answer begins."""
        message = await asyncio.wait_for(self._sent.get(), PATIENCE_S)
        assert message["type"] == "http.response.start"
        self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        self.status = message["status"]
        return self.status

    async def chunk(self) -> str:
        """The next piece of the body; empty at the end."""
        piece = ""
        while not piece and not self._complete:
            message = await asyncio.wait_for(self._sent.get(), PATIENCE_S)
            piece, self._complete = message.get("body", b"").decode(), not message.get("more_body", False)
        return piece

    async def pieces(self) -> list[str]:
        """What is left of the body, as it comes."""
        found = []
        while piece := await self.chunk():
            found.append(piece)
        return found

    async def frame(self) -> str:
        """The next server-sent event or comment; empty at the end."""
        while "\n\n" not in self._text:
            piece = await self.chunk()
            if not piece:
                return ""
            self._text += piece
        frame, _, self._text = self._text.partition("\n\n")
        return frame

    async def event(self) -> tuple[str, dict[str, Any]]:
        """The next event, comments skipped."""
        while (frame := await self.frame()).startswith(":"):
            pass
        return parse_event(frame)

    async def json(self) -> Any:
        return json.loads("".join(await self.pieces()))


def frames_of(text: str) -> list[str]:
    """The server-sent events of a whole body; comments are left out."""
    return [frame for frame in text.split("\n\n") if frame and not frame.startswith(":")]


def parse_event(frame: str) -> tuple[str, dict[str, Any]]:
    name, data = frame.split("\n")
    return name.removeprefix("event: "), json.loads(data.removeprefix("data: "))
