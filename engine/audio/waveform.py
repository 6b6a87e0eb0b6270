"""Checks and converts waveforms: their type, length, scale and rate, and 16-bit samples."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import soxr

from mkc_fast.errors import ArgumentError, AudioError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

# Full scale. Resampling and lossy decoders exceed it a little with loud recordings; the warning is one line a run.
LOUD_PEAK = 1.0
# No recording in [-1, 1] is so loud; 16-bit values that were not scaled are, as soon as somebody speaks.
MAX_PEAK = 8.0
# Below this rate (Hz) no speech is left, and resampling multiplies the samples: at 1 Hz, one block would have 17 GB.
LEAST_RATE = 1000
_MOST_RATE = (1 << 31) - 1
NOT_FINITE = "holds samples that are not finite"
_SCALE = 32768


def check_waveform(waveform: ArrayLike, min_samples: int) -> NDArray[np.float32]:
    """A waveform (S,) as contiguous, aligned float32; 16-bit integers are scaled by 1/32768.

    Raises:
        AudioError: It is not one-dimensional, neither float nor int16, shorter than ``min_samples``, not finite, or of
            another scale: with a peak above 8.
    """
    array = np.asarray(waveform)
    is_pcm16 = array.dtype.kind == "i" and array.dtype.itemsize == 2
    if array.ndim != 1 or not (array.dtype.kind == "f" or is_pcm16 or not array.size):
        raise AudioError(
            f"waveform has shape {array.shape} and type {array.dtype}; expected (S,) float in [-1, 1], or int16, which "
            "is scaled by 1/32768"
        )
    if len(array) < min_samples:
        raise AudioError(f"too short: {len(array)} samples, at least {min_samples} are needed")
    with np.errstate(over="ignore"):
        checked: NDArray[np.float32] = np.require(array, np.float32, ["C", "A"])
    if is_pcm16:
        checked = checked / np.float32(_SCALE)
    check_peak(absolute_peak(checked))
    return checked


def absolute_peak(waveform: NDArray[np.float32]) -> float:
    """The largest absolute value of a waveform (S,); NaN if a sample is NaN, 0 of none."""
    # Two passes without a copy; both give NaN where there is one.
    return max(float(waveform.max()), -float(waveform.min())) if len(waveform) else 0.0


def check_peak(peak: float) -> None:
    """Check the largest absolute value of a waveform.

    Raises:
        AudioError: It is not finite, or above 8.
    """
    if not math.isfinite(peak):
        raise AudioError(NOT_FINITE)
    if peak > MAX_PEAK:
        raise AudioError(
            f"peaks at {peak:.6g}, samples are expected in [-1, 1]; if these are 16-bit values, divide them by "
            f"{_SCALE} or pass int16 (of a file: write it again as 16-bit PCM)"
        )


def resampled(waveform: NDArray[np.float32], rate: object, sample_rate: int) -> NDArray[np.float32]:
    """A waveform (S,) at another sample rate, resampled as files are: (S * sample_rate / rate,) float32, rounded.

    Raises:
        ArgumentError: The rate is not a number of Hz from 1000 up.
    """
    is_number = isinstance(rate, (int, float, np.integer, np.floating)) and not isinstance(rate, bool)
    if not is_number or not LEAST_RATE <= rate <= _MOST_RATE:  # type: ignore[operator]
        raise ArgumentError(f"sample_rate is {rate!r}; expected a number of Hz from {LEAST_RATE} up")
    hertz = float(rate)  # type: ignore[arg-type]
    if hertz == sample_rate:
        return waveform
    made: NDArray[np.float32] = soxr.resample(waveform, hertz, sample_rate)
    return made


def to_pcm16(waveform: NDArray[np.float32]) -> NDArray[np.int16]:
    """Samples in [-1, 1] as 16-bit integers: rounded to the nearest of 1/32768, full scale clipped.

    Raises:
        AudioError: A sample is not finite; as an integer it would be silence or noise.
    """
    if not math.isfinite(absolute_peak(waveform)):
        raise AudioError(NOT_FINITE)
    scaled: NDArray[np.float32] = waveform * np.float32(_SCALE)
    np.clip(np.rint(scaled, out=scaled), -_SCALE, _SCALE - 1, out=scaled)
    return scaled.astype(np.int16)
