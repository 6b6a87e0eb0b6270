"""The pitch of speech, and how much of its course two recordings share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mkc_fast.evaluation.models import ModelFacts, model_files, package_version, packaged

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_NETWORK = ("swift_f0", "model.onnx")
_HOP = 256  # samples
_AT_ONCE, _REACH = 1875, 11  # frames that run together, and how many to either side the network hears
_SILENT = 1e-3
_LOWEST_HZ, _HIGHEST_HZ = 50.0, 600.0
_VOICED = 0.5  # the confidence from which on a frame has a pitch
_LEAST_FRAMES = 10  # 0.16 s: a correlation of fewer says nothing
_SAME_FRAMES = 2  # lengths that differ by no more than outputs of mkc-fast differ from their inputs


@dataclass(frozen=True)
class SwiftF0:
    """SwiftF0 (arXiv 2508.18440): a waveform → Hz of each frame of 16 ms, (F,) float32, 0 where it is not voiced."""

    def facts(self) -> ModelFacts:
        """The package and the network's file."""
        return ModelFacts("SwiftF0", package_version("swift-f0"), model_files([packaged(*_NETWORK)]))

    def open(self) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
        """Open the network on the CPU."""
        from mkc_fast.onnx_runtime import ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        session = ort.InferenceSession(str(packaged(*_NETWORK)), options, providers=["CPUExecutionProvider"])
        bounds = {"fmin": np.array(_LOWEST_HZ, np.float32), "fmax": np.array(_HIGHEST_HZ, np.float32)}

        def track(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
            found = []
            frames = max(1, len(waveform) // _HOP)
            for begin in range(0, frames, _AT_ONCE):
                end = min(begin + _AT_ONCE, frames)
                first = max(0, begin - _REACH)
                part = waveform[first * _HOP : (end + _REACH) * _HOP if end < frames else None]
                hertz, confidence = session.run(["pitch", "confidence"], {"audio": part[None, :], **bounds})
                voiced = np.asarray(confidence[0]) >= _VOICED
                found.append(np.where(voiced, hertz[0], 0)[begin - first : end - first])
            pitch = np.concatenate(found).astype(np.float32)
            whole = waveform[: len(pitch) * _HOP].reshape(len(pitch), -1)
            pitch[np.abs(whole).max(axis=1) < _SILENT] = 0  # of digital silence the network knows nothing
            return pitch

        return track


@dataclass(frozen=True)
class PitchPair:
    """The pitch of a recording beside that of its original.

    Attributes:
        correlation: Of the logarithms of both, over the frames that are voiced in both, -1 to 1; None of fewer than 10
            such frames, or where one of the two is constant.
        semitones: By how much it is higher, the median over these frames; None of fewer than 10.
        same_voicing: The share of frames that are voiced in both or in neither.
    """

    correlation: float | None
    semitones: float | None
    same_voicing: float


def compare(original: NDArray[np.float32], anonymized: NDArray[np.float32]) -> PitchPair:
    """Compare two courses of pitch.

    If their lengths differ by more than two frames, that of the anonymized recording is stretched evenly to that of the
    original: a frame is compared with the one at the same share of the length.

    Args:
        original: Hz of each frame, (F,), 0 where it is not voiced.
        anonymized: The same, (G,).
    """
    if abs(len(original) - len(anonymized)) > _SAME_FRAMES:
        places = (np.arange(len(original)) + 0.5) * len(anonymized) / len(original)
        anonymized = anonymized[np.minimum(places.astype(np.int64), len(anonymized) - 1)]
    frames = min(len(original), len(anonymized))
    first, second = original[:frames], anonymized[:frames]
    same = float(np.mean((first > 0) == (second > 0)))
    both = (first > 0) & (second > 0)
    if np.count_nonzero(both) < _LEAST_FRAMES:
        return PitchPair(None, None, same)
    low, high = np.log2(first[both].astype(np.float64)), np.log2(second[both].astype(np.float64))
    semitones = float(np.median(12 * (high - low)))
    if not np.ptp(low) or not np.ptp(high):
        return PitchPair(None, semitones, same)
    return PitchPair(float(np.corrcoef(low, high)[0, 1]), semitones, same)
