"""``bench latency``: one utterance at a time, by length and stage, first call and warm; and start-up of a process."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mkc_fast.benchmarks.ceilings import best_of, floors, measure_ceilings
from mkc_fast.benchmarks.child import read_through
from mkc_fast.benchmarks.ready import run_ready
from mkc_fast.benchmarks.records import context, short
from mkc_fast.benchmarks.timing import Budget, summary
from mkc_fast.benchmarks.utterances import cut
from mkc_fast.names import AUTO, FRAME, TIMED_STAGES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from mkc_fast.benchmarks.target import Target
    from mkc_fast.engine.anonymizer import Anonymizer
    from mkc_fast.names import Mode

LENGTHS_S = (1.0, 3.0, 10.0, 30.0)
START_UP_LENGTH_S = 10.0
_SEED = 7
# Of the budget: what is left after start-up and ceilings is shared out so that short utterances get more runs, and the
# longest still get a few.
_START_UP_SHARE, _CEILING_S = 0.2, 8.0


def bench_latency(
    target: Target,
    speech: NDArray[np.float32],
    *,
    lengths_s: Sequence[float] = LENGTHS_S,
    mode: Mode = FRAME,
    stride: int = 1,
    budget_s: float = 180.0,
    repeats: int | None = None,
    start_ups: int = 3,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Seconds of one utterance from host memory to host memory.

    Args:
        target: What runs.
        speech: (S,) float32 at the model's rate, of which utterances are cut.
        lengths_s: Of the utterances.
        mode: As in ``Anonymizer.anonymize``.
        stride: As in ``Anonymizer.anonymize``.
        budget_s: Seconds to measure for, about.
        repeats: Warm runs of each length; default: as many as the budget has room for, at most 200.
        start_ups: Processes started to measure start-up.
        progress: Called with a line as each part begins.

    Returns:
        The record: ``cases`` by length, ``start_up``, ``ceilings``, and ``cut``: what the budget had no room for.
    """
    record = context()
    budget = Budget(budget_s)
    progress("start-up of fresh processes")
    start_up = measure_start_up(target, speech, mode, start_ups, budget, _START_UP_SHARE * budget_s)
    progress("machine ceilings")
    ceilings = measure_ceilings(target.device, target.used_threads, min(_CEILING_S, budget_s / 10))
    progress("loading")
    begin = time.perf_counter()
    anonymizer = target.load()
    load_s = time.perf_counter() - begin
    cases = []
    for index, length_s in enumerate(lengths_s):
        progress(f"utterances of {length_s:g} s")
        share_s = max(0.0, budget.left - _CEILING_S) / (len(lengths_s) - index)
        cases.append(_case(anonymizer, target, speech, length_s, mode, stride, share_s, repeats, budget))
    progress("machine ceilings")
    ceilings = best_of([ceilings, measure_ceilings(target.device, target.used_threads, min(_CEILING_S, budget_s / 10))])
    for case in cases:
        precision = anonymizer.info.precision if target.options.precision == AUTO else target.options.precision
        case["floors"] = floors(target, ceilings, precision, case["length_s"], len(anonymizer.bank))
    return {
        "bench": "latency",
        **record,
        "target": target.described(),
        "mode": mode,
        "stride": stride,
        "budget_s": budget_s,
        "measuring_s": short(budget.spent),
        "cut": budget.cut,
        "ceilings": ceilings,
        "load_s": short(load_s),
        "start_up": start_up,
        "cases": cases,
    }


def _case(
    anonymizer: Anonymizer,
    target: Target,
    speech: NDArray[np.float32],
    length_s: float,
    mode: Mode,
    stride: int,
    share_s: float,
    repeats: int | None,
    budget: Budget,
) -> dict[str, Any]:
    """One length: the first call, one that does not count, then warm ones, each on another piece of speech."""
    rate = target.info.sample_rate
    seconds: dict[str, list[float]] = {stage: [] for stage in (*TIMED_STAGES, "all")}

    def run(index: int) -> dict[str, float]:
        waveform = cut(speech, length_s, rate, index)
        before = time.perf_counter()
        result = anonymizer.anonymize(waveform, mode, stride, _SEED, f"u{index}")
        return {**result.stage_seconds, "all": time.perf_counter() - before}

    begin = time.perf_counter()
    first = run(0)
    run(1)
    wanted = 200 if repeats is None else repeats
    for index in range(wanted):
        so_far = time.perf_counter() - begin
        if index >= 3 and so_far * (index + 3) / (index + 2) > share_s:
            if repeats is not None:
                budget.cut.append(f"{length_s:g} s: {index} of {repeats} runs, no time for more")
            break
        for stage, taken in run(index + 2).items():
            seconds[stage].append(taken)
    return {
        "length_s": length_s,
        "first_s": {stage: short(taken) for stage, taken in first.items()},
        "warm_s": {stage: summary(taken) for stage, taken in seconds.items()},
        "rtfx_p50": short(length_s / float(np.median(seconds["all"]))),
    }


def measure_start_up(
    target: Target, speech: NDArray[np.float32], mode: Mode, times: int, budget: Budget, share_s: float
) -> dict[str, Any] | None:
    """From the start of a fresh process to its first output of 10 s; None if there was no time for it."""
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        arguments = start_up_arguments(target, speech, mode, Path(folder))
        read_through([*target.model.iterdir(), *target.bank.iterdir()])
        begin = time.perf_counter()
        for count in range(times):
            if count and (time.perf_counter() - begin) * (count + 1) / count > share_s:
                budget.cut.append(f"start-up: {count} of {times} processes, no time for more")
                break
            runs += run_ready(arguments)
    if not runs:
        return None
    parts = ("import_s", "load_s", "first_output_s", "ready_s")
    return {
        "length_s": START_UP_LENGTH_S,
        "runs": [{part: short(run[part]) for part in parts} for run in runs],
        "median_s": {part: short(float(np.median([run[part] for run in runs]))) for part in parts},
        "peak_rss_mb": short(max(run.get("peak_rss_mb", 0.0) for run in runs)) or None,
        "note": "files in the page cache",
    }


def start_up_arguments(target: Target, speech: NDArray[np.float32], mode: Mode, folder: Path) -> dict[str, Any]:
    """What the child process of a start-up needs; the utterance is written into the folder."""
    waveform = folder / "waveform.npy"
    np.save(waveform, cut(speech, START_UP_LENGTH_S, target.info.sample_rate, 0))
    return {
        "what": "engine",
        "model": str(target.model),
        "bank": str(target.bank),
        "device": target.device,
        "provider": target.options.provider,
        "precision": target.options.precision,
        "threads": target.used_threads,
        "waveform": str(waveform),
        "mode": mode,
    }
