"""Workers as actors of a Ray cluster: a ``Pool`` of the scheduler."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mkc_fast.engine.atomic_files import remove_temporary
from mkc_fast.engine.cluster.actor import WorkerActor
from mkc_fast.errors import MkcError
from mkc_fast.text import one_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mkc_fast.engine.corpus.pool import WorkerHandle
    from mkc_fast.engine.corpus.protocol import Task, WorkerConfig

# An actor answers after so many seconds even if it has nothing to say.
_TAKE_S = 10.0
# Threads for calls: one waits in ``take``, others take what is put.
_CALLS_AT_ONCE = 3


@dataclass(frozen=True)
class Share:
    """What an actor asks of the cluster: it gets a place once a machine has that much left.

    Attributes:
        cpus: Cores; on a CPU as many threads compute.
        gpus: GPUs: 1, or 0 on a CPU.
    """

    cpus: int
    gpus: int = 0


@dataclass(eq=False)
class RayWorker:
    """An actor that runs a worker: a ``WorkerHandle``.

    Attributes:
        pid: Of its process, on its machine.
        where: Its machine.
    """

    ray: Any
    actor: Any
    pid: int = 0
    where: str = ""
    _answer: Any = None  # of the call of ``take`` that is under way
    _sent: int = 0
    _waiting: list[object] = field(default_factory=list)  # what the next call of ``take`` brings along
    _error: str = ""

    @property
    def placed(self) -> bool:
        """Whether a machine has had room for it."""
        return bool(self.where)

    @property
    def answer(self) -> Any:
        """Of the call that takes what the worker has to say; it is made now if none is under way."""
        if self._answer is None:
            self._answer = self.actor.take.remote(_TAKE_S, self._sent - len(self._waiting), self._waiting)
            self._waiting = []
        return self._answer

    def send(self, message: object) -> None:
        # A call costs both sides more than a message does, so what is sent after an answer goes with the next call.
        if self._answer is None:
            self._waiting.append(message)
        else:
            self.actor.put.remote(self._sent, message)
        self._sent += 1

    def receive(self) -> list[Any]:
        answer, self._answer = self.answer, None
        try:
            messages = self.ray.get(answer)
        except self.ray.exceptions.RayActorError as error:
            self._error = str(error)
            raise EOFError from None
        except self.ray.exceptions.RayTaskError as error:
            raise MkcError(f"a worker on {self.where or 'the cluster'}: {one_line(str(error.cause), 200)}") from None
        except self.ray.exceptions.RayError as error:  # its machine is gone with what it had to say
            self._error = str(error)
            raise EOFError from None
        if messages and messages[0][0] == "placed":
            _, self.where, self.pid = messages.pop(0)
        return list(messages)

    def is_stopped(self) -> bool:
        """No: that cannot be seen from here."""
        return False

    def end(self, grace_s: float = 0.0) -> str:
        """Kill the actor. It needs no grace: what it has reported is written."""
        del grace_s
        self.ray.kill(self.actor, no_restart=True)
        return _cause(self._error, self.where)

    def remove_temporaries(self, tasks: Iterable[Task]) -> None:
        for task in tasks:
            remove_temporary(task.output, self.pid, self.where)


class Actors:
    """Starts actors and waits for what they say: a ``Pool``."""

    def __init__(self, ray: Any, share: Share, environment: Mapping[str, str | None]) -> None:
        self._ray = ray
        self._environment = environment
        self._share = share
        # No restarts and no retries by Ray: the scheduler knows which recordings the actor had, and tries them again
        # apart. Actors end with this process, their owner.
        self._kind = ray.remote(WorkerActor).options(
            num_cpus=share.cpus,
            num_gpus=share.gpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=_CALLS_AT_ONCE,
            scheduling_strategy="SPREAD",
        )

    def start(self, config: WorkerConfig) -> RayWorker:
        return RayWorker(self._ray, self._kind.remote(config, self._environment))

    def wait(self, workers: Sequence[WorkerHandle], timeout_s: float) -> list[WorkerHandle]:
        by_answer = {worker.answer: worker for worker in workers if isinstance(worker, RayWorker)}
        answers = list(by_answer)
        ready, _ = self._ray.wait(answers, num_returns=1, timeout=timeout_s)
        if ready:
            ready, _ = self._ray.wait(answers, num_returns=len(answers), timeout=0)
        return [by_answer[answer] for answer in ready]


def _cause(error: str, where: str) -> str:
    """What an actor died of, from what Ray says of it."""
    on = f" on {where}" if where else ""
    lowered = error.lower()
    if "node" in lowered and ("node failure" in lowered or "node died" in lowered or "node has died" in lowered):
        return f"its machine{on} was lost"
    if "out-of-memory" in lowered or "oom" in lowered.split():
        return f"out of memory{on}"
    return f"killed{on}, perhaps because memory ran out"
