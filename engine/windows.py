"""Cuts a sequence of frames into overlapping windows: exact ones for convolutions, cross-faded ones for attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True)
class Window:
    """Frames ``start`` to ``stop`` are computed, of which ``keep_start`` to ``keep_stop`` are kept."""

    start: int
    stop: int
    keep_start: int
    keep_stop: int


def exact_windows(frames: int, size: int, reach: int) -> list[Window]:
    """Windows of ``size`` frames over a sequence whose every output depends on ``reach`` frames to either side.

    The first window begins and the last ends with the sequence, so that what a network pads with is padded in the
    same places; between, each frame kept has ``reach`` computed neighbours. All windows have one length, unless the
    whole sequence is shorter.
    """
    if frames <= size:
        return [Window(0, frames, 0, frames)]
    if size <= 2 * reach:
        raise ValueError(f"windows of {size} frames keep nothing with a reach of {reach}")
    windows = []
    kept = 0
    while kept < frames:
        start = min(max(0, kept - reach), frames - size)
        stop = start + size
        keep_stop = frames if stop == frames else stop - reach
        windows.append(Window(start, stop, kept, keep_stop))
        kept = keep_stop
    return windows


def pieces(frames: int, count: int, reach: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """At most ``count`` exact windows of one length as indices, for a graph that cuts and joins by itself.

    Returns:
        The frames of each window (n, w), and where in the windows, laid end to end, each frame is taken from (frames,).
    """
    # A window that gave less than it shares with its neighbours would cost more than it saves.
    count = max(1, min(count, frames // (4 * reach + 1)))
    size = -(-(frames + 2 * reach * (count - 1)) // count)
    windows = exact_windows(frames, size, reach)
    taken = np.array([window.start for window in windows], np.int64)[:, None] + np.arange(size)
    kept = [
        np.arange(window.keep_start, window.keep_stop) - window.start + index * size
        for index, window in enumerate(windows)
    ]
    return taken, np.concatenate(kept)


def common_window(frames: Sequence[int], most: int, reach: int) -> int:
    """The length, at most about ``most``, in which all of these sequences are computed with the least to spare.

    The longest is cut into the fewest windows of at most ``most`` frames (of two at least, so that shorter ones share
    their length), and they are made just long enough: LibriSpeech's mean utterance, 629 frames, is computed as two
    windows of 330, not of 500.
    """
    longest = max(frames)
    count = max(2, -(-(longest - 2 * reach) // (most - 2 * reach)))
    return max(-(-(longest + 2 * reach * (count - 1)) // count), 2 * reach + 1)


def crossfaded(
    frames: int, size: int, overlap: int, compute: Callable[[int, int], NDArray[np.float32]]
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Compute a long sequence in windows, fading from each window to the next in the middle of their overlap.

    The outer quarters of an overlap are dropped: there one of the two windows has little context. What is held is one
    window at a time and the part of it still to be faded.

    Args:
        frames: Length of the sequence.
        size: Of a window; more than ``overlap``.
        overlap: Frames that neighbouring windows share (the last two may share more).
        compute: Of (start, stop), the window's values (stop - start, D).

    Yields:
        Consecutive pieces: the first frame's number, and the values (n, D).
    """
    if frames <= size:
        yield 0, compute(0, frames)
        return
    fade = max(1, overlap // 2)
    ramp = ((np.arange(fade, dtype=np.float32) + 0.5) / fade)[:, None]
    starts = [*range(0, frames - size, size - overlap), frames - size]
    done = 0
    held = np.empty((0, 0), np.float32)  # the last window's values from frame `done` on, as far as they may be used
    for index, start in enumerate(starts):
        values = compute(start, start + size)
        if index:
            # `held` ends with the fade, which this window's values enter.
            first = done + len(held) - fade
            mixed = held[-fade:] * (1 - ramp) + values[first - start : first - start + fade] * ramp
            yield done, np.concatenate([held[:-fade], mixed])
            done = first + fade
        if index + 1 < len(starts):
            shared_start, shared_stop = starts[index + 1], start + size
            fade_stop = (shared_start + shared_stop + fade) // 2
            held = values[done - start : fade_stop - start].copy()
        else:
            yield done, values[done - start :]
