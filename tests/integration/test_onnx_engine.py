"""Encoders in ONNX Runtime: files as they come, and made from safetensors, against the libraries they stand on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lfx_local_runtimes.errors import DeviceUnavailable, EngineFailure, LoadFailed, RequestCancelled
from lfx_local_runtimes.runtimes.base import LoadContext
from lfx_local_runtimes.runtimes.config import DeviceType, ModelConfig
from lfx_local_runtimes.runtimes.devices import Device
from lfx_local_runtimes.runtimes.engines.onnx.encoder import OnnxEncoder
from lfx_local_runtimes.runtimes.manager import RuntimeManager
from lfx_local_runtimes.runtimes.planning import plan_for_engine
from lfx_local_runtimes.runtimes.requests import RequestState
from lfx_local_runtimes.runtimes.sources.packages import BGE_SMALL, RERANKER
from lfx_local_runtimes.runtimes.tasks.text.embedding import EmbeddingAsk
from lfx_local_runtimes.runtimes.tasks.text.ner import NerAsk
from lfx_local_runtimes.runtimes.tasks.text.rerank import RerankAsk
from lfx_local_runtimes.settings import get_settings
from tests.encoder_models import TEXTS, answer, begin, cosines, load_encoder, save_encoder, started, unload

pytestmark = pytest.mark.integration

QUERY = "How do I get a refund?"
DOCUMENTS = (
    "The office is closed on public holidays.",
    "To be reimbursed, send us the receipt and the parcel's number.",
    "Money is returned within five days after the goods came back.",
    "Our cat is called Mia.",
)


# -- what packages carry -------------------------------------------------------------------------------------------------


def raw(folder: Path, texts: list[str] | list[tuple[str, str]]) -> np.ndarray:
    """What the file gives for each text, alone."""
    import onnxruntime
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    found = []
    for text in texts:
        pair = (text,) if isinstance(text, str) else text
        inputs = tokenizer(*pair, return_tensors="np", truncation=True, max_length=512, return_token_type_ids=True)
        found.append(session.run(None, {name: array.astype(np.int64) for name, array in inputs.items()})[0][0])
    return np.stack([one if one.ndim == 1 else one[0] for one in found])


def carried(model: object, home: Path) -> Path:
    folder = model.ready_path(home)  # type: ignore[attr-defined]
    assert folder is not None, "the package is not installed: pip install 'lfx-local-runtimes[dev]'"
    return Path(folder)


async def test_a_real_reranker_ranks_as_the_file_says(tmp_path: Path) -> None:
    manager = RuntimeManager()
    try:
        found = await manager.run(RERANKER.name, RerankAsk(query=QUERY, documents=DOCUMENTS))
    finally:
        manager.close()
    logits = raw(carried(RERANKER, tmp_path), [(QUERY, document) for document in DOCUMENTS])[:, 0]
    assert [one.index for one in found.ranking] == list(np.argsort(-logits))
    assert {found.ranking[0].index, found.ranking[1].index} == {1, 2}
    expected = np.sort(1 / (1 + np.exp(-logits)))[::-1]
    assert np.allclose([one.score for one in found.ranking], expected, atol=0.02)  # int8: a batch has one scale
    assert (found.metadata["engine"], found.metadata["dtype"]) == ("onnx", "int8")


async def test_a_real_embedder_gives_its_first_token(tmp_path: Path) -> None:
    manager = RuntimeManager()
    try:
        found = await manager.run(BGE_SMALL.name, EmbeddingAsk(texts=TEXTS, normalize=True))
    finally:
        manager.close()
    assert cosines(found.vectors, raw(carried(BGE_SMALL, tmp_path), list(TEXTS))).min() > 0.98
    assert np.allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-5)
    assert found.metadata["truncated"] == {}


def config(path: Path, **options: str) -> ModelConfig:
    return ModelConfig.model_validate({"model_id": str(path), "model_name": "m", "runtime_type": "onnx", **options})


# -- what is made --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this file's exports are kept."""
    return tmp_path_factory.mktemp("exports")


@pytest.fixture
def exports(home: Path) -> None:
    """Every test's own data folder has the same exports."""
    (get_settings().home / "onnx").symlink_to(home, target_is_directory=True)


