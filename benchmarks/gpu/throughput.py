"""Fifth part: memory to memory, one batch behind the other, by precision and batch; and each stage beside its floor."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

from mkc_fast.benchmarks.gpu.artifacts import wait_for_model
from mkc_fast.benchmarks.gpu.bench import RATE, SEED
from mkc_fast.benchmarks.utterances import DISTRIBUTION
from mkc_fast.engine.options import Tuning
from mkc_fast.engine.passes.shapes import chosen_lengths, whole_steps
from mkc_fast.names import ENCODE, RESTORE, TIMED_STAGES, VOCODE

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from mkc_fast import Anonymizer
    from mkc_fast.benchmarks.gpu.bench import Bench
    from mkc_fast.names import Precision

# The passes' arithmetic for one second of audio at full size, in GFLOP (multiply-adds counted as 2): the floor of a
# stage is this divided by what the device does in a large matrix product.
GFLOP_PER_SECOND = {ENCODE: 14.0, RESTORE: 30.1, VOCODE: 38.6}
# Whatever of these is faster here becomes the default.
_OFF_BY_DEFAULT = {
    "residual kernel": Tuning(residual_kernel=True),
    "recorded batches": Tuning(record_batches=True),
    "vocoder NCHW": Tuning(prefer_nhwc=False),
}


def throughput(bench: Bench, found: dict[str, Any]) -> None:
    """RTFx by precision and batch, as ``infer`` runs; every batch ran once before it is timed.

    In the first precision also with what is off by default: the kernel of the residual blocks, recorded batches, and
    the vocoder's channels first, where the graphs for CUDA have them last.
    """
    sizes = bench.sizes
    wait_for_model(bench, half=True)
    waveforms = bench.corpus(sizes.corpus_s)
    found["corpus"] = {
        "utterances": len(waveforms), "audio_s": sum(map(len, waveforms)) / RATE, "order": "longest first",
        "lengths": DISTRIBUTION, "speech": "recorded, repeated",
    }  # fmt: skip
    first = sizes.precisions[0]
    plain = [(each, each, Tuning()) for each in sizes.precisions]
    variants = [
        *plain[:2],
        *((f"{first}, {name}", first, tuning) for name, tuning in _OFF_BY_DEFAULT.items()),
        *plain[2:],
    ]
    # Every variant in the first size of batches before any in the next: there may not be time for all.
    for batch_s in sizes.batches_s:
        for name, precision, tuning in variants:
            of = found.setdefault(name, {})
            work = partial(_of_batch, bench, waveforms, precision, tuning, batch_s)
            bench.figure(of, f"batches of {batch_s:g} s", work, least_s=25)


def _of_batch(
    bench: Bench, waveforms: Sequence[NDArray[np.float32]], precision: Precision, tuning: Tuning, batch_s: float
) -> dict[str, Any]:
    """Load for batches of this size, prepare for the corpus's lengths as ``infer`` does, and measure."""
    begin = time.perf_counter()
    there = bench.load(provider=bench.machine.provider, precision=precision, tuning=tuning, batch_s=batch_s)
    loaded = time.perf_counter()
    info, longest = there.info, whole_steps(there.info.whole_frames(there.options.max_window_s))
    there.use_lengths(chosen_lengths([info.frames(len(waveform)) for waveform in waveforms], longest, info))
    prepared = time.perf_counter()
    return {
        **timed_batches(there, waveforms, batch_s, precision),
        "load_s": loaded - begin, "prepare_lengths_s": prepared - loaded, "chosen": there.chosen,
    }  # fmt: skip


def timed_batches(
    anonymizer: Anonymizer, waveforms: Sequence[NDArray[np.float32]], batch_s: float, precision: str
) -> dict[str, Any]:
    """RTFx of recordings (S,) at 16 kHz in batches, and seconds by stage, in a second run of the same."""
    names = [f"u{index}" for index in range(len(waveforms))]
    # Twice the same: shapes that the first run met are planned, and memory is there, in the second.
    for _ in range(2):
        begin = time.perf_counter()
        results = anonymizer.anonymize_batch(waveforms, seed=SEED, utterance_ids=names, batch_s=batch_s)
        seconds = time.perf_counter() - begin
    audio_s = sum(map(len, waveforms)) / RATE
    stages = {stage: sum(result.stage_seconds[stage] for result in results) for stage in TIMED_STAGES}
    return {
        "rtfx": audio_s / seconds, "seconds": seconds, "device_busy": sum(stages.values()) / seconds,
        "stage_share": {stage: value / sum(stages.values()) for stage, value in stages.items()},
        "stage_s_per_audio_s": {stage: value / audio_s for stage, value in stages.items()},
        "precision": precision, "shapes": {"batch_s": batch_s, "longest_s": len(waveforms[0]) / RATE},
    }  # fmt: skip


def floors(bench: Bench, found: dict[str, Any]) -> None:
    """Each stage's time beside what its arithmetic takes at the rate of large matrix products."""
    top, runs = bench.result.get("ceilings", {}), bench.result.get("throughput", {})
    if bench.sizes.model != "large":
        found["note"] = "the arithmetic is known for the published size alone"
        return
    for precision in bench.sizes.precisions:
        tflops = top.get(f"gemm {precision}", {}).get("tflops")
        for batch, run in runs.get(precision, {}).items():
            took = run.get("stage_s_per_audio_s") if tflops else None
            if took:
                found[f"{precision}, {batch}"] = {
                    stage: {"seconds": took[stage], "floor": floor, "floor_of_time": floor / took[stage]}
                    for stage, floor in ((stage, gflop / 1e3 / tflops) for stage, gflop in GFLOP_PER_SECOND.items())
                }
    if not found:
        found["skipped"] = "it needs ceilings and throughput"
