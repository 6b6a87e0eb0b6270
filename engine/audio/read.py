"""Reads recordings as one channel of float32 at the rate asked for: what libsndfile decodes, or else PyAV."""

from __future__ import annotations

import io
import math
import os
import stat
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import soundfile
import soxr

from mkc_fast.engine.audio.containers import UNKNOWN_FRAMES, ContainerFile, container_format, container_length_s
from mkc_fast.engine.audio.headers import HEAD_BYTES, claimed_bytes, is_cut_ogg, length_s
from mkc_fast.engine.audio.waveform import LEAST_RATE, NOT_FINITE, absolute_peak, check_peak, check_waveform
from mkc_fast.engine.datasets.rows import row_bytes
from mkc_fast.engine.options import DEFAULT_WINDOW_S
from mkc_fast.engine.storage.addresses import is_address
from mkc_fast.engine.storage.reading import MOST_IN_MEMORY_BYTES, NamelessFile, ObjectFile, SizedReader, read_object
from mkc_fast.errors import AudioError, MkcError
from mkc_fast.text import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from mkc_fast.engine.datasets.dataset import Utterance

_BLOCK_SAMPLES = 1 << 18  # of all channels together
# A day at 16 kHz takes 5.5 GB, and a WAV file holds at most 37 h. A header that claims more is damaged or hostile.
_LONGEST_S = 24 * 3600
_TOO_LONG = "longer than 24 h; cut it into parts (segments of a data directory)"
# A segment may end a little after its recording, as in Kaldi's extract-segments. If it ends later, it does not belong
# to this recording.
_MAX_OVERSHOOT_S = 0.5
_LARGEST_S = 1e9
# Bytes of an object whose size was not asked for: more than any store takes.
_LARGEST_OBJECT = 1 << 50
COMMAND_TIMEOUT_S = 600
# The frame counts of these codecs are estimates, so fewer decoded samples do not mean damage.
_ESTIMATED_LENGTH = "MPEG_LAYER"  # in files of its own, or in WAV
# What soundfile raises: TypeError for headerless files (.raw), OverflowError for positions past 64 bits.
_NOT_READABLE = (soundfile.SoundFileError, OSError, RuntimeError, ValueError, TypeError, OverflowError, MemoryError)


class _Forward(soundfile.SoundFile):  # type: ignore[misc]
    """Reads without seeking: soundfile would seek after each block, which fails at the end of a FLAC stream."""

    def seekable(self) -> bool:
        return False


class Span(SizedReader):
    """Reads a part of an open file as a file: a member of an archive. Closing it closes the file."""

    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
        super().__init__(size)
        self._file, self._offset = file, offset

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")[: max(0, self._size - self._position)]
        self._file.seek(self._offset + self._position)
        count = self._file.readinto(view)  # type: ignore[attr-defined]
        self._position += count
        return int(count)

    def close(self) -> None:
        self._file.close()
        super().close()


