"""WavLM, conformer and vocoder as graphs of the native operators (``kernels/cpu``), with weights in their order.

The same sums as the other graphs; only the operators differ. All sequences are (batch, frames, channels).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnx
from onnx import TensorProto, helper
from torch.nn import LayerNorm

from mkc_fast.export.graphs.builder import IR_VERSION, GraphBuilder, Values, domains, matrix, numpy_of, values_of
from mkc_fast.export.graphs.packing import (
    HALF_PANEL,
    PANEL,
    in_whole,
    pack,
    pack_convolution,
    pack_gated,
    pack_transposed,
    pack_winograd,
)
from mkc_fast.export.networks.hifigan import LAST_SLOPE, SLOPE
from mkc_fast.export.networks.layers import Linear
from mkc_fast.kernels.cpu.loader import DOMAIN

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from mkc_fast.export.networks.conformer import Conformer, ConformerLayer
    from mkc_fast.export.networks.hifigan import Conv, HifiGan, ResBlock, Stage
    from mkc_fast.export.networks.layers import SelfAttention
    from mkc_fast.export.networks.wavlm import ConvLayer, EncoderLayer, PositionGate, WavLM

# Larger weights lie in a file beside the graph, each at the start of a page: ONNX Runtime maps them from there.
_LEAST_EXTERNAL_BYTES, _PAGE = 1024, 4096
# As kernels/cpu/shapes.hpp numbers them.
_NONE, _GELU, _SILU, _GLU = range(4)
_FLOAT = 32
# The operators for residual blocks; the second has a form in whole numbers of 16 bits.
DIRECT, WINOGRAD = "DirectBlocks", "ResidualBlocks"
# As kernels/cpu/library.cpp limits them.
_MOST_TAPS, _MOST_DILATION, _MOST_PAIRS_OF_A_BLOCK, _MOST_PAIRS = 31, 64, 16, 64


class _Builder(GraphBuilder):
    """A graph of the native operators under construction.

    ``bits`` are those of the weights and inputs of products: 32 (float32), 16 (whole numbers), or 8 (whole numbers of 8
    bits in linear layers and of 16 elsewhere).
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def convolution(
        self, x: str, weights: NDArray[np.float32], bias: NDArray[np.float32], residual: str = "", **told: Any
    ) -> str:
        """Windows of ``x`` times packed weights (``mkc_fast.export.graphs.packing``)."""
        attributes: dict[str, Any] = {
            "kernel": 1, "stride": 1, "left": 0, "right": 0, "groups": 1, "rate": 1, "crop": 0, "activation": _NONE,
            "columns": bias.shape[0], "slope": 1.0,
        }  # fmt: skip
        attributes.update(told)
        channels, columns = weights.shape[1] // attributes["kernel"], bias.shape[0] // attributes["groups"]
        bits = self.bits if attributes["kernel"] == 1 else max(self.bits, 16)
        if bits == _FLOAT or channels % HALF_PANEL or columns < HALF_PANEL:
            # Of few channels or columns, in which whole numbers do not pay.
            inputs = [x, self.weight(weights), self.weight(bias)]
            return self.add("Convolution", *inputs, *[residual] * bool(residual), domain=DOMAIN, **attributes)
        values, scales, offsets = in_whole(weights, channels, bits)
        inputs = [x, self.weight(values), self.weight(bias), self.weight(scales)]
        if bits == 8:
            inputs.append(self.weight(offsets))
        return self.add(f"Convolution{bits}", *inputs, *[residual] * bool(residual), domain=DOMAIN, **attributes)

    def linear(self, x: str, linear: Linear, residual: str = "", activation: int = _NONE) -> str:
        weight, bias = matrix(linear)
        return self.convolution(x, pack(weight), bias, residual, activation=activation)

    def attention(self, x: str, attention: SelfAttention, mask: str, residual: str, *positions: str) -> str:
        """Self-attention of ``x`` with a mask (B, T) on keys and, for WavLM, a table of positions and its gate."""
        projected = self.linear(x, attention.qkv)
        mixed = self.add("Attention", projected, mask, *positions, domain=DOMAIN, heads=attention.num_heads)
        return self.linear(mixed, attention.out, residual)

    def save(
        self, path: Path, inputs: Values, result: str, output: str,
        axes: Sequence[str | int],
    ) -> None:  # fmt: skip
        """Write the graph, and its weights beside it."""
        self.name_output(result, output)
        data = path.with_suffix(".bin")
        initializers = []
        with data.open("wb") as file:
            for name, values in self.weights:
                kind = helper.np_dtype_to_tensor_dtype(values.dtype)
                if values.nbytes < _LEAST_EXTERNAL_BYTES:
                    initializers.append(onnx.numpy_helper.from_array(values, name))
                    continue
                file.seek(-(-file.tell() // _PAGE) * _PAGE)
                tensor = TensorProto(name=name, data_type=kind, dims=values.shape, data_location=TensorProto.EXTERNAL)
                place = {"location": data.name, "offset": file.tell(), "length": values.nbytes}
                for key, value in place.items():
                    tensor.external_data.add(key=key, value=str(value))
                values.tofile(file)
                initializers.append(tensor)
        graph = helper.make_graph(
            self.nodes,
            path.stem,
            values_of(inputs),
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, list(axes))],
            initializers,
        )
        model = helper.make_model(
            graph, opset_imports=domains({DOMAIN: 1}), ir_version=IR_VERSION, producer_name="mkc-fast"
        )
        onnx.save(model, path)


