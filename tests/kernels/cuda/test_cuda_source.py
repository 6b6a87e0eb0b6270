"""The CUDA source compiles for every architecture without spills, and does what it should when it runs on a CPU."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mkc_fast import BankError, DeviceError
from mkc_fast.kernels import NumpyLookup, make_lookup
from mkc_fast.kernels.lookup import launches
from mkc_fast.kernels.lookup.launches import Device, DeviceBank, Plan, assign, gather, make_plan
from mkc_fast.kernels.lookup.residency import SlotCache
from tests.fakes.cuda import shim
from tests.fakes.cuda.fake_cupy import FakeCupy
from tests.fakes.cuda.shim import ShimLauncher

# Turing to Blackwell: what CUDA 13 and the wheels of CuPy 14 run on, less embedded boards.
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
# Its tensor cores' m16n8k16 of float16 begins with Ampere.
FIRST_ARCHITECTURES = {shim.RESIDUAL: 80}
# A multiprocessor has 65,536 registers: for two blocks of 256 threads, or for one of 1024.
REGISTERS, SORT_REGISTERS = 128, 64
# One block of 256 threads, whose sums alone are 128 registers each.
WIDE_REGISTERS = 255
SORT_KERNELS = {"plan_all", "count_frames", "plan_entries", "sort_frames"}
STATIC_SHARED_BYTES = 5 << 10
H100 = Device(132, 227 << 10, 228 << 10)

# Frames of an entry: none, and on both sides of every tile's size.
COUNTS = (0, 1, 2, 3, 5, 8, 9, 17, 33, 0, 63, 64, 65, 128, 129, 193)


@dataclass(frozen=True)
class Case:
    """A bank, some frames, and what the look-up should say of them."""

    bank: DeviceBank
    features: np.ndarray
    bank_ids: np.ndarray
    nearest: np.ndarray


def make_case(counts: tuple[int, ...], clusters: int, dim: int, *, seed: int = 0, scale: float = 1.0) -> Case:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, clusters + 1, len(counts)).astype(np.int32)
    sizes[-1], sizes[-2] = clusters, 1
    centroids = (scale * rng.standard_normal((len(counts), clusters, dim))).astype(np.float32)
    half_norms = 0.5 * (centroids.astype(np.float64) ** 2).sum(-1)
    for entry, size in enumerate(sizes):
        centroids[entry, size:] = np.nan
        half_norms[entry, size:] = np.inf
    max_norms = np.sqrt(2 * np.where(np.isinf(half_norms), 0, half_norms).max(1))
    bank_ids = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    features = (scale * rng.standard_normal((len(bank_ids), dim))).astype(np.float32)
    bank = DeviceBank(centroids, half_norms.astype(np.float32), sizes, max_norms)
    return Case(bank, features, bank_ids, brute_force(bank, features, bank_ids))


def brute_force(bank: DeviceBank, features: np.ndarray, bank_ids: np.ndarray) -> np.ndarray:
    nearest = np.empty(len(features), np.int32)
    for entry in np.unique(bank_ids):
        centroids = bank.centroids[entry, : bank.num_clusters[entry]].astype(np.float64)
        frames = bank_ids == entry
        nearest[frames] = ((features[frames, None].astype(np.float64) - centroids) ** 2).sum(-1).argmin(1)
    return nearest


def assigned(case: Case, plan: Plan, schedule: int, **where: Any) -> tuple[np.ndarray, ShimLauncher]:
    launcher = ShimLauncher(schedule)
    cluster_ids = np.full(len(case.features), -7, np.int32)
    assign(launcher, case.bank, case.features, case.bank_ids, cluster_ids, plan, **where)
    return cluster_ids, launcher


def flagged(launcher: ShimLauncher) -> int:
    """How many frames went to float64."""
    counters = next(array for array in launcher.arrays["recheck"] if array.shape == (4,))
    return int(counters[3])


# ---- Compiled for GPUs ----


def test_the_constants_of_python_are_those_of_the_cuda_source() -> None:
    constants = dict(re.findall(r"constexpr int (k\w+) = (\w+);", shim.SOURCE.read_text()))
    for name in ("SORT_THREADS", "THREADS", "ROWS", "STAGES", "TILE", "STEP", "TILED_WIDTH"):
        spelled = "k" + name.title().replace("_", "")
        assert int(constants[spelled]) == getattr(launches, name), name
    assert launches.WARPS * 32 == launches.THREADS


@pytest.mark.parametrize("source", shim.SOURCES, ids=lambda source: source.name)
def test_every_architecture_compiles_without_spills(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc here: the CUDA source is not compiled")
    known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout.split()
    architectures = [number for number in ARCHITECTURES if number >= FIRST_ARCHITECTURES.get(source, 0)]
    missing = [f"sm_{number}" for number in architectures if f"compute_{number}" not in known]
    wanted = [number for number in architectures if f"compute_{number}" in known]
    targets = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in wanted]
    command = [nvcc, "-std=c++17", "-fatbin", "--threads=2", "-Xptxas=-v", *targets, source, "-o", tmp_path / "o"]
    compiled = subprocess.run(command, capture_output=True, text=True, check=False)
    assert compiled.returncode == 0, compiled.stderr
    assert "warning" not in compiled.stderr
    found = re.findall(
        r"entry function '(\w+)' for 'sm_(\d+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill "
        r"loads.*?Used (\d+) registers([^\n]*)",
        compiled.stderr,
        re.DOTALL,
    )
    assert {(name, int(arch)) for name, arch, *_ in found} == set(itertools.product(shim.kernel_names(source), wanted))
    table: dict[str, dict[int, str]] = {}
    for name, arch, *spills, registers, rest in found:
        shared = re.search(r"(\d+) bytes smem", rest)
        shared_bytes = int(shared.group(1)) if shared else 0
        table.setdefault(name, {})[int(arch)] = f"{registers} / {shared_bytes}"
        assert spills == ["0", "0", "0"], f"{name} spills on sm_{arch}: {spills}"
        most = {"residual_pair_wide": WIDE_REGISTERS} | dict.fromkeys(SORT_KERNELS, SORT_REGISTERS)
        assert int(registers) <= most.get(name, REGISTERS), f"{name} on sm_{arch}"
        assert shared_bytes <= STATIC_SHARED_BYTES, f"{name} on sm_{arch}"
    with capsys.disabled():
        print("\nregisters / static shared bytes" + "".join(f"{f'sm_{number}':>12}" for number in wanted))
        for name, row in sorted(table.items()):
            print(f"{name:31}" + "".join(f"{row[number]:>12}" for number in wanted))
        if missing:
            print(f"not known to this nvcc: {', '.join(missing)}")


def test_plans_fit_the_gpus_they_are_for() -> None:
    turing, ampere, ada = (
        Device(40, 64 << 10, 64 << 10),
        Device(108, 163 << 10, 164 << 10),
        Device(128, 99 << 10, 100 << 10),
    )
    tiles = [make_plan(50, 1165, 1024, 1024, device).tile_frames for device in (turing, ampere, ada, H100)]
    assert tiles == [2, 8, 8, 16]  # by hand: 48 KB for the rings and 4 KB a frame, in one block or in each of two
    for device, dim in itertools.product((turing, ampere, ada, H100), (4, 768, 1024, 2048)):
        plan = make_plan(50, 1165, 1024, dim, device)
        assert plan.streamed_bytes(dim) <= device.shared_bytes_per_block
    with pytest.raises(BankError, match="shared memory"):
        make_plan(1, 1, 1, 65536, H100)
    with pytest.raises(BankError, match="multiples of 4"):
        make_plan(1, 1, 1, 6, H100)


def test_the_product_is_for_calls_that_fill_the_gpu_with_it() -> None:
    assert [make_plan(frames, 1165, 1024, 1024, H100).tiled_min for frames in (50, 2000, 12000)] == [0, 0, 64]
    assert [make_plan(frames, 1165, 1024, 1024, H100).warp_rows for frames in (1, 50, 12000)] == [4, 4, 16]


# ---- Run on a CPU ----


@pytest.mark.parametrize("schedule", [0, 1, 2])
@pytest.mark.parametrize(("clusters", "dim"), [(70, 132), (150, 4)])
@pytest.mark.parametrize(
    ("tile_frames", "warp_rows", "tiled_min"), [(1, 4, 0), (2, 8, 0), (4, 16, 64), (8, 16, 0), (16, 4, 64), (16, 8, 0)]
)
def test_ids_equal_brute_force_whatever_the_plan(
    tile_frames: int, warp_rows: int, tiled_min: int, clusters: int, dim: int, schedule: int
) -> None:
    case = make_case(COUNTS, clusters, dim, seed=tile_frames)
    plan = Plan(tile_frames, warp_rows, tiled_min, streamed_blocks=3, tiled_blocks=2, recheck_blocks=3)
    out = np.full(case.features.shape, np.nan, np.float32)
    found, launcher = assigned(case, plan, schedule, out=out)
    np.testing.assert_array_equal(found, case.nearest)
    np.testing.assert_array_equal(out, case.bank.centroids[case.bank_ids, found])
    assert ("nearest_tiled" in launcher.launched) == bool(tiled_min)


def test_frames_are_sorted_stably_in_one_block_and_in_several() -> None:
    for counts in ((300, 0, 5, 700), (1100, 0, 5, 1500)):
        case = make_case(counts, 3, 4)
        plan = make_plan(len(case.features), 4, 3, 4, H100)
        found, launcher = assigned(case, plan, schedule=3)
        order = launcher.arrays["settle"][2]
        np.testing.assert_array_equal(order, np.argsort(case.bank_ids, kind="stable"))
        np.testing.assert_array_equal(found, case.nearest)
        assert ("plan_all" in launcher.launched) == (len(order) <= launches.SORT_THREADS)


class WithoutRecheck(ShimLauncher):
    """Leaves what ``settle`` found as it was."""

    def launch(self, kernel: str, *arguments: Any, **options: Any) -> None:
        if kernel != "recheck":
            super().launch(kernel, *arguments, **options)


@pytest.mark.parametrize("clusters", [1, 3, 40, 131])
@pytest.mark.parametrize(
    ("frames", "tile_frames", "warp_rows", "tiled_min"),
    [(1, 16, 4, 0), (2, 16, 8, 0), (4, 4, 16, 0), (8, 8, 8, 0), (27, 16, 16, 0), (70, 16, 8, 64)],
)
def test_every_split_has_its_two_best_scores(
    clusters: int, frames: int, tile_frames: int, warp_rows: int, tiled_min: int
) -> None:
    case = make_case((0, frames), clusters, 36, seed=clusters)
    launcher = WithoutRecheck()
    plan = Plan(tile_frames, warp_rows, tiled_min, streamed_blocks=2, tiled_blocks=2, recheck_blocks=1)
    assign(launcher, case.bank, case.features, case.bank_ids, np.empty(frames, np.int32), plan)
    arrays = launcher.arrays["settle"]
    partials, features = arrays[-6], case.features[arrays[2]]
    scores = case.bank.half_norms[1] - features @ case.bank.centroids[1].T
    width = launches.TILED_WIDTH if tiled_min else warp_rows
    for split, start in enumerate(range(0, clusters, width)):
        part = scores[:, start : start + width]
        expected = np.sort(np.pad(part, ((0, 0), (0, 1)), constant_values=np.inf), axis=1)[:, :2]
        np.testing.assert_allclose(partials[:, split, :2].view(np.float32), expected, atol=1e-4)
        np.testing.assert_array_equal(partials[:, split, 2], start + part.argmin(1))


@pytest.mark.parametrize("tiled_min", [0, 64])
@pytest.mark.parametrize("scale", [1.0, 1e-20, 3e17])
def test_scores_are_within_the_bound_that_flags_frames(tiled_min: int, scale: float) -> None:
    # All products are positive, so that sums and their roundings grow; centroids come twice, so that all are flagged.
    rng = np.random.default_rng(3)
    frames, dim = 128, 1024
    features = (scale * rng.uniform(0.5, 1.5, (frames, dim))).astype(np.float32)
    centroids = (scale * rng.uniform(0.5, 1.5, (1, 4, dim))).astype(np.float32)[:, [0, 0, 1, 1, 2, 2, 3, 3]]
    half_norms = 0.5 * (centroids.astype(np.float64) ** 2).sum(-1)
    max_norms = np.sqrt(2 * half_norms.max(1))
    bank = DeviceBank(centroids, half_norms.astype(np.float32), np.array([8], np.int32), max_norms)
    plan = Plan(16, 4, tiled_min, streamed_blocks=2, tiled_blocks=1, recheck_blocks=1)
    launcher = WithoutRecheck()
    assign(launcher, bank, features, np.zeros(frames, np.int64), np.empty(frames, np.int32), plan)

    arrays = launcher.arrays["settle"]
    order, (partials, _, places, limits, *_) = arrays[2], arrays[-6:]
    np.testing.assert_array_equal(np.sort(places), np.arange(frames))  # all are flagged
    used = 1 if tiled_min else 2  # splits of 8 centroids
    bests = partials[places, :used, 0].view(np.float32).astype(np.float64)
    ids, best = partials[places, :used, 2][np.arange(frames), bests.argmin(1)], bests.min(1)
    error = (limits - best) / 2

    exact_features = features[order[places]].astype(np.float64)
    exact = half_norms[0, ids] - np.einsum("nd,nd->n", exact_features, centroids[0, ids].astype(np.float64))
    roundings = dim if tiled_min else plan.streamed_roundings(dim)
    unit, path = 2.0**-24, (roundings + 1) * 2.0**-24
    longest = max_norms[0]
    bound = path / (1 - path) * np.linalg.norm(exact_features, axis=1) * longest + unit * (1 + unit / 2) * longest**2
    bound += (dim + 2) * 2.0**-149
    if scale > 1e15:
        assert np.isposinf(error).all()  # sums may overflow
        return
    assert ((bound <= error) & (error < 1.1 * bound)).all()  # the kernel rounds its constants up
    assert (np.abs(best - exact) <= bound).all()
    assert (np.abs(best - exact) > 0.01 * bound).any()  # the bound is no empty one


def test_few_frames_go_to_float64_and_those_that_must_do() -> None:
    case = make_case((40, 40), 32, 64)
    plan = make_plan(80, 2, 32, 64, H100)
    _, launcher = assigned(case, plan, schedule=0)
    assert flagged(launcher) <= 4
    twice = [
        np.nan_to_num(np.repeat(array[:, :16], 2, axis=1)) for array in (case.bank.centroids, case.bank.half_norms)
    ]
    sizes = np.minimum(case.bank.num_clusters, 16) * 2
    valid = replace(case, bank=replace(case.bank, centroids=twice[0], half_norms=twice[1], num_clusters=sizes))
    found, launcher = assigned(valid, plan, schedule=0)
    assert flagged(launcher) == 80
    np.testing.assert_array_equal(found, brute_force(valid.bank, valid.features, valid.bank_ids))
    assert (found % 2 == 0).all()  # of equal centroids the first


def test_all_centroids_of_a_frame_that_overflows_are_compared_in_float64() -> None:
    case = make_case((3, 70, 1), 40, 8)
    case.features[:] *= np.float32(1e38)
    for tiled_min in (0, 64):
        found, launcher = assigned(case, Plan(16, 4, tiled_min, 2, 2, 2), schedule=2)
        np.testing.assert_array_equal(found, brute_force(case.bank, case.features, case.bank_ids))
        assert flagged(launcher) == len(case.features)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_rows_go_where_they_are_asked_for_and_padding_nowhere(dtype: type) -> None:
    case = make_case((10, 3, 30), 9, 16)
    padded = case.bank_ids.astype(dtype)
    padded[[2, 20]], padded[[5, 7]] = -1, [3, 2**31 - 1]
    real = (padded >= 0) & (padded < 3)
    rows = np.random.default_rng(0).permutation(60)[: len(padded)].astype(dtype)
    rows[11] = -1
    written = real & (rows >= 0)
    expected = np.full((60, 16), np.nan, np.float32)
    expected[rows[written]] = case.bank.centroids[case.bank_ids, case.nearest][written]
    out = np.full((60, 16), np.nan, np.float32)
    plan = make_plan(len(padded), 3, 9, 16, H100)
    found, launcher = assigned(replace(case, bank_ids=padded), plan, 0, out=out, out_rows=rows)
    np.testing.assert_array_equal(found, np.where(real, case.nearest, -1))
    np.testing.assert_array_equal(out, expected)
    out[:] = np.nan
    found[30] = 9  # no entry has such a cluster
    expected[rows[30]] = np.nan
    gather(launcher, case.bank, padded, found, out, out_rows=rows)
    np.testing.assert_array_equal(out, expected)


def test_frames_of_entries_without_a_slot_are_passed_over() -> None:
    case = make_case((10, 70, 30), 9, 16)
    slots = np.array([2, -1, 0], np.int32)
    bank = replace(case.bank, centroids=np.ascontiguousarray(case.bank.centroids[[2, 1, 0]]))
    out = np.full(case.features.shape, -1, np.float32)
    found, _ = assigned(replace(case, bank=bank), Plan(16, 4, 64, 2, 2, 2), 0, slots=slots, out=out)
    there = case.bank_ids != 1
    np.testing.assert_array_equal(found, np.where(there, case.nearest, -7))
    np.testing.assert_array_equal(out[there], case.bank.centroids[case.bank_ids, case.nearest][there])
    assert (out[~there] == -1).all()


# ---- The CuPy front, over a stand-in for CuPy ----


@pytest.fixture
def cupy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeCupy:
    """The stand-in, imported in place of CuPy; its schedule is the test's parameter, if any."""
    shim.library()
    fake = FakeCupy(schedule=getattr(request, "param", 0))
    monkeypatch.setitem(sys.modules, "cupy", fake)
    return fake


