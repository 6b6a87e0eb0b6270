"""Kaldi data directories: reads their utterances, and makes the anonymized directories that evaluations read."""

from __future__ import annotations

import math
import os
import shutil
from array import array
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mkc_fast.engine.atomic_files import atomic_file
from mkc_fast.engine.datasets.dataset import Utterance
from mkc_fast.engine.datasets.decoders import decoded_file
from mkc_fast.engine.datasets.durations import lengths_of, with_durations, with_frame_counts
from mkc_fast.engine.datasets.lines import PathResolver, check_name, read_lines
from mkc_fast.errors import ListError, OutputError
from mkc_fast.text import printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mkc_fast.engine.datasets.shards import Shard

AUDIO_FOLDER = "wav"
# wav.scp is written new. The others describe the original recordings, and segments would cut the outputs again.
_NOT_COPIED = frozenset({"wav.scp", "segments", "manifest.jsonl"})
# Of recordings, which are others where there were segments.
_OF_RECORDINGS = frozenset({"reco2dur", "reco2file_and_channel"})
# Lengths of the recordings, which are recomputed for the outputs.
_DURATIONS, _FRAME_COUNTS = frozenset({"utt2dur", "reco2dur"}), "utt2num_frames"
# Features of the original speech (feats.scp, cmvn.scp, raw_mfcc.1.ark), and the speech itself: either would defeat the
# anonymization. Files of the first get their names, and no content.
_FEATURES = frozenset({".scp", ".ark"})
_ORIGINAL_SPEECH = frozenset(
    {".wav", ".flac", ".sph", ".wv1", ".wv2", ".mp3", ".ogg", ".opus", ".m4a", ".aif", ".aiff", ".au"}
)


@dataclass(frozen=True)
class DataDirectory:
    """A Kaldi data directory to anonymize: a ``Dataset``.

    Attributes:
        path: The directory, as it was given.
        out: Its anonymized sibling: same parent, its name + suffix; relative where ``path`` is.
        utterances: Its segments, or the recordings of its ``wav.scp`` where it has no ``segments``; in their order.
        audio_folder: Name of the folder in ``out`` with the anonymized recordings.
        relative_to: Paths in the ``wav.scp`` of ``out`` are relative to this; None: they begin with ``out``.
    """

    path: Path
    out: Path
    utterances: list[Utterance]
    audio_folder: str = AUDIO_FOLDER
    relative_to: Path | None = None

    @property
    def audio_dir(self) -> Path:
        """The folder of recordings in ``out``."""
        return self.out / self.audio_folder

    @property
    def record_dir(self) -> Path:
        """Beside ``out``: see ``record_dir_of``."""
        return record_dir_of(self.out)

    @property
    def described(self) -> bool:
        """Yes."""
        return True

    @property
    def groups(self) -> None:
        """None: each output stays a file of its own."""
        return None

    def part(self, shard: Shard) -> DataDirectoryShard:
        """The utterances of a shard."""
        utterances = [utterance for utterance in self.utterances if shard.holds(utterance.id)]
        return DataDirectoryShard(self.path, shard.folder(self.out), utterances, self.audio_folder, self.relative_to)

    def finish(self, outputs: Mapping[str, Path]) -> None:
        """Make ``out`` a data directory of the outputs that exist: see ``finish_data_directory``."""
        finish_data_directory(self, {name: path for name, path in outputs.items() if path.exists()})

    def unfinish(self) -> None:
        """Remove ``wav.scp`` of ``out``: without it, no evaluation begins."""
        scp = self.out / "wav.scp"
        try:
            scp.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"{scp}: cannot be removed ({error.strerror})") from None


@dataclass(frozen=True)
class DataDirectoryShard(DataDirectory):
    """A shard of a data directory: a ``Dataset`` of recordings and their manifest, without lists."""

    @property
    def record_dir(self) -> Path:
        """The shard's folder, so that it is whole when it is copied from another machine."""
        return self.out

    def finish(self, outputs: Mapping[str, Path]) -> None:
        """Do nothing: ``merge`` makes the data directory."""

    def unfinish(self) -> None:
        """Do nothing: nothing says that the directory is complete."""


