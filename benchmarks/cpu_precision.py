"""``bench precision``: the precisions of a CPU beside float32, in turn: errors, cluster ids, waveforms and time."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from statistics import median
from typing import TYPE_CHECKING, Any

from mkc_fast.benchmarks.ceilings import best_of, measure_ceilings
from mkc_fast.benchmarks.precision import MODES, SEED, compare
from mkc_fast.benchmarks.records import context, short
from mkc_fast.benchmarks.target import GRAPHS_OF_STAGES
from mkc_fast.benchmarks.timing import Budget
from mkc_fast.engine.sessions.cpu import stage_precisions
from mkc_fast.errors import DeviceError
from mkc_fast.names import CPU, FP32, FRAME, INT8, INT16, MIXED, TIMED_STAGES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from mkc_fast.benchmarks.setup import Checkpoints
    from mkc_fast.benchmarks.target import Target
    from mkc_fast.engine.anonymizer import Anonymizer
    from mkc_fast.names import Mode, Precision

PRECISIONS: tuple[Precision, ...] = (MIXED, INT16, INT8)
_CEILING_S = 4.0


def bench_precision(
    target: Target,
    waveforms: Sequence[NDArray[np.float32]],
    *,
    precisions: Sequence[Precision] = PRECISIONS,
    baseline: Checkpoints | None = None,
    rounds: int = 3,
    budget_s: float = 600.0,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Compare precisions with float32 on recordings, on a CPU.

    Args:
        target: What runs; its precision does not matter.
        waveforms: Of the recordings, (S,) float32 each at the model's rate.
        precisions: Which; one that the model has no graphs for is listed under ``cut``.
        baseline: What the baseline loads, to time all precisions in turn with it; None compares with nothing.
        rounds: How often each runs the first recording in turn with float32 to be timed.
        budget_s: Seconds to measure for, about. A precision that is begun is finished.
        progress: Called with a line as each part begins.

    Returns:
        The record: ``precisions`` by name, each with ``stages`` (errors of each stage given the same input),
        ``cluster_ids``, ``waveform_snr``, ``log_spectral_distance_db``, ``times`` beside float32, and
        ``share_of_ceiling`` by stage, where the sizes are the published ones; ``ceilings``; and with a baseline
        ``beside_the_baseline``.

    Raises:
        DeviceError: The device is not the CPU.
    """
    if target.device != CPU:
        raise DeviceError("bench precision compares the precisions of the device cpu")
    record, budget = context(), Budget(budget_s)
    progress("machine ceilings")
    ceilings = [measure_ceilings(CPU, target.used_threads, _CEILING_S)]
    full = _loaded(target, FP32)
    length_s = len(waveforms[0]) / full.info.sample_rate
    found: dict[str, Any] = {}
    for name in precisions:
        if budget.left <= 0:
            budget.cut.append(f"{name}: no time was left")
            continue
        progress(name)
        try:
            other = _loaded(target, name)
        except DeviceError as error:
            budget.cut.append(str(error))
            continue
        times = _timed(full, other, waveforms[0], rounds)
        ceilings.append(measure_ceilings(CPU, target.used_threads, _CEILING_S))
        found[name] = {
            "operators": replace(target, options=replace(target.options, precision=name)).operators(),
            **compare(full, other, list(waveforms)),
            "times": times,
        }
        del other
    best, done = best_of(ceilings), [name for name in precisions if name in found]
    for which, part in found.items():
        part["share_of_ceiling"] = _shares(target, which, part["times"]["s"], best, length_s)
    rate = full.info.sample_rate
    return {
        "bench": "precision",
        **record,
        "target": target.described(),
        "note": "Where a cluster id differs, the conformer reads another centroid: the SNR of everything shows that, "
        "not rounding. Times are of the first recording, in frame mode with stride 1, in turn with float32.",
        "recordings_s": [short(len(waveform) / rate) for waveform in waveforms],
        "rounds": rounds,
        "ceilings": best,
        "budget_s": budget_s,
        "measuring_s": short(budget.spent),
        "cut": budget.cut,
        # Of export: what each graph, and what PyTorch's float32, is off float64.
        "against_float64": {file: asdict(check) for file, check in full.info.checks.items()},
        "precisions": found,
        **({} if baseline is None else {"beside_the_baseline": _beside(target, baseline, done, waveforms[0], rounds)}),
    }


