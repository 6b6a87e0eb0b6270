"""What a process of its own does over the stubs, with the whole pass; writes what each step called.

``python -m tests.cuda_dry_run.passes WHAT MODEL BANK OUT KEYWORDS``, with keywords in JSON. Results mean nothing: only
their lengths are looked at.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.fakes.cuda.dry_run.calls import CallLog, Calls

RATE, HOP = 16000, 320
LIMIT = "CUDA_DRY_RUN_MEMORY_MB"
Step = tuple[str, Calls]


class Steps:
    """An anonymizer on ``cuda:0``, and what each step called."""

    def __init__(self, model: str, bank: str, **how: Any) -> None:
        from mkc_fast import Anonymizer

        self._log = CallLog(Path(os.environ["CUDA_DRY_RUN_LOG"]))
        self.done: list[Step] = []
        if "options" not in how:
            how["provider"] = "cuda"
        self.anonymizer = Anonymizer.load(model, bank, "cuda:0", **how)
        self.end("load")

    def end(self, name: str) -> None:
        """What was called since the last step is this one's."""
        self.done.append((name, self._log.take()))

    def batch(self, name: str, lengths: Sequence[float], **how: Any) -> None:
        """A batch of utterances of so many seconds."""
        waveforms = [_noise(length) for length in lengths]
        results = self.anonymizer.anonymize_batch(waveforms, seed=1, utterance_ids=_ids(lengths), **how)
        self.end(name)
        _check(waveforms, [result.waveform for result in results])


def _noise(seconds: float) -> NDArray[np.float32]:
    return np.random.default_rng(0).uniform(-0.1, 0.1, int(RATE * seconds)).astype(np.float32)


def _ids(lengths: Sequence[float]) -> list[str]:
    return [f"u{index}" for index in range(len(lengths))]


def _check(waveforms: Sequence[NDArray[np.float32]], results: Sequence[NDArray[np.float32]]) -> None:
    for waveform, result in zip(waveforms, results, strict=True):
        assert 0 <= len(waveform) - len(result) < 2 * HOP, (len(waveform), len(result))


def alone(model: str, bank: str, lengths: Sequence[float], **how: Any) -> list[Step]:
    """One utterance after the other."""
    steps = Steps(model, bank, **how)
    for length in lengths:
        waveform = _noise(length)
        result = steps.anonymizer.anonymize(waveform, seed=1, utterance_id="u")
        steps.end(f"{length:g} s")
        _check([waveform], [result.waveform])
    return steps.done


def batches(model: str, bank: str, lengths: Sequence[float], times: int, **how: Any) -> list[Step]:
    """The same batch several times."""
    steps = Steps(model, bank, **how)
    for index in range(times):
        steps.batch(f"batch {index + 1}", lengths)
    return steps.done


def corpus(
    model: str, bank: str, hours: float, batch_s: float, *, tuning: Mapping[str, bool] | None = None, **how: Any
) -> list[Step]:
    """Utterances of LibriSpeech's lengths in shuffled batches, after a warm-up of all shapes."""
    from mkc_fast.benchmarks.utterances import MEAN_S, draw_lengths
    from mkc_fast.engine.options import EngineOptions, Tuning
    from mkc_fast.engine.passes.shapes import Shapes, chosen_lengths

    how["tuning"] = Tuning(**(tuning or {}))
    steps = Steps(model, bank, options=EngineOptions(provider="cuda", batch_s=batch_s, **how))
    seconds = draw_lengths(round(hours * 3600 / MEAN_S))
    info = steps.anonymizer.info
    frames = [info.frames(int(each * RATE)) for each in seconds]
    lengths = chosen_lengths(frames, 2000, info)
    steps.anonymizer.use_lengths(lengths)
    steps.end("warm-up")
    groups = Shapes(lengths, int(batch_s * RATE / HOP), full=True).groups(frames)
    np.random.default_rng(0).shuffle(groups)
    for number, group in enumerate(groups):
        steps.batch(f"batch {number + 1}", [seconds[index] for index in group], batch_s=float("inf"))
    return steps.done


def in_flight(model: str, bank: str, lengths: Sequence[float], count: int) -> list[Step]:
    """Several batches are submitted before the results of the first are asked for; after one that opens sessions."""
    steps = Steps(model, bank)
    steps.batch("warm-up", lengths)
    waveforms = [_noise(length) for length in lengths]
    pending = [
        steps.anonymizer.submit_batch(waveforms, seed=index, utterance_ids=_ids(lengths)) for index in range(count)
    ]
    steps.end("submitted")
    for batch in pending:
        _check(waveforms, [result.waveform for result in batch.result()])
    steps.end("collected")
    return steps.done


def too_little_memory(model: str, bank: str, lengths: Sequence[float], free_mb: int) -> list[Step]:
    """A batch for which the device has too little memory, after one that fits."""
    import cupy

    steps = Steps(model, bank)
    steps.batch("fits", lengths[:1])
    cupy.get_default_memory_pool().free_all_blocks()
    many_mb = 1000
    os.environ[LIMIT] = str(many_mb)
    used_mb = many_mb - (cupy.cuda.runtime.memGetInfo()[0] >> 20)
    os.environ[LIMIT] = str(used_mb + free_mb)
    steps.batch("does not fit", lengths, batch_s=1e6)
    return steps.done


def small_arena(model: str, bank: str, lengths: Sequence[float], arena_mb: int) -> list[Step]:
    """A batch that ONNX Runtime's own limit is too small for."""
    from mkc_fast.engine.options import Tuning

    steps = Steps(model, bank, tuning=Tuning(gpu_mem_limit_bytes=arena_mb << 20))
    steps.batch("does not fit", lengths, batch_s=1e6)
    return steps.done


def lookup(model: str, bank: str, dim: int, clusters: int, frames: Sequence[int], memory_fraction: float) -> list[Step]:
    """Calls of the look-up alone, over a bank of any size, twice for each number of frames."""
    import cupy

    from mkc_fast.kernels.lookup.cupy_lookup import CupyLookup

    entries, log, done = 24, CallLog(Path(os.environ["CUDA_DRY_RUN_LOG"])), []
    centroids = np.zeros((entries, clusters, dim), np.float32)
    half_norms = np.zeros((entries, clusters))
    made = CupyLookup(centroids, half_norms, [clusters] * entries, memory_fraction=memory_fraction)
    stream = cupy.cuda.Stream(non_blocking=True)
    done.append((f"resident: {made.resident}", log.take()))
    for count in frames:
        ids = np.arange(count, dtype=np.int32) % entries
        with stream:
            features, out = cupy.empty((count, dim), np.float32), cupy.empty((count, dim), np.float32)
        for name in ("first", "again"):
            log.take()
            made.assign_device(features, ids, out=out, stream=stream)
            done.append((f"{count} frames, {name}", log.take()))
    return done


KNOWN: dict[str, Callable[..., list[Step]]] = {
    function.__name__: function
    for function in (alone, batches, corpus, in_flight, too_little_memory, small_arena, lookup)
}


def main(what: str, model: str, bank: str, out: str, keywords: str) -> None:
    """Do it, and write the steps."""
    steps = KNOWN[what](model, bank, **json.loads(keywords))
    Path(out).write_text(json.dumps([[name, calls.to_json()] for name, calls in steps]), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
