"""Cuts the vocoder's half-precision graph where ``kernels/cuda/residual.cu`` takes over: at its residual blocks.

What lies between them are graphs of their own, ``vocoder.stage0.cuda.fp16.onnx`` and so on, with their weights beside
them; inputs and outputs at the cuts are (batch, frames, channels) float16. The blocks' weights are in
``vocoder.residual.fp16.npz``.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from mkc_fast.export.graphs.files import save_with_weights
from mkc_fast.kernels.cuda.residual_plans import MAX_WIDTH
from mkc_fast.kernels.cuda.residual_stages import ResidualBlocks, ResidualPair, StagedBlocks, stage_file

if TYPE_CHECKING:
    from pathlib import Path

    from onnx import ModelProto, NodeProto

_SLOPE = 0.1
_LAST = "conv_post.weight"
# What a stage's blocks consist of; a Cast among them means that something stays float32.
_OPERATORS = {"LeakyRelu", "Conv", "Add"}


@dataclass(frozen=True)
class CutVocoder:
    """A vocoder in parts.

    Attributes:
        graphs: One more than there are cuts.
        stages: The blocks between them.
    """

    graphs: list[ModelProto]
    stages: StagedBlocks

    def write(self, folder: Path) -> None:
        """Write the graphs and the weights."""
        for number, graph in enumerate(self.graphs):
            save_with_weights(graph, folder / stage_file(number))
        self.stages.write(folder)


def cut_vocoder(model: ModelProto) -> CutVocoder:
    """Cut a vocoder that ``export`` makes in half precision, in standard operators or for CUDA.

    A stage stays in its graph where the kernel does not take it: its width is no multiple of 16, its blocks are not of
    pairs, or a value in it stays float32.

    Args:
        model: The graph, with its weights.

    Raises:
        ValueError: No stage can be cut out.
    """
    graph = _Graph(model)
    found = [stage for number in range(graph.stages) if (stage := graph.stage(number)) is not None]
    if not found:
        raise ValueError("the vocoder has no stage of residual blocks that the kernel takes")
    graphs, source = [], None
    for stage in found:
        graphs.append(graph.part(source, (stage.source, stage.blocks.width)))
        source = stage.target, stage.blocks.width
    graphs.append(graph.part(source, None))
    return CutVocoder(graphs, StagedBlocks([stage.blocks for stage in found]))


@dataclass(frozen=True)
class _Stage:
    source: str
    target: str
    blocks: ResidualBlocks


class _Graph:
    """A vocoder's graph, with its nodes by what they make and its weights by name."""

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.makers = {output: node for node in model.graph.node for output in node.output}
        self.weights = {weight.name: weight for weight in model.graph.initializer}
        self.readers = {name: node for node in model.graph.node for name in node.input}
        numbers = [
            int(found.group(1)) for name in self.weights if (found := re.fullmatch(r"stages\.(\d+)\.weight", name))
        ]
        self.stages = max(numbers, default=-1) + 1

    def stage(self, number: int) -> _Stage | None:
        """The blocks of a stage, or None where the kernel does not take them."""
        following = f"stages.{number + 1}.weight" if number + 1 < self.stages else _LAST
        target = self._before_activation(following)
        frames = self._frames_per_feature(number)
        if target is None or frames is None:
            return None
        blocks: list[list[ResidualPair]] = []
        sources: set[str | None] = set()
        while f"stages.{number}.blocks.{len(blocks)}.dilated.0.weight" in self.weights:
            name = f"stages.{number}.blocks.{len(blocks)}"
            pairs: list[ResidualPair] = []
            sources.add(self._before_activation(f"{name}.dilated.0.weight"))
            while (first := f"{name}.dilated.{len(pairs)}") + ".weight" in self.weights:
                pair = self._pair(first, f"{name}.plain.{len(pairs)}")
                if pair is None:
                    return None
                pairs.append(pair)
            blocks.append(pairs)
        source = sources.pop() if len(sources) == 1 else None
        if source is None:
            return None
        count = sum(map(len, blocks))
        between = Counter(node.op_type for node in self._between({source}, target))
        # Blocks share the first LeakyReLU or have their own.
        activations = between.pop("LeakyRelu", 0)
        if between != {"Conv": 2 * count, "Add": count + len(blocks) - 1} or not 0 <= 2 * count - activations < len(
            blocks
        ):
            return None
        return _Stage(source, target, ResidualBlocks(frames, blocks))

    def part(self, source: tuple[str, int] | None, target: tuple[str, int] | None) -> ModelProto:
        """The graph from a cut, a value and its channels, to the next one; None: from the features, to the waveform."""
        graph = self.model.graph
        name = source[0] if source else None
        nodes = self._between({name} if name else set(), target[0] if target else graph.output[0].name)
        inputs, outputs = list(graph.input), list(graph.output)
        if source:
            inputs = [_cut_value("x", "cut_frames", source[1])]
            nodes.insert(0, helper.make_node("Transpose", ["x"], [source[0]], perm=[0, 2, 1]))
        if target:
            outputs = [_cut_value("y", "next_frames", target[1])]
            nodes.append(helper.make_node("Transpose", [target[0]], ["y"], perm=[0, 2, 1]))
        used = {value for node in nodes for value in node.input}
        weights = [weight for weight in graph.initializer if weight.name in used]
        made = helper.make_graph(nodes, "vocoder_stage", inputs, outputs, weights)
        model = helper.make_model(made, opset_imports=self.model.opset_import, ir_version=self.model.ir_version)
        model.metadata_props.extend(self.model.metadata_props)
        return model

    def _pair(self, first: str, second: str) -> ResidualPair | None:
        convolutions = [self.readers.get(f"{name}.weight") for name in (first, second)]
        if None in convolutions:
            return None
        settings = [_attributes(node) for node in convolutions if node is not None]
        weights, biases = [], []
        for name, setting in zip((first, second), settings, strict=True):
            weight, bias = (self.weights.get(f"{name}.{part}") for part in ("weight", "bias"))
            if weight is None or bias is None or weight.data_type != TensorProto.FLOAT16:
                return None
            weights.append(numpy_helper.to_array(weight))
            biases.append(numpy_helper.to_array(bias).astype(np.float32))
            out, into, size = weights[-1].shape
            pads = [(size - 1) * setting["dilations"][0] // 2] * 2
            if out != into or out % 16 or out > MAX_WIDTH or size % 2 == 0 or list(setting["pads"]) != pads:
                return None
            if self._before_activation(f"{name}.weight") is None:
                return None
        if settings[1]["dilations"][0] != 1 or weights[0].shape != weights[1].shape:
            return None
        return ResidualPair(np.stack(weights), np.stack(biases), int(settings[0]["dilations"][0]))

    def _before_activation(self, weight: str) -> str | None:
        """What the LeakyReLU before a convolution reads, if its slope is the kernel's or it is the last."""
        reader = self.readers.get(weight)
        maker = self.makers.get(reader.input[0]) if reader is not None else None
        if maker is not None and maker.op_type == "Cast":
            maker = self.makers.get(maker.input[0])
        if maker is None or maker.op_type != "LeakyRelu":
            return None
        inside = weight != _LAST
        if inside and abs(_attributes(maker).get("alpha", 0.01) - _SLOPE) > 1e-6:
            return None
        return str(maker.input[0])

    def _frames_per_feature(self, number: int) -> int | None:
        """How many a stage has; None if an upsampling before it makes a frame more than the rate says."""
        frames = 1
        for index in range(number + 1):
            setting = _attributes(self.readers[f"stages.{index}.weight"])
            rate = int(setting["strides"][0])
            if setting["kernel_shape"][0] - sum(setting["pads"]) != rate or any(setting.get("output_padding", [0])):
                return None
            frames *= rate
        return frames

    def _between(self, sources: set[str], target: str) -> list[NodeProto]:
        """The nodes that make ``target`` from ``sources`` and weights, in their order."""
        wanted, needed = [target], set()
        while wanted:
            value = wanted.pop()
            maker = self.makers.get(value)
            if value in sources or maker is None or maker.output[0] in needed:
                continue
            needed.add(maker.output[0])
            wanted += maker.input
        return [node for node in self.model.graph.node if node.output[0] in needed]


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {each.name: helper.get_attribute_value(each) for each in node.attribute}


def _cut_value(name: str, frames: str, width: int) -> Any:
    # Another name of the axis on either side: there are more frames after an upsampling.
    return helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["batch", frames, width])
