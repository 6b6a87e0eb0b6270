"""What many GPUs ask of the process that runs a corpus and of the file system: where it breaks first, by simulation.

python -m mkc_fast.benchmarks.cluster.simulation RECORDING [--model DIR --bank DIR] [--workers 8,16,…,512] [--quick]

The workers are simulated (``simulated.py``): each answers when a GPU at 4,000 times real time would have computed its
batch. Plan, scheduler, manifest and summary are the real ones, and run in real time, on one core. For each number of
workers: outcomes a second that they could give, and that were recorded; the share of the time in which they computed;
processor time of the runner's thread for each outcome, without what the simulation takes.

Also measured: lines of the manifest a second, alone, with and without an fsync each; headers read a second; small files
made and renamed a second on this disk; and, where strace is installed, which calls of the file system a recording costs
the workers and the runner. ``asked`` multiplies these by what the most workers would do.
Writes results/cluster_simulation.json.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkc_fast.benchmarks.cluster.setup import PACE, artifacts_of, benchmark_parser, say, write_recordings
from mkc_fast.benchmarks.cluster.simulated import SimulatedCluster, SimulatedPool
from mkc_fast.benchmarks.common import write_result
from mkc_fast.benchmarks.records import short
from mkc_fast.benchmarks.utterances import MEAN_S
from mkc_fast.engine.atomic_files import atomic_file
from mkc_fast.engine.corpus.manifest import MANIFEST_FILE, Manifest
from mkc_fast.engine.corpus.outputs import plan_folder
from mkc_fast.engine.corpus.plan import lengths_s
from mkc_fast.engine.corpus.protocol import Settings
from mkc_fast.engine.corpus.run import Run, run_corpus
from mkc_fast.engine.datasets.dataset import Utterance

if TYPE_CHECKING:
    from collections.abc import Sequence

BYTES_A_SECOND = 32_000
WORKERS = "8,16,32,64,128,256,512"
# Recordings of a run: as many as take so long, and enough that all workers are at work for most of it.
_SECONDS, _LEAST_EACH, _MOST = 8.0, 400, 400_000
_CALL = re.compile(r"\d+ +(?P<call>\w+)\((?P<rest>.*)")
_RECORDED = {"file": "u.wav", "bytes": 400_000, "seconds": 12.6, "frames": 629}


def main() -> None:
    parser = benchmark_parser(__doc__, "cluster_simulation")
    parser.add_argument("--workers", default=WORKERS, help="numbers of simulated GPUs")
    args = parser.parse_args()
    model, bank = artifacts_of(parser, args)
    counts = [8, 512] if args.quick else [int(count) for count in args.workers.split(",")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_recordings(folder / "recordings", args.recording)
        cases = []
        for count in counts:
            wanted = count * PACE / MEAN_S
            rows = 2000 if args.quick else int(min(max(wanted * _SECONDS, count * _LEAST_EACH), _MOST))
            say(f"{count} workers, {rows:,} recordings")
            cases.append(simulated(paths, (model, bank), folder, count, rows))
            case = cases[-1]
            say(f"  {case['recorded_a_second']:,} of {case['wanted_a_second']:,} a second, {case['runner_us']} us each")
        few = 10 if args.quick else 1
        alone = {
            "manifest_lines_a_second": manifest_lines(folder / "lines", 100_000 // few**2, 100),
            "manifest_lines_a_second_one_at_a_time": manifest_lines(folder / "single", 20_000 // few, 1),
            "fsyncs_a_second": fsyncs(folder / "synced", 200 // few),
            "headers_a_second": headers(paths, 50_000 // few**2),
            "files_made_a_second": files_made(folder / "made", 10_000 // few),
        }
        calls = calls_of(paths[: 20 // few], model, bank, folder)
    most = cases[-1]
    a_second = most["wanted_a_second"]
    asked = {
        "workers": most["workers"],
        "recordings_a_second": a_second,
        "bytes_written_a_second": short(most["workers"] * PACE * BYTES_A_SECOND),
        "manifest_bytes_a_second": short(a_second * most["manifest_bytes"]),
        "runner_received_bytes_a_second": short(a_second * most["received_bytes"]),
        "runner_cores": short(a_second * most["runner_us"] / 1e6),
        "calls_a_second": {call: short(a_second * number) for call, number in calls.items()},
    }
    least = min(case["runner_us"] for case in cases)
    found = {
        "pace": PACE,
        "mean_length_s": MEAN_S,
        "cases": cases,
        "alone": alone,
        "calls_a_recording": calls,
        "asked": asked,
        "gpus_fed": short(1e6 / least * MEAN_S / PACE, 2),
    }
    write_result(args.out, {"quick": args.quick, **found})


def simulated(
    paths: Sequence[str], artifacts: tuple[Path, Path], folder: Path, workers: int, rows: int
) -> dict[str, Any]:
    """Run so many recordings over so many simulated workers."""
    out, settings, pool = folder / f"out{workers}", Settings(seed=7), SimulatedPool(PACE)
    utterances = [Utterance(f"u{n:08d}", paths[n % len(paths)]) for n in range(rows)]
    plan = plan_folder(utterances, out, out, settings)
    run = Run([plan], *artifacts, settings, ["cuda:0"], cluster=SimulatedCluster(workers, pool))
    first: list[tuple[float, float]] = []

    def watch(_: object) -> None:
        if not first and pool.spent.first_sent_at is not None:
            first.append((time.thread_time(), pool.spent.simulating_s))

    summary = run_corpus(run, watch=watch)
    spent, ((thread_s, simulating_s),) = pool.spent, first
    work_s = time.perf_counter() - (spent.first_sent_at or 0.0)
    own_s = time.thread_time() - thread_s - (spent.simulating_s - simulating_s)
    done, each = summary.written, 1e6 / summary.written
    return {
        "workers": workers,
        "recordings": done,
        "start_up_s": short(summary.start_up_s),
        "work_s": short(work_s),
        "wanted_a_second": short(workers * PACE / MEAN_S, 4),
        "recorded_a_second": short(done / work_s, 4),
        "workers_busy": short(sum(worker.busy_s for worker in pool.workers) / workers / work_s),
        "runner_us": short(own_s * each),
        "pickling_us": short(spent.pickling_s * each),
        "simulating_us": short(spent.simulating_s * each),
        "sent_bytes": short(spent.sent_bytes / done),
        "received_bytes": short(spent.received_bytes / done),
        "manifest_bytes": short((out / MANIFEST_FILE).stat().st_size / done),
    }


def manifest_lines(folder: Path, lines: int, together: int) -> float:
    """Lines a second of a manifest, so many written together."""
    manifest = Manifest(folder, {"seed": None})
    manifest.begin({})
    utterance = Utterance("u00000000", "/corpus/speaker/chapter/u00000000.flac")
    begin = time.perf_counter()
    for number in range(lines):
        manifest.append(utterance, _RECORDED, {})
        if number % together == 0:
            manifest.flush()
    manifest.flush()
    seconds = time.perf_counter() - begin
    manifest.close()
    return short(lines / seconds)


def fsyncs(path: Path, lines: int) -> float:
    """Lines a second that are on the disk before the next: what the manifest does not ask for."""
    with path.open("wb", buffering=0) as file:
        begin = time.perf_counter()
        for _ in range(lines):
            file.write(b"x" * 140)
            os.fsync(file.fileno())
        return short(lines / (time.perf_counter() - begin))


def headers(paths: Sequence[str], count: int) -> float:
    """Headers a second that the runner reads before the first batch, from the page cache."""
    utterances = [Utterance(str(n), paths[n % len(paths)]) for n in range(count)]
    begin = time.perf_counter()
    lengths_s(utterances)
    return short(count / (time.perf_counter() - begin))


def files_made(folder: Path, count: int) -> float:
    """Empty files a second that one process makes under temporary names and renames in one folder."""
    folder.mkdir()
    begin = time.perf_counter()
    for number in range(count):
        with atomic_file(folder / str(number)) as temporary:
            temporary.touch()
    return short(count / (time.perf_counter() - begin))


def calls_of(paths: Sequence[str], model: Path, bank: Path, folder: Path) -> dict[str, float]:
    """Calls of the file system that name a recording or its output, for each recording; empty without strace."""
    if shutil.which("strace") is None:
        return {}
    scp, log = folder / "traced.scp", folder / "calls"
    scp.write_text("".join(f"{path}\n" for path in paths), encoding="utf-8")
    infer = [sys.executable, "-m", "mkc_fast", "infer", "--model", str(model), "--bank", str(bank), "--gpus", "cpu"]
    infer += ["--audio-scp", str(scp), "-o", str(folder / "traced"), "--seed", "7", "--quiet"]
    traced = ["strace", "-f", "-o", str(log), "-e", "trace=%file", *infer]
    if subprocess.run(traced, check=False, capture_output=True).returncode:
        return {}
    stems = {Path(path).stem for path in paths}
    calls: Counter[str] = Counter()
    for line in log.read_text(errors="replace").splitlines():
        found = _CALL.match(line)
        if found and any(stem in line for stem in stems):
            calls[_kind(found["call"], found["rest"])] += 1
    return {kind: short(number / len(paths)) for kind, number in sorted(calls.items())}


def _kind(call: str, rest: str) -> str:
    if call.startswith("open"):
        return "create" if "O_CREAT" in rest else "open"
    return "stat" if "stat" in call else call.removesuffix("at").removesuffix("at2")


if __name__ == "__main__":
    main()
