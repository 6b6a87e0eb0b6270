"""Sixth part: one utterance at a time, from host memory to host memory, by length."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mkc_fast.benchmarks.gpu.artifacts import wait_for_model
from mkc_fast.engine.options import Tuning
from mkc_fast.names import FP32, TIMED_STAGES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mkc_fast import Anonymizer
    from mkc_fast.benchmarks.gpu.bench import Bench
    from mkc_fast.names import Precision

_LAUNCHES, _GRAPHS = "launches", "CUDA graphs"


def latency(bench: Bench, found: dict[str, Any]) -> None:
    """With launches and with recorded CUDA graphs, in the first precision and in float32."""
    wait_for_model(bench, half=True)
    precisions = dict.fromkeys([bench.sizes.precisions[0], FP32])
    for precision in precisions:
        for how in (_GRAPHS, _LAUNCHES):
            _of(bench, found, precision, how, "HEURISTIC")


def latency_searched(bench: Bench, found: dict[str, Any]) -> None:
    """CUDA graphs with cuDNN's other heuristic, which fixed shapes get by default; it may take minutes."""
    wait_for_model(bench, half=True)
    _of(bench, found, bench.sizes.precisions[0], _GRAPHS, "EXHAUSTIVE")


def _of(bench: Bench, found: dict[str, Any], precision: Precision, how: str, search: str) -> None:
    sizes, of = bench.sizes, dict[str, Any]()
    found[f"{precision}, {how}"] = of
    opened: list[Anonymizer] = []

    def load() -> dict[str, Any]:
        begin = time.perf_counter()
        opened.append(
            bench.load(
                provider=bench.machine.provider,
                precision=precision,
                latency_buckets_s=sizes.latencies_s if how == _GRAPHS else (),
                tuning=Tuning(conv_search=search),
            )
        )
        return {"seconds": time.perf_counter() - begin, "chosen": opened[0].chosen, "conv_search": search}

    bench.figure(of, "load", load, least_s=15)
    for index, seconds in enumerate(sizes.latencies_s if opened else ()):
        waveform = bench.piece(seconds, index)
        work = partial(timed_single, opened[0], waveform, sizes.latency_runs, precision)
        bench.figure(of, f"{seconds:g} s", work, least_s=2)


def timed_single(anonymizer: Anonymizer, waveform: np.ndarray, runs: int, precision: str) -> dict[str, Any]:
    """Percentiles of one utterance (S,) at a time, after warm-up runs of the same."""
    took: list[float] = []
    stages: dict[str, list[float]] = {stage: [] for stage in TIMED_STAGES}
    warm_up = max(2, runs // 5)
    for index in range(warm_up + runs):
        begin = time.perf_counter()
        result = anonymizer.anonymize(waveform, seed=index, utterance_id="u")
        if index >= warm_up:
            took.append(1000 * (time.perf_counter() - begin))
            for stage, values in stages.items():
                values.append(1000 * result.stage_seconds[stage])
    return {
        **percentiles(took),
        "stage_p50_ms": {stage: float(np.median(values)) for stage, values in stages.items()},
        "precision": precision, "shapes": {"samples": len(waveform)}, "runs": runs,
    }  # fmt: skip


def percentiles(milliseconds: Sequence[float]) -> dict[str, float]:
    """p50, p95 and p99 of times in ms."""
    return {f"p{q}_ms": float(np.percentile(milliseconds, q)) for q in (50, 95, 99)}
