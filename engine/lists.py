"""Reads the lists that say what to work on: recordings (Kaldi ``wav.scp`` or bare paths) and k-means models."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from mkc_fast import ListError

# A list of train-clean-360 is 10 MB; what is a hundred times that is no list.
_MAX_LIST_BYTES = 1 << 30
_MAX_LINE = 1 << 13  # a path ends at 4096 bytes
_BLANKS = " \t"  # other spaces of Unicode may stand in a file's name
# What ends a line or moves a terminal's cursor: no path here needs it, and errors and logs quote paths.
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(frozen=True)
class Utterance:
    """A recording, or a part of one, to anonymize.

    Attributes:
        id: Names its output and, with a seed, decides its draws.
        path: The file.
        begin_s: Where the part begins, in seconds.
        end_s: Where it ends; None is the recording's end.
        command: A shell command whose output is the recording, instead of a file; ``path`` then only shows it.
    """

    id: str
    path: Path
    begin_s: float = 0.0
    end_s: float | None = None
    command: str | None = None


def read_audio_list(path: Path, *, allow_commands: bool = False) -> list[Utterance]:
    """Read a list of ``path`` or ``utt-id path`` a line; without an id, the file's stem is the id.

    Blank lines are skipped. Relative paths are against the working directory, else against the list's own folder. A
    line that ends in ``|`` is a command (as Kaldi has them), and is refused unless ``allow_commands``.

    Raises:
        ListError: The list is unreadable or empty, two lines have one id, an id cannot name a file, or a line is a
            command.
    """
    utterances: dict[str, Utterance] = {}
    lines: dict[str, int] = {}
    for number, line in _lines(path):
        first, _, rest = line.partition(" ")
        rest = rest.strip()
        if line.endswith("|"):
            if not allow_commands:
                raise ListError(
                    f"{path}, line {number}: a command, which is run only with --allow-commands: {_short(line)}"
                )
            command = rest[:-1].strip()
            if not command:
                raise ListError(f"{path}, line {number}: expected 'utt-id command |', found {_short(line)}")
            utterance = Utterance(first, Path(_short(command)), command=command)
        else:
            # A line without an id may hold a path with spaces in it: then the whole line names a file that is there.
            name, target = (first, rest) if rest and not _is_file(_resolve(line, path)) else ("", line)
            file = _resolve(target, path)
            utterance = Utterance(name or file.stem, file)
        check_name(utterance.id, f"{path}, line {number}")
        if utterance.id in utterances:
            raise ListError(
                f"{path}: lines {lines[utterance.id]} and {number} are both named {_short(utterance.id)}, and would "
                "write one output; give them ids of their own (utt-id path)"
            )
        utterances[utterance.id], lines[utterance.id] = utterance, number
    if not utterances:
        raise ListError(f"{path}: the list is empty")
    return list(utterances.values())


def read_named_paths(path: Path) -> list[tuple[str, Path]]:
    """Read a list of ``name path`` a line (``kmeans.scp``), in its order; names are unique.

    Raises:
        ListError: The list is unreadable or empty, a line has no path, or two lines have one name.
    """
    named: dict[str, Path] = {}
    for number, line in _lines(path):
        name, _, rest = line.partition(" ")
        if not rest.strip():
            raise ListError(f"{path}, line {number}: expected 'name path', found {_short(line)}")
        if name in named:
            raise ListError(f"{path}, line {number}: the name {_short(name)} is there twice")
        named[name] = _resolve(rest.strip(), path)
    if not named:
        raise ListError(f"{path}: the list is empty")
    return list(named.items())


def check_name(name: str, where: str) -> None:
    """Refuse an id that cannot name a file inside the output folder.

    Raises:
        ListError: It is empty, ``.`` or ``..``, too long, or holds a slash, a backslash or a control character.
    """
    # 200 bytes leave room for an extension and a temporary name within the 255 that file systems allow.
    if name in {"", ".", ".."} or len(name.encode()) > 200 or any(c in "/\\" or not c.isprintable() for c in name):
        raise ListError(f"{where}: '{_short(name)}' cannot name an output file")


def _lines(path: Path) -> list[tuple[int, str]]:
    """The list's lines that are not blank, with their numbers, runs of tabs and spaces after the id made one space."""
    lines = []
    try:
        if path.exists() and not path.is_file():  # a pipe or device may never begin, or never end
            raise ListError(f"{path}: not a regular file")
        if path.stat().st_size > _MAX_LIST_BYTES:
            raise ListError(f"{path}: larger than 1 GB, which is no list")
        with path.open(encoding="utf-8-sig") as file:
            number = 0
            while line := file.readline(_MAX_LINE + 1):  # what is no list may be one line
                number += 1
                line = line.removesuffix("\n")
                if len(line) > _MAX_LINE:
                    raise ListError(f"{path}, line {number}: too long for a line of a list")
                if _CONTROL.search(line):
                    raise ListError(f"{path}, line {number}: holds control characters: {_short(line)}")
                if line.strip(_BLANKS):
                    lines.append((number, _one_space(line.strip(_BLANKS))))
    except OSError as error:
        raise ListError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ListError(f"{path}: not a text file in UTF-8") from None
    except ValueError as error:  # a path that no file can have
        raise ListError(f"{path}: cannot be read ({error})") from None
    return lines


def _one_space(line: str) -> str:
    first = re.split(f"[{_BLANKS}]", line, maxsplit=1)[0]
    return f"{first} {line[len(first) :].strip(_BLANKS)}".rstrip()


def _resolve(text: str, path: Path) -> Path:
    """A path of the list: as it is when absolute or there, else beside the list."""
    given = Path(text)
    if given.is_absolute() or _exists(given):
        return given
    beside = path.parent / given
    return beside if _exists(beside) else given


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _short(text: str) -> str:
    """For an error: not long, and on one line."""
    shown = repr(text)[1:-1]
    return shown if len(shown) <= 80 else shown[:77] + "..."
