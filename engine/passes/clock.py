"""Measures how long each stage of a pass takes on the host."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, TypeVar

from mkc_fast.names import TIMED_STAGES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mkc_fast.names import Stage

_T = TypeVar("_T")


class StageClock:
    """Adds up wall-clock seconds by stage.

    Attributes:
        seconds: Of each stage so far.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(TIMED_STAGES, 0.0)

    @contextlib.contextmanager
    def measure(self, stage: Stage) -> Iterator[None]:
        """Count the block towards a stage."""
        begin = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - begin

    def measure_items(self, stage: Stage, items: Iterator[_T], within: Stage | None = None) -> Iterator[_T]:
        """Count the time to get each item towards a stage, and not towards the stage ``within`` which it is needed."""
        while True:
            begin = time.perf_counter()
            item = next(items, None)
            elapsed = time.perf_counter() - begin
            self.seconds[stage] += elapsed
            if within:
                self.seconds[within] -= elapsed
            if item is None:
                return
            yield item
