"""Reads the lists that say what to work on: recordings (Kaldi ``wav.scp`` or bare paths) and k-means models."""

from __future__ import annotations

import os
import re
import unicodedata
from array import array
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mkc_fast.errors import ListError
from mkc_fast.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TextIO

# A list of train-clean-360 is 10 MB; what is a hundred times that is no list.
_MAX_LIST_BYTES = 1 << 30
_MAX_LINE = 1 << 13  # a path ends at 4096 bytes
_BLANKS = " \t"  # other spaces of Unicode may stand in a file's name
# What ends a line or moves a terminal's cursor: no path here needs it, and errors and logs quote paths.
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")
_STANDARD_INPUT = Path("-")
_MAX_REMEMBERED = 1 << 14  # directories


@dataclass(frozen=True, slots=True)
class Utterance:
    """A recording, or a part of one, to anonymize.

    A corpus has a million of these, so that the path is kept as text: a ``Path`` is several times as large.

    Attributes:
        id: Names its output and, with a seed, decides its draws.
        file: The file, as text; a ``Path`` may be given.
        begin_s: Where the part begins, in seconds.
        end_s: Where it ends; None is the recording's end.
        command: A shell command whose output is the recording, instead of a file; ``path`` then only shows it.
    """

    id: str
    file: str | Path
    begin_s: float = 0.0
    end_s: float | None = None
    command: str | None = None

    def __post_init__(self) -> None:
        if type(self.file) is not str:
            object.__setattr__(self, "file", str(self.file))

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.file)


def read_audio_list(path: Path, *, allow_commands: bool = False) -> list[Utterance]:
    """Read a list of ``path`` or ``utt-id path`` a line; without an id, the file's stem is the id.

    Blank lines are skipped, and so are comments, lines that begin with ``#`` (blanks before it do not count). Relative
    paths are against the working directory, else against the list's own folder. A line that ends in ``|`` is a command
    (as Kaldi has them), and is refused unless ``allow_commands``.

    Args:
        path: The list; ``-`` is the standard input, with paths against the working directory alone.
        allow_commands: Admit recordings that are a command's output; the commands are not run here.

    Raises:
        ListError: The list is unreadable or empty, two lines have one id, an id cannot name a file, or a line is a
            command.
    """
    utterances: list[Utterance] = []
    ids: set[str] = set()
    lines = array("L")
    places = Places(path)
    where = _shown(path)
    for number, line in read_lines(path):
        first, _, rest = line.partition(" ")
        if line.endswith("|"):
            if not allow_commands:
                raise ListError(
                    f"{where}, line {number}: a command, which is run only with --allow-commands: {printable(line)}"
                )
            command = rest[:-1].strip()
            if not command:
                raise ListError(f"{where}, line {number}: expected 'utt-id command |', found {printable(line)}")
            utterance = Utterance(first, printable(command), command=command)
        # A line without an id may hold a path with spaces in it: then the whole line names a file that is there.
        elif rest and not places.names_file(line):
            utterance = Utterance(first, places.resolve(rest))
        else:
            file = places.resolve(line)
            utterance = Utterance(Path(file).stem, file)
        name = utterance.id
        check_name(name, where, number)
        if name in ids:
            earlier = lines[[known.id for known in utterances].index(name)]
            raise ListError(
                f"{where}: lines {earlier} and {number} are both named {printable(name)}, and would "
                "write one output; give them ids of their own (utt-id path)"
            )
        ids.add(name)
        utterances.append(utterance)
        lines.append(number)
    if not utterances:
        raise ListError(f"{where}: the list is empty")
    return utterances


def read_named_paths(path: Path) -> list[tuple[str, Path]]:
    """Read a list of ``name path`` a line (``kmeans.scp``), in its order; names are unique.

    Blank lines are skipped, and so are comments, lines that begin with ``#`` (blanks before it do not count).

    Raises:
        ListError: The list is unreadable or empty, a line has no path, or two lines have one name.
    """
    named: dict[str, Path] = {}
    places = Places(path)
    for number, line in read_lines(path, standard_input=False):
        name, _, rest = line.partition(" ")
        if not rest:
            raise ListError(f"{path}, line {number}: expected 'name path', found {printable(line)}")
        if name in named:
            raise ListError(f"{path}, line {number}: the name {printable(name)} is there twice")
        named[name] = Path(places.resolve(rest))
    if not named:
        raise ListError(f"{path}: the list is empty")
    return list(named.items())


def check_name(name: str, where: str, line: int | None = None) -> None:
    """Refuse an id that cannot name a file inside the output folder.

    Args:
        name: The id.
        where: What an error begins with.
        line: Number of the line that has it, for the error.

    Raises:
        ListError: It is empty, ``.`` or ``..``, too long, or holds a slash, a backslash or a control character.
    """
    # 200 bytes leave room for an extension and a temporary name within the 255 that file systems allow.
    plain = name.isprintable() and "/" not in name and "\\" not in name and name not in {"", ".", ".."}
    if not plain or (len(name) > 50 and len(name.encode()) > 200):
        where = where if line is None else f"{where}, line {line}"
        raise ListError(f"{where}: '{printable(name)}' cannot name an output file")


