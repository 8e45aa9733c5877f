"""`ChatLocalRuntime`: a local model as a LangChain chat model."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, Literal

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams, LanguageModelInput, ModelProfile
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import ConfigDict, Field, SecretStr, ValidationError

from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.langchain.messages import (
    first_problem,
    response_metadata,
    to_chat_message,
    to_chunk,
    to_grammar,
    to_last_chunk,
    to_message,
    to_tool_choice,
    to_tools,
)
from lfx_local_runtimes.langchain.variants import LOADING, variant
from lfx_local_runtimes.runtimes import get_runtime_manager
from lfx_local_runtimes.runtimes.chat.tool_choice import close_objects
from lfx_local_runtimes.runtimes.config import ModelKey
from lfx_local_runtimes.runtimes.media.sources import fetched, has_sources
from lfx_local_runtimes.runtimes.requests import GenerationStream, Progress
from lfx_local_runtimes.runtimes.tasks.generation import GenerationConfig, GenerationResult

Observer = Callable[[Progress | GenerationResult], object]

_SAMPLING = frozenset(
    {
        "max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "frequency_penalty",
        "presence_penalty", "logprobs", "top_logprobs", "reasoning_budget", "seed", "keep_alive",
    }
)  # fmt: skip
_PER_CALL = frozenset(
    {"logit_bias", "min_tokens", "ignore_eos", "continue_final_message", "truncate", "return_prompt", "grammar"}
)
_TOOL_OPTIONS = frozenset({"tools", "tool_choice", "strict", "parallel_tool_calls", "response_format"})


class ChatLocalRuntime(BaseChatModel):
    """A model of the process-wide `RuntimeManager`, as LangChain sees it.

    Making one reads at most the headers of the model's files: the manager holds the weights. It loads them at the first request, shares them between all
    users of the model and unloads them when nobody needs them. Options left at None take the manager's defaults; 0 is a
    value. Leaving a stream early, or cancelling an async call, ends the computation.

    Tools: if `tool_choice` forces a call, even a base model makes one, with arguments that the tool's schema allows. If
    the model may choose, it calls tools as well as it was trained to. Structured output is enforced token by token.
    `strict` is accepted and changes nothing.

    `profile["image_inputs"]` says whether the model reads pictures. Messages may have them in all forms that LangChain knows;
    pictures at a URL are fetched if the operator allows that.

    What the model thought before its answer is in `additional_kwargs["reasoning_content"]`.

    `response_metadata` holds model_name, finish_reason, execution_time, time_to_first_token, and the result's metadata:
    engine, device, quantization, seed, template, request_id, warnings; and logprobs if asked for.

    Raises, when a model is called:
        InvalidInput: an option out of range, an audio or file in a message, a picture in a message for a model that reads
            text only, a tool that is not a function.
        RuntimeFault: the model cannot be found, loaded or run, with the reason.
        TimeoutError: `timeout` seconds have passed.
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
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    reasoning_budget: int | None = Field(default=None, description="Tokens the model may think for.")
    stop: list[str] | None = None
    seed: int | None = None
    keep_alive: float | None = Field(
        default=None, description="Seconds the model stays in memory afterwards when idle; -1 keeps it forever."
    )
    raw: bool = Field(default=False, description="Continue the text as it is, without a chat template.")
    streaming: bool = False
    timeout: float | None = Field(default=None, gt=0, description="Seconds, including the load.")

    runtime_type: str | None = Field(
        default=None, description="Engine. If it is not the model's own, a second copy of the model is loaded."
    )
    device_type: str | None = None
    quantization: str | None = None
    context_length: int | None = None

    api_key: SecretStr | None = Field(
        default=None, exclude=True, repr=False, description="Ignored: local models need no key."
    )
    max_retries: int | None = Field(
        default=None, exclude=True, repr=False, description="Ignored: failed requests are not tried again."
    )
    observer: Observer | None = Field(
        default=None,
        exclude=True,
        repr=False,
        description="Called with the progress of downloads and loads, and with the result.",
    )

    # -- LangChain's hooks -------------------------------------------------------------------------------------------

    @property
    def _llm_type(self) -> str:
        return "local-runtimes"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        names = ("model", *sorted(_SAMPLING), "stop", "raw", *LOADING)
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop or self.stop, **kwargs)
        params["ls_provider"] = "local-runtimes"
        return params

    def _resolve_model_profile(self) -> ModelProfile | None:
        """What the model's files say, if they are on this machine."""
        manager = get_runtime_manager()
        info = manager.model_facts(self.model)
        if info is None:
            return None
        urls = info.vision and manager.settings.media_urls
        return ModelProfile(
            text_inputs=True, image_inputs=info.vision, image_url_inputs=urls, image_tool_message=info.vision
        )

    def bind_tools(
        self, tools: Sequence[Any], *, tool_choice: str | bool | Mapping[str, Any] | None = None, **kwargs: Any
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Give the model tools that it may call.

        Args:
            tools: functions, pydantic models, `BaseTool`s or OpenAI's dictionaries.
            tool_choice: auto (or None), none, any (or required, or True), or the name of the function to call.
            kwargs: further options of the calls, such as `parallel_tool_calls`.

        Raises:
            InvalidInput: a tool is not a function, or the choice is not one of the tools.
        """
        choice = to_tool_choice(tool_choice, to_tools(tools))
        return self.bind(tools=[convert_to_openai_tool(tool) for tool in tools], tool_choice=choice, **kwargs)

    def with_structured_output(
        self,
        schema: Any = None,
        *,
        method: Literal["json_schema", "function_calling", "json_mode"] = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """A model that answers with objects of a schema.

        Args:
            schema: a pydantic class, whose instances are the answers; or a TypedDict or JSON schema, for dictionaries.
                json_mode needs none.
            method: json_schema forces an answer that matches the schema; function_calling forces a call with the schema
                as its parameters; json_mode forces any JSON object, so the prompt has to describe it.
            include_raw: answer `{"raw": message, "parsed": object or None, "parsing_error": error or None}`.
            strict: accepted and changes nothing.
            kwargs: further options of the calls.

        Raises:
            InvalidInput: no schema, or an unknown method.
        """
        if schema is None and method != "json_mode":
            raise InvalidInput(f"with_structured_output needs a schema with the method {method}.")
        is_class = isinstance(schema, type) and is_basemodel_subclass(schema)
        traced = {"ls_structured_output_format": {"kwargs": {"method": method}, "schema": schema}}
        parser: Runnable[Any, Any] = PydanticOutputParser(pydantic_object=schema) if is_class else JsonOutputParser()
        model: Runnable[LanguageModelInput, AIMessage]
        if method == "json_schema":
            shape = convert_to_json_schema(schema)
            described = {"name": shape.get("title", "answer"), "schema": close_objects(shape)}
            model = self.bind(response_format={"type": method, method: described}, **traced, **kwargs)
        elif method == "json_mode":
            model = self.bind(response_format={"type": "json_object"}, **traced, **kwargs)
        elif method == "function_calling":
            name = convert_to_openai_tool(schema)["function"]["name"]
            model = self.bind_tools([schema], tool_choice=name, **traced, **kwargs)
            parser = (
                PydanticToolsParser(tools=[schema], first_tool_only=True)
                if is_class
                else JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
            )
        else:
            raise InvalidInput(f"method {method!r} is unknown.", hint="Use json_schema, function_calling or json_mode.")
        return _with_raw(model, parser) if include_raw else model | parser

    # -- generation --------------------------------------------------------------------------------------------------

    def _generate(
        self, messages: list[BaseMessage], stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None, **kwargs: Any,
    ) -> ChatResult:  # fmt: skip
        model, overrides, config, timeout = self._request(messages, stop, kwargs)
        stream = self._start(variant(model, overrides), _with_pictures(config))
        with _deadline(stream, timeout):
            result = stream.wait()
        return ChatResult(generations=[ChatGeneration(message=to_message(result, self._response_metadata(result)))])

    async def _agenerate(
        self, messages: list[BaseMessage], stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None, **kwargs: Any,
    ) -> ChatResult:  # fmt: skip
        model, overrides, config, timeout = self._request(messages, stop, kwargs)
        stream = self._start(variant(model, overrides), await _with_pictures_async(config))
        with _deadline(stream, timeout):
            result = await stream.wait_async()
        return ChatResult(generations=[ChatGeneration(message=to_message(result, self._response_metadata(result)))])

    def _stream(
        self, messages: list[BaseMessage], stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None, **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:  # fmt: skip
        model, overrides, config, timeout = self._request(messages, stop, kwargs)
        stream = self._start(variant(model, overrides), _with_pictures(config))
        with _deadline(stream, timeout), contextlib.closing(stream.deltas()) as deltas:
            for delta in deltas:
                yield ChatGenerationChunk(message=to_chunk(delta))
        yield self._last_chunk(stream)

    async def _astream(
        self, messages: list[BaseMessage], stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None, **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:  # fmt: skip
        model, overrides, config, timeout = self._request(messages, stop, kwargs)
        stream = self._start(variant(model, overrides), await _with_pictures_async(config))
        with _deadline(stream, timeout):
            async with contextlib.aclosing(stream.adeltas()) as deltas:  # type: ignore[type-var]
                async for delta in deltas:
                    yield ChatGenerationChunk(message=to_chunk(delta))
        yield self._last_chunk(stream)

    def _start(self, model: ModelKey, config: GenerationConfig) -> GenerationStream:
        return get_runtime_manager().stream(model, config, progress=self.observer)

    def _request(
        self, messages: list[BaseMessage], stop: list[str] | None, call: dict[str, Any]
    ) -> tuple[str, dict[str, Any], GenerationConfig, float | None]:
        """What the manager needs: model, load options, request, and the timeout in seconds."""
        known = {"model", "raw", "stream", "timeout", *_SAMPLING, *_PER_CALL, *LOADING, *_TOOL_OPTIONS}
        if unknown := sorted(call.keys() - known):
            raise InvalidInput(
                f"unknown option {', '.join(unknown)}.",
                model_name=self.model,
                hint=f"Options are {', '.join(sorted(known))}.",
            )

        def chosen(name: str) -> Any:
            return getattr(self, name) if call.get(name) is None else call[name]

        model = chosen("model")
        options: dict[str, Any] = {name: value for name in _SAMPLING if (value := chosen(name)) is not None}
        options |= {name: call[name] for name in _PER_CALL if call.get(name) is not None}
        options["stop"] = tuple((self.stop if stop is None else stop) or ())
        conversation = [to_chat_message(message) for message in messages]
        if chosen("raw"):
            if any(message.pictures for message in conversation):
                raise InvalidInput(
                    "raw: a plain continuation has no place for a picture.", model_name=model, hint="Set raw to False."
                )
            options |= {"prompt": "\n".join(message.text for message in conversation), "raw": True}
        else:
            options["messages"] = tuple(conversation)
        options |= _tool_options(call)
        try:
            config = GenerationConfig.model_validate(options)
        except ValidationError as error:
            raise InvalidInput(first_problem(error), model_name=model) from error
        return model, {name: chosen(name) for name in LOADING}, config, chosen("timeout")

    def _last_chunk(self, stream: GenerationStream) -> ChatGenerationChunk:
        assert stream.result is not None  # its iterator ended without a fault
        return ChatGenerationChunk(message=to_last_chunk(stream.result, self._response_metadata(stream.result)))

    def _response_metadata(self, result: GenerationResult) -> dict[str, Any]:
        if self.observer is not None:
            self.observer(result)
        return response_metadata(result)


def _tool_options(call: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a call for tools and structured output, converted for the engine room."""
    tools = to_tools(call.get("tools") or ())
    options: dict[str, Any] = {"tools": tools, "tool_choice": to_tool_choice(call.get("tool_choice"), tools)}
    if call.get("parallel_tool_calls") is not None:
        options["parallel_tool_calls"] = call["parallel_tool_calls"]
    if (grammar := to_grammar(call.get("response_format"))) is not None:
        options["grammar"] = grammar
    return options


def _with_pictures(config: GenerationConfig) -> GenerationConfig:
    """The request with the pictures that it names by a URL. Blocks.

    Raises:
        NotAllowed: the operator does not allow URLs.
        InvalidInput: a picture cannot be fetched.
    """
    return fetched(config, get_runtime_manager().settings)


async def _with_pictures_async(config: GenerationConfig) -> GenerationConfig:
    return await asyncio.to_thread(_with_pictures, config) if has_sources(config) else config


def _with_raw(model: Runnable[Any, Any], parser: Runnable[Any, Any]) -> Runnable[Any, Any]:
    """The message, the object parsed from it, and the error of parsing."""
    parsing = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    failing = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=model) | parsing.with_fallbacks([failing], exception_key="parsing_error")


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
