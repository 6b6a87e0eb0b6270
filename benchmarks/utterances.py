"""Recordings to benchmark with: lengths as LibriSpeech has them, cut from a given piece of speech."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mkc_fast.engine.audio.write import write_waveform
from mkc_fast.engine.datasets.dataset import Utterance
from mkc_fast.errors import MkcError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

MEAN_S, SHORTEST_S, LONGEST_S = 12.6, 1.0, 35.0
# train-clean-360: 104,014 files, 363.6 h, so 12.6 s each (Panayotov et al. 2015). Its segments were cut at silences to
# be at most 35 s long and most ended near 15 s. The mixture below is drawn to that description, not fitted to files:
# a third spread evenly below the peak, most of the rest at the peak, a few beyond; its mean is 12.6 s.
_PARTS = ((0.35, "uniform", 1.0, 12.4), (0.60, "normal", 15.0, 1.3), (0.05, "uniform", 17.0, 35.0))
DISTRIBUTION = "0.35 U(1, 12.4) + 0.60 N(15, 1.3) + 0.05 U(17, 35) seconds, within 1 and 35"
_CANDIDATES = 200


def quantiles(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """The lengths in seconds below which these shares (n,) of the utterances lie."""
    from math import erf

    grid = np.linspace(SHORTEST_S, LONGEST_S, 3401)
    below = np.zeros_like(grid)
    for weight, kind, first, second in _PARTS:
        if kind == "uniform":
            part = np.clip((grid - first) / (second - first), 0, 1)
        else:
            part = np.array([0.5 + 0.5 * erf((value - first) / (second * 2**0.5)) for value in grid])
        below += weight * part
    return np.interp(shares, below, grid)


def draw_lengths(count: int, seed: int = 7) -> list[float]:
    """Lengths in seconds of so many utterances, in random order: the same for the same seed.

    Stratified, one from each of ``count`` equal shares of the distribution, so that a few utterances already stand for
    the whole; of many such draws the one whose mean is nearest to 12.6 s.

    Raises:
        MkcError: The count is not positive.
    """
    if count < 1:
        raise MkcError(f"{count} utterances cannot be drawn")
    rng = np.random.default_rng(seed)
    best = min(
        (quantiles((np.arange(count) + rng.random(count)) / count) for _ in range(_CANDIDATES)),
        key=lambda lengths: abs(float(lengths.mean()) - MEAN_S),
    )
    return [round(float(length), 2) for length in rng.permutation(best)]


def count_for(seconds_of_audio: float, least: int = 2, most: int = 2000) -> int:
    """How many utterances have about so much audio in all."""
    return int(min(most, max(least, seconds_of_audio / MEAN_S)))


def cut(speech: NDArray[np.float32], length_s: float, sample_rate: int, seed: int) -> NDArray[np.float32]:
    """A piece of speech (S,) from a random place on, which begins anew where the speech ends."""
    start = int(np.random.default_rng(seed).integers(len(speech)))
    return speech.take(start + np.arange(round(length_s * sample_rate)), mode="wrap")


def write_corpus(
    folder: Path, speech: NDArray[np.float32], lengths_s: Sequence[float], sample_rate: int
) -> list[Utterance]:
    """Write FLAC files of these lengths, and return them as utterances."""
    folder.mkdir(parents=True, exist_ok=True)
    utterances = []
    for index, length_s in enumerate(lengths_s):
        path = folder / f"u{index:05d}.flac"
        write_waveform(path, cut(speech, length_s, sample_rate, index), sample_rate)
        utterances.append(Utterance(path.stem, path))
    return utterances
