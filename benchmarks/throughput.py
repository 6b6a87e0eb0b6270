"""``bench throughput``: RTFx on a corpus with LibriSpeech's lengths, by batch and workers, beside the baseline.

Device only: arrays in, arrays out, in this process. Files to files: what ``mkc-fast infer`` does, in worker processes,
without the time they take to start. Beside the baseline: each utterance by the engine and by the baseline in turn.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mkc_fast.benchmarks.ceilings import best_of, measure_ceilings
from mkc_fast.benchmarks.records import context, short
from mkc_fast.benchmarks.timing import Budget, ratios, spread
from mkc_fast.benchmarks.utterances import DISTRIBUTION, MEAN_S, count_for, cut, draw_lengths, write_corpus
from mkc_fast.engine.corpus.outputs import plan_folder
from mkc_fast.engine.corpus.protocol import Settings
from mkc_fast.engine.corpus.run import Run, run_corpus
from mkc_fast.engine.devices import cores
from mkc_fast.errors import MkcError
from mkc_fast.names import AUDIO, AUTO, CPU, FRAME, TIMED_STAGES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from mkc_fast.benchmarks.baseline.pipeline import Baseline
    from mkc_fast.benchmarks.setup import Checkpoints
    from mkc_fast.benchmarks.target import Target
    from mkc_fast.engine.anonymizer import Anonymizer, Result
    from mkc_fast.names import Mode

MODES: tuple[Mode, ...] = (FRAME, AUDIO)
_SEED = 7
# Batches of so many padded seconds; 0 runs each utterance alone.
_BATCHES_CPU_S, _BATCHES_GPU_S = (0.0, 30.0), (0.0, 60.0, 120.0, 240.0, 480.0)
# Of the budget: the comparison's share, and of what is left after it that of device only.
_COMPARISON_SHARE, _DEVICE_SHARE = 0.55, 0.5
_TOLERANCE = 1e-4
_CEILING_S = 8.0
# A warm-up utterance, long enough that its rate is near the corpus's.
_TRIAL_S = 4.0


def bench_throughput(
    target: Target,
    speech: NDArray[np.float32],
    *,
    modes: Sequence[Mode] = MODES,
    stride: int = 1,
    batches_s: Sequence[float] | None = None,
    workers: Sequence[int] | None = None,
    baseline: Checkpoints | None = None,
    rounds: int = 3,
    budget_s: float = 330.0,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Seconds of audio a second of work.

    Args:
        target: What runs.
        speech: (S,) float32 at the model's rate, of which the corpus is cut.
        modes: Of ``frame`` and ``audio``.
        stride: Frames that share a draw in frame mode.
        batches_s: Padded seconds of audio that run at once, device only; default: by the device.
        workers: Numbers of worker processes, files to files; default: 1, and 2 where there are as many cores.
        baseline: What the baseline loads, to compare with it; None compares with nothing.
        rounds: How often each utterance is run by both, at the most.
        budget_s: Seconds to measure for, about: it decides how many utterances are drawn.
        progress: Called with a line as each part begins.

    Returns:
        The record: ``device_only``, ``files_to_files``, ``comparison`` (with a baseline), ``ceilings``, and ``cut``.
    """
    record = context()
    budget = Budget(budget_s)
    on_cpu = target.device == CPU
    batches_s = batches_s or (_BATCHES_CPU_S if on_cpu else _BATCHES_GPU_S)
    workers = workers or ((1, 2) if cores() > 1 else (1,))
    progress("machine ceilings")

    def measure() -> dict[str, Any]:
        seconds = min(_CEILING_S, budget_s / 20)
        return measure_ceilings(target.device, target.used_threads, seconds, torch=baseline is not None)

    ceilings = [measure()]
    progress("loading")
    begin = time.perf_counter()
    anonymizer = target.load()
    budget.seconds += time.perf_counter() - begin  # the budget is for measuring
    trial = cut(speech, _TRIAL_S, anonymizer.info.sample_rate, 0)
    ours_rate = _trial_rate(anonymizer, trial, modes[0], stride)
    result: dict[str, Any] = {
        "bench": "throughput",
        **record,
        "target": target.described(),
        "stride": stride,
        "budget_s": budget_s,
        "corpus": {"distribution": DISTRIBUTION, "mean_s": MEAN_S, "drawn": "stratified, seed 7"},
    }
    if baseline is not None:
        result["comparison"] = _compare(
            anonymizer, baseline, target, speech, modes, stride, rounds, ours_rate, budget, progress
        )
        ceilings.append(measure())
    precision = anonymizer.info.precision if target.options.precision == AUTO else target.options.precision
    # What is left is shared by the arms of device only, and by the runs of files to files, which also have to start.
    arms = len(batches_s) * len(modes)
    audio_s = _DEVICE_SHARE * budget.left * ours_rate / arms
    lengths = draw_lengths(count_for(audio_s, least=3 if on_cpu else 64))
    result["device_only"] = _device_only(
        anonymizer, speech, lengths, modes, stride, batches_s, ours_rate, budget, progress
    )
    best = max((case["rtfx"] for case in result["device_only"]["cases"]), default=ours_rate)
    del anonymizer
    result["files_to_files"] = _files(target, speech, modes, stride, workers, best, budget, progress)
    ceilings.append(measure())
    result["ceilings"] = best_of(ceilings)
    for part in ("device_only", "files_to_files"):
        for case in result[part]["cases"]:
            case["utilization"] = utilization(target, case["rtfx"], result["ceilings"], precision)
    return {**result, "measuring_s": short(budget.spent), "cut": budget.cut}


