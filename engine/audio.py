"""Audio files in and out: anything libsndfile reads becomes a mono float32 waveform, and 16-bit files are written."""

from __future__ import annotations

import io
import os
import stat
import subprocess
from typing import TYPE_CHECKING

import numpy as np
import soundfile
import soxr

from mkc_fast import AudioError, WriteError
from mkc_fast.engine.batching import DEFAULT_WINDOW_S
from mkc_fast.engine.files import whole_file
from mkc_fast.engine.headers import HEAD_BYTES, length_s
from mkc_fast.text import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray

    from mkc_fast.engine.lists import Utterance

FORMATS = ("wav", "flac")
_BLOCK_SAMPLES = 1 << 18  # of all channels together
# A day at 16 kHz is 5.5 GB; a WAV file of it ends at 37 h. What claims more is damaged or hostile.
_LONGEST_S = 24 * 3600
_TOO_LONG = "longer than 24 h; cut it into parts (segments of a data directory)"
# What segments say may be a little longer than the recording, as in Kaldi's extract-segments; beyond that they are not
# of this recording.
_MAX_OVERSHOOT_S = 0.5
_LARGEST_S = 1e9
# Below this no speech is left, and each sample would become many: at 1 Hz, one block would be 17 GB.
_LEAST_RATE = 1000
COMMAND_TIMEOUT_S = 600
# Their frame counts are estimates, so that fewer decoded samples do not mean damage.
_ESTIMATED_LENGTH = frozenset({"MP3"})
_UNKNOWN_FRAMES = 1 << 62  # libsndfile's count for a stream that does not say
# What soundfile raises: TypeError for headerless files (.raw), OverflowError for positions past 64 bits.
_NOT_READABLE = (soundfile.SoundFileError, OSError, RuntimeError, ValueError, TypeError, OverflowError, MemoryError)


class _Forward(soundfile.SoundFile):  # type: ignore[misc]
    """Reads on and on: soundfile would seek after each block, which fails at the end of a FLAC stream."""

    def seekable(self) -> bool:
        return False


