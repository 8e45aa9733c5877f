"""Pipelines in Python, and the same steps as a flow."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from lfx_local_runtimes.errors import InvalidInput, ModelNotFound
from lfx_local_runtimes.flows.pipeline import pipeline_flow
from lfx_local_runtimes.runtimes import OrchestrationPipeline, StepInput
from tests.scripted_manager import Theatre, theatre


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Theatre]:
    with theatre(tmp_path, monkeypatch) as stage:
        stage.script = lambda config: (f"<{config.turns[-1].content}>",)
        yield stage


def step(name: str, prompt: str, model: str = "parrot", **options: Any) -> StepInput:
    return StepInput(step_name=name, model_selector=model, prompt=prompt, options=options)


PIPELINE = OrchestrationPipeline(
    steps=(
        step("facts", 'of {context}{previous_output}{all_outputs} as {"json": {}}', max_tokens=9, temperature=0),
        step("short", "{{previous_output}}", "owl", stop=["\n", "END"]),
        step("all", "{context}: {all_outputs}", max_tokens=7),
    )
)


async def test_each_prompt_is_filled_from_the_answers_before(stage: Theatre) -> None:
    result = await PIPELINE.run("{all_outputs}")
    facts = '<of {all_outputs} as {"json": {}}>'
    short = f"<{{{facts}}}>"
    assert result.outputs["facts"].text == facts, "what a text contains is not filled again"
    assert result.outputs["short"].text == short
    assert result.text == f"<{{all_outputs}}: facts:\n{facts}\n\nshort:\n{short}>"
    assert [one.model_name for one in result.outputs.values()] == ["parrot", "owl", "parrot"]
    assert [(one.max_tokens, one.temperature) for one in stage.requests] == [(9, 0), (512, 0.7), (7, 0.7)]


async def test_a_step_that_fails_ends_the_pipeline(stage: Theatre) -> None:
    pipeline = OrchestrationPipeline(steps=[step("a", "x"), step("b", "y", "nobody"), step("c", "z")])
    with pytest.raises(ModelNotFound, match="nobody"):
        await pipeline.run("", stage.manager)
    assert len(stage.requests) == 1


@pytest.mark.parametrize(
    ("steps", "complaint"),
    [
        ([], "at least 1"),
        ([{"step_name": "a"}, {"step_name": "a"}], "two steps are called a"),
        ([{"step_name": "context"}], "cannot be called context"),
        ([{"step_name": "a b"}], "step_name"),
        ([{"options": {"prompt": "x"}}], "prompt cannot be an option"),
        ([{"options": {"temperature": -1}}], "temperature"),
        ([{"options": {"surprise": 1}}], "surprise"),
    ],
)
def test_what_cannot_run_is_refused_at_once(steps: list[dict[str, Any]], complaint: str) -> None:
    usual = {"step_name": "a", "model_selector": "parrot", "prompt": "x"}
    with pytest.raises(ValidationError, match=complaint):
        OrchestrationPipeline.model_validate({"steps": [{**usual, **one} for one in steps]})


def test_the_same_steps_as_a_flow() -> None:
    steps = (PIPELINE.steps[0], step("short", "{previous_output}", "owl", stop=["\n", "END"]), PIPELINE.steps[2])
    flow = json.loads(pipeline_flow(OrchestrationPipeline(steps=steps), "My Pipeline").as_json())
    fields = {
        node["id"]: {name: field.get("value") for name, field in node["data"]["node"]["template"].items() if name != "_type"}
        for node in flow["data"]["nodes"]
    }  # fmt: skip
    prompts = [values["template"] for values in fields.values() if "template" in values]
    assert prompts == [
        'of {context} as {{"json": {{}}}}',
        "{facts_output}",
        "{context}: facts:\n{facts_output}\n\nshort:\n{short_output}",
    ]
    models = [values for values in fields.values() if "stop_sequences" in values]
    assert [values["model_name"] for values in models] == ["parrot", "owl", "parrot"]
    assert (models[0]["max_tokens"], models[0]["temperature"]) == (9, 0)
    assert models[1]["stop_sequences"] == ["\\n", "END"]
    wires = {
        (edge["source"], edge["data"]["targetHandle"]["fieldName"], edge["target"]) for edge in flow["data"]["edges"]
    }
    fed = {(source.partition("-")[2], field, target.partition("-")[2]) for source, field, target in wires}
    assert fed == {
        ("context", "context", "facts-prompt"), ("facts-prompt", "input_value", "facts"),
        ("facts", "facts_output", "short-prompt"), ("short-prompt", "input_value", "short"),
        ("context", "context", "all-prompt"), ("facts", "facts_output", "all-prompt"), ("short", "short_output", "all-prompt"),
        ("all-prompt", "input_value", "all"), ("all", "input_value", "answer"),
    }  # fmt: skip


@pytest.mark.parametrize("prompt", ["{{previous_output}}", "{# {context} #}"])
def test_braces_that_a_prompt_node_does_not_take_are_refused(prompt: str) -> None:
    pipeline = OrchestrationPipeline(steps=[step("a", "x"), step("b", prompt)])
    with pytest.raises(InvalidInput, match="step b has braces"):
        pipeline_flow(pipeline, "n")


def test_an_option_that_the_node_does_not_have_is_refused() -> None:
    pipeline = OrchestrationPipeline(steps=[step("a", "x", logit_bias={1: 2})])
    with pytest.raises(InvalidInput, match="logit_bias"):
        pipeline_flow(pipeline, "n")
