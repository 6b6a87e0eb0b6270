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
from itertools import chain
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

import mkc_fast
from mkc_fast.engine.atomic_files import remove_temporary
from mkc_fast.engine.corpus.protocol import AHEAD_ON_GPU, EXIT_LOST_DEVICE, Outcome, Task, WorkerConfig
from mkc_fast.engine.corpus.watchdog import DEFAULT_TIMEOUT_S, Clock, Silence, is_stopped
from mkc_fast.engine.devices import cores
from mkc_fast.errors import MkcError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
    from concurrent.futures import Future

# A recording with which so many workers died, each time alone, is the reason. Fewer can be chance: a machine short of
# memory kills whoever asks last.
_DEATHS_OF_ONE = 3
# So many deaths in a row of a worker that was not ready yet: it cannot start.
_DEATHS_AT_START = 5
# So many deaths before anything came of any recording: it is not the recordings.
_DEATHS_IN_VAIN = 20
_TICK_S = 0.2
# Not ``python -m``: what a worker sends must be of the module's classes, not of ``__main__``'s.
_START = "from mkc_fast.engine.corpus.worker import main; main()"
# So long a stopped run waits for the batches that have begun.
_GRACE_S = 2.0
# So long one takes to end that has closed its connection.
_LEAVING_S = 1.0
# So long a killed process is waited for. One that a driver holds inside the kernel may never end.
_LAST_WAIT_S = 5.0


@dataclass
class WorkerState:
    """What the scheduler knows of a worker.

    Attributes:
        config: What it was started with.
        failed_starts: How many of its predecessors in a row died before they were ready.
        outstanding: Its batches by number, with the tasks of each that it has not reported.
        started: The last batch that it has begun to compute.
        busy_s: Seconds of computing, of what it has reported.
        ready_at: When it was ready (``time.perf_counter``), None before.
        load_s: Seconds it took to load the models.
        silence: How long it has said nothing.
        chosen: What its graphs run on, in one line.
        ran: What decides the last bits of what it computes.
        pid: Of its process.
    """

    config: WorkerConfig
    process: subprocess.Popen[bytes]
    connection: Connection[Any, Any]
    failed_starts: int = 0
    outstanding: OrderedDict[int, dict[int, Task]] = field(default_factory=OrderedDict)
    started: int = 0
    busy_s: float = 0.0
    ready_at: float | None = None
    load_s: float = 0.0
    silence: Silence = field(default_factory=Silence)
    chosen: str = ""
    ran: dict[str, object] = field(default_factory=dict)

    @property
    def device(self) -> str:
        """Where it computes."""
        return self.config.device

    @property
    def pid(self) -> int:
        """Of its process."""
        return self.process.pid

    def end(self, patience_s: float = 0.0) -> int:
        """Kill its process, with the commands that it has begun, and return its exit code.

        Args:
            patience_s: So long it may take to leave by itself.
        """
        for seconds in (patience_s, _LAST_WAIT_S):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=seconds)
            with contextlib.suppress(OSError):
                os.killpg(self.pid, signal.SIGKILL)  # it leads a group of its own
        code = self.process.returncode
        return -signal.SIGKILL if code is None else code

    def remove_temporaries(self) -> None:
        """Once it is dead: remove what it was writing."""
        for batch in self.outstanding.values():
            for task in batch.values():
                remove_temporary(task.output, self.pid)


