"""A pipeline of `lfx_local_runtimes.runtimes.pipeline` as a flow, to import into Langflow or run headless."""

import re
from string import Formatter
from typing import Any

from lfx.components.input_output.chat import ChatInput
from lfx.components.input_output.chat_output import ChatOutput
from lfx.components.models_and_agents.prompt import PromptComponent

from lfx_local_runtimes.components.local_runtimes.local_model import LocalModelComponent
from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.flows.canvas import Flow
from lfx_local_runtimes.runtimes.pipeline import PLACES, OrchestrationPipeline, StepInput, joined

_FIELDS = {"stop": "stop_sequences"}
"""The node's names of options, where they differ."""
_OUTPUT = "_output"
"""The variable of a step is its name with this: some names alone mean something to a Prompt node."""
_DOUBLED_PLACE = re.compile(rf"\{{\{{({'|'.join(PLACES)})\}}\}}")
_NODE_FIELDS = frozenset(one.name for one in LocalModelComponent.inputs)


def pipeline_flow(pipeline: OrchestrationPipeline, name: str, description: str = "") -> Flow:
    """The steps as a flow: Chat Input gives the context; each step is a Prompt and a Local Model; Chat Output shows the last.

    `pipeline_flow(…).as_json()` is the file.

    Raises:
        InvalidInput: a step has an option or braces that the nodes do not take.
    """
    flow = Flow(name, description, name.lower().replace(" ", "-"))
    context = flow.add(ChatInput, "context", 0, 0.6)
    models: dict[str, str] = {}
    for number, step in enumerate(pipeline.steps):
        column = 0.7 + 1.8 * number
        prompt, wires = _add_prompt(flow, step, list(models), column)
        model = flow.add(
            LocalModelComponent, step.step_name, column + 0.9, title=step.step_name, model_name=step.model_selector,
            **_values(step),
        )  # fmt: skip
        for variable in wires:
            if variable == "context":
                flow.connect(context, "message", prompt, variable)
            else:
                flow.connect(models[variable.removesuffix(_OUTPUT)], "text_output", prompt, variable)
        flow.connect(prompt, "prompt", model, "input_value")
        models[step.step_name] = model
    answer = flow.add(ChatOutput, "answer", 0.7 + 1.8 * len(pipeline.steps), 0.3)
    flow.connect(model, "text_output", answer, "input_value")
    return flow


def _add_prompt(flow: Flow, step: StepInput, earlier: list[str], column: float) -> tuple[str, list[str]]:
    """A Prompt node for a step: its id and its variables."""
    template = _template(step, earlier)
    wanted = list(dict.fromkeys(field for _, field, _, _ in Formatter().parse(template) if field))
    fault = InvalidInput(
        f"The prompt of the step {step.step_name} has braces that Langflow's Prompt node does not understand.",
        model_name=step.model_selector, hint="Write the prompt without braces around its places, or run it in Python.",
    )  # fmt: skip
    try:
        prompt = flow.add(
            PromptComponent,
            f"{step.step_name}-prompt",
            column,
            0.3,
            title=f"{step.step_name} prompt",
            template=template,
        )
    except (ValueError, SyntaxError) as error:  # the second from its reader of the other notation
        raise fault from error
    if not set(wanted) <= flow.node(prompt)["node"]["template"].keys():  # it takes {{{name}}} for another notation
        raise fault
    return prompt, wanted


def _template(step: StepInput, earlier: list[str]) -> str:
    """The prompt with a variable for each answer. Braces that are no place are doubled, as a Prompt node wants them."""
    variables = {
        "context": "{context}",
        "previous_output": f"{{{earlier[-1]}{_OUTPUT}}}" if earlier else "",
        "all_outputs": joined({name: f"{{{name}{_OUTPUT}}}" for name in earlier}),
    }
    doubled = step.prompt.replace("{", "{{").replace("}", "}}")
    return _DOUBLED_PLACE.sub(lambda found: variables[found[1]], doubled)


def _values(step: StepInput) -> dict[str, Any]:
    values: dict[str, Any] = {"stream": False}
    for option, value in step.options.items():
        name = _FIELDS.get(option, option)
        if name not in _NODE_FIELDS:
            raise InvalidInput(
                f"The step {step.step_name} has the option {option}, which the Local Model node does not have.",
                model_name=step.model_selector, hint="Leave it out, or run the pipeline in Python.",
            )  # fmt: skip
        values[name] = value
    if (stop := values.get("stop_sequences")) is not None:
        texts = [stop] if isinstance(stop, str) else stop
        values["stop_sequences"] = [text.replace("\n", "\\n").replace("\t", "\\t") for text in texts]
    return values
