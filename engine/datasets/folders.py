"""Files and folders of recordings: found by their endings, at any depth; their outputs mirror the tree."""

from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from mkc_fast.engine.datasets.dataset import Utterance
from mkc_fast.engine.datasets.kinds import decodable, ending_of, how_to_decode, sound
from mkc_fast.engine.datasets.lines import OWN_FOLDER, check_id
from mkc_fast.engine.storage.addresses import is_address
from mkc_fast.engine.storage.listing import objects_below
from mkc_fast.errors import ListError, OutputError
from mkc_fast.text import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mkc_fast.engine.storage.addresses import Address

_logger = logging.getLogger("mkc_fast")
_MANIFEST = "manifest.jsonl"
# How a manifest of a run begins.
_MANIFEST_HEAD = b'{"type": "run"'
# More folders within folders are a mistake; a path has at most 4096 bytes.
_DEEPEST = 1000
_Place = tuple[int, int]  # device and inode


def read_folder(folder: Path) -> list[Utterance]:
    """The recordings of a folder, as ``read_folders`` finds them, or the outputs of a run, if it holds those.

    Raises:
        ListError: As ``read_folders``.
    """
    found = _Found(None)
    found.folder(str(folder), "")
    found.report()
    if not found.utterances:
        raise ListError(f"{printable(str(folder), 300)}: no recordings")
    return found.utterances


def read_folders(inputs: Sequence[str], out: Path, remote: Address | None = None) -> list[Utterance]:
    """Find the recordings of files and folders, or of objects; an id is the path below the folder, without its ending.

    With several folders an id begins with the folder's name. A file that is named itself is taken whatever its ending
    is. In folders, only files whose endings can be decoded are taken; a warning counts recordings of other kinds.
    Hidden files and folders are left out, and so are the output folder and the outputs of other runs (a folder with a
    manifest of one). Links to folders are followed, each folder once.

    Args:
        inputs: Files and folders.
        out: The output folder.
        remote: Its address, if it is at one.

    Raises:
        ListError: An input is not there, a folder cannot be read, nothing is found, two recordings differ only in
            their endings and would have one output, or a name cannot be that of an output.
        OutputError: The output folder is an input.
    """
    found = _Found(out, remote)
    folders = [path for path in inputs if os.path.isdir(path)]  # noqa: PTH112
    for path in inputs:
        if is_address(path):
            found.objects(path, len(inputs) > 1)
        elif path in folders:
            found.folder(path, f"{_name_of(path)}/" if len(inputs) > 1 else "")
        elif os.path.lexists(path):
            found.add(_without_ending(os.path.basename(path)), path)  # noqa: PTH119
        else:
            raise ListError(f"{printable(path, 300)}: no such file or folder")
    found.report()
    if not found.utterances:
        tars = found.others["tar"]
        hint = f"; of its {tars} .tar files give the names, such as 'shards-*.tar'" if tars else ""
        raise ListError(f"{', '.join(printable(path, 300) for path in inputs)}: no recordings{hint}")
    return found.utterances


def _name_of(folder: str) -> str:
    """The name of a folder; "." and ".." are none."""
    return os.path.basename(os.path.realpath(folder))  # noqa: PTH119


def _without_ending(name: str) -> str:
    """``a.b`` of ``a.b.wav``."""
    return os.path.splitext(name)[0]  # noqa: PTH122