def _trial_rate(arm: Anonymizer | Baseline, trial: NDArray[np.float32], mode: Mode, stride: int) -> float:
    """RTFx of a short utterance, the second time."""
    for _ in range(2):
        begin = time.perf_counter()
        arm.anonymize(trial, mode, stride, _SEED, "trial")
        seconds = time.perf_counter() - begin
    return _TRIAL_S / seconds


def utilization(target: Target, rtfx: float, ceilings: dict[str, Any], precision: str) -> float | None:
    """Share of the measured rate of matrix products that the operations of the pass come to."""
    gflop = target.gflop_a_second()
    rate = ceilings["gemm_gflops"].get(precision)
    if gflop is None or rate is None:
        return None
    return short(sum(gflop.values()) * rtfx / rate)


def _device_only(
    anonymizer: Anonymizer,
    speech: NDArray[np.float32],
    lengths: list[float],
    modes: Sequence[Mode],
    stride: int,
    batches_s: Sequence[float],
    rate: float,
    budget: Budget,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    waveforms = [cut(speech, length, anonymizer.info.sample_rate, index) for index, length in enumerate(lengths)]
    seconds_of_audio = sum(lengths)
    cases: list[dict[str, Any]] = []
    for mode in modes:
        for batch_s in batches_s:
            name = f"device only, {mode} mode, " + (f"batches of {batch_s:g} s" if batch_s else "one by one")
            if cases and not budget.allows(0.7 * seconds_of_audio / rate, name):
                continue
            progress(name)
            begin = time.perf_counter()
            ids = [f"u{index}" for index in range(len(waveforms))]
            results = anonymizer.anonymize_batch(waveforms, mode, stride, _SEED, ids, batch_s=batch_s)
            taken = time.perf_counter() - begin
            stages = {stage: sum(one.stage_seconds[stage] for one in results) for stage in TIMED_STAGES}
            rtfx = seconds_of_audio / taken
            cases.append(
                {
                    "mode": mode,
                    "batch_s": batch_s,
                    "rtfx": short(rtfx),
                    "seconds": short(taken),
                    "stage_share": {stage: short(each / taken) for stage, each in stages.items()},
                }
            )
    return {
        "utterances": len(lengths),
        "audio_s": short(seconds_of_audio, 4),
        "mean_s": short(seconds_of_audio / len(lengths)),
        "cases": cases,
    }


def _files(
    target: Target,
    speech: NDArray[np.float32],
    modes: Sequence[Mode],
    stride: int,
    workers: Sequence[int],
    rate: float,
    budget: Budget,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    arms = [(mode, count) for count in workers for mode in modes]
    start_s = 6.0  # to start workers and stop them
    audio_s = max(0.0, budget.left - start_s * len(arms)) * rate / len(arms)
    lengths = draw_lengths(count_for(audio_s, least=max(workers) + 1))
    cases: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        utterances = write_corpus(Path(temporary) / "in", speech, lengths, target.info.sample_rate)
        out = Path(temporary) / "out"
        for mode, count in arms:
            name = f"files to files, {mode} mode, {count} worker{'s' * (count > 1)}"
            if cases and not budget.allows(0.7 * sum(lengths) / rate, name):
                continue
            progress(name)
            settings = Settings(mode=mode, stride=stride, seed=_SEED)
            run = Run(
                [plan_folder(utterances, out, out, settings)],
                target.model,
                target.bank,
                settings,
                (target.device,),
                count,
                target.options,
            )
            summary = run_corpus(run)
            if summary.failed:
                raise MkcError(f"{summary.failed[0][0]}: {summary.failed[0][1]}")
            shutil.rmtree(out)
            cases.append(
                {
                    "mode": mode,
                    "workers": count,
                    "rtfx": short(summary.rtfx),
                    "start_up_s": short(summary.start_up_s),
                }
            )
    return {
        "utterances": len(lengths),
        "audio_s": short(sum(lengths), 4),
        "mean_s": short(sum(lengths) / len(lengths)),
        "threads_a_worker": cores() if target.device == CPU else None,
        "cases": cases,
    }


def _compare(
    anonymizer: Anonymizer,
    checkpoints: Checkpoints,
    target: Target,
    speech: NDArray[np.float32],
    modes: Sequence[Mode],
    stride: int,
    rounds: int,
    ours_rate: float,
    budget: Budget,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Each utterance by the engine and by the baseline in turn, the same threads, inputs and draws."""
    from mkc_fast.benchmarks.baseline.pipeline import Baseline

    progress("loading the baseline")
    begin = time.perf_counter()
    baseline = Baseline.load(
        checkpoints.wavlm_ckpt,
        checkpoints.ckpt,
        checkpoints.kmeans_scp,
        device=target.device,
        threads=target.used_threads,
        layer=target.info.layer,
    )
    load_s = time.perf_counter() - begin
    budget.seconds += load_s  # the budget is for measuring
    rate = anonymizer.info.sample_rate
    trial = cut(speech, _TRIAL_S, rate, 0)
    slow_rate = min(_trial_rate(baseline, trial, mode, stride) for mode in modes)
    cost = len(modes) * (1 / ours_rate + 1 / slow_rate)
    share_s = _COMPARISON_SHARE * budget.left
    lengths = draw_lengths(count_for(share_s / cost / (rounds + 1), least=2, most=60))
    waveforms = [cut(speech, length, rate, index) for index, length in enumerate(lengths)]
    # A warm-up of both on the longest, in the mode that touches most: buffers have grown, and the bank is in memory.
    progress("warming both up")
    started = time.perf_counter()
    arms: dict[str, Anonymizer | Baseline] = {"ours": anonymizer, "practice": baseline}
    for arm in arms.values():
        arm.anonymize(max(waveforms, key=len), FRAME, 1, _SEED, "warm-up")
    every = np.arange(len(anonymizer.bank))
    anonymizer.assign(np.ones((len(every), anonymizer.info.dim), np.float32), every)
    share_s -= time.perf_counter() - started
    seconds: dict[str, dict[str, list[float]]] = {mode: {"ours": [], "practice": []} for mode in modes}
    stages: dict[str, dict[str, dict[str, float]]] = {
        mode: {arm: dict.fromkeys(TIMED_STAGES, 0.0) for arm in ("ours", "practice")} for mode in modes
    }
    worst, same, frames = 0.0, 0, 0
    begin, done = time.perf_counter(), 0
    for count in range(rounds):
        spent = time.perf_counter() - begin
        if count and spent * (count + 1) / count > share_s:
            budget.cut.append(f"comparison: {count} of {rounds} rounds, no time for more")
            break
        progress(f"beside the baseline, round {count + 1} of {rounds}: {len(lengths)} utterances, each by both in turn")
        for index, waveform in enumerate(waveforms):
            for mode in modes:
                # Who goes first alternates, so that neither always finds the other's caches.
                order = ("ours", "practice") if (index + count) % 2 == 0 else ("practice", "ours")
                made: dict[str, Result] = {}
                for name in order:
                    before = time.perf_counter()
                    made[name] = arms[name].anonymize(waveform, mode, stride, _SEED, f"u{index}")
                    seconds[mode][name].append(time.perf_counter() - before)
                    for stage, taken in made[name].stage_seconds.items():
                        stages[mode][name][stage] += taken
                agree = made["ours"].cluster_ids == made["practice"].cluster_ids
                same, frames = same + int(agree.sum()), frames + len(agree)
                if agree.all():
                    difference = np.abs(made["ours"].waveform - made["practice"].waveform)
                    worst = max(worst, float(difference.max()))
        done += 1
    audio = sum(lengths) * done
    compared = []
    for mode in modes:
        ours, theirs = seconds[mode]["ours"], seconds[mode]["practice"]
        totals = {arm: sum(seconds[mode][arm]) for arm in ("ours", "practice")}
        by_round = [
            sum(theirs[start : start + len(lengths)]) / sum(ours[start : start + len(lengths)])
            for start in range(0, len(ours), len(lengths))
        ]
        compared.append(
            {
                "mode": mode,
                "stride": stride if mode == FRAME else None,
                "ours_rtfx": short(audio / totals["ours"]),
                "practice_rtfx": short(audio / totals["practice"]),
                "ratio": short(totals["practice"] / totals["ours"]),
                "ratio_by_utterance": spread(ratios(theirs, ours)),
                "ratio_by_round": [short(each) for each in by_round],
                "stage_seconds": {
                    arm: {stage: short(each / done) for stage, each in parts.items()}
                    for arm, parts in stages[mode].items()
                },
            }
        )
    return {
        "utterances": len(lengths),
        "lengths_s": lengths,
        "audio_s": short(sum(lengths), 4),
        "rounds": done,
        "threads": target.used_threads,
        "practice_load_s": short(load_s),
        "same_cluster_ids": short(same / frames, 6),
        "largest_difference": short(worst),
        "within_tolerance": worst <= _TOLERANCE,
        "modes": compared,
    }
