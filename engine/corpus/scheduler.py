"""Gives batches from one queue to workers, replaces workers that die, and finds the recording at fault.

Where the workers run is a ``Pool``: processes of this machine (``processes.py``) or actors of a cluster. All rules
about what is tried again, how often and with what beside it are here, so that they are the same everywhere.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import mkc_fast
from mkc_fast.engine.corpus.processes import LAST_WAIT_S, Processes
from mkc_fast.engine.corpus.protocol import AHEAD_ON_GPU, Outcome, Task, WorkerConfig
from mkc_fast.engine.corpus.watchdog import DEFAULT_TIMEOUT_S, Clock, SilenceTimer
from mkc_fast.engine.devices import cores
from mkc_fast.errors import MkcError
from mkc_fast.names import CPU

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
    from concurrent.futures import Future

    from mkc_fast.engine.corpus.plan import Plan
    from mkc_fast.engine.corpus.pool import Pool, WorkerHandle

# If so many workers died while they computed one recording alone, it is the cause. Fewer deaths can be chance: a
# machine that is short of memory kills the process that asks last.
_DEATHS_OF_ONE = 3
# If a worker dies so many times in a row before it is ready, it cannot start.
_DEATHS_AT_START = 5
# If so many workers die before any recording has an outcome, the recordings are not the cause. With many workers, one
# machine that fails may take a good part of them with it: then so many times as many as there are.
_DEATHS_WITHOUT_OUTCOME = 20
_DEATHS_OF_EACH = 2
_TICK_S = 0.2
# A batch that has taken so many times as long as others is given to a second worker, if one has nothing else to do.
_LATE = 2.0
# A run that was stopped waits so long for the batches that are computed.
_GRACE_S = 2.0
# A worker that has closed its connection gets so long to exit by itself.
_EXIT_S = 1.0


@dataclass(eq=False)
class WorkerState:
    """What the scheduler knows of a worker.

    Attributes:
        config: What it was started with.
        handle: How it is talked to.
        failed_starts: How many of its predecessors in a row died before they were ready.
        outstanding: Its batches by number, with the tasks of each that it has not reported.
        started: The last batch that it has begun to compute.
        busy_s: Seconds that it has computed, as far as reported.
        ready_at: When it was ready (``time.perf_counter``), None before.
        load_s: Seconds it took to load the models.
        sent_at: When each of its batches was sent.
        silence: How long it has reported nothing.
        chosen: What its graphs run on, in one line.
        ran: What decides the last bits of what it computes.
    """

    config: WorkerConfig
    handle: WorkerHandle
    failed_starts: int = 0
    outstanding: OrderedDict[int, dict[int, Task]] = field(default_factory=OrderedDict)
    sent_at: dict[int, float] = field(default_factory=dict)
    started: int = 0
    busy_s: float = 0.0
    ready_at: float | None = None
    load_s: float = 0.0
    silence: SilenceTimer = field(default_factory=SilenceTimer)
    chosen: str = ""
    ran: dict[str, object] = field(default_factory=dict)

    @property
    def device(self) -> str:
        """The device on which it computes, and the machine where that is not this one."""
        return f"{self.config.device} of {self.handle.where}" if self.handle.where else self.config.device

    @property
    def pid(self) -> int:
        """The id of its process."""
        return self.handle.pid

    def remove_temporaries(self) -> None:
        """Remove the files that it was writing; for a worker that is dead."""
        self.handle.remove_temporaries(chain.from_iterable(batch.values() for batch in self.outstanding.values()))


class Scheduler:
    """Runs batches of tasks on workers, one for each configuration given.

    Attributes:
        workers: The workers at work.
        replaced: How many died and were replaced.
        lost: How many died and were not replaced, since they no longer start.
        notes: Notes and warnings of the workers that the run has not taken yet, a line each.
        chosen: What workers' graphs have run on, a line for each kind.
        retrying: Numbers of the tasks that failed once and are still to be tried again.
        admit: Called with the ``ran`` of each worker that is ready, before it gets a batch; an error ends the run.
    """

    def __init__(
        self,
        configs: Sequence[WorkerConfig],
        timeout_s: float = DEFAULT_TIMEOUT_S,
        pool: Pool | None = None,
        *,
        least: int | None = None,
        copies: bool = False,
    ) -> None:
        """Prepare for workers of these configurations.

        Args:
            configs: One for each worker.
            timeout_s: A worker that is silent for longer than this, beyond what the length of its work and its own
                pace explain, is killed and treated like one that died; 0 is no limit.
            pool: Where they run. Default: processes of this machine.
            least: Of them, so many are kept to the end of the run; the others are let go once there is nothing left for
                them. Default: all are kept.
            copies: At the end, give the batches that are still out to idle workers, too: what comes first counts.
        """
        self.pool: Pool = Processes() if pool is None else pool
        self._least = len(configs) if least is None else least
        self._copies = copies
        # Of the tasks that were copied, the workers that have each, and the numbers of the batches with it.
        self._copied: dict[int, list[tuple[WorkerState, int]]] = {}
        self._batches_done = 0
        self._batch_seconds = 0.0
        self._done: set[int] = set()
        self.configs = list(configs)
        self._most_ahead = max((config.ahead for config in self.configs), default=0)
        self.timeout_s = timeout_s
        self.workers: list[WorkerState] = []
        self.queue: deque[list[Task]] = deque()
        self._lengths: tuple[int, ...] = ()
        self.suspects: set[int] = set()
        self.retrying: set[int] = set()
        self._retried: set[int] = set()
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
        self, plan: Future[Plan], stopped: Callable[[], bool] = lambda: False
    ) -> Generator[Outcome | None, None, None]:
        """Run batches, in this order as far as workers are free.

        Args:
            plan: Gives the batches, and the lengths that they are padded to. Workers start and load meanwhile.
            stopped: Called often; once it returns true, no batch is begun and the run ends within seconds.

        Yields:
            Outcomes as they come, and None at least every fifth of a second.

        Raises:
            MkcError: Workers cannot start, or an output cannot be written; all workers have ended by then.
        """
        try:
            for config in self.configs:
                if not stopped():
                    self.workers.append(self._spawn(config))
            while not plan.done():
                yield from self._receive()
                yield None
            self.queue.extend(plan.result().batches)
            self._lengths = plan.result().lengths
            while (self.queue or self._outstanding()) and not stopped():
                self._fill_workers()
                yield from self._receive()
                self._let_go()
                yield None
            self._stopping = True
            begun = [(worker, number) for worker in self.workers for number in worker.outstanding]
            begun = [(worker, number) for worker, number in begun if number <= worker.started]
            deadline = time.perf_counter() + _GRACE_S
            while any(number in worker.outstanding for worker, number in begun) and time.perf_counter() < deadline:
                yield from self._receive()
                yield None
        finally:
            self._end()

    def _outstanding(self) -> bool:
        return any(worker.outstanding for worker in self.workers)

    def _spawn(self, config: WorkerConfig, failed_starts: int = 0) -> WorkerState:
        return WorkerState(config, self.pool.start(config), failed_starts)

    def _fill_workers(self) -> None:
        for batches in range(self._most_ahead):  # idle workers first
            if not self.queue:
                break
            for worker in self.workers:
                if worker.ready_at is not None and len(worker.outstanding) <= batches < worker.config.ahead:
                    self._send_next(worker)
        if self._copies and not self.queue:
            ready = (worker for worker in self.workers if worker.ready_at is not None)
            self._send_copies([worker for worker in ready if not worker.outstanding])

    def _send_next(self, worker: WorkerState) -> None:
        """Send the next batch; a worker with a suspect batch gets no other, so its death has one possible cause."""
        if not self.queue:
            return
        if worker.outstanding and self._has_suspect(self.queue[0], *worker.outstanding.values()):
            return
        if self._send(worker, self.queue[0]):
            self.queue.popleft()

    def _send(self, worker: WorkerState, batch: list[Task]) -> bool:
        """Send a batch; false if the worker is dead, which is handled when it is to be heard."""
        try:
            worker.handle.send((self._number + 1, batch, self._lengths))
        except OSError:
            return False
        self._number += 1
        worker.outstanding[self._number] = {task.index: task for task in batch}
        worker.sent_at[self._number] = time.perf_counter()
        for task in batch if self._copied else ():
            if task.index in self._copied:
                self._copied[task.index].append((worker, self._number))
        return True

    def _send_copies(self, idle: Sequence[WorkerState]) -> None:
        """Give workers with nothing to do the batches that others have not begun, or take long for."""
        if not idle:
            return
        now = time.perf_counter()
        late_s = _LATE * self._batch_seconds / max(1, self._batches_done)
        candidates = [
            (number <= worker.started, worker.sent_at[number], number, worker)
            for worker in self.workers
            for number in worker.outstanding
        ]
        waiting = deque(idle)
        for begun, sent_at, number, worker in sorted(candidates, key=lambda found: found[:3]):
            if not waiting:
                return
            if begun and now - sent_at < late_s:
                continue
            batch = list(worker.outstanding[number].values())
            # What may kill workers gets one at a time.
            if self._has_suspect(batch) or any(task.index in self._copied for task in batch):
                continue
            self._copied.update({task.index: [(worker, number)] for task in batch})
            if not self._send(waiting.popleft(), batch):
                for task in batch:
                    del self._copied[task.index]

    def _let_go(self) -> None:
        """End workers that have nothing to do, beyond those that are to be kept."""
        if self.queue:
            return
        for worker in list(self.workers):
            if len(self.workers) <= self._least:
                return
            if not worker.outstanding and (worker.ready_at is not None or not worker.handle.placed):
                self.workers.remove(worker)
                worker.handle.end()

    def _has_suspect(self, tasks: Iterable[Task], *batches: Iterable[int]) -> bool:
        if not self.suspects:
            return False
        return not self.suspects.isdisjoint(chain((task.index for task in tasks), *batches))

    def _receive(self) -> Iterator[Outcome]:
        by_handle = {worker.handle: worker for worker in self.workers}
        for handle in self.pool.wait(list(by_handle), _TICK_S):
            worker = by_handle[handle]
            try:
                messages = handle.receive()
            except (EOFError, OSError):
                yield from self._handle_death(worker)
                continue
            for message in messages:
                outcome = self._handle_message(worker, *message)
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
            if not worker.handle.placed or (not loading and not worker.outstanding):
                continue
            tasks = chain.from_iterable(batch.values() for batch in worker.outstanding.values())
            limit_s = silence.limit_s(self.timeout_s, loading, tasks)
            if silence.silent_s + step_s > limit_s / 2 and worker.handle.is_stopped():
                continue  # once it is continued, it still has the other half
            silence.silent_s += step_s
            if silence.silent_s > limit_s:
                yield from self._handle_death(worker, f"hung: killed after {silence.silent_s:.0f} s of silence")

    def _handle_message(self, worker: WorkerState, kind: str, *content: Any) -> Outcome | None:
        worker.silence.heard()
        if kind == "ready":
            worker.load_s, worker.chosen, worker.ran = content
            worker.silence = SilenceTimer()  # the time of loading does not count for its pace
            self.admit(worker.ran)
            worker.ready_at = time.perf_counter()
            if worker.chosen and worker.chosen not in self.chosen:
                self.chosen.append(worker.chosen)
        elif kind == "note":
            self.notes.append(content[0])
        elif kind == "load note":
            if content[0] not in self._load_notes:  # all workers load the same files
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
            task = tasks.pop(outcome.index, None)
            if not tasks and worker.outstanding.pop(number, None) is not None:
                self._batches_done += 1
                self._batch_seconds += time.perf_counter() - worker.sent_at.pop(number)
            self._any_outcome = True
            worker.silence.heard(outcome.audio_s)
            seconds = outcome.stage_seconds
            worker.busy_s += sum(seconds[stage] for stage in seconds if stage not in ("read", "write"))
            if task is None or (outcome.error is not None and self._retry(task)):
                return None
            self.retrying.discard(outcome.index)
            if outcome.index in self._copied and not self._first(outcome.index):
                return None
            outcome.ran = worker.ran
            finished: Outcome = outcome
            return finished
        return None

    def _first(self, index: int) -> bool:
        """Whether this outcome is the first of a task that several workers have; the others need not report it."""
        if index in self._done:
            return False
        self._done.add(index)
        for worker, number in self._copied[index]:
            tasks = worker.outstanding.get(number)
            if tasks is not None and tasks.pop(index, None) is not None and not tasks:
                del worker.outstanding[number], worker.sent_at[number]
        return True

    def _retry(self, task: Task) -> bool:
        """Queue a task that failed once more, alone and as the last: the cause may be gone by then."""
        if task.index in self._retried or self._stopping:
            return False
        self._retried.add(task.index)
        self.retrying.add(task.index)
        self.queue.append([task])
        return True

    def _handle_death(self, worker: WorkerState, cause: str | None = None) -> Iterator[Outcome]:
        """Requeue the batches of a worker and start another in its place.

        Args:
            worker: It has closed its connection, or hangs.
            cause: Why it is killed; None if it has died.
        """
        died_of = worker.handle.end(_EXIT_S if cause is None else 0.0)
        cause = cause or died_of
        worker.remove_temporaries()
        batches = {
            number: left
            for number, batch in worker.outstanding.items()
            if (left := [task for task in batch.values() if task.index not in self._done])
        }
        worker.outstanding.clear()
        worker.sent_at.clear()
        # Batches before the one being computed were only being written; those after it may have been decoded already.
        self.queue.extendleft(batch for number, batch in reversed(batches.items()) if number < worker.started)
        suspects = [batch for number, batch in batches.items() if number >= worker.started]
        self.suspects.update(task.index for batch in suspects for task in batch)
        if len(suspects) == 1:
            yield from self._isolate(suspects[0], cause)
        else:
            self.queue.extend(suspects)
        self._replace(worker, cause)

    def _isolate(self, batch: list[Task], cause: str) -> Iterator[Outcome]:
        """Narrow down which recording of a batch kills workers: requeue it in halves, or alone, as the last."""
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
            if task.index in self._copied and not self._first(task.index):
                return
            yield Outcome(task.index, error=f"{task.utterance.shown}: {_DEATHS_OF_ONE} workers died of it ({cause})")

    def _replace(self, worker: WorkerState, cause: str) -> None:
        position = self.workers.index(worker)
        self.workers.remove(worker)
        if self._stopping:
            return
        failed_starts = worker.failed_starts + 1 if worker.ready_at is None else 0
        if failed_starts < _DEATHS_AT_START:
            self.replaced += 1
            most = max(_DEATHS_WITHOUT_OUTCOME, _DEATHS_OF_EACH * len(self.configs))
            if self.replaced >= most and not self._any_outcome:
                raise MkcError(f"{self.replaced} workers died, and nothing came of any recording ({cause})")
            self.workers.insert(position, self._spawn(worker.config, failed_starts))
        else:
            self.lost += 1
            if not self.workers:
                raise MkcError(f"workers die while they load the models ({cause})")

    def _end(self) -> None:
        """Let idle workers exit and kill the others; their unfinished files have temporary names and are removed."""
        exiting = []
        for worker in self.workers:
            if not worker.outstanding and worker.ready_at is not None:
                with contextlib.suppress(OSError):
                    worker.handle.send(None)
                    exiting.append(worker)
        deadline = time.perf_counter() + LAST_WAIT_S
        for worker in self.workers:
            worker.handle.end(max(0.0, deadline - time.perf_counter()) if worker in exiting else 0.0)
        for worker in self.workers:
            worker.remove_temporaries()


def worker_configs(config: WorkerConfig, devices: Sequence[str], num_proc: int | None) -> list[WorkerConfig]:
    """The configuration of each worker; the workers are spread over the devices in turn.

    On a CPU each worker computes with as many threads as there are cores; idle threads sleep, and the system schedules
    the others. ONNX Runtime splits sums by its number of threads, so with fewer threads for more workers the last bits
    of every sample would depend on the number of workers. BLAS threads wait actively, so each worker gets its share of
    the cores for them; the look-up's ids do not depend on their rounding.
    """
    count = num_proc or len(devices)
    chosen = [devices[index % len(devices)] for index in range(count)]
    return [
        replace(
            config,
            device=device,
            options=replace(config.options, threads=cores() if device == CPU else None),
            host_threads=1 if device == CPU else max(2, cores() // count),
            blas_threads=max(1, cores() // count) if device == CPU else None,
            ahead=config.ahead if device == CPU else AHEAD_ON_GPU,
        )
        for device in chosen
    ]
