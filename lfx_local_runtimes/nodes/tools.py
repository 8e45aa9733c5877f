"""Tools of the nodes: a model with the node's tool choice, and the loop that runs the tools it calls."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ToolMessage,
    message_chunk_to_message,
)
from langchain_core.messages.ai import UsageMetadata, add_ai_message_chunks, add_usage
from langchain_core.messages.tool import ToolCall
from langchain_core.prompt_values import PromptValue
from langchain_core.runnables import Runnable, RunnableGenerator, RunnableLambda
from langchain_core.tools import BaseTool

from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.langchain.chat import ChatLocalRuntime
from lfx_local_runtimes.nodes.inputs import TOOL_ROUNDS

Log = Callable[..., object]


class NodeModel(ChatLocalRuntime):
    """`ChatLocalRuntime` with a node's tool choice, for callers that bind tools without a choice, as Langflow's Agent.

    A forced choice holds only until a tool has answered; otherwise the model would call tools forever. After `required`
    the model may choose. After a tool by name it has to answer.
    """

    tool_choice: str = "auto"

    def bind_tools(
        self, tools: Sequence[Any], *, tool_choice: str | bool | Mapping[str, Any] | None = None, **kwargs: Any
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Like `ChatLocalRuntime.bind_tools`. If `tool_choice` is None, the node's choice is used."""
        if tool_choice is not None or self.tool_choice in ("auto", "none"):
            return super().bind_tools(tools, tool_choice=tool_choice or self.tool_choice, **kwargs)
        first = super().bind_tools(tools, tool_choice=self.tool_choice, **kwargs)
        then = super().bind_tools(tools, tool_choice="auto" if self.tool_choice == "required" else "none", **kwargs)
        return RunnableLambda(
            lambda value: then if isinstance(_messages(value)[-1], ToolMessage) else first, name="ToolChoice"
        )


def with_tools(model: NodeModel, tools: Sequence[BaseTool], log: Log) -> Runnable[Any, AIMessageChunk]:
    """A model that runs the tools it calls, in at most `TOOL_ROUNDS` rounds, and then answers.

    Its answer is the text of all rounds, as it comes. If a tool fails, the model and `log` get the error.

    Raises, when it is called:
        InvalidInput: a call was cut off, so it cannot be run.
    """
    bound, last = model.bind_tools(tools), model.bind_tools(tools, tool_choice="none")

    async def answer(inputs: AsyncIterator[Any]) -> AsyncIterator[AIMessageChunk]:
        messages = [message async for value in inputs for message in _messages(value)]
        usage: UsageMetadata | None = None
        for number in range(TOOL_ROUNDS + 1):
            pieces: list[Any] = []
            async with aclosing((bound if number < TOOL_ROUNDS else last).astream(messages)) as stream:  # type: ignore[type-var]
                async for piece in stream:
                    pieces.append(piece)
                    yield AIMessageChunk(content=piece.content, additional_kwargs=piece.additional_kwargs)
            reply = add_ai_message_chunks(*pieces) if len(pieces) > 1 else pieces[0]
            usage = add_usage(usage, reply.usage_metadata)
            if reply.invalid_tool_calls:
                raise InvalidInput(
                    f"The call of the tool {reply.invalid_tool_calls[0]['name']} was cut off.",
                    model_name=model.model, hint="Raise the node's Max Tokens.",
                )  # fmt: skip
            if not reply.tool_calls:
                break
            messages = [
                *messages,
                message_chunk_to_message(reply),
                *[await _run(tools, call, log) for call in reply.tool_calls],
            ]
        yield AIMessageChunk(
            content="", response_metadata=reply.response_metadata, usage_metadata=usage, chunk_position="last"
        )

    return RunnableGenerator(answer, name="LocalModelWithTools")


def _messages(value: Any) -> list[BaseMessage]:
    return value.to_messages() if isinstance(value, PromptValue) else list(value)


async def _run(tools: Sequence[BaseTool], call: ToolCall, log: Log) -> ToolMessage:
    """The result of a call. An error becomes a result too, so that the model can read it."""
    try:
        tool = next((tool for tool in tools if tool.name == call["name"]), None)
        if tool is None:
            raise InvalidInput(f"There is no tool {call['name']}.")
        result: ToolMessage = await tool.ainvoke({**call, "type": "tool_call"})
    except Exception as error:  # noqa: BLE001 - a tool may raise anything
        result = ToolMessage(f"{call['name']} failed: {error}", tool_call_id=call["id"], status="error")
    log({"tool": call["name"], "arguments": call["args"], "result": result.text}, name="tool")
    return result
