"""Detects workers that hang, as opposed to those that are slow, stopped, or suspended with the whole machine."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mkc_fast.engine.audio.read import COMMAND_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mkc_fast.engine.corpus.protocol import Task

DEFAULT_TIMEOUT_S = 900.0
# Clocks continue while the machine sleeps or a debugger stops this process; one step counts for at most this.
_LONGEST_STEP_S = 1.0
_STEP_S = 0.5
# Loading has no length to estimate it by, and may build kernels or engines for the device: so many timeouts.
_LOADING = 2.0
# A worker may take so many times as long as its measured pace. Before its pace is known, it may take this part of the
# timeout for a second of audio (with 900 s, 45 s: a hundredth of the speed of full-size models on two cores).
_SLACK = 20.0
_UNMEASURED = 1 / 20
_LONGEST_AUDIO_S = 24 * 3600.0  # longer recordings are refused, but a header or a segment may claim any length


@dataclass
class SilenceTimer:
    """How long a worker with work has reported nothing, not counting time in which it could not run; and its pace.

    Attributes:
        silent_s: Seconds since it last reported anything.
        worked_s: Seconds in which it had work, until its last report.
        audio_s: Seconds of audio that it has finished.
    """

    silent_s: float = 0.0
    worked_s: float = 0.0
    audio_s: float = 0.0

    def heard(self, audio_s: float = 0.0) -> None:
        """Note that the worker has reported something, or that it has finished so much audio."""
        # Added only now: if the silence counted for the pace, the limit would grow as fast as the silence.
        self.worked_s += self.silent_s
        self.silent_s = 0.0
        self.audio_s += audio_s

    def limit_s(self, timeout_s: float, loading: bool, tasks: Iterable[Task]) -> float:
        """Seconds that the worker may be silent with these tasks, none of which it has reported."""
        if loading:
            return _LOADING * timeout_s
        pace = _SLACK * self.worked_s / self.audio_s if self.audio_s else _UNMEASURED * timeout_s
        limit_s = timeout_s
        for task in tasks:
            limit_s += min(task.audio_s, _LONGEST_AUDIO_S) * pace
            if task.utterance.command is not None:
                limit_s += COMMAND_TIMEOUT_S
        return limit_s


class Clock:
    """Counts time in short steps, so that time in which this process was stopped or suspended hardly counts."""

    def __init__(self) -> None:
        self._last_step = time.perf_counter()

    def step_s(self) -> float | None:
        """Seconds since the last step, at most one; None if the next step is not due yet."""
        elapsed = time.perf_counter() - self._last_step
        if elapsed < _STEP_S:
            return None
        self._last_step += elapsed
        return min(elapsed, _LONGEST_STEP_S)


def is_stopped(pid: int) -> bool:
    """Whether a process has been stopped (SIGSTOP, a debugger) and not continued."""
    try:
        # The state follows the name, which is in parentheses and may hold any characters.
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2][:1]
    except OSError:
        command = ["ps", "-o", "state=", "-p", str(pid)]
        try:
            state = subprocess.run(command, capture_output=True, check=False).stdout.strip()[:1]  # noqa: S603
        except OSError:
            return False
    return state in (b"T", b"t")
