"""Reads lists line by line: blanks, comments and limits, ids that name output files, and relative paths."""

from __future__ import annotations

import io
import os
import re
import unicodedata
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mkc_fast.engine.storage.addresses import Address, is_address, read_entry
from mkc_fast.engine.storage.reading import opened_place
from mkc_fast.errors import ArgumentError, ListError
from mkc_fast.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from gzip import GzipFile
    from typing import BinaryIO, TextIO

    from mkc_fast.engine.storage.addresses import Place

# A list of train-clean-360 has 10 MB; a file a hundred times as large is not a list.
_MAX_LIST_BYTES = 1 << 30
_MAX_LINE = 1 << 13  # a path has at most 4096 bytes
_BLANKS = " \t"  # other spaces of Unicode may be part of a file's name
# What ends a line or moves a terminal's cursor: no path here needs it, and errors and logs quote paths.
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")
# 200 bytes leave room for an extension and a temporary name within the 255 that file systems allow; a path has 4096.
_MOST_NAME_BYTES, _MOST_ID_BYTES = 200, 2048
# In an output folder, the folder of what is no output: manifests, and outputs that are still to be put together.
OWN_FOLDER = ".mkc-fast"
_TEMPORARY_END = ".mkc-fast.tmp"
_STANDARD_INPUT = Path("-")
_MAX_REMEMBERED = 1 << 14  # directories


def check_name(name: str, where: str, line: int | None = None) -> None:
    """Refuse an id that cannot name a file inside the output folder.

    Args:
        name: The id.
        where: What an error begins with.
        line: Number of the line that has it, for the error.

    Raises:
        ListError: It is empty, ``.`` or ``..``, too long, or holds a slash, a backslash or a control character.
    """
    plain = name.isprintable() and "/" not in name and "\\" not in name and name not in {"", ".", ".."}
    if not plain or (len(name) > 50 and len(name.encode()) > _MOST_NAME_BYTES):
        where = where if line is None else f"{where}, line {line}"
        raise ListError(f"{where}: '{printable(name)}' cannot name an output file")


def check_id(name: str, where: str) -> None:
    """Refuse an id that may hold folders (``spk/utt``) and cannot name a file below the output folder.

    Its parts may hold whatever a file system's names hold, but no control characters and no backslashes.

    Args:
        name: The id.
        where: What an error begins with.

    Raises:
        ListError: It is absolute, a part is empty, ``.`` or ``..`` or too long, or it holds a control character, or a
            name that output folders have for themselves.
    """
    reason = ""
    if _CONTROL.search(name) or "\\" in name:
        reason = "holds a control character or a backslash"
    else:
        parts = name.split("/")
        if not {"", ".", ".."}.isdisjoint(parts):
            reason = "has a part that is empty, '.' or '..'"
        elif OWN_FOLDER in parts or name.endswith(_TEMPORARY_END):
            reason = "has a name that this program uses itself"
        elif len(name) > 50:
            sizes = [len(part.encode("utf-8", "surrogatepass")) for part in parts]
            if max(sizes) > _MOST_NAME_BYTES or sum(sizes) + len(sizes) > _MOST_ID_BYTES:
                reason = "is too long"
    if reason:
        raise ListError(f"{where}: '{printable(name)}' cannot name an output file: it {reason}")


