"""``bench lookup``: frames a second of the nearest-centroid look-up, by frames, entries, stride and back end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from mkc_fast.benchmarks.ceilings import measure_ceilings
from mkc_fast.benchmarks.memory import available_bytes
from mkc_fast.benchmarks.records import context, short
from mkc_fast.benchmarks.rivals import find_rivals
from mkc_fast.benchmarks.timing import Budget, in_turn, spread
from mkc_fast.engine.artifacts import open_bank
from mkc_fast.engine.devices import cuda_index
from mkc_fast.errors import MkcError
from mkc_fast.kernels import HalfCentroids, half_squared_norms, make_lookup, round_to_half
from mkc_fast.kernels.lookup.native_lookup import takes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from mkc_fast.benchmarks.rivals import Rival
    from mkc_fast.benchmarks.target import Target


FRAMES = (50, 500, 5000)
ENTRIES = (1, 100, 1165)
STRIDES = (1, 10)
_MEMORY_SHARE = 0.4
_MOST_ROUNDS = 7
_LONG_RUN_S = 3.0
_TURN_S = 0.05


def bench_lookup(
    target: Target,
    *,
    frames: Sequence[int] = FRAMES,
    entries: Sequence[int] = ENTRIES,
    strides: Sequence[int] = STRIDES,
    budget_s: float = 200.0,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Time ``assign`` of every back end that is here, and of other libraries, all in turn on the same frames.

    Args:
        target: Its bank gives the centroids, repeated where more entries are asked for; each then has memory of its
            own for our back ends. Rivals repeat the entries that the bank has.
        frames: Numbers of frames T.
        entries: Numbers of bank entries N.
        strides: Frames that share a draw.
        budget_s: Seconds to measure for, about.
        progress: Called with a line as each part begins.

    Returns:
        The record: ``cases`` by N, T and stride, with frames a second and agreement of ids for each back end.
    """
    record = context()
    budget = Budget(budget_s)
    bank = open_bank(target.bank)
    # Only whole entries: rivals know nothing of padding rows.
    clusters = min(bank.info.num_clusters)
    sample = np.ascontiguousarray(bank.centroids[:, :clusters])
    rivals, missing = find_rivals(target.device, target.used_threads)
    prepared = {name: make(sample) for name, make in rivals.items()}
    ceilings = measure_ceilings(target.device, target.used_threads, min(6.0, budget_s / 10))
    cases: list[dict[str, Any]] = []
    rates: dict[tuple[str, int], float] = {}
    combinations = [(n, t, stride) for n in entries for t in frames for stride in strides]
    arms: dict[str, Any] = {}
    held = 0
    for index, (count, length, stride) in enumerate(combinations):
        name = f"N {count}, T {length}, stride {stride}"
        size = count * clusters * info_dim(sample) * 4
        if count > len(bank) and size > _MEMORY_SHARE * available_bytes() + held * clusters * info_dim(sample) * 4:
            budget.cut.append(f"{name}: {size / 1e9:.1f} GB of centroids do not fit in memory")
            continue
        if held != count:
            progress(f"N {count}")
            arms.clear()
            arms.update(_back_ends(sample, count, target))
            held = count
        weights = [frames_of**0.5 for _, frames_of, _ in combinations[index:]]
        progress(name)
        case = _case(
            arms, prepared, sample, count, length, stride, budget.left * weights[0] / sum(weights), rates, budget
        )
        if case is not None:
            cases.append(case)
    return {
        "bench": "lookup",
        **record,
        "target": target.described(),
        "budget_s": budget_s,
        "measuring_s": short(budget.spent),
        "cut": budget.cut,
        "missing": missing,
        "ceilings": ceilings,
        "notes": [
            f"K {clusters}, D {info_dim(sample)}; rivals hold {len(sample)} different entries and repeat them",
            f"each back end has turns of {_TURN_S} s or one run; the first of several runs in a turn does not count",
            "host memory to host memory; draws uniform with replacement; features are noise around drawn centroids",
        ],
        "cases": cases,
    }


def info_dim(sample: NDArray[np.float32]) -> int:
    """D of centroids (N, K, D)."""
    return int(sample.shape[2])


