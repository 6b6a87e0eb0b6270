"""What the commands print: progress on the error stream, results on the output."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as TimeLeft

from mkc_fast.cli import interrupts
from mkc_fast.text import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

console = Console(highlight=False, emoji=False, markup=False)
errors = Console(stderr=True, highlight=False, emoji=False, markup=False)
_SECONDS_BETWEEN_LINES = 10.0


@contextlib.contextmanager
def steps() -> Iterator[Callable[[str], None]]:
    """Yield a function that shows the step under way: a spinner on a terminal, else a line a step."""
    if not errors.is_terminal:
        begin = time.perf_counter()

        def tell(text: str) -> None:
            interrupts.check()
            print(f"[{time.perf_counter() - begin:6.1f} s] {text}", file=sys.stderr, flush=True)

        yield tell
        return
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=errors) as progress:
        current: list[int] = []

        def show(text: str) -> None:
            interrupts.check()
            if current:
                progress.update(current[0], total=1, completed=1)  # type: ignore[arg-type]
                progress.stop_task(current.pop())  # type: ignore[arg-type]
            current.append(progress.add_task(text, total=None))

        yield show
        if current:
            progress.update(current[0], total=1, completed=1)  # type: ignore[arg-type]


@contextlib.contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function of (done, in all) that shows a bar with an estimate, or a line now and then."""
    if not errors.is_terminal:
        begin = said = time.perf_counter()

        def say(done: int, total: int) -> None:
            nonlocal said
            interrupts.check()
            now = time.perf_counter()
            if done == total or now - said >= _SECONDS_BETWEEN_LINES:
                left = (now - begin) / done * (total - done)
                print(
                    f"[{now - begin:6.1f} s] {what}: {done} of {total}, {left:.0f} s left", file=sys.stderr, flush=True
                )
                said = now

        yield say
        return
    columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn(), TimeLeft())
    with Progress(*columns, console=errors) as progress:
        task = progress.add_task(what, total=None)

        def move(done: int, total: int) -> None:
            interrupts.check()
            progress.update(task, completed=done, total=total)

        yield move


def counted(number: int, noun: str) -> str:
    """``1 recording``, ``2 recordings``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


@contextlib.contextmanager
def shown_warnings() -> Iterator[None]:
    """Show what the engine warns of during the block, a line each."""

    class Shown(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            errors.print(one_line(f"warning: {record.getMessage()}"), soft_wrap=True)

    handler, logger = Shown(logging.WARNING), logging.getLogger("mkc_fast")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
