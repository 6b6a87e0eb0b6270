"""Writes waveforms as 16-bit WAV or FLAC files, atomically and block by block."""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import soundfile

from mkc_fast.engine.atomic_files import atomic_file
from mkc_fast.engine.audio.waveform import to_pcm16
from mkc_fast.engine.storage.writing import upload_file, write_object
from mkc_fast.errors import WriteError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from mkc_fast.engine.storage.addresses import Place

_BLOCK_SAMPLES = 1 << 18


class WaveformWriter:
    """Writes the blocks of a waveform in their order; see ``written_waveform``.

    Attributes:
        size_bytes: Of the file, once it is complete.
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
    """A file for libsndfile's encoders, which do not report why a write failed: the first error is kept."""

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
def written_waveform(place: Place, sample_rate: int) -> Iterator[WaveformWriter]:
    """Write a waveform block by block as 16-bit PCM, WAV or FLAC by the name's ending.

    It is written atomically: a file gets its name when the ``with`` block ends without an error, and an object is
    uploaded then.

    Raises:
        WriteError: It cannot be written.
    """
    if isinstance(place, Path):
        with _written_file(place, sample_rate) as writer:
            yield writer
        return
    with tempfile.TemporaryDirectory(prefix="mkc-fast-") as folder:
        file = Path(folder) / f"output{place.suffix}"
        with _written_file(file, sample_rate) as writer:
            yield writer
        upload_file(file, place)


@contextlib.contextmanager
def _written_file(path: Path, sample_rate: int) -> Iterator[WaveformWriter]:
    kind = path.suffix[1:].upper()
    try:
        with atomic_file(path) as temporary:
            with temporary.open("wb", buffering=0) as file:
                target = _Target(file)
                with soundfile.SoundFile(target, "w", sample_rate, 1, "PCM_16", format=kind) as encoder:
                    writer = WaveformWriter(encoder, target)
                    yield writer
                target.check()
            writer.size_bytes = temporary.stat().st_size
    except OSError as error:
        raise WriteError(f"{path}: cannot be written ({error.strerror})") from None


def write_waveform(place: Place, waveform: NDArray[np.float32], sample_rate: int) -> int:
    """Write (S,) float32 in [-1, 1] as 16-bit PCM, WAV or FLAC by the name's ending; a file or object, atomically.

    Returns:
        Its size in bytes.

    Raises:
        WriteError: It cannot be written.
        AudioError: A sample is not finite.
    """
    if isinstance(place, Path):
        with written_waveform(place, sample_rate) as writer:
            writer.write(waveform)
        return writer.size_bytes
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", sample_rate, 1, "PCM_16", format=place.suffix[1:].upper()) as encoder:
        WaveformWriter(encoder, _Target(buffer)).write(waveform)
    write_object(place, buffer.getvalue())
    return len(buffer.getvalue())
