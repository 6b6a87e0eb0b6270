"""Workers that answer when real ones would, without computing: a pool for the runner, to see what the runner can do.

They stand behind the same interfaces as processes and actors. Messages are pickled and unpickled as they are on the way
to real workers. Scheduler, manifest and summary are the real ones; outputs are not written.
"""

from __future__ import annotations

import heapq
import pickle
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mkc_fast import __version__
from mkc_fast.engine.corpus.protocol import AHEAD_ON_GPU, Outcome
from mkc_fast.engine.options import default_batch_s

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mkc_fast.engine.corpus.pool import WorkerHandle
    from mkc_fast.engine.corpus.protocol import Task, WorkerConfig
    from mkc_fast.engine.options import EngineOptions

FRAMES_A_SECOND, BYTES_A_SECOND = 50, 32_000
_STAGES = ("read", "encode", "assign", "restore", "vocode", "write")
_CUDA = "cuda:0"


@dataclass
class Spent:
    """Processor seconds of the runner's thread that are not the runner's own, and what passed through the pool.

    Attributes:
        idle_s: Seconds of the clock in which it waited for a worker.
        simulating_s: Processor seconds spent in place of the workers.
        pickling_s: Processor seconds of the runner's own pickling, by which its batches and their outcomes travel.
        outcomes: So many came back.
        sent_bytes: Of batches.
        received_bytes: Of outcomes.
        first_sent_at: When the first batch was sent (``time.perf_counter``).
    """

    idle_s: float = 0.0
    simulating_s: float = 0.0
    pickling_s: float = 0.0
    outcomes: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    first_sent_at: float | None = None


@dataclass(eq=False)
class SimulatedWorker:
    """A worker of some pace: a ``WorkerHandle``."""

    pool: SimulatedPool
    number: int
    pid: int = 1
    placed: bool = True
    free_at: float = 0.0
    busy_s: float = 0.0
    answers: list[bytes] = field(default_factory=list)

    @property
    def where(self) -> str:
        """Of eight workers one machine."""
        return f"node{self.number // 8}"

    def send(self, message: Any) -> None:
        """Take a batch; its answers come when a worker of this pace would have computed it."""
        spent = self.pool.spent
        begin = time.thread_time()
        content = pickle.dumps(message)
        sent = time.thread_time()
        spent.pickling_s += sent - begin
        spent.sent_bytes += len(content)
        if message is None:
            return
        if spent.first_sent_at is None:
            spent.first_sent_at = time.perf_counter()
        number, tasks, _ = message
        seconds = sum(task.audio_s for task in tasks) / self.pool.pace
        self.busy_s += seconds
        self.free_at = max(self.free_at, time.perf_counter()) + seconds
        answer = [("start", number), *(("outcome", number, outcome_of(task, self.pool.pace)) for task in tasks)]
        self.pool.later(self, self.free_at, pickle.dumps(answer))
        spent.simulating_s += time.thread_time() - sent

    def receive(self) -> list[Any]:
        """What it has answered since it was asked last."""
        spent = self.pool.spent
        begin = time.thread_time()
        messages = [message for answer in self.answers for message in pickle.loads(answer)]
        spent.pickling_s += time.thread_time() - begin
        spent.received_bytes += sum(map(len, self.answers))
        spent.outcomes += sum(message[0] == "outcome" for message in messages)
        self.answers.clear()
        return messages

    def is_stopped(self) -> bool:
        return False

    def end(self, grace_s: float = 0.0) -> str:
        del grace_s
        return ""

    def remove_temporaries(self, tasks: Iterable[Task]) -> None:
        del tasks


class SimulatedPool:
    """Workers that anonymize at ``pace`` times real time: a ``Pool``."""

    def __init__(self, pace: float) -> None:
        self.pace = pace
        self.spent = Spent()
        self.workers: list[SimulatedWorker] = []
        self._due: list[tuple[float, int, SimulatedWorker, bytes]] = []
        self._count = 0

    def start(self, config: WorkerConfig) -> SimulatedWorker:
        del config
        worker = SimulatedWorker(self, len(self.workers))
        self.workers.append(worker)
        self.later(worker, 0.0, pickle.dumps([("ready", 0.0, "simulated", {"package": __version__})]))
        return worker

    def later(self, worker: SimulatedWorker, due: float, answer: bytes) -> None:
        """Note that a worker answers at a time."""
        self._count += 1
        heapq.heappush(self._due, (due, self._count, worker, answer))

    def wait(self, workers: Sequence[WorkerHandle], timeout_s: float) -> list[WorkerHandle]:
        del workers
        begin = time.perf_counter()
        due = min(self._due[0][0] if self._due else begin + timeout_s, begin + timeout_s)
        if due > begin:
            time.sleep(due - begin)
            self.spent.idle_s += time.perf_counter() - begin
        before = time.thread_time()
        answering: dict[SimulatedWorker, None] = {}
        now = time.perf_counter()
        while self._due and self._due[0][0] <= now:
            _, _, worker, answer = heapq.heappop(self._due)
            worker.answers.append(answer)
            answering[worker] = None
        self.spent.simulating_s += time.thread_time() - before
        return list(answering)


@dataclass(frozen=True)
class SimulatedCluster:
    """So many simulated GPUs: a ``Cluster``."""

    workers: int
    pool: SimulatedPool

    def devices(self, asked: Sequence[str] | None) -> list[str]:
        del asked
        return [_CUDA]

    def batch_s(self, devices: Sequence[str], options: EngineOptions) -> float:
        return default_batch_s(devices[0]) if options.batch_s is None else options.batch_s

    def configs(self, config: WorkerConfig, devices: Sequence[str], num_proc: int | None) -> list[WorkerConfig]:
        del num_proc
        return [replace(config, device=devices[0], ahead=AHEAD_ON_GPU)] * self.workers


def outcome_of(task: Task, pace: float) -> Outcome:
    """What a worker reports of a task that it has written, with as many numbers as a real one."""
    seconds = task.audio_s / pace / len(_STAGES)
    frames = round(task.audio_s * FRAMES_A_SECOND)
    size = 44 + round(task.audio_s * BYTES_A_SECOND)
    return Outcome(
        task.index, None, task.audio_s, frames, size, dict.fromkeys(_STAGES, seconds), peak=0.5 + seconds % 0.1
    )