def read_lines(path: Path, *, standard_input: bool = True) -> Iterator[tuple[int, str]]:
    """The list's lines with their numbers, without blank ones and comments, as they are read.

    Blanks around a line are gone, and those after its first word are one space.

    Args:
        path: The list.
        standard_input: Take ``-`` for the standard input.

    Raises:
        ListError: The list is unreadable, a line is longer than any path, or it holds control characters.
    """
    where = _shown(path) if standard_input else str(path)
    number = size = 0
    try:
        with _opened(path, standard_input) as file:
            while line := file.readline(_MAX_LINE + 1):  # what is no list may be one line
                number += 1
                size += len(line)
                if size > _MAX_LIST_BYTES:  # the size of a pipe is known when it ends
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


@contextmanager
def _opened(path: Path, standard_input: bool) -> Iterator[TextIO]:
    if standard_input and path == _STANDARD_INPUT:
        with open(0, encoding="utf-8-sig", closefd=False) as file:
            yield file
        return
    if path.exists() and not path.is_file():  # a pipe or device may never begin, or never end
        raise ListError(f"{path}: not a regular file")
    if path.stat().st_size > _MAX_LIST_BYTES:
        raise ListError(f"{path}: larger than 1 GB, which is no list")
    with path.open(encoding="utf-8-sig") as file:
        yield file


def _shown(path: Path) -> str:
    return "standard input" if path == _STANDARD_INPUT else str(path)


def _one_space(line: str) -> str:
    first, _, rest = line.partition(" ")
    if "\t" in first:
        first, _, after = first.partition("\t")
        rest = f"{after} {rest}"
    rest = rest.strip(_BLANKS)
    return f"{first} {rest}" if rest else first


class Places:
    """Where the paths of a list are: against the working directory, else in the list's own folder.

    A list has up to a million lines, and on a network's file system to look for a file is to wait. So nothing is asked
    about an absolute path, and of a relative one first where its directory is, once; only where both places have such a
    directory is each file asked for.
    """

    def __init__(self, path: Path) -> None:
        """Prepare for the paths of this list."""
        self._folder = str(path.parent)
        self._alone = _same(self._folder, os.curdir)  # the list lies in the working directory
        self._remembered: dict[str, bool | None] = {}
        self._spaced: set[str] | None = None

    def resolve(self, text: str) -> str:
        """A path of the list: as it is when absolute or there, else beside the list."""
        if self._alone or text.startswith("/") or os.path.isabs(text):  # noqa: PTH117 - as text it costs a tenth
            return text
        beside = self._is_beside(os.path.dirname(text))  # noqa: PTH120
        if beside is False:
            return text
        moved = os.path.join(self._folder, text)  # noqa: PTH118
        if beside is None:
            beside = not os.path.exists(text) and os.path.exists(moved)  # noqa: PTH110
        return moved if beside else text

    def names_file(self, line: str) -> bool:
        """Whether a line with spaces in it is, as a whole, the path of a file that is there."""
        first, _, _ = line.partition("/")
        if " " in first and not self._may_begin(first):
            return False
        return os.path.isfile(self.resolve(line))  # noqa: PTH113

    def _is_beside(self, directory: str) -> bool | None:
        """Whether such a directory is beside the list only; None where both places have one."""
        known = self._remembered.get(directory, ...)
        if known is not ...:
            return known
        here = os.path.isdir(directory or os.curdir)  # noqa: PTH112
        there = os.path.isdir(os.path.join(self._folder, directory))  # noqa: PTH112, PTH118
        beside = None if here and there else there
        if len(self._remembered) >= _MAX_REMEMBERED:
            self._remembered.clear()
        self._remembered[directory] = beside
        return beside

    def _may_begin(self, name: str) -> bool:
        """Whether one of the two places may have an entry of this name, which holds a space; few entries do."""
        if self._spaced is None:
            try:
                entries = {entry for place in (os.curdir, self._folder) for entry in os.listdir(place)}  # noqa: PTH208
            except OSError:  # a directory that cannot be listed: then each is asked for
                return True
            self._spaced = {_folded(entry) for entry in entries if " " in entry}
        return bool(self._spaced) and _folded(name) in self._spaced


def _folded(name: str) -> str:
    """What file systems compare that tell neither upper case from lower nor how accents are put together."""
    return unicodedata.normalize("NFC", name.casefold())


def _same(first: str, second: str) -> bool:
    try:
        return os.path.samefile(first, second)  # noqa: PTH121
    except (OSError, ValueError):
        return False
