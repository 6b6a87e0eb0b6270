"""Third part: every stage, and the whole pass, beside the CPU on recorded speech, in each precision.

Ids from equal features must be equal. Ids from the features of two devices may differ where two centroids are about as
far (``mkc_fast.benchmarks.near_ties``). How many do, and by how much, is reported. Only what the features' error does
not explain is a fault. Waveforms are compared from equal ids: the CPU computes them from the ids that the GPU chose.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mkc_fast.benchmarks.gpu.artifacts import is_made, wait_for_model
from mkc_fast.benchmarks.gpu.bench import RATE, SEED, needs_half
from mkc_fast.benchmarks.near_ties import joined, near_ties
from mkc_fast.names import CPU, ENCODE, FP32, RESTORE, VOCODE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mkc_fast import Anonymizer
    from mkc_fast.benchmarks.gpu.bench import Bench
    from mkc_fast.engine.passes.results import Result
    from mkc_fast.names import Precision

# The largest relative RMS error of a stage that passes, from the same input: in float32 what sums in another order
# make; in less what export lets half precision have (30 dB below the signal).
_LIMITS = {FP32: 1e-4}
_LIMIT = 3e-2


@dataclass(frozen=True)
class Case:
    """A recording, and what the CPU makes of it in float32."""

    name: str
    waveform: NDArray[np.float32]
    features: NDArray[np.float32]
    result: Result


def correctness(bench: Bench, found: dict[str, Any]) -> None:
    """In each precision: errors by stage, ids from equal features, near ties, and the pass alone and in a batch."""
    found["waited_for_export_s"] = wait_for_model(bench)
    sizes = bench.sizes
    cpu = bench.load(CPU, max_window_s=sizes.window_s)
    cases = cases_of(cpu, [bench.piece(seconds, index) for index, seconds in enumerate(sizes.check_s)])
    found["speech_s"] = [len(case.waveform) / RATE for case in cases]
    found["reference"] = cpu.chosen
    # Those whose graphs are there come first, while the others are still made.
    ready = is_made(bench, half=True)
    for precision in sorted(sizes.precisions, key=lambda each: needs_half(each) and not ready):
        bench.figure(found, precision, partial(_compared, bench, cpu, cases, precision), least_s=15)
    found["passes"] = all(found[precision].get("passes") is True for precision in sizes.precisions)


def _compared(bench: Bench, cpu: Anonymizer, cases: Sequence[Case], precision: Precision) -> dict[str, Any]:
    wait_for_model(bench, half=needs_half(precision))
    there = bench.load(provider=bench.machine.provider, precision=precision, max_window_s=bench.sizes.window_s)
    return compared(there, cpu, cases, precision)


def limit_of(precision: str) -> float:
    """The largest relative RMS error of a stage that passes."""
    return _LIMITS.get(precision, _LIMIT)


def cases_of(cpu: Anonymizer, waveforms: Sequence[NDArray[np.float32]]) -> list[Case]:
    """Recordings (S,), and what the CPU makes of them."""
    cases = []
    for index, waveform in enumerate(waveforms):
        name = f"u{index}"
        result = cpu.anonymize(waveform, seed=SEED, utterance_id=name)
        cases.append(Case(name, waveform, cpu.encode(waveform), result))
    return cases


def compared(there: Anonymizer, cpu: Anonymizer, cases: Sequence[Case], precision: str) -> dict[str, Any]:
    """An anonymizer on a device beside one on the CPU in float32: whether it passes, and by how much they differ."""
    stages = _stages(there, cpu, cases)
    banks = [case.result.bank_ids for case in cases]
    equal = [
        np.array_equal(there.assign(case.features, ids), case.result.cluster_ids)
        for case, ids in zip(cases, banks, strict=True)
    ]
    features = [there.encode(case.waveform) for case in cases]
    ties = joined(
        near_ties(cpu.bank.centroids, ids, case.features, case.result.cluster_ids, own, there.assign(own, ids))
        for case, ids, own in zip(cases, banks, features, strict=True)
    )
    waveforms, names = [case.waveform for case in cases], [case.name for case in cases]
    runs = {
        "alone": [there.anonymize(w, seed=SEED, utterance_id=n) for w, n in zip(waveforms, names, strict=True)],
        "in a batch": there.anonymize_batch(waveforms, seed=SEED, utterance_ids=names, batch_s=1e9),
    }
    passes = {name: _whole(cpu, cases, features, results) for name, results in runs.items()}
    limit = limit_of(precision)
    return {
        "passes": all(equal)
        and ties.faults == 0
        and all(stage["relative_rms_error"] <= limit for stage in stages.values())
        and all(
            each["bank_ids_equal"] and each["near_ties"]["not_explained"] == 0 and each["relative_rms_error"] <= limit
            for each in passes.values()
        ),
        "chosen": there.chosen,
        "precision": precision,
        "limit_of_relative_rms_error": limit,
        "ids_from_equal_features_equal": all(equal),
        "near_ties": ties.report(),
        "stages": stages,
        "pass": passes,
    }


def _stages(there: Anonymizer, cpu: Anonymizer, cases: Sequence[Case]) -> dict[str, dict[str, Any]]:
    """Each stage alone, from what the CPU makes of the stages before it."""
    pairs: dict[str, list[tuple[NDArray[np.float32], NDArray[np.float32]]]] = {ENCODE: [], RESTORE: [], VOCODE: []}
    for case in cases:
        quantized = cpu.lookup(case.result.bank_ids, case.result.cluster_ids)
        restored = cpu.restore(quantized)
        pairs[ENCODE].append((there.encode(case.waveform), case.features))
        pairs[RESTORE].append((there.restore(quantized), restored))
        pairs[VOCODE].append((there.vocode(restored), cpu.vocode(restored)))
    return {stage: errors(of) for stage, of in pairs.items()}


def _whole(
    cpu: Anonymizer, cases: Sequence[Case], features: Sequence[NDArray[np.float32]], results: Sequence[Result]
) -> dict[str, Any]:
    """The pass: draws equal, ids that differ, and waveforms beside what the CPU makes of the same ids."""
    ties, pairs = [], []
    for case, own, result in zip(cases, features, results, strict=True):
        ids, expected = case.result, case.result.waveform
        ties.append(
            # In a batch sums run in another order, so the features are not those of the utterance alone.
            near_ties(
                cpu.bank.centroids, ids.bank_ids, case.features, ids.cluster_ids, own, result.cluster_ids, slack=2.0
            )
        )
        if not np.array_equal(result.cluster_ids, ids.cluster_ids):
            expected = cpu.vocode(cpu.restore(cpu.lookup(ids.bank_ids, result.cluster_ids)))
        pairs.append((result.waveform, expected))
    return {
        "bank_ids_equal": all(
            np.array_equal(case.result.bank_ids, result.bank_ids) for case, result in zip(cases, results, strict=True)
        ),
        "near_ties": joined(ties).report(),
        **errors(pairs),
    }


def errors(pairs: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]]) -> dict[str, Any]:
    """Of values and what was expected, over all pairs: largest error, relative RMS error, and SNR."""
    found, expected = (np.concatenate([pair[side].ravel() for pair in pairs]).astype(np.float64) for side in (0, 1))
    noise, signal = ((found - expected) ** 2).mean(), max((expected**2).mean(), np.finfo(float).tiny)
    relative = float(np.sqrt(noise / signal))
    return {
        "max_error": float(np.abs(found - expected).max()),
        "max_value": float(np.abs(expected).max()),
        "relative_rms_error": relative,
        "snr_db": round(-20 * float(np.log10(max(relative, 1e-12))), 1),
    }
