"""The demos' picture: spectrograms, in which words stay and the voice changes, and the bank entry of each frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mkc_fast.names import AUDIO, FRAME
from mkc_fast.pages.pictures import BLUE, GREY, INK, VERMILION, picture

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from mkc_fast.engine.anonymizer import Result
    from mkc_fast.engine.artifacts import ModelInfo

# Windows of 8 ms show formants, and so phones; windows of 64 ms show harmonics, and so the pitch.
_WIDE_S, _NARROW_S, _STEP_S = 0.008, 0.064, 0.004
_NARROW_HZ = 800.0
_RANGE_DB = 65.0


@dataclass(frozen=True)
class _Shown:
    title: str
    waveform: NDArray[np.float32]
    results: Mapping[str, Result]
    info: ModelInfo
    num_entries: int


def draw(
    title: str, waveform: NDArray[np.float32], results: Mapping[str, Result], info: ModelInfo, num_entries: int
) -> bytes:
    """Draw a waveform (S,) and what ``audio`` and ``frame`` mode made of it; PNG bytes."""
    return picture(_paint, _Shown(title, waveform, results, info, num_entries), 6.6)


def _paint(figure: Figure, shown: _Shown) -> None:
    columns = {"original": shown.waveform} | {f"{mode} mode": shown.results[mode].waveform for mode in (AUDIO, FRAME)}
    rate, hop = shown.info.sample_rate, shown.info.hop
    axes = figure.subplots(3, 3, sharex=True, sharey="row", height_ratios=[1.2, 1.2, 0.9])
    for column, (title, samples) in enumerate(columns.items()):
        wide, narrow, entries = axes[:, column]
        wide.set_title(title)
        _spectrogram(wide, samples, rate, _WIDE_S)
        _spectrogram(narrow, samples, rate, _NARROW_S)
        narrow.set_ylim(0, min(_NARROW_HZ, rate / 2))
        entries.set_xlabel("seconds")
        entries.set_xlim(0, len(shown.waveform) / rate)
    axes[0, 0].set_ylabel("what is said\nHz, short windows")
    axes[1, 0].set_ylabel("the voice: harmonics\nHz, long windows")
    axes[2, 0].set_ylabel("k-means model\nof each frame")
    axes[2, 0].set_ylim(-1, shown.num_entries)
    axes[2, 0].text(0.5, 0.5, "none", transform=axes[2, 0].transAxes, ha="center", va="center", color=GREY)
    for column, mode, color in ((1, AUDIO, BLUE), (2, FRAME, VERMILION)):
        ids = shown.results[mode].bank_ids
        axes[2, column].plot(np.arange(len(ids)) * hop / rate, ids, ".", markersize=2, color=color)
    figure.suptitle(shown.title, color=INK)


def _spectrogram(axes: object, samples: NDArray[np.float32], rate: int, window_s: float) -> None:
    window, step = round(window_s * rate), round(_STEP_S * rate)
    size = max(1024, window)
    padded = np.pad(samples.astype(np.float64), window // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::step] * np.hanning(window)
    decibels = 20 * np.log10(np.abs(np.fft.rfft(frames, size)).T + 1e-6)
    top = decibels.max()
    extent = (0, len(samples) / rate, 0, rate / 2)
    axes.imshow(  # type: ignore[attr-defined]
        decibels, cmap="magma", vmin=top - _RANGE_DB, vmax=top, origin="lower", aspect="auto", extent=extent
    )
