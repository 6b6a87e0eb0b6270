"""Builds a graph node by node: what the native graphs and those for CUDA share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

from mkc_fast.export.networks.layers import MASKED_SCORE, Linear

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from numpy.typing import NDArray

    from mkc_fast.export.networks.wavlm import TimeNorm

# Inputs or outputs of a graph by name: their type and axes.
Values = dict[str, tuple[type[np.generic], "Sequence[str | int]"]]

OPSET, IR_VERSION = 20, 10


class GraphBuilder:
    """A graph under construction: nodes by their outputs' names, weights by what they are."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.weights: list[tuple[str, NDArray[np.generic]]] = []
        self._constants: dict[tuple[str, bytes, tuple[int, ...]], str] = {}

    def add(self, operator: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """The output of a new node."""
        return self.add_all(operator, inputs, 1, domain=domain, **attributes)[0]

    def add_all(
        self, operator: str, inputs: Sequence[str], outputs: int, domain: str = "", **attributes: Any
    ) -> list[str]:
        """All outputs of a new node."""
        name = f"{operator.lower()}_{len(self.nodes)}"
        made = [name, *(f"{name}_{index}" for index in range(1, outputs))]
        self.nodes.append(helper.make_node(operator, list(inputs), made, name, domain=domain, **attributes))
        return made

    def weight(self, values: NDArray[np.generic], name: str | None = None) -> str:
        """A weight; its name, where one is given, is what ``mkc_fast.export.precision.half`` may know it by."""
        name = name or f"weight_{len(self.weights)}"
        self.weights.append((name, np.asarray(values, order="C")))
        return name

    def constant(self, values: object, kind: type[np.generic]) -> str:
        """A small weight; equal ones are one."""
        array = np.asarray(values, kind)
        key = (array.dtype.str, array.tobytes(), array.shape)
        if key not in self._constants:
            self._constants[key] = self.weight(array)
        return self._constants[key]

    def axes(self, *axes: int) -> str:
        """A list of integers, such as axes, as an input."""
        return self.constant(axes, np.int64)

    def layer_norm(self, x: str, norm: torch.nn.LayerNorm) -> str:
        """``norm`` of the last axis."""
        scale, shift = self.weight(numpy_of(norm.weight)), self.weight(numpy_of(norm.bias))
        return self.add("LayerNormalization", x, scale, shift, axis=-1, epsilon=norm.eps)

    def time_norm(self, x: str, norm: TimeNorm, keep: str) -> str:
        """``norm`` of ``x`` (B, T, C) over the frames that ``keep`` (B, T, 1) keeps."""
        count = self.add("ReduceSum", keep, self.axes(1))
        mean = self.add("Div", self.add("ReduceSum", self.add("Mul", x, keep), self.axes(1)), count)
        centered = self.add("Mul", self.add("Sub", x, mean), keep)
        squares = self.add("ReduceSum", self.add("Mul", centered, centered), self.axes(1))
        variance = self.add("Add", self.add("Div", squares, count), self.constant(1e-5, np.float32))
        scaled = self.add("Div", centered, self.add("Sqrt", variance))
        scale, shift = (self.weight(numpy_of(part).reshape(-1)) for part in (norm.weight, norm.bias))
        return self.add("Add", self.add("Mul", scaled, scale), shift)

    def frames(self, x: str) -> str:
        """How many frames ``x`` has, int64 ()."""
        return self.add("Squeeze", self.add("Shape", x, start=1, end=2), self.axes(0))

    def first_frames(self, lengths: str, frames: str) -> str:
        """Which frames come before each length: bool (B, T)."""
        zero, one = self.constant(0, np.int64), self.constant(1, np.int64)
        return self.add("Less", self.add("Range", zero, frames, one), self.add("Unsqueeze", lengths, self.axes(1)))

    def covered(self, lengths: str, frames: str, stride: int, window: int) -> str:
        """As ``mkc_fast.export.networks.wavlm.covered``: bool (B, T)."""
        first, step = self.constant(window, np.int64), self.constant(stride, np.int64)
        end = self.add("Add", self.add("Mul", frames, step), first)
        ends = self.add("Range", first, end, step)
        return self.add("LessOrEqual", ends, self.add("Unsqueeze", lengths, self.axes(1)))

    def key_mask(self, valid: str) -> str:
        """What to add to attention scores: float32 of the shape of ``valid``."""
        return self.add("Where", valid, self.constant(0, np.float32), self.constant(MASKED_SCORE, np.float32))

    def keep(self, valid: str) -> str:
        """One where valid, zero elsewhere: (B, T, 1)."""
        return self.add("Unsqueeze", self.add("Cast", valid, to=TensorProto.FLOAT), self.axes(2))

    def name_output(self, result: str, output: str) -> None:
        """Give a value the name of the graph's output."""
        self.nodes.append(helper.make_node("Identity", [result], [output], output))


def values_of(values: Values) -> list[Any]:
    """Inputs or outputs as ONNX has them."""
    return [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(kind)), list(shape))
        for name, (kind, shape) in values.items()
    ]


def domains(versions: Mapping[str, int]) -> list[Any]:
    """The operator sets of a graph: ONNX's own, and others by name."""
    return [helper.make_opsetid("", OPSET), *(helper.make_opsetid(name, number) for name, number in versions.items())]


def matrix(linear: Linear) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weights (in, out) and bias (out,)."""
    weight = numpy_of(linear.weight)
    return weight, np.zeros(weight.shape[1], np.float32) if linear.bias is None else numpy_of(linear.bias)


def numpy_of(tensor: torch.Tensor) -> NDArray[np.float32]:
    """A parameter's values."""
    values: NDArray[np.float32] = tensor.detach().numpy()
    return values
