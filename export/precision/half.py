"""Half precision: turns a checked float32 graph into one that stores and multiplies in float16 where that is safe.

ONNX Runtime has a converter too, ``onnxruntime.transformers.float16``. It is not used, because it chooses by operator
and not by value (``benchmarks/results/float16_tools.json``, ONNX Runtime 1.32.0, small random weights). Its WavLM is 13
times as far from float32 as this one, relative RMS 3.8e-2 against 2.9e-3, also when it is told to keep normalization
and softmax in float32. Its conformer overflows where activations reach 5e4, and this one does not. Its vocoder is as
good.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from mkc_fast.errors import MkcError
from mkc_fast.export.graphs.files import open_session, without_weights
from mkc_fast.names import CONFORMER_FILE, VOCODER_FILE, WAVLM_FILE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

FLOAT, HALF = int(TensorProto.FLOAT), int(TensorProto.FLOAT16)
# The largest value of float16; its smallest step is 6e-8, and its rounding error at most 2^-11 of a value.
LARGEST = 65504.0

# Products: what float16 is for. Devices multiply float16, add the products up in float32, and round the sum once.
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "MultiHeadAttention"})
# Value by value, or normalizing with statistics that the operator itself keeps in float32: LayerNormalization by its
# attribute stash_type, Softmax in every implementation for half. As precise as the widest of their inputs.
_ELEMENTWISE = frozenset(
    {"Abs", "Add", "BiasAdd", "BiasGelu", "Clip", "Div", "Gelu", "LayerNormalization", "LeakyRelu", "Max", "Min", "Mul",
     "Neg", "QuickGelu", "Reciprocal", "ReduceMean", "ReduceSum", "Relu", "Sigmoid", "SkipLayerNormalization",
     "Softmax", "Sqrt", "Sub", "Tanh", "Where"}
)  # fmt: skip
# Only move values.
_LAYOUT = frozenset(
    {"Concat", "Expand", "Gather", "Identity", "Pad", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)
# Of those, the ones that are ONNX Runtime's own (com.microsoft), of the graphs for CUDA.
_FUSED = frozenset({"BiasAdd", "BiasGelu", "MultiHeadAttention", "QuickGelu", "SkipLayerNormalization"})
# Their output's type does not depend on their inputs'.
_TYPED = {
    "Equal": TensorProto.BOOL,
    "Greater": TensorProto.BOOL,
    "GreaterOrEqual": TensorProto.BOOL,
    "Less": TensorProto.BOOL,
    "LessOrEqual": TensorProto.BOOL,
    "Shape": TensorProto.INT64,
}
# Take the type of their first input, or have one of their own in an attribute.
_OTHER = frozenset({"And", "Cast", "Not", "Range"})
# Float16's smallest step leaves weights of this RMS with a relative error of 2e-3; larger ones have at most 3e-4.
_TOO_SMALL = 2.0**-16


@dataclass(frozen=True)
class Policy:
    """What stays float32. Everything else that is float becomes float16.

    The fixed part, for every graph: integer arithmetic (lengths, positions, shapes) is not touched; graph inputs and
    outputs are float32; an elementwise operator is as wide as the widest value it reads, so that what follows a
    float32 operator stays float32 up to the next product; a weight that does not fit float16, and what is measured to
    outgrow it, stays float32 with the operators that read or make it.

    Attributes:
        ops: Operator types. Sums over time (a Base model's GroupNorm counts samples past 65504 and squares values
            below 1e-4, which float16 loses), their roots, and the vocoder's tanh, which makes the samples. And CUDA's
            fused sum and normalization, which in float16 takes its statistics in float16 (microsoft/onnxruntime#29034).
        names: Patterns (``*``) of node names, or of weights, for the nodes that read them. Weights are the better
            handle: their names come from the modules, those of nodes from the exporter.
        scores: Attention scores, from the product of queries and keys to the Softmax, with what is added to them
            (gated position biases, masks). Rounding a score of 100 to float16 changes its weight by up to 3 %, and
            models of WavLM's family are known for scores that outgrow float16 in training (arXiv 2112.08778).
        stream: The residual stream: sums that a LayerNormalization or the graph's output reads. WavLM's has
            dimensions with values of hundreds beside others near 1; rounding errors stay in it and add up over the
            layers; and ONNX Runtime would fuse the sum and the normalization on CUDA, as above.
        largest: What a value may reach when measured; the rest up to 65504 is for inputs not measured.
    """

    ops: frozenset[str] = frozenset({"Reciprocal", "ReduceMean", "ReduceSum", "SkipLayerNormalization", "Sqrt", "Tanh"})
    names: tuple[str, ...] = ()
    scores: bool = True
    stream: bool = True
    largest: float = LARGEST / 8


# Beside each choice, what it does to the relative RMS error of random weights of full size on 2 s of speech.
POLICIES = {
    # The features decide cluster ids. The first convolution has one input channel, nothing for a tensor core to do,
    # and filters that cancel most of a smooth waveform: 3.5e-3 without it, 2.7e-3 with it.
    WAVLM_FILE: Policy(names=("convs.0.weight",)),
    # Its scores are not known to be large, nothing discrete follows, and attention is bound by memory: 1.8e-3 either
    # way. Where its scores outgrow float16, they are measured to.
    CONFORMER_FILE: Policy(scores=False),
    # The last convolution has one output channel, and no layer after it to average its rounding out: 3.0e-3 either way.
    VOCODER_FILE: Policy(names=("conv_post.weight",)),
}


# Of the graphs for CUDA (``mkc_fast.export.graphs.cuda``). No product is left in float32 there, where TF32, which their
# convolutions need to be let, would take its place. Attention keeps its scores in float32 by itself.
CUDA_POLICIES = {
    WAVLM_FILE: Policy(),
    CONFORMER_FILE: Policy(scores=False, stream=False),
    VOCODER_FILE: Policy(),
}


def half_file(name: str) -> str:
    """``wavlm.onnx`` → ``wavlm.fp16.onnx``."""
    return name.removesuffix(".onnx") + ".fp16.onnx"


@dataclass(frozen=True)
class HalfGraph:
    """A graph in half precision.

    Attributes:
        model: The graph; inputs and outputs are those of the float32 graph.
        kept: Why a node stays float32, by its name; nodes that do so because of what they read are not listed.
        outgrown: Of those, the ones whose weights or values float16 cannot hold.
    """

    model: ModelProto
    kept: dict[str, str]
    outgrown: dict[str, str]


def to_half(model: ModelProto, policy: Policy | None = None, peaks: Mapping[str, float] | None = None) -> HalfGraph:
    """Convert a float32 graph; the same graph, policy and peaks give the same bytes.

    Args:
        model: A graph of standard operators, weights loaded; it is not changed.
        policy: What stays float32.
        peaks: Largest magnitude seen of each value, by name (``measured_peaks``).

    Returns:
        The graph in half precision, with what stayed float32 and why.

    Raises:
        MkcError: The graph has an operator that this pass does not know, or is not in float32.
    """
    return _Conversion(model, policy or Policy(), peaks or {}).run()


class _Conversion:
    """One run of ``to_half``: types, then the precision of each node, then the new graph."""

    def __init__(self, model: ModelProto, policy: Policy, peaks: Mapping[str, float]) -> None:
        self.model, self.policy, self.peaks = model, policy, peaks
        self.nodes: list[NodeProto] = list(model.graph.node)
        self.weights: dict[str, TensorProto] = {tensor.name: tensor for tensor in model.graph.initializer}
        self.outputs = [value.name for value in model.graph.output]
        self.types = value_types(model)
        # A value may be rounded to float16 and back.
        rounded = {name for node in self.nodes if node.op_type == "Cast" for name in node.output}
        kinds = {kind for name, kind in self.types.items() if kind != HALF or name not in rounded}
        wrong = {HALF, int(TensorProto.BFLOAT16), int(TensorProto.DOUBLE)} & kinds
        if wrong:
            kind = TensorProto.DataType.Name(min(wrong)).lower()
            raise MkcError(f"half precision: the graph has values in {kind}; expected float32")
        self.maker = {output: index for index, node in enumerate(self.nodes) for output in node.output}
        self.readers: dict[str, list[int]] = {}
        for index, node in enumerate(self.nodes):
            for name in dict.fromkeys(node.input):
                self.readers.setdefault(name, []).append(index)
        self.kept: dict[int, str] = {}
        self.outgrown: dict[int, str] = {}
        self.precision: dict[int, int] = {}  # of every node that reads or makes floats

    def run(self) -> HalfGraph:
        self._keep()
        self._settle()
        converted = self._rebuilt()
        kept = {self.nodes[index].name: self.kept[index] for index in sorted(self.kept)}
        outgrown = {self.nodes[index].name: self.outgrown[index] for index in sorted(self.outgrown)}
        return HalfGraph(converted, kept, outgrown)

    def _floats(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if name and self.types[name] == FLOAT]

    # What must be float32.

    def _keep(self) -> None:
        unfit = {name: why for name in self._floats(self.weights) if (why := _misfit(self.weights[name]))}
        self.weak = self._constants()
        for index, node in enumerate(self.nodes):
            values = [*self._floats(node.input), *self._floats(node.output)]
            if not values:
                continue
            for name in values:
                peak = self.peaks.get(name, 0.0)
                if name in unfit:
                    self.outgrown[index] = f"its weight {name} {unfit[name]}"
                elif not peak <= self.policy.largest:
                    self.outgrown[index] = f"{name} reaches {peak:.3g}"
            pattern = self._pattern(node)
            if node.op_type in self.policy.ops:
                self.kept[index] = f"is a {node.op_type}"
            elif pattern:
                self.kept[index] = f"is named by {pattern}"
            elif self.policy.stream and self._is_stream(node):
                self.kept[index] = "is the residual stream"
        if self.policy.scores:
            for index, node in enumerate(self.nodes):
                if node.op_type == "Softmax":
                    for found in self._scores(index):
                        self.kept.setdefault(found, "makes attention scores")
        self.kept.update(self.outgrown)

    def _pattern(self, node: NodeProto) -> str | None:
        names = [node.name, *(name for name in node.input if name in self.weights)]
        return next((p for p in self.policy.names if any(fnmatchcase(name, p) for name in names)), None)

    def _is_stream(self, node: NodeProto) -> bool:
        if node.op_type != "Add" or any(name in self.weak for name in node.input):
            return False
        made = node.output[0]
        readers = [self.nodes[index].op_type for index in self.readers.get(made, [])]
        return made in self.outputs or "LayerNormalization" in readers

    def _scores(self, softmax: int) -> list[int]:
        """The Softmax and what computes its input, back to the nearest products, those included."""
        found, ahead = {softmax}, [softmax]
        while ahead:
            for name in self._floats(self.nodes[ahead.pop()].input):
                index = self.maker.get(name)
                if index is None or index in found or self.nodes[index].op_type == "LayerNormalization":
                    continue
                found.add(index)
                if self.nodes[index].op_type not in _PRODUCTS:
                    ahead.append(index)
        # What only moves values goes along with its neighbours; see _settle.
        return [index for index in found if self.nodes[index].op_type not in _LAYOUT]

    # What each node is then.

    def _constants(self) -> set[str]:
        """Float values that depend on no float input: weights, tables of positions, masks. They take either type."""
        constant = {name for name in self.weights if self.types[name] == FLOAT}
        for node in self.nodes:
            if all(name in constant for name in self._floats(node.input)):
                constant.update(self._floats(node.output))
        return constant

    def _settle(self) -> None:
        """Give each node its precision: forward what follows from its inputs, backward what its readers leave free."""
        made = dict.fromkeys(self._floats(value.name for value in self.model.graph.input), FLOAT)
        free = []
        for index, node in enumerate(self.nodes):
            read, written = self._floats(node.input), self._floats(node.output)
            if (not read and not written) or node.op_type == "Shape":
                continue
            known = [made[name] for name in read if name in made]
            if index in self.kept or not written:
                self.precision[index] = FLOAT
            elif node.op_type in _PRODUCTS:
                self.precision[index] = HALF
            elif known:
                self.precision[index] = FLOAT if FLOAT in known else HALF
            else:
                free.append(index)
                continue
            made.update(dict.fromkeys(written, self.precision[index]))
        for index in reversed(range(len(self.nodes))):
            node = self.nodes[index]
            # Values on their way from float32 to float16 are cast before they are moved, not after.
            moved = node.op_type in _LAYOUT and self.precision.get(index) == FLOAT and index not in self.kept
            if index in free or moved:
                readers = [
                    self.precision[r] for name in node.output for r in self.readers.get(name, []) if r in self.precision
                ]
                shown = any(name in self.outputs for name in node.output)
                self.precision[index] = FLOAT if shown or FLOAT in readers or not readers else HALF

    # The new graph.

    def _rebuilt(self) -> ModelProto:
        taken = {*self.types}
        # Each float value has one name a precision; graph inputs and outputs are float32 under their own.
        names: dict[tuple[str, int], str] = {}
        native: dict[str, int] = {}
        for name, kind in self.types.items():
            if kind != FLOAT:
                continue
            index = self.maker.get(name)
            native[name] = FLOAT if index is None else self.precision[index]
            own = FLOAT if index is None or name in self.outputs else native[name]
            names[name, own] = name
            names[name, _other(own)] = _free_name(name + ("_half" if own == FLOAT else "_float"), taken)
        # A weight that is only used in float16 keeps its name.
        wanted: dict[str, set[int]] = {}
        for index, node in enumerate(self.nodes):
            for name in self._floats(node.input):
                if name in self.weights:
                    wanted.setdefault(name, set()).add(self.precision.get(index, FLOAT))
        for name, kinds in wanted.items():
            if kinds == {HALF}:
                names[name, HALF], names[name, FLOAT] = name, names[name, HALF]

        nodes: list[NodeProto] = []
        there = {(name, native[name]) for name in native if name not in self.maker and name not in self.weights}

        def cast(name: str, kind: int) -> str:
            if (name, kind) not in there and name not in self.weights:
                there.add((name, kind))
                source = names[name, _other(kind)]
                nodes.append(
                    helper.make_node("Cast", [source], [names[name, kind]], f"cast_{names[name, kind]}", to=kind)
                )
            return names[name, kind]

        for index, node in enumerate(self.nodes):
            new = NodeProto()
            new.CopyFrom(node)
            kind = self.precision.get(index, FLOAT)
            for position, name in enumerate(node.input):
                if name and self.types[name] == FLOAT:
                    # The shape of a value is that of its cast, too.
                    new.input[position] = cast(name, native[name] if node.op_type == "Shape" else kind)
            for position, name in enumerate(node.output):
                if name and self.types[name] == FLOAT:
                    new.output[position] = names[name, native[name]]
                    there.add((name, native[name]))
            if node.op_type == "Cast" and self._floats(node.output):
                _attribute(new, "to").i = native[node.output[0]]
            nodes.append(new)
            for name in self._floats(node.output):
                if name in self.outputs:
                    cast(name, FLOAT)

        converted = ModelProto()
        converted.CopyFrom(without_weights(self.model))
        converted.graph.node.extend(nodes)
        for tensor in self.model.graph.initializer:
            if self.types[tensor.name] != FLOAT:
                converted.graph.initializer.append(tensor)
                continue
            for kind in sorted(wanted.get(tensor.name, ())):
                array = numpy_helper.to_array(tensor)
                array = array.astype(np.float16) if kind == HALF else array
                converted.graph.initializer.append(numpy_helper.from_array(array, names[tensor.name, kind]))
        return converted


def value_types(model: ModelProto) -> dict[str, int]:
    """The element type of every value, by propagation from inputs and weights; empty names are absent."""
    graph = model.graph
    types = {value.name: value.type.tensor_type.elem_type for value in graph.input}
    types.update({tensor.name: tensor.data_type for tensor in graph.initializer})
    if model.functions or graph.sparse_initializer:
        raise MkcError("half precision: the graph has functions or sparse weights")
    known = _PRODUCTS | _ELEMENTWISE | _LAYOUT | _OTHER | _TYPED.keys()
    for node in graph.node:
        own = node.domain in {"", "ai.onnx"} or (node.domain == "com.microsoft" and node.op_type in _FUSED)
        if not own or node.op_type not in known:
            name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            raise MkcError(f"half precision: operator {name} (node {node.name}) is not known; how wide must it be?")
        if len(node.output) > 1 and node.op_type == "LayerNormalization":
            raise MkcError(f"half precision: node {node.name} gives its statistics, whose type is fixed")
        if node.op_type == "Cast":
            kind = _attribute(node, "to").i
        elif node.op_type in _TYPED:
            kind = _TYPED[node.op_type]
        else:
            kind = types[node.input[1 if node.op_type == "Where" else 0]]
        types.update({name: kind for name in node.output if name})
    return types


def _other(kind: int) -> int:
    return HALF if kind == FLOAT else FLOAT


def _attribute(node: NodeProto, name: str) -> AttributeProto:
    found: AttributeProto = next(attribute for attribute in node.attribute if attribute.name == name)
    return found


def _misfit(tensor: TensorProto) -> str | None:
    """What float16 would lose of a weight, or None."""
    array = numpy_helper.to_array(tensor)
    largest = float(np.abs(array).max(initial=0.0))
    if not largest <= LARGEST:
        return f"has values up to {largest:.3g}"
    # Of a vector, a bias as a rule, small values do no harm: they are added to larger ones.
    rms = float(np.linalg.norm(array)) / max(1, array.size) ** 0.5
    return f"has an RMS of {rms:.3g}" if array.ndim > 1 and 0 < rms < _TOO_SMALL else None


def _free_name(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def rounding_shown(model: ModelProto) -> ModelProto:
    """The same half-precision graph with each rounding to float16 as a Cast of its own, and arithmetic in float32.

    ONNX Runtime's CPU provider has few float16 kernels. It computes most of a float16 graph in float32 without
    rounding in between, and so shows neither its errors nor its overflows. This form makes it compute what a device
    does that stores float16 and adds up in float32.
    """
    shown, types = without_weights(model), value_types(model)
    for tensor in model.graph.initializer:
        if tensor.data_type == HALF:
            array = numpy_helper.to_array(tensor).astype(np.float32)
            shown.graph.initializer.append(numpy_helper.from_array(array, tensor.name))
        else:
            shown.graph.initializer.append(tensor)
    for node in model.graph.node:
        new = NodeProto()
        new.CopyFrom(node)
        # Every float16 value becomes a float32 one of the same name, which float16 can hold.
        if node.op_type == "Cast" and types[node.output[0]] == HALF:
            _attribute(new, "to").i = FLOAT
        shown.graph.node.append(new)
        if types[node.output[0]] == HALF and node.op_type not in _LAYOUT:
            (name,) = node.output
            new = shown.graph.node[-1]
            new.output[0] = f"{name}:wide"
            shown.graph.node.append(helper.make_node("Cast", [f"{name}:wide"], [f"{name}:half"], to=HALF))
            shown.graph.node.append(helper.make_node("Cast", [f"{name}:half"], [name], to=FLOAT))
    return shown


def measured_peaks(model: ModelProto, *inputs: Mapping[str, NDArray[np.generic]]) -> dict[str, float]:
    """The largest magnitude of every float value of a float32 graph on any of these inputs, by name.

    Masks are values, too: measure on utterances without padding.
    """
    measuring = ModelProto()
    measuring.CopyFrom(model)
    types = value_types(model)
    made = [name for node in model.graph.node for name in node.output if name and types[name] == FLOAT]
    names = [*made, *(value.name for value in model.graph.input if types[value.name] == FLOAT)]
    for name in names:
        measuring.graph.node.append(helper.make_node("Abs", [name], [f"{name}:abs"]))
        measuring.graph.node.append(helper.make_node("ReduceMax", [f"{name}:abs"], [f"{name}:peak"], keepdims=0))
    del measuring.graph.output[:]
    measuring.graph.output.extend(helper.make_tensor_value_info(f"{name}:peak", FLOAT, []) for name in names)
    session = open_session(measuring)
    found = np.max([session.run(None, dict(each)) for each in inputs], axis=0)  # NaN where one is
    return dict(zip(names, found.tolist(), strict=True))