@pytest.mark.parametrize(("dtype", "least"), [("fp32", 0.9999), ("int8", 0.985)])
@pytest.mark.usefixtures("exports")
def test_a_model_is_exported_once(dtype: str, least: float, minilm: Path, reference: np.ndarray, home: Path) -> None:
    phases: list[str] = []
    for made in ({"fp32": ["export"], "int8": ["quantize"]}[dtype], []):
        phases.clear()
        runtime = OnnxEncoder(config(minilm, quantization=dtype))
        runtime.start(LoadContext(lambda event: phases.append(event.phase))).result()
        try:
            found = answer(runtime, EmbeddingAsk(texts=TEXTS))
        finally:
            unload(runtime)
        assert phases == made
        assert cosines(found.vectors, reference).min() > least
        assert (found.metadata["engine"], found.metadata["dtype"]) == ("onnx", dtype)
        assert list(found.metadata["truncated"]) == [len(TEXTS) - 1]
    assert not list(home.glob("*/.work"))


@pytest.mark.usefixtures("exports")
def test_entities_are_those_of_the_transformers_engine(tmp_path: Path) -> None:
    names = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC"}
    folder = save_encoder(tmp_path / "tiny", "Bert", "ForTokenClassification", id2label=names)
    ask = NerAsk(texts=("the cat sat on the mat.", "alice met bob in paris."))
    found = []
    for runtime in (load_encoder(folder), started(OnnxEncoder, folder)):
        try:
            found.append(answer(runtime, ask).entities)
        finally:
            unload(runtime)
    assert any(found[0])
    for ones, others in zip(*found, strict=True):
        assert [(one.label, one.start, one.end) for one in ones] == [(one.label, one.start, one.end) for one in others]
        assert np.allclose([one.score for one in ones], [one.score for one in others], atol=1e-4)


# -- what goes wrong -----------------------------------------------------------------------------------------------------


def test_a_cancelled_export_leaves_nothing(minilm: Path) -> None:
    context = LoadContext(lambda event: context.cancel())
    runtime = OnnxEncoder(config(minilm))
    with pytest.raises(LoadFailed, match="cancelled"):
        runtime.start(context).result()
    assert [path.name for path in get_settings().home.glob("onnx/*/*") if path.name != ".lock"] == []


def test_an_export_that_fails_says_why(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "tiny", "Bert", "Model")
    for file in folder.glob("*token*"):
        file.unlink()
    with pytest.raises(LoadFailed, match="has no tokenizer"):
        started(OnnxEncoder, folder)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    from onnx import TensorProto, helper, save

    graph = helper.make_graph(
        [helper.make_node("NoSuchOperator", ["input_ids"], ["logits"])], "graph",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["a", "b"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["a", 1])],
    )  # fmt: skip
    save(helper.make_model(graph), tmp_path / "model.onnx")
    with pytest.raises(LoadFailed, match=r"ONNX Runtime refuses model\.onnx"):
        started(OnnxEncoder, tmp_path)


def test_a_model_too_large_for_one_file_is_refused_before_anything_is_done(minilm: Path) -> None:
    wanted = config(minilm)
    plan = plan_for_engine(wanted, "onnx")
    plan = replace(plan, info=replace(plan.info, parameters=10**9))
    with pytest.raises(LoadFailed, match="1,000,000,000 parameters, too many"):
        OnnxEncoder(wanted, plan).start().result()
    assert not (get_settings().home / "onnx").exists()


@pytest.mark.parametrize("device", [Device(DeviceType.CUDA, 0), Device(DeviceType.MPS)])
def test_a_device_that_the_build_does_not_know_is_refused(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next plan, on the CPU, is tried then."""
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    wanted = config(carried(RERANKER, tmp_path))
    plan = plan_for_engine(wanted, "onnx")
    with pytest.raises(DeviceUnavailable, match=f"does not run on {device.key}"):
        OnnxEncoder(wanted, replace(plan, device=device)).start().result()


def test_callers_of_an_unloaded_model_are_told(tmp_path: Path) -> None:
    runtime = started(OnnxEncoder, carried(RERANKER, tmp_path))
    alone = answer(runtime, RerankAsk(query=QUERY, documents=DOCUMENTS))
    job = begin(runtime, RerankAsk(query=QUERY, documents=DOCUMENTS * 500))
    quick = answer(runtime, RerankAsk(query=QUERY, documents=DOCUMENTS))
    assert job.request.state is RequestState.RUNNING, "a query gets in between"
    unload(runtime)
    with pytest.raises((EngineFailure, RequestCancelled)):
        job.wait()
    assert [one.index for one in quick.ranking] == [one.index for one in alone.ranking]
    assert {one.index for one in quick.ranking[:2]} == {1, 2}
