"""Measures how long each stage of a pass takes on the host."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, TypeVar

from mkc_fast.engine.passes.stages import STAGES

if TYPE_CHECKING:
    from collections.abc import Iterator

_T = TypeVar("_T")


class StageClock:
    """Adds up wall-clock seconds by stage.

    Attributes:
        seconds: Of each stage so far.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)

    @contextlib.contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Count the block towards a stage."""
        begin = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - begin

    def measure_items(self, stage: str, items: Iterator[_T], within: str | None = None) -> Iterator[_T]:
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
