"""Groups utterances of similar length under a budget, longest first."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def group_by_length(lengths: Sequence[float], budget: float) -> list[list[int]]:
    """Indices of the lengths in groups whose padded size, longest times count, is at most ``budget``.

    The longest come first, so that at the end of a run no worker is left alone with a long one. A length beyond the
    budget has a group of its own; a budget of 0 gives every one its own. Lengths below 1 count as 1.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    groups: list[list[int]] = []
    for index in order:
        if groups and max(1.0, lengths[groups[-1][0]]) * (len(groups[-1]) + 1) <= budget:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def parts_of(group: list[int], most: int) -> list[list[int]]:
    """A group in parts of at most so many."""
    return [group[start : start + most] for start in range(0, len(group), most)]


def group_for_pass(
    frames: Sequence[int], seconds: Sequence[float], batch_s: float, *, window_frames: int, max_batch: int | None
) -> list[list[int]]:
    """Indices of the utterances that run together in one pass.

    Args:
        frames: Of each utterance.
        seconds: Of each utterance.
        batch_s: Padded seconds of audio that run at once; 0 runs each alone.
        window_frames: An utterance of more frames runs alone, in windows.
        max_batch: The most utterances that the sessions take; None: any number.
    """
    groups: list[list[int]] = []
    for group in group_by_length(seconds, batch_s):
        long = [index for index in group if frames[index] > window_frames]
        groups += [[index] for index in long]
        groups += parts_of(group[len(long) :], max_batch or len(frames))
    return groups
