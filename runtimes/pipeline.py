"""`OrchestrationPipeline`: several models in a row, each prompt filled from the answers before it."""

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, StringConstraints, field_validator

from lfx_local_runtimes.runtimes.config import MAX_PROMPT_CHARS, Name, Strict
from lfx_local_runtimes.runtimes.manager import RuntimeManager, get_runtime_manager
from lfx_local_runtimes.runtimes.tasks.generation import GenerationConfig, GenerationResult

PLACES = ("context", "previous_output", "all_outputs")

_PLACE = re.compile(rf"\{{({'|'.join(PLACES)})\}}")


class StepInput(Strict):
    """One step. These places of its prompt are filled; other braces stay as they are.

    - `{context}`: what the pipeline is run with
    - `{previous_output}`: the answer of the step before; empty in the first step
    - `{all_outputs}`: the answers of all steps before, each below the name of its step
    """

    step_name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$")]
    model_selector: Name = Field(description="The model's name.")
    prompt: Annotated[str, StringConstraints(max_length=MAX_PROMPT_CHARS)]
    options: dict[str, Any] = Field(
        default_factory=dict, description="Other fields of a `GenerationConfig`, such as max_tokens or temperature."
    )

    @field_validator("options")
    @classmethod
    def _are_options(cls, value: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted({"prompt", "prompt_ids", "messages"} & value.keys()):
            raise ValueError(f"{', '.join(taken)} cannot be an option: the step has a prompt")
        GenerationConfig.model_validate({"prompt": "", **value})
        return value

    def filled(self, places: Mapping[str, str]) -> str:
        """The prompt with these texts in its places. What the texts contain is not filled again."""
        return _PLACE.sub(lambda found: places[found[1]], self.prompt)


@dataclass(frozen=True)
class PipelineResult:
    """What a pipeline answered."""

    outputs: dict[str, GenerationResult]
    """By step, in order."""

    @property
    def text(self) -> str:
        """The answer of the last step."""
        return list(self.outputs.values())[-1].text


class OrchestrationPipeline(Strict):
    """Steps that run one after the other. `flows.pipeline` makes a Langflow flow of them.

    pipeline = OrchestrationPipeline(steps=[
        StepInput(step_name="facts", model_selector="gemma-3-270m", prompt="Name three facts about {context}."),
        StepInput(step_name="summary", model_selector="other", prompt="Summarise: {previous_output}"),
    ])
    result = await pipeline.run("Paris")
    """

    steps: tuple[StepInput, ...] = Field(min_length=1)

    @field_validator("steps")
    @classmethod
    def _have_names(cls, value: tuple[StepInput, ...]) -> tuple[StepInput, ...]:
        names = [step.step_name for step in value]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two steps are called {', '.join(twice)}")
        if taken := sorted(set(names) & set(PLACES)):
            raise ValueError(f"a step cannot be called {', '.join(taken)}")
        return value

    async def run(self, context: str, manager: RuntimeManager | None = None) -> PipelineResult:
        """Run the steps. Cancelling the caller cancels the step that runs.

        Args:
            context: for `{context}`.
            manager: unset, the one of this process.

        Raises:
            RuntimeFault: a step failed.
        """
        if manager is None:
            manager = await asyncio.to_thread(get_runtime_manager)
        outputs: dict[str, GenerationResult] = {}
        for step in self.steps:
            texts = {name: result.text for name, result in outputs.items()}
            places = {
                "context": context, "previous_output": next(reversed(texts.values()), ""), "all_outputs": joined(texts),
            }  # fmt: skip
            ask = GenerationConfig.model_validate({"prompt": step.filled(places), **step.options})
            outputs[step.step_name] = await manager.generate(step.model_selector, ask)
        return PipelineResult(outputs)


def joined(texts: Mapping[str, str]) -> str:
    """Answers below the names of their steps, with an empty line between them."""
    return "\n\n".join(f"{name}:\n{text}" for name, text in texts.items())
