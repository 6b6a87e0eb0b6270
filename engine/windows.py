"""Cuts a sequence of frames into windows that overlap enough to be computed apart and put together again exactly."""

from __future__ import annotations

from dataclasses import dataclass


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