def record_dir_of(out: Path) -> Path:
    """Where the manifest of an anonymized directory is: ``.mkc-fast/<name of out>`` beside it.

    Evaluations compare the files of ``out`` with those of the original, and submissions pack all of it. The manifest
    has the original paths.
    """
    return out.parent / ".mkc-fast" / out.name


def with_suffix(directory: DataDirectory, suffix: str) -> DataDirectory:
    """The same directory, with another anonymized sibling; the lists are not read again.

    Raises:
        ListError: The suffix is empty, or leads out of the parent directory.
        OutputError: The sibling is the directory itself, not a directory, or holds ``segments`` already.
    """
    return replace(directory, out=_sibling(directory.path, suffix))


def read_data_directory(
    path: Path, suffix: str, *, allow_commands: bool = False, audio_folder: str = AUDIO_FOLDER
) -> DataDirectory:
    """Read ``wav.scp`` (``id path`` or ``id command |``) and, if there, ``segments`` of a Kaldi data directory.

    A line of ``segments`` is ``utt-id recording-id start end``, in seconds; an end of -1 is the recording's end.
    Blank lines are skipped, and so are comments, lines that begin with ``#`` (blanks before it do not count). Relative
    paths in ``wav.scp`` are against the working directory, else the directory, else the folders above it. Of a command
    that only decodes a file (``flac -c -d -s PATH |``, see ``decoded_file``) the file is read directly. Nothing is
    written.

    Args:
        path: The directory.
        suffix: Added to its name, it names the anonymized sibling.
        allow_commands: Admit recordings that are another command's output; the commands are not run here.
        audio_folder: Name of the folder in the sibling with the anonymized recordings.

    Raises:
        ListError: A list is missing, unreadable, empty or contradictory, an utterance id cannot name a file, a
            recording is another command, the suffix is empty or leads out of the parent directory, or
            ``audio_folder`` is no plain name.
        OutputError: The sibling is the directory itself, not a directory, or holds ``segments`` already.
    """
    check_name(audio_folder, "the folder of the anonymized recordings")
    utterances = read_directory_utterances(path, allow_commands=allow_commands)
    return DataDirectory(path, _sibling(path, suffix), utterances, audio_folder)


def read_directory_utterances(path: Path, *, allow_commands: bool = False) -> list[Utterance]:
    """The utterances of a Kaldi data directory alone, as ``read_data_directory`` reads them.

    Args:
        path: The directory.
        allow_commands: Admit recordings that are another command's output; the commands are not run here.

    Raises:
        ListError: A list is missing, unreadable, empty or contradictory, an utterance id cannot name a file, or a
            recording is another command.
    """
    segments = path / "segments"
    # A dangling link is an error: without its segments, a directory means other utterances.
    segmented = segments.exists() or segments.is_symlink()
    recordings = _read_recordings(path / "wav.scp", allow_commands, names_files=not segmented)
    return _read_segments(segments, recordings) if segmented else list(recordings.values())


