"""How benchmarks time things: rounds in turn under a budget of seconds, percentiles, and ratios with their spread."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mkc_fast.benchmarks.records import short

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


@dataclass
class Budget:
    """Seconds that a benchmark may take, and what was left out to stay within them.

    Attributes:
        seconds: In all, from when the object was made.
        cut: One line for each thing that was measured less than asked for, or not at all.
        clock: Tells the time in seconds.
    """

    seconds: float
    cut: list[str] = field(default_factory=list)
    clock: Callable[[], float] = time.perf_counter
    _begin: float = field(init=False)

    def __post_init__(self) -> None:
        self._begin = self.clock()

    @property
    def spent(self) -> float:
        """Seconds since it was made."""
        return self.clock() - self._begin

    @property
    def left(self) -> float:
        """Seconds left, 0 at the least."""
        return max(0.0, self.seconds - self.spent)

    def allows(self, seconds: float, what: str) -> bool:
        """Whether so many seconds are left; if not, ``what`` is noted as cut."""
        if seconds <= self.left:
            return True
        self.cut.append(f"{what}: not measured, it would take {seconds:.0f} s and {self.left:.0f} s were left")
        return False


def in_turn(
    arms: Mapping[str, Callable[[], object]],
    budget_s: float,
    most: int = 20,
    least: int = 1,
    *,
    warm: bool = True,
    turn_s: float = 0.0,
) -> dict[str, list[float]]:
    """Seconds of each arm's runs: A B A B, so that what changes on the machine meanwhile affects all arms equally.

    Args:
        arms: What to run, by name.
        budget_s: No further round begins that would end past it, as far as the last one tells.
        most: Rounds at the most.
        least: Rounds at the least, whatever they take.
        warm: Run each arm once before, which does not count.
        turn_s: An arm that takes less is run again in its turn until so much time has passed. Then the mean of these
            runs counts. The first is left out, because threads of the arm before may still be busy.
    """
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    begin = time.perf_counter()
    if warm:
        for arm in arms.values():
            arm()
    longest = (time.perf_counter() - begin) if warm else 0.0
    for count in range(most):
        if count >= least and time.perf_counter() - begin + longest > budget_s:
            break
        start = time.perf_counter()
        for name, arm in arms.items():
            seconds[name].append(_turn(arm, turn_s))
        longest = time.perf_counter() - start
    return seconds


def _turn(arm: Callable[[], object], turn_s: float) -> float:
    """Seconds of a run in an arm's turn."""
    begin = time.perf_counter()
    arm()
    first = end = time.perf_counter()
    runs = 0
    while end - begin < turn_s:
        arm()
        end = time.perf_counter()
        runs += 1
    return (end - first) / runs if runs else first - begin


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Percentiles of measured values (interpolated between neighbours), and how many there were.

    With few runs p95 and p99 are near the largest value: ``runs`` says how much they mean.
    """
    array = np.asarray(values, float)
    p50, p95, p99 = (short(float(value), 4) for value in np.percentile(array, [50, 95, 99]))
    return {"p50": p50, "p95": p95, "p99": p99, "least": short(float(array.min()), 4), "runs": len(array)}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles, least and largest of a few values."""
    array = np.asarray(values, float)
    quartiles = np.percentile(array, [25, 50, 75])
    low, median, high = (short(float(value)) for value in quartiles)
    return {
        "median": median,
        "quartile_1": low,
        "quartile_3": high,
        "least": short(float(array.min())),
        "largest": short(float(array.max())),
    }


def ratios(slow: Sequence[float], fast: Sequence[float]) -> list[float]:
    """How many times as long each of ``slow`` took as its neighbour in time of ``fast``."""
    return [one / other for one, other in zip(slow, fast, strict=True)]
