"""A pipeline answers the same in Python and as a flow that `lfx run` runs."""

import asyncio
import json
from pathlib import Path

import pytest

from lfx_local_runtimes.flows.pipeline import pipeline_flow
from lfx_local_runtimes.runtimes import OrchestrationPipeline, RuntimeManager, StepInput
from lfx_local_runtimes.settings import load_settings
from tests.lfx_process import lfx_run

pytestmark = pytest.mark.integration

GREEDY = {"temperature": 0, "max_tokens": 12, "stop": ["\n"]}
PIPELINE = OrchestrationPipeline(
    steps=(
        StepInput(
            step_name="capital", model_selector="gemma-3-270m", prompt="What is the capital of {context}?", options=GREEDY
        ),
        StepInput(
            step_name="continent", model_selector="gemma-3-270m", options=GREEDY | {"raw": True},
            prompt='{all_outputs}\n{"task"}: the continent\nTokyo, Japan: Asia\nCairo, Egypt: Africa\n{previous_output}, {context}:',
        ),
    )
)  # fmt: skip


def test_python_and_the_flow_answer_the_same(tmp_path: Path) -> None:
    manager = RuntimeManager(load_settings(offline=True))
    try:
        result = asyncio.run(PIPELINE.run("France", manager))
    finally:
        manager.close()
    assert "Paris" in result.outputs["capital"].text
    file = tmp_path / "pipeline"
    file.with_suffix(".json").write_text(pipeline_flow(PIPELINE, "Capital").as_json(), encoding="utf-8")
    answer = lfx_run(str(file), "France")
    assert answer.strip() == result.text.strip(), json.dumps(result.outputs["continent"].metadata)
    assert answer.strip() == "Europe"
