"""Where outputs go, and the checks that they replace nothing that they must not."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mkc_fast.engine.atomic_files import remove_temporaries
from mkc_fast.engine.corpus.manifest import MANIFEST_FILE
from mkc_fast.engine.datasets.dataset import files_of
from mkc_fast.engine.storage.addresses import is_address
from mkc_fast.engine.storage.listing import objects_below
from mkc_fast.errors import ListError, MkcError, OutputError
from mkc_fast.names import FORMATS, UTTERANCE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mkc_fast.engine.corpus.manifest import Manifest
    from mkc_fast.engine.corpus.protocol import Settings
    from mkc_fast.engine.datasets.dataset import Groups, Utterance
    from mkc_fast.engine.datasets.shards import Shard
    from mkc_fast.engine.storage.addresses import Address
    from mkc_fast.names import Level


# Folders of outputs whose names are kept at a time.
_MOST_LISTED = 1 << 10


class Outputs(Mapping[str, Path]):
    """Where the output of each utterance goes, by id; made on access, since a million paths would fill the memory.

    Attributes:
        folder: Where all of them go.
        suffix: Of their names, with its dot.
        remote: The address that workers write them to; then ``folder`` only names them. None: they are files.
    """

    def __init__(
        self, utterances: Sequence[Utterance], folder: Path, suffix: str, remote: Address | None = None
    ) -> None:
        self.folder = folder
        self.suffix = suffix
        self.remote = remote
        self._utterances = utterances
        self._objects: dict[str, int] | None = None

    def __getitem__(self, utterance_id: str) -> Path:
        """The output that an utterance of this id has."""
        return self.folder / (utterance_id + self.suffix)

    def __iter__(self) -> Iterator[str]:
        return (utterance.id for utterance in self._utterances)

    def __len__(self) -> int:
        return len(self._utterances)

    def existing(self) -> Iterator[Path]:
        """The outputs that exist, under any name that the file system takes for theirs."""
        if self.remote is not None:
            objects = self._listed_objects()
            yield from (self[name] for name in self if name + self.suffix in objects)
            return
        folds = _folds_case(self.folder)
        # One listing of each folder instead of a look-up for each utterance.
        listed: dict[str, frozenset[str] | None] = {}
        for utterance_id in self:
            below, _, name = utterance_id.rpartition("/")
            if below not in listed:
                if len(listed) >= _MOST_LISTED:
                    listed.clear()
                listed[below] = _listed(self.folder / below, folds)
            names = listed[below]
            if names is None:  # a folder that cannot be listed
                if self[utterance_id].exists():
                    yield self[utterance_id]
            elif names and (_folded(name + self.suffix) if folds else name + self.suffix) in names:
                yield self[utterance_id]

    def size_of(self, utterance_id: str) -> int | None:
        """The size of an output that exists, in bytes; None if there is none."""
        if self.remote is not None:
            return self._listed_objects().get(utterance_id + self.suffix)
        try:
            return self[utterance_id].stat().st_size
        except OSError:
            return None

    def forget(self) -> None:
        """Free what was listed at an address."""
        self._objects = None

    def _listed_objects(self) -> dict[str, int]:
        """Names and sizes at the address, which is asked once: a run changes them afterwards."""
        assert self.remote is not None
        if self._objects is None:
            self._objects = objects_below(self.remote.url, OutputError, hidden=True)
        return self._objects

    def subfolders(self) -> set[str]:
        """The folders in ``folder`` that ids name (``spk/chapter`` of ``spk/chapter/utt``)."""
        return {below for name in self if (below := name.rpartition("/")[0])}


def _listed(folder: Path, folds: bool) -> frozenset[str] | None:
    """The names in a folder, as they are compared; none if it is not there, None if it cannot be listed."""
    try:
        names = os.listdir(folder)  # noqa: PTH208
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
    except OSError:
        return None
    return frozenset(map(_folded, names) if folds else names)


@dataclass(frozen=True)
class Folder:
    """Utterances that go into one output folder.

    Attributes:
        path: Where the manifest is.
        utterances: To anonymize.
        outputs: Where the output of each goes, by id.
        out: Where lists go, if that is another folder.
        bank: The bank of its draws; None: the run's.
        level: Which utterances share a draw: ``utterance`` (none), ``speaker`` or ``constant``.
        role: ``attacker`` or ``user`` in an experiment of VoicePrivacy.
        shard: Which part of a corpus it is, if it is a part.
        salt: Of the digests in its manifest, where it must be that of other folders.
        groups: Which outputs become files together, if any do.
        remote: The address of ``out``, whose files are then in a working folder of this machine.
    """

    path: Path
    utterances: Sequence[Utterance]
    outputs: Outputs
    out: Path | None = None
    bank: Path | None = None
    level: Level = UTTERANCE
    role: str | None = None
    shard: Shard | None = None
    salt: str | None = None
    groups: Groups | None = None
    remote: Address | None = None

    def address_of(self, path: Path) -> Address:
        """Where a file of a folder at an address goes."""
        assert self.remote is not None
        return self.remote / relative_name(path, self.out or self.path)

    @property
    def shown(self) -> str:
        """The output folder as messages call it."""
        return str(self.remote or self.out or self.path)

    @property
    def directories(self) -> set[Path]:
        """The directories that hold the folder's files."""
        below = {self.outputs.folder / name for name in self.outputs.subfolders()}
        grouped = {path.parent for path in files_of(self.groups)}
        return {self.path, self.outputs.folder, self.out or self.path} | below | grouped

    def existing(self) -> Iterator[Path]:
        """The outputs that exist, and the files of groups."""
        yield from self.outputs.existing()
        if self.remote is None or self.groups is None:
            yield from (path for path in files_of(self.groups) if path.exists())
            return
        there = objects_below(self.remote.url, OutputError)
        yield from (path for path in files_of(self.groups) if relative_name(path, self.out or self.path) in there)


