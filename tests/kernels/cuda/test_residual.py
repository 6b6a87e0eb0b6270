"""The residual pair's kernel gives what float64 gives, in plans that fit."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest

from mkc_fast import DeviceError
from mkc_fast.kernels.cuda import residual_counts, residual_plans
from mkc_fast.kernels.cuda.residual import DeviceResidual
from mkc_fast.kernels.cuda.residual_plans import PairShape, ResidualPlan, make_plan, pack_weights, plans
from tests.conftest import ROOT
from tests.fakes.cuda import shim
from tests.fakes.cuda.fake_cupy import FakeCupy

# Shared memory of a block and of a multiprocessor.
A100, ADA, H100 = (163 << 10, 164 << 10), (99 << 10, 100 << 10), (227 << 10, 228 << 10)
V1 = [
    PairShape(width, kernel_size, dilation)
    for width, kernel_size, dilation in itertools.product((256, 128, 64, 32), (3, 7, 11), (1, 3, 5))
]
OTHERS = [
    PairShape(*sizes)
    for sizes in (
        (16, 3, 1), (48, 3, 2), (80, 5, 1), (96, 1, 1), (64, 21, 2), (272, 3, 1), (512, 3, 1), (176, 3, 7)
    )
]  # fmt: skip


class Pair:
    """Random weights of a pair, as the kernel takes them and as they are."""

    def __init__(self, shape: PairShape, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.shape = shape
        spread = (shape.width * shape.kernel_size) ** -0.5
        size = (2, shape.width, shape.width, shape.kernel_size)
        self.weights = (spread * rng.standard_normal(size)).astype(np.float16)
        self.biases = rng.standard_normal((2, shape.width)).astype(np.float32)

    def exactly(self, x: np.ndarray) -> np.ndarray:
        """In float64 of (batch, frames, width), with the roundings to float16 of what the tensor cores take."""
        first = convolved(leaky(x.astype(np.float64)), self.weights[0], self.shape.dilation) + self.biases[0]
        return x + convolved(leaky(first), self.weights[1], 1) + self.biases[1]


def leaky(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, 0.1 * x).astype(np.float16).astype(np.float64)


def convolved(x: np.ndarray, weights: np.ndarray, dilation: int) -> np.ndarray:
    reach = weights.shape[2] // 2 * dilation
    padded = np.pad(x, ((0, 0), (reach, reach), (0, 0)))
    taps = [
        padded[:, tap * dilation : tap * dilation + x.shape[1]] @ weights[:, :, tap].astype(np.float64).T
        for tap in range(weights.shape[2])
    ]
    return np.sum(taps, axis=0)


def samples(batch: int, frames: int, width: int, seed: int = 1) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((batch, frames, width))
    return shim.placed(values.astype(np.float16))


def run(
    pair: Pair, plan: ResidualPlan, x: np.ndarray, schedule: int, previous: np.ndarray | None = None, scale: float = 1.0
) -> np.ndarray:
    batch, frames, width = x.shape
    out, memory = shim.aligned(x.shape, np.float16)
    if previous is not None:
        out[:] = previous
    tiles = plan.tiles(frames)
    sizes = [frames, width, plan.shape.kernel_size, plan.shape.dilation, plan.warps_across, tiles]
    arrays = [shim.placed(array) for array in (pack_weights(plan, *pair.weights), pair.biases)]
    shim.run(
        plan.kernel,
        batch * tiles,
        plan.threads,
        [x, *arrays, out if previous is not None else None, out, np.float32(scale), *map(np.int32, sizes)],
        plan.shared_bytes,
        schedule,
    )
    start = out.ctypes.data - memory.ctypes.data
    assert (memory[:start] == shim.POISON).all()
    assert (memory[start + out.nbytes :] == shim.POISON).all()
    return out


def check(found: np.ndarray, expected: np.ndarray) -> None:
    # An intermediate next to the middle of two float16 may go either way: half a unit of 2**-11, times a weight.
    np.testing.assert_allclose(found.astype(np.float64), expected, rtol=2.0**-10, atol=2.0**-10)


# ---- Compiled for GPUs ----


def test_nvrtc_compiles_the_source_and_says_what_it_is_not_for() -> None:
    nvrtc = pytest.importorskip("cupy", reason="no CuPy here: NVRTC does not compile the source").cuda.nvrtc
    try:
        nvrtc.getVersion()
    except RuntimeError as error:
        pytest.skip(f"no NVRTC here: {error}")

    def compile_for(architecture: int) -> str:
        program = nvrtc.createProgram(shim.RESIDUAL.read_text(), "residual.cu", (), ())
        try:
            nvrtc.compileProgram(program, ("--std=c++17", f"-arch=sm_{architecture}"))
        except nvrtc.NVRTCError:
            return str(nvrtc.getProgramLog(program))
        return ""

    for architecture in (80, 90, 100, 120):
        assert compile_for(architecture) == ""
    assert "needs compute capability 8.0 or later" in compile_for(75)


# ---- Plans ----


def test_the_constants_of_python_are_those_of_the_cuda_source() -> None:
    constants = dict(re.findall(r"constexpr int (k\w+) = (\w+);", shim.RESIDUAL.read_text()))
    for name in ("STAGES", "WIDE_GROUPS", "WIDE_STEPS", "NARROW_GROUPS", "NARROW_STEPS"):
        assert int(constants["k" + name.title().replace("_", "")]) == getattr(residual_plans, name), name
    assert 16 * int(constants["kTiles"]) == residual_plans.WARP_FRAMES


@pytest.mark.parametrize("device", [A100, ADA, H100])
def test_plans_fit_the_gpus_they_are_for(device: tuple[int, int]) -> None:
    for shape in V1:
        for plan in plans(shape, *device):
            assert plan.threads <= 256
            assert plan.shared_bytes <= device[0]
            assert plan.resident * (plan.shared_bytes + 1024) <= device[1]
            assert plan.groups * 16 >= shape.width
        chosen = make_plan(shape, *device)
        assert chosen is not None or (device == ADA and shape.width == 256), shape


def test_what_does_not_fit_has_no_plan() -> None:
    good = PairShape(64, 3, 1)
    assert make_plan(good, *H100) is not None
    for change in ({"width": 0}, {"width": 40}, {"width": 528}, {"kernel_size": 4}, {"dilation": 0}):
        assert make_plan(replace(good, **change), *H100) is None
    assert make_plan(replace(good, dilation=10_000), *H100) is None  # the halo is larger than shared memory
    assert make_plan(replace(good, kernel_size=513), *H100) is None
    assert make_plan(good, 4 << 10, 4 << 10) is None


def test_blocks_of_an_h100_are_those_of_a_sum_by_hand() -> None:
    # 128 frames and a halo of 60, 528 bytes each; three stages of two steps of 16 groups of 512 bytes.
    plan = make_plan(PairShape(256, 11, 5), *H100)
    assert plan is not None
    assert (plan.rows, plan.kept, plan.tile_rows, plan.threads) == (128, 118, 178, 256)
    assert plan.shared_bytes == 178 * 528 + 3 * 2 * 16 * 512
    assert plan.tiles(118) == 1
    assert plan.tiles(119) == 2
    assert plan.packed_halves == 2 * 11 * 256 * 256


def test_packed_weights_hold_every_weight_once() -> None:
    for width, kernel_size in ((48, 3), (64, 7), (32, 1)):
        plan = plans(PairShape(width, kernel_size, 1), *H100)[0]
        numbers = np.arange(2 * width * width * kernel_size).reshape(2, width, width, kernel_size) % 2039 + 1
        packed = pack_weights(plan, *numbers.astype(np.float16))
        assert packed.shape == (plan.packed_halves,)
        np.testing.assert_array_equal(np.sort(packed[packed > 0]), np.sort(numbers.reshape(-1)))
    with pytest.raises(ValueError, match="not"):
        pack_weights(plan, numbers[0, :16], numbers[1])


# ---- Counts ----


def test_the_docs_show_the_counts() -> None:
    page = (ROOT / "docs" / "gpu.md").read_text()
    shown = page.split("<!-- counted:begin residual -->\n")[1].split("\n<!-- counted:end -->")[0]
    assert shown == residual_counts.table()


def test_counts_are_those_of_a_sum_by_hand() -> None:
    # One pair of 1000 frames of 32 channels and 3 taps: two products of 96 × 32 a frame; an array is 64 kB.
    counts = residual_counts.count_stage(32, 1000, (3,), (1,))
    assert counts.needed == 1000 * 2 * 2 * 96 * 32
    assert counts.computed == pytest.approx(counts.needed * 512 / 510)
    assert (counts.least_bytes, counts.kernel_bytes) == (2 * 64_000, 2 * 64_000)
    assert (counts.graph_bytes, counts.unfused_bytes) == (11 * 64_000, 15 * 64_000)
    # 514 rows are read for 510, then 510 again; of both convolutions two stages of 4 steps of 1 kB.
    assert counts.cached_bytes == pytest.approx(1000 / 510 * (514 * 64 + 2 * 2 * 4 * 2 * 512))
    with pytest.raises(ValueError, match="no plan"):
        residual_counts.count_stage(40, 1000)


# ---- Run on a CPU ----


@pytest.mark.parametrize("shape", V1, ids=str)
def test_a_pair_of_the_vocoder_is_that_of_float64(shape: PairShape) -> None:
    plan = make_plan(shape, *H100)
    assert plan is not None
    pair = Pair(shape)
    x = samples(1, plan.kept + 9, shape.width)
    check(run(pair, plan, x, schedule=0), pair.exactly(x))


@pytest.mark.parametrize("frames", [1, 2, 5, 53, 54, 55, 120])
@pytest.mark.parametrize("schedule", [0, 1, 2, 3])
@pytest.mark.parametrize("width", [32, 64])
def test_every_length_and_order_gives_the_same(frames: int, schedule: int, width: int) -> None:
    shape = PairShape(width, 11, 3)
    pair, x = Pair(shape), samples(2, frames, width, seed=frames)
    for plan in plans(shape, *H100)[:2]:
        check(run(pair, plan, x, schedule), pair.exactly(x))


@pytest.mark.parametrize("shape", OTHERS, ids=str)
@pytest.mark.parametrize("schedule", [1, 4])
def test_other_shapes_are_those_of_float64(shape: PairShape, schedule: int) -> None:
    plan = make_plan(shape, *H100)
    assert plan is not None
    pair, x = Pair(shape), samples(1, plan.kept + 1, shape.width)
    check(run(pair, plan, x, schedule), pair.exactly(x))


@pytest.mark.parametrize("width", [128, 32])
def test_all_plans_of_a_shape_give_the_same_bits(width: int) -> None:
    shape = PairShape(width, 7, 3)
    pair, x = Pair(shape), samples(2, 300, width)
    outputs = [run(pair, plan, x, schedule) for schedule, plan in enumerate(plans(shape, *H100))]
    assert len(outputs) > 2
    for output in outputs[1:]:
        np.testing.assert_array_equal(output, outputs[0])


def test_an_output_is_scaled_and_added_to_what_is_there() -> None:
    shape = PairShape(32, 3, 5)
    plan = make_plan(shape, *H100)
    assert plan is not None
    pair, x, previous = Pair(shape), samples(2, 130, 32), samples(2, 130, 32, seed=5)
    found = run(pair, plan, x, 0, previous, scale=1 / 3)
    check(found, previous + pair.exactly(x) / 3)


def test_batch_equals_single() -> None:
    shape = PairShape(64, 7, 5)
    plan = make_plan(shape, *H100)
    assert plan is not None
    pair, x = Pair(shape), samples(3, 70, 64)
    together = run(pair, plan, x, 0)
    for one in range(3):
        np.testing.assert_array_equal(run(pair, plan, shim.placed(x[one : one + 1]), 0), together[one : one + 1])


def test_an_output_depends_on_no_frame_past_its_reach() -> None:
    shape = PairShape(32, 7, 5)
    plan = make_plan(shape, *H100)
    assert plan is not None
    pair, x = Pair(shape), samples(1, 1200, 32)
    changed = shim.placed(x.copy())
    changed[0, 600] = np.nan
    reach = 3 * 5 + 3
    before, after = run(pair, plan, x, 0), run(pair, plan, changed, 0)
    np.testing.assert_array_equal(np.isnan(after[0]).any(1), np.abs(np.arange(1200) - 600) <= reach)
    for kept in (slice(0, 600 - reach), slice(601 + reach, None)):
        np.testing.assert_array_equal(after[0, kept], before[0, kept])


# ---- The CuPy front, over a stand-in for CuPy ----


@pytest.fixture
def residual(request: pytest.FixtureRequest) -> tuple[FakeCupy, DeviceResidual]:
    shim.library()
    fake = FakeCupy(schedule=getattr(request, "param", 0))
    return fake, DeviceResidual(fake, fake.cuda.Device(0))


@pytest.mark.parametrize("residual", range(3), indirect=True)
def test_three_blocks_are_summed_and_the_input_stays(residual: tuple[FakeCupy, DeviceResidual]) -> None:
    cupy, device = residual
    pairs = [
        [Pair(PairShape(32, kernel_size, dilation), seed=10 * kernel_size + dilation) for dilation in (1, 3, 5)]
        for kernel_size in (3, 7, 11)
    ]
    placed = [[device.place(pair.weights, pair.biases, pair.shape.dilation) for pair in block] for block in pairs]
    values = samples(2, 300, 32)
    x = cupy.asarray(values)
    found = device.run_blocks(placed, x, scale=1 / 3).get()
    expected = 0.0
    for block in pairs:
        y = values.astype(np.float64)
        for pair in block:
            y = pair.exactly(y)
        expected = expected + y / 3
    np.testing.assert_allclose(found, expected, rtol=2.0**-8, atol=2.0**-8)  # eight roundings to float16, not one
    np.testing.assert_array_equal(x.get(), values)


def test_a_device_gets_no_plan_that_it_has_no_room_for() -> None:
    small = FakeCupy(shared_bytes=20 << 10)
    device = DeviceResidual(small, small.cuda.Device(0))
    pair = Pair(PairShape(64, 3, 1))
    assert device.place(pair.weights, pair.biases, 1) is None


def test_arrays_that_do_not_fit_are_refused(residual: tuple[FakeCupy, DeviceResidual]) -> None:
    cupy, device = residual
    pair = Pair(PairShape(32, 3, 1))
    placed = device.place(pair.weights, pair.biases, 1)
    assert placed is not None
    x, out = (cupy.asarray(samples(2, 20, 32)) for _ in range(2))
    whole = cupy.asarray(samples(3, 20, 32))
    for wrong, message in (
        (cupy.asarray(samples(2, 20, 48)), "shape"),
        (cupy.asarray(samples(2, 19, 32)), "shape"),
        (cupy.asarray(np.zeros((2, 20, 32), np.float32)), "float32"),
        (whole[0], "2 dimensions"),
        (x, "overlap"),
    ):
        with pytest.raises(DeviceError, match=message):
            device.run(placed, x, wrong)
    with pytest.raises(DeviceError, match="overlap"):
        device.run(placed, whole[:2], whole[1:])
    device.run(placed, x[:0], out[:0])
    assert not cupy.launched


def test_a_gpu_without_these_tensor_cores_is_refused() -> None:
    fake = FakeCupy()
    turing = fake.cuda.Device(0)
    turing.compute_capability = "75"
    with pytest.raises(DeviceError, match=r"cuda:0: compute capability 7\.5.*needs 8\.0"):
        DeviceResidual(fake, turing)
