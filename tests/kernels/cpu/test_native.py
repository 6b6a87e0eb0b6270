"""The native operators for CPUs: equal to PyTorch in every instruction set, the same bits however the work is cut."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from mkc_fast import Anonymizer, ArtifactError
from mkc_fast.engine.artifacts import native_file
from mkc_fast.engine.sessions import cpu as cpu_sessions
from mkc_fast.engine.sessions.cpu import operators_used
from mkc_fast.export.graphs.native import DIRECT, WINOGRAD, blocks_operator
from mkc_fast.export.graphs.packing import (
    OUTPUTS,
    PANEL,
    evaluation,
    inputs_and_outputs,
    pack,
    pack_convolution,
    pack_gated,
    pack_transposed,
    pack_winograd,
)
from mkc_fast.kernels.cpu import loader as native
from mkc_fast.kernels.cpu.loader import DOMAIN, native_library
from mkc_fast.names import CONFORMER_FILE, VOCODER_FILE, WAVLM_FILE
from tests.conftest import ROOT, Artifacts, signed

if native_library() is None:
    pytest.skip("the native operators are not built here: no C++ compiler, or no AVX2", allow_module_level=True)

SOURCE = ROOT / "kernels" / "cpu"
# Rounding of float32 sums of unit size in two orders; the residual blocks multiply it by 4, over six convolutions.
TOLERANCE = 2e-6
PLAIN = {
    "kernel": 1, "stride": 1, "left": 0, "right": 0, "groups": 1, "rate": 1, "crop": 0, "activation": 0, "slope": 1.0,
}  # fmt: skip
NONE, GELU, SILU, GLU = range(4)

Array = np.ndarray


def session(operator: str, inputs: dict[str, Array | None], threads: int, **attributes: Any) -> ort.InferenceSession:
    node = helper.make_node(
        operator,
        [name if value is not None else "" for name, value in inputs.items()],
        ["y"],
        domain=DOMAIN,
        **attributes,
    )
    given = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), [None] * value.ndim)
        for name, value in inputs.items()
        if value is not None
    ]
    graph = helper.make_graph([node], "g", given, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    domains = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=domains, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    native.register(options)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(operator: str, inputs: dict[str, Array | None], threads: int = 2, **attributes: Any) -> Array:
    given = {name: value for name, value in inputs.items() if value is not None}
    result: Array = session(operator, inputs, threads, **attributes).run(None, given)[0]
    return result


def convolution(x: Array, w: Array, b: Array, r: Array | None = None, threads: int = 2, **told: float) -> Array:
    return run("Convolution", {"x": x, "w": w, "b": b, "r": r}, threads, **{**PLAIN, "columns": len(b), **told})


def normal(*shape: int, scale: float = 1.0) -> Array:
    rng = np.random.default_rng(sum(size * 31**axis for axis, size in enumerate(shape)))
    values: Array = (rng.standard_normal(shape) * scale).astype(np.float32)
    return values


def tensor(x: Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x))


def assert_close(found: Array, expected: torch.Tensor | Array) -> None:
    other = expected.numpy() if isinstance(expected, torch.Tensor) else expected
    assert found.shape == other.shape
    assert np.abs(found - other).max(initial=0) <= TOLERANCE * max(1.0, np.abs(other).max(initial=0))


@pytest.mark.parametrize(("frames", "depth", "columns"), [(500, 300, 96), (37, 40, 24), (1, 8, 100), (127, 600, 33)])
def test_linear_equals_pytorch_with_each_activation(bits: int, frames: int, depth: int, columns: int) -> None:
    x, w, b = normal(2, frames, depth), normal(depth, columns, scale=depth**-0.5), normal(columns)
    residual = normal(2, frames, columns)
    expected = F.linear(tensor(x), tensor(w.T), tensor(b))
    assert_close(convolution(x, pack(w), b, residual), expected + tensor(residual))
    assert_close(convolution(x, pack(w), b, activation=GELU), F.gelu(expected))
    assert_close(convolution(x, pack(w), b, activation=SILU), F.silu(expected))


def test_glu_equals_pytorch(bits: int) -> None:
    x, w, b = normal(2, 90, 48), normal(48, 96, scale=0.15), normal(96)
    weights, bias = pack_gated(w, b)
    assert_close(convolution(x, weights, bias, activation=GLU), F.glu(F.linear(tensor(x), tensor(w.T), tensor(b))))


@pytest.mark.parametrize("value", [-1e4, -30.0, -5.0, -1.0, -1e-3, 0.0, 1e-3, 1.0, 5.0, 30.0, 1e4, np.nan, np.inf])
def test_activations_hold_at_the_ends_of_their_range(bits: int, value: float) -> None:
    x, w, b = np.full((1, 1, 1), value, np.float32), pack(np.ones((1, 1), np.float32)), np.zeros(1, np.float32)
    for activation, function in ((GELU, F.gelu), (SILU, F.silu)):
        found, expected = convolution(x, w, b, activation=activation)[0, 0, 0], function(torch.tensor(value)).item()
        if np.isfinite(expected):
            assert abs(found - expected) <= 2e-6 * max(1, abs(expected))
        else:
            assert not np.isfinite(found), "a value that is not finite does not vanish"


@pytest.mark.parametrize(
    ("frames", "channels", "columns", "kernel", "stride", "left", "right"),
    [(101, 8, 12, 3, 2, 0, 0), (64, 128, 40, 7, 1, 3, 3), (333, 1, 16, 10, 5, 0, 0), (700, 32, 1, 7, 1, 3, 3),
     (2, 8, 8, 7, 1, 3, 3), (3, 4, 4, 5, 1, 0, 0)],
)  # fmt: skip
def test_convolution_equals_pytorch(
    bits: int, frames: int, channels: int, columns: int, kernel: int, stride: int, left: int, right: int
) -> None:
    x, b = normal(2, frames, channels), normal(columns)
    w = normal(columns, channels, kernel, scale=(channels * kernel) ** -0.5)
    told = {"kernel": kernel, "stride": stride, "left": left, "right": right, "slope": 0.01}
    found = convolution(x, pack_convolution(w), b, **told)
    if frames + left + right < kernel:
        assert found.shape == (2, 0, columns)
        return
    padded = F.pad(F.leaky_relu(tensor(x), 0.01).transpose(1, 2), (left, right))
    assert_close(found, F.conv1d(padded, tensor(w), tensor(b), stride=stride).transpose(1, 2))


@pytest.mark.parametrize(("groups", "kernel"), [(16, 128), (2, 3), (4, 19)])
def test_grouped_convolution_equals_pytorch(bits: int, groups: int, kernel: int) -> None:
    x, b = normal(2, 300, 64), normal(64)
    w = normal(64, 64 // groups, kernel, scale=(kernel * 64 / groups) ** -0.5)
    left, right = kernel // 2, kernel - 1 - kernel // 2
    told = {"kernel": kernel, "left": left, "right": right, "groups": groups, "activation": GELU}
    expected = F.conv1d(F.pad(tensor(x).transpose(1, 2), (left, right)), tensor(w), tensor(b), groups=groups)
    assert_close(convolution(x, pack_convolution(w, groups), b, **told), F.gelu(expected).transpose(1, 2))


@pytest.mark.parametrize(
    ("frames", "channels", "columns", "kernel", "rate"),
    [(50, 64, 40, 20, 10), (30, 24, 12, 16, 8), (170, 16, 8, 4, 2), (9, 8, 3, 5, 3), (2, 8, 3, 11, 5), (1, 8, 3, 4, 4)],
)
def test_transposed_convolution_equals_pytorch(
    bits: int, frames: int, channels: int, columns: int, kernel: int, rate: int
) -> None:
    x, b = normal(2, frames, channels), normal(columns)
    w = normal(channels, columns, kernel, scale=(channels * kernel) ** -0.5)
    weights, window = pack_transposed(w, rate)
    padding = (kernel - rate) // 2
    told = {"kernel": window, "left": window - 1, "right": window - 1, "rate": rate, "crop": padding, "slope": 0.1}
    found = convolution(x, weights, np.tile(b, rate), **told)
    activated = F.leaky_relu(tensor(x), 0.1).transpose(1, 2)
    assert_close(
        found, F.conv_transpose1d(activated, tensor(w), tensor(b), stride=rate, padding=padding).transpose(1, 2)
    )


class Blocks:
    """Residual blocks with random weights, as an operator has them and as PyTorch has them."""

    def __init__(
        self,
        channels: int,
        kernels: tuple[int, ...],
        dilations: tuple[int, ...],
        *,
        plain: bool,
        operator: str = WINOGRAD,
    ) -> None:
        self.kernels, self.dilations, self.plain, self.operator = kernels, dilations, plain, operator
        self.layers: list[list[tuple[Array, Array, int]]] = []
        weights, biases = [], []
        for kernel in kernels:
            layers = []
            for index, dilation in enumerate(each for d in dilations for each in ((d, 1) if plain else (d,))):
                w = normal(channels, channels, kernel, scale=(channels * kernel) ** -0.5) * (1 if index % 2 else -1)
                b = normal(channels, index + 1, scale=0.1)[:, 0]
                layers.append((w, b, dilation))
                weights.append((pack_winograd if operator == WINOGRAD else pack_convolution)(w).reshape(-1))
                biases.append(np.pad(b, (0, -channels % PANEL)))
            self.layers.append(layers)
        self.weights, self.biases = np.concatenate(weights), np.stack(biases)

    def run(self, x: Array, threads: int = 2) -> Array:
        return run(
            self.operator, {"x": x, "w": self.weights, "b": self.biases}, threads,
            kernels=self.kernels, dilations=self.dilations * len(self.kernels), plain=int(self.plain), slope=0.1,
        )  # fmt: skip

    def expected(self, x: Array) -> torch.Tensor:
        total = torch.zeros(())
        for layers in self.layers:
            current = tensor(x).transpose(1, 2)
            for index in range(0, len(layers), 1 + self.plain):
                y = current
                for w, b, dilation in layers[index : index + 1 + self.plain]:
                    padding = (w.shape[2] - 1) * dilation // 2
                    y = F.conv1d(F.leaky_relu(y, 0.1), tensor(w), tensor(b), dilation=dilation, padding=padding)
                current = current + y
            total = total + current
        return total.transpose(1, 2)


@pytest.mark.parametrize(
    ("channels", "frames", "kernels", "dilations", "plain"),
    [(32, 900, (3, 7, 11), (1, 3, 5), True), (64, 5000, (3, 7, 11), (1, 3, 5), True),
     (12, 333, (3, 5, 9), (1, 2), True),
     (256, 600, (3, 7, 11), (1, 3, 5), True), (40, 70, (13,), (9,), True), (32, 1, (3, 7, 11), (1, 3, 5), True),
     (32, 513, (3, 5, 7), (1, 3), False), (48, 2200, (31,), (17, 1), False)],
)  # fmt: skip
def test_residual_blocks_equal_pytorch(
    bits: int, channels: int, frames: int, kernels: tuple[int, ...], dilations: tuple[int, ...], plain: bool
) -> None:
    blocks, x = Blocks(channels, kernels, dilations, plain=plain), normal(2, frames, channels)
    assert_close(blocks.run(x), blocks.expected(x))


@pytest.mark.parametrize("width", [*range(1, 50), 55, 63, 64, 65, 80, 95, 100, 112, 144, 300])
def test_residual_blocks_equal_pytorch_at_every_width(bits: int, width: int) -> None:
    """Register tiles of every size and panels filled to every degree, by the operator that the width gets."""
    for plain in (True, False):
        blocks = Blocks(width, (3, 7), (1, 3), plain=plain, operator=blocks_operator(width))
        x = normal(2, 211, width)
        assert_close(blocks.run(x), blocks.expected(x))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([DIRECT, WINOGRAD]), st.integers(1, 40), st.integers(1, 700), st.booleans(),
    st.lists(st.sampled_from([3, 5, 7, 9, 11, 15]), min_size=1, max_size=3),
    st.lists(st.integers(1, 9), min_size=1, max_size=3),
)  # fmt: skip
def test_either_operator_for_residual_blocks_equals_pytorch(
    bits: int, operator: str, width: int, frames: int, plain: bool, kernels: list[int], dilations: list[int]
) -> None:
    blocks = Blocks(width, tuple(kernels), tuple(dilations), plain=plain, operator=operator)
    x = normal(1, frames, width)
    assert_close(blocks.run(x), blocks.expected(x))


def test_residual_blocks_are_direct_where_winograds_method_would_fill_up_with_zeros() -> None:
    direct = {width for width in range(1, 513) if blocks_operator(width) == DIRECT}
    assert direct == {*range(1, 13), *range(17, 25), *range(33, 37)}


def test_every_stage_of_a_vocoder_has_the_operator_of_its_width(artifacts: Artifacts) -> None:
    graph = onnx.load(artifacts.model / native_file(VOCODER_FILE), load_external_data=False).graph
    found = [node.op_type for node in graph.node if "Blocks" in node.op_type]
    widths = [32 >> stage for stage in (1, 2, 3, 4)]
    assert found == [blocks_operator(width) for width in widths] == [WINOGRAD, DIRECT, DIRECT, DIRECT]


@pytest.mark.parametrize("width", [16, 48, 80])
def test_residual_blocks_filled_up_to_whole_panels_still_run(bits: int, width: int) -> None:
    """As exporters wrote them at first."""
    blocks, x = Blocks(width, (3, 7), (1, 3), plain=True), normal(1, 200, width)
    filled = -(-width // PANEL) * PANEL
    wide = np.concatenate(
        [
            pack_winograd(np.pad(w, ((0, filled - width), (0, filled - width), (0, 0)))).reshape(-1)
            for layers in blocks.layers
            for w, _, _ in layers
        ]
    )
    assert wide.size > blocks.weights.size
    blocks.weights = wide
    assert_close(blocks.run(x), blocks.expected(x))


def test_narrow_results_have_the_same_bits_however_they_are_cut(bits: int) -> None:
    for width in (2, 5, 12, 23):
        blocks, x = Blocks(width, (3, 7, 11), (1, 3, 5), plain=True, operator=DIRECT), normal(1, 30000, width)
        whole = blocks.run(x)
        assert np.array_equal(blocks.run(x, threads=1), whole)
        # 60 frames of receptive field
        assert np.array_equal(blocks.run(x[:, :9001])[:, :8941], whole[:, :8941])
        assert np.array_equal(blocks.run(np.concatenate([x, x])), np.concatenate([whole, whole]))
    x, w, b = normal(1, 30000, 24), pack_convolution(normal(3, 24, 7)), normal(3)
    whole = convolution(x, w, b, kernel=7, left=3, right=3, threads=1)
    assert np.array_equal(convolution(x, w, b, kernel=7, left=3, right=3), whole)
    assert np.array_equal(convolution(x[:, 100:20001], w, b, kernel=7), whole[:, 103:19998])


@pytest.mark.parametrize("columns", [*range(1, 18), 32])
def test_convolutions_to_few_columns_equal_pytorch(bits: int, columns: int) -> None:
    for frames, channels, kernel in ((700, 32, 7), (9, 3, 5), (1, 5, 3), (260, 1, 10)):
        x, b = normal(2, frames, channels), normal(columns)
        w = normal(columns, channels, kernel, scale=(channels * kernel) ** -0.5)
        left, right = kernel // 2, kernel - kernel // 2
        told = {"kernel": kernel, "left": left, "right": right, "slope": 0.1}
        padded = F.pad(F.leaky_relu(tensor(x), 0.1).transpose(1, 2), (left, right))
        expected = F.conv1d(padded, tensor(w), tensor(b)).transpose(1, 2)
        assert_close(convolution(x, pack_convolution(w), b, **told), expected)
        assert_close(convolution(x, pack_convolution(w), b, activation=SILU, **told), F.silu(expected))


@pytest.mark.parametrize(
    ("columns", "rate"), [(1, 2), (1, 5), (2, 2), (2, 8), (3, 4), (4, 2), (7, 2), (5, 3), (16, 10)]
)
def test_narrow_transposed_convolutions_equal_pytorch(bits: int, columns: int, rate: int) -> None:
    for frames, extra in ((170, rate), (1, rate), (2, 3 * rate), (401, 2)):
        channels, kernel = 2 * columns, rate + extra
        x, b = normal(2, frames, channels), normal(columns)
        w = normal(channels, columns, kernel, scale=(channels * kernel) ** -0.5)
        weights, window = pack_transposed(w, rate)
        padding = (kernel - rate) // 2
        told = {"kernel": window, "left": window - 1, "right": window - 1, "rate": rate, "crop": padding, "slope": 0.1}
        found = convolution(x, weights, np.tile(b, rate), **told)
        activated = F.leaky_relu(tensor(x), 0.1).transpose(1, 2)
        expected = F.conv_transpose1d(activated, tensor(w), tensor(b), stride=rate, padding=padding)
        assert_close(found, expected.transpose(1, 2)[:, : found.shape[1]])
        assert found.shape[1] == frames * rate


@pytest.mark.parametrize("kernel", [3, 7, 11])
def test_rounding_is_a_few_times_that_of_plain_sums(bits: int, kernel: int) -> None:
    """The points were chosen for it: others give tens of times as much."""
    blocks, x = Blocks(64, (kernel,), (1,), plain=False), normal(1, 2000, 64)
    ((w, b, _),) = blocks.layers[0]
    double = tensor(x).double().transpose(1, 2)
    exact = double + F.conv1d(F.leaky_relu(double, 0.1), tensor(w).double(), tensor(b).double(), padding=kernel // 2)
    plain, ours = (
        float((found.double() - exact.transpose(1, 2)).square().mean().sqrt())
        for found in (blocks.expected(x), tensor(blocks.run(x)))
    )
    assert ours <= 6 * plain


def test_residual_blocks_give_the_same_bits_however_they_are_cut(bits: int) -> None:
    blocks, x = Blocks(32, (3, 7, 11), (1, 3, 5), plain=True), normal(1, 20000, 32)
    whole = blocks.run(x)
    assert np.array_equal(blocks.run(x, threads=1), whole)
    # 60 frames of receptive field, 43 more to the end of the last tiles that lie in it: kernels/cpu/winograd-inl.hpp.
    assert np.array_equal(blocks.run(x[:, :9000])[:, :8880], whole[:, :8880])
    assert np.array_equal(blocks.run(np.concatenate([x, x])), np.concatenate([whole, whole]))


@pytest.mark.parametrize(("depth", "columns"), [(600, 200), (100, 200), (100, 300)])
def test_a_row_has_the_same_bits_in_any_company(bits: int, depth: int, columns: int) -> None:
    """Whether its input is packed beforehand or not."""
    x, w, b = normal(1, 700, depth), pack(normal(depth, columns, scale=0.04)), normal(columns)
    whole = convolution(x, w, b, threads=1)
    for first, last in ((0, 700), (0, 1), (699, 700), (100, 131), (13, 500)):
        assert np.array_equal(convolution(x[:, first:last], w, b), whole[:, first:last])


def test_a_window_has_the_same_bits_near_the_ends_of_the_input(bits: int) -> None:
    """Windows of a block that reaches past the ends are packed; others are read where they lie."""
    x, w, b = normal(1, 400, 40), pack_convolution(normal(48, 40, 5, scale=0.07)), normal(48)
    whole = convolution(x, w, b, kernel=5, left=2, right=2)
    assert np.array_equal(convolution(x[:, 7:393], w, b, kernel=5), whole[:, 9:391])
    assert np.array_equal(convolution(x[:, 120:260], w, b, kernel=5, left=2, right=2)[:, 2:-2], whole[:, 122:258])


@pytest.mark.parametrize(
    ("batch", "frames", "heads", "width"), [(2, 500, 4, 64), (1, 33, 2, 20), (1, 1, 1, 8), (1, 70, 3, 33)]
)
@pytest.mark.parametrize("positions", [None, "table", "gated"])
def test_attention_equals_pytorch(
    bits: int, batch: int, frames: int, heads: int, width: int, positions: str | None
) -> None:
    dim, reach = heads * width, 30
    projected, mask = normal(batch, frames, 3 * dim, scale=width**-0.25), np.zeros((batch, frames), np.float32)
    mask[-1, frames // 2 + 1 :] = -30000
    table, gate = normal(heads, 2 * reach + 1), normal(batch, heads, frames)
    query, key, value = (
        tensor(part.reshape(batch, frames, heads, width)).transpose(1, 2) for part in np.split(projected, 3, -1)
    )
    scores = query @ key.transpose(2, 3) + tensor(mask[:, None, None])
    if positions:
        distances = np.arange(frames)[None] - np.arange(frames)[:, None]
        bias = tensor(table[:, np.clip(distances, -reach, reach) + reach])
        scores = scores + (tensor(gate[..., None]) * bias if positions == "gated" else bias)
    expected = (torch.softmax(scores, -1) @ value).transpose(1, 2).reshape(batch, frames, dim)
    inputs = {"q": projected, "m": mask, "t": table if positions else None, "g": gate if positions == "gated" else None}
    assert_close(run("Attention", inputs, heads=heads), expected)


@pytest.mark.parametrize(("frames", "channels", "kernel"), [(77, 40, 3), (1, 16, 31), (200, 7, 5)])
def test_depthwise_convolution_equals_pytorch(bits: int, frames: int, channels: int, kernel: int) -> None:
    x, w, b = normal(2, frames, channels), normal(channels, 1, kernel), normal(channels)
    found = run("Depthwise", {"x": x, "w": np.ascontiguousarray(w[:, 0].T), "b": b})
    y = F.conv1d(tensor(x).transpose(1, 2), tensor(w), tensor(b), padding=kernel // 2, groups=channels)
    assert_close(found, F.silu(y).transpose(1, 2))


@pytest.mark.parametrize("taps", [3, 4])
def test_points_are_a_convolution_exactly(taps: int) -> None:
    inputs, outputs = inputs_and_outputs(taps)
    weights = evaluation(taps)
    # outputs[i] . (weights[:, tap] * inputs[:, j]) is 1 where j = i + tap, else 0
    product = np.einsum("ip,pt,pj->itj", outputs, weights, inputs)
    expected = np.zeros_like(product)
    for sample in range(OUTPUTS):
        for tap in range(taps):
            expected[sample, tap, sample + tap] = 1
    assert np.abs(product - expected).max() < 1e-13


@pytest.mark.parametrize("taps", [3, 4])
def test_the_operators_have_the_points_of_the_packing(taps: int) -> None:
    text = (SOURCE / "winograd-inl.hpp").read_text()
    said = text[text.index(f"struct Points<{taps}>") :]
    for name, matrix in zip(("kInput", "kOutput"), inputs_and_outputs(taps), strict=True):
        body = said[said.index(name) : said.index("};", said.index(name))]
        found = [float(number) for number in re.findall(r"(-?[\d.]+)f", body)]
        assert found == matrix.reshape(-1).tolist()


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes", "words"),
    [
        ("Convolution", {"x": (1, 9, 8), "w": (1, 7, 32), "b": (4,)}, {"columns": 4}, "weights of another size"),
        ("Convolution", {"x": (1, 9, 8), "w": (2, 8, 32), "b": (4,)}, {"columns": 4}, "weights of another size"),
        ("Convolution", {"x": (1, 9, 8), "w": (1, 8, 32), "b": (5,)}, {"columns": 4}, "bias of another size"),
        ("Convolution", {"x": (9, 8), "w": (1, 8, 32), "b": (4,)}, {"columns": 4}, "input is not"),
        ("Convolution", {"x": (1, 9, 8), "w": (1, 8, 32), "b": (4,), "r": (1, 8, 4)}, {"columns": 4}, "residual"),
        ("Convolution", {"x": (1, 9, 8), "w": (1, 8, 32), "b": (4,)}, {"columns": 4, "rate": 2, "crop": 1}, "crop"),
        ("Convolution", {"x": (1, 9, 8), "w": (1, 8, 32), "b": (4,)}, {"columns": 4, "stride": 0}, "stride"),
        ("Convolution", {"x": (1, 9, 8), "w": (1, 8, 32), "b": (4,)}, {"columns": -4}, "columns"),
        ("Convolution", {"x": (1, 9, 8), "w": (1, 8, 32), "b": (4,)}, {"columns": 4, "activation": 9}, "activation"),
        ("Convolution", {"x": (1, 9, 8), "w": (1, 8, 32), "b": (4,)}, {"columns": 4, "activation": GLU}, "GLU"),
        ("ResidualBlocks", {"x": (1, 9, 8), "w": (9,), "b": (2, 32)}, {}, "weights of another size"),
        ("ResidualBlocks", {"x": (1, 9, 8), "w": (6143,), "b": (2, 32)}, {}, "weights of another size"),
        ("ResidualBlocks", {"x": (1, 9, 8), "w": (6144,), "b": (3, 32)}, {}, "biases of another size"),
        ("ResidualBlocks", {"x": (1, 9, 8), "w": (12288,), "b": (3, 32)}, {}, "biases of another size"),
        ("ResidualBlocks", {"x": (1, 9, 8), "w": (12288,), "b": (2, 32)}, {"kernels": [4]}, "kernels"),
        ("ResidualBlocks", {"x": (1, 9, 8), "w": (12288,), "b": (2, 32)}, {"kernels": [3, 3]}, "dilations"),
        ("ResidualBlocks", {"x": (1, 9, 8), "w": (12288,), "b": (2, 32)}, {"dilations": [1 << 40]}, "dilations"),
        ("ResidualBlocks", {"x": (1, 9, 8), "w": (12288,), "b": (2, 32)}, {"dilations": [1] * 17}, "dilations"),
        ("DirectBlocks", {"x": (1, 9, 8), "w": (1536,), "b": (3, 32)}, {}, "biases of another size"),
        ("DirectBlocks", {"x": (1, 9, 8), "w": (1535,), "b": (2, 32)}, {}, "weights of another size"),
        ("DirectBlocks", {"x": (1, 9, 8), "w": (1536,), "b": (2, 32)}, {"kernels": [4]}, "kernels"),
        ("Attention", {"q": (1, 9, 25), "m": (1, 9)}, {"heads": 2}, "queries"),
        ("Attention", {"q": (1, 9, 24), "m": (1, 8)}, {"heads": 2}, "mask"),
        ("Attention", {"q": (1, 9, 24), "m": (1, 9), "t": (1, 5)}, {"heads": 2}, "table"),
        ("Attention", {"q": (1, 9, 24), "m": (1, 9), "t": (2, 5), "g": (1, 2, 8)}, {"heads": 2}, "gate"),
        ("Attention", {"q": (1, 9, 24), "m": (1, 9)}, {"heads": 0}, "heads"),
        ("Depthwise", {"x": (1, 9, 8), "w": (3, 7), "b": (8,)}, {}, "weights of another size"),
        ("Depthwise", {"x": (1, 9, 8), "w": (2, 8), "b": (8,)}, {}, "weights of another size"),
        ("Depthwise", {"x": (1, 9, 8), "w": (3, 8), "b": (7,)}, {}, "bias of another size"),
    ],
)  # fmt: skip
def test_sizes_that_do_not_fit_are_an_error_and_no_crash(
    operator: str, inputs: dict[str, tuple[int, ...]], attributes: dict[str, Any], words: str
) -> None:
    defaults: dict[str, dict[str, Any]] = {
        "Convolution": {**PLAIN, "columns": 4},
        "ResidualBlocks": {"kernels": [3], "dilations": [1], "plain": 1, "slope": 0.1},
        "DirectBlocks": {"kernels": [3], "dilations": [1], "plain": 1, "slope": 0.1},
    }
    values: dict[str, Array | None] = {name: np.zeros(shape, np.float32) for name, shape in inputs.items()}
    with pytest.raises(Exception, match=words):
        run(operator, values, **{**defaults.get(operator, {}), **attributes})


def test_no_frames_give_no_frames() -> None:
    blocks = Blocks(8, (3,), (1,), plain=True)
    assert blocks.run(np.zeros((1, 0, 8), np.float32)).shape == (1, 0, 8)
    assert blocks.run(np.zeros((0, 9, 8), np.float32)).shape == (0, 9, 8)
    assert convolution(np.zeros((1, 0, 8), np.float32), pack(normal(8, 4)), normal(4)).shape == (1, 0, 4)
    nothing = {"q": np.zeros((1, 0, 24), np.float32), "m": np.zeros((1, 0), np.float32)}
    assert run("Attention", nothing, heads=2).shape == (1, 0, 8)


@pytest.fixture(scope="module")
def noise() -> Array:
    return normal(40000, scale=0.1)


def test_native_graphs_equal_onnx_runtimes_own(
    artifacts: Artifacts, noise: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "native operators (AVX" in operators_used(artifacts.model, "fp32")
    found = Anonymizer.load(artifacts.model, artifacts.bank).anonymize(noise, mode="frame", seed=1, utterance_id="u")
    monkeypatch.setattr(cpu_sessions, "native_library", lambda: None)
    assert operators_used(artifacts.model, "fp32").startswith("no native operators (not built")
    own = Anonymizer.load(artifacts.model, artifacts.bank).anonymize(noise, mode="frame", seed=1, utterance_id="u")
    assert np.array_equal(found.cluster_ids, own.cluster_ids)
    assert np.abs(found.waveform - own.waveform).max() <= 1e-5


def test_the_whole_pass_gives_the_same_bits_with_any_number_of_threads(artifacts: Artifacts, noise: Array) -> None:
    first, *others = (
        Anonymizer.load(artifacts.model, artifacts.bank, threads=threads).anonymize(
            noise, mode="frame", seed=1, utterance_id="u"
        )
        for threads in (1, 2, 5)
    )
    for other in others:
        assert np.array_equal(first.waveform, other.waveform)


def test_a_model_without_native_graphs_runs_and_says_so(artifacts: Artifacts, noise: Array, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(artifacts.model, model, ignore=shutil.ignore_patterns("*.native.*"))
    signed(model)
    assert operators_used(model, "fp32") == (
        "no native operators (the model was exported where there were none; export it again)"
    )
    assert Anonymizer.load(model, artifacts.bank).encode(noise).shape[0] == 124
    (path,) = (artifacts.model / native_file(VOCODER_FILE),)
    shutil.copy(path, model)
    shutil.copy(path.with_suffix(".bin"), model)
    assert re.fullmatch(r"native operators \(AVX.*\) in vocoder", operators_used(model, "fp32"))


@pytest.mark.parametrize("file", [WAVLM_FILE, CONFORMER_FILE, VOCODER_FILE])
@pytest.mark.parametrize("damage", ["no weights", "short weights", "no graph"])
def test_damaged_native_graphs_are_refused(artifacts: Artifacts, tmp_path: Path, file: str, damage: str) -> None:
    model = tmp_path / "model"
    shutil.copytree(artifacts.model, model)
    graph = model / native_file(file)
    weights = graph.with_suffix(".bin")
    if damage == "no weights":
        weights.unlink()
    elif damage == "short weights":
        weights.write_bytes(weights.read_bytes()[:-5000])
    else:
        graph.write_bytes(b"not a graph")
    signed(model)
    with pytest.raises(ArtifactError, match=re.escape(f"{graph}: not a usable graph")):
        Anonymizer.load(model, artifacts.bank)


def test_a_native_graph_whose_sizes_do_not_fit_is_refused_when_it_runs(
    artifacts: Artifacts, noise: Array, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(artifacts.model, model)
    graph = onnx.load(model / native_file(CONFORMER_FILE), load_external_data=False)
    first = next(node for node in graph.graph.node if node.op_type == "Convolution")
    next(attribute for attribute in first.attribute if attribute.name == "columns").i += 32
    onnx.save(graph, model / native_file(CONFORMER_FILE))
    signed(model)
    anonymizer = Anonymizer.load(model, artifacts.bank)
    with pytest.raises(ArtifactError, match=r"conformer\.native\.onnx: not a usable graph .* weights of another size"):
        anonymizer.anonymize(noise, mode="frame", seed=1)


def test_an_empty_optional_input_is_not_an_absent_one() -> None:
    """ONNX Runtime hands neither a pointer."""
    weights, bias, empty = pack(normal(8, 4)), normal(4), helper.make_tensor("r", TensorProto.FLOAT, (0,), [])
    node = helper.make_node("Convolution", ["x", "w", "b", "r"], ["y"], domain=DOMAIN, **PLAIN, columns=4)
    given = [("x", (1, 9, 8)), ("w", weights.shape), ("b", bias.shape)]
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in given],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [empty],
    )
    domains = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    options = ort.SessionOptions()
    options.log_severity_level = 4
    native.register(options)
    model = helper.make_model(graph, opset_imports=domains, ir_version=10).SerializeToString()
    opened = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    with pytest.raises(Exception, match="residual of another size"):
        opened.run(None, {"x": normal(1, 9, 8), "w": weights, "b": bias})


def test_sizes_of_empty_tensors_cost_nothing() -> None:
    """What has no elements may claim any sizes."""
    x = np.zeros((1 << 20, 0, 8), np.float32)
    assert convolution(x, pack(normal(8, 4)), normal(4), left=4, right=4, kernel=1, rate=2).shape == (1 << 20, 0, 2)
    wide = np.zeros((1 << 20, 1 << 10, 0), np.float32)
    nothing = np.zeros(0, np.float32)
    assert run("Depthwise", {"x": wide, "w": np.zeros((3, 0), np.float32), "b": nothing}).shape == wide.shape


def test_a_library_that_does_not_load_is_none_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "_cpu.so").write_bytes(b"not a library")
    monkeypatch.setattr(native, "__file__", str(tmp_path / "loader.py"))
    native_library.cache_clear()
    try:
        assert native_library() is None
    finally:
        native_library.cache_clear()
