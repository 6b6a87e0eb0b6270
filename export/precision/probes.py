"""Inputs on which exported graphs are judged: those of the pass, noise, quiet and loud inputs, outlier channels.

Each stage is judged on what the stages before it make of real speech, and on synthetic inputs around that. A kind of
input has utterances of several lengths, one of the shortest that has a frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import as_file, files
from typing import TYPE_CHECKING

import numpy as np

from mkc_fast.engine.audio.read import read_waveform

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mkc_fast.engine.artifacts import ModelInfo

# Frames of the utterances of real speech, and of the other kinds. The first is long enough for the pieces of the
# vocoder that CPUs use; more would cost more time in float64 and find nothing else.
_SPEECH_FRAMES = (60, 15, 3, 1)
_OTHER_FRAMES = (40, 3, 1)
_CLIP_RATE = 16000
# A recording at -60 dB, and one that is clipped.
_QUIET, _LOUD = 1e-3, 20.0
_NOISE = 0.1
# Below the last bit of 16: what a noise gate leaves.
_NEARLY_SILENT = 1e-5
# Features of WavLM models have a few channels that are tens of times as large as the others.
_OUTLIERS = (10.0, 30.0, 60.0, 100.0)
# The layer norms before it fix how loud features are; more would saturate the waveform, and little could be compared.
_LOUD_FEATURES = 3.0
# The stand-in for a bank: entries, and the share of the frames that are first centroids of an entry.
_ENTRIES, _SHARE = 4, 0.4


@dataclass(frozen=True)
class Probe:
    """Inputs of one kind.

    Attributes:
        kind: What they are, in one or two words.
        level: "ordinary", "quiet" or "loud", as outlier channels are: rounding errors of one level are of one size.
        rows: Utterances: waveforms (S,) or features (T, D), float32.
        of_pass: Whether these are inputs that speech causes; the others are there to find defects.
    """

    kind: str
    level: str
    rows: tuple[NDArray[np.float32], ...]
    of_pass: bool


def waveform_probes(info: ModelInfo) -> list[Probe]:
    """What WavLM is judged on. A model's rate makes no difference: the speech is taken as if it had that rate."""
    with as_file(files("mkc_fast.cli") / "demo_speech.flac") as path:
        clip = read_waveform(path, _CLIP_RATE)
    rng = np.random.default_rng(0)

    def cut(wave: NDArray[np.float32], counts: Sequence[int]) -> tuple[NDArray[np.float32], ...]:
        return tuple(_cut(wave, count, index, info) for index, count in enumerate(counts))

    def noise(scale: float) -> NDArray[np.float32]:
        return (rng.standard_normal(len(clip)) * scale).astype(np.float32)

    gated = noise(_NEARLY_SILENT)
    gated[::2] = 0.0
    gated[: 12 * info.hop] = 0.0  # digital silence
    return [
        Probe("speech", "ordinary", cut(clip, _SPEECH_FRAMES), of_pass=True),
        Probe("quiet speech", "quiet", cut(clip * np.float32(_QUIET), _OTHER_FRAMES), of_pass=True),
        Probe("loud speech", "loud", cut(np.clip(clip * np.float32(_LOUD), -1.0, 1.0), _OTHER_FRAMES), of_pass=True),
        Probe("noise", "ordinary", cut(noise(_NOISE), _OTHER_FRAMES), of_pass=False),
        Probe("near silence", "quiet", cut(gated, _OTHER_FRAMES), of_pass=False),
    ]


def _cut(wave: NDArray[np.float32], frames: int, index: int, info: ModelInfo) -> NDArray[np.float32]:
    """So many frames from the middle of a recording, with a few samples over that make no further frame."""
    over = (11, info.hop - 1, 0, 0)[index] % info.hop
    samples = info.min_samples + (frames - 1) * info.hop + over
    start = len(wave) // 3
    return np.resize(wave[start:], samples)  # repeated where a frame has very many samples


def feature_probes(rows: Sequence[NDArray[np.float32]]) -> list[Probe]:
    """What the conformer, or the vocoder, is judged on: features (T, D) of the pass, and others around them."""
    rng = np.random.default_rng(1)
    whole = np.concatenate(rows)
    rms, dim = float(np.sqrt(np.square(whole, dtype=np.float64).mean())), whole.shape[1]
    gain = np.ones(dim, np.float32)
    gain[rng.permutation(dim)[: len(_OUTLIERS)]] = _OUTLIERS[: min(dim, len(_OUTLIERS))]
    short = [rows[0][:count] for count in _OTHER_FRAMES]
    noise = [rng.standard_normal(row.shape, np.float32) * np.float32(rms) for row in short]
    return [
        Probe("speech", "ordinary", tuple(rows), of_pass=True),
        Probe("noise", "ordinary", tuple(noise), of_pass=False),
        Probe("quiet features", "quiet", tuple(row * np.float32(_QUIET) for row in short), of_pass=False),
        Probe("loud features", "loud", tuple(row * np.float32(_LOUD_FEATURES) for row in short), of_pass=False),
        Probe("outlier channels", "loud", tuple(row * gain for row in short), of_pass=False),
    ]


def quantized(rows: Sequence[NDArray[np.float32]], others: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """Features as a bank would quantize them, without one: (T, D) each → (T, D) each.

    ``others`` are all features that entries are made of.

    At export there is no bank. Its effect is that every frame becomes the nearest centroid of an entry drawn for that
    frame, and that a centroid is the mean of many frames. So a few entries are made of the features themselves: some
    frames, drawn at random, are the first centroids, and one step of k-means makes means of them.
    """
    rng = np.random.default_rng(2)
    whole = np.concatenate(others)
    count = max(1, int(_SHARE * len(whole)))
    entries = []
    for _ in range(_ENTRIES):
        seeds = whole[rng.permutation(len(whole))[:count]]
        nearest = _nearest(whole, seeds)
        entries.append(np.stack([whole[nearest == index].mean(0) for index in np.unique(nearest)]))
    results = []
    for row in rows:
        drawn = rng.integers(_ENTRIES, size=len(row))
        choices = np.stack([entry[_nearest(row, entry)] for entry in entries])
        results.append(choices[drawn, np.arange(len(row))])
    return results


def _nearest(frames: NDArray[np.float32], centroids: NDArray[np.float32]) -> NDArray[np.int64]:
    half_norms = np.square(centroids, dtype=np.float64).sum(1) / 2
    nearest: NDArray[np.int64] = (frames.astype(np.float64) @ centroids.T.astype(np.float64) - half_norms).argmax(1)
    return nearest