def read_waveform(
    path: Path, sample_rate: int, min_samples: int = 1, *, begin_s: float = 0.0, end_s: float | None = None
) -> NDArray[np.float32]:
    """Read a recording, or a part of one, as one channel (the mean of all) at ``sample_rate``.

    The file is decoded in blocks, so that a header that promises more than the file holds costs no memory.

    Returns:
        (S,) float32.

    Raises:
        AudioError: The file is missing, unreadable, truncated, shorter than ``min_samples``, longer than a day, of a
            sample rate below 1 kHz, or not finite; or it ends more than half a second before ``end_s``.
    """
    try:
        regular = _is_regular(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a name that no file can have
        raise AudioError(f"{path}: no such file") from None
    except OSError as error:
        raise AudioError(f"{path}: cannot be read ({error.strerror})") from None
    if not regular:
        raise AudioError(f"{path}: not a file")
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
            utterance.command, shell=True, capture_output=True, timeout=COMMAND_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise AudioError(f"{shown}: took longer than {COMMAND_TIMEOUT_S} s") from None
    if run.returncode:
        said = one_line(run.stderr.decode(errors="replace")[-120:])
        raise AudioError(f"{shown}: exit code {run.returncode} ({said})")
    return _read(io.BytesIO(run.stdout), shown, sample_rate, min_samples, utterance.begin_s, utterance.end_s)


def duration_s(utterance: Utterance) -> float:
    """Seconds of an utterance, from its header; 0 if it cannot be read, and those of a window for a command's output.

    What a command prints is not known before it has run. Longer recordings than a window run alone, so that a batch of
    commands keeps to its budget; with 0, all commands of a corpus would be one batch.
    """
    if utterance.end_s is not None:
        return max(0.0, utterance.end_s - utterance.begin_s)
    if utterance.command is not None:
        return DEFAULT_WINDOW_S
    try:
        known = utterance.path.stat()
        if not stat.S_ISREG(known.st_mode):  # to open a pipe is to wait for its writer
            return 0.0
        claimed = length_s(_head(utterance.path), known.st_size)
        if claimed is None:
            info = soundfile.info(utterance.path)
            claimed = info.frames / max(1, info.samplerate)
    except _NOT_READABLE:
        return 0.0
    # A header may claim anything; a file of so many bytes holds no more than this at a bit a sample.
    return max(0.0, min(claimed, known.st_size * 8.0 / 1000) - utterance.begin_s)


def _head(path: Path) -> bytes:
    """A file's first bytes; a file object would cost as much again, which counts in a corpus."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.read(descriptor, HEAD_BYTES)
    finally:
        os.close(descriptor)


def _is_regular(path: Path) -> bool:
    return stat.S_ISREG(path.stat().st_mode)


def _read(
    source: Path | io.BytesIO, shown: str, sample_rate: int, min_samples: int, begin_s: float, end_s: float | None
) -> NDArray[np.float32]:
    samples = bytearray()  # grows in place, where a list of blocks would be copied at the end
    try:
        with _Forward(source) as file:
            for block in _decoded(file, shown, sample_rate, begin_s, end_s):
                samples += block.data
    except _NOT_READABLE as error:
        if isinstance(error, AudioError):
            raise
        reason = getattr(error, "error_string", None) or str(error) or type(error).__name__
        raise AudioError(f"{shown}: not readable as audio ({one_line(reason, 120)})") from None
    try:
        return check_waveform(np.frombuffer(samples, np.float32), min_samples)
    except AudioError as error:
        raise AudioError(f"{shown}: {error}") from None


def _decoded(
    file: soundfile.SoundFile, shown: str, sample_rate: int, begin_s: float, end_s: float | None
) -> Iterator[NDArray[np.float32]]:
    """Blocks of one channel at ``sample_rate``."""
    rate = file.samplerate
    if rate < _LEAST_RATE:
        raise AudioError(f"{shown}: has a sample rate of {rate} Hz; at least {_LEAST_RATE} are needed")
    begin = round(min(begin_s, _LARGEST_S) * rate)
    end = None if end_s is None else round(min(end_s, _LARGEST_S) * rate)
    if begin:
        if begin >= file.frames:
            raise AudioError(f"{shown}: begins at {begin_s:g} s, the recording has {file.frames / rate:g} s")
        file.seek(begin)
    known = file.frames < _UNKNOWN_FRAMES
    if known and (file.frames if end is None else min(end, file.frames)) - begin > _LONGEST_S * rate:
        raise AudioError(f"{shown}: {_TOO_LONG}")
    resample = soxr.ResampleStream(rate, sample_rate, 1) if rate != sample_rate else None
    weights = np.full(file.channels, 1 / file.channels, np.float32)
    position = begin
    most = max(1, _BLOCK_SAMPLES // file.channels)
    while end is None or position < end:
        count = most if end is None else min(most, end - position)
        block = file.read(count, dtype="float32", always_2d=True)
        if not len(block):
            break
        position += len(block)
        if position - begin > _LONGEST_S * rate:
            raise AudioError(f"{shown}: {_TOO_LONG}")
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused at the end
            mono = block[:, 0] if block.shape[1] == 1 else block @ weights  # twenty times faster than mean()
        yield resample.resample_chunk(mono) if resample else mono
    if resample:
        yield resample.resample_chunk(np.zeros(0, np.float32), last=True)
    last = file.frames if end is None else min(end, file.frames)
    if known and position < last and file.format not in _ESTIMATED_LENGTH:
        raise AudioError(f"{shown}: truncated: {position} of {file.frames} samples can be read")
    if end is not None and position < end - _MAX_OVERSHOOT_S * rate:
        raise AudioError(f"{shown}: ends at {end_s:g} s, the recording has {position / rate:g} s")


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