class Scheduler:
    """Runs batches of tasks on worker processes, one for each configuration given.

    Attributes:
        workers: Those at work.
        replaced: How many died and were replaced.
        lost: How many died and were not, since they no longer start.
        notes: What workers had to say and nobody has taken yet, a line each.
        chosen: What workers' graphs have run on, a line for each kind.
        admit: Asked about each worker that is ready, with its ``ran``, before it is given anything; what it raises ends
            the run.
    """

    def __init__(self, configs: Sequence[WorkerConfig], timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Prepare for workers of these configurations.

        Args:
            configs: One for each worker.
            timeout_s: A worker that is silent for longer than this, beyond what the length of its work and its own
                pace explain, is killed, and treated like one that died; 0 waits for ever.
        """
        self.configs = list(configs)
        self.timeout_s = timeout_s
        self.workers: list[WorkerState] = []
        self.queue: deque[list[Task]] = deque()
        self.suspects: set[int] = set()
        self.deaths: Counter[int] = Counter()
        self.replaced = 0
        self.lost = 0
        self.notes: list[str] = []
        self.chosen: list[str] = []
        self.admit: Callable[[dict[str, object]], None] = lambda _: None
        self._number = 0
        self._load_notes: set[str] = set()
        self._any_outcome = False
        self._stopping = False
        self._clock = Clock()

    def run(
        self, plan: Future[list[list[Task]]], stopped: Callable[[], bool] = lambda: False
    ) -> Generator[Outcome | None, None, None]:
        """Run batches, in this order as far as workers are free.

        Args:
            plan: Of it come the batches, tasks that run together. Workers start and load while it goes on.
            stopped: Asked often; once true, nothing new begins and the run ends within seconds.

        Yields:
            Outcomes as they come, and None at least every fifth of a second.

        Raises:
            MkcError: Workers cannot start, or an output cannot be written; all workers are gone then.
        """
        try:
            for config in self.configs:
                if not stopped():
                    self.workers.append(self._spawn(config))
            while not plan.done():
                yield from self._listen()
                yield None
            self.queue.extend(plan.result())
            while (self.queue or self._outstanding()) and not stopped():
                self._feed()
                yield from self._listen()
                yield None
            self._stopping = True
            begun = [(worker, number) for worker in self.workers for number in worker.outstanding]
            begun = [(worker, number) for worker, number in begun if number <= worker.started]
            deadline = time.perf_counter() + _GRACE_S
            while any(number in worker.outstanding for worker, number in begun) and time.perf_counter() < deadline:
                yield from self._listen()
                yield None
        finally:
            self._end()

    def _outstanding(self) -> bool:
        return any(worker.outstanding for worker in self.workers)

    def _spawn(self, config: WorkerConfig, failed_starts: int = 0) -> WorkerState:
        # A socket and a fresh interpreter: nothing of this process is inherited, its main module is not imported
        # again, and either side notices at once when the other is gone.
        ours, theirs = socket.socketpair()
        environment = {**os.environ, "PYTHONPATH": _import_path()}
        if config.blas_threads:
            for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
                environment[variable] = str(config.blas_threads)
        try:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and our own text
                [sys.executable, "-c", _START, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # decoders print there what they think of damaged files
                # A terminal's Ctrl-C goes to its whole group; what it means is decided here.
                start_new_session=True,
            )
        except OSError as error:
            raise MkcError(f"{sys.executable}: a worker cannot start ({error.strerror})") from None
        theirs.close()
        connection: Connection[Any, Any] = Connection(ours.detach())
        worker = WorkerState(config, process, connection, failed_starts)
        with contextlib.suppress(OSError):  # dead already: found when listening
            connection.send(config)
        return worker

    def _feed(self) -> None:
        for batches in range(max(config.ahead for config in self.configs)):  # first to those with nothing to do
            for worker in self.workers:
                if worker.ready_at is not None and len(worker.outstanding) <= batches < worker.config.ahead:
                    self._give(worker)

    def _give(self, worker: WorkerState) -> None:
        """Send the next batch; but while one under suspicion is computed, no other is there that could be blamed."""
        if not self.queue or (worker.outstanding and self._suspicious(self.queue[0], *worker.outstanding.values())):
            return
        batch = self.queue[0]
        try:
            worker.connection.send((self._number + 1, batch))
        except OSError:
            return  # dead: found when listening
        self.queue.popleft()
        self._number += 1
        worker.outstanding[self._number] = {task.index: task for task in batch}

    def _suspicious(self, tasks: Iterable[Task], *batches: Iterable[int]) -> bool:
        return not self.suspects.isdisjoint(chain((task.index for task in tasks), *batches))

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
        if self.timeout_s and not self._stopping:
            yield from self._end_hung()

    def _end_hung(self) -> Iterator[Outcome]:
        """Kill workers that have been silent for too long."""
        step_s = self._clock.step_s()
        if step_s is None:
            return
        for worker in list(self.workers):
            loading, silence = worker.ready_at is None, worker.silence
            if not loading and not worker.outstanding:
                continue
            tasks = chain.from_iterable(batch.values() for batch in worker.outstanding.values())
            limit_s = silence.limit_s(self.timeout_s, loading, tasks)
            if silence.silent_s + step_s > limit_s / 2 and is_stopped(worker.pid):
                continue  # whoever stopped it will continue it, and then it has the other half
            silence.silent_s += step_s
            if silence.silent_s > limit_s:
                yield from self._bury(worker, f"hung: killed after {silence.silent_s:.0f} s of silence")

    def _take(self, worker: WorkerState, kind: str, *content: Any) -> Outcome | None:
        worker.silence.heard()
        if kind == "ready":
            worker.load_s, worker.chosen, worker.ran = content
            worker.silence = Silence()  # loading says nothing about its pace
            self.admit(worker.ran)
            worker.ready_at = time.perf_counter()
            if worker.chosen and worker.chosen not in self.chosen:
                self.chosen.append(worker.chosen)
        elif kind == "note":
            self.notes.append(content[0])
        elif kind == "load note":
            if content[0] not in self._load_notes:  # all workers load the same
                self._load_notes.add(content[0])
                self.notes.append(content[0])
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
            self._any_outcome = True
            worker.silence.heard(outcome.audio_s)
            seconds = outcome.stage_seconds
            worker.busy_s += sum(seconds[stage] for stage in seconds if stage not in ("read", "write"))
            return replace(outcome, ran=worker.ran) if known else None
        return None

    def _bury(self, worker: WorkerState, cause: str | None = None) -> Iterator[Outcome]:
        """Put a dead worker's work back and start another in its place; one that has a cause to die is killed."""
        worker.connection.close()
        code = worker.end(_LEAVING_S if cause is None else 0.0)
        cause = cause or _cause(code)
        worker.remove_temporaries()
        batches = {number: list(batch.values()) for number, batch in worker.outstanding.items()}
        worker.outstanding.clear()
        # Batches before the one being computed were only being written; those after it may have been decoded.
        self.queue.extendleft(batch for number, batch in reversed(batches.items()) if number < worker.started)
        suspects = [batch for number, batch in batches.items() if number >= worker.started]
        self.suspects.update(task.index for batch in suspects for task in batch)
        if len(suspects) == 1:
            yield from self._blame(suspects[0], cause)
        else:
            self.queue.extend(suspects)
        self._replace(worker, cause)

    def _blame(self, batch: list[Task], cause: str) -> Iterator[Outcome]:
        """Look closer at a batch with which a worker died, after everything else."""
        if len(batch) > 1:
            half = len(batch) // 2
            self.queue.extend([batch[:half], batch[half:]])
            return
        (task,) = batch
        self.deaths[task.index] += 1
        if self.deaths[task.index] < _DEATHS_OF_ONE:
            self.queue.append(batch)
        else:
            self._any_outcome = True
            yield Outcome(task.index, error=f"{task.utterance.path}: {_DEATHS_OF_ONE} workers died of it ({cause})")

    def _replace(self, worker: WorkerState, cause: str) -> None:
        place = self.workers.index(worker)
        self.workers.remove(worker)
        if self._stopping:
            return
        failed_starts = worker.failed_starts + 1 if worker.ready_at is None else 0
        if failed_starts < _DEATHS_AT_START:
            self.replaced += 1
            if self.replaced >= _DEATHS_IN_VAIN and not self._any_outcome:
                raise MkcError(f"{self.replaced} workers died, and nothing came of any recording ({cause})")
            self.workers.insert(place, self._spawn(worker.config, failed_starts))
        else:
            self.lost += 1
            if not self.workers:
                raise MkcError(f"workers die while they load the models ({cause})")

    def _end(self) -> None:
        """Let idle workers leave and kill the others; what those were writing has only temporary names."""
        leaving = []
        for worker in self.workers:
            if not worker.outstanding and worker.ready_at is not None:
                with contextlib.suppress(OSError):
                    worker.connection.send(None)
                    leaving.append(worker)
        deadline = time.perf_counter() + _LAST_WAIT_S
        for worker in self.workers:
            worker.end(max(0.0, deadline - time.perf_counter()) if worker in leaving else 0.0)
        for worker in self.workers:
            worker.connection.close()
            worker.remove_temporaries()


def _import_path() -> str:
    """Where a worker finds what this process has imported, tests' modules included."""
    return os.pathsep.join(path or os.getcwd() for path in sys.path)  # noqa: PTH109


def _cause(code: int) -> str:
    if code == EXIT_LOST_DEVICE:
        return "the device was lost"
    if code == -signal.SIGKILL:
        return "killed, perhaps because memory ran out"
    if code < 0:
        return f"signal {-code}, {signal.strsignal(-code)}"
    return f"exit code {code}"


def share_out(config: WorkerConfig, devices: Sequence[str], num_proc: int | None) -> list[WorkerConfig]:
    """A configuration for each worker: processes over the devices in turn.

    On a CPU each computes with as many threads as there are cores, and the system shares the cores out; the threads
    sleep when they have nothing to do. ONNX Runtime splits sums by its number of threads, so that with fewer threads
    for more workers, the last bits of every sample would depend on the number of workers. BLAS threads wait for each
    other awake, so each worker gets its share of those; the look-up's ids do not depend on their rounding.
    """
    count = num_proc or len(devices)
    chosen = [devices[index % len(devices)] for index in range(count)]
    return [
        replace(
            config,
            device=device,
            options=replace(config.options, threads=cores() if device == "cpu" else None),
            host_threads=1 if device == "cpu" else max(2, cores() // count),
            blas_threads=max(1, cores() // count) if device == "cpu" else None,
            ahead=config.ahead if device == "cpu" else AHEAD_ON_GPU,
        )
        for device in chosen
    ]