def read_lines(path: Place, *, standard_input: bool = True) -> Iterator[tuple[int, str]]:
    """The lines of a list with their numbers, read one by one, without blank lines and comments.

    Blanks around a line are removed; those after its first word are replaced by one space.

    Args:
        path: The list.
        standard_input: Take ``-`` for the standard input.

    Raises:
        ListError: The list is unreadable, a line is longer than any path, or it holds control characters.
    """
    where = shown_list(path) if standard_input else str(path)
    number = size = 0
    try:
        with _opened(path, standard_input) as file:
            while line := file.readline(_MAX_LINE + 1):  # a file that is no list may be one long line
                number += 1
                size += len(line)
                if size > _MAX_LIST_BYTES:  # the size of a pipe is not known before
                    raise ListError(f"{where}: larger than 1 GB, which is no list")
                line = line.removesuffix("\n")
                if len(line) > _MAX_LINE:
                    raise ListError(f"{where}, line {number}: too long for a line of a list")
                if _CONTROL.search(line):
                    raise ListError(f"{where}, line {number}: holds control characters: {printable(line)}")
                line = line.strip(_BLANKS)
                if line and line[0] != "#":
                    yield number, _one_space(line)
    except OSError as error:
        raise ListError(f"{where}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ListError(f"{where}: not a text file in UTF-8") from None
    except ValueError as error:  # a path that no file can have
        raise ListError(f"{where}: cannot be read ({error})") from None


def numbered_lines(
    file: BinaryIO | GzipFile, where: str, most_bytes: int, too_long: str
) -> Iterator[tuple[int, bytes]]:
    """The lines of a file of JSON lines with their numbers, read one by one, without blank ones.

    Args:
        file: Open for reading.
        where: What an error begins with.
        most_bytes: Of a line.
        too_long: What an error says of a longer one.

    Raises:
        ListError: A line is longer.
        OSError: The file cannot be read.
    """
    number = 0
    while line := file.readline(most_bytes + 1):
        number += 1
        if len(line) > most_bytes:
            raise ListError(f"{where}, line {number}: {too_long}")
        if line.strip():
            yield number, line


def check_regular(path: Path) -> None:
    """Refuse a pipe or a device: reading it may block, or never end.

    Raises:
        ListError: It is one.
    """
    if path.exists() and not path.is_file():
        raise ListError(f"{path}: not a regular file")


@contextmanager
def _opened(path: Place, standard_input: bool) -> Iterator[TextIO]:
    if isinstance(path, Address):
        with io.TextIOWrapper(opened_place(path, ListError), encoding="utf-8-sig") as file:
            yield file
        return
    if standard_input and path == _STANDARD_INPUT:
        with open(0, encoding="utf-8-sig", closefd=False) as file:
            yield file
        return
    check_regular(path)
    if path.stat().st_size > _MAX_LIST_BYTES:
        raise ListError(f"{path}: larger than 1 GB, which is no list")
    with path.open(encoding="utf-8-sig") as file:
        yield file


def shown_list(path: Place) -> str:
    """The name of a list in messages."""
    return "standard input" if path == _STANDARD_INPUT else str(path)


def _one_space(line: str) -> str:
    first, _, rest = line.partition(" ")
    if "\t" in first:
        first, _, after = first.partition("\t")
        rest = f"{after} {rest}"
    rest = rest.strip(_BLANKS)
    return f"{first} {rest}" if rest else first


class PathResolver:
    """Resolves the paths of a list: against the working directory, else the list's own folder, else its parents.

    A list has up to a million lines, and looking up a file on a network file system is slow. So absolute paths are not
    looked up at all. For a relative path, its directory is looked up once in each folder; each file is looked up only
    if several folders have such a directory.
    """

    def __init__(self, path: Place, *, parents: bool = False) -> None:
        """Resolve the paths of this list; with ``parents`` also against the folders above it, the nearest first.

        Those of a list at an address are against the working directory alone.
        """
        self._list = shown_list(path)
        self._folder = os.curdir if isinstance(path, Address) else str(path.parent)
        folders = [self._folder]
        if parents:
            folders += [str(parent) for parent in Path(os.path.abspath(self._folder)).parents]  # noqa: PTH100
        self._folders = [folder for folder in folders if not _same(folder, os.curdir)]
        self._remembered: dict[str, tuple[str, ...]] = {}
        self._spaced: set[str] | None = None

    def resolve(self, text: str) -> str:
        """A path of the list: unchanged if absolute or found in the working directory, else where it is found.

        One that is nowhere is taken to be where its directory is, the working directory first. An address
        (``s3://bucket/key``) is returned as it is, and of one that begins with ``file://`` the path.

        Raises:
            ListError: It is an address that is refused.
        """
        if "://" in text and is_address(text):
            try:
                return read_entry(text)
            except ArgumentError as error:
                raise ListError(f"{self._list}: {error}") from None
        if not self._folders or text.startswith("/") or os.path.isabs(text):  # noqa: PTH117 - as text it costs a tenth
            return text
        folders = self._with_directory(os.path.dirname(text))  # noqa: PTH120
        candidates = [os.path.join(folder, text) for folder in folders]  # noqa: PTH118
        if len(candidates) > 1:
            return next((path for path in candidates if os.path.exists(path)), candidates[0])  # noqa: PTH110
        return candidates[0] if candidates else text

    def names_file(self, line: str) -> bool:
        """Whether a line with spaces in it is, as a whole, an address or the path of a file that is there."""
        if "://" in line and is_address(line):
            return True
        first, _, _ = line.partition("/")
        if " " in first and not self._may_begin(first):
            return False
        return os.path.isfile(self.resolve(line))  # noqa: PTH113

    def _with_directory(self, directory: str) -> tuple[str, ...]:
        """The folders that have such a directory; the working directory is the empty text."""
        known = self._remembered.get(directory)
        if known is not None:
            return known
        found = tuple(
            folder
            for folder in ("", *self._folders)
            if os.path.isdir(os.path.join(folder, directory) or os.curdir)  # noqa: PTH112, PTH118
        )
        if len(self._remembered) >= _MAX_REMEMBERED:
            self._remembered.clear()
        self._remembered[directory] = found
        return found

    def _may_begin(self, name: str) -> bool:
        """Whether either folder may have an entry of this name, which holds a space; few entries do."""
        if self._spaced is None:
            try:
                entries = {entry for place in (os.curdir, self._folder) for entry in os.listdir(place)}  # noqa: PTH208
            except OSError:  # a directory that cannot be listed: each file is looked up
                return True
            self._spaced = {_folded(entry) for entry in entries if " " in entry}
        return bool(self._spaced) and _folded(name) in self._spaced


def _folded(name: str) -> str:
    """A name as file systems compare it that ignore case and how accents are composed."""
    return unicodedata.normalize("NFC", name.casefold())


def _same(first: str, second: str) -> bool:
    try:
        return os.path.samefile(first, second)  # noqa: PTH121
    except (OSError, ValueError):
        return False