@dataclass(frozen=True)
class Recording:
    """A recording that is too long for memory: it is decoded in blocks each time it is read.

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
        """Its samples, to be read once from the first to the last."""
        return ForwardSamples(self)


class ForwardSamples:
    """Slices of a recording, each of which begins no earlier than the one before; earlier samples are freed."""

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


def peak_of(waveform: NDArray[np.float32] | Recording) -> float:
    """The largest absolute value of a waveform; NaN or infinite where a sample is."""
    return waveform.peak if isinstance(waveform, Recording) else absolute_peak(waveform)


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


def read_encoded(content: bytes, shown: str, sample_rate: int, min_samples: int = 1) -> NDArray[np.float32]:
    """``read_waveform`` of the bytes of a file, which messages call ``shown``.

    Raises:
        AudioError: As ``read_waveform``.
    """
    read = _read(_Encoded(content, shown, sample_rate, 0.0, None), min_samples, None)
    assert not isinstance(read, Recording)
    return read


def read_utterance(
    utterance: Utterance, sample_rate: int, min_samples: int, most_samples: int | None = None
) -> NDArray[np.float32] | Recording:
    """``read_waveform`` of an utterance: its file or object, its part of one, or what its command prints.

    Args:
        utterance: The recording.
        sample_rate: To resample to.
        min_samples: A shorter recording is an error.
        most_samples: A longer recording is returned as a ``Recording``, decoded and checked but not kept in memory.
            Default: none is.

    Raises:
        AudioError: As ``read_waveform``, or the command fails or takes longer than 10 minutes.
    """
    begin_s, end_s = utterance.begin_s, utterance.end_s
    if utterance.command is None:
        if is_address(str(utterance.file)):
            content = _object_source(str(utterance.file), utterance.span)
            shown, channel = utterance.shown, utterance.channel
            return _read(
                _Encoded(content, shown, sample_rate, begin_s, end_s, channel=channel), min_samples, most_samples
            )
        encoded = _encoded_file(utterance.path, sample_rate, begin_s, end_s)
        if utterance.row is not None:
            encoded = replace(encoded, source=row_bytes(utterance))
        encoded = replace(encoded, span=utterance.span, shown=utterance.shown, channel=utterance.channel)
        return _read(encoded, min_samples, most_samples)
    shown = f"{utterance.path} |"
    try:
        run = subprocess.run(  # noqa: S602 - a Kaldi list's own command, run only where the user allowed it
            utterance.command, shell=True, capture_output=True, timeout=COMMAND_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise AudioError(f"{shown}: took longer than {COMMAND_TIMEOUT_S} s") from None
    if run.returncode:
        reason = one_line(run.stderr.decode(errors="replace").strip()[-120:])
        raise AudioError(f"{shown}: exit code {run.returncode} ({reason or 'it printed no reason'})")
    return _read(
        _Encoded(run.stdout, shown, sample_rate, begin_s, end_s, channel=utterance.channel), min_samples, most_samples
    )


def duration_s(utterance: Utterance) -> float:
    """Seconds of an utterance, from its header; 0 if it cannot be read, and those of a window for a command's output.

    The length of a command's output is not known before it has run. Recordings longer than a window run alone, so a
    batch of commands stays within its budget; with 0, all commands of a corpus would be one batch.
    """
    if utterance.end_s is not None:
        return max(0.0, utterance.end_s - utterance.begin_s)
    if utterance.command is not None:
        return DEFAULT_WINDOW_S
    if utterance.row is not None:
        return max(0.0, _length_of(row_bytes(utterance)) - utterance.begin_s)
    if is_address(str(utterance.file)):
        return max(0.0, _object_length_s(str(utterance.file), utterance.span) - utterance.begin_s)
    try:
        known = utterance.path.stat()
        if not stat.S_ISREG(known.st_mode):  # opening a pipe would block until a writer opens it
            return 0.0
        offset, size = utterance.span or (0, known.st_size)
        claimed = length_s(_head(utterance.path, offset), size)
        if claimed is None:
            claimed = _decoder_length_s(utterance.path, utterance.span)
    except _NOT_READABLE:
        return 0.0
    # A header may claim anything: at one bit a sample, a file of so many bytes holds no more than this.
    return max(0.0, min(claimed, size * 8.0 / 1000) - utterance.begin_s)


def _length_of(content: bytes) -> float:
    """Seconds of an encoded recording as its header has them; 0 if it cannot be read."""
    try:
        claimed = length_s(content[:HEAD_BYTES], len(content))
        if claimed is None:
            claimed = _decoder_length_s(content, None)
    except _NOT_READABLE:
        return 0.0
    return min(claimed, len(content) * 8.0 / 1000)


def _object_length_s(url: str, span: tuple[int, int] | None) -> float:
    """Seconds of an object, or of a member of an archive, as its header has them; 0 if it cannot be read.

    Of a WAV or FLAC file one request gets the beginning, and its size is not asked for.
    """
    offset, size = span or (0, 0)
    try:
        head = read_object(url, AudioError, offset, offset + HEAD_BYTES)
        claimed = length_s(head, size or _LARGEST_OBJECT)
        if claimed is None or claimed > _LONGEST_S:
            with ObjectFile(url, AudioError) as file:
                size = size or file.size
                claimed = length_s(head, size)
                if claimed is None:
                    claimed = _decoder_length_s(io.BufferedReader(file), span)
    except (MkcError, *_NOT_READABLE):
        return 0.0
    return min(claimed, (size or _LARGEST_OBJECT) * 8.0 / 1000)


def _object_source(url: str, span: tuple[int, int] | None) -> bytes | NamelessFile:
    """An object or a part of one, which is read at once unless it is long.

    Raises:
        AudioError: It is not there, cannot be read, or ends before the part does.
    """
    if span is not None:
        offset, size = span
        content = read_object(url, AudioError, offset, offset + size)
        if len(content) != size:
            raise AudioError(f"{url}: ends before the member of {size} bytes at {offset}")
        return content
    content = read_object(url, AudioError, 0, MOST_IN_MEMORY_BYTES + 1)
    return content if len(content) <= MOST_IN_MEMORY_BYTES else NamelessFile(url, AudioError)


def _decoder_length_s(source: Path | bytes | io.BufferedReader, span: tuple[int, int] | None) -> float:
    """Seconds of a file, or of a member of an archive, as the decoder that opens it finds them in its header."""
    with _opened_source(source) as whole:
        file: BinaryIO = whole if span is None else io.BufferedReader(Span(whole, *span))
        try:
            info = soundfile.info(source if span is None and isinstance(source, Path) else file)
        except soundfile.SoundFileError:
            kind = container_format(_reader(file))
            return 0.0 if kind is None else container_length_s(file, kind)
        return float(info.frames / max(1, info.samplerate))


def _opened_source(source: Path | bytes | io.BufferedReader) -> BinaryIO:
    if isinstance(source, Path):
        return source.open("rb")
    return io.BytesIO(source) if isinstance(source, bytes) else source


def _reader(file: BinaryIO) -> Callable[[int, int], bytes]:
    """Reads up to so many bytes of a file, from an offset on."""

    def read(offset: int, count: int) -> bytes:
        file.seek(offset)
        return file.read(count)

    return read


def _head(path: Path, offset: int) -> bytes:
    """The first bytes of a recording, at an offset of a file.

    Opening a file object would double the time, which matters in a corpus.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.pread(descriptor, HEAD_BYTES, offset)
    finally:
        os.close(descriptor)


