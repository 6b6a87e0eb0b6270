"""Worker processes on a CPU: RTFx by their number, and what one core reads and writes without any inference.

python -m mkc_fast.benchmarks.workers RECORDING [--model DIR --bank DIR] [--workers 1,2] [--budget-s 120] [--quick]

Each worker computes with as many threads as there are cores, as in ``mkc-fast infer``. RTFx is from the time when the
first worker is ready to the last file. Reading and writing: one worker that is held to one core and has
``NullAnonymizer`` for an engine; 16 such cores must feed a device that anonymizes at 4,000 times real time, so a core
must reach an RTFx of 250. Files are in the page cache: disks are not measured. Without ``--model`` and ``--bank``:
random weights of ``--size``, kept in the cache folder. Writes results/workers.json.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import soundfile
import soxr

from mkc_fast.benchmarks.common import result_parser, write_result
from mkc_fast.benchmarks.random_artifacts import SIZES, random_artifacts
from mkc_fast.benchmarks.records import short
from mkc_fast.benchmarks.utterances import count_for, cut, draw_lengths, write_corpus
from mkc_fast.engine.audio.read import read_waveform
from mkc_fast.engine.cache_folder import default_cache
from mkc_fast.engine.corpus.outputs import plan_folder
from mkc_fast.engine.corpus.protocol import Settings
from mkc_fast.engine.corpus.run import Run, run_corpus
from mkc_fast.engine.datasets.dataset import Utterance
from mkc_fast.engine.options import EngineOptions, default_batch_s
from mkc_fast.names import CPU, FLAC, WAV

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mkc_fast.engine.corpus.status import Status

ENGINE = "mkc_fast.engine.anonymizer:Anonymizer"
NO_ENGINE = "mkc_fast.benchmarks.null_anonymizer:PinnedNullAnonymizer"
SEED, RATE, ROUNDS = 7, 16_000, 2
# Name, suffix, sample rate and channels of the files that are read and written.
ENCODINGS = (
    ("FLAC, 16 kHz mono", FLAC, RATE, 1),
    ("FLAC, 44.1 kHz stereo", FLAC, 44_100, 2),
    ("WAV, 16 kHz mono", WAV, RATE, 1),
)


def main() -> None:
    parser = result_parser(__doc__, "workers")
    parser.add_argument("recording", type=Path, help="speech, of which the corpora are cut")
    parser.add_argument("--model", type=Path, help="exported model (with --bank)")
    parser.add_argument("--bank", type=Path, help="bank (with --model)")
    parser.add_argument("--size", choices=SIZES, default="large", help="random weights, without --model")
    parser.add_argument("--workers", default="1,2", help="numbers of worker processes")
    parser.add_argument("--budget-s", type=float, default=120.0, help="seconds for the runs with the engine")
    parser.add_argument("--quick", action="store_true", help="few and short files, to see that it works")
    args = parser.parse_args()
    if (args.model is None) != (args.bank is None):
        parser.error("--model and --bank go together")
    model, bank = args.model, args.bank
    if model is None:
        made = random_artifacts(args.size, default_cache(), progress=say)
        model, bank = made.model, made.bank
    speech = read_waveform(args.recording, RATE)
    counts = [int(count) for count in args.workers.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(model, bank, Path(folder), speech)
        results = {
            "workers": measured_workers(bench, counts, 1.0 if args.quick else args.budget_s),
            "host": measured_host(bench, 20 if args.quick else 1000),
        }
    for row in results["workers"]["counts"]:
        print(f"{row['workers']} workers: RTFx {row['rtfx']:g}")
    for row in results["host"]["cases"]:
        print(f"reading and writing alone, one core, {row['input']}: RTFx {row['rtfx_per_worker_cpu_s']:g}")
    write_result(args.out, {"recording": args.recording.name, "quick": args.quick, "results": results})


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass
class Clock:
    """Watches a run: the processor time of its workers from when each was ready until the last file was done."""

    files: int
    ready_at: float = 0.0
    work_s: float = 0.0
    cpu_s: float = 0.0
    _before: dict[int, float] = field(default_factory=dict)

    def __call__(self, status: Status) -> None:
        """Take note of a status."""
        for worker in status.workers:
            if worker.ready_at is not None and worker.pid not in self._before:
                self.ready_at = self.ready_at or time.perf_counter()
                self._before[worker.pid] = processor_s(worker.pid)
        if not self.work_s and status.summary.written + len(status.summary.failed) == self.files:
            self.work_s = time.perf_counter() - self.ready_at
            self.cpu_s = sum(processor_s(pid) - before for pid, before in self._before.items())


def processor_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


@dataclass(frozen=True)
class Bench:
    """What is measured on, and where files may go."""

    model: Path
    bank: Path
    folder: Path
    speech: NDArray[np.float32]

    def run(
        self, utterances: list[Utterance], count: int, factory: str = ENGINE, batch_s: float | None = None
    ) -> tuple[Clock, float]:
        """Anonymize with so many workers; what the clock saw, and seconds of audio."""
        out, settings, clock = self.folder / "out", Settings(seed=SEED), Clock(len(utterances))
        plan = plan_folder(utterances, out, out, settings)
        options = EngineOptions(batch_s=batch_s)
        run = Run([plan], self.model, self.bank, settings, [CPU], count, options, factory=factory)
        summary = run_corpus(run, watch=clock)
        if summary.failed:
            raise SystemExit(f"failed: {summary.failed[0]}")
        shutil.rmtree(out)
        return clock, summary.audio_s


def measured_workers(bench: Bench, counts: list[int], budget_s: float) -> dict[str, Any]:
    """RTFx by the number of workers; the corpus is as long as the budget allows."""
    say("a trial, to see how long a corpus can be")
    clock, audio_s = bench.run(write_corpus(bench.folder / "trial", bench.speech, [4.0] * 2, RATE), 1)
    rate = audio_s / clock.work_s
    lengths = draw_lengths(count_for(budget_s * rate / (ROUNDS * len(counts)), least=2 * max(counts)))
    utterances = write_corpus(bench.folder / "corpus", bench.speech, lengths, RATE)
    found: dict[int, list[tuple[Clock, float]]] = {count: [] for count in counts}
    for _ in range(ROUNDS):
        for count, runs in found.items():
            say(f"{count} workers, {len(lengths)} utterances")
            runs.append(bench.run(utterances, count))
    rows = [
        {
            "workers": count,
            "rtfx": short(median(audio_s / clock.work_s for clock, audio_s in runs)),
            "runs": [short(audio_s / clock.work_s) for clock, audio_s in runs],
            "cpu_s_per_audio_s": short(median(clock.cpu_s / audio_s for clock, audio_s in runs)),
        }
        for count, runs in found.items()
    ]
    return {"files": len(lengths), "audio_s": short(sum(lengths), 4), "counts": rows}


def measured_host(bench: Bench, files: int) -> dict[str, Any]:
    """What a core decodes, resamples, checks and writes; files are read again under other ids."""
    rows = []
    for name, suffix, rate, channels in ENCODINGS:
        say(name)
        paths = write_encoded(bench, bench.folder / name, suffix, rate, channels)
        # Of the encoding that takes longest, fewer files.
        listed = [Utterance(f"u{i:05d}", paths[i % len(paths)]) for i in range(files // channels**2)]
        runs = [bench.run(listed, 1, NO_ENGINE, default_batch_s("cuda:0")) for _ in range(ROUNDS)]
        rtfx = short(median(audio_s / clock.cpu_s for clock, audio_s in runs))
        rows.append({"input": name, "files": len(listed), "rtfx_per_worker_cpu_s": rtfx})
    return {"cases": rows}


def write_encoded(bench: Bench, folder: Path, suffix: str, rate: int, channels: int) -> list[Path]:
    """40 files of 2 to 15 s; where resampled, with the faint noise that a real recording has."""
    folder.mkdir()
    rng, paths = np.random.default_rng(SEED), []
    for index, length_s in enumerate(rng.uniform(2, 15, 40)):
        waveform = cut(bench.speech, length_s, RATE, index)
        if rate != RATE:
            waveform = soxr.resample(waveform, RATE, rate)
            waveform = waveform + rng.normal(0, 3e-4, len(waveform))
        paths.append(folder / f"u{index:05d}.{suffix}")
        soundfile.write(paths[-1], np.stack([waveform] * channels, 1), rate, subtype="PCM_16")
    return paths


if __name__ == "__main__":
    main()