def plan_folder(
    utterances: Sequence[Utterance],
    folder: Path,
    audio_folder: Path,
    settings: Settings,
    out: Path | None = None,
    groups: Groups | None = None,
    remote: Address | None = None,
) -> Folder:
    """Plan where each output goes; nothing is written.

    Args:
        utterances: To anonymize.
        folder: Where the manifest goes.
        audio_folder: Where the outputs go.
        settings: Of the run.
        out: Where lists go, if that is another folder.
        groups: Which outputs become files together, if any do.
        remote: The address of ``out``, which is a working folder then.

    Raises:
        ListError: Two outputs have one name where the file system does not tell upper case from lower, or one has the
            name of a folder that another needs.
        OutputError: An output would replace its own recording, or the folder is a file.
        MkcError: The format is not known.
    """
    if settings.format not in FORMATS:
        raise MkcError(f"format is {settings.format!r}; expected one of {', '.join(FORMATS)}")
    for part in (folder, audio_folder, out or folder):
        try:
            if part.exists() and not part.is_dir():
                raise OutputError(f"{part}: exists, and is no folder")
        except OSError as error:
            raise OutputError(f"{part}: cannot be used ({error.strerror})") from None
    written_to = None
    if remote is not None and groups is None:
        below = relative_name(audio_folder, out or folder)
        written_to = remote if below == os.curdir else remote / below
    outputs = Outputs(utterances, audio_folder, f".{settings.format}", written_to)
    if _folds_case(folder):
        folded = Counter(_folded(name) for name in outputs)
        for name in outputs:
            if folded[_folded(name)] > 1:
                raise ListError(f"{name}: another id differs only in case, and would write the same file")
    subfolders = {above for below in outputs.subfolders() for above in _with_parents(below)}
    for name in outputs if subfolders else ():
        if name + outputs.suffix in subfolders:
            raise ListError(f"{name}{outputs.suffix}: is the output of one recording and the folder of another's")
    planned = Folder(folder, utterances, outputs, out, groups=groups, remote=remote)
    check_recordings([planned])
    return planned


def _with_parents(folder: str) -> Iterator[str]:
    """``a/b`` and ``a`` of ``a/b``."""
    while folder:
        yield folder
        folder = folder.rpartition("/")[0]


def check_recordings(folders: Sequence[Folder]) -> None:
    """Refuse to replace a recording: no output of any folder may be a recording of any.

    Raises:
        OutputError: An output is one.
    """
    _check_objects(folders)
    existing = (output for folder in folders if folder.remote is None for output in folder.existing())
    replaced = {file: output for output in existing if (file := _file_of(output))}
    recordings = {
        u.path
        for folder in folders
        if replaced
        for u in folder.utterances
        if u.command is None and not is_address(str(u.file))
    }
    for recording in recordings:
        file = _file_of(recording)
        if file in replaced:
            output = replaced[file]
            raise OutputError(f"{output}: is the recording {recording} itself; choose another output folder")


def _check_objects(folders: Sequence[Folder]) -> None:
    """The same for outputs at addresses."""
    for folder in folders:
        if folder.outputs.remote is None:
            continue
        top, suffix = f"{folder.outputs.remote.url}/", folder.outputs.suffix
        files = (str(utterance.file) for each in folders for utterance in each.utterances)
        there = {file for file in files if file.startswith(top)}
        for name in folder.outputs if there else ():
            if f"{top}{name}{suffix}" in there:
                raise OutputError(f"{top}{name}{suffix}: is a recording, and would be replaced; choose another address")


def relative_name(path: Path, out: Path) -> str:
    """A path below an output folder, as addresses have it."""
    return os.path.relpath(path, out).replace(os.sep, "/")


def _file_of(path: Path) -> tuple[int, int] | None:
    """The device and inode that a path leads to, through any links; None if there is no such file."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def _folded(name: str) -> str:
    """A name as such file systems compare it: without case, and with accents composed."""
    return unicodedata.normalize("NFC", name.casefold())


def _folds_case(folder: Path) -> bool:
    """Whether the file system of a folder, which may not exist yet, ignores the case of names."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    swapped = existing.absolute().parent / existing.absolute().name.swapcase()
    return swapped.name != existing.absolute().name and swapped.exists() and swapped.samefile(existing)


def check_foreign(folder: Folder) -> None:
    """Refuse to replace files that no recorded run has written.

    Raises:
        OutputError: The folder has no manifest, but a file under the name of an output.
    """
    if (folder.path / MANIFEST_FILE).exists():
        return
    for output in folder.existing():
        shown = output if folder.remote is None else folder.address_of(output)
        raise OutputError(
            f"{shown}: exists, and no run recorded here has written it; choose another folder or suffix, or --overwrite"
        )


def remove_left_over(folders: Sequence[Folder], manifests: Sequence[Manifest]) -> None:
    """Remove the temporary files of killed processes, in folders whose manifests are locked by this run."""
    for folder, manifest in zip(folders, manifests, strict=False):
        if manifest.is_there():  # otherwise another run may have begun in the folder
            for path in folder.directories:
                remove_temporaries(path)