def _encoded_file(
    path: Path,
    sample_rate: int,
    begin_s: float,
    end_s: float | None,
) -> _Encoded:
    try:
        regular = stat.S_ISREG(path.stat().st_mode)  # opening a pipe would block until a writer opens it
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
        source: The file, or what a command printed, a row of a table or an object holds.
        shown: Its name in messages.
        sample_rate: To resample to.
        begin_s: Where the part begins, in seconds.
        end_s: Where it ends; None is the recording's end.
        span: Offset and size of the recording in an archive, in bytes.
        channel: The one of its channels; None is the mean of all.
    """

    source: Path | bytes | NamelessFile
    shown: str
    sample_rate: int
    begin_s: float
    end_s: float | None
    span: tuple[int, int] | None = None
    channel: int | None = None

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """Decode it: blocks of one channel at the rate asked for, each finite.

        Raises:
            AudioError: As ``read_waveform``, except for its length and peak, which are known only at the end.
        """
        try:
            self._check_size()
            with self._decoder() as file:
                yield from _decoded(file, self.shown, self.sample_rate, self.begin_s, self.end_s, self.channel)
            self._check_size()  # a file may shrink while it is read
        except _NOT_READABLE as error:
            if isinstance(error, AudioError):
                raise
            reason = getattr(error, "error_string", None) or str(error) or type(error).__name__
            raise AudioError(f"{self.shown}: not readable as audio ({one_line(reason, 120)})") from None

    def _check_size(self) -> None:
        """Compare the size that the header claims with the file's: libsndfile reads what there is without an error."""
        try:
            with self._opened() as file:
                size, read = file.seek(0, os.SEEK_END), _reader(file)
                claimed, cut = claimed_bytes(read), is_cut_ogg(read, size)
        except OSError as error:
            raise AudioError(f"{self.shown}: cannot be read ({error.strerror})") from None
        if claimed is not None and claimed > size:
            raise AudioError(f"{self.shown}: truncated: its header claims {claimed} bytes, {size} are there")
        if cut:
            raise AudioError(f"{self.shown}: truncated: its last Ogg page is cut, or is not marked as the last")

    def _decoder(self) -> soundfile.SoundFile | ContainerFile:
        """The file, opened by libsndfile, or by PyAV where libsndfile cannot."""
        try:
            whole = isinstance(self.source, Path) and self.span is None
            return _Forward(self.source if whole else self._opened())
        except soundfile.SoundFileError:
            file = self._opened()
            kind = container_format(_reader(file))
            if kind is None:
                file.close()
                raise
            return ContainerFile(file, kind, self.shown, self.channel)

    def _opened(self) -> BinaryIO:
        if isinstance(self.source, bytes):
            return io.BytesIO(self.source)
        if isinstance(self.source, NamelessFile):
            return self.source.open()
        file = self.source.open("rb")
        return file if self.span is None else io.BufferedReader(Span(file, *self.span))


