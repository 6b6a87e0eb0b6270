"""Cuts a sequence of frames into overlapping windows: exact ones for convolutions, cross-faded ones for attention.

Which windows there are depends on lengths alone. Their values are NumPy arrays or arrays on a device: ``Rows``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

_Rows = TypeVar("_Rows")
_Number = TypeVar("_Number", int, "NDArray[np.int64]")


class Rows(Protocol[_Rows]):
    """What is done with the values (n, D) of windows, wherever they are."""

    def join(self, parts: Sequence[_Rows]) -> _Rows:
        """Consecutive rows as one array."""

    def kept(self, rows: _Rows) -> _Rows:
        """These rows alone, for longer than the array that they are a part of."""

    def fade(self, old: _Rows, fresh: _Rows) -> _Rows:
        """From the first to the second, linearly over their n rows."""


class NumpyRows:
    """``Rows`` of NumPy arrays."""

    def join(self, parts: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        return np.concatenate(parts)

    def kept(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        return rows.copy()

    def fade(self, old: NDArray[np.float32], fresh: NDArray[np.float32]) -> NDArray[np.float32]:
        ramp = ((np.arange(len(old), dtype=np.float32) + np.float32(0.5)) / np.float32(len(old)))[:, None]
        return old * (1 - ramp) + fresh * ramp


NUMPY_ROWS = NumpyRows()


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


def round_up(number: _Number, step: int) -> _Number:
    """To the next multiple of ``step``; an integer, or an array of them."""
    return -(-number // step) * step


def padded_windows(frames: int, size: int, reach: int) -> list[Window]:
    """Exact windows of ``size`` frames also over a sequence that is shorter, which is then padded at its end.

    Padding is not what a network sees past its input's end. So a window of the whole, padded, gives all but the last
    ``reach`` frames, and one of the last ``2 * reach``, which ends with the sequence, gives those. A sequence shorter
    than that is one window of its own length.
    """
    tail = 2 * reach
    if frames >= size or frames < tail:
        return exact_windows(frames, size, reach)
    return [Window(0, size, 0, frames - reach), Window(frames - tail, frames, frames - reach, frames)]


def two_windows(frames: int, size: int, reach: int) -> list[Window]:
    """Two exact windows of ``size`` frames: one begins with the sequence, the other ends with it.

    A sequence shorter than a window is padded: the first at its end, the other at its beginning, so that it starts
    before 0. Padding is not what a network sees past its input's ends, so ``reach`` frames beside it are not kept.

    Args:
        frames: Of the sequence; from ``2 * reach`` to ``2 * (size - reach)``.
        size: Of a window.
        reach: Frames to either side that an output depends on.
    """
    if not 2 * reach <= frames <= 2 * (size - reach):
        raise ValueError(f"{frames} frames do not fit two windows of {size} with a reach of {reach}")
    middle = min(frames, size) - reach
    return [Window(0, size, 0, middle), Window(frames - size, frames, middle, frames)]


@dataclass(frozen=True)
class WindowGroup:
    """Windows of one length, which run at once: of which sequence each is."""

    length: int
    windows: tuple[tuple[int, Window], ...]


def window_groups(windows: Sequence[Sequence[Window]]) -> list[WindowGroup]:
    """The windows of several sequences by their lengths, in the order in which these first occur."""
    by_length: dict[int, list[tuple[int, Window]]] = {}
    for index, of_one in enumerate(windows):
        for window in of_one:
            by_length.setdefault(window.stop - window.start, []).append((index, window))
    return [WindowGroup(length, tuple(group)) for length, group in by_length.items()]


def exact_pieces(
    windows: Sequence[Window], pieces: Iterator[tuple[int, _Rows]], rows: Rows[_Rows]
) -> Iterator[tuple[Window, _Rows]]:
    """Each window with its values (size, D), as soon as consecutive pieces of the sequence have brought them.

    Args:
        windows: Of ``exact_windows``.
        pieces: The first frame's number and the values (n, D), as ``crossfaded`` yields them.
        rows: What is done with values.
    """
    held: Any = None
    held_start = 0
    pending = iter(windows)
    window = next(pending)
    for _, piece in pieces:
        held = rows.join([held, piece]) if held is not None and len(held) else piece
        while held_start + len(held) >= window.stop:
            yield window, held[window.start - held_start : window.stop - held_start]
            following = next(pending, None)
            if following is None:
                break
            window = following
            held, held_start = held[window.start - held_start :], window.start


def sample_range(start: int, stop: int, frames: int, samples: int, hop: int, min_samples: int) -> tuple[int, int]:
    """The samples that frames ``start`` to ``stop`` of a waveform are computed from.

    The last frame's may be followed by samples that belong to no frame; GroupNorm counts them.
    """
    return start * hop, samples if stop == frames else (stop - 1) * hop + min_samples


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
    frames: int, size: int, overlap: int, compute: Callable[[int, int], _Rows], rows: Rows[_Rows]
) -> Iterator[tuple[int, _Rows]]:
    """Compute a long sequence in windows, fading from each window to the next in the middle of their overlap.

    The outer quarters of an overlap are dropped: there one of the two windows has little context. What is held is one
    window at a time and the part of it still to be faded.

    Args:
        frames: Length of the sequence.
        size: Of a window; more than ``overlap``.
        overlap: Frames that neighbouring windows share (the last two may share more).
        compute: Of (start, stop), the window's values (stop - start, D).
        rows: What is done with values.

    Yields:
        Consecutive pieces: the first frame's number, and the values (n, D).
    """
    if frames <= size:
        yield 0, compute(0, frames)
        return
    fade = max(1, overlap // 2)
    starts = [*range(0, frames - size, size - overlap), frames - size]
    done = 0
    held: Any = None  # the last window's values from frame `done` on, as far as they may be used
    for index, start in enumerate(starts):
        values: Any = compute(start, start + size)
        if index:
            # `held` ends with the fade, which this window's values enter.
            first = done + len(held) - fade
            faded = rows.fade(held[len(held) - fade :], values[first - start : first - start + fade])
            yield done, rows.join([held[: len(held) - fade], faded])
            done = first + fade
        if index + 1 < len(starts):
            shared_start, shared_stop = starts[index + 1], start + size
            fade_stop = (shared_start + shared_stop + fade) // 2
            held = rows.kept(values[done - start : fade_stop - start])
        else:
            yield done, values[done - start :]
