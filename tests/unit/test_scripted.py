"""The scripted runtime's own hooks; how it behaves otherwise is the contract suite's."""

import threading

import pytest

from lfx_local_runtimes.errors import EngineFailure, LoadFailed
from lfx_local_runtimes.runtimes import GenerationConfig, ModelConfig, ScriptedRuntime
from lfx_local_runtimes.runtimes.base import LoadContext

CONFIG = ModelConfig(model_id="none", model_name="parrot")
ASK = GenerationConfig(prompt="Say hello", seed=1)


async def test_says_its_script_and_counts():
    runtime = ScriptedRuntime(CONFIG, script=["Hel", "lo"], memory_bytes=3 * 2**20)
    await runtime.load()
    result = await runtime.generate(ASK)
    assert (result.text, result.tokens_generated, result.finish_reason) == ("Hello", 2, "stop")
    assert runtime.get_memory_usage() == {"devices": {"cpu": 3 * 2**20}, "total_mb": 3.0}
    await runtime.unload()
    assert (runtime.loads, runtime.closes, runtime.tokens) == (1, 1, 2)


async def test_a_script_made_from_the_request():
    runtime = ScriptedRuntime(CONFIG, script=lambda config: [config.prompt, f" {config.seed}"])
    await runtime.load()
    assert (await runtime.generate(ASK)).text == "Say hello 1"
    drawn = await runtime.generate(ASK.model_copy(update={"seed": None}))
    assert drawn.text == f"Say hello {drawn.metadata['seed']}"
    await runtime.unload()


async def test_a_subclass_brings_its_own_script():
    class Echo(ScriptedRuntime):
        def script(self, config):
            return config.turns[-1].content.split(" ")

    runtime = Echo(CONFIG)
    await runtime.load()
    assert (await runtime.generate(ASK)).text == "Sayhello"
    await runtime.unload()


async def test_a_gate_holds_the_next_token_back():
    gate = threading.Event()
    runtime = ScriptedRuntime(CONFIG, script=["a", gate, "b"])
    await runtime.load()
    stream = runtime.stream(ASK)
    pieces = aiter(stream)
    assert await anext(pieces) == "a"
    assert runtime.tokens == 1
    gate.set()
    assert await anext(pieces) == "b"
    assert [piece async for piece in pieces] == []
    await runtime.unload()


async def test_a_cancel_passes_a_closed_gate():
    runtime = ScriptedRuntime(CONFIG, script=["a", threading.Event(), "b"])
    await runtime.load()
    stream = runtime.stream(ASK)
    pieces = aiter(stream)
    assert await anext(pieces) == "a"
    stream.cancel()
    assert [piece async for piece in pieces] == []
    assert (stream.result.text, stream.result.finish_reason) == ("a", "cancelled")
    await runtime.unload()


async def test_a_failure_in_the_middle_keeps_the_model():
    runtime = ScriptedRuntime(CONFIG, script=["a", RuntimeError("wire cut")])
    await runtime.load()
    for _ in range(2):
        stream = runtime.stream(ASK)
        with pytest.raises(EngineFailure, match="wire cut"):
            await stream.wait_async()
    assert runtime.loaded
    await runtime.unload()


async def test_a_load_that_fails():
    runtime = ScriptedRuntime(CONFIG, load_error=MemoryError("out of crackers"))
    with pytest.raises(LoadFailed, match="parrot: out of crackers"):
        await runtime.load()
    assert not runtime.loaded
    assert runtime.closes == 1


@pytest.mark.parametrize("cancelled", [True, False])
def test_a_load_waits_at_its_gate(cancelled):
    gate, context = threading.Event(), LoadContext()
    runtime = ScriptedRuntime(CONFIG, load_gate=gate)
    loaded = runtime.start(context)
    assert not loaded.done()
    if cancelled:
        context.cancel()
        with pytest.raises(LoadFailed, match="cancelled"):
            loaded.result(60)
    else:
        gate.set()
        loaded.result(60)
        runtime.stop().join(60)
