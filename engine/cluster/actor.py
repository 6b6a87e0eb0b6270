"""The worker as an actor: the same ``Worker`` as in a process of this machine, with a mailbox in place of a socket."""

from __future__ import annotations

import contextlib
import os
import platform
import queue
import threading
from typing import TYPE_CHECKING, Any

from mkc_fast.engine.cluster.ray_module import set_variables
from mkc_fast.errors import MkcError
from mkc_fast.text import one_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mkc_fast.engine.corpus.protocol import WorkerConfig

# The most messages that are taken at a time: a taker that was away gets them in several answers.
_MOST_TAKEN = 1000


class Mailbox:
    """What a ``Worker`` sees of the scheduler: messages in and out, in the order in which they were sent."""

    def __init__(self) -> None:
        self._incoming: queue.Queue[Any] = queue.Queue()
        self._outgoing: queue.Queue[Any] = queue.Queue()
        self._early: dict[int, object] = {}
        self._next = 0
        self._sorting = threading.Lock()

    def put(self, number: int, message: object) -> None:
        """Add the scheduler's message of this number; calls of an actor with threads may arrive in any order."""
        with self._sorting:
            self._early[number] = message
            while self._next in self._early:
                self._incoming.put(self._early.pop(self._next))
                self._next += 1

    def take(self, timeout_s: float) -> list[Any]:
        """The messages of the worker, as soon as there is one; none after so many seconds."""
        messages: list[Any] = []
        with contextlib.suppress(queue.Empty):
            messages.append(self._outgoing.get(timeout=timeout_s))
            while len(messages) < _MOST_TAKEN:
                messages.append(self._outgoing.get_nowait())
        return messages

    def send(self, message: object) -> None:
        """As a connection's, for the worker."""
        self._outgoing.put(message)

    def recv(self) -> Any:
        """As a connection's, for the worker."""
        return self._incoming.get()


class WorkerActor:
    """One worker on some machine of a cluster; it loads the model once, and lives as long as the run.

    Its calls have several threads: while ``take`` waits, ``put`` is answered.
    """

    def __init__(self, config: WorkerConfig, environment: Mapping[str, str | None]) -> None:
        set_variables(environment)
        self.mailbox = Mailbox()
        self.mailbox.send(("placed", platform.node(), os.getpid()))
        threading.Thread(target=self._work, args=[config], daemon=True).start()

    def put(self, number: int, message: object) -> None:
        """See ``Mailbox.put``."""
        self.mailbox.put(number, message)

    def take(self, timeout_s: float, number: int, messages: Sequence[object]) -> list[Any]:
        """See ``Mailbox.take``; before, put these messages, whose numbers follow one another."""
        for offset, message in enumerate(messages):
            self.mailbox.put(number + offset, message)
        return self.mailbox.take(timeout_s)

    def _work(self, config: WorkerConfig) -> None:
        from mkc_fast.engine.corpus.worker import Worker

        try:
            Worker(self.mailbox, config).run()
        except Exception as error:
            known = isinstance(error, MkcError)
            text = str(error) if known else f"{type(error).__name__}: {one_line(str(error), 200)}"
            name = type(error).__name__ if known else "MkcError"
            self.mailbox.send(("fatal", name, f"a worker on {platform.node()} cannot start: {text}"))
