"""Audio files in and out: anything libsndfile reads becomes a mono float32 waveform, and 16-bit files are written."""

from __future__ import annotations

import contextlib
import io
import math
import os
import stat
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import soundfile
import soxr

from mkc_fast.engine.atomic_files import whole_file
from mkc_fast.engine.audio.headers import HEAD_BYTES, claimed_bytes, is_cut_ogg, length_s
from mkc_fast.engine.corpus.batching import DEFAULT_WINDOW_S
from mkc_fast.errors import ArgumentError, AudioError, WriteError
from mkc_fast.text import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray

    from mkc_fast.engine.datasets.dataset import Utterance

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
_MOST_RATE = (1 << 31) - 1
COMMAND_TIMEOUT_S = 600
# Their frame counts are estimates, so that fewer decoded samples do not mean damage.
_ESTIMATED_LENGTH = frozenset({"MP3"})
_UNKNOWN_FRAMES = 1 << 62  # libsndfile's count for a stream that does not say
# What soundfile raises: TypeError for headerless files (.raw), OverflowError for positions past 64 bits.
_NOT_READABLE = (soundfile.SoundFileError, OSError, RuntimeError, ValueError, TypeError, OverflowError, MemoryError)
_NOT_FINITE = "holds samples that are not finite"
# Full scale. Resampling and lossy decoders take loud recordings a little past it, too: the warning is one line a run.
LOUD_PEAK = 1.0
# Nothing honest is so loud; 16-bit values taken for samples are, as soon as anybody speaks.
MAX_PEAK = 8.0
_SCALE = 32768


class _Forward(soundfile.SoundFile):  # type: ignore[misc]
    """Reads on and on: soundfile would seek after each block, which fails at the end of a FLAC stream."""

    def seekable(self) -> bool:
        return False


@dataclass(frozen=True)
class Recording:
    """A recording that is too long to be held: it is decoded in blocks, each time it is read.

    Attributes:
        samples: S, of one channel at the rate asked for.
        peak: The largest absolute value of them.
        encoded: Where they come from.
    """

    samples: int
    peak: float
    encoded: _Encoded

    def __len__(self) -> int:
        return self.samples

    def forward(self) -> ForwardSamples:
        """Its samples, from the first to the last, once."""
        return ForwardSamples(self)