def finish_data_directory(directory: DataDirectory, written: Mapping[str, Path]) -> None:
    """Make ``directory.out`` a data directory of the recordings written: ``wav.scp``, and copies of the other files.

    Copied byte for byte are the directory's regular files (what links lead to, too): ``utt2spk``, ``spk2utt``,
    ``spk2gender``, ``text``, ``trials``, ``enrolls`` and others. ``utt2dur``, ``reco2dur`` and ``utt2num_frames`` get
    the lengths of the outputs. Not copied:

    - ``segments`` and, with it, ``reco2file_and_channel`` and ``reco2dur``: every utterance is now a recording of its
      own;
    - audio, which is the original speech; sub-directories; hidden files; ``manifest.jsonl``.

    ``feats.scp``, ``cmvn.scp``, ``vad.scp``, every other ``.scp`` and ``.ark`` describe the original speech: in the
    anonymized directory they would be wrong and a leak. They become empty files, unless ``directory.out`` has such
    files already, since evaluations compare the names of the files.

    Each file is written atomically, ``wav.scp`` last. Other files in ``directory.out`` are kept.

    Args:
        directory: What was read.
        written: The recording of each utterance id, its path as ``wav.scp`` is to show it. Ids that are not the
            directory's are ignored.

    Raises:
        OutputError: A file cannot be copied or written.
    """
    out = directory.out
    try:
        out.mkdir(exist_ok=True)
        sources = [source for source in sorted(directory.path.iterdir()) if _is_copied(source)]
    except OSError as error:
        raise OutputError(f"{error.filename or out}: cannot be read or written ({error.strerror})") from None
    # A recording may lie among the lists without an audio ending. Few names match, so few files are compared.
    names = {source.name for source in sources}
    originals = [u.path for u in directory.utterances if u.command is None and os.path.basename(u.file) in names]  # noqa: PTH119
    segmented = (directory.path / "segments").exists()
    lengths: dict[str, tuple[int, int]] | None = None
    for source in sources:
        if any(original.exists() and original.samefile(source) for original in originals):
            continue
        if segmented and source.name in _OF_RECORDINGS:
            continue
        if source.suffix.lower() in _FEATURES:
            _touch(out / source.name)
        elif source.name not in {*_DURATIONS, _FRAME_COUNTS}:
            _copy(source, out / source.name)
        else:
            if lengths is None:
                lengths = lengths_of({u.id: written[u.id] for u in directory.utterances if u.id in written})
            _copy_lengths(source, out / source.name, lengths)
    lines = [f"{u.id} {_shown_path(written[u.id], directory)}\n" for u in directory.utterances if u.id in written]
    try:
        with atomic_file(out / "wav.scp") as temporary:
            temporary.write_bytes("".join(lines).encode())
    except OSError as error:
        raise OutputError(f"{out / 'wav.scp'}: cannot be written ({error.strerror})") from None


def _shown_path(path: Path, directory: DataDirectory) -> str:
    """A path as ``wav.scp`` has it."""
    # A million of them, and all in one folder.
    return str(path) if directory.relative_to is None else os.path.relpath(path, directory.relative_to)


def _read_recordings(scp: Path, allow_commands: bool, *, names_files: bool) -> dict[str, Utterance]:
    """The recordings of a ``wav.scp`` by id; without ``segments``, the ids also name the outputs.

    This is not ``read_audio_list``: here every line has an id, and with ``segments`` the id may hold slashes.
    """
    recordings: dict[str, Utterance] = {}
    lines = array("L")
    resolver = PathResolver(scp, parents=True)
    for number, line in read_lines(scp):
        name, _, target = line.partition(" ")
        where = f"{scp}, line {number}"
        command = target[:-1].strip() if target.endswith("|") else None
        if command and (decoded := decoded_file(command)) is not None:
            target, command = decoded, None
        if not target or command == "":
            raise ListError(f"{where}: expected 'utt-id path', found '{printable(line)}'")
        if command is not None and not allow_commands:
            raise ListError(f"{where}: a command, which is run only with --allow-commands: '{printable(line)}'")
        if name in recordings:
            raise ListError(
                f"{where}: the id '{printable(name)}' is on line {_line_of(name, recordings, lines)} already"
            )
        if names_files:
            check_name(name, str(scp), number)
        file = printable(command) if command is not None else resolver.resolve(target)
        recordings[name] = Utterance(name, file, command=command)
        lines.append(number)
    if not recordings:
        raise ListError(f"{scp}: the list is empty")
    return recordings


def _read_segments(segments: Path, recordings: Mapping[str, Utterance]) -> list[Utterance]:
    utterances: dict[str, Utterance] = {}
    lines = array("L")
    for number, line in read_lines(segments):
        where = f"{segments}, line {number}"
        fields = line.split()
        if len(fields) != 4:
            raise ListError(f"{where}: expected 'utt-id recording-id start end', found '{printable(line)}'")
        name, recording, begin, end = fields
        check_name(name, where)
        if name in utterances:
            raise ListError(
                f"{where}: the id '{printable(name)}' is on line {_line_of(name, utterances, lines)} already"
            )
        if recording not in recordings:
            raise ListError(f"{where}: the recording '{printable(recording)}' is not in wav.scp")
        begin_s, end_s = _bounds(begin, end, where)
        utterances[name] = replace(recordings[recording], id=name, begin_s=begin_s, end_s=end_s)
        lines.append(number)
    if not utterances:
        raise ListError(f"{segments}: the list is empty")
    return list(utterances.values())


