"""Plans the batches of a run: reads the headers of recordings and groups them by length, while the workers start."""

from __future__ import annotations

import math
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from mkc_fast.engine.audio.read import duration_s
from mkc_fast.engine.batching import group_by_length
from mkc_fast.engine.corpus.protocol import Task
from mkc_fast.engine.passes.shapes import Shapes, chosen_lengths

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future

    from mkc_fast.engine.artifacts import ModelInfo
    from mkc_fast.engine.datasets.dataset import Utterance

_HEADERS_AT_ONCE = 64
# More than cores: on a network file system, reading a header is mostly waiting.
_HEADER_THREADS = 8


@dataclass(frozen=True)
class Plan:
    """What a run computes.

    Attributes:
        batches: Tasks that run together, the longest first.
        lengths: In frames, what a GPU pads them to; none where batches are not padded to few lengths.
    """

    batches: list[list[Task]]
    lengths: tuple[int, ...] = ()


@dataclass(frozen=True)
class Padding:
    """How batches are padded to few lengths.

    Attributes:
        info: Of the model.
        most: Frames of a window of a long recording.
    """

    info: ModelInfo
    most: int

    def groups(self, lengths_s: Sequence[float], lengths: tuple[int, ...], budget_s: float) -> list[list[int]]:
        """Groups of recordings of so many seconds, the longest first."""
        budget = int(budget_s * self.info.sample_rate / self.info.hop)
        return Shapes(lengths, budget).groups([self.frames(seconds) for seconds in lengths_s])

    def lengths(self, lengths_s: Sequence[float]) -> tuple[int, ...]:
        """The lengths that suit recordings of so many seconds."""
        return chosen_lengths([self.frames(seconds) for seconds in lengths_s], self.most, self.info)

    def frames(self, seconds: float) -> int:
        """At most so many; resampling may round up."""
        if not seconds or math.isinf(seconds):
            return sys.maxsize
        return int(seconds * self.info.sample_rate / self.info.hop) + 1


@contextmanager
def planned_batches(
    tasks: list[Task], budget: float, stopped: Callable[[], bool], padding: Padding | None = None
) -> Iterator[Future[Plan]]:
    """Start to read the headers of tasks, which tell their lengths, and to make batches of them.

    Args:
        tasks: Replaced, in place, by the same tasks with their lengths.
        budget: Padded seconds of a batch.
        stopped: Called often; once it returns true, no more headers are read.
        padding: Where batches are padded to few lengths.
    """
    ended = threading.Event()

    def is_over() -> bool:
        return ended.is_set() or stopped()

    def plan() -> Plan:
        measured = _lengths_s(readers, [task.utterance for task in tasks], is_over)
        tasks[:] = [
            Task(task.index, task.utterance, task.folder, task.suffix, length_s, task.bank)
            for task, length_s in zip(tasks, measured, strict=True)
        ]
        # A recording of unknown length runs alone.
        lengths = [task.audio_s or math.inf for task in tasks]
        padded = () if padding is None else padding.lengths(lengths)
        groups = _grouped(tasks, lengths, budget, padding, padded)
        groups.reverse()  # each is freed once its batch is made: of a million recordings both are large
        return Plan([[tasks[index] for index in groups.pop()] for _ in range(len(groups))], padded)

    with ThreadPoolExecutor(_HEADER_THREADS, "header") as readers, ThreadPoolExecutor(1, "plan") as planner:
        try:
            yield planner.submit(plan)
        finally:
            ended.set()


def lengths_s(utterances: Sequence[Utterance]) -> list[float]:
    """Seconds of each utterance, from its header; 0 where it cannot be read."""
    with ThreadPoolExecutor(_HEADER_THREADS, "header") as readers:
        return list(_lengths_s(readers, utterances, lambda: False))


def _lengths_s(
    readers: ThreadPoolExecutor, utterances: Sequence[Utterance], is_over: Callable[[], bool]
) -> Iterator[float]:
    """Seconds of each utterance, in their order; 0 for those that are left once ``is_over`` returns true."""

    def measured(start: int) -> list[float]:
        piece = utterances[start : start + _HEADERS_AT_ONCE]
        return [0.0 if is_over() else duration_s(utterance) for utterance in piece]

    # In pieces: a future for each of 100,000 headers costs more than reading it.
    return chain.from_iterable(readers.map(measured, range(0, len(utterances), _HEADERS_AT_ONCE)))


def _grouped(
    tasks: Sequence[Task], lengths: Sequence[float], budget: float, padding: Padding | None, padded: tuple[int, ...]
) -> list[list[int]]:
    """Groups of tasks that run together: of similar length and of one bank, the longest first."""
    banks: dict[int, list[int]] = {}
    for position, task in enumerate(tasks):
        banks.setdefault(task.bank, []).append(position)
    groups: list[list[int]] = []
    for positions in banks.values():
        of_positions = [lengths[position] for position in positions]
        if padding is None:
            of_bank = group_by_length(of_positions, budget)
        else:
            of_bank = padding.groups(of_positions, padded, budget)
        groups += [[positions[number] for number in group] for group in of_bank]
    return sorted(groups, key=lambda group: -lengths[group[0]])