def _read(encoded: _Encoded, min_samples: int, most_samples: int | None) -> NDArray[np.float32] | Recording:
    """The samples, checked; beyond ``most_samples`` a ``Recording`` that reads them again."""
    samples = bytearray()  # grows in place, where a list of blocks would be copied at the end
    count, peak = 0, 0.0
    for block in encoded.blocks():
        count, peak = count + len(block), max(peak, absolute_peak(block))
        if most_samples is None or count <= most_samples:
            samples += block.data
        elif samples:
            samples = bytearray()
    try:
        if most_samples is not None and count > most_samples:
            check_peak(peak)
            return Recording(count, peak, encoded)
        return check_waveform(np.frombuffer(samples, np.float32), min_samples)
    except AudioError as error:
        raise AudioError(f"{encoded.shown}: {error}") from None


def _decoded(
    file: soundfile.SoundFile | ContainerFile,
    shown: str,
    sample_rate: int,
    begin_s: float,
    end_s: float | None,
    channel: int | None,
) -> Iterator[NDArray[np.float32]]:
    """Blocks of one channel at ``sample_rate``."""
    rate = file.samplerate
    if rate < LEAST_RATE:
        raise AudioError(f"{shown}: has a sample rate of {rate} Hz; at least {LEAST_RATE} are needed")
    begin = round(min(begin_s, _LARGEST_S) * rate)
    end = None if end_s is None else round(min(end_s, _LARGEST_S) * rate)
    if begin:
        if begin >= file.frames:
            raise AudioError(f"{shown}: begins at {begin_s:g} s, the recording has {file.frames / rate:g} s")
        file.seek(begin)
    known = file.frames < UNKNOWN_FRAMES
    if known and (file.frames if end is None else min(end, file.frames)) - begin > _LONGEST_S * rate:
        raise AudioError(f"{shown}: {_TOO_LONG}")
    resample = soxr.ResampleStream(rate, sample_rate, 1) if rate != sample_rate else None
    weights = np.full(file.channels, 1 / file.channels, np.float32)
    if channel is not None and not isinstance(file, ContainerFile):  # which has made one of them already
        if channel >= file.channels:
            raise AudioError(f"{shown}: has {file.channels} channels; channel {channel}, counted from 0, is asked for")
        weights[:] = np.arange(file.channels) == channel
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
        with np.errstate(over="ignore", invalid="ignore"):  # samples that are not finite are refused below
            mono = block[:, 0] if block.shape[1] == 1 else block @ weights  # twenty times faster than mean()
        if not math.isfinite(absolute_peak(mono)):
            raise AudioError(f"{shown}: {NOT_FINITE}")
        yield resample.resample_chunk(mono) if resample else mono
    if resample:
        yield resample.resample_chunk(np.zeros(0, np.float32), last=True)
    last = file.frames if end is None else min(end, file.frames)
    # A ContainerFile compares the lengths itself: some formats have them in milliseconds.
    exact = not isinstance(file, ContainerFile) and not file.subtype.startswith(_ESTIMATED_LENGTH)
    if known and exact and position < last:
        raise AudioError(f"{shown}: truncated: {position} of {file.frames} samples can be read")
    if end is not None and position < end - _MAX_OVERSHOOT_S * rate:
        raise AudioError(f"{shown}: ends at {end_s:g} s, the recording has {position / rate:g} s")
