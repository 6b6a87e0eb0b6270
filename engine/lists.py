"""Reads the lists that say what to work on: recordings (Kaldi ``wav.scp`` or bare paths) and k-means models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mkc_fast import ListError

# A list of train-clean-360 is 10 MB; what is a hundred times that is no list.
_MAX_LIST_BYTES = 1 << 30


@dataclass(frozen=True)
class Utterance:
    """A recording to anonymize: its id, which names its output and seeds its draws, and where it is."""

    id: str
    path: Path


def read_audio_list(path: Path) -> list[Utterance]:
    """Read a list of ``path`` or ``utt-id path`` a line; without an id, the file's stem is the id.

    Blank lines are skipped. Relative paths are against the working directory, else against the list's own folder.

    Raises:
        ListError: The list is unreadable or empty, two lines have one id, or an id cannot name a file.
    """
    utterances: dict[str, Utterance] = {}
    lines: dict[str, int] = {}
    for number, line in _lines(path):
        first, _, rest = line.partition(" ")
        rest = rest.strip()
        if line.endswith("|"):
            raise ListError(f"{path}, line {number}: a command, not a path: {_short(line)}")
        # A line without an id may hold a path with spaces in it: then the whole line names a file that is there.
        name, target = (first, rest) if rest and not _resolve(line, path).is_file() else ("", line)
        file = _resolve(target, path)
        utterance = Utterance(name or file.stem, file)
        check_name(utterance.id, f"{path}, line {number}")
        if utterance.id in utterances:
            raise ListError(
                f"{path}: lines {lines[utterance.id]} and {number} are both named {_short(utterance.id)}, and would write "
                "one output; give them ids of their own (utt-id path)"
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
        raise ListError(f"{where}: {_short(name)!r} cannot name an output file")


def _lines(path: Path) -> list[tuple[int, str]]:
    """The list's lines that are not blank, with their numbers, runs of tabs and spaces after the id made one space."""
    try:
        if path.stat().st_size > _MAX_LIST_BYTES:
            raise ListError(f"{path}: larger than 1 GB, which is no list")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ListError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ListError(f"{path}: not a text file in UTF-8") from None
    if "\0" in text:
        raise ListError(f"{path}: not a text file")
    stripped = ((number, line.strip()) for number, line in enumerate(text.split("\n"), start=1))
    return [(number, _one_space(line)) for number, line in stripped if line]


def _one_space(line: str) -> str:
    parts = line.split(maxsplit=1)
    return f"{parts[0]} {parts[1]}" if len(parts) == 2 and not line.startswith(f"{parts[0]} {parts[1]}") else line


def _resolve(text: str, path: Path) -> Path:
    """A path of the list: as it is when absolute or there, else beside the list."""
    given = Path(text)
    if given.is_absolute() or _exists(given):
        return given
    beside = path.parent / given
    return beside if _exists(beside) else given


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."
