"""Reads objects: whole, in part, or as an open file."""

from __future__ import annotations

import io
import os
import tempfile
from typing import TYPE_CHECKING, Any, BinaryIO

from mkc_fast.engine.storage.addresses import Address
from mkc_fast.engine.storage.file_systems import file_system, in_one_line
from mkc_fast.errors import AudioError, MkcError

if TYPE_CHECKING:
    from types import TracebackType

    from mkc_fast.engine.storage.addresses import Place

# What is read of an object that may be long in one request; a longer one is copied to a file without a name.
MOST_IN_MEMORY_BYTES = 64 << 20
_BLOCK_BYTES = 1 << 20


def read_object(url: str, kind: type[MkcError], begin: int | None = None, end: int | None = None) -> bytes:
    """The bytes of an object, or those from ``begin`` up to ``end``; fewer if it ends before.

    Raises:
        MkcError: Of the kind given: it is not there or cannot be read.
    """
    with in_one_line(url, kind):
        found, name = file_system(url)
        return bytes(found.cat_file(name, start=begin, end=end))


def object_size(url: str, kind: type[MkcError]) -> int:
    """The size of an object in bytes.

    Raises:
        MkcError: Of the kind given: it is not there or cannot be read.
    """
    with in_one_line(url, kind):
        found, name = file_system(url)
        found.invalidate_cache()
        facts = found.info(name)
        if facts.get("type") == "directory" or not isinstance(facts.get("size"), int):
            raise kind(f"{url}: not an object of a known size")
        return int(facts["size"])


class ObjectFile(io.RawIOBase):
    """An object as a file of bytes that is read in blocks, forward and at other places; close it.

    What goes wrong in a read is raised as ``OSError``, as for files.
    """

    def __init__(self, url: str, kind: type[MkcError], block_bytes: int = _BLOCK_BYTES) -> None:
        """Open an object.

        Raises:
            MkcError: Of the kind given: it is not there or cannot be read.
        """
        self._url = url
        with in_one_line(url, kind):
            found, name = file_system(url)
            self._file: BinaryIO = found.open(name, "rb", block_size=block_bytes)
            self.size = self._file.seek(0, os.SEEK_END)
            self._file.seek(0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return self._file.seek(offset, whence)
        except ValueError as error:
            raise OSError(str(error)) from None

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        try:
            with in_one_line(self._url, AudioError):
                content = self._file.read(len(view))
        except MkcError as error:
            raise OSError(str(error)) from None
        view[: len(content)] = content
        return len(content)

    def close(self) -> None:
        if not self.closed and hasattr(self, "_file"):
            self._file.close()
        super().close()

    def __enter__(self) -> ObjectFile:  # noqa: PYI034 - Self is in Python 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def opened_place(place: Place, kind: type[MkcError]) -> BinaryIO:
    """A file or an object, open for reading.

    Raises:
        MkcError: Of the kind given: an object is not there or cannot be read.
        OSError: A file is not there or cannot be read.
    """
    if isinstance(place, Address):
        return io.BufferedReader(ObjectFile(place.url, kind, 4 * _BLOCK_BYTES), _BLOCK_BYTES)
    return place.open("rb")


def place_size(place: Place, kind: type[MkcError]) -> int:
    """The size of a file or an object in bytes.

    Raises:
        MkcError, OSError: As ``opened_place``.
    """
    return object_size(place.url, kind) if isinstance(place, Address) else place.stat().st_size


class NamelessFile:
    """A copy of an object in a file that has no name, so that nothing is left of it when this process ends."""

    def __init__(self, url: str, kind: type[MkcError]) -> None:
        """Copy an object.

        Raises:
            MkcError: Of the kind given: it is not there or cannot be read, or the disk is full.
        """
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed when it is not used any more
        with in_one_line(url, kind), ObjectFile(url, kind, 16 * _BLOCK_BYTES) as source:
            while content := source.read(_BLOCK_BYTES):
                self._file.write(content)
            self._file.flush()
        self.size = self._file.tell()

    def open(self) -> BinaryIO:
        """It, open for reading, with a position of its own."""
        return io.BufferedReader(_Positioned(self._file.fileno(), self.size, self))


class SizedReader(io.RawIOBase):
    """Reads a known number of bytes at a position of its own; subclasses define ``readinto``."""

    def __init__(self, size: int) -> None:
        self._size, self._position = size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        begin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, begin + offset)
        return self._position


class _Positioned(SizedReader):
    """Reads an open file at a position of its own."""

    def __init__(self, descriptor: int, size: int, owner: NamelessFile) -> None:
        super().__init__(size)
        self._descriptor = descriptor
        self._owner = owner  # which closes the file when nothing reads it any more

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        content = os.pread(self._descriptor, len(view), self._position)
        view[: len(content)] = content
        self._position += len(content)
        return len(content)
