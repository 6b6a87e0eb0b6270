"""Half-precision graphs hold float16 where it is safe, float32 where it is not, and are refused when they are wrong."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from mkc_fast import InexactError, MkcError
from mkc_fast.cli import main
from mkc_fast.export import export_model
from mkc_fast.export import model as exporter
from mkc_fast.export.graphs import files
from mkc_fast.export.precision import half_graphs
from mkc_fast.export.precision.half import (
    POLICIES,
    HalfGraph,
    Policy,
    half_file,
    measured_peaks,
    rounding_shown,
    to_half,
)
from mkc_fast.export.random_checkpoints import Checkpoints
from mkc_fast.names import CONFORMER_FILE, VOCODER_FILE, WAVLM_FILE
from tests.conftest import Artifacts

GRAPHS = (WAVLM_FILE, CONFORMER_FILE, VOCODER_FILE)
FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


@dataclass
class Case:
    """A float32 graph, its half-precision form, and the types that ONNX's own inference finds in that."""

    full: ModelProto
    made: HalfGraph
    types: dict[str, int]

    def node(self, op_type: str, reads: str = "") -> NodeProto:
        found = [n for n in self.made.model.graph.node if n.op_type == op_type and (not reads or reads in n.input)]
        assert len(found) == 1
        return found[0]


def case_of(model: ModelProto, policy: Policy | None = None, peaks: dict[str, float] | None = None) -> Case:
    made = to_half(model, policy, peaks)
    onnx.checker.check_model(made.model, full_check=True)
    graph = onnx.shape_inference.infer_shapes(made.model, strict_mode=True).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.output, *graph.value_info)}
    types.update({tensor.name: tensor.data_type for tensor in graph.initializer})
    return Case(model, made, types)


@pytest.fixture(scope="module")
def cases(artifacts: Artifacts) -> dict[str, Case]:
    return {name: case_of(onnx.load(artifacts.model / name), POLICIES[name]) for name in GRAPHS}


