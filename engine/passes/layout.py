"""How a batch lies on a device: padded sizes, the vocoder's windows, and where each row of them comes from and goes.

All of it follows from the utterances' lengths and the sessions' buckets; no device is needed to know it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mkc_fast.engine.sessions.providers import most_frames
from mkc_fast.engine.windows import (
    Window,
    common_window,
    exact_windows,
    padded_windows,
    round_up,
    two_windows,
    window_groups,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mkc_fast.engine.artifacts import ModelInfo
    from mkc_fast.engine.options import Buckets
    from mkc_fast.engine.passes.shapes import Bucket

# Where sizes are free, as of graphs that are not those for CUDA, they are rounded up to multiples, so that neighbouring
# batches of a run, sorted by length, share their shapes: ONNX Runtime plans a convolution anew when its shape changes
# (see providers.cuda_options). 16 frames are 2.5 % of LibriSpeech's mean utterance. Not measured on a GPU.
FRAME_STEP = 16
WINDOW_STEP = 8  # windows in a batch, past twice as many
# In a batch all windows have one length of at most about so many frames, so that the vocoder runs once.
BATCH_WINDOW_FRAMES = 500


@dataclass(frozen=True)
class VocoderRun:
    """Windows of one length, computed at once.

    Attributes:
        length: Frames of each.
        count: How many, padding included.
        origins: (count * length,) int32, which row of the restored features each frame is; negative: zeros.
        kept: (n,) int32, the frames of the output that are kept.
        places: (n,) int32, where each of them goes among the utterances' frames, one utterance after the other.
        bound: Whether its shape is one of the bucket's; an utterance shorter than any of them has a shape of its own.
    """

    length: int
    count: int
    origins: NDArray[np.int32]
    kept: NDArray[np.int32]
    places: NDArray[np.int32]
    bound: bool = True


@dataclass(frozen=True)
class Layout:
    """A batch on a device.

    Attributes:
        rows: Utterances, padding included.
        frames: Of each, padding included.
        samples: Of each, padding included; they give ``frames`` frames.
        runs: Of the vocoder.
    """

    rows: int
    frames: int
    samples: int
    runs: tuple[VocoderRun, ...]


def window_frames(buckets: Buckets | None, info: ModelInfo) -> int:
    """The most frames of a window of the vocoder."""
    frames = max(BATCH_WINDOW_FRAMES if buckets is None else buckets.window_frames, 4 * info.vocoder_reach)
    return frames if buckets is None else min(frames, most_frames(buckets, info))


def lay_out(counts: Sequence[int], info: ModelInfo, buckets: Buckets | None = None) -> Layout:
    """The layout of utterances of so many frames each, within the buckets."""
    reach, most = info.vocoder_reach, window_frames(buckets, info)
    if buckets is None:
        frames = round_up(max(counts), FRAME_STEP)
        alone = len(counts) == 1 and counts[0] <= most
        size = counts[0] if alone else min(most, round_up(common_window(counts, most, reach), FRAME_STEP))
    else:
        frames, size = (most_frames(buckets, info) if buckets.fixed else max(counts)), most
    fixed = buckets is not None and buckets.fixed
    rows = buckets.max_batch if buckets is not None and buckets.fixed else len(counts)
    cut = padded_windows if fixed else exact_windows
    starts = np.concatenate([[0], np.cumsum(counts)])[:-1]
    runs = []
    for group in window_groups([cut(count, size, reach) for count in counts]):
        count, bound = len(group.windows), True
        if fixed and group.length == size:
            count = rows * len(exact_windows(frames, size, reach))
        elif fixed and group.length == 2 * reach:
            count = rows
        elif fixed:
            bound = False
        elif buckets is None and count > 2 * WINDOW_STEP:
            count = round_up(count, WINDOW_STEP)
        runs.append(_run(group.length, count, group.windows, counts, frames, starts, bound=bound))
    return Layout(rows, frames, frames * info.hop + info.min_samples - 1, tuple(runs))


def lay_out_in(bucket: Bucket, counts: Sequence[int], info: ModelInfo) -> Layout:
    """The layout of utterances of so many frames each in a bucket; all windows of the vocoder have one shape.

    An utterance shorter than twice the vocoder's reach is an exception: it runs alone, with its own length.
    """
    reach, (count, length) = info.vocoder_reach, bucket.window(info)
    starts = np.concatenate([[0], np.cumsum(counts)])[:-1]
    windows = [
        (index, window)
        for index, frames in enumerate(counts)
        if frames >= 2 * reach
        for window in two_windows(frames, length, reach)
    ]
    runs = [_run(length, count, windows, counts, bucket.frames, starts, bound=True)] if windows else []
    for index, frames in enumerate(counts):
        if frames < 2 * reach:
            alone = [(index, Window(0, frames, 0, frames))]
            runs.append(_run(frames, 1, alone, counts, bucket.frames, starts, bound=False))
    return Layout(bucket.rows, bucket.frames, bucket.frames * info.hop + info.min_samples - 1, tuple(runs))


def _run(
    length: int,
    count: int,
    windows: Sequence[tuple[int, Window]],
    counts: Sequence[int],
    frames: int,
    starts: NDArray[np.int64],
    *,
    bound: bool,
) -> VocoderRun:
    origins = np.full((count, length), -1, np.int32)
    kept, places = [], []
    for position, (utterance, window) in enumerate(windows):
        start, stop = max(0, window.start), min(window.stop, counts[utterance])
        origins[position, start - window.start : stop - window.start] = np.arange(start, stop) + utterance * frames
        kept.append(np.arange(window.keep_start, window.keep_stop) + position * length - window.start)
        places.append(np.arange(window.keep_start, window.keep_stop) + starts[utterance])
    return VocoderRun(
        length,
        count,
        origins.ravel(),
        np.concatenate(kept).astype(np.int32),
        np.concatenate(places).astype(np.int32),
        bound,
    )
