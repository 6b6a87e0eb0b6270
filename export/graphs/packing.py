"""Weights in the order in which the native operators read them (``kernels/cpu``): panels of 32 columns.

A product ``x @ W`` of W (K, N) reads W as (N / 32, K, 32), the last panel filled up with zeros. Convolutions are
products of windows: their K runs over taps and then channels, as consecutive frames lie in memory.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array = NDArray[np.float32]

PANEL = 32
HALF_PANEL = PANEL // 2
# A tile of the residual blocks: so many samples of a convolution at a time.
OUTPUTS = 4
# Whole numbers: values of a block, and what its largest magnitude becomes, by bits; as in kernels/cpu/whole-inl.hpp.
BLOCK = 128
MOST = {16: 4095, 8: 127}
# Where inputs and weights are evaluated as polynomials, besides at infinity; kernels/cpu/winograd-inl.hpp has the same.
_HALF = Fraction(1, 2)
POINTS = {
    4: (Fraction(0), Fraction(1), Fraction(-1), _HALF, -_HALF, Fraction(3)),
    3: (Fraction(0), Fraction(1), Fraction(-1), _HALF, Fraction(-2)),
}


def pack(weight: NDArray[np.floating]) -> Array:
    """(K, N) → (ceil(N / 32), K, 32)."""
    depth, columns = weight.shape
    panels = -(-columns // PANEL)
    filled = np.zeros((depth, panels * PANEL), np.float32)
    filled[:, :columns] = weight
    return np.ascontiguousarray(filled.reshape(depth, panels, PANEL).transpose(1, 0, 2))


def pack_gated(weight: Array, bias: Array) -> tuple[Array, Array]:
    """A Linear (K, 2N) before a GLU, N divisible by 16: in each panel 16 columns and then the 16 that gate them."""
    half = PANEL // 2
    order = np.arange(weight.shape[1]).reshape(2, -1, half).transpose(1, 0, 2).reshape(-1)
    return pack(weight[:, order]), np.ascontiguousarray(bias[order])


def pack_convolution(weight: Array, groups: int = 1) -> Array:
    """A convolution's (N, C / groups, taps), as PyTorch has it; the panels of each group in turn."""
    parts = np.split(weight, groups)
    return np.concatenate([pack(part.transpose(2, 1, 0).reshape(-1, part.shape[0])) for part in parts])


