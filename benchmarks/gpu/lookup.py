"""Second part: the look-up gives the CPU's ids, and how long it takes; and what the device does at best."""

from __future__ import annotations

import statistics
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mkc_fast.benchmarks.gpu.bench import SEED
from mkc_fast.engine.artifacts import open_bank
from mkc_fast.kernels import make_lookup
from mkc_fast.names import CPU, FP16, FP32, TF32

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from mkc_fast.benchmarks.gpu.bench import Bench
    from mkc_fast.engine.artifacts import Bank

# Entries that cuBLAS and PyTorch are timed on; they are asked once for each entry.
_RIVALS_ENTRIES = 64


def lookup(bench: Bench, found: dict[str, Any]) -> None:
    """Ids equal to the CPU's, also where two centroids are equally near; times, beside copies, cuBLAS and PyTorch."""
    machine, sizes, bank = bench.machine, bench.sizes, open_bank(bench.bank)
    begin = time.perf_counter()
    there = make_lookup(bank.centroids, bank.half_norms, bank.info.num_clusters, backend="cupy", device=machine.index)
    here = make_lookup(bank.centroids, bank.half_norms, bank.info.num_clusters)
    found |= {
        "upload_and_compile_s": time.perf_counter() - begin,
        "resident": there.resident,  # type: ignore[attr-defined]
        "entries": len(bank), "clusters": int(bank.centroids.shape[1]), "dim": bank.info.dim,
    }  # fmt: skip
    entries = len(bank)
    few = min(sizes.few_entries, entries)
    for name, drawn, between in (
        ("few frames an entry", entries, False), ("many frames an entry", few, False),
        ("frames between two centroids", few, True),
    ):  # fmt: skip
        features, banks = _frames(bank, sizes.lookup_frames, drawn, between=between)
        bench.figure(found, name, partial(_compared, bench, there, here, features, banks), least_s=2)
        if not between and "ids_equal_the_cpus" in found[name]:
            bench.figure(found, f"rivals, {name}", partial(_rivals, bench, bank, features, banks), least_s=5)


def _frames(bank: Bank, frames: int, entries: int, *, between: bool) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Random frames and their bank ids; or frames in the middle of two centroids, where rounding decides."""
    rng = np.random.default_rng(SEED)
    banks = rng.integers(0, entries, frames)
    if not between:
        return rng.standard_normal((frames, bank.info.dim), np.float32), banks
    clusters = np.array(bank.info.num_clusters)[banks]
    first, second = (rng.integers(0, clusters) for _ in range(2))
    return np.float32(0.5) * (bank.centroids[banks, first] + bank.centroids[banks, second]), banks


def _compared(
    bench: Bench, there: Any, here: Any, features: NDArray[np.float32], banks: NDArray[np.int64]
) -> dict[str, Any]:
    machine = bench.machine
    values, ids = machine.put(features), machine.put(banks.astype(np.int32))
    out = machine.empty(features.shape)
    assign = partial(there.assign_device, values, ids, out=out, stream=machine.stream)
    found = machine.get(assign())
    expected = here.assign(features, banks)
    wrong = np.flatnonzero(found != expected)
    rows = machine.get(out)
    seconds = machine.timed(assign, bench.sizes.repeats)
    entries, (clusters, dim) = np.unique(banks), here.centroids.shape[1:]
    return {
        "ids_equal_the_cpus": not len(wrong),
        "ids_that_differ": len(wrong),
        "rows_are_the_centroids": not len(wrong) and bool(np.array_equal(rows, here.centroids[banks, found])),
        "precision": FP32, "shapes": {"frames": list(features.shape), "entries": [len(entries), clusters, dim]},
        "seconds": seconds, "frames_per_s": len(features) / seconds,
        "gb_per_s_of_entries": len(entries) * clusters * dim * 4 / seconds / 1e9,
        "tflops": 2 * len(features) * clusters * dim / seconds / 1e12,
    }  # fmt: skip


def _rivals(bench: Bench, bank: Bank, features: NDArray[np.float32], banks: NDArray[np.int64]) -> dict[str, Any]:
    """The products alone by cuBLAS, and cdist and argmin in PyTorch, entry by entry."""
    machine, repeats = bench.machine, bench.sizes.repeats
    groups = [np.flatnonzero(banks == entry) for entry in np.unique(banks)]
    chosen = groups[:_RIVALS_ENTRIES]
    share = sum(map(len, chosen)) / len(features)
    pairs = [(features[group], np.array(bank.centroids[banks[group[0]]])) for group in chosen]
    found: dict[str, Any] = {"precision": FP32, "timed_on_entries": len(chosen), "of_entries": len(groups)}
    parts = [(machine.put(frames), machine.put(np.ascontiguousarray(entry.T))) for frames, entry in pairs]
    products = partial(_each, machine.matmul, parts)
    found["cublas_products_alone_s"] = machine.timed(products, repeats) / share
    try:
        import torch
    except ImportError:
        return {**found, "torch_cdist_argmin": "PyTorch is not installed"}
    if not machine.rehearsal and not torch.cuda.is_available():
        return {**found, "torch_cdist_argmin": "this PyTorch has no CUDA"}
    where = CPU if machine.rehearsal else machine.device
    tensors = [tuple(torch.from_numpy(values).to(where) for values in pair) for pair in pairs]
    nearest = partial(_each, lambda frames, entry: torch.cdist(frames, entry).argmin(1), tensors)
    wait = torch.cuda.synchronize if not machine.rehearsal else _nothing
    return {**found, "torch_cdist_argmin_s": _timed(nearest, wait, repeats) / share}


def _each(operation: Callable[[Any, Any], Any], pairs: Sequence[tuple[Any, ...]]) -> list[Any]:
    return [operation(left, right) for left, right in pairs]


def _nothing() -> None: ...


def _timed(work: Callable[[], object], wait: Callable[[], object], repeats: int) -> float:
    """Median wall-clock seconds until all is done."""
    seconds = []
    for index in range(repeats + 2):
        begin = time.perf_counter()
        work()
        wait()
        if index >= 2:
            seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def ceilings(bench: Bench, found: dict[str, Any]) -> None:
    """What the device does at best: copies on the device, and large matrix products by cuBLAS, of random values."""
    bench.figure(found, "copy", lambda: _copy(bench), least_s=2)
    for precision in (FP16, TF32, FP32):
        bench.figure(found, f"gemm {precision}", partial(_gemm, bench, precision), least_s=2)


def _copy(bench: Bench) -> dict[str, Any]:
    machine, count = bench.machine, bench.sizes.copy_bytes // 4
    some = np.random.default_rng(SEED).standard_normal(min(count, 1 << 20), np.float32)
    source = machine.put(np.resize(some, count))
    target = machine.empty((count,))
    seconds = machine.timed(lambda: target.data.copy_from_device_async(source.data, source.nbytes), bench.sizes.repeats)
    return {"gb_per_s": 2 * source.nbytes / seconds / 1e9, "shapes": [count], "counted": "bytes read and written"}


def _gemm(bench: Bench, precision: str) -> dict[str, Any]:
    machine, size = bench.machine, bench.sizes.gemm
    rng = np.random.default_rng(SEED)
    with machine.arithmetic(precision) as dtype:
        left, right = (machine.put(rng.standard_normal((size, size), np.float32).astype(dtype)) for _ in range(2))
        seconds = machine.timed(lambda: machine.matmul(left, right), bench.sizes.repeats)
    return {
        "tflops": 2 * size**3 / seconds / 1e12, "seconds": seconds, "precision": precision,
        "shapes": [[size, size], [size, size]], "values": "random, normal",
    }  # fmt: skip