def _loaded(target: Target, precision: Precision) -> Anonymizer:
    return replace(target, options=replace(target.options, precision=precision)).load()


def _timed(full: Anonymizer, other: Anonymizer, waveform: NDArray[np.float32], rounds: int) -> dict[str, Any]:
    """Seconds of each stage, in turn, and float32's divided by the other's, round by round."""
    runs: dict[str, list[dict[str, float]]] = {"fp32_s": [], "s": []}
    for index in range(rounds + 1):
        for key, anonymizer in (("fp32_s", full), ("s", other)):
            begin = time.perf_counter()
            stages = anonymizer.anonymize(waveform, FRAME, 1, SEED, "u").stage_seconds
            if index:  # the first maps weights and grows buffers
                runs[key].append({**stages, "all": time.perf_counter() - begin})
    names = (*TIMED_STAGES, "all")
    ratios = {
        stage: [one[stage] / two[stage] for one, two in zip(runs["fp32_s"], runs["s"], strict=True)] for stage in names
    }
    return {
        **{key: {stage: short(median(run[stage] for run in each)) for stage in names} for key, each in runs.items()},
        "fp32_divided_by_it": {stage: short(median(each)) for stage, each in ratios.items()},
        "fp32_divided_by_it_by_round": [short(value) for value in ratios["all"]],
    }


def _beside(
    target: Target,
    checkpoints: Checkpoints,
    precisions: Iterable[Precision],
    waveform: NDArray[np.float32],
    rounds: int,
) -> dict[str, Any]:
    """Seconds of the baseline and of every precision in turn, and their ratios, by mode and round."""
    from mkc_fast.benchmarks.baseline.pipeline import Baseline

    slow = Baseline.load(
        checkpoints.wavlm_ckpt,
        checkpoints.ckpt,
        checkpoints.kmeans_scp,
        threads=target.used_threads,
        layer=target.info.layer,
    )
    arms: dict[str, Anonymizer | Baseline] = {"baseline": slow}
    arms.update({name: _loaded(target, name) for name in (FP32, *precisions)})
    seconds: dict[Mode, dict[str, list[float]]] = {mode: {name: [] for name in arms} for mode in MODES}
    for index in range(rounds + 1):
        for mode, taken in seconds.items():
            for name, arm in arms.items():
                begin = time.perf_counter()
                arm.anonymize(waveform, mode, 1, SEED, "u")
                if index:  # the first maps weights and grows buffers
                    taken[name].append(time.perf_counter() - begin)
    return {
        mode: {
            "seconds": {name: [short(value) for value in values] for name, values in taken.items()},
            "baseline_divided_by_it": {
                name: [short(one / two) for one, two in zip(taken["baseline"], values, strict=True)]
                for name, values in taken.items()
                if name != "baseline"
            },
        }
        for mode, taken in seconds.items()
    }


def _shares(
    target: Target, precision: str, seconds: dict[str, float], ceilings: dict[str, Any], length_s: float
) -> dict[str, float]:
    """Of each stage: its operations, as the layers are written, a second, and of these the share of the ceiling."""
    gflop = target.gflop_a_second()
    if gflop is None:
        return {}
    forms = stage_precisions(target.model, precision)
    rates = {stage: ceilings["gemm_gflops"].get(forms[file]) for stage, file in GRAPHS_OF_STAGES.items()}
    return {
        stage: short(gflop[stage] * length_s / seconds[stage] / rate)
        for stage, rate in rates.items()
        if rate is not None
    }
