"""A vocoder that is cut into stages gives what its whole graph gives."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from mkc_fast.engine.passes.residual_vocoder import ResidualVocoder
from mkc_fast.engine.sessions.shaped import StagedSessions
from mkc_fast.errors import ArtifactError, DeviceError
from mkc_fast.export.graphs.residual_stages import cut_vocoder
from mkc_fast.kernels.cuda.residual_stages import WEIGHTS_FILE, StagedBlocks, stage_file
from tests.fakes.cuda import shim
from tests.fakes.cuda.fake_cupy import FakeCupy
from tests.fakes.cuda.fake_gpu import QueuedSession

DIM, WIDTHS, RATES, SIZES, DILATIONS = 24, (48, 32, 24), (5, 2, 2), (3, 7), (1, 3)
HOP = 20


def vocoder(widths: tuple[int, ...] = WIDTHS, *, shared: bool = True) -> onnx.ModelProto:
    """A vocoder of random weights, in half precision, as ``export --half`` writes it.

    ``shared``: a stage's blocks share their first LeakyReLU.
    """
    rng, nodes, weights = np.random.default_rng(0), [], []

    def add(operator: str, *inputs: str, **attributes: object) -> str:
        nodes.append(helper.make_node(operator, inputs, [f"v{len(nodes)}"], **attributes))
        return nodes[-1].output[0]

    def weight(name: str, *shape: int, dtype: type = np.float16) -> str:
        values = rng.standard_normal(shape) * (0.1 if len(shape) == 1 else np.prod(shape[1:]) ** -0.5)
        weights.append(numpy_helper.from_array(values.astype(dtype), name))
        return name

    def convolution(
        name: str, x: str, out: int, into: int, size: int, dilation: int = 1, dtype: type = np.float16
    ) -> str:
        taken = weight(f"{name}.weight", out, into, size, dtype=dtype), weight(f"{name}.bias", out, dtype=dtype)
        pads = [size // 2 * dilation] * 2
        return add("Conv", x, *taken, dilations=[dilation], pads=pads, kernel_shape=[size])

    x = add("Transpose", add("Cast", "features", to=onnx.TensorProto.FLOAT16), perm=[0, 2, 1])
    into = widths[0] * 2
    x = convolution("conv_pre", x, into, DIM, 7)
    for stage, (width, rate) in enumerate(zip(widths, RATES, strict=True)):
        taken = (
            weight(f"stages.{stage}.weight", into, width, 2 * rate + rate % 2),
            weight(f"stages.{stage}.bias", width),
        )
        size = 2 * rate + rate % 2
        pads = [(size - rate) // 2] * 2
        x = add("LeakyRelu", x, alpha=0.1)
        x = add("ConvTranspose", x, *taken, strides=[rate], pads=pads, kernel_shape=[size])
        active, totals = add("LeakyRelu", x, alpha=0.1), []
        for block, size in enumerate(SIZES):
            y = x
            for pair, dilation in enumerate(DILATIONS):
                name = f"stages.{stage}.blocks.{block}"
                z = active if pair == 0 and (shared or block == 0) else add("LeakyRelu", y, alpha=0.1)
                z = convolution(f"{name}.dilated.{pair}", z, width, width, size, dilation)
                z = convolution(f"{name}.plain.{pair}", add("LeakyRelu", z, alpha=0.1), width, width, size)
                y = add("Add", y, z)
            totals.append(y)
        x, into = add("Add", *totals), width
    x = add("Cast", add("LeakyRelu", x, alpha=0.01), to=onnx.TensorProto.FLOAT)
    x = add("Tanh", convolution("conv_post", x, 1, into, 7, dtype=np.float32))
    weights.append(numpy_helper.from_array(np.array([1]), "axis"))
    add("Squeeze", x, "axis")
    nodes[-1].output[0] = "waveform"
    values = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, axes)
        for name, axes in (("features", ["batch", "frames", DIM]), ("waveform", ["batch", "samples"]))
    ]
    graph = helper.make_graph(nodes, "vocoder", values[:1], values[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def whole(model: onnx.ModelProto, features: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"features": features})[0]


def staged(folder: Path, cupy: FakeCupy, stream: object) -> ResidualVocoder:
    stages = StagedBlocks.read(folder)
    gpu = SimpleNamespace(failures=[], runs=[], spoil=lambda *_: None, cupy=cupy)

    def opened(number: int, sizes: dict[str, int]) -> QueuedSession:
        real = ort.InferenceSession(str(folder / stage_file(number)), providers=["CPUExecutionProvider"])
        return QueuedSession(real, gpu, stream, cuda_graph=False, shape=(2, sizes.get("frames") or sizes["cut_frames"]))

    return ResidualVocoder(cupy, 0, StagedSessions(stages, opened), HOP)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("schedule", [0, 1])
def test_stages_with_the_kernel_give_what_the_whole_graph_gives(tmp_path: Path, schedule: int, shared: bool) -> None:
    shim.library()
    model, cupy = vocoder(shared=shared), FakeCupy(schedule=schedule)
    cut = cut_vocoder(model)
    assert len(cut.graphs) == 3  # 24 channels are no multiple of 16, and stay in the last graph
    assert [stage.width for stage in cut.stages.stages] == [48, 32]
    assert [stage.frames for stage in cut.stages.stages] == [5, 10]
    for graph in (part.graph for part in cut.graphs):  # ONNX Runtime may take axes of one name for equal
        names = [value.type.tensor_type.shape.dim[1].dim_param for value in (*graph.input, *graph.output)]
        assert len(set(names)) == 2
    cut.write(tmp_path)
    features = np.random.default_rng(1).standard_normal((2, 31, DIM), np.float32)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        found = staged(tmp_path, cupy, stream).run(cupy.asarray(features)).get()
    expected = whole(model, features)
    assert found.shape == expected.shape == (2, 31 * HOP)
    np.testing.assert_allclose(found, expected, atol=4e-3)
    assert np.abs(expected).max() > 0.1
    assert cupy.launched.count("residual_pair_narrow") == 2 * len(SIZES) * len(DILATIONS)


def test_weights_are_read_as_they_were_written(tmp_path: Path) -> None:
    cut = cut_vocoder(vocoder())
    cut.write(tmp_path)
    read = StagedBlocks.read(tmp_path)
    for stage, other in zip(cut.stages.stages, read.stages, strict=True):
        assert stage.frames == other.frames
        for block, twin in zip(stage.blocks, other.blocks, strict=True):
            for pair, same in zip(block, twin, strict=True):
                assert pair.dilation == same.dilation
                np.testing.assert_array_equal(pair.weights, same.weights)
                np.testing.assert_array_equal(pair.biases, same.biases)
    (tmp_path / WEIGHTS_FILE).write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(ArtifactError, match=WEIGHTS_FILE):
        StagedBlocks.read(tmp_path)


def test_what_the_kernel_does_not_take_stays_in_the_graph() -> None:
    model = vocoder((24, 8, 40))
    with pytest.raises(ValueError, match="no stage"):
        cut_vocoder(model)
    changed = vocoder()
    for node in changed.graph.node:  # another slope in the first stage
        if node.op_type == "LeakyRelu" and node.output[0] in next(
            each.input for each in changed.graph.node if "stages.0.blocks.1.plain.0.weight" in each.input
        ):
            node.attribute[0].f = 0.2
    assert [stage.width for stage in cut_vocoder(changed).stages.stages] == [32]
    wide = vocoder()
    for weight in wide.graph.initializer:  # a weight that does not fit float16
        if weight.name == "stages.1.blocks.0.dilated.1.weight":
            weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float32), weight.name))
    assert [stage.width for stage in cut_vocoder(wide).stages.stages] == [48]


def test_a_device_without_room_for_a_stage_is_refused(tmp_path: Path) -> None:
    shim.library()
    cupy = FakeCupy(shared_bytes=12 << 10)
    cut_vocoder(vocoder()).write(tmp_path)
    with cupy.cuda.Stream(non_blocking=True) as stream, pytest.raises(DeviceError, match="stage 0, 48 channels"):
        staged(tmp_path, cupy, stream)
