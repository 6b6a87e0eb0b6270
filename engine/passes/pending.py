"""The interface of a pass, what it has started, and a batch whose results are still to come."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from mkc_fast.engine.passes.results import Result, Utterance

# Groups that are on a device at once: one is computed while the next is copied in and the last is copied out.
_GROUPS_AT_ONCE = 2


@dataclass(frozen=True)
class StartedPass:
    """Utterances that a pass has started.

    Attributes:
        result: Waits for them and returns the results in their order; raises as ``PendingBatch.result``.
        done: Whether ``result`` has nothing to wait for.
    """

    result: Callable[[], list[Result]]
    done: bool = False

    @classmethod
    def finished(cls, results: list[Result]) -> StartedPass:
        """Of utterances whose results are there."""
        return cls(lambda: results, done=True)

    @classmethod
    def joined(cls, parts: Sequence[StartedPass]) -> StartedPass:
        """Of utterances that run in several parts."""
        return cls(lambda: [result for part in parts for result in part.result()])


class Pass(Protocol):
    """Runs WavLM, the look-up, the conformer and the vocoder over one batch at a time, on the host or on a device."""

    def start(self, utterances: Sequence[Utterance]) -> StartedPass:
        """Start utterances that run at once, or one of any length.

        Raises:
            StageError: What a stage gives for an utterance is not finite; it is named.
            DeviceError: The device failed.
        """

    def errors(self) -> AbstractContextManager[None]:
        """Turns what the sessions raise in the block into errors of one line."""


class PendingBatch:
    """A batch that has been started; ask for its ``result`` once."""

    def __init__(
        self,
        groups: list[list[int]],
        utterances: list[Utterance],
        runner: Pass,
        verified: Callable[[], AbstractContextManager[None]],
        *,
        pad: bool,
    ) -> None:
        self._groups, self._utterances, self._runner, self._pad = iter(groups), utterances, runner, pad
        self._verified = verified
        self._started: deque[tuple[list[int], StartedPass]] = deque()
        self._start()

    @property
    def done(self) -> bool:
        """Whether ``result`` has nothing to wait for and nothing to compute."""
        return all(part.done for _, part in self._started)

    def _start(self) -> None:
        """Start as many groups as may be on a device at once."""
        while len(self._started) < _GROUPS_AT_ONCE and (group := next(self._groups, None)) is not None:
            self._started.append((group, self._runner.start([self._utterances[index] for index in group])))

    def result(self) -> list[Result]:
        """Of each utterance, in their order; waits for the device.

        Raises:
            StageError: What a stage gives for an utterance, which it names, is not finite.
            DeviceError: The device failed.
        """
        results: dict[int, Result] = {}
        with self._verified():
            while self._started:
                group, part = self._started.popleft()
                results.update(zip(group, part.result(), strict=True))
                self._start()
        ordered = [results[index] for index in range(len(self._utterances))]
        if not self._pad:
            return ordered
        return [each.padded(len(self._utterances[index].waveform)) for index, each in enumerate(ordered)]