def _line_of(name: str, read: Mapping[str, Utterance], lines: Sequence[int]) -> int:
    """The number of the line that an id was on."""
    return lines[list(read).index(name)]


def _bounds(begin: str, end: str, where: str) -> tuple[float, float | None]:
    """A segment's bounds in seconds; None is the recording's end, for which Kaldi writes -1."""
    try:
        begin_s, end_s = float(begin), float(end)
    except ValueError:
        raise ListError(f"{where}: '{printable(begin)}' to '{printable(end)}' are not two numbers of seconds") from None
    to_the_end = end_s == -1
    if not (0 <= begin_s < math.inf and (to_the_end or begin_s < end_s < math.inf)):
        raise ListError(
            f"{where}: from {printable(begin)} s to {printable(end)} s is no segment; expected 0 <= start < end"
        )
    return begin_s, None if to_the_end else end_s


def _sibling(path: Path, suffix: str) -> Path:
    """The directory's name + suffix beside it, checked to be usable as its anonymized directory."""
    if not suffix:
        raise ListError(f"{path}: the suffix of its anonymized directory is empty")
    try:
        # "." and ".." are no names; the directories that they stand for are beside "./.." and "../..".
        named = path.name not in {"", ".."}
        name = path.name if named else path.resolve().name
        out = (path.parent if named else path / "..") / (name + suffix)
        if not name:
            raise ListError(f"{path}: has no name that could get the suffix {suffix!r}")
        if not str(out).isprintable():
            raise ListError(
                f"{printable(str(out), 300)}: wav.scp cannot hold a path with control characters or not in UTF-8"
            )
        check_name(name + suffix, f"{path} with the suffix {suffix!r}")
        if out.exists() and out.samefile(path):
            raise OutputError(f"{out}: is {path} itself; choose another suffix")
        if out.exists() and not out.is_dir():
            raise OutputError(f"{out}: not a directory")
        if (out / "segments").exists():
            raise OutputError(f"{out / 'segments'}: would cut the anonymized recordings again; remove it")
    except OSError as error:
        raise OutputError(f"{path}: its sibling cannot be written ({error.strerror})") from None
    return out


def left_behind(path: Path) -> list[str]:
    """Names of a data directory's plain files that its anonymized directory does not get, under the same name or new.

    Hidden files do not count, nor does ``wav.scp``, which is written new.
    """
    try:
        files = [each for each in sorted(path.iterdir()) if each.is_file() and not each.name.startswith(".")]
    except OSError:
        return []
    segmented = (path / "segments").exists()
    return [
        each.name
        for each in files
        if each.name != "wav.scp" and (not _is_copied(each) or (segmented and each.name in _OF_RECORDINGS))
    ]


def _is_copied(source: Path) -> bool:
    name = source.name
    unwanted = name.startswith(".") or name in _NOT_COPIED or source.suffix.lower() in _ORIGINAL_SPEECH
    return not unwanted and source.is_file()


def _copy_lengths(source: Path, target: Path, lengths: Mapping[str, tuple[int, int]]) -> None:
    """Write a list of lengths with those of the outputs; as it is if it is no text."""
    try:
        text = source.read_bytes().decode()
    except OSError as error:
        raise OutputError(f"{target}: cannot be copied from {source} ({error.strerror})") from None
    except UnicodeDecodeError:
        _copy(source, target)
        return
    text = (with_frame_counts if source.name == _FRAME_COUNTS else with_durations)(text, lengths)
    try:
        with atomic_file(target) as temporary:
            temporary.write_bytes(text.encode())
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror})") from None


def _touch(target: Path) -> None:
    """Make an empty file, where there is none."""
    try:
        target.touch()
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror})") from None


def _copy(source: Path, target: Path) -> None:
    try:
        with atomic_file(target) as temporary:
            shutil.copyfile(source, temporary)
    except OSError as error:
        raise OutputError(f"{target}: cannot be copied from {source} ({error.strerror})") from None
