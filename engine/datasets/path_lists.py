"""Reads lists of paths: recordings (Kaldi ``wav.scp`` or bare paths) and k-means models."""

from __future__ import annotations

import os
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mkc_fast.engine.datasets.dataset import Utterance
from mkc_fast.engine.datasets.decoders import decoded_file
from mkc_fast.engine.datasets.lines import PathResolver, check_name, read_lines, shown_list
from mkc_fast.errors import ListError
from mkc_fast.text import printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mkc_fast.engine.datasets.shards import Shard
    from mkc_fast.engine.storage.addresses import Place


@dataclass(frozen=True)
class AudioList:
    """The recordings of a list, whose outputs go into one folder: a ``Dataset``.

    Attributes:
        utterances: To anonymize.
        out: The output folder.
    """

    utterances: list[Utterance]
    out: Path

    @property
    def audio_dir(self) -> Path:
        """The output folder itself."""
        return self.out

    @property
    def record_dir(self) -> Path:
        """The output folder itself."""
        return self.out

    @property
    def described(self) -> bool:
        """No: the folder holds nothing but outputs and their manifest."""
        return False

    @property
    def groups(self) -> None:
        """None: each output stays a file of its own."""
        return None

    def part(self, shard: Shard) -> AudioList:
        """The utterances of a shard."""
        return AudioList([each for each in self.utterances if shard.holds(each.id)], shard.folder(self.out))

    def finish(self, outputs: Mapping[str, Path]) -> None:
        """Do nothing: the outputs are all there is."""

    def unfinish(self) -> None:
        """Do nothing: nothing says that the folder is complete."""


def read_audio_list(path: Place, *, allow_commands: bool = False) -> list[Utterance]:
    """Read a list of ``path`` or ``utt-id path`` a line; without an id, the file's stem is the id.

    Blank lines are skipped, and so are comments, lines that begin with ``#`` (blanks before it do not count). Relative
    paths are against the working directory, else against the list's own folder; a path may be an address
    (``s3://bucket/key``). A line that ends in ``|`` is a command (as Kaldi has them). If it only decodes a file
    (``flac -c -d -s PATH |``, see ``decoded_file``), the file is read directly; any other is refused unless
    ``allow_commands``.

    Args:
        path: The list; ``-`` is the standard input, with paths against the working directory alone, as of a list at an
            address.
        allow_commands: Admit recordings that are another command's output; the commands are not run here.

    Raises:
        ListError: The list is unreadable or empty, two lines have one id, an id cannot name a file, or a line is a
            command.
    """
    utterances: list[Utterance] = []
    ids: set[str] = set()
    lines = array("L")
    resolver = PathResolver(path)
    where = shown_list(path)
    for number, line in read_lines(path):
        first, _, rest = line.partition(" ")
        if line.endswith("|"):
            command = rest[:-1].strip()
            decoded = decoded_file(command)
            if decoded is not None:
                utterance = Utterance(first, resolver.resolve(decoded))
            elif not allow_commands:
                raise ListError(
                    f"{where}, line {number}: a command, which is run only with --allow-commands: {printable(line)}"
                )
            elif not command:
                raise ListError(f"{where}, line {number}: expected 'utt-id command |', found {printable(line)}")
            else:
                utterance = Utterance(first, printable(command), command=command)
        # A line without an id may hold a path with spaces in it: then the whole line names a file that is there.
        elif rest and not resolver.names_file(line):
            utterance = Utterance(first, resolver.resolve(rest))
        else:
            file = resolver.resolve(line)
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

    Blank lines are skipped, and so are comments, lines that begin with ``#`` (blanks before it do not count). If two
    files have one name, all are named by their paths instead (``named_by_path``).

    Raises:
        ListError: The list is unreadable or empty, a line has no path, or a file is there twice under one name.
    """
    models: list[tuple[str, Path]] = []
    known: set[tuple[str, Path]] = set()
    resolver = PathResolver(path)
    for number, line in read_lines(path, standard_input=False):
        name, _, rest = line.partition(" ")
        if not rest:
            raise ListError(f"{path}, line {number}: expected 'name path', found {printable(line)}")
        model = name, Path(resolver.resolve(rest))
        if model in known:
            raise ListError(f"{path}, line {number}: {printable(line)} is there twice")
        known.add(model)
        models.append(model)
    if not models:
        raise ListError(f"{path}: the list is empty")
    if len({name for name, _ in models}) < len(models):
        return named_by_path([file for _, file in models], str(path))
    return models


def named_by_path(paths: Sequence[Path], where: str) -> list[tuple[str, Path]]:
    """Name files by their stems; if two stems are equal, by as many of the folders above as tell all paths apart.

    Args:
        paths: In the order of the result.
        where: What an error begins with.

    Raises:
        ListError: There is no path, or one is there twice.
    """
    whole = [Path(os.path.abspath(path)) for path in paths]  # noqa: PTH100 - links keep their names
    if not whole:
        raise ListError(f"{where}: there is no file")
    known: set[Path] = set()
    for path in whole:
        if path in known:
            raise ListError(f"{where}: {printable(str(path), 200)} is there twice")
        known.add(path)
    parts = [(*path.parts[1:-1], path.stem) for path in whole]
    if len(set(parts)) < len(parts):  # two files differ in their suffixes only
        parts = [path.parts[1:] for path in whole]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return list(zip(names, paths, strict=True))
