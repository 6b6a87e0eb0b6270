"""Writes waveforms as 16-bit WAV or FLAC files, atomically and block by block."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, BinaryIO

import soundfile

from mkc_fast.engine.atomic_files import atomic_file
from mkc_fast.engine.audio.waveform import to_pcm16
from mkc_fast.errors import WriteError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

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
def written_waveform(path: Path, sample_rate: int) -> Iterator[WaveformWriter]:
    """Write a waveform block by block as 16-bit PCM, WAV or FLAC by the name's ending.

    The file is written atomically: it gets its name when the ``with`` block ends without an error.

    Raises:
        WriteError: It cannot be written.
    """
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
