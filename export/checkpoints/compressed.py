"""The contents of files that joblib compressed, block by block, with bounded memory: zlib, gzip, bz2, xz and lzma."""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from typing import TYPE_CHECKING, Any, BinaryIO

from mkc_fast.export.checkpoints.pickles import BLOCK_BYTES, Stopped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAX_DICTIONARY_BYTES = 128 << 20  # what xz -9 needs is 65 MB; a header of 60 bytes can ask for 4 GB
_MAGICS = (b"\x1f\x8b", b"\x78", b"BZh", b"\xfd7zXZ\x00", b"\x5d\x00")


def is_compressed(magic: bytes) -> bool:
    """Whether a file that begins so is compressed in one of these formats."""
    return magic.startswith(_MAGICS)


def inflated(file: BinaryIO, magic: bytes, stopped: Callable[[], bool]) -> io.BufferedReader:
    """The contents of a compressed file.

    Args:
        file: The file, at its start.
        magic: Its first six bytes.
        stopped: Asked between blocks; once true, reading raises ``Stopped``.
    """
    return io.BufferedReader(_Inflated(_inflate(file, magic, stopped)), BLOCK_BYTES)


def _inflate(file: BinaryIO, magic: bytes, stopped: Callable[[], bool]) -> Iterator[bytes]:
    """The blocks of a compressed file, to the end that its checksum marks."""
    if magic[:1] in (b"\x1f", b"\x78"):
        inflater = zlib.decompressobj(wbits=47)  # zlib or gzip, by the header
        while not inflater.eof:
            data = inflater.unconsumed_tail or file.read(BLOCK_BYTES)
            block = inflater.decompress(data, BLOCK_BYTES)
            if not data and not block:
                raise EOFError
            if stopped():
                raise Stopped
            yield block
        return
    other = bz2.BZ2Decompressor() if magic[:1] == b"B" else lzma.LZMADecompressor(memlimit=MAX_DICTIONARY_BYTES)
    while not other.eof:
        data = file.read(BLOCK_BYTES) if other.needs_input else b""
        if other.needs_input and not data:
            raise EOFError
        if stopped():
            raise Stopped
        yield other.decompress(data, BLOCK_BYTES)


class _Inflated(io.RawIOBase):
    """Blocks of bytes as a file."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._held = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._held:
            held = next(self._blocks, None)
            if held is None:
                return 0
            self._held = held
        count = min(len(buffer), len(self._held))
        buffer[:count], self._held = self._held[:count], self._held[count:]
        return count