def small_graph(nodes: list[NodeProto], weights: dict[str, np.ndarray], columns: int) -> ModelProto:
    """A graph x (n, columns) → y of these nodes."""
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", FLOAT, ["n", columns])],
        [helper.make_tensor_value_info("y", FLOAT, ["rows", "columns"])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def node(op_type: str, reads: list[str], makes: str, **attributes: Any) -> NodeProto:
    return helper.make_node(op_type, reads, [makes], f"node_{makes}", **attributes)


def run(model: ModelProto, **inputs: np.ndarray) -> np.ndarray:
    return files.open_session(model).run(None, inputs)[0]


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_graphs_hold_standard_operators_only(cases: dict[str, Case]) -> None:
    for case in cases.values():
        assert {node.domain for node in case.made.model.graph.node} == {""}
        assert not case.made.model.functions
        new = Counter(n.op_type for n in case.made.model.graph.node) - Counter(n.op_type for n in case.full.graph.node)
        assert set(new) == {"Cast"}  # nothing else is added


def test_inputs_and_outputs_are_those_of_float32(cases: dict[str, Case]) -> None:
    for case in cases.values():
        for kind in ("input", "output"):
            assert list(getattr(case.made.model.graph, kind)) == list(getattr(case.full.graph, kind))
        session = files.open_session(case.made.model)
        assert session.get_inputs()[0].type == session.get_outputs()[0].type == "tensor(float)"


def test_files_are_half_as_large(cases: dict[str, Case]) -> None:
    for case in cases.values():
        assert case.made.model.ByteSize() < 0.55 * case.full.ByteSize()  # at full size, where nodes are little, 0.50


def test_products_read_float16_weights(cases: dict[str, Case]) -> None:
    for name, case in cases.items():
        weights = [
            node.input[1]
            for node in case.made.model.graph.node
            if node.op_type in {"MatMul", "Conv", "ConvTranspose"} and node.name not in case.made.kept
        ]
        assert len(weights) > 20, name
        assert {case.types[weight] for weight in weights} == {HALF}


def test_lengths_and_positions_are_untouched(cases: dict[str, Case]) -> None:
    for case in cases.values():
        integers = {t.name for t in case.full.graph.initializer if t.data_type == TensorProto.INT64} | {"lengths"}
        before = [n for n in case.full.graph.node if n.op_type == "Shape" or (n.input and set(n.input) <= integers)]
        after = {n.name: n for n in case.made.model.graph.node}
        for one in before:
            assert after[one.name] == one
        for made in case.made.model.graph.node:
            if made.op_type in {"Range", "Less", "LessOrEqual"}:
                assert {case.types[name] for name in made.input} == {TensorProto.INT64}


def test_what_the_policy_names_stays_float32(cases: dict[str, Case]) -> None:
    for case in cases.values():
        nodes = {node.name: node for node in case.made.model.graph.node}
        for name in case.made.kept:
            kinds = {case.types[v] for v in (*nodes[name].input, *nodes[name].output) if v}
            assert kinds & {FLOAT, HALF} == {FLOAT}, (name, case.made.kept[name])
    assert cases[WAVLM_FILE].node("Conv", "convs.0.weight").name in cases[WAVLM_FILE].made.kept
    assert cases[VOCODER_FILE].node("Conv", "conv_post.weight").name in cases[VOCODER_FILE].made.kept
    assert cases[VOCODER_FILE].node("Tanh").name in cases[VOCODER_FILE].made.kept


def test_attention_scores_are_float32_in_wavlm_and_float16_in_the_conformer(cases: dict[str, Case]) -> None:
    for name, kind in ((WAVLM_FILE, FLOAT), (CONFORMER_FILE, HALF)):
        case = cases[name]
        makers = {output: node for node in case.made.model.graph.node for output in node.output}
        softmaxes = [node for node in case.made.model.graph.node if node.op_type == "Softmax"]
        assert len(softmaxes) == (6 if name == WAVLM_FILE else 3)
        for softmax in softmaxes:
            total = makers[softmax.input[0]]
            product = makers[total.input[0]]
            assert (total.op_type, product.op_type) == ("Add", "MatMul")
            assert {case.types[v] for v in (*softmax.output, *total.input, *product.input)} == {kind}


def test_the_residual_stream_is_float32(cases: dict[str, Case]) -> None:
    for name in (WAVLM_FILE, CONFORMER_FILE):
        case = cases[name]
        stream = [node for node in case.made.kept if case.made.kept[node] == "is the residual stream"]
        layers = sum(node.op_type == "Softmax" for node in case.full.graph.node)
        # WavLM: after the position convolution and twice a layer; conformer: four times a layer.
        assert len(stream) == (1 + 2 * layers if name == WAVLM_FILE else 4 * layers)
        if name == CONFORMER_FILE:
            norms = [node for node in case.made.model.graph.node if node.op_type == "LayerNormalization"]
            assert {case.types[node.input[0]] for node in norms} == {FLOAT}


def test_casts_are_few(cases: dict[str, Case]) -> None:
    for case in cases.values():
        weights = {tensor.name for tensor in case.made.model.graph.initializer}
        casts = [node for node in case.made.model.graph.node if node.op_type == "Cast"]
        made_by_cast = {node.output[0] for node in casts}
        assert not {node.input[0] for node in casts} & (weights | made_by_cast)  # converted once, never there and back
        assert max(Counter(node.input[0] for node in casts).values()) == 1
        # In and out of each branch of the stream, around the scores, and at the borders.
        layers = sum(node.op_type == "Softmax" for node in case.full.graph.node)
        assert len(casts) <= 5 + 8 * layers


def test_policies_change_what_is_kept(artifacts: Artifacts) -> None:
    model = onnx.load(artifacts.model / VOCODER_FILE)
    assert to_half(model, Policy(ops=frozenset())).kept == {}
    weight = "stages.0.blocks.0.dilated.0.weight"
    case = case_of(model, Policy(names=("stages.0.blocks.0.dilated.*.weight",)))
    assert {case.types[name] for name in case.node("Conv", weight).input} == {FLOAT}
    assert list(case.made.kept.values()).count("is named by stages.0.blocks.0.dilated.*.weight") == 3


def test_values_are_cast_before_they_are_moved_on_their_way_down_and_after_on_their_way_up() -> None:
    weights = {"w": noise(8, 8), "v": noise(8, 8, seed=1)}
    nodes = [
        node("Sqrt", ["x"], "a"), node("Transpose", ["a"], "b"), node("MatMul", ["b", "w"], "c"),
        node("Transpose", ["c"], "d"), node("Sqrt", ["d"], "e"), node("MatMul", ["e", "v"], "y"),
    ]  # fmt: skip
    case = case_of(small_graph(nodes, weights, 8))
    order = [made.op_type for made in case.made.model.graph.node]
    assert order == ["Sqrt", "Cast", "Transpose", "MatMul", "Transpose", "Cast", "Sqrt", "Cast", "MatMul", "Cast"]


def test_errors_are_those_of_rounding(artifacts: Artifacts, cases: dict[str, Case], clip: np.ndarray) -> None:
    info = artifacts.anonymizer.info
    inputs: dict[str, np.ndarray] = {"waveform": clip[None, 24000:48000], "lengths": np.array([24000])}
    for name in GRAPHS:
        case = cases[name]
        expected = run(case.full, **inputs)
        shown = relative(run(rounding_shown(case.made.model), **inputs), expected)
        # A rounding is 3e-4 of a value; some hundred in a row, partly averaged out, measured 3e-4 to 5e-3.
        assert 1e-5 < shown < 1e-2
        assert relative(run(case.made.model, **inputs), expected) < 1.2 * shown  # what the CPU provider does has fewer
        inputs = {"features": expected, "lengths": np.array([info.frames(24000)])}
        if name == CONFORMER_FILE:
            del inputs["lengths"]


@pytest.mark.parametrize("lengths", [[719, 400], [16000, 401, 9000, 12345]])
def test_padded_batch_equals_each_alone(lengths: list[int], artifacts: Artifacts, cases: dict[str, Case]) -> None:
    info = artifacts.anonymizer.info
    counts = [info.frames(length) for length in lengths]
    values, sizes, key = noise(len(lengths), max(lengths)) * np.float32(0.1), lengths, "waveform"  # noise as padding
    for name in (WAVLM_FILE, CONFORMER_FILE):
        session = files.open_session(rounding_shown(cases[name].made.model))
        batch = session.run(None, {key: values, "lengths": np.array(sizes)})[0]
        for row, (size, count) in enumerate(zip(sizes, counts, strict=True)):
            alone = session.run(None, {key: values[row : row + 1, :size], "lengths": np.array([size])})[0]
            # Sums in another order round to the other side now and then; a leak of padding makes 1e-1.
            assert relative(batch[row, :count], alone[0]) < 5e-3
        values, sizes, key = batch, counts, "features"


def test_the_same_graph_gives_the_same_bytes_and_is_left_alone(artifacts: Artifacts) -> None:
    for name in GRAPHS:
        model = onnx.load(artifacts.model / name)
        before = model.SerializeToString(deterministic=True)
        first, second = (to_half(model, POLICIES[name]).model.SerializeToString(deterministic=True) for _ in range(2))
        assert first == second
        assert model.SerializeToString(deterministic=True) == before


def test_the_cpu_provider_hides_overflows_and_the_shown_form_does_not() -> None:
    """The reason that ``rounding_shown`` exists."""
    weights = {"w": np.full((4, 4), 300, np.float32), "v": np.full((4, 4), 0.001, np.float32)}
    made = to_half(small_graph([node("MatMul", ["x", "w"], "a"), node("MatMul", ["a", "v"], "y")], weights, 4))
    ones = np.full((1, 4), 100, np.float32)  # a is 120,000
    assert np.isfinite(run(made.model, x=ones)).all()
    assert not np.isfinite(run(rounding_shown(made.model), x=ones)).any()


def test_what_outgrows_float16_when_measured_stays_float32() -> None:
    weights = {"w": np.full((4, 4), 300, np.float32), "v": np.full((4, 4), 0.001, np.float32), "u": noise(4, 4)}
    nodes = [node("MatMul", ["x", "w"], "a"), node("MatMul", ["a", "v"], "b"), node("MatMul", ["b", "u"], "y")]
    model, ones = small_graph(nodes, weights, 4), np.full((1, 4), 100, np.float32)
    peaks = measured_peaks(model, {"x": ones})
    assert peaks["a"] == pytest.approx(120_000)
    case = case_of(model, peaks=peaks)
    assert case.made.outgrown == {"node_a": "a reaches 1.2e+05", "node_b": "a reaches 1.2e+05"}  # who makes, who reads
    assert [case.types[name] for name in ("w", "v", "u")] == [FLOAT, FLOAT, HALF]
    assert relative(run(rounding_shown(case.made.model), x=ones), run(model, x=ones)) < 2e-3


def test_weights_that_float16_cannot_hold_stay_float32(artifacts: Artifacts) -> None:
    model = onnx.load(artifacts.model / CONFORMER_FILE)
    changed = {"layers.0.ffn1.fc1.weight": 1e6, "layers.1.ffn1.fc1.weight": 1e-6}
    for tensor in model.graph.initializer:
        if tensor.name in changed:
            scaled = numpy_helper.to_array(tensor) * np.float32(changed[tensor.name])
            tensor.CopyFrom(numpy_helper.from_array(scaled, tensor.name))
    case = case_of(model, POLICIES[CONFORMER_FILE])
    assert len(case.made.outgrown) == 2
    large, small = case.made.outgrown.values()
    assert "layers.0.ffn1.fc1.weight has values up to" in large
    assert "layers.1.ffn1.fc1.weight has an RMS of" in small
    assert {case.types[name] for name in changed} == {FLOAT}
    assert case.types["layers.0.ffn1.fc2.weight"] == HALF


def test_sums_over_time_are_float32() -> None:
    """As in a Base model's GroupNorm, whose squares lie below what float16 holds, and whose counts pass 65504."""
    nodes = [
        node("MatMul", ["x", "w"], "a"), node("ReduceSum", ["a", "axes"], "sum", keepdims=1),
        node("Div", ["sum", "count"], "mean"), node("Sub", ["a", "mean"], "centered"),
        node("Mul", ["centered", "centered"], "squares"), node("ReduceSum", ["squares", "axes"], "total", keepdims=1),
        node("Div", ["total", "count"], "variance"), node("Add", ["variance", "epsilon"], "safe"),
        node("Sqrt", ["safe"], "deviation"), node("Div", ["centered", "deviation"], "normal"),
        node("MatMul", ["normal", "w"], "y"),
    ]  # fmt: skip
    frames = 60_000
    weights = {"w": np.full((1, 1), 0.001, np.float32), "count": np.array(frames, np.float32),
               "epsilon": np.array(1e-9, np.float32), "axes": np.array([0])}  # fmt: skip
    case = case_of(small_graph(nodes, weights, 1))
    assert case.types["w"] == HALF
    assert not case.made.outgrown
    inner = ("sum", "mean", "centered", "squares", "total", "variance", "safe", "deviation", "normal")
    assert {case.types[name] for name in inner} == {FLOAT}
    x = noise(frames, 1)
    assert relative(run(rounding_shown(case.made.model), x=x), run(case.full, x=x)) < 1e-3


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (node("Erf", ["x"], "y"), "operator Erf"),
        (node("Softplus", ["x"], "y"), "operator Softplus"),
        (node("FusedMatMul", ["x", "w"], "y", domain="com.microsoft"), r"operator com\.microsoft\.FusedMatMul"),
        (node("Cast", ["x"], "y", to=TensorProto.BFLOAT16), "values in bfloat16"),
        (node("Cast", ["x"], "y", to=TensorProto.DOUBLE), "values in double"),
    ],
)
def test_graphs_that_the_pass_does_not_know_are_refused(broken: NodeProto, words: str) -> None:
    with pytest.raises(MkcError, match=words) as error:
        to_half(small_graph([broken], {"w": noise(4, 4)}, 4))
    assert "\n" not in str(error.value)


