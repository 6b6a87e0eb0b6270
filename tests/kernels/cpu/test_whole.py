"""The native operators in whole numbers: exact products of rounded blocks, with the same bits everywhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mkc_fast.export.graphs.packing import (
    BLOCK,
    MOST,
    PANEL,
    in_whole,
    pack,
    pack_convolution,
    pack_gated,
    pack_transposed,
    pack_winograd,
)
from tests.kernels.cpu.test_native import GELU, GLU, PLAIN, SILU, Array, Blocks, normal, run, tensor

BITS = [16, 8]


def convolution(
    bits: int, x: Array, panels: Array, b: Array, residual: Array | None = None, threads: int = 2, **told: Any
) -> Array:
    """The operator on packed float32 weights, which are rounded here as the exporter rounds them."""
    attributes = {**PLAIN, "columns": len(b), **told}
    channels = x.shape[2] // attributes["groups"]
    values, scales, offsets = in_whole(panels, channels, bits)
    inputs: dict[str, Array | None] = {"x": x, "w": values, "b": b, "s": scales}
    if bits == 8:
        inputs["o"] = offsets
    return run(f"Convolution{bits}", {**inputs, "r": residual}, threads, **attributes)


def rounded(values: Array, bits: int, axis: int) -> np.ndarray:
    """Blocks of 128 along an axis, each rounded to whole numbers of its largest magnitude: float64."""
    moved = np.moveaxis(np.asarray(values, np.float32), axis, -1)
    parts = []
    for begin in range(0, moved.shape[-1], BLOCK):
        part = moved[..., begin : begin + BLOCK]
        largest = np.abs(part).max(-1, keepdims=True).astype(np.float64)
        unit = np.where(largest > 0, largest / MOST[bits], 1)
        parts.append(np.rint(part / unit) * unit)
    return np.moveaxis(np.concatenate(parts, -1), -1, axis)


def doubles(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x, np.float64))


def assert_near(found: Array, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Up to float32's rounding, and to a value in some thousands that lies half way and is rounded the other way."""
    other = expected.numpy()
    assert found.shape == other.shape
    assert np.sqrt(np.mean((found - other) ** 2)) <= tolerance * np.sqrt(np.mean(other**2))


def snr(expected: np.ndarray, found: np.ndarray) -> float:
    expected = np.asarray(expected, np.float64)
    return float(10 * np.log10(np.sum(expected**2) / np.sum((expected - found) ** 2)))


@pytest.mark.parametrize("whole", BITS)
@pytest.mark.parametrize(("frames", "depth", "columns"), [(500, 304, 96), (37, 48, 24), (1, 16, 100), (127, 640, 33)])
def test_linear_is_the_exact_product_of_rounded_blocks(
    instructions: str, whole: int, frames: int, depth: int, columns: int
) -> None:
    x, w, b = normal(2, frames, depth), normal(depth, columns, scale=depth**-0.5), normal(columns)
    residual = normal(2, frames, columns)
    expected = doubles(rounded(x, whole, 2)) @ doubles(rounded(w, whole, 0)) + doubles(b)
    tolerance = 1e-5 if whole == 16 else 1e-4
    assert_near(convolution(whole, x, pack(w), b, residual), expected + doubles(residual), tolerance)
    assert_near(convolution(whole, x, pack(w), b, activation=GELU), F.gelu(expected), tolerance)
    assert_near(convolution(whole, x, pack(w), b, activation=SILU), F.silu(expected), tolerance)


@pytest.mark.parametrize("whole", BITS)
def test_glu_of_rounded_blocks(instructions: str, whole: int) -> None:
    x, w, b = normal(2, 90, 160), normal(160, 96, scale=0.1), normal(96)
    weights, bias = pack_gated(w, b)
    expected = F.glu(doubles(rounded(x, whole, 2)) @ doubles(rounded(w, whole, 0)) + doubles(b))
    assert_near(convolution(whole, x, weights, bias, activation=GLU), expected, 1e-4)