class ForwardSamples:
    """Slices of a recording, of which each begins no earlier than the last; what lies before it is let go."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._blocks = recording.encoded.blocks()
        self._held, self._begin = np.zeros(0, np.float32), 0

    def __len__(self) -> int:
        return len(self._recording)

    def __getitem__(self, part: slice) -> NDArray[np.float32]:
        """Samples (n,) float32 of a slice without a step.

        Raises:
            AudioError: The recording is not what it was when it was first read.
        """
        begin, end, _ = part.indices(len(self))
        while self._begin + len(self._held) < end:
            block = next(self._blocks, None)
            if block is None:
                raise self._changed()
            gone = min(begin - self._begin, len(self._held))
            self._held, self._begin = np.concatenate([self._held[gone:], block]), self._begin + gone
        return self._held[begin - self._begin : end - self._begin]

    def finish(self) -> None:
        """Read to the end.

        Raises:
            AudioError: As above.
        """
        read = self._begin + len(self._held) + sum(len(block) for block in self._blocks)
        if read != len(self):
            raise self._changed()

    def _changed(self) -> AudioError:
        return AudioError(f"{self._recording.encoded.shown}: changed while it was read")


def read_waveform(
    path: Path, sample_rate: int, min_samples: int = 1, *, begin_s: float = 0.0, end_s: float | None = None
) -> NDArray[np.float32]:
    """Read a recording, or a part of one, as one channel (the mean of all) at ``sample_rate``.

    The file is decoded in blocks, so that a header that promises more than the file holds costs no memory.

    Returns:
        (S,) float32.

    Raises:
        AudioError: The file is missing, unreadable, truncated, shorter than ``min_samples``, longer than a day, of a
            sample rate below 1 kHz, not finite, or with a peak above 8; or it ends more than half a second before
            ``end_s``.
    """
    read = _read(_encoded_file(path, sample_rate, begin_s, end_s), min_samples, None)
    assert not isinstance(read, Recording)
    return read


def read_utterance(
    utterance: Utterance, sample_rate: int, min_samples: int, most_samples: int | None = None
) -> NDArray[np.float32] | Recording:
    """``read_waveform`` of an utterance: its file, its part of a file, or what its command prints.

    Args:
        utterance: The recording.
        sample_rate: To resample to.
        min_samples: The least that there must be.
        most_samples: What is longer comes as a ``Recording``, which was decoded and checked as the others are, but is
            not held; default: nothing does.

    Raises:
        AudioError: As ``read_waveform``, or the command fails or takes longer than 10 minutes.
    """
    begin_s, end_s = utterance.begin_s, utterance.end_s
    if utterance.command is None:
        return _read(_encoded_file(utterance.path, sample_rate, begin_s, end_s), min_samples, most_samples)
    shown = f"{utterance.path} |"
    try:
        run = subprocess.run(  # noqa: S602 - a Kaldi list's own command, run only where the user allowed it
            utterance.command, shell=True, capture_output=True, timeout=COMMAND_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise AudioError(f"{shown}: took longer than {COMMAND_TIMEOUT_S} s") from None
    if run.returncode:
        said = one_line(run.stderr.decode(errors="replace").strip()[-120:])
        raise AudioError(f"{shown}: exit code {run.returncode} ({said or 'it printed no reason'})")
    return _read(_Encoded(run.stdout, shown, sample_rate, begin_s, end_s), min_samples, most_samples)


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


def _encoded_file(path: Path, sample_rate: int, begin_s: float, end_s: float | None) -> _Encoded:
    try:
        regular = stat.S_ISREG(path.stat().st_mode)  # to open a pipe is to wait for its writer
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a name that no file can have
        raise AudioError(f"{path}: no such file") from None
    except OSError as error:
        raise AudioError(f"{path}: cannot be read ({error.strerror})") from None
    if not regular:
        raise AudioError(f"{path}: not a file")
    return _Encoded(path, str(path), sample_rate, begin_s, end_s)


@dataclass(frozen=True)
class _Encoded:
    """A recording, or a part of one, as a file or as the bytes of one.

    Attributes:
        source: The file, or what a command printed.
        shown: Its name in messages.
        sample_rate: To resample to.
        begin_s: Where the part begins, in seconds.
        end_s: Where it ends; None is the recording's end.
    """

    source: Path | bytes
    shown: str
    sample_rate: int
    begin_s: float
    end_s: float | None

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """Decode it: blocks of one channel at the rate asked for, each finite.

        Raises:
            AudioError: As ``read_waveform``, for all but what is known of the whole alone: its length and its peak.
        """
        try:
            self._check_size()
            with _Forward(io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source) as file:
                yield from _decoded(file, self.shown, self.sample_rate, self.begin_s, self.end_s)
            self._check_size()  # a file may shrink while it is read
        except _NOT_READABLE as error:
            if isinstance(error, AudioError):
                raise
            reason = getattr(error, "error_string", None) or str(error) or type(error).__name__
            raise AudioError(f"{self.shown}: not readable as audio ({one_line(reason, 120)})") from None

    def _check_size(self) -> None:
        """Compare what the header claims with what there is: libsndfile takes what there is."""
        try:
            with self._opened() as file:
                size = file.seek(0, os.SEEK_END)

                def read(offset: int, count: int) -> bytes:
                    file.seek(offset)
                    return file.read(count)

                claimed, cut = claimed_bytes(read), is_cut_ogg(read, size)
        except OSError as error:
            raise AudioError(f"{self.shown}: cannot be read ({error.strerror})") from None
        if claimed is not None and claimed > size:
            raise AudioError(f"{self.shown}: truncated: its header claims {claimed} bytes, {size} are there")
        if cut:
            raise AudioError(f"{self.shown}: truncated: its last Ogg page is cut, or is not marked as the last")

    def _opened(self) -> BinaryIO:
        return io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source.open("rb")


def _read(encoded: _Encoded, min_samples: int, most_samples: int | None) -> NDArray[np.float32] | Recording:
    """The samples, checked; beyond ``most_samples`` a ``Recording`` that reads them again."""
    samples = bytearray()  # grows in place, where a list of blocks would be copied at the end
    count, peak = 0, 0.0
    for block in encoded.blocks():
        count, peak = count + len(block), max(peak, _peak(block))
        if most_samples is None or count <= most_samples:
            samples += block.data
        elif samples:
            samples = bytearray()
    try:
        if most_samples is not None and count > most_samples:
            _check_peak(peak)
            return Recording(count, peak, encoded)
        return check_waveform(np.frombuffer(samples, np.float32), min_samples)
    except AudioError as error:
        raise AudioError(f"{encoded.shown}: {error}") from None


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
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused below
            mono = block[:, 0] if block.shape[1] == 1 else block @ weights  # twenty times faster than mean()
        if not math.isfinite(_peak(mono)):
            raise AudioError(f"{shown}: {_NOT_FINITE}")
        yield resample.resample_chunk(mono) if resample else mono
    if resample:
        yield resample.resample_chunk(np.zeros(0, np.float32), last=True)
    last = file.frames if end is None else min(end, file.frames)
    if known and position < last and file.format not in _ESTIMATED_LENGTH:
        raise AudioError(f"{shown}: truncated: {position} of {file.frames} samples can be read")
    if end is not None and position < end - _MAX_OVERSHOOT_S * rate:
        raise AudioError(f"{shown}: ends at {end_s:g} s, the recording has {position / rate:g} s")


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
    _check_peak(_peak(checked))
    return checked


def peak_of(waveform: NDArray[np.float32] | Recording) -> float:
    """The largest absolute value of a waveform; NaN or infinite where a sample is."""
    return waveform.peak if isinstance(waveform, Recording) else _peak(waveform)


def _peak(waveform: NDArray[np.float32]) -> float:
    # Two passes without a copy; both give NaN where there is one.
    return max(float(waveform.max()), -float(waveform.min())) if len(waveform) else 0.0


def _check_peak(peak: float) -> None:
    if not math.isfinite(peak):
        raise AudioError(_NOT_FINITE)
    if peak > MAX_PEAK:
        raise AudioError(
            f"peaks at {peak:.6g}, samples are expected in [-1, 1]; if these are 16-bit values, divide them by "
            f"{_SCALE} or pass int16 (of a file: write it anew as 16-bit PCM)"
        )


def resampled(waveform: NDArray[np.float32], rate: object, sample_rate: int) -> NDArray[np.float32]:
    """A waveform (S,) of one rate at another, as files are: (S * sample_rate / rate,) float32, rounded.

    Raises:
        ArgumentError: The rate is not a number of Hz from 1000 up.
    """
    is_number = isinstance(rate, (int, float, np.integer, np.floating)) and not isinstance(rate, bool)
    if not is_number or not _LEAST_RATE <= rate <= _MOST_RATE:  # type: ignore[operator]
        raise ArgumentError(f"sample_rate is {rate!r}; expected a number of Hz from {_LEAST_RATE} up")
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
    if not math.isfinite(_peak(waveform)):
        raise AudioError(_NOT_FINITE)
    scaled: NDArray[np.float32] = waveform * np.float32(_SCALE)
    np.clip(np.rint(scaled, out=scaled), -_SCALE, _SCALE - 1, out=scaled)
    return scaled.astype(np.int16)


class WaveformWriter:
    """Takes the blocks of a waveform, from the first to the last; see ``written_waveform``.

    Attributes:
        size_bytes: Of the file, once it is whole.
    """

    def __init__(self, file: soundfile.SoundFile, target: _Target) -> None:
        self._file, self._target = file, target
        self.size_bytes = 0

    def write(self, block: NDArray[np.float32]) -> None:
        """Append (n,) float32 in [-1, 1].

        Raises:
            OSError: The file cannot be written.
            AudioError: A sample is not finite.
        """
        for start in range(0, len(block), _BLOCK_SAMPLES):
            self._file.write(to_pcm16(block[start : start + _BLOCK_SAMPLES]))
            self._target.check()


class _Target:
    """A file for libsndfile's encoders, which do not say what is wrong: the first error is kept."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._error: OSError | None = None
        self.seek, self.tell = file.seek, file.tell

    def write(self, content: bytes) -> int:
        if self._error is None:
            rest = memoryview(content)
            try:
                while rest:
                    rest = rest[self._file.write(rest) :]
            except OSError as error:
                self._error = error
        return len(content)

    def check(self) -> None:
        """Raise the error, if there is one."""
        if self._error is not None:
            raise self._error


