"""Audio files in and out: anything libsndfile reads becomes a mono float32 waveform, and 16-bit files are written."""

from __future__ import annotations

import io
import subprocess
from typing import TYPE_CHECKING

import numpy as np
import soundfile
import soxr

from mkc_fast import AudioError, WriteError
from mkc_fast.engine.files import whole_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray

    from mkc_fast.engine.lists import Utterance

FORMATS = ("wav", "flac")
_BLOCK_SAMPLES = 1 << 18
_COMMAND_TIMEOUT_S = 600
# Their frame counts are estimates, so that fewer decoded samples do not mean damage.
_ESTIMATED_LENGTH = frozenset({"MP3"})


def read_waveform(
    path: Path, sample_rate: int, min_samples: int = 1, *, begin_s: float = 0.0, end_s: float | None = None
) -> NDArray[np.float32]:
    """Read a recording, or a part of one, as one channel (the mean of all) at ``sample_rate``.

    The file is decoded in blocks, so that a header that promises more than the file holds costs no memory.

    Returns:
        (S,) float32.

    Raises:
        AudioError: The file is missing, unreadable, truncated, shorter than ``min_samples``, or not finite.
    """
    if not path.is_file():
        raise AudioError(f"{path}: no such file" if not path.exists() else f"{path}: not a file")
    return _read(path, str(path), sample_rate, min_samples, begin_s, end_s)


def read_utterance(utterance: Utterance, sample_rate: int, min_samples: int) -> NDArray[np.float32]:
    """``read_waveform`` of an utterance: its file, its part of a file, or what its command prints.

    Raises:
        AudioError: As ``read_waveform``, or the command fails or takes longer than 10 minutes.
    """
    if utterance.command is None:
        return read_waveform(utterance.path, sample_rate, min_samples, begin_s=utterance.begin_s, end_s=utterance.end_s)
    shown = f"{utterance.path} |"
    try:
        run = subprocess.run(  # noqa: S602 - a Kaldi list's own command, run only where the user allowed it
            utterance.command, shell=True, capture_output=True, timeout=_COMMAND_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise AudioError(f"{shown}: took longer than {_COMMAND_TIMEOUT_S} s") from None
    if run.returncode:
        said = " ".join(run.stderr.decode(errors="replace").split())[-120:]
        raise AudioError(f"{shown}: exit code {run.returncode} ({said})")
    return _read(io.BytesIO(run.stdout), shown, sample_rate, min_samples, utterance.begin_s, utterance.end_s)


def duration_s(utterance: Utterance) -> float:
    """Seconds of an utterance, from its header; 0 where that cannot be told without reading it all."""
    if utterance.end_s is not None:
        return max(0.0, utterance.end_s - utterance.begin_s)
    if utterance.command is not None:
        return 0.0
    try:
        info = soundfile.info(utterance.path)
    except (soundfile.SoundFileError, OSError, RuntimeError, ValueError):
        return 0.0
    # A header may claim anything; a file of so many bytes holds no more than this at a bit a sample.
    claimed: float = info.frames / max(1, info.samplerate)
    return max(0.0, min(claimed, utterance.path.stat().st_size * 8.0 / 1000) - utterance.begin_s)


def _read(
    source: Path | io.BytesIO, shown: str, sample_rate: int, min_samples: int, begin_s: float, end_s: float | None
) -> NDArray[np.float32]:
    try:
        with soundfile.SoundFile(source) as file:
            blocks = list(_decoded(file, shown, sample_rate, begin_s, end_s))
    except (soundfile.SoundFileError, OSError, RuntimeError, ValueError, MemoryError) as error:
        if isinstance(error, AudioError):
            raise
        reason = getattr(error, "error_string", None) or str(error) or type(error).__name__
        raise AudioError(f"{shown}: not readable as audio ({' '.join(reason.split())[:120]})") from None
    waveform = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    try:
        return check_waveform(waveform, min_samples)
    except AudioError as error:
        raise AudioError(f"{shown}: {error}") from None


def _decoded(
    file: soundfile.SoundFile, shown: str, sample_rate: int, begin_s: float, end_s: float | None
) -> Iterator[NDArray[np.float32]]:
    """Blocks of one channel at ``sample_rate``."""
    rate = file.samplerate
    begin, end = round(begin_s * rate), None if end_s is None else round(end_s * rate)
    if begin:
        if begin >= file.frames:
            raise AudioError(f"{shown}: begins at {begin_s:g} s, the recording has {file.frames / rate:g} s")
        file.seek(begin)
    resample = soxr.ResampleStream(rate, sample_rate, 1) if rate != sample_rate else None
    position = begin
    while end is None or position < end:
        count = _BLOCK_SAMPLES if end is None else min(_BLOCK_SAMPLES, end - position)
        block = file.read(count, dtype="float32", always_2d=True)
        if not len(block):
            break
        position += len(block)
        mono = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float32)
        yield resample.resample_chunk(mono) if resample else mono
    if resample:
        yield resample.resample_chunk(np.zeros(0, np.float32), last=True)
    if end is None and position < file.frames and file.format not in _ESTIMATED_LENGTH:
        raise AudioError(f"{shown}: truncated: {position} of {file.frames} samples can be read")


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
    scaled: NDArray[np.float32] = np.clip(np.rint(waveform * np.float32(32768)), -32768, 32767)
    return scaled.astype(np.int16)


def write_waveform(path: Path, waveform: NDArray[np.float32], sample_rate: int) -> int:
    """Write (S,) float32 in [-1, 1] as 16-bit PCM, WAV or FLAC by the name's ending; it appears whole or not at all.

    Returns:
        The file's size in bytes.

    Raises:
        WriteError: It cannot be written.
    """
    # Encoded in memory first: a full disk then shows as the error that it is, whatever the encoder makes of it.
    encoded = io.BytesIO()
    soundfile.write(encoded, to_pcm16(waveform), sample_rate, subtype="PCM_16", format=path.suffix[1:].upper())
    try:
        with whole_file(path) as temporary:
            temporary.write_bytes(encoded.getbuffer())
    except OSError as error:
        raise WriteError(f"{path}: cannot be written ({error.strerror})") from None
    return encoded.getbuffer().nbytes
