"""Keeps worker processes busy from one queue, replaces those that die, and finds the recording that kills them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

import mkc_fast
from mkc_fast import MkcError
from mkc_fast.engine.manifest import remove_temporaries
from mkc_fast.engine.worker import AHEAD, Outcome, Task, WorkerConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

# A recording during which so many workers died, each time alone in its batch, is the reason. Fewer can be chance: a
# machine short of memory kills whoever asks last.
_DEATHS_OF_ONE = 3
# So many deaths in a row before a worker was ever ready: it cannot start at all.
_DEATHS_AT_START = 3
_TICK_S = 0.2
# Not ``python -m``: what a worker sends must be of the module's classes, not of ``__main__``'s.
_START = "from mkc_fast.engine.worker import main; main()"
# What a stopped run waits for: batches already computed being written.
_GRACE_S = 2.0


@dataclass
class WorkerState:
    """What the scheduler knows of a worker.

    Attributes:
        device: Where it computes.
        busy_s: Seconds of computing, of what it has reported.
        ready_at: When it was ready (``time.perf_counter``), None before.
        load_s: Seconds it took to load the models.
        pid: Of its process.
    """

    device: str
    process: subprocess.Popen[bytes]
    connection: Connection[Any, Any]
    outstanding: OrderedDict[int, dict[int, Task]] = field(default_factory=OrderedDict)
    started: int | None = None
    busy_s: float = 0.0
    ready_at: float | None = None
    load_s: float = 0.0

    @property
    def pid(self) -> int:
        """Of its process."""
        return self.process.pid


class Scheduler:
    """Runs batches of tasks on worker processes, one for each configuration given."""

    def __init__(self, configs: Sequence[WorkerConfig]) -> None:
        self.configs = list(configs)
        self.workers: list[WorkerState] = []
        self.queue: deque[list[Task]] = deque()
        self.deaths: Counter[int] = Counter()
        self.deaths_at_start = 0
        self.replaced = 0
        self._number = 0

    def run(
        self, batches: Sequence[list[Task]], stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[Outcome | None]:
        """Run batches, in this order as far as workers are free.

        Args:
            batches: Tasks that run together.
            stopped: Asked often; once true, nothing new begins and the run ends within seconds.

        Yields:
            Outcomes as they come, and None at least every fifth of a second.

        Raises:
            MkcError: A worker refuses to start, or an output cannot be written; all workers are gone then.
        """
        self.queue.extend(batches)
        try:
            self.workers = [self._spawn(config) for config in self.configs[: max(1, len(batches))]]
            while (self.queue or self._outstanding()) and not stopped():
                self._feed()
                yield from self._listen()
                yield None
            if stopped():
                deadline = time.perf_counter() + _GRACE_S
                while any(worker.started is not None for worker in self.workers) and time.perf_counter() < deadline:
                    yield from self._listen()
                    yield None
        finally:
            self._end()

    def _outstanding(self) -> bool:
        return any(worker.outstanding for worker in self.workers)

    def _spawn(self, config: WorkerConfig) -> WorkerState:
        # A socket and a fresh interpreter: nothing of this process is inherited, its main module is not imported
        # again, and either side notices at once when the other is gone.
        ours, theirs = socket.socketpair()
        environment = {**os.environ, "PYTHONPATH": _import_path()}
        if config.threads:
            for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
                environment[variable] = str(config.threads)
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and our own text
            [sys.executable, "-c", _START, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=environment,
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        connection: Connection[Any, Any] = Connection(ours.detach())
        worker = WorkerState(config.device, process, connection)
        with contextlib.suppress(OSError):  # dead already: found when listening
            connection.send(config)
        return worker

    def _feed(self) -> None:
        for worker in self.workers:
            while self.queue and worker.ready_at is not None and len(worker.outstanding) < AHEAD:
                if worker.outstanding and (self._suspect(self.queue[0]) or self._busy_with_suspect(worker)):
                    break  # a recording that a worker died of runs alone, so that no other is blamed
                batch = self.queue.popleft()
                self._number += 1
                worker.outstanding[self._number] = {task.index: task for task in batch}
                try:
                    worker.connection.send((self._number, batch))
                except OSError:
                    break  # dead: found when listening, which puts the batch back

    def _suspect(self, tasks: Iterable[Task]) -> bool:
        return any(self.deaths[task.index] for task in tasks)

    def _busy_with_suspect(self, worker: WorkerState) -> bool:
        return any(self._suspect(batch.values()) for batch in worker.outstanding.values())

    def _listen(self) -> Iterator[Outcome]:
        by_connection = {worker.connection: worker for worker in self.workers}
        for connection in wait(list(by_connection), timeout=_TICK_S):
            worker = by_connection[connection]  # type: ignore[index]
            try:
                message = worker.connection.recv()
            except (EOFError, OSError):
                yield from self._bury(worker)
                continue
            outcome = self._take(worker, *message)
            if outcome is not None:
                yield outcome

    def _take(self, worker: WorkerState, kind: str, *content: Any) -> Outcome | None:
        if kind == "ready":
            worker.ready_at, worker.load_s = time.perf_counter(), content[0]
            self.deaths_at_start = 0
        elif kind == "start":
            worker.started = content[0]
        elif kind == "fatal":
            name, text = content
            error = getattr(mkc_fast, name, MkcError)
            raise error(text)
        elif kind == "outcome":
            number, outcome = content
            tasks = worker.outstanding.get(number, {})
            known = tasks.pop(outcome.index, None) is not None
            if not tasks:
                worker.outstanding.pop(number, None)
                if worker.started == number:
                    worker.started = None
            seconds = outcome.stage_seconds
            worker.busy_s += sum(seconds[stage] for stage in seconds if stage not in ("read", "write"))
            return outcome if known else None
        return None

    def _bury(self, worker: WorkerState) -> Iterator[Outcome]:
        """Put a dead worker's work back and start another in its place."""
        worker.connection.close()
        code = worker.process.wait()
        tasks = [task for batch in worker.outstanding.values() for task in batch.values()]
        remove_temporaries(task.output for task in tasks)
        if worker.ready_at is None:
            self.deaths_at_start += 1
            if self.deaths_at_start >= _DEATHS_AT_START:
                raise MkcError(f"workers die while they load the models ({_cause(code)})")
        for number, batch in reversed(worker.outstanding.items()):
            remaining = list(batch.values())
            # Where nothing had begun to compute, whatever was being decoded may be the reason.
            if worker.started not in (None, number):
                self.queue.appendleft(remaining)
            elif len(remaining) > 1:
                half = len(remaining) // 2
                self.queue.extendleft([remaining[half:], remaining[:half]])
            else:
                (task,) = remaining
                self.deaths[task.index] += 1
                if self.deaths[task.index] < _DEATHS_OF_ONE:
                    self.queue.append(remaining)
                else:
                    yield Outcome(
                        task.index,
                        error=f"{task.utterance.path}: {_DEATHS_OF_ONE} workers died of it ({_cause(code)})",
                    )
        self.replaced += 1
        place = self.workers.index(worker)
        self.workers[place] = self._spawn(self.configs[place])

    def _end(self) -> None:
        """Let idle workers leave, and kill the others; what they were writing has only temporary names."""
        for worker in self.workers:
            if worker.outstanding or worker.ready_at is None:
                worker.process.kill()
            else:
                try:
                    worker.connection.send(None)
                except OSError:
                    worker.process.kill()
        for worker in self.workers:
            try:
                worker.process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            worker.connection.close()
            remove_temporaries(task.output for batch in worker.outstanding.values() for task in batch.values())


def _import_path() -> str:
    """Where a worker finds what this process has imported, tests' modules included."""
    return os.pathsep.join(path or os.getcwd() for path in sys.path)  # noqa: PTH109


def _cause(code: int) -> str:
    if code == -signal.SIGKILL:
        return "killed, perhaps for want of memory"
    if code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"


def share_out(config: WorkerConfig, devices: Sequence[str], num_proc: int | None) -> list[WorkerConfig]:
    """A configuration for each worker: processes over the devices in turn, the processor's threads shared out."""
    count = num_proc or len(devices)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    chosen = [devices[index % len(devices)] for index in range(count)]
    on_cpu = chosen.count("cpu")
    return [
        replace(
            config,
            device=device,
            threads=max(1, cores // on_cpu) if device == "cpu" else None,
            host_threads=1 if device == "cpu" else max(2, cores // count),
        )
        for device in chosen
    ]
