"""The steps of the demos: shown while they run, and timed in a table at the end."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from mkc_fast.cli.show import console

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Row = tuple[str, str, float]
Step = AbstractContextManager["Callable[[str], None]"]


def timed(show: Callable[[str], None], rows: list[Row]) -> Callable[[str], Step]:
    """A function that runs a block as a step; the block says what came of it, and ``rows`` gets a row."""

    @contextmanager
    def step(title: str) -> Iterator[Callable[[str], None]]:
        start = time.perf_counter()
        text: list[str] = []
        show(title)
        yield text.append
        rows.append((title, "; ".join(text), time.perf_counter() - start))

    return step


def timing_table(rows: list[Row], seconds: float) -> None:
    """Print the steps."""
    from rich.table import Table

    table = Table("step", "what", "seconds", box=None)
    table.columns[2].justify = "right"
    for title, text, taken in rows:
        table.add_row(title, text, f"{taken:.1f}")
    table.add_row("in all", "", f"{seconds:.1f}")
    console.print(table)