class _Found:
    """What is found in files and folders; without an output folder, the folder itself may be one of a run."""

    def __init__(self, out: Path | None, remote: Address | None = None) -> None:
        self._remote = remote
        self.utterances: list[Utterance] = []
        self.others: Counter[str] = Counter()  # files that are left out, by their ending
        self._out = out
        self._own = set() if out is None else {place for place in [_place(str(out))] if place is not None}
        self._files: dict[str, str] = {}  # by id
        self._visited: set[_Place] = set()
        self._left_out: list[str] = []
        self._linked_twice = 0

    def add(self, name: str, path: str) -> None:
        """Take a recording."""
        check_id(name, printable(path, 300))
        earlier = self._files.setdefault(name, path)
        if earlier is not path:
            raise ListError(
                f"{printable(path, 300)} and {printable(earlier, 300)} would have one output; rename one, or give a "
                "list of 'utt-id path' a line"
            )
        self.utterances.append(Utterance(name, path))

    def folder(self, path: str, prefix: str) -> None:
        """Take the recordings of a folder, in the order of their names; links to folders are followed at the end."""
        place = _place(path)
        if place in self._own:
            raise OutputError(f"{self._out}: is the input itself; choose another output folder")
        if place in self._visited:
            raise ListError(f"{printable(path, 300)}: is given twice, or lies in another input")
        links: list[tuple[str, str]] = [(path, prefix)]
        while links:
            following = sorted(links, reverse=True)
            links = []
            while following:
                self._walk(*following.pop(), links)

    def objects(self, url: str, several: bool) -> None:
        """Take the object at an address, or the recordings among those below it, in the order of their names."""
        below = objects_below(url, ListError)
        top = url.rstrip("/")
        if not below:
            self.add(_without_ending(top.rpartition("/")[2]), url)
            return
        prefix = f"{top.rpartition('/')[2]}/" if several else ""
        if self._remote is not None and top == self._remote.url:
            raise OutputError(f"{top}: is the input itself; choose another output folder")
        own = None if self._remote is None else f"{self._remote}/"
        for name in sorted(below):
            if own is not None and f"{top}/{name}".startswith(own):
                continue
            if ending_of(name) in decodable():
                self.add(prefix + _without_ending(name), f"{top}/{name}")
            else:
                self.others[ending_of(name)] += 1

    def report(self) -> None:
        """Warn of recordings that cannot be decoded here, and say what was left out."""
        unknown = {ending: count for ending, count in self.others.items() if ending in sound()}
        if unknown:
            kinds = ", ".join(f"{count} .{ending}" for ending, count in sorted(unknown.items()))
            _logger.warning("left out, since they cannot be decoded here: %s; %s", kinds, how_to_decode())
        if self._left_out:
            more = f" and {len(self._left_out) - 1} more" if len(self._left_out) > 1 else ""
            _logger.warning("left out, since it holds outputs: %s%s", printable(self._left_out[0], 300), more)
        if self._linked_twice:
            _logger.warning("left out, since they lead to folders that were read: %d link(s)", self._linked_twice)

    def _walk(self, path: str, prefix: str, links: list[tuple[str, str]]) -> None:
        """Take what is in a folder and in those below it; links to folders are kept for later."""
        left = [(path, prefix)]
        while left:
            path, prefix = left.pop()
            place = _place(path)
            if place is None or place in self._own or (self._out and _is_shard_of(path, self._out)):
                continue
            if place in self._visited:
                self._linked_twice += 1
                continue
            self._visited.add(place)
            if prefix.count("/") > _DEEPEST:
                raise ListError(f"{printable(path, 300)}: more than {_DEEPEST} folders within each other")
            try:
                with os.scandir(path) as scanned:
                    entries = sorted(scanned, key=lambda entry: entry.name)
            except OSError as error:
                raise ListError(f"{printable(path, 300)}: cannot be read ({error.strerror})") from None
            names = {entry.name for entry in entries}
            if (prefix or self._out is not None) and _holds_outputs(path, names):
                self._left_out.append(path)
                continue
            below = []
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    if OWN_FOLDER in names and _is_manifest(os.path.join(path, OWN_FOLDER, entry.name, _MANIFEST)):  # noqa: PTH118
                        self._left_out.append(entry.path)
                        continue
                    below.append((entry.path, f"{prefix}{entry.name}/"))
                elif entry.is_symlink() and entry.is_dir():
                    links.append((entry.path, f"{prefix}{entry.name}/"))
                elif ending_of(entry.name) not in decodable():
                    self.others[ending_of(entry.name)] += 1
                elif entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path)):  # noqa: PTH110
                    # A link to nothing is a recording that is missing: the run reports it.
                    self.add(prefix + _without_ending(entry.name), entry.path)
            left.extend(reversed(below))


def _place(path: str) -> _Place | None:
    """The device and inode of a folder; None if it is not there."""
    try:
        found = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def _is_shard_of(path: str, out: Path) -> bool:
    """Whether a folder is that of a shard of this output folder."""
    name = os.path.basename(path)  # noqa: PTH119
    if not name.startswith(f"{out.name}.shard-"):
        return False
    return _place(os.path.dirname(path) or os.curdir) == _place(str(out.parent))  # noqa: PTH120


def _holds_outputs(path: str, names: set[str]) -> bool:
    """Whether a folder is the output folder of a run."""
    return (_MANIFEST in names and _is_manifest(os.path.join(path, _MANIFEST))) or (  # noqa: PTH118
        OWN_FOLDER in names and _is_manifest(os.path.join(path, OWN_FOLDER, _MANIFEST))  # noqa: PTH118
    )


def _is_manifest(path: str) -> bool:
    """Whether a file is the manifest of a run."""
    try:
        if not os.path.isfile(path):  # noqa: PTH113
            return False
        with open(path, "rb") as file:  # noqa: PTH123
            return file.read(len(_MANIFEST_HEAD)) == _MANIFEST_HEAD
    except OSError:
        return False