def random_bank(entries: int, clusters: int, dim: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
    rng = np.random.default_rng(7)
    centroids = rng.standard_normal((entries, clusters, dim)).astype(np.float32)
    return centroids, 0.5 * (centroids.astype(np.float64) ** 2).sum(-1), [clusters] * entries


@pytest.mark.parametrize("cupy", range(5), indirect=True)
@pytest.mark.parametrize("slots", [1, 2, 5, 12])
def test_a_bank_larger_than_the_device_gives_the_same(cupy: FakeCupy, slots: int) -> None:
    arrays = random_bank(12, 20, 8)
    cupy.free_bytes = 2 * slots * 20 * 8 * 4  # half of it is for the bank
    lookup, reference = make_lookup(*arrays, backend="cupy"), NumpyLookup(*arrays)
    rng, other = np.random.default_rng(slots), cupy.cuda.Stream(non_blocking=True)
    outputs = []
    for call in range(4):
        features = rng.standard_normal((30, 8)).astype(np.float32)
        banks = rng.integers(0, 12 if call % 2 else 4, 30)
        stream = other if call == 2 else cupy.cuda.get_current_stream()
        with stream:
            out, rows = cupy.empty((40, 8), np.float32), rng.permutation(40)[:30]
            ids = lookup.assign_device(
                cupy.asarray(features),
                banks if call < 2 else cupy.asarray(banks),
                out=out,
                out_rows=rows,
                stream=stream,
            )
            again = cupy.empty((30, 8), np.float32)
            lookup.gather_device(banks, ids, again)
        outputs.append((stream, ids, out, rows, again, banks, reference.assign(features, banks)))
    for stream, ids, out, rows, again, banks, expected in outputs:  # nothing waited for an earlier call
        with stream:
            np.testing.assert_array_equal(ids.get(), expected)
            np.testing.assert_array_equal(out.get()[rows], arrays[0][banks, expected])
            np.testing.assert_array_equal(again.get(), arrays[0][banks, expected])
    np.testing.assert_array_equal(lookup.assign(features, banks), expected)
    np.testing.assert_array_equal(lookup.lookup(banks, expected), arrays[0][banks, expected])


def test_frames_that_are_none_are_marked_also_where_the_bank_does_not_fit(cupy: FakeCupy) -> None:
    arrays = random_bank(12, 20, 8)
    cupy.free_bytes = 2 * 3 * 20 * 8 * 4
    lookup = make_lookup(*arrays, backend="cupy")
    features = cupy.asarray(np.ones((2, 8), np.float32))
    np.testing.assert_array_equal(lookup.assign_device(features, np.array([-1, 12])).get(), [-1, -1])


def test_device_arrays_that_do_not_fit_are_refused(cupy: FakeCupy) -> None:
    lookup = make_lookup(*random_bank(2, 3, 8), backend="cupy")
    good, ids = cupy.asarray(np.zeros((4, 8), np.float32)), np.zeros(4, np.int32)
    flat = cupy.asarray(np.zeros(100, np.float32))
    shifted = cupy.ndarray(flat.host[1:33].reshape(4, 8))
    for features in (np.zeros((4, 8), np.float32), cupy.asarray(np.zeros((4, 8))), good[:, :4], flat, shifted):
        with pytest.raises(BankError, match="features have shape"):
            lookup.assign_device(features, ids)
    with pytest.raises(BankError, match=r"bank_ids has shape \(3,\)"):
        lookup.assign_device(good, ids[:3])
    with pytest.raises(BankError, match="float64"):
        lookup.assign_device(good, ids * 1.0)
    with pytest.raises(BankError, match="out has 3 rows for 4 frames"):
        lookup.assign_device(good, ids, out=good[:3])
    with pytest.raises(BankError, match="out_rows has shape"):
        lookup.assign_device(good, ids, out=good, out_rows=ids[:2])
    with pytest.raises(BankError, match="cluster_ids"):
        lookup.gather_device(ids, ids.astype(np.int64), good)
    assert lookup.assign_device(good[:0], ids[:0].astype(np.uint8)).shape == (0,)
    np.testing.assert_array_equal(lookup.assign_device(good, ids.astype(np.uint8)).get().shape, (4,))


def test_what_is_missing_is_said_in_one_line(cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = random_bank(2, 3, 8)
    with pytest.raises(DeviceError, match="cuda:1: not here"):
        make_lookup(*arrays, backend="cupy", device=1)
    cupy.free_bytes = 64
    with pytest.raises(DeviceError, match="one bank entry"):
        make_lookup(*arrays, backend="cupy")
    with pytest.raises(BankError, match="multiples of 4"):
        make_lookup(*random_bank(2, 3, 6), backend="cupy")

    def no_driver() -> int:
        raise cupy.cuda.runtime.CUDARuntimeError("cudaErrorInsufficientDriver")

    def no_compiler(**_: object) -> None:
        raise cupy.cuda.compiler.CompileException("libnvrtc\nis not here")

    monkeypatch.setattr(cupy, "RawModule", no_compiler)
    with pytest.raises(DeviceError, match=r"libnvrtc is not here.*mkc-fast"):
        make_lookup(*arrays, backend="cupy")
    monkeypatch.setattr(cupy.cuda.runtime, "getDeviceCount", no_driver)
    with pytest.raises(DeviceError, match="no CUDA device"):
        make_lookup(*arrays, backend="cupy")
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(DeviceError, match=r"needs CuPy.*pip install 'mkc-fast\[cuda13\]'") as caught:
        make_lookup(*arrays, backend="cupy")
    assert "\n" not in str(caught.value)


def test_what_the_stand_in_stands_in_for_exists() -> None:
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed: its names are not compared")
    fake = FakeCupy()
    own = {"queues", "launched", "free_bytes", "allocated_bytes", "limit_bytes", "blocks", "blocks_when_freed"}

    def compare(stand_in: object, real: object, where: str) -> None:
        for name, value in vars(stand_in).items():
            if name.startswith("_") or name in own:
                continue
            assert hasattr(real, name), f"{where}.{name} is not in CuPy"
            if isinstance(value, SimpleNamespace) or (isinstance(value, type) and not issubclass(value, Exception)):
                compare(value, getattr(real, name), f"{where}.{name}")

    compare(fake, cupy, "cupy")
    assert hasattr(cupy.cuda.Device, "compute_capability")
    for name in fake.cuda.Device(0).attributes:
        assert hasattr(cupy.cuda.runtime, f"cudaDevAttr{name}")
    for name in ("max_dynamic_shared_size_bytes", "preferred_shared_memory_carveout"):
        assert hasattr(cupy.RawKernel, name)
    assert issubclass(cupy.cuda.runtime.CUDARuntimeError, RuntimeError)
    assert issubclass(cupy.cuda.driver.CUDADriverError, RuntimeError)


# ---- Which entries are on a device that does not hold them all ----


def test_slots_go_to_the_entries_used_last() -> None:
    cache = SlotCache(4)
    first, second = cache.rounds([3, 1, 2])
    assert (first.uploads, second.uploads) == ((1, 2), (3,))  # at most half of the slots a round
    (there,) = cache.rounds([1, 3])
    assert there.uploads == ()
    there, missing = cache.rounds([3, 7])
    assert (set(there.slots), missing.uploads) == ({3}, (7,))
    assert [part.uploads for part in cache.rounds([8, 1])] == [
        (),
        (8,),
    ]  # 2 made room for 8: it was used least recently
    assert [part.uploads for part in cache.rounds([2])] == [(2,)]
    assert [part.uploads for part in cache.rounds([])] == [()]


@pytest.mark.parametrize("num_slots", [1, 2, 3, 7, 40])
def test_every_entry_is_in_one_round_and_no_two_share_a_slot(num_slots: int) -> None:
    cache, rng = SlotCache(num_slots), np.random.default_rng(num_slots)
    held: dict[int, int] = {}  # by slot
    for _ in range(50):
        wanted = rng.integers(0, 30, rng.integers(0, 20)).tolist()
        seen: list[int] = []
        for part in cache.rounds(wanted):
            assert len(set(part.slots.values())) == len(part.slots)
            held.update({part.slots[entry]: entry for entry in part.uploads})
            for entry, slot in part.slots.items():
                assert held[slot] == entry
                assert 0 <= slot < num_slots
            seen += part.slots
        assert sorted(seen) == sorted(set(wanted))
