"""WavLM, conformer and vocoder as graphs for ONNX Runtime's CUDA provider: fused operators, few passes over memory.

The same sums as the plain graphs. What differs, and why:

- Attention is one node, ``com.microsoft.MultiHeadAttention``, which the provider runs as one fused kernel: in half
  precision with the utterances' lengths and a bias, in float32 with a bias alone. A bias of the keys changes no weight
  of a softmax, and that of the values passes through the average; so the first is left out, and the second is in the
  bias of what follows.
- The extractor is (batch, time, channels), and its convolutions are products. ``stride`` frames in a row are one row of
  the product; what a kernel has beyond them is a second product, of the first frames of the next row.
- The conformer's depthwise convolution is a sum of shifted multiples: no plan of cuDNN's, no transposition.
- A bias, a residual and a LayerNorm are one node, ``SkipLayerNormalization``, in float32. In float16 that node would
  take its statistics in float16 (microsoft/onnxruntime#29034), so there it is two: ``BiasAdd``, and
  ``LayerNormalization`` with statistics in float32.
- The vocoder's transposed convolutions have their bias in a node of its own: with one, and channels last, cuDNN's front
  end refuses them where biases are fused.

A dry run shows what the provider makes of these graphs (``tests/cuda_dry_run``); no GPU has run them yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import nn

from mkc_fast.export.graphs.builder import IR_VERSION, GraphBuilder, Values, domains, matrix, numpy_of, values_of
from mkc_fast.export.networks.hifigan import LAST_SLOPE, SLOPE
from mkc_fast.export.networks.layers import Linear

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mkc_fast.export.networks.conformer import Conformer, ConformerLayer, ConvModule, FeedForward
    from mkc_fast.export.networks.hifigan import Conv, HifiGan, ResBlock, Stage
    from mkc_fast.export.networks.layers import SelfAttention
    from mkc_fast.export.networks.wavlm import ConvLayer, EncoderLayer, PositionGate, WavLM

MICROSOFT = "com.microsoft"
# Fewer channels are cut into windows, at once, before the product: the waveform has one.
_LEAST_CHANNELS = 32
# What float16 leaves of a value is at most 2**-11 of it; by so much it is multiplied, to keep its last bits.
_LEFT_SCALE = 2048.0
# Tensor cores take depths that are multiples of this.
_TENSOR_DEPTH = 8
# A depthwise convolution of more taps than these is left to cuDNN.
_MOST_SHIFTS = 5


@dataclass
class _Stream:
    """The residual stream between two layers: what is yet to be added to it, and with which bias.

    Attributes:
        x: The stream (B, T, D).
        branch: The last branch's output without its bias; None where nothing is to be added.
        bias: Of that branch (D,).
    """

    x: str
    branch: str | None = None
    bias: NDArray[np.float32] | None = None


class _Builder(GraphBuilder):
    """A graph for CUDA under construction.

    Args:
        half: For the form that becomes a graph in half precision.
        apart: ``BiasAdd`` and ``LayerNormalization`` in place of ``SkipLayerNormalization``.
    """

    def __init__(self, *, half: bool = False, apart: bool = False) -> None:
        super().__init__()
        self.half, self.apart = half, apart

    def product(self, x: str, weight: NDArray[np.float32], name: str | None = None) -> str:
        """``x @ weight``."""
        return self.add("MatMul", x, self.weight(weight, name))

    def linear(self, x: str, linear: Linear) -> str:
        """A product and its bias."""
        weight, bias = matrix(linear)
        y = self.product(x, weight)
        return y if linear.bias is None else self.add("Add", y, self.weight(bias))

    def bias_add(self, x: str, bias: NDArray[np.float32], other: str) -> str:
        """``x + bias + other``; (B, T, D), (D,), (B, T, D). In half precision one pass, which the CPU does not have."""
        if self.half:
            return self.add("BiasAdd", x, self.weight(bias), other, domain=MICROSOFT)
        return self.add("Add", self.add("Add", x, self.weight(bias)), other)

    def normalized(self, stream: _Stream, norm: nn.LayerNorm) -> tuple[str, str]:
        """The stream with its last branch added, and its LayerNorm."""
        if stream.branch is None:
            return stream.x, self.layer_norm(stream.x, norm)
        assert stream.bias is not None
        if self.apart:
            total = self.bias_add(stream.branch, stream.bias, stream.x)
            return total, self.layer_norm(total, norm)
        return self.skip_layer_norm(stream.branch, stream.x, norm, stream.bias)

    def skip_layer_norm(
        self, x: str, skip: str, norm: nn.LayerNorm, bias: NDArray[np.float32] | None
    ) -> tuple[str, str]:
        """``x + skip + bias``, and its LayerNorm."""
        inputs = [x, skip, self.weight(numpy_of(norm.weight)), self.weight(numpy_of(norm.bias))]
        if bias is not None:
            inputs.append(self.weight(bias))
        name = f"skiplayernormalization_{len(self.nodes)}"
        outputs = [name, "", "", f"{name}_sum"]
        self.nodes.append(
            helper.make_node("SkipLayerNormalization", inputs, outputs, name, domain=MICROSOFT, epsilon=norm.eps)
        )
        return f"{name}_sum", name

    def ended(self, stream: _Stream) -> str:
        """The stream with its last branch added."""
        if stream.branch is None:
            return stream.x
        assert stream.bias is not None
        return self.bias_add(stream.branch, stream.bias, stream.x)

    def attention(self, x: str, attention: SelfAttention, lengths: str, bias: str) -> tuple[str, NDArray[np.float32]]:
        """Self-attention without its last bias, and that bias.

        Args:
            x: (B, T, D).
            attention: Its weights.
            lengths: int32 (B,); empty where ``bias`` masks what is padding.
            bias: Added to the scores, (B, 1 or H, T, T); or empty.
        """
        weight, bias_values = matrix(attention.qkv)
        query, key, value = np.split(weight, 3, axis=1)
        query_bias, _, value_bias = np.split(bias_values, 3)
        q = self.add("Add", self.product(x, query), self.weight(query_bias))
        k, v = self.product(x, key), self.product(x, value)
        inputs = [q, k, v, "", lengths, bias]
        while not inputs[-1]:
            inputs.pop()
        # The scale is in the weights.
        told = {"num_heads": attention.num_heads, "scale": 1.0}
        mixed = self.add("MultiHeadAttention", *inputs, domain=MICROSOFT, **told)
        out, out_bias = matrix(attention.out)
        passed = value_bias.astype(np.float64) @ out.astype(np.float64)
        return self.product(mixed, out), (out_bias + passed).astype(np.float32)

    def masks(self, valid: str, frames: str) -> tuple[str, str]:
        """What tells attention of padding: lengths int32 (B,) and no bias, or no lengths and a bias (B, 1, T, T)."""
        if self.half:
            counted = self.add("ReduceSum", self.add("Cast", valid, to=TensorProto.INT32), self.axes(1), keepdims=0)
            return counted, ""
        of_keys = self.add("Unsqueeze", self.key_mask(valid), self.axes(1, 2))
        one = self.constant([1], np.int64)
        shape = self.add("Concat", one, one, self.add("Unsqueeze", frames, self.axes(0)), one, axis=0)
        return "", self.add("Expand", of_keys, shape)

    def model(self, name: str, inputs: Values, outputs: Values) -> ModelProto:
        """The graph, its weights inside."""
        initializers = [numpy_helper.from_array(values, weight) for weight, values in self.weights]
        graph = helper.make_graph(self.nodes, name, values_of(inputs), values_of(outputs), initializers)
        return helper.make_model(
            graph, opset_imports=domains({MICROSOFT: 1}), ir_version=IR_VERSION, producer_name="mkc-fast"
        )


# ---- WavLM ----


def cuda_wavlm(module: WavLM, *, half: bool = False) -> ModelProto | None:
    """WavLM for CUDA, or None where its extractor has no whole number of rows.

    Args:
        module: The network.
        half: The form that becomes a graph in half precision. Its residual stream stays float32.
    """
    convs = cast("list[ConvLayer]", list(module.convs))
    if any(conv.weight.shape[2] < conv.stride for conv in convs):
        return None
    build = _Builder(half=half)
    hop, window = module.config.hop, module.config.min_samples
    counted = build.add("Shape", "waveform", start=1, end=2)
    above = build.add("Sub", counted, build.constant([window - hop], np.int64))
    frames = build.add("Div", above, build.constant([hop], np.int64))  # (1,)
    # The extractor gives these and, of samples beyond the last, a few that are dropped.
    junk = -(-(window - hop) // hop)
    if any(conv.time_norm is not None for conv in convs):
        junk += 1  # statistics over time are of all samples, also of those that make no frame
    rows = build.add("Mul", build.add("Add", frames, build.constant([junk], np.int64)), build.constant([hop], np.int64))
    zeros = build.constant([0, 0, 0, (junk + 1) * hop], np.int64)
    padded = build.add("Pad", "waveform", zeros)
    x = build.add("Slice", padded, build.axes(0), rows, build.axes(1))
    x = build.add("Unsqueeze", x, build.axes(2))
    for index, conv in enumerate(convs):
        x = _extractor_layer(build, x, conv, f"convs.{index}.weight")
    x = build.add("Slice", x, build.axes(0), frames, build.axes(1))
    x = build.layer_norm(x, module.feature_norm)
    if isinstance(module.projection, Linear):
        x = build.linear(x, module.projection)
    count = build.add("Squeeze", frames, build.axes(0))
    valid = build.covered("lengths", count, hop, window)
    x = build.add("Mul", x, build.keep(valid))
    stream = _Stream(build.add("Add", x, _position(build, module, x)))
    if isinstance(module.input_norm, nn.LayerNorm):
        stream = _Stream(build.layer_norm(stream.x, module.input_norm))
    lengths, mask = build.masks(valid, count)
    positions = _positions(build, module, frames)
    for layer in cast("list[EncoderLayer]", list(module.layers)):
        stream = _encoder_layer(build, layer, stream, positions, lengths, mask)
    build.name_output(build.ended(stream), "features")
    inputs: Values = {"waveform": (np.float32, ("batch", "samples")), "lengths": (np.int64, ("batch",))}
    return build.model("wavlm", inputs, {"features": (np.float32, ("batch", "frames", module.config.dim))})


def _extractor_layer(build: _Builder, x: str, conv: ConvLayer, name: str) -> str:
    """(B, n * stride, C) → (B, n, C'); the last frames reach past the end of ``x``, and mean nothing."""
    weight, stride = numpy_of(conv.weight), conv.stride
    columns, channels, kernel = weight.shape
    taps = np.ascontiguousarray(weight.transpose(2, 1, 0))  # (kernel, C, C')
    bias = None if conv.bias is None else numpy_of(conv.bias)
    rows = build.add("Reshape", x, build.constant((0, -1, stride * channels), np.int64))
    # Parts of the kernel: ``stride`` taps of a row, so many of the next, and so forth.
    starts = range(0, kernel, stride)
    parts = [taps[start : start + stride].reshape(-1, columns) for start in starts]
    later = ""
    if channels < _LEAST_CHANNELS and len(parts) > 1:
        shifted = [rows, *(_rows_after(build, rows, index, len(part)) for index, part in enumerate(parts) if index)]
        windows, whole = build.add("Concat", *shifted, axis=2), np.concatenate(parts)
        if build.half:
            windows, whole = _split_in_two(build, windows, whole)
        y = build.product(windows, whole, name)
    else:
        y = build.product(rows, parts[0], name)
        for index, part in enumerate(parts[1:], 1):
            further = build.product(_rows_after(build, rows, index, len(part)), part, f"{name}.{index}")
            if later:
                y = build.add("Add", y, later)
            later = further
    norm = conv.norm
    if norm is not None and later and not build.half:
        _, y = build.skip_layer_norm(y, later, norm, bias)
        return build.add("Gelu", y)
    if later:
        # Not an Add, which ONNX Runtime would fuse with the LayerNorm, and then take its statistics in float16.
        y = build.bias_add(y, np.zeros(columns, np.float32) if bias is None else bias, later)
    elif bias is not None:
        y = build.add("Add", y, build.weight(bias))
    if norm is not None:
        y = build.layer_norm(y, norm)
    if conv.time_norm is not None:
        y = build.time_norm(y, conv.time_norm, build.keep(build.covered("lengths", build.frames(y), stride, kernel)))
    return build.add("Gelu", y)


def _split_in_two(build: _Builder, x: str, weight: NDArray[np.float32]) -> tuple[str, NDArray[np.float32]]:
    """Factors of a product in float16 that is nearly as exact as in float32.

    The filters of the first convolution cancel most of a smooth waveform, so that float16, or TF32, loses much more
    there than elsewhere. So each factor is split into its value in float16 and the rest. Of the four products of these,
    three are added up in float32, by one product of three times the depth.
    """
    rounded = weight.astype(np.float16).astype(np.float32)
    left = (weight - rounded).astype(np.float16).astype(np.float32)
    near = build.add("Cast", build.add("Cast", x, to=TensorProto.FLOAT16), to=TensorProto.FLOAT)
    scale = build.constant(_LEFT_SCALE, np.float32)
    rest = build.add("Mul", build.add("Sub", x, near), scale)
    stacked = np.concatenate([rounded, rounded / np.float32(_LEFT_SCALE), left])
    depth = len(stacked)
    filled = -(-depth // _TENSOR_DEPTH) * _TENSOR_DEPTH
    wide = build.add("Concat", near, rest, near, axis=2)
    wide = build.add("Pad", wide, build.constant([0, 0, 0, 0, 0, filled - depth], np.int64))
    return wide, np.concatenate([stacked, np.zeros((filled - depth, weight.shape[1]), np.float32)])


def _rows_after(build: _Builder, rows: str, index: int, width: int) -> str:
    """The first ``width`` values of the row ``index`` further on; zeros past the end. One pass."""
    cut = build.add("Shape", rows, start=2, end=3)
    less = build.add("Sub", build.constant([width], np.int64), cut)
    before = build.constant([0, -index, 0, 0, index], np.int64)
    return build.add("Pad", rows, build.add("Concat", before, less, axis=0))


def _position(build: _Builder, module: WavLM, x: str) -> str:
    """The position convolution: 16 groups of 128 taps, which is for cuDNN; its bias goes with the activation."""
    position = module.position
    y = build.add("Transpose", x, perm=(0, 2, 1))
    y = build.add("Conv", y, build.weight(numpy_of(position.weight)), group=position.groups, pads=position.pad)
    y = build.add("Transpose", y, perm=(0, 2, 1))
    return build.add("BiasGelu", y, build.weight(numpy_of(position.bias)), domain=MICROSOFT)


def _positions(build: _Builder, module: WavLM, frames: str) -> str:
    """The bias of relative positions (H, T, T), or an empty name."""
    if module.bias is None:
        return ""
    reach = module.bias.reach
    zero, one = build.constant(0, np.int64), build.constant(1, np.int64)
    # From a length minus itself: from constants alone ONNX Runtime would compute the table when it opens a graph of
    # fixed sizes, and keep one for each size, of 250 MB for 40 s.
    any_length = build.add("Slice", "lengths", build.axes(0), build.axes(1))
    origin = build.add("Sub", any_length, any_length)
    places = build.add("Add", build.add("Range", zero, build.add("Squeeze", frames, build.axes(0)), one), origin)
    keys, queries = build.add("Unsqueeze", places, build.axes(0)), build.add("Unsqueeze", places, build.axes(1))
    distance = build.add(
        "Clip", build.add("Sub", keys, queries), build.constant(-reach, np.int64), build.constant(reach, np.int64)
    )
    index = build.add("Add", distance, build.constant(reach, np.int64))
    return build.add("Gather", build.weight(numpy_of(module.bias.table)), index, axis=1)


def _encoder_layer(
    build: _Builder, layer: EncoderLayer, stream: _Stream, positions: str, lengths: str, mask: str
) -> _Stream:
    if layer.norm_first:
        x, attended = build.normalized(stream, layer.attention_norm)
    else:
        x = attended = stream.x
    bias = mask
    if positions:
        bias = positions
        if layer.gate is not None:
            bias = build.add("Mul", _gate(build, layer.gate, attended), positions)
        else:
            bias = build.add("Unsqueeze", positions, build.axes(0))
        if mask:
            bias = build.add("Add", bias, mask)
    mixed, mixed_bias = build.attention(attended, layer.attention, lengths, bias)
    stream = _Stream(x, mixed, mixed_bias)
    if layer.norm_first:
        x, inner = build.normalized(stream, layer.final_norm)
    else:
        _, x = build.normalized(stream, layer.attention_norm)
        inner = x
    weight, inner_bias = matrix(layer.fc1)
    inner = build.add("BiasGelu", build.product(inner, weight), build.weight(inner_bias), domain=MICROSOFT)
    out, out_bias = matrix(layer.fc2)
    stream = _Stream(x, build.product(inner, out), out_bias)
    if layer.norm_first:
        return stream
    return _Stream(build.normalized(stream, layer.final_norm)[1])


def _gate(build: _Builder, gate: PositionGate, x: str) -> str:
    """(B, H, T, 1) of (B, T, D): both numbers of all heads in one product."""
    weight, bias = matrix(gate.linear)  # (head_dim, 2)
    heads, width = gate.num_heads, gate.head_dim
    whole = np.zeros((heads, width, 2, heads), np.float32)
    for head in range(heads):
        whole[head, :, :, head] = weight
    both = build.product(x, whole.reshape(heads * width, 2 * heads))
    both = build.add("Sigmoid", build.add("Add", both, build.weight(np.repeat(bias, heads))))
    both = build.add("Transpose", both, perm=(0, 2, 1))  # (B, 2 H, T)
    first, second = build.add_all("Split", [both], 2, axis=1, num_outputs=2)
    scaled = build.add("Mul", second, build.weight(numpy_of(gate.scale).reshape(-1, 1)))
    reduced = build.add("Sub", scaled, build.constant(1.0, np.float32))
    opened = build.add("Add", build.add("Mul", first, reduced), build.constant(2.0, np.float32))
    return build.add("Unsqueeze", opened, build.axes(3))


# ---- Conformer ----


def cuda_conformer(module: Conformer, *, half: bool = False, apart: bool = False) -> ModelProto | None:
    """The conformer for CUDA, or None where it has no layers.

    Args:
        module: The network.
        half: The form that becomes a graph in half precision.
        apart: As ``_Builder`` has it: for a residual stream in float16.
    """
    layers = cast("list[ConformerLayer]", list(module.layers))
    if not layers:
        return None
    build = _Builder(half=half, apart=apart)
    frames = build.frames("features")
    valid = build.first_frames("lengths", frames)
    keep = build.keep(valid)
    lengths, mask = build.masks(valid, frames)
    stream = _Stream("features")
    for layer in layers:
        stream = _conformer_layer(build, layer, stream, lengths, mask, keep)
    build.name_output(stream.x, "restored")
    axes: tuple[str | int, ...] = ("batch", "frames", layers[0].final_norm.normalized_shape[0])
    inputs: Values = {"features": (np.float32, axes), "lengths": (np.int64, ("batch",))}
    return build.model("conformer", inputs, {"restored": (np.float32, axes)})


def _conformer_layer(
    build: _Builder, layer: ConformerLayer, stream: _Stream, lengths: str, mask: str, keep: str
) -> _Stream:
    stream = _feed_forward(build, layer.ffn1, stream)
    x, normed = build.normalized(stream, layer.attention_norm)
    stream = _Stream(x, *build.attention(normed, layer.attention, lengths, mask))
    stream = _convolution_module(build, layer.convolution, stream, keep)
    stream = _feed_forward(build, layer.ffn2, stream)
    return _Stream(build.normalized(stream, layer.final_norm)[1])


def _feed_forward(build: _Builder, module: FeedForward, stream: _Stream) -> _Stream:
    x, normed = build.normalized(stream, module.norm)
    inner = build.add("QuickGelu", build.linear(normed, module.fc1), domain=MICROSOFT, alpha=1.0)  # SiLU
    out, bias = matrix(module.fc2)
    return _Stream(x, build.product(inner, out), bias)


def _convolution_module(build: _Builder, module: ConvModule, stream: _Stream, keep: str) -> _Stream:
    x, normed = build.normalized(stream, module.norm)
    weight, bias = matrix(module.expand)
    # Two products, so that no pass is needed to part them.
    (value, gate), (value_bias, gate_bias) = np.split(weight, 2, axis=1), np.split(bias, 2)
    values = build.add("Add", build.product(normed, value), build.weight(value_bias))
    gates = build.add("Sigmoid", build.add("Add", build.product(normed, gate), build.weight(gate_bias)))
    y = build.add("Mul", build.add("Mul", values, gates), keep)
    y = build.add("QuickGelu", _depthwise(build, module, y), domain=MICROSOFT, alpha=1.0)  # SiLU
    reduce, reduce_bias = matrix(module.reduce)
    return _Stream(x, build.product(y, reduce), reduce_bias)


def _depthwise(build: _Builder, module: ConvModule, x: str) -> str:
    """The depthwise convolution of (B, T, C), which keeps its length."""
    weights, bias = numpy_of(module.weight)[:, 0], numpy_of(module.bias)
    channels, taps = weights.shape
    middle = taps // 2
    if taps % 2 == 0 or taps > _MOST_SHIFTS:
        y = build.add("Transpose", x, perm=(0, 2, 1))
        weight = build.weight(weights[:, None])
        y = build.add("Conv", y, weight, build.weight(bias), group=channels, pads=(middle, middle))
        return build.add("Transpose", y, perm=(0, 2, 1))
    shifted = []
    for tap in range(taps):
        by = middle - tap  # frame t takes frame t - by
        source = x if not by else build.add("Pad", x, build.constant([0, by, 0, 0, -by, 0], np.int64))
        shifted.append(build.add("Mul", source, build.weight(weights[:, tap])))
    total = shifted.pop(middle)
    if not shifted:
        return build.add("Add", total, build.weight(bias))
    total = build.bias_add(total, bias, shifted.pop(0))
    for other in shifted:
        total = build.add("Add", total, other)
    return total


# ---- Vocoder ----


def cuda_vocoder(module: HifiGan) -> ModelProto:
    """The vocoder for CUDA; weights have the names of the module's parameters."""
    build = _Builder()
    x = build.linear("features", module.lin_pre)
    x = build.add("Transpose", x, perm=(0, 2, 1))
    x = _convolution(build, module.conv_pre, x, "conv_pre")
    for number, stage in enumerate(cast("list[Stage]", list(module.stages))):
        name = f"stages.{number}"
        x = build.add("LeakyRelu", x, alpha=SLOPE)
        padding = (stage.kernel - stage.rate) // 2
        weight = build.weight(numpy_of(stage.weight), f"{name}.weight")
        sizes: dict[str, Any] = {"kernel_shape": [stage.kernel], "strides": [stage.rate], "pads": [padding, padding]}
        x = build.add("ConvTranspose", x, weight, **sizes)
        x = build.add("Add", x, build.weight(numpy_of(stage.bias)[:, None], f"{name}.bias"))
        blocks = cast("list[ResBlock]", list(stage.blocks))
        total = _residual_block(build, blocks[0], x, f"{name}.blocks.0")
        for index, block in enumerate(blocks[1:], 1):
            total = build.add("Add", total, _residual_block(build, block, x, f"{name}.blocks.{index}"))
        x = total
    x = _convolution(build, module.conv_post, build.add("LeakyRelu", x, alpha=LAST_SLOPE), "conv_post")
    waveform = build.add("Squeeze", build.add("Tanh", x), build.axes(1))
    if module.overshoots():
        samples = build.add(
            "Mul", build.add("Shape", "features", start=1, end=2), build.constant([module.hop], np.int64)
        )
        waveform = build.add("Slice", waveform, build.axes(0), samples, build.axes(1))
    build.name_output(waveform, "waveform")
    inputs: Values = {"features": (np.float32, ("batch", "frames", module.lin_pre.weight.shape[0]))}
    return build.model("vocoder", inputs, {"waveform": (np.float32, ("batch", "samples"))})


def _convolution(build: _Builder, conv: Conv, x: str, name: str) -> str:
    weight = build.weight(numpy_of(conv.weight), f"{name}.weight")
    bias = build.weight(numpy_of(conv.bias), f"{name}.bias")
    pads = [conv.padding, conv.padding]
    return build.add("Conv", x, weight, bias, pads=pads, dilations=[conv.dilation])


def _residual_block(build: _Builder, block: ResBlock, x: str, name: str) -> str:
    for index, dilated in enumerate(cast("list[Conv]", list(block.dilated))):
        y = _convolution(build, dilated, build.add("LeakyRelu", x, alpha=SLOPE), f"{name}.dilated.{index}")
        if len(block.plain):
            plain = cast("Conv", block.plain[index])
            y = _convolution(build, plain, build.add("LeakyRelu", y, alpha=SLOPE), f"{name}.plain.{index}")
        x = build.add("Add", x, y)
    return x


# ---- What the CPU lacks ----


def for_cpu(model: ModelProto) -> ModelProto:
    """The same graph in operators that ONNX Runtime has for the CPU too: ``BiasAdd`` as two additions.

    Graphs in float32 have no other.
    """
    changed = ModelProto()
    changed.CopyFrom(model)
    del changed.graph.node[:]
    for node in model.graph.node:
        if node.op_type != "BiasAdd":
            changed.graph.node.append(node)
            continue
        x, bias, other = node.input
        inner = f"{node.output[0]}_biased"
        changed.graph.node.append(helper.make_node("Add", [x, bias], [inner], f"{node.name}_bias"))
        changed.graph.node.append(helper.make_node("Add", [inner, other], list(node.output), node.name))
    return changed