@contextlib.contextmanager
def written_waveform(path: Path, sample_rate: int) -> Iterator[WaveformWriter]:
    """Write a waveform block by block as 16-bit PCM, WAV or FLAC by the name's ending.

    The file appears whole when the block of code ends without an error, and not at all otherwise.

    Raises:
        WriteError: It cannot be written.
    """
    kind = path.suffix[1:].upper()
    try:
        with whole_file(path) as temporary:
            with temporary.open("wb", buffering=0) as file:
                target = _Target(file)
                with soundfile.SoundFile(target, "w", sample_rate, 1, "PCM_16", format=kind) as encoder:
                    writer = WaveformWriter(encoder, target)
                    yield writer
                target.check()
            writer.size_bytes = temporary.stat().st_size
    except OSError as error:
        raise WriteError(f"{path}: cannot be written ({error.strerror})") from None


def write_waveform(path: Path, waveform: NDArray[np.float32], sample_rate: int) -> int:
    """Write (S,) float32 in [-1, 1] as 16-bit PCM, WAV or FLAC by the name's ending; written atomically.

    Returns:
        The file's size in bytes.

    Raises:
        WriteError: It cannot be written.
        AudioError: A sample is not finite.
    """
    with written_waveform(path, sample_rate) as writer:
        writer.write(waveform)
    return writer.size_bytes
