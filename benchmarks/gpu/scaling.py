"""Seventh part: files to files with one and more worker processes; and the last: memory, and the start of a process."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkc_fast.benchmarks.gpu.artifacts import wait_for_model
from mkc_fast.benchmarks.gpu.bench import RATE, SEED, needs_half
from mkc_fast.engine.audio.write import write_waveform
from mkc_fast.engine.datasets.dataset import Utterance
from mkc_fast.engine.options import EngineOptions

if TYPE_CHECKING:
    from mkc_fast import Anonymizer
    from mkc_fast.benchmarks.gpu.bench import Bench
    from mkc_fast.names import Precision

_START_UP = """
import resource, sys, time
begin = time.perf_counter()
import soundfile
from mkc_fast import Anonymizer
speech, _ = soundfile.read(sys.argv[4], dtype="float32")
how = {} if sys.argv[3] == "cpu" else {"provider": "cuda", "precision": sys.argv[5]}
anonymizer = Anonymizer.load(sys.argv[1], sys.argv[2], sys.argv[3], cache=sys.argv[6], **how)
loaded = time.perf_counter()
anonymizer.anonymize(speech, seed=1, utterance_id="u")
first = time.perf_counter()
anonymizer.anonymize(speech, seed=1, utterance_id="u")
again = time.perf_counter()
print(loaded - begin, first - begin, again - first, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def scaling(bench: Bench, found: dict[str, Any]) -> None:
    """As ``mkc-fast infer`` does it: one process on the device, and two."""
    sizes, source = bench.sizes, bench.work / "files"
    precision = sizes.precisions[0]
    wait_for_model(bench, half=needs_half(precision))
    source.mkdir(exist_ok=True)
    listed = []
    for index, waveform in enumerate(bench.corpus(sizes.files_s)):
        path = source / f"u{index}.wav"
        if not path.exists():
            write_waveform(path, waveform, RATE)
        listed.append(Utterance(path.stem, path))
    for processes in (1, 2):
        work = partial(_files, bench, listed, precision, processes)
        bench.figure(found, f"{processes} processes", work, least_s=25)


def _files(bench: Bench, listed: list[Utterance], precision: Precision, processes: int) -> dict[str, Any]:
    from mkc_fast.engine.corpus.outputs import plan_folder
    from mkc_fast.engine.corpus.protocol import Settings
    from mkc_fast.engine.corpus.run import Run, run_corpus

    bench.machine.release()
    with tempfile.TemporaryDirectory(dir=bench.work) as out:
        settings = Settings(seed=SEED)
        folder = plan_folder(listed, Path(out), Path(out), settings)
        options = EngineOptions(bench.machine.provider, precision, cache=bench.work / "cache")
        summary = run_corpus(
            Run([folder], bench.model, bench.bank, settings, bench.machine.devices, processes, options)
        )
    if summary.failed:
        raise RuntimeError(f"{len(summary.failed)} recordings failed: {summary.failed[:1]}")
    return {
        "rtfx": summary.rtfx, "audio_s": summary.audio_s, "wall_s": summary.wall_s, "start_up_s": summary.start_up_s,
        "written": summary.written, "stage_seconds": dict(summary.stage_seconds), "chosen": summary.chosen,
        "precision": precision, "shapes": {"files": len(listed), "format": "WAV, 16 kHz"},
    }  # fmt: skip


def memory(bench: Bench, found: dict[str, Any]) -> None:
    """Memory of the device after loading and after batches; memory and seconds of a new process."""
    precision = bench.sizes.precisions[0]
    wait_for_model(bench, half=needs_half(precision))
    bench.figure(found, "device", lambda: _device(bench, precision), least_s=15)
    for name in ("start of a process", "again, with kernels and files cached"):
        bench.figure(found, name, lambda: _start(bench, precision), least_s=20)


def _device(bench: Bench, precision: Precision) -> dict[str, Any]:
    machine = bench.machine
    machine.release()
    free = machine.free_bytes()
    anonymizer: Anonymizer = bench.load(provider=machine.provider, precision=precision)
    used = {"after loading": free - machine.free_bytes()}
    bank_bytes = anonymizer.bank.centroids.nbytes
    for batch_s in sorted(bench.sizes.batches_s):
        pieces = [bench.piece(min(12.0, batch_s), seed) for seed in range(max(1, int(batch_s / 12)))]
        names = [f"u{index}" for index in range(len(pieces))]
        anonymizer.anonymize_batch(pieces, seed=SEED, utterance_ids=names, batch_s=batch_s)
        used[f"after a batch of {batch_s:g} s"] = free - machine.free_bytes()
    return {
        "gb": {name: value / 1e9 for name, value in used.items()}, "gb_of_the_bank": bank_bytes / 1e9,
        "precision": precision, "shapes": {"utterance_s": 12.0, "bank": list(anonymizer.bank.centroids.shape)},
    }  # fmt: skip


def _start(bench: Bench, precision: Precision) -> dict[str, Any]:
    speech = bench.work / "speech.wav"
    write_waveform(speech, bench.piece(10.0 if bench.sizes.model == "large" else 0.5, SEED), RATE)
    device = bench.machine.devices[0]
    given = [str(bench.model), str(bench.bank), device, str(speech), precision, str(bench.work / "cache")]
    begin = time.perf_counter()
    run = subprocess.run(
        [sys.executable, "-c", _START_UP, *given],
        capture_output=True, text=True, check=False, timeout=120, cwd=bench.work,
    )  # fmt: skip
    wall = time.perf_counter() - begin
    if run.returncode:
        raise RuntimeError(run.stderr.strip()[-300:])
    loaded, first, again, peak_kb = map(float, run.stdout.split())
    return {
        "process_s": wall, "loaded_s": loaded, "first_output_s": first, "next_output_s": again,
        "peak_rss_gb": peak_kb / 1e6, "precision": precision, "device": device,
    }  # fmt: skip
