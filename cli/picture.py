"""The demo's picture: waveform and spectrogram before and after, and the bank entry of each frame."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mkc_fast.names import AUDIO, FRAME

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from mkc_fast.engine.anonymizer import Result
    from mkc_fast.engine.artifacts import ModelInfo

_INK, _FRAME, _AUDIO = "#22313f", "#c0392b", "#2471a3"


def draw(
    path: Path, waveform: NDArray[np.float32], results: Mapping[str, Result], info: ModelInfo, num_entries: int
) -> None:
    """Draw a waveform (S,) and what ``frame`` and ``audio`` mode made of it into a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    columns = {"original": waveform, "frame mode": results[FRAME].waveform, "audio mode": results[AUDIO].waveform}
    axes = figure.subplots(3, 3, sharex=True, sharey="row", height_ratios=[1, 1.6, 1.3])
    for column, (title, samples) in enumerate(columns.items()):
        seconds = np.arange(len(samples)) / info.sample_rate
        top, middle, bottom = axes[:, column]
        top.plot(seconds, samples, linewidth=0.3, color=_INK)
        top.set_title(title)
        top.set_ylim(-1, 1)
        # A sample of silence would be minus infinity decibels.
        middle.specgram(samples + 1e-6, NFFT=400, noverlap=240, Fs=info.sample_rate, cmap="magma", vmin=-120, vmax=-20)
        bottom.set_xlabel("seconds")
        top.set_xlim(0, len(waveform) / info.sample_rate)
    axes[0, 0].set_ylabel("waveform")
    axes[1, 0].set_ylabel("Hz")
    axes[2, 0].set_ylabel("bank entry of each frame")
    axes[2, 0].set_ylim(-1, num_entries)
    axes[2, 0].text(0.5, 0.5, "none", transform=axes[2, 0].transAxes, ha="center", va="center", color=_INK)
    for column, mode, color in ((1, FRAME, _FRAME), (2, AUDIO, _AUDIO)):
        ids = results[mode].bank_ids
        axes[2, column].plot(np.arange(len(ids)) * info.hop / info.sample_rate, ids, ".", markersize=3, color=color)
    figure.suptitle("mkc-fast demo: random weights make noise, not speech", color=_INK)
    figure.savefig(path, dpi=110)
