"""Workers as processes of this machine, each at the other end of a socket."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from mkc_fast.engine.atomic_files import remove_temporary
from mkc_fast.engine.corpus.protocol import EXIT_LOST_DEVICE
from mkc_fast.engine.corpus.watchdog import is_stopped
from mkc_fast.errors import MkcError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mkc_fast.engine.corpus.pool import WorkerHandle
    from mkc_fast.engine.corpus.protocol import Task, WorkerConfig

# Not ``python -m``: pickled objects must be of the module's classes, not of ``__main__``'s.
_START = "from mkc_fast.engine.corpus.worker import main; main()"
# A killed process is waited for so long. One that a driver holds inside the kernel may never end.
LAST_WAIT_S = 5.0


@dataclass(frozen=True, eq=False)
class WorkerProcess:
    """A worker process: a ``WorkerHandle``."""

    process: subprocess.Popen[bytes]
    connection: Connection[Any, Any]
    where: str = ""
    placed: bool = True

    @property
    def pid(self) -> int:
        """The id of its process."""
        return self.process.pid

    def send(self, message: object) -> None:
        self.connection.send(message)

    def receive(self) -> list[Any]:
        return [self.connection.recv()]

    def is_stopped(self) -> bool:
        return is_stopped(self.pid)

    def end(self, grace_s: float = 0.0) -> str:
        """Kill its process, with the commands that it has begun; what it died of."""
        for seconds in (grace_s, LAST_WAIT_S):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=seconds)
            with contextlib.suppress(OSError):
                os.killpg(self.pid, signal.SIGKILL)  # it leads its own process group
        self.connection.close()
        code = self.process.returncode
        return _cause(-signal.SIGKILL if code is None else code)

    def remove_temporaries(self, tasks: Iterable[Task]) -> None:
        for task in tasks:
            remove_temporary(task.output, self.pid)


class Processes:
    """Starts worker processes and waits for them: a ``Pool``."""

    def start(self, config: WorkerConfig) -> WorkerProcess:
        # A socket and a new interpreter: nothing of this process is inherited, its main module is not imported again
        # (so scripts need no guard), and either side notices at once when the other has ended.
        parent_end, worker_end = socket.socketpair()
        environment = {**os.environ, "PYTHONPATH": _import_path()}
        if config.blas_threads:
            for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
                environment[variable] = str(config.blas_threads)
        try:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and our own text
                [sys.executable, "-c", _START, str(worker_end.fileno())],
                pass_fds=[worker_end.fileno()],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # decoders print messages about damaged files there
                # A terminal sends Ctrl-C to its whole process group; this process decides what follows.
                start_new_session=True,
            )
        except OSError as error:
            raise MkcError(f"{sys.executable}: a worker cannot start ({error.strerror})") from None
        worker_end.close()
        worker = WorkerProcess(process, Connection(parent_end.detach()))
        with contextlib.suppress(OSError):  # it is dead, which is noticed when it is to be heard
            worker.send(config)
        return worker

    def wait(self, workers: Sequence[WorkerHandle], timeout_s: float) -> list[WorkerHandle]:
        by_connection = {worker.connection: worker for worker in workers if isinstance(worker, WorkerProcess)}
        return [by_connection[each] for each in wait(list(by_connection), timeout=timeout_s)]  # type: ignore[index]


def _import_path() -> str:
    """The import path of this process, so that a worker can import the same modules, also those of tests."""
    return os.pathsep.join(path or os.getcwd() for path in sys.path)  # noqa: PTH109


def _cause(code: int) -> str:
    if code == EXIT_LOST_DEVICE:
        return "the device was lost"
    if code == -signal.SIGKILL:
        return "killed, perhaps because memory ran out"
    if code < 0:
        return f"signal {-code}, {signal.strsignal(-code)}"
    return f"exit code {code}"