def _back_ends(sample: NDArray[np.float32], count: int, target: Target) -> dict[str, Any]:
    """Our look-ups over so many entries, each with memory of its own."""
    centroids = _repeated(sample, count)
    half_norms = np.stack([half_squared_norms(each) for each in sample])
    half_norms = half_norms[np.arange(count) % len(sample)]
    sizes = [sample.shape[1]] * count
    found: dict[str, Any] = {}
    if takes(centroids):
        given: dict[str, Any] = {"backend": "native", "threads": target.used_threads}
        found["mkc-fast native"] = make_lookup(centroids, half_norms, sizes, **given)
        values, errors, exponents = (np.stack(each) for each in zip(*map(round_to_half, sample), strict=True))
        which = np.arange(count) % len(sample)
        half = HalfCentroids(_repeated(values, count), errors[which], exponents[which])
        found["mkc-fast native, from float16"] = make_lookup(centroids, half_norms, sizes, **given, half=half)
    found["mkc-fast numpy"] = make_lookup(centroids, half_norms, sizes, "numpy")
    index = cuda_index(target.device)
    if index is not None:
        found["mkc-fast cupy"] = make_lookup(centroids, half_norms, sizes, "cupy", index)
    return found


def _repeated(sample: NDArray[Any], count: int) -> NDArray[Any]:
    """So many entries: of the sample, or the sample again and again, each with memory of its own."""
    if count <= len(sample):
        return sample[:count]
    repeated = np.empty((count, *sample.shape[1:]), sample.dtype)
    for start in range(0, count, len(sample)):
        part = repeated[start : start + len(sample)]
        part[...] = sample[: len(part)]
    return repeated


def _case(
    ours: Mapping[str, Any],
    rivals: Mapping[str, Rival],
    sample: NDArray[np.float32],
    count: int,
    length: int,
    stride: int,
    share_s: float,
    rates: dict[tuple[str, int], float],
    budget: Budget,
) -> dict[str, Any] | None:
    """One N, T and stride; None where every back end would take longer than there is time."""
    rng = np.random.default_rng(count * 7919 + length * 31 + stride)
    banks = np.repeat(rng.integers(0, count, -(-length // stride)), stride)[:length]
    stored = banks % len(sample)
    # Features near centroids, as speech has them, but not so near that any method could stop early.
    features = sample[stored, rng.integers(0, sample.shape[1], length)]
    features = features + rng.standard_normal(features.shape, np.float32) * np.float32(0.5)
    arms: dict[str, Callable[[], NDArray[np.integer[Any]]]] = {}
    for name, lookup in ours.items():
        arms[name] = lambda lookup=lookup: lookup.assign(features, banks)  # type: ignore[misc]
    for name, rival in rivals.items():
        arms[name] = lambda rival=rival: rival(features, banks, stride)  # type: ignore[misc]
    left_out = []
    for name in list(arms):
        known = rates.get((name, stride))
        if known is not None and length / known > max(share_s, 0.25 * budget.left):
            budget.cut.append(f"N {count}, T {length}, stride {stride}: {name} would take {length / known:.0f} s")
            left_out.append(name)
            del arms[name]
    if not arms:
        return None
    found: dict[str, NDArray[np.integer[Any]]] = {}
    first: dict[str, float] = {}
    for name, arm in arms.items():  # warm-up, and what each answers
        begin = time.perf_counter()
        found[name] = arm()
        first[name] = time.perf_counter() - begin
        rates[name, stride] = length / first[name]
    reference = next(iter(found.values()))
    if found and any(len(ids) != length for ids in found.values()):
        raise MkcError("a look-up gave another number of ids than there are frames")
    # In a run of many seconds the warm-up does not matter, so it is counted.
    slow = {name: [taken] for name, taken in first.items() if taken > _LONG_RUN_S}
    quick = {name: arm for name, arm in arms.items() if name not in slow}
    seconds = {**in_turn(quick, share_s - sum(first.values()), _MOST_ROUNDS, warm=False, turn_s=_TURN_S), **slow}
    return {
        "entries": count,
        "frames": length,
        "stride": stride,
        "distinct_entries": len(np.unique(banks)),
        "frames_a_second": {name: short(length / float(np.median(seconds[name]))) for name in arms},
        "spread": {name: spread([length / each for each in taken]) for name, taken in seconds.items()},
        "rounds": {name: len(taken) for name, taken in seconds.items()},
        "same_ids": {name: short(float((ids == reference).mean()), 6) for name, ids in found.items()},
        "left_out": left_out,
    }