def write_conformer(path: Path, module: Conformer, bits: int = _FLOAT) -> bool:
    """Write the conformer, if it is of a form that the operators take; returns whether."""
    layers = cast("list[ConformerLayer]", list(module.layers))
    dims = [layer.final_norm.normalized_shape[0] for layer in layers]
    # A panel holds 16 columns and what gates them; a vocoder alone has no layers.
    if not dims or dims[0] % (PANEL // 2):
        return False
    build = _Builder(bits)
    valid = build.first_frames("lengths", build.frames("features"))
    mask, keep = build.key_mask(valid), build.keep(valid)
    x = "features"
    for layer in layers:
        x = _conformer_layer(build, layer, x, mask, keep)
    axes: tuple[str | int, ...] = ("batch", "frames", dims[0])
    build.save(path, {"features": (np.float32, axes), "lengths": (np.int64, ("batch",))}, x, "restored", axes)
    return True


def _conformer_layer(build: _Builder, layer: ConformerLayer, x: str, mask: str, keep: str) -> str:
    x = _feed_forward(build, x, layer.ffn1.norm, layer.ffn1.fc1, layer.ffn1.fc2, _SILU)
    x = build.attention(build.layer_norm(x, layer.attention_norm), layer.attention, mask, x)
    module = layer.convolution
    expand, bias = pack_gated(*matrix(module.expand))
    inner = build.convolution(build.layer_norm(x, module.norm), expand, bias, activation=_GLU)
    weights, bias = numpy_of(module.weight)[:, 0].T, numpy_of(module.bias)
    inner = build.add("Mul", inner, keep)
    inner = build.add("Depthwise", inner, build.weight(weights), build.weight(bias), domain=DOMAIN)
    x = build.linear(inner, module.reduce, x)
    x = _feed_forward(build, x, layer.ffn2.norm, layer.ffn2.fc1, layer.ffn2.fc2, _SILU)
    return build.layer_norm(x, layer.final_norm)


def _feed_forward(build: _Builder, x: str, norm: torch.nn.LayerNorm, fc1: Linear, fc2: Linear, activation: int) -> str:
    return build.linear(build.linear(build.layer_norm(x, norm), fc1, activation=activation), fc2, x)


def write_wavlm(path: Path, module: WavLM, bits: int = _FLOAT) -> bool:
    """Write WavLM; returns that it did."""
    build = _Builder(bits)
    x = build.add("Unsqueeze", "waveform", build.axes(2))
    for conv in cast("list[ConvLayer]", list(module.convs)):
        kernel = conv.weight.shape[2]
        activation = _NONE if conv.norm or conv.time_norm else _GELU
        bias = np.zeros(conv.weight.shape[0], np.float32) if conv.bias is None else numpy_of(conv.bias)
        weights = pack_convolution(numpy_of(conv.weight))
        x = build.convolution(x, weights, bias, kernel=kernel, stride=conv.stride, activation=activation)
        if conv.norm is not None:
            x = build.layer_norm(x, conv.norm)
        if conv.time_norm is not None:
            x = build.time_norm(
                x, conv.time_norm, build.keep(build.covered("lengths", build.frames(x), conv.stride, kernel))
            )
        if activation == _NONE:
            x = build.add("Gelu", x)
    x = build.layer_norm(x, module.feature_norm)
    if isinstance(module.projection, Linear):
        x = build.linear(x, module.projection)
    valid = build.covered("lengths", build.frames(x), module.config.hop, module.config.min_samples)
    mask = build.key_mask(valid)
    x = build.add("Mul", x, build.keep(valid))
    position = module.position
    left, right = position.pad
    weights, groups = numpy_of(position.weight), position.groups
    told = {"kernel": weights.shape[2], "left": left, "right": right, "groups": groups, "activation": _GELU}
    # The activation comes before the addition, so this is no residual.
    x = build.add("Add", x, build.convolution(x, pack_convolution(weights, groups), numpy_of(position.bias), **told))
    if isinstance(module.input_norm, LayerNorm):
        x = build.layer_norm(x, module.input_norm)
    table = "" if module.bias is None else build.weight(numpy_of(module.bias.table))
    for layer in cast("list[EncoderLayer]", list(module.layers)):
        x = _encoder_layer(build, layer, x, table, mask)
    inputs: Values = {"waveform": (np.float32, ("batch", "samples")), "lengths": (np.int64, ("batch",))}
    build.save(path, inputs, x, "features", ("batch", "frames", module.config.dim))
    return True


def _encoder_layer(build: _Builder, layer: EncoderLayer, x: str, table: str, mask: str) -> str:
    attended = build.layer_norm(x, layer.attention_norm) if layer.norm_first else x
    positions: tuple[str, ...] = ()
    if table:
        positions = (table,) if layer.gate is None else (table, _gate(build, layer.gate, attended))
    y = build.attention(attended, layer.attention, mask, x, *positions)
    if layer.norm_first:
        inner = build.linear(build.layer_norm(y, layer.final_norm), layer.fc1, activation=_GELU)
        return build.linear(inner, layer.fc2, y)
    y = build.layer_norm(y, layer.attention_norm)
    y = build.linear(build.linear(y, layer.fc1, activation=_GELU), layer.fc2, y)
    return build.layer_norm(y, layer.final_norm)


def _gate(build: _Builder, gate: PositionGate, x: str) -> str:
    """(B, H, T) of (B, T, D)."""
    shape = build.constant((0, 0, gate.num_heads, gate.head_dim), np.int64)
    weight, bias = matrix(gate.linear)
    product = build.add("MatMul", build.add("Reshape", x, shape), build.weight(weight))
    both = build.add("Sigmoid", build.add("Add", product, build.weight(bias)))
    both = build.add("Transpose", both, perm=(0, 2, 1, 3))
    first, second = (
        build.add("Squeeze", build.add("Slice", both, build.axes(k), build.axes(k + 1), build.axes(3)), build.axes(3))
        for k in (0, 1)
    )
    scaled = build.add("Mul", second, build.weight(numpy_of(gate.scale).reshape(-1, 1)))
    reduced = build.add("Sub", scaled, build.constant(1.0, np.float32))
    return build.add("Add", build.add("Mul", first, reduced), build.constant(2.0, np.float32))


def _takes(module: HifiGan) -> bool:
    """Whether every stage gives whole frames, and its blocks are as the operator wants them."""
    for stage in cast("list[Stage]", list(module.stages)):
        blocks = cast("list[ResBlock]", list(stage.blocks))
        if len({(len(block.dilated), len(block.plain)) for block in blocks}) != 1 or not len(blocks[0].dilated):
            return False
        dilations, kernels = _dilations(blocks), _kernels(blocks)
        if len(dilations) > _MOST_PAIRS or len(blocks[0].dilated) > _MOST_PAIRS_OF_A_BLOCK:
            return False
        if max(dilations) > _MOST_DILATION or any(k % 2 == 0 or not 3 <= k <= _MOST_TAPS for k in kernels):
            return False
    return not module.overshoots()


def _dilations(blocks: Sequence[ResBlock]) -> list[int]:
    return [conv.dilation for block in blocks for conv in cast("list[Conv]", list(block.dilated))]


def _kernels(blocks: Sequence[ResBlock]) -> list[int]:
    return [cast("Conv", block.dilated[0]).weight.shape[2] for block in blocks]


def write_hifigan(path: Path, module: HifiGan, bits: int = _FLOAT) -> bool:
    """Write the vocoder, if it is of a form that the operators take; returns whether."""
    if not _takes(module):
        return False
    build = _Builder(bits)
    x = build.linear("features", module.lin_pre)
    x = _keeping_length(build, x, module.conv_pre)
    for stage in cast("list[Stage]", list(module.stages)):
        packed, window = pack_transposed(numpy_of(stage.weight), stage.rate)
        x = build.convolution(
            x,
            packed,
            np.tile(numpy_of(stage.bias), stage.rate),
            kernel=window,
            left=window - 1,
            right=window - 1,
            rate=stage.rate,
            crop=(stage.kernel - stage.rate) // 2,
            slope=SLOPE,
        )
        x = _residual_blocks(build, x, cast("list[ResBlock]", list(stage.blocks)))
    x = build.add("Tanh", _keeping_length(build, x, module.conv_post, LAST_SLOPE))
    waveform = build.add("Squeeze", x, build.axes(2))
    dim = module.lin_pre.weight.shape[0]
    build.save(path, {"features": (np.float32, ("batch", "frames", dim))}, waveform, "waveform", ("batch", "samples"))
    return True


def _keeping_length(build: _Builder, x: str, conv: Conv, slope: float = 1.0) -> str:
    weight, padding = numpy_of(conv.weight), conv.padding
    told = {"kernel": weight.shape[2], "left": padding, "right": padding, "slope": slope}
    return build.convolution(x, pack_convolution(weight), numpy_of(conv.bias), **told)


def blocks_operator(width: int) -> str:
    """The operator for the residual blocks of a stage of ``width`` channels: direct for 1 to 12, 17 to 24 and 33 to 36.

    Winograd's method has 7 multiplications where a direct convolution has 16, but it fills channels up to a multiple of
    16, and evaluates and interpolates besides. Measured, that pays where channels fill more than three quarters of the
    multiple (``benchmarks/widths.py``); near there either is faster than ONNX Runtime's own.
    """
    filled = -(-width // HALF_PANEL) * HALF_PANEL
    return DIRECT if 4 * width <= 3 * filled else WINOGRAD


def _residual_blocks(build: _Builder, x: str, blocks: Sequence[ResBlock]) -> str:
    width = cast("Conv", blocks[0].dilated[0]).weight.shape[0]
    operator = blocks_operator(width)
    in_bits = operator == WINOGRAD and build.bits < _FLOAT
    weights: list[NDArray[np.generic]] = []
    scales, biases = [], []
    for block in blocks:
        for index, dilated in enumerate(block.dilated):
            for conv in cast("list[Conv]", [dilated, *([block.plain[index]] if len(block.plain) else [])]):
                packed = (pack_winograd if operator == WINOGRAD else pack_convolution)(numpy_of(conv.weight))
                if in_bits:
                    values, scale, _ = in_whole(packed, -(-width // HALF_PANEL) * HALF_PANEL, 16)
                    weights.append(values.reshape(-1))
                    scales.append(scale.reshape(-1))
                else:
                    weights.append(packed.reshape(-1))
                bias = numpy_of(conv.bias)
                biases.append(np.pad(bias, (0, -len(bias) % PANEL)))
    inputs = [build.weight(np.concatenate(weights)), build.weight(np.stack(biases))]
    if in_bits:
        inputs.append(build.weight(np.concatenate(scales)))
    return build.add(
        f"{operator}16" if in_bits else operator,
        x,
        *inputs,
        domain=DOMAIN,
        kernels=_kernels(blocks),
        dilations=_dilations(blocks),
        plain=int(len(blocks[0].plain) > 0),
        slope=SLOPE,
    )