def pack_transposed(weight: Array, rate: int) -> tuple[Array, int]:
    """A transposed convolution's (C, N, taps), as PyTorch has it, and the frames of the windows that it becomes.

    A window of w = ceil(taps / rate) frames gives ``rate`` samples, (rate, N) columns: the last of its frames reaches
    them with the first taps, the one before it with those ``rate`` further on, and so forth.
    """
    channels, columns, taps = weight.shape
    window = -(-taps // rate)
    filled = np.zeros((channels, columns, window * rate), np.float32)
    filled[:, :, :taps] = weight
    by_frame = filled.reshape(channels, columns, window, rate)[:, :, ::-1]
    return pack(by_frame.transpose(2, 0, 3, 1).reshape(window * channels, rate * columns)), window


def pack_winograd(weight: Array) -> Array:
    """A residual block's convolution (C, C, taps), evaluated at the points: (points * panels, K, 32).

    K runs over groups of four taps (or one of three) and then channels, which are filled up to half or whole panels.
    """
    columns, channels, taps = weight.shape
    size = 3 if taps == 3 else 4
    groups = -(-taps // size)
    pitch = -(-channels // HALF_PANEL) * HALF_PANEL
    filled = np.zeros((pitch, pitch, groups * size))
    filled[:columns, :channels, :taps] = weight
    # (points, taps) @ (columns, channels, groups, taps) → (points, groups, channels, columns), in float64
    evaluated = np.einsum("pr,ncgr->pgcn", evaluation(size), filled.reshape(pitch, pitch, groups, size))
    return np.concatenate([pack(point.reshape(groups * pitch, pitch)) for point in evaluated])


def in_whole(
    panels: Array, channels: int, bits: int
) -> tuple[NDArray[np.int16] | NDArray[np.int8], Array, NDArray[np.int32]]:
    """Panels (P, K, 32) in whole numbers of 16 or 8 bits, K over frames of ``channels`` values.

    Returns:
        Values (P, K / n, 32 * n) with n = 32 / bits, so that n of a column lie together; scales (P, B, 32) of the B
        blocks of at most 128 values that each column is divided into; and by what 128 more in each input raises the
        sums, negative, (P, B, 32).
    """
    count, depth, width = panels.shape
    together = 32 // bits
    starts = [frame + block for frame in range(0, depth, channels) for block in range(0, channels, BLOCK)]
    largest = np.maximum.reduceat(np.abs(panels), starts, axis=1).astype(np.float64)
    scales = (largest / MOST[bits]).astype(np.float32)
    lengths = np.diff([*starts, depth])
    divisors = np.repeat(np.where(scales > 0, scales, 1), lengths, axis=1)
    values = np.clip(np.rint(panels / divisors), -MOST[bits], MOST[bits]).astype(np.int16 if bits == 16 else np.int8)
    offsets = -128 * np.add.reduceat(values, starts, axis=1, dtype=np.int32)
    ordered = values.reshape(count, depth // together, together, width).transpose(0, 1, 3, 2)
    return np.ascontiguousarray(ordered).reshape(count, depth // together, width * together), scales, offsets


def evaluation(taps: int) -> NDArray[np.float64]:
    """The matrix that evaluates ``taps`` weights at the points (points, taps), scaled so that inputs need no fractions.

    Multiplying polynomials of degrees OUTPUTS - 1 and taps - 1 point by point and interpolating is Toom and Cook's
    product; its transpose is the convolution. Here a weight's row is divided by what the inputs' row was multiplied by
    (``inputs_and_outputs``).
    """
    return np.array([[float(x) for x in row] for row in _matrices(taps)[0]])


def inputs_and_outputs(taps: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The matrices of the inputs (points, points) and of the samples (OUTPUTS, points), as the operators have them."""
    _, inputs, outputs = _matrices(taps)
    return np.array(inputs, np.float64), np.array(outputs, np.float64)


def _matrices(taps: int) -> tuple[list[list[Fraction]], list[list[Fraction]], list[list[Fraction]]]:
    points, count = POINTS[taps], OUTPUTS + taps - 1

    def powers(length: int) -> list[list[Fraction]]:
        return [[point**k for k in range(length)] for point in points] + [
            [Fraction(k == length - 1) for k in range(length)]
        ]

    inverse = _inverse(powers(count))
    inputs = [list(row) for row in zip(*inverse, strict=True)]
    weights = powers(taps)
    for index, row in enumerate(inputs):
        scale = int(np.lcm.reduce([value.denominator for value in row]))
        inputs[index] = [value * scale for value in row]
        weights[index] = [value / scale for value in weights[index]]
    outputs = [list(row) for row in zip(*powers(OUTPUTS), strict=True)]
    return weights, inputs, outputs


def _inverse(matrix: Sequence[Sequence[Fraction]]) -> list[list[Fraction]]:
    """Gauss and Jordan's, exactly."""
    size = len(matrix)
    rows = [[*row, *(Fraction(i == j) for j in range(size))] for i, row in enumerate(matrix)]
    for column in range(size):
        pivot = next(i for i in range(column, size) if rows[i][column])
        rows[column], rows[pivot] = rows[pivot], rows[column]
        rows[column] = [value / rows[column][column] for value in rows[column]]
        for i in range(size):
            if i != column and rows[i][column]:
                factor = rows[i][column]
                rows[i] = [value - factor * other for value, other in zip(rows[i], rows[column], strict=True)]
    return [row[size:] for row in rows]
