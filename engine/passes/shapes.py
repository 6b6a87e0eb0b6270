"""The few shapes that a GPU runs: which lengths batches are padded to, and how many utterances run at once in each.

A session keeps the plan of a convolution for one shape alone, so on a GPU every shape has a session of its own, and
there should be few. They are chosen from the lengths of the utterances, where these are known beforehand.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mkc_fast.engine.windows import round_up
from mkc_fast.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mkc_fast.engine.artifacts import ModelInfo

# Lengths are multiples of so many frames: attention's kernels want rows of its bias to begin aligned.
FRAME_STEP = 8
# Where the lengths of utterances are not known, each length is so many times the one before it.
_RATIO = 1.2
# The share of a run's padded frames that may be padding, and the largest number of lengths: each opens three sessions.
_PADDING, _MOST_LENGTHS = 0.04, 16
# An hour: more seconds of audio at once than any GPU has memory for.
_MOST_BATCH_S = 3600.0
# The vocoder's windows of an utterance.
_WINDOWS = 2


@dataclass(frozen=True)
class Bucket:
    """A shape: so many utterances of so many frames, padding included."""

    rows: int
    frames: int

    def window(self, info: ModelInfo) -> tuple[int, int]:
        """How many windows the vocoder runs at once, and the frames of each: two an utterance, which meet in it."""
        return _WINDOWS * self.rows, whole_steps(-(-(self.frames + 2 * info.vocoder_reach) // _WINDOWS))


@dataclass(frozen=True)
class Shapes:
    """The buckets of a device.

    Attributes:
        lengths: Frames that utterances are padded to, ascending.
        budget: Padded frames that run at once.
        full: Every batch is padded to the most utterances of its length, so that each length has one shape; else a
            small batch is padded to a half of that, a quarter, and so forth.
    """

    lengths: tuple[int, ...]
    budget: int
    full: bool = False

    def most_rows(self, frames: int) -> int:
        """Of utterances of so many frames, how many run at once."""
        return max(1, self.budget // self.padded(frames))

    def padded(self, frames: int) -> int:
        """What an utterance of so many frames is padded to."""
        position = bisect_left(self.lengths, frames)
        if position == len(self.lengths):
            raise ArgumentError(f"an utterance of {frames} frames; the longest bucket has {self.lengths[-1]}")
        return self.lengths[position]

    def bucket(self, rows: int, frames: int, *, least: bool = False) -> Bucket:
        """The least bucket for so many utterances, the longest of so many frames; ``least``: also where it is full."""
        most = self.most_rows(frames)
        if rows > most:
            raise ArgumentError(f"{rows} utterances of up to {frames} frames; {most} run at once")
        if not self.full or least:
            while most // 2 >= rows:
                most //= 2
        return Bucket(most, self.padded(frames))

    def groups(self, frames: Sequence[int], budget: float = float("inf")) -> list[list[int]]:
        """Indices of utterances in groups that run at once, the longest first, each as large as it can be.

        Args:
            frames: Of each utterance; one of more than the longest bucket has a group of its own.
            budget: Padded frames of a group, where these are fewer than the shapes allow.
        """
        order = sorted(range(len(frames)), key=lambda index: (-frames[index], index))
        groups, start = [], 0
        while start < len(order):
            longest, count = frames[order[start]], 1
            if longest <= self.lengths[-1]:
                padded = self.padded(longest)
                count = max(1, min(self.most_rows(longest), int(min(budget / padded, len(order)))))
            groups.append(order[start : start + count])
            start += count
        return groups


def budget_of(batch_s: float, info: ModelInfo) -> int:
    """Padded frames of a batch of so many seconds."""
    return info.whole_frames(min(batch_s, _MOST_BATCH_S))


def ladder(most: int, info: ModelInfo) -> tuple[int, ...]:
    """Lengths up to ``most`` frames for utterances of which nothing is known."""
    lengths, length = [], float(whole_steps(2 * info.vocoder_reach + FRAME_STEP))
    while length < most:
        lengths.append(whole_steps(int(length)))
        length *= _RATIO
    return tuple(dict.fromkeys([*(each for each in lengths if each < most), most]))


def chosen_lengths(frames: Sequence[int], most: int, info: ModelInfo, *, padding: float = _PADDING) -> tuple[int, ...]:
    """The smallest set of lengths for which at most this share of the padded frames is padding.

    It is found by dynamic programming over the lengths that occur, rounded up. If 16 lengths are not enough, it is the
    best set of 16. ``most`` is always one of the lengths: windows of longer recordings need it.

    Args:
        frames: Of each utterance.
        most: Of a window of a longer recording.
        info: Of the model.
        padding: The share.
    """
    least = whole_steps(2 * info.vocoder_reach + FRAME_STEP)
    real = np.asarray([count for count in frames if count <= most], np.int64)
    if not len(real):
        return (most,)
    rounded = np.minimum(np.maximum(round_up(real, FRAME_STEP), least), most)
    lengths, counts = np.unique(rounded, return_counts=True)
    # cost[j] with k lengths: padded frames of all utterances up to lengths[j], which is the longest of the k.
    below = np.concatenate([[0], np.cumsum(counts)])
    costs = [np.asarray(lengths * below[1:], np.float64)]
    choices: list[np.ndarray] = []
    bound = real.sum() / (1.0 - padding)
    while costs[-1][-1] > bound and len(costs) < min(_MOST_LENGTHS, len(lengths)):
        previous = costs[-1]
        # of (last of the shorter ones i, longest j): what is longer than i and up to j is padded to j
        table = previous[:, None] + lengths[None, :] * (below[None, 1:] - below[1:, None])
        table[np.tril_indices(len(lengths))] = np.inf
        choices.append(table.argmin(0))
        costs.append(np.minimum(table.min(0), previous))
        choices[-1][costs[-1] == previous] = -1  # no further length helps
    found, place = [], len(lengths) - 1
    for choice in reversed(choices):
        if choice[place] >= 0:
            found.append(int(lengths[place]))
            place = int(choice[place])
    found.append(int(lengths[place]))
    return tuple(sorted({*found, most}))


def whole_steps(frames: int) -> int:
    """So many frames, rounded up to a length that a bucket may have."""
    return round_up(frames, FRAME_STEP)
