"""What the scheduler needs of wherever workers run: processes of this machine, or actors of a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mkc_fast.engine.corpus.protocol import Task, WorkerConfig
    from mkc_fast.engine.options import EngineOptions


class WorkerHandle(Protocol):
    """One worker, as the scheduler talks to it: ``protocol.py`` says what the messages are.

    Attributes:
        pid: Of its process; 0 while it is not known.
        where: The machine it runs on, as the display names it; empty where it is this one.
        placed: Whether it has a place to run. One that waits for a machine is not late.
    """

    @property
    def pid(self) -> int: ...

    @property
    def where(self) -> str: ...

    @property
    def placed(self) -> bool: ...

    def send(self, message: object) -> None:
        """Send a message.

        Raises:
            OSError: The worker is dead; ``receive`` says so, too.
        """
        ...

    def receive(self) -> list[Any]:
        """The messages that have come, after ``Pool.wait`` has named this worker.

        Raises:
            EOFError, OSError: The worker is dead.
        """
        ...

    def is_stopped(self) -> bool:
        """Whether its process was stopped (SIGSTOP, a debugger) and not continued."""
        ...

    def end(self, grace_s: float = 0.0) -> str:
        """End the worker and all that it has begun; returns what it died of, as far as that is known.

        Args:
            grace_s: Seconds that it may take to exit by itself.
        """
        ...

    def remove_temporaries(self, tasks: Iterable[Task]) -> None:
        """Remove the files that it was writing for these tasks; for a worker that is dead."""
        ...


class Pool(Protocol):
    """Where workers run."""

    def start(self, config: WorkerConfig) -> WorkerHandle:
        """Start a worker.

        Raises:
            MkcError: None can be started.
        """
        ...

    def wait(self, workers: Sequence[WorkerHandle], timeout_s: float) -> list[WorkerHandle]:
        """Those of the workers that have sent something or died; none if nothing comes for so many seconds."""
        ...


class Cluster(Protocol):
    """Machines that share a run: a pool, and how its workers are to be shared out."""

    @property
    def pool(self) -> Pool:
        """Where their workers run."""
        ...

    def devices(self, asked: Sequence[str] | None) -> list[str]:
        """The kind of device that workers use, as a list of one: ``cpu`` or ``cuda:0``.

        Raises:
            ArgumentError: What is asked for is no choice on a cluster.
        """
        ...

    def configs(self, config: WorkerConfig, devices: Sequence[str], num_proc: int | None) -> list[WorkerConfig]:
        """The configuration of each worker; by default, there is one for each device."""
        ...

    def batch_s(self, devices: Sequence[str], options: EngineOptions) -> float:
        """Padded seconds of audio that run at once."""
        ...
