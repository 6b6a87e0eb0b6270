"""Ctrl-C and SIGTERM end a command with one line and 128 plus the signal's number, once it has cleaned up."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
EXIT_CODES = tuple(128 + number for number in _SIGNALS)
# For removing temporary directories. People press Ctrl-C twice; later than this they mean it.
_CLEANING_UP_S = 5.0


class Interrupted(BaseException):
    """A signal asked the command to end; no KeyboardInterrupt, for which Typer and others have answers of their own."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class Interrupts:
    """The signal that came, and what becomes of it."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.over = False  # nothing is left to clean up
        self._since = 0.0

    def note(self, number: int, _: FrameType | None = None) -> None:
        """Handle a signal: the first is raised; those that follow wait for the cleaning up, or end the process.

        Raises:
            Interrupted: It is the first.
        """
        if self.over or (self.number is not None and time.monotonic() - self._since > _CLEANING_UP_S):
            os._exit(128 + (self.number or number))
        if self.number is None:
            self.number, self._since = number, time.monotonic()
            raise Interrupted(number)

    def check(self) -> None:
        """Raise again what some library caught and forgot.

        Raises:
            Interrupted: A signal came.
        """
        if self.number is not None:
            raise Interrupted(self.number)

    def unraisable(self, unraisable: sys.UnraisableHookArgs) -> None:
        """Stand in for ``sys.unraisablehook``: Python prints and forgets what is raised in a destructor."""
        if isinstance(unraisable.exc_value, Interrupted):
            self.number = None
            # Raised in here it would be forgotten once more.
            again = (threading.main_thread().ident, unraisable.exc_value.number)
            threading.Timer(0.01, signal.pthread_kill, again).start()
        else:
            sys.__unraisablehook__(unraisable)


_current = Interrupts()


def check() -> None:
    """Raise what a signal asked for, if some library caught and forgot it; long commands call this between steps."""
    _current.check()


def install() -> Interrupts:
    """From now on SIGINT and SIGTERM raise ``Interrupted``; a signal that the caller ignores stays ignored.

    Handlers can only be set by the main thread: on another one, nothing changes.
    """
    global _current  # noqa: PLW0603 - signals belong to the process, and so does this
    _current = Interrupts()
    if threading.current_thread() is threading.main_thread():
        sys.unraisablehook = _current.unraisable
        for number in _SIGNALS:
            if signal.getsignal(number) not in {signal.SIG_IGN, None}:
                signal.signal(number, _current.note)
    return _current


@contextlib.contextmanager
def raising() -> Iterator[Interrupts]:
    """``install`` for a block, and what was before after it."""
    global _current
    before = (_current, sys.unraisablehook, [signal.getsignal(number) for number in _SIGNALS])
    try:
        yield install()
    finally:
        _current, sys.unraisablehook, handlers = before
        if threading.current_thread() is threading.main_thread():
            for number, handler in zip(_SIGNALS, handlers, strict=True):
                if handler is not None:
                    signal.signal(number, handler)


def report(number: int) -> int:
    """Say that the command was interrupted, in one line, and return its exit code."""
    # On a terminal the line begins with the ^C that was typed.
    start = "\r" if sys.stderr.isatty() else ""
    with contextlib.suppress(OSError):
        print(f"{start}{'interrupted' if number == signal.SIGINT else 'terminated'}", file=sys.stderr, flush=True)
    return 128 + number
