"""The earlier messages of a chat, for a model that answers in it."""

from collections.abc import Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.prompt_values import PromptValue
from langchain_core.runnables import Runnable, RunnableLambda
from lfx.custom.custom_component.component import Component
from lfx.schema.message import Message
from lfx.utils.constants import MESSAGE_SENDER_AI


async def earlier_messages(node: Component, limit: int) -> list[BaseMessage]:
    """The last messages of the node's session, oldest first, without the one that is being answered.

    Without Langflow's database, as in `lfx run`, there are none.
    """
    from lfx.components.models_and_agents.memory import aget_agent_chat_history
    from lfx.memory.flow_context import resolve_message_owner_id

    if limit < 1 or node._vertex is None:
        return []
    stored = await aget_agent_chat_history(
        session_id=node.graph.session_id, flow_id=node.graph.flow_id, n_messages=limit + 1,
        user_id=resolve_message_owner_id(node.graph),
    )  # fmt: skip
    current = getattr(node.input_value, "id", None)
    earlier = [message for message in stored if current is None or str(message.id) != str(current)]
    return [_turn(message) for message in earlier[-limit:] if message.text or message.files]


def _turn(message: Message) -> BaseMessage:
    """A stored message. A picture that a person dropped into the chat stays in its turn."""
    if message.sender == MESSAGE_SENDER_AI:
        return AIMessage(message.text)
    return message.to_lc_message() if message.files else HumanMessage(message.text)


def with_history(runnable: Runnable[Any, Any], history: Sequence[BaseMessage]) -> Runnable[Any, Any]:
    """A model that reads earlier messages before what it is asked, and after the system message."""

    def insert(value: Any) -> list[BaseMessage]:
        asked = value.to_messages() if isinstance(value, PromptValue) else list(value)
        system = [message for message in asked if isinstance(message, SystemMessage)]
        return [*system, *history, *(message for message in asked if not isinstance(message, SystemMessage))]

    return RunnableLambda(insert, name="ChatHistory") | runnable
