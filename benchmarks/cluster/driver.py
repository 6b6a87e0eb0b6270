"""The process that runs a corpus: its memory and its time for each recording, with workers that do nothing.

python -m mkc_fast.benchmarks.cluster.driver RECORDING [--model DIR --bank DIR] [--rows 100000,1000000] [--quick]

A list of so many recordings, which are 200 files under other ids, is run by two workers of this machine, and by two of
a Ray cluster that is started here. The workers neither read nor write nor compute. So what is left is the list, the
headers, the plan, the messages and the manifest. Batches have 240 padded seconds, as on a GPU; with fewer rows also one
recording each, as on a CPU. Everything is in the page cache.

The times are processor times of the process, with its threads. ``gpus_fed``: so many GPUs at 4,000 times real time give
as many outcomes as its main thread takes in, where recordings have LibriSpeech's mean length. Without ``--model`` and
``--bank``: small random weights. Writes results/cluster_driver.json.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from mkc_fast.benchmarks.child import run_children, serve
from mkc_fast.benchmarks.cluster.nothing import NOTHING
from mkc_fast.benchmarks.cluster.setup import PACE, artifacts_of, benchmark_parser, say, write_recordings
from mkc_fast.benchmarks.common import write_result
from mkc_fast.benchmarks.memory import peak_mb
from mkc_fast.benchmarks.records import short
from mkc_fast.benchmarks.utterances import MEAN_S
from mkc_fast.engine.corpus.anonymize import open_corpus
from mkc_fast.engine.corpus.manifest import MANIFEST_FILE
from mkc_fast.engine.corpus.protocol import Settings
from mkc_fast.engine.corpus.run import Run, run_corpus
from mkc_fast.engine.options import EngineOptions, default_batch_s
from mkc_fast.names import CPU

if TYPE_CHECKING:
    from mkc_fast.engine.corpus.status import Status

LOCAL, RAY = "local", "ray"
_WORKERS = 2
_TIMEOUT_S = 1800.0
# Of batches of one recording each, fewer: each costs messages of its own.
_MOST_ALONE = 20_000
_SHORT_NAME = 12


def main() -> None:
    parser = benchmark_parser(__doc__, "cluster_driver")
    parser.add_argument("--rows", default="100000,1000000", help="recordings in the list")
    args = parser.parse_args()
    rows = [200] if args.quick else [int(count) for count in args.rows.split(",")]
    model, bank = artifacts_of(parser, args)
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        paths = write_recordings(Path(folder) / "recordings", args.recording)
        gpu_s = default_batch_s("cuda:0")
        asked = [(where, count, gpu_s) for count in rows for where in (LOCAL, RAY)]
        asked += [(where, min(rows[0], _MOST_ALONE), 0.0) for where in (LOCAL, RAY)]
        for where, count, batch_s in asked:
            say(f"{where}, {count:,} recordings, batches of {batch_s:g} s")
            scp = Path(folder) / f"{count}.scp"
            scp.write_text("".join(f"u{n:08d} {paths[n % len(paths)]}\n" for n in range(count)), encoding="utf-8")
            with tempfile.TemporaryDirectory(dir=folder) as out:
                given = {"where": where, "scp": str(scp), "out": out, "model": str(model), "bank": str(bank)}
                (report,) = run_children(__spec__.name, [{**given, "batch_s": batch_s}], _TIMEOUT_S)
                for name in ("ready_s", "rss_mb", "pss_mb", "peak_rss_mb"):  # of a process that has done its work
                    report.pop(name, None)
            cases.append({"where": where, "rows": count, "batch_s": batch_s, **report})
            say(f"  {report['a_second']:g} a second, {report['driver_us']:g} us each, {report['peak_mb']:g} MB")
    write_result(args.out, {"quick": args.quick, "cases": cases})


class Clock:
    """Watches a run: what the process and its children spend from its first outcome to its last."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.begun: tuple[int, float, float, float, dict[str, float]] | None = None
        self.found: dict[str, Any] = {}

    def __call__(self, status: Status) -> None:
        """Take note of a status."""
        done = status.summary.written
        if self.begun is None and done:
            self.begun = done, time.perf_counter(), time.process_time(), time.thread_time(), children_s()
        elif self.begun is not None and done == self.count and not self.found:
            first, at, process_s, thread_s, others = self.begun
            each = 1e6 / (done - first)
            self.found = {
                "a_second": short((done - first) / (time.perf_counter() - at)),
                "driver_us": short((time.process_time() - process_s) * each),
                "main_thread_us": short(main_us := (time.thread_time() - thread_s) * each),
                "gpus_fed": short(1e6 / main_us * MEAN_S / PACE, 2),
                "others_us": {
                    name: short((seconds - others.get(name, 0.0)) * each) for name, seconds in children_s().items()
                },
            }


def children_s() -> dict[str, float]:
    """Processor seconds of the processes that this one has started, by their names."""
    found: dict[str, float] = {}
    for process in psutil.Process().children(recursive=True):
        try:
            name, times = process.name()[:_SHORT_NAME], process.cpu_times()
        except psutil.Error:
            continue
        found[name] = found.get(name, 0.0) + times.user + times.system
    return found


def driven(given: dict[str, Any]) -> tuple[dict[str, Any], object]:
    """Run a list in this process, whose memory counts; the child's side of ``run_children``."""
    out, settings = Path(given["out"]), Settings(seed=7)
    with ExitStack() as stack:
        cluster = None
        if given["where"] == RAY:
            from mkc_fast.engine.cluster import RayCluster

            cluster = stack.enter_context(RayCluster(LOCAL, num_cpus=_WORKERS))
        before_mb = psutil.Process().memory_info().rss / 1e6
        begin = time.perf_counter()
        corpus = open_corpus(audio_list=given["scp"], out=out)
        list_s, list_mb = time.perf_counter() - begin, psutil.Process().memory_info().rss / 1e6 - before_mb
        count = len(corpus.folders[0].utterances)
        clock = Clock(count)
        run = Run(
            corpus.folders,
            Path(given["model"]),
            Path(given["bank"]),
            settings,
            [CPU],
            _WORKERS,
            EngineOptions(batch_s=given["batch_s"]),
            factory=NOTHING,
            cluster=cluster,
        )
        summary = run_corpus(run, watch=clock)
    if summary.failed:
        raise SystemExit(f"failed: {summary.failed[0]}")
    most_mb = peak_mb(os.getpid()) or 0.0
    report = {
        **clock.found,
        "list_s": short(list_s),
        "start_up_s": short(summary.start_up_s),
        "wall_s": short(summary.wall_s),
        "empty_mb": short(before_mb),
        "list_mb": short(list_mb),
        "peak_mb": short(most_mb),
        "bytes_a_row": short((most_mb - before_mb) * 1e6 / count),
        "manifest_bytes_a_row": short((out / MANIFEST_FILE).stat().st_size / count),
    }
    return report, corpus


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        serve(driven)
    else:
        main()