@pytest.mark.parametrize("whole", BITS)
@pytest.mark.parametrize(
    ("frames", "channels", "columns", "kernel", "stride", "left", "right"),
    [(101, 16, 40, 3, 2, 0, 0), (64, 144, 40, 7, 1, 3, 3), (333, 32, 16, 10, 5, 0, 0), (2, 32, 33, 7, 1, 3, 3)],
)
def test_convolution_is_that_of_rounded_frames(
    instructions: str, whole: int, frames: int, channels: int, columns: int, kernel: int, stride: int, left: int,
    right: int,
) -> None:  # fmt: skip
    x, b = normal(2, frames, channels), normal(columns)
    w = normal(columns, channels, kernel, scale=(channels * kernel) ** -0.5)
    told = {"kernel": kernel, "stride": stride, "left": left, "right": right, "slope": 0.01}
    found = convolution(whole, x, pack_convolution(w), b, **told)
    activated = doubles(rounded(F.leaky_relu(tensor(x), 0.01).numpy(), whole, 2)).transpose(1, 2)
    expected = F.conv1d(F.pad(activated, (left, right)), doubles(rounded(w, whole, 1)), doubles(b), stride=stride)
    assert_near(found, expected.transpose(1, 2), 1e-4)


@pytest.mark.parametrize("whole", BITS)
@pytest.mark.parametrize(("groups", "kernel"), [(4, 128), (2, 3), (4, 19)])
def test_grouped_convolution_is_that_of_rounded_groups(instructions: str, whole: int, groups: int, kernel: int) -> None:
    x, b = normal(2, 300, 64), normal(64)
    w = normal(64, 64 // groups, kernel, scale=(kernel * 64 / groups) ** -0.5)
    left, right = kernel // 2, kernel - 1 - kernel // 2
    told = {"kernel": kernel, "left": left, "right": right, "groups": groups, "activation": GELU}
    by_group = np.concatenate([rounded(part, whole, 2) for part in np.split(x, groups, 2)], 2)
    padded = F.pad(doubles(by_group).transpose(1, 2), (left, right))
    expected = F.gelu(F.conv1d(padded, doubles(rounded(w, whole, 1)), doubles(b), groups=groups)).transpose(1, 2)
    assert_near(convolution(whole, x, pack_convolution(w, groups), b, **told), expected, 1e-4)


def test_transposed_convolution_is_that_of_rounded_frames(instructions: str) -> None:
    x, b, rate = normal(2, 50, 64), normal(40), 10
    w = normal(64, 40, 20, scale=1280**-0.5)
    weights, window = pack_transposed(w, rate)
    told = {"kernel": window, "left": window - 1, "right": window - 1, "rate": rate, "crop": 5, "slope": 0.1}
    found = convolution(16, x, weights, np.tile(b, rate), **told)
    activated = doubles(rounded(F.leaky_relu(tensor(x), 0.1).numpy(), 16, 2)).transpose(1, 2)
    expected = F.conv_transpose1d(activated, doubles(rounded(w, 16, 0)), doubles(b), stride=rate, padding=5)
    assert_near(found, expected.transpose(1, 2))


class WholeBlocks(Blocks):
    """Residual blocks whose weights are rounded to whole numbers after they are evaluated."""

    def run(self, x: Array, threads: int = 2) -> Array:
        channels = x.shape[2]
        values, scales = [], []
        for layers in self.layers:
            for w, _, _ in layers:
                whole, scale, _ = in_whole(pack_winograd(w), -(-channels // 16) * 16, 16)
                values.append(whole.reshape(-1))
                scales.append(scale.reshape(-1))
        inputs = {"x": x, "w": np.concatenate(values), "b": self.biases, "s": np.concatenate(scales)}
        return run(
            "ResidualBlocks16", inputs, threads, kernels=self.kernels, dilations=self.dilations * len(self.kernels),
            plain=int(self.plain), slope=0.1,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("channels", "frames", "kernels", "dilations", "plain"),
    [(32, 900, (3, 7, 11), (1, 3, 5), True), (64, 3000, (3, 7, 11), (1, 3, 5), True),
     (256, 300, (3, 7, 11), (1, 3, 5), True), (40, 70, (13,), (9,), True), (32, 1, (3, 7, 11), (1, 3, 5), True),
     (144, 300, (3, 7), (1, 3), True), (32, 513, (3, 5, 7), (1, 3), False), (13, 211, (3, 7), (1, 3), True)],
)  # fmt: skip
def test_residual_blocks_are_near_float32s(
    instructions: str, channels: int, frames: int, kernels: tuple[int, ...], dilations: tuple[int, ...], plain: bool
) -> None:
    """50 dB: bfloat16, rounded in the same places, would have some 35."""
    blocks, x = WholeBlocks(channels, kernels, dilations, plain=plain), normal(2, frames, channels)
    assert snr(blocks.expected(x).numpy(), blocks.run(x)) > 50


def test_every_set_of_instructions_gives_the_same_bits(native_sets: list[Any]) -> None:
    x, w, b = normal(2, 130, 304), normal(304, 96, scale=0.1), normal(96)
    blocks, y = WholeBlocks(48, (3, 7), (1, 3), plain=True), normal(1, 500, 48)
    # AMX takes whole blocks of 128 channels: of 480 all but the last.
    wide, w_wide, kernels = normal(2, 131, 512), normal(512, 96, scale=0.1), normal(96, 512, 3, scale=0.03)
    found = []
    for chosen in native_sets:
        with chosen:
            found.append(
                [
                    *(convolution(bits, x, pack(w), b) for bits in BITS),
                    *(convolution(8, wide[:, :, :width], pack(w_wide[:width]), b) for width in (512, 128, 480)),
                    convolution(8, wide, pack_convolution(kernels), b, kernel=3, stride=2, left=1, right=1),
                    blocks.run(y),
                ]
            )
    assert len(found) > 1 or len(native_sets) == 1
    for other in found[1:]:
        # No activation here has an exponential, and sums of blocks are in one order everywhere.
        for one, two in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("whole", BITS)
def test_bits_depend_neither_on_threads_nor_on_the_batch(instructions: str, whole: int) -> None:
    x, w, b = normal(3, 300, 144), normal(144, 200, scale=0.1), normal(200)
    alone = [convolution(whole, row[None], pack(w), b, threads=1)[0] for row in x]
    for threads in (1, 2, 3):
        np.testing.assert_array_equal(convolution(whole, x, pack(w), b, threads=threads), np.stack(alone))
    one = convolution(whole, x[:1, 17:18], pack(w), b)
    np.testing.assert_array_equal(one[0, 0], alone[0][17])


def test_bits_of_residual_blocks_depend_neither_on_threads_nor_on_the_batch(instructions: str) -> None:
    blocks, x = WholeBlocks(48, (3, 7), (1, 3), plain=True), normal(2, 1500, 48)
    alone = np.concatenate([blocks.run(row[None], threads=1) for row in x])
    for threads in (1, 2, 3):
        np.testing.assert_array_equal(blocks.run(x, threads=threads), alone)


@pytest.mark.parametrize("whole", BITS)
@pytest.mark.parametrize("power", [-60, -20, 40, 90])
def test_the_scale_of_the_inputs_changes_nothing(instructions: str, whole: int, power: int) -> None:
    """No calibration, and no range that values have to be in."""
    x, w, b = normal(1, 40, 144), normal(144, 64), np.zeros(64, np.float32)
    scaled = convolution(whole, x * np.float32(2.0**power), pack(w), b)
    np.testing.assert_array_equal(scaled, convolution(whole, x, pack(w), b) * np.float32(2.0**power))


@pytest.mark.parametrize("whole", BITS)
def test_an_outlier_is_felt_in_its_block_alone(instructions: str, whole: int) -> None:
    x, w, b = normal(1, 40, 256), normal(256, 64), np.zeros(64, np.float32)
    loud = x.copy()
    loud[..., 200] = 1e4
    quiet = [convolution(whole, part, pack(np.where(np.arange(256)[:, None] < 128, w, 0)), b) for part in (x, loud)]
    np.testing.assert_array_equal(*quiet)


@pytest.mark.parametrize("whole", BITS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so_in_its_row(instructions: str, whole: int, value: float) -> None:
    x, w, b = normal(1, 40, 48), normal(48, 64), normal(64)
    plain = convolution(whole, x, pack(w), b)
    x[0, 7, 5] = value
    found = convolution(whole, x, pack(w), b)
    assert not np.isfinite(found[0, 7]).any()
    np.testing.assert_array_equal(np.delete(found, 7, 1), np.delete(plain, 7, 1))


@pytest.mark.parametrize("whole", BITS)
def test_zeros_give_the_bias(instructions: str, whole: int) -> None:
    for x in (np.zeros((1, 20, 32), np.float32), np.full((1, 20, 32), 1e-40, np.float32)):
        b = normal(64)
        np.testing.assert_array_equal(convolution(whole, x, pack(normal(32, 64)), b), np.broadcast_to(b, (1, 20, 64)))


@pytest.mark.parametrize("whole", BITS)
@settings(deadline=None)
@given(values=arrays.arrays(np.float32, (128, 32), elements=st.floats(-1e6, 1e6, width=32)))
def test_rounding_is_within_its_bounds(whole: int, values: Array) -> None:
    """Half a unit of the largest in the block, so the RMS error is at most 8e-4 of the RMS value in 16 bits."""
    found, scales, _ = in_whole(pack(values), 128, whole)
    together = 32 // whole
    whole_numbers = found.reshape(128 // together, PANEL, together).transpose(0, 2, 1).reshape(128, PANEL)
    assert np.abs(whole_numbers.astype(int)).max() <= MOST[whole]
    made = whole_numbers * scales[0].astype(np.float64)
    error, largest = np.abs(made - values), np.abs(values).max(0)
    assert (error <= (0.5 + 1e-3) * largest / MOST[whole] + 1e-38).all()
    rms = np.sqrt((values.astype(np.float64) ** 2).mean(0))
    assert (np.sqrt((error**2).mean(0)) <= np.sqrt(128) / 2 * (1 + 1e-3) / MOST[whole] * rms + 1e-38).all()


@pytest.mark.parametrize("whole", BITS)
def test_the_largest_values_do_not_overflow(instructions: str, whole: int) -> None:
    for sign in (1, -1):
        x, w = np.full((1, 3, 256), sign, np.float32), np.ones((256, 32), np.float32)
        found = convolution(whole, x, pack(w), np.zeros(32, np.float32))
        np.testing.assert_allclose(found, 256 * sign, rtol=1e-6)


@pytest.mark.parametrize(
    ("operator", "name", "shape", "message"),
    [
        ("Convolution16", "s", (2, 2, 32), "scales of another size"),
        ("Convolution16", "w", (2, 24, 32), "weights of another size"),
        ("Convolution8", "o", (2, 3, 32), "offsets of another size"),
        ("Convolution8", "s", (1, 1, 32), "scales of another size"),
        ("Convolution8", "w", (2, 12, 64), "weights of another size"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(operator: str, name: str, shape: tuple[int, ...], message: str) -> None:
    bits = int(operator.removeprefix("Convolution"))
    values, scales, offsets = in_whole(pack(normal(48, 64)), 48, bits)
    inputs: dict[str, Array | None] = {"x": normal(1, 9, 48), "w": values, "b": normal(64), "s": scales}
    if bits == 8:
        inputs["o"] = offsets
    given = inputs[name]
    assert given is not None
    inputs[name] = np.zeros(shape, given.dtype)
    with pytest.raises(Exception, match=message):
        run(operator, inputs, **PLAIN, columns=64)


def test_channels_that_vectors_do_not_divide_are_refused() -> None:
    values, scales, _ = in_whole(pack(normal(40, 64)), 40, 16)
    inputs: dict[str, Array | None] = {"x": normal(1, 9, 40), "w": values, "b": normal(64), "s": scales}
    with pytest.raises(Exception, match="channels in whole numbers"):
        run("Convolution16", inputs, **PLAIN, columns=64)


def test_scales_of_residual_blocks_that_do_not_fit_are_refused() -> None:
    values, _, _ = in_whole(pack_winograd(normal(32, 32, 3)), 32, 16)
    inputs: dict[str, Array | None] = {
        "x": normal(1, 9, 32), "w": values.reshape(-1), "b": np.zeros((1, 32), np.float32), "s": normal(32 * 5),
    }  # fmt: skip
    with pytest.raises(Exception, match="scales of another size"):
        run("ResidualBlocks16", inputs, kernels=[3], dilations=[1], plain=0, slope=0.1)
