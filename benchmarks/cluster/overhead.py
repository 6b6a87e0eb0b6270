"""A Ray cluster beside the local runner: the same recordings on the same cores, in turn, in one run.

python -m mkc_fast.benchmarks.cluster.overhead RECORDING [--model DIR --bank DIR] [--recordings 60] [--rounds 3]

Both have two workers, each of which computes with the same number of threads. The time of a run is from the first
worker that is ready to the last output. The start-up is given beside it. The median of the ratios of neighbours in time
counts, and outputs of both must be equal. ``--quick`` shows that it runs. Without ``--model`` and ``--bank``: small
random weights. Writes results/cluster_overhead.json.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import psutil

from mkc_fast.benchmarks.cluster.setup import RATE, artifacts_of, benchmark_parser, say
from mkc_fast.benchmarks.common import write_result
from mkc_fast.benchmarks.records import short
from mkc_fast.benchmarks.utterances import write_corpus
from mkc_fast.engine.audio.read import read_waveform
from mkc_fast.engine.cluster import RayCluster
from mkc_fast.engine.corpus.outputs import plan_folder
from mkc_fast.engine.corpus.processes import Processes
from mkc_fast.engine.corpus.protocol import Settings
from mkc_fast.engine.corpus.run import Run, run_corpus
from mkc_fast.engine.devices import cores
from mkc_fast.names import AUDIO, CPU

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mkc_fast.engine.corpus.pool import Cluster, Pool
    from mkc_fast.engine.corpus.protocol import WorkerConfig
    from mkc_fast.engine.corpus.status import Status
    from mkc_fast.engine.datasets.dataset import Utterance
    from mkc_fast.engine.options import EngineOptions

WORKERS = 2
LOCAL, RAY = "local", "ray"
_SHORTEST_S, _LONGEST_S = 4.0, 12.0


def main() -> None:
    parser = benchmark_parser(__doc__, "cluster_overhead")
    parser.add_argument("--recordings", type=int, default=60, help="how many, of 4 to 12 s")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each")
    args = parser.parse_args()
    count, rounds = (6, 1) if args.quick else (args.recordings, args.rounds)
    model, bank = artifacts_of(parser, args)
    runs: dict[str, list[dict[str, float]]] = {LOCAL: [], RAY: []}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        lengths = np.random.default_rng(7).uniform(_SHORTEST_S, _LONGEST_S, count).round(2).tolist()
        utterances = write_corpus(folder / "recordings", read_waveform(args.recording, RATE), lengths, RATE)
        ray = stack.enter_context(RayCluster(LOCAL, num_cpus=max(WORKERS, cores())))
        contents = []
        for turn in range(-1, rounds):  # the first warms up, with a few recordings
            few = utterances[: 2 * WORKERS] if turn < 0 else utterances
            for where, cluster in ((LOCAL, Local()), (RAY, ray)):
                found, content = timed(few, (model, bank), folder / "out", cluster)
                contents.append(content)
                if turn >= 0:
                    runs[where].append(found)
                    say(f"{where}: {found['work_s']:g} s, {found['processor_s']:g} s of processors")
            if contents[-1] != contents[-2]:
                raise SystemExit("the outputs of the two differ")
            contents.clear()
    pairs = list(zip(runs[RAY], runs[LOCAL], strict=True))
    ratios = {
        name: [short(ray_run[name] / local_run[name]) for ray_run, local_run in pairs]
        for name in ("work_s", "processor_s")
    }
    result = {
        "workers": WORKERS,
        "recordings": count,
        "audio_s": short(sum(lengths), 4),
        "runs": runs,
        "ratios": ratios,
        "time": {"ratio": short(median(ratios["work_s"])), "overhead_percent": percent(ratios["work_s"])},
        "processor": {
            "ratio": short(median(ratios["processor_s"])),
            "overhead_percent": percent(ratios["processor_s"]),
        },
    }
    say(f"Ray's time ÷ the local runner's: {result['time']}; by processor time: {result['processor']}")
    write_result(args.out, {"quick": args.quick, **result})


def percent(ratios: Sequence[float]) -> float:
    return short(100 * (median(ratios) - 1), 2)


@dataclass(frozen=True)
class Local:
    """Processes of this machine, with as many threads each as the cluster's workers have: a ``Cluster``."""

    @property
    def pool(self) -> Pool:
        return Processes()

    def devices(self, asked: Sequence[str] | None) -> list[str]:
        del asked
        return [CPU]

    def batch_s(self, devices: Sequence[str], options: EngineOptions) -> float:
        del devices
        return options.batch_s or 0.0

    def configs(self, config: WorkerConfig, devices: Sequence[str], num_proc: int | None) -> list[WorkerConfig]:
        del devices
        threads = max(1, cores() // WORKERS)
        options = replace(config.options, threads=threads)
        return [replace(config, device=CPU, options=options, blas_threads=threads)] * (num_proc or 1)


class Clock:
    """Watches a run: seconds, and processor seconds of its workers and all else it has started, once one is ready."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.begun: tuple[float, dict[int, float]] | None = None
        self.found: dict[str, float] = {}

    def __call__(self, status: Status) -> None:
        """Take note of a status."""
        ready = [worker.ready_at for worker in status.workers if worker.ready_at is not None]
        if self.begun is None and ready:
            self.begun = min(ready), processors_s()
        elif self.begun is not None and not self.found and status.summary.written == self.count:
            at, before = self.begun
            self.found = {
                "work_s": short(time.perf_counter() - at, 4),
                "processor_s": short(spent_s(before), 4),
            }


def processors_s() -> dict[int, float]:
    """Processor seconds of this process and of each below it, by its number."""
    found: dict[int, float] = {}
    this = psutil.Process()
    for process in (this, *this.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        found[process.pid] = times.user + times.system
    return found


def spent_s(before: dict[int, float]) -> float:
    """Processor seconds since then, of the processes that live now; what has ended meanwhile was of a run before."""
    return sum(seconds - before.get(pid, 0.0) for pid, seconds in processors_s().items())


def timed(
    utterances: list[Utterance], artifacts: tuple[Path, Path], out: Path, cluster: Cluster
) -> tuple[dict[str, float], dict[str, bytes]]:
    """Anonymize; what the clock saw, and the outputs by name."""
    settings, clock = Settings(mode=AUDIO, seed=7), Clock(len(utterances))
    plan = plan_folder(utterances, out, out, settings)
    summary = run_corpus(Run([plan], *artifacts, settings, [CPU], WORKERS, cluster=cluster), watch=clock)
    if summary.failed:
        raise SystemExit(f"failed: {summary.failed[0]}")
    written = {path.name: path.read_bytes() for path in out.glob("*.wav")}
    shutil.rmtree(out)
    return {**clock.found, "start_up_s": short(summary.start_up_s)}, written


if __name__ == "__main__":
    main()
