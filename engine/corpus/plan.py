"""Plans the batches of a run: reads the headers of recordings and groups them by length, while the workers start."""

from __future__ import annotations

import math
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

from mkc_fast.engine.audio.read import duration_s
from mkc_fast.engine.batching import group_by_length
from mkc_fast.engine.passes.shapes import Shapes, budget_of, chosen_lengths

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future

    from mkc_fast.engine.artifacts import ModelInfo
    from mkc_fast.engine.corpus.protocol import Task
    from mkc_fast.engine.datasets.dataset import Utterance

_HEADERS_AT_ONCE = 64
# More than cores: on a network file system, reading a header is mostly waiting.
_HEADER_THREADS = 8
_Length = TypeVar("_Length", int, float)


@dataclass(frozen=True)
class Plan:
    """What a run computes.

    Attributes:
        batches: Tasks that run together, part after part, of each the longest first.
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

    def shapes(self, frames: Sequence[int], batch_s: float) -> Shapes:
        """The shapes that suit recordings of so many frames, in batches of ``batch_s`` padded seconds."""
        return Shapes(chosen_lengths(frames, self.most, self.info), budget_of(batch_s, self.info))

    def frames(self, lengths_s: Sequence[float]) -> list[int]:
        """At most so many frames of each recording; resampling may round up, and an unknown length may be any."""
        return [sys.maxsize if math.isinf(seconds) else self.info.whole_frames(seconds) + 1 for seconds in lengths_s]


@contextmanager
def planned_batches(
    tasks: list[Task], budget: float, stopped: Callable[[], bool], padding: Padding | None = None
) -> Iterator[Future[Plan]]:
    """Start to read the headers of tasks, which tell their lengths, and to make batches of them.

    Args:
        tasks: They get their lengths.
        budget: Padded seconds of a batch.
        stopped: Called often; once it returns true, no more headers are read.
        padding: Where batches are padded to few lengths.
    """
    ended = threading.Event()

    def is_over() -> bool:
        return ended.is_set() or stopped()

    def plan() -> Plan:
        measured = _lengths_s(readers, [task.utterance for task in tasks], is_over)
        for task, length_s in zip(tasks, measured, strict=True):
            task.audio_s = length_s
        # A recording of unknown length runs alone.
        lengths = [task.audio_s or math.inf for task in tasks]
        if padding is None:
            padded: tuple[int, ...] = ()
            groups = _grouped(tasks, lengths, lambda some: group_by_length(some, budget))
        else:
            frames = padding.frames(lengths)
            shapes = padding.shapes(frames, budget)
            padded, groups = shapes.lengths, _grouped(tasks, frames, shapes.groups)
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
    tasks: Sequence[Task], lengths: Sequence[_Length], group: Callable[[Sequence[_Length]], list[list[int]]]
) -> list[list[int]]:
    """Groups of tasks that run together: as ``group`` makes them, of one part and one bank, the longest first."""
    kinds: dict[tuple[int, int], list[int]] = {}
    for position, task in enumerate(tasks):
        kinds.setdefault((task.part, task.bank), []).append(position)
    groups: list[list[int]] = []
    for positions in kinds.values():
        of_kind = group([lengths[position] for position in positions])
        groups += [[positions[number] for number in group] for group in of_kind]
    return sorted(groups, key=lambda group: (tasks[group[0]].part, -lengths[group[0]]))
