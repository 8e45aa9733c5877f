"""Tools of the nodes: the model whose first call a node chooses, and the running of what it calls."""

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

from lfx_local_runtimes.chat import ChatLocalRuntime
from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.node_inputs import TOOL_ROUNDS

Log = Callable[..., object]


class NodeModel(ChatLocalRuntime):
    """`ChatLocalRuntime` with a node's tool choice, for those who bind tools without making one, as Langflow's Agent does.

    A forced choice holds until a tool has answered, or it would call for ever: after `required` the model is free, after
    a tool by name it has to answer.
    """

    tool_choice: str = "auto"

    def bind_tools(
        self, tools: Sequence[Any], *, tool_choice: str | bool | Mapping[str, Any] | None = None, **kwargs: Any
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """As `ChatLocalRuntime`; without a `tool_choice`, the node's."""
        if tool_choice is not None or self.tool_choice in ("auto", "none"):
            return super().bind_tools(tools, tool_choice=tool_choice or self.tool_choice, **kwargs)
        first = super().bind_tools(tools, tool_choice=self.tool_choice, **kwargs)
        then = super().bind_tools(tools, tool_choice="auto" if self.tool_choice == "required" else "none", **kwargs)
        return RunnableLambda(
            lambda said: then if isinstance(_messages(said)[-1], ToolMessage) else first, name="ToolChoice"
        )


def with_tools(model: NodeModel, tools: Sequence[BaseTool], log: Log) -> Runnable[Any, AIMessageChunk]:
    """The model as one that runs the tools it calls and answers after at most `TOOL_ROUNDS` rounds of them.

    Its answer is all the text of all rounds, as it comes. A tool that fails is told to the model, and to `log`.

    Raises, where it is called:
        InvalidInput: a call broke off, so that it cannot be run.
    """
    bound, last = model.bind_tools(tools), model.bind_tools(tools, tool_choice="none")

    async def answer(inputs: AsyncIterator[Any]) -> AsyncIterator[AIMessageChunk]:
        messages = [message async for said in inputs for message in _messages(said)]
        usage: UsageMetadata | None = None
        for number in range(TOOL_ROUNDS + 1):
            pieces: list[Any] = []
            async with aclosing((bound if number < TOOL_ROUNDS else last).astream(messages)) as stream:  # type: ignore[type-var]
                async for piece in stream:
                    pieces.append(piece)
                    yield AIMessageChunk(content=piece.content, additional_kwargs=piece.additional_kwargs)
            whole = add_ai_message_chunks(*pieces) if len(pieces) > 1 else pieces[0]
            usage = add_usage(usage, whole.usage_metadata)
            if whole.invalid_tool_calls:
                raise InvalidInput(
                    f"The call of the tool {whole.invalid_tool_calls[0]['name']} broke off.",
                    model_name=model.model, hint="Raise the node's Max Tokens.",
                )  # fmt: skip
            if not whole.tool_calls:
                break
            messages = [
                *messages,
                message_chunk_to_message(whole),
                *[await _run(tools, call, log) for call in whole.tool_calls],
            ]
        yield AIMessageChunk(
            content="", response_metadata=whole.response_metadata, usage_metadata=usage, chunk_position="last"
        )

    return RunnableGenerator(answer, name="LocalModelWithTools")


def _messages(said: Any) -> list[BaseMessage]:
    return said.to_messages() if isinstance(said, PromptValue) else list(said)


async def _run(tools: Sequence[BaseTool], call: ToolCall, log: Log) -> ToolMessage:
    """What a call returned; a fault is returned too, for the model to read."""
    try:
        tool = next((tool for tool in tools if tool.name == call["name"]), None)
        if tool is None:
            raise InvalidInput(f"There is no tool {call['name']}.")
        result: ToolMessage = await tool.ainvoke({**call, "type": "tool_call"})
    except Exception as error:  # noqa: BLE001 - whatever a tool raises
        result = ToolMessage(f"{call['name']} failed: {error}", tool_call_id=call["id"], status="error")
    log({"tool": call["name"], "arguments": call["args"], "result": result.text}, name="tool")
    return result
