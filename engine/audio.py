"""Audio files in and out: anything libsndfile reads becomes a mono float32 waveform, and 16-bit files are written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import soundfile
import soxr

from mkc_fast import AudioError, OutputError
from mkc_fast.engine.files import whole_file

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray

FORMATS = ("wav", "flac")
_BLOCK_SAMPLES = 1 << 18
# Their frame counts are estimates, so that fewer decoded samples do not mean damage.
_ESTIMATED_LENGTH = frozenset({"MP3"})


def read_waveform(path: Path, sample_rate: int, min_samples: int = 1) -> NDArray[np.float32]:
    """Read a recording as one channel (the mean of all) at ``sample_rate``.

    The file is decoded in blocks, so that a header that promises more than the file holds costs no memory.

    Returns:
        (S,) float32.

    Raises:
        AudioError: The file is missing, unreadable, truncated, shorter than ``min_samples``, or not finite.
    """
    if not path.is_file():
        raise AudioError(f"{path}: no such file" if not path.exists() else f"{path}: not a file")
    try:
        with soundfile.SoundFile(path) as file:
            resample = soxr.ResampleStream(file.samplerate, sample_rate, 1) if file.samplerate != sample_rate else None
            blocks: list[NDArray[np.float32]] = []
            decoded = 0
            while len(block := file.read(_BLOCK_SAMPLES, dtype="float32", always_2d=True)):
                decoded += len(block)
                mono = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float32)
                blocks.append(resample.resample_chunk(mono) if resample else mono)
            if resample:
                blocks.append(resample.resample_chunk(np.zeros(0, np.float32), last=True))
            if decoded < file.frames and file.format not in _ESTIMATED_LENGTH:
                raise AudioError(f"{path}: truncated: {decoded} of {file.frames} samples can be read")
    except (soundfile.SoundFileError, OSError, RuntimeError, ValueError, MemoryError) as error:
        if isinstance(error, AudioError):
            raise
        reason = getattr(error, "error_string", None) or str(error) or type(error).__name__
        raise AudioError(f"{path}: not readable as audio ({' '.join(reason.split())[:120]})") from None
    waveform = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    try:
        return check_waveform(waveform, min_samples)
    except AudioError as error:
        raise AudioError(f"{path}: {error}") from None


def check_waveform(waveform: ArrayLike, min_samples: int) -> NDArray[np.float32]:
    """A waveform (S,) as contiguous float32.

    Raises:
        AudioError: It is not one-dimensional, not float, shorter than ``min_samples``, or not finite.
    """
    array = np.asarray(waveform)
    if array.ndim != 1 or array.dtype.kind != "f":
        raise AudioError(f"waveform has shape {array.shape} and type {array.dtype}; expected (S,) float32 in [-1, 1]")
    if len(array) < min_samples:
        raise AudioError(f"too short: {len(array)} samples, at least {min_samples} are needed")
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(array).all():
        raise AudioError("holds samples that are not finite")
    return array


def to_pcm16(waveform: NDArray[np.float32]) -> NDArray[np.int16]:
    """Samples in [-1, 1] as 16-bit integers: rounded to the nearest of 1/32768, full scale clipped."""
    return np.clip(np.rint(waveform * np.float32(32768)), -32768, 32767).astype(np.int16)


def write_waveform(path: Path, waveform: NDArray[np.float32], sample_rate: int) -> None:
    """Write (S,) float32 in [-1, 1] as 16-bit PCM, WAV or FLAC by the name's ending; it appears whole or not at all.

    Raises:
        OutputError: It cannot be written.
    """
    try:
        with whole_file(path) as temporary:
            soundfile.write(
                temporary, to_pcm16(waveform), sample_rate, subtype="PCM_16", format=path.suffix[1:].upper()
            )
    except (soundfile.SoundFileError, OSError) as error:
        reason = getattr(error, "strerror", None) or getattr(error, "error_string", None) or str(error)
        raise OutputError(f"{path}: cannot be written ({reason})") from None
