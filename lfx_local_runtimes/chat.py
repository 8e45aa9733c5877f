"""`ChatLocalRuntime`: a local model as a LangChain chat model."""

import asyncio
import contextlib
import json
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams, LanguageModelInput
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.messages import ChatMessage as LangChainChatMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import ConfigDict, Field, SecretStr, ValidationError

from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.runtimes import get_runtime_manager
from lfx_local_runtimes.runtimes.config import ChatMessage, GenerationConfig, GenerationResult
from lfx_local_runtimes.runtimes.requests import GenerationStream, Progress

logger = logging.getLogger(__name__)

Observer = Callable[[Progress | GenerationResult], object]

_SAMPLING = frozenset(
    {"max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "keep_alive"}
)
_LOADING = ("runtime_type", "device_type", "quantization", "context_length")
_TOOL_OPTIONS = frozenset({"tools", "tool_choice", "strict", "parallel_tool_calls"})
_NOT_TEXT_BUT_SAID_ELSEWHERE = frozenset({"tool_use", "tool_call", "reasoning", "thinking", "redacted_thinking"})
_AUTO_CHOICE = (None, False, "auto", "none")


class ChatLocalRuntime(BaseChatModel):
    """A model of the process-wide `RuntimeManager`, as LangChain sees it.

    Making one costs nothing: the weights live in the manager, which loads them at the first request, shares them between
    all users of the model and takes them out of memory when nobody needs them. Options left at None are the manager's
    defaults; 0 is a value. Leaving a stream early, or cancelling an async call, ends the computation.

    Tool calling and structured output come in a later release. Until then `bind_tools` is accepted, so that a model can
    stand where one with tools is expected; the model is not told of the tools, and every answer says so in
    `response_metadata["warnings"]` and in the log. What needs a tool call (`tool_choice`, `with_structured_output`)
    raises `NotImplementedError`.

    `response_metadata` holds model_name, finish_reason, execution_time, time_to_first_token, and what the result's
    metadata says: engine, device, quantization, seed, template, request_id, warnings.

    Raises, where a model is called:
        InvalidInput: an option out of range, an image, audio or file in a message.
        RuntimeFault: the model cannot be found, loaded or run, with the reason.
        TimeoutError: `timeout` seconds went by.
    """

    model_config = ConfigDict(
        extra="forbid", arbitrary_types_allowed=True, protected_namespaces=(), populate_by_name=True
    )

    model: str = Field(min_length=1, description="A name the manager knows, a path inside a model folder, or a hub id.")
    temperature: float | None = None
    max_tokens: int | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    stop: list[str] | None = None
    seed: int | None = None
    keep_alive: float | None = Field(
        default=None, description="Idle seconds the model stays in memory afterwards; -1 is for good."
    )
    raw: bool = Field(default=False, description="Continue the text as it stands, without a chat template.")
    streaming: bool = False
    timeout: float | None = Field(default=None, gt=0, description="Seconds, the load included.")

    runtime_type: str | None = Field(
        default=None, description="Engine; another than the model's own makes a second copy of it."
    )
    device_type: str | None = None
    quantization: str | None = None
    context_length: int | None = None

    api_key: SecretStr | None = Field(
        default=None, exclude=True, repr=False, description="Ignored: there is nothing to unlock."
    )
    max_retries: int | None = Field(
        default=None, exclude=True, repr=False, description="Ignored: nothing here fails by chance."
    )
    observer: Observer | None = Field(
        default=None,
        exclude=True,
        repr=False,
        description="Hears of downloads and loads on the way, and of the result.",
    )

    # -- LangChain's questions ---------------------------------------------------------------------------------------

    @property
    def _llm_type(self) -> str:
        return "local-runtimes"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        names = ("model", *sorted(_SAMPLING), "stop", "raw", *_LOADING)
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop or self.stop, **kwargs)
        params["ls_provider"] = "local-runtimes"
        return params

    def bind_tools(
        self, tools: Sequence[Any], *, tool_choice: str | bool | dict[str, Any] | None = None, **kwargs: Any
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Accept tools without using them, which every answer then says.

        Raises:
            NotImplementedError: `tool_choice` demands a call.
        """
        if tool_choice not in _AUTO_CHOICE:
            raise NotImplementedError(
                f"{self.model} cannot be made to call a tool: tool calling comes in a later release."
            )
        return self.bind(tools=[convert_to_openai_tool(tool) for tool in tools], **kwargs)

    def with_structured_output(self, schema: Any, *, include_raw: bool = False, **kwargs: Any) -> Any:
        """Not there yet.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("Structured output comes in a later release.")

    # -- generation --------------------------------------------------------------------------------------------------

    def _generate(
        self, messages: list[BaseMessage], stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None, **kwargs: Any,
    ) -> ChatResult:  # fmt: skip
        model, overrides, config, warnings, timeout = self._request(messages, stop, kwargs)
        stream = self._start(_variant(model, overrides), config)
        with _deadline(stream, timeout):
            result = stream.wait()
        return ChatResult(generations=[ChatGeneration(message=self._message(result, warnings))])

    async def _agenerate(
        self, messages: list[BaseMessage], stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None, **kwargs: Any,
    ) -> ChatResult:  # fmt: skip
        model, overrides, config, warnings, timeout = self._request(messages, stop, kwargs)
        stream = self._start(await _avariant(model, overrides), config)
        with _deadline(stream, timeout):
            result = await stream.wait_async()
        return ChatResult(generations=[ChatGeneration(message=self._message(result, warnings))])

    def _stream(
        self, messages: list[BaseMessage], stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None, **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:  # fmt: skip
        model, overrides, config, warnings, timeout = self._request(messages, stop, kwargs)
        stream = self._start(_variant(model, overrides), config)
        with _deadline(stream, timeout), contextlib.closing(iter(stream)) as pieces:  # type: ignore[type-var]
            for text in pieces:
                yield ChatGenerationChunk(message=AIMessageChunk(content=text))
        yield self._last_chunk(stream, warnings)

    async def _astream(
        self, messages: list[BaseMessage], stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None, **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:  # fmt: skip
        model, overrides, config, warnings, timeout = self._request(messages, stop, kwargs)
        stream = self._start(await _avariant(model, overrides), config)
        with _deadline(stream, timeout):
            async with contextlib.aclosing(aiter(stream)) as pieces:  # type: ignore[type-var]
                async for text in pieces:
                    yield ChatGenerationChunk(message=AIMessageChunk(content=text))
        yield self._last_chunk(stream, warnings)

    def _start(self, model: str, config: GenerationConfig) -> GenerationStream:
        return get_runtime_manager().stream(model, config, progress=self.observer)

    def _request(
        self, messages: list[BaseMessage], stop: list[str] | None, call: dict[str, Any]
    ) -> tuple[str, dict[str, Any], GenerationConfig, list[str], float | None]:
        """What to ask of the manager: model, load options, request, warnings, seconds."""
        known = {"model", "raw", "stream", "timeout", *_SAMPLING, *_LOADING, *_TOOL_OPTIONS}
        if unknown := sorted(call.keys() - known):
            raise InvalidInput(
                f"unknown option {', '.join(unknown)}.",
                model_name=self.model,
                hint=f"Options are {', '.join(sorted(known))}.",
            )
        if call.get("tool_choice") not in _AUTO_CHOICE:
            raise NotImplementedError(
                f"{self.model} cannot be made to call a tool: tool calling comes in a later release."
            )

        def chosen(name: str) -> Any:
            return getattr(self, name) if call.get(name) is None else call[name]

        model = chosen("model")
        sampling = {name: value for name in _SAMPLING if (value := chosen(name)) is not None}
        stops = self.stop if stop is None else stop
        said = [to_chat_message(message) for message in messages]
        text = (
            {"prompt": "\n".join(one.content for one in said), "raw": True}
            if chosen("raw")
            else {"messages": tuple(said)}
        )
        try:
            config = GenerationConfig.model_validate({**text, **sampling, "stop": tuple(stops or ())})
        except ValidationError as error:
            raise InvalidInput(_first_problem(error), model_name=model) from error
        return (
            model,
            {name: chosen(name) for name in _LOADING},
            config,
            _tool_warnings(model, call.get("tools")),
            chosen("timeout"),
        )

    def _message(self, result: GenerationResult, warnings: list[str]) -> AIMessage:
        return AIMessage(
            content=result.text, response_metadata=self._metadata(result, warnings), usage_metadata=_usage(result)
        )

    def _last_chunk(self, stream: GenerationStream, warnings: list[str]) -> ChatGenerationChunk:
        assert stream.result is not None  # its iterator ended without a fault
        message = AIMessageChunk(
            content="", response_metadata=self._metadata(stream.result, warnings), usage_metadata=_usage(stream.result),
            chunk_position="last",
        )  # fmt: skip
        return ChatGenerationChunk(message=message)

    def _metadata(self, result: GenerationResult, warnings: list[str]) -> dict[str, Any]:
        if self.observer is not None:
            self.observer(result)
        said = [*result.metadata.get("warnings", ()), *warnings]
        return {
            **{key: value for key, value in result.metadata.items() if key != "warnings"},
            "model_name": result.model_name,
            "model_provider": "local-runtimes",
            "finish_reason": result.finish_reason,
            "execution_time": result.execution_time,
            "time_to_first_token": result.time_to_first_token,
            **({"warnings": said} if said else {}),
        }


def to_chat_message(message: BaseMessage) -> ChatMessage:
    """A LangChain message as the engine room's.

    Tool calls of earlier turns are written out as JSON, one per line, so that the model sees what was called.

    Raises:
        InvalidInput: a role that is none of ours, or content that is not text.
    """
    text = _text_of(message)
    if isinstance(message, AIMessage) and message.tool_calls:
        calls = (json.dumps({"name": call["name"], "arguments": call["args"]}) for call in message.tool_calls)
        text = "\n".join([*([text] if text else []), *calls])
    return ChatMessage(role=_role_of(message), content=text)


def _role_of(message: BaseMessage) -> Literal["system", "user", "assistant", "tool"]:
    if isinstance(message, HumanMessage):
        return "user"
    if isinstance(message, AIMessage):
        return "assistant"
    if isinstance(message, SystemMessage):
        return "system"
    if isinstance(message, ToolMessage):
        return "tool"
    if isinstance(message, LangChainChatMessage):
        for ours, theirs in (("user", "human"), ("assistant", "ai"), ("system", "developer"), ("tool", "function")):
            if message.role in (ours, theirs):
                return ours  # type: ignore[return-value]
        raise InvalidInput(f"role {message.role!r} is unknown.", hint="Use user, assistant, system or tool.")
    raise InvalidInput(f"{type(message).__name__} cannot be sent to a local model.")


def _text_of(message: BaseMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    parts = []
    for part in message.content:
        if isinstance(part, str):
            parts.append(part)
        elif part.get("type") == "text":
            parts.append(str(part.get("text", "")))
        elif part.get("type") not in _NOT_TEXT_BUT_SAID_ELSEWHERE:
            raise InvalidInput(
                f"A message holds {part.get('type', 'content without a type')}: local models read text only for now.",
                hint="Remove the attachment, or describe it in words.",
            )
    return "".join(parts)


def _tool_warnings(model: str, tools: Iterable[Mapping[str, Any]] | None) -> list[str]:
    names = [str(tool.get("function", tool).get("name", "unnamed")) for tool in tools or ()]
    if not names:
        return []
    warning = f"{model} was not told of its tools ({', '.join(names)}): tool calling comes in a later release."
    logger.warning(warning)
    return [warning]


def _usage(result: GenerationResult) -> UsageMetadata:
    return UsageMetadata(
        input_tokens=result.prompt_tokens, output_tokens=result.tokens_generated,
        total_tokens=result.prompt_tokens + result.tokens_generated,
    )  # fmt: skip


def _variant(model: str, overrides: Mapping[str, Any]) -> str:
    return get_runtime_manager().ensure_variant(model, **overrides)


async def _avariant(model: str, overrides: Mapping[str, Any]) -> str:
    if all(value is None for value in overrides.values()):
        return model
    return await asyncio.to_thread(_variant, model, overrides)  # it may look for the model on disk


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc']) or 'request'}: {first['msg']}"


@contextlib.contextmanager
def _deadline(stream: GenerationStream, seconds: float | None) -> Iterator[None]:
    """Cancel the request when its time is up, and then raise TimeoutError."""
    if seconds is None:
        yield
        return
    late = threading.Event()

    def expire() -> None:
        late.set()
        stream.cancel()

    timer = threading.Timer(seconds, expire)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
    if late.is_set() and stream.result is not None and stream.result.finish_reason == "cancelled":
        raise TimeoutError(f"{stream.request.model_name} did not finish within {seconds:g} s.")