@pytest.fixture
def quick_export(artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exporter that takes the float32 graphs from ``artifacts``."""

    def copy(work: exporter._Export, graph: exporter.ModuleGraph, *_: object, **__: object) -> None:
        shutil.copy(artifacts.model / graph.file, work.directory / graph.file)

    monkeypatch.setattr(exporter, "_write_and_judge", copy)


def test_export_writes_them_beside_the_others_when_asked(
    quick_export: None, artifacts: Artifacts, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    names = {path.name for path in artifacts.model.iterdir() if ".native." not in path.name}  # see quick_export
    assert not any("fp16" in name for name in names)
    lines: list[str] = []
    export_model(checkpoints.wavlm, checkpoints.ckpt, tmp_path / "m", half=True, progress=lines.append)
    assert {path.name for path in (tmp_path / "m").iterdir()} == names | {half_file(name) for name in GRAPHS}
    assert half_file(WAVLM_FILE) == "wavlm.fp16.onnx"
    assert sum("judging against float64" in line for line in lines) == 3
    for name in GRAPHS:
        ort.InferenceSession(tmp_path / "m" / half_file(name), providers=["CPUExecutionProvider"])


def test_the_command_has_one_flag_for_it(
    quick_export: None, checkpoints: Checkpoints, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", "--wavlm-ckpt", str(checkpoints.wavlm), "--ckpt", str(checkpoints.ckpt), "--out"]
    assert main([*command, str(tmp_path / "m"), "--half"]) == 0
    assert (tmp_path / "m" / "vocoder.fp16.onnx").is_file()
    assert "also in float16" in capsys.readouterr().out.replace("\n", " ")


def test_a_graph_that_is_far_from_float64_is_not_written(
    quick_export: None, checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(half_graphs, "TOLERANCE", 1e-6)
    with pytest.raises(InexactError, match=r"wavlm\.fp16\.onnx: RMS error 0\.00"):
        export_model(checkpoints.wavlm, checkpoints.ckpt, tmp_path / "m", half=True)
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_overflows_is_not_written(
    quick_export: None, checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the measured peaks had missed what the check then finds."""
    original = to_half

    def spoilt(model: ModelProto, *_: object) -> HalfGraph:
        for tensor in model.graph.initializer:
            if tensor.name == "projection.weight":
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1e5), tensor.name))
        return original(model, Policy(largest=np.inf, stream=False))

    monkeypatch.setattr(half_graphs, "to_half", spoilt)
    with pytest.raises(MkcError, match=r"wavlm\.fp16\.onnx: gives values that are not finite"):
        export_model(checkpoints.wavlm, checkpoints.ckpt, tmp_path / "m", half=True)
    assert list(tmp_path.iterdir()) == []


def test_large_graphs_keep_their_weights_beside_them(
    artifacts: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_EMBEDDED_BYTES", 100_000)
    half_graphs.write_half_graphs(artifacts.model, tmp_path, artifacts.anonymizer.info, lambda _: None)
    assert (tmp_path / "conformer.fp16.onnx").stat().st_size < 100_000
    assert (tmp_path / "conformer.fp16.onnx.data").is_file()
