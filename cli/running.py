"""What commands that run a corpus share: signals that end the run, and a standard output for the summary alone."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mkc_fast.cli.interrupts import Interrupted

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def decoders_off_stdout() -> Iterator[None]:
    """Send what C libraries print about damaged files to the error stream; the standard output is for the summary."""
    sys.stdout.flush()
    output = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(output, 1)
        os.close(output)


@contextmanager
def signals() -> Iterator[list[int]]:
    """Yield the list of signals received so far; the first asks the run to end, a second ends the program at once."""
    received: list[int] = []

    def note(number: int, _: object) -> None:
        if received:
            raise Interrupted(number)
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
