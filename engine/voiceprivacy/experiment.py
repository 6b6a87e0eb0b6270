"""The published experiment: each set from the bank of its role, all in one run, and every pair of banks in a grid.

Enrollments and training sets are the attacker's, who anonymizes them with the bank that he has. Trials and the sets of
emotions are the users'. An evaluation reads all its sets under one suffix, so each pair of banks has a suffix. A set
with a bank is computed once, and the directories of other pairs get hard links to its recordings.
"""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mkc_fast.engine.artifacts import directory_name
from mkc_fast.engine.atomic_files import atomic_file
from mkc_fast.engine.corpus.anonymize import DEFAULT_SUFFIX, Corpus, at_level, plan_corpus
from mkc_fast.engine.corpus.manifest import MANIFEST_FILE, recorded_seconds
from mkc_fast.engine.corpus.provenance import PROVENANCE_FILE, write_provenance
from mkc_fast.engine.datasets.kaldi import AUDIO_FOLDER, DataDirectory, read_data_directory, with_suffix
from mkc_fast.engine.voiceprivacy.sets import ATTACKER, USER, is_set, likely_role
from mkc_fast.errors import ArgumentError, ListError, OutputError
from mkc_fast.names import UTTERANCE, WAV

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from os import PathLike

    from mkc_fast.engine.corpus.outputs import Folder
    from mkc_fast.engine.corpus.status import Summary
    from mkc_fast.engine.datasets.shards import Shard
    from mkc_fast.engine.voiceprivacy.sets import Role
    from mkc_fast.names import AudioFormat, Level

# A file system without hard links, or a limit of them.
_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.EACCES}


@dataclass(frozen=True)
class Pair:
    """A bank of the attacker and a bank of the users, whose sets one evaluation reads.

    Attributes:
        attacker: The attacker's bank.
        user: The users' bank.
        suffix: Of the directories of its sets.
    """

    attacker: Path
    user: Path
    suffix: str

    def bank_of(self, role: Role) -> Path:
        """The bank of a role."""
        return self.attacker if role == ATTACKER else self.user


@dataclass(frozen=True)
class AnonymizedSet:
    """A set that is computed with one bank.

    Attributes:
        name: Of the set.
        role: Whose bank it is.
        directory: What is computed.
        folder: Its outputs, with the bank.
        copies: Directories of other pairs, which get the same recordings.
    """

    name: str
    role: Role
    directory: DataDirectory
    folder: Folder
    copies: tuple[DataDirectory, ...] = ()

    @property
    def bank(self) -> Path:
        """The bank."""
        assert self.folder.bank is not None
        return self.folder.bank


@dataclass(frozen=True)
class SetResult:
    """What a run did of one set.

    Attributes:
        name: Of the set.
        out: Its anonymized directory.
        bank: The bank.
        utterances: Of the set.
        hours: Of audio that is anonymized, by this run or an earlier one.
        rtfx: Seconds of audio, divided by seconds of computation, times the number of workers; 0 if this run computed
            nothing of it.
        failed: Utterances that failed, of this run.
        complete: Whether every utterance has an output.
    """

    name: str
    out: str
    bank: str
    utterances: int
    hours: float
    rtfx: float
    failed: int
    complete: bool


@dataclass(frozen=True)
class Experiment(Corpus):
    """Sets and banks, read and checked, as a ``Corpus`` for ``anonymize_corpus``; nothing is written yet.

    Attributes:
        sets: What is computed, in the order of ``folders``.
        left_out: Names of data directories that are no sets of VoicePrivacy and were not asked for.
    """

    sets: list[AnonymizedSet] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def finish(self, summary: Summary, model: Path, bank: Path) -> None:
        """Complete the directories of the sets, then those of other pairs: see ``Corpus.finish``."""
        super().finish(summary, model, bank)
        for each in self.sets:
            done = summary.folders[each.folder.outputs.folder]
            for copy in each.copies:
                if done.complete:
                    _finish_copy(each, copy, model, done.silenced)

    def unfinish(self, audio_dirs: Collection[Path]) -> None:
        """Take back what says that directories are complete, those of other pairs included."""
        super().unfinish(audio_dirs)
        for each in self.sets:
            if each.directory.audio_dir in audio_dirs:
                for copy in each.copies:
                    copy.unfinish()

    def results(self, summary: Summary, workers: int) -> list[SetResult]:
        """What a run did, set by set.

        Args:
            summary: Of the run.
            workers: Worker processes that it had.

        Raises:
            OutputError: A manifest cannot be read.
        """
        rows = []
        for each in self.sets:
            done = summary.folders[each.folder.outputs.folder]
            manifest = each.folder.path / MANIFEST_FILE
            rows.append(
                SetResult(
                    each.name,
                    done.out,
                    directory_name(each.bank),
                    done.files,
                    recorded_seconds(manifest) / 3600 if manifest.exists() else 0.0,
                    done.audio_s * workers / done.stage_s if done.stage_s else 0.0,
                    done.failed,
                    done.complete,
                )
            )
        return rows


def choose_sets(
    data: Path, names: Sequence[str], roles: Mapping[str, Role]
) -> tuple[dict[str, Role | None], list[str]]:
    """The sets of VoicePrivacy in a folder of data directories with their roles, and what is left out.

    Args:
        data: The folder.
        names: The sets, whether they are there or not. Default: all that are there.
        roles: Roles of sets, where they are other than usual.

    Returns:
        The role of each set, None where it is not known; and the names of other data directories. These are not in it:
        names that begin with that of a set, such as ``libri_dev_enrolls_mkc``, which are anonymized sets.

    Raises:
        ListError: The folder cannot be read, or has no set.
        ArgumentError: A role is given for a set that is not one of these.
    """
    try:
        directories = sorted(path for path in data.iterdir() if path.is_dir())
        found = [path.name for path in directories if is_set(path.name)]
        others = [path.name for path in directories if (path / "wav.scp").is_file()]
    except OSError as error:
        raise ListError(f"{data}: cannot be read ({error.strerror})") from None
    chosen = list(dict.fromkeys(names)) or found
    if not chosen:
        raise ListError(
            f"{data}: has no set of VoicePrivacy (such as libri_dev_enrolls); name other data directories with --set"
        )
    _check_names("role", roles, chosen)
    left_out = [name for name in others if not any(name.startswith(each) for each in found) and name not in chosen]
    return {name: roles.get(name) or likely_role(name) for name in chosen}, left_out


def open_experiment(
    data: str | PathLike[str],
    *,
    bank_user: Sequence[str | PathLike[str]],
    bank_attacker: Sequence[str | PathLike[str]],
    names: Sequence[str] = (),
    roles: Mapping[str, Role] | None = None,
    level: Level = UTTERANCE,
    levels: Mapping[str, Level] | None = None,
    anon_suffix: str = DEFAULT_SUFFIX,
    results_dir: str = AUDIO_FOLDER,
    audio_format: AudioFormat = WAV,
    allow_commands: bool = False,
    shard: Shard | None = None,
    overwrite: bool = False,
) -> Experiment:
    """Read the sets of VoicePrivacy in a folder of data directories and plan their outputs.

    Args:
        data: The folder, ``data`` of a toolkit's checkout.
        bank_user: Banks of the users; with several, each is paired with each of the attacker's.
        bank_attacker: Banks of the attacker.
        names: The sets. Default: all that are there.
        roles: ``user`` or ``attacker`` for sets whose role is another than ``role_of`` says, or that it does not know.
        level: Which utterances share a draw.
        levels: The level of single sets, by name.
        anon_suffix: Of the anonymized directories. In a grid the names of both banks follow.
        results_dir: Name of the folder of recordings in an anonymized directory.
        audio_format: Of the outputs.
        allow_commands: Run the commands of a ``wav.scp`` that do more than decode a file.
        shard: Only the utterances of this part of each set. Directories of other pairs are then not made.
        overwrite: Admit directories of other pairs that hold something else.

    Raises:
        ArgumentError: A bank is missing, two of a role have one name, a role or level is unknown or of a set that is
            not asked for, or a set's role is not known.
        ListError: There is no set, or a list is unreadable or contradictory.
        OutputError: An output directory cannot be used.
    """
    folder, levels = Path(data), dict(levels or {})
    of_set, left_out = choose_sets(folder, names, roles or {})
    _check_names("level", levels, of_set)
    for name in of_set:
        if not (folder / name).is_dir():
            raise ListError(f"{folder / name}: there is no such data directory")
    pairs = _pairs([Path(bank) for bank in bank_attacker], [Path(bank) for bank in bank_user], anon_suffix)
    checkout = checkout_of(folder)
    if checkout is None:
        folder = folder.absolute()  # evaluations run elsewhere, so that a relative path would lead nowhere
    sets: list[AnonymizedSet] = []
    for name, role in of_set.items():
        if role not in (USER, ATTACKER):
            raise ArgumentError(
                f"{name}: whose bank anonymizes it is not known; give its role, user or attacker, with --role-of"
            )
        # Read once for all pairs of banks.
        original = read_data_directory(
            folder / name, pairs[0].suffix, allow_commands=allow_commands, audio_folder=results_dir
        )
        of_level = levels.get(name, level)
        original = replace(at_level(original, of_level), relative_to=checkout)
        by_bank: dict[Path, list[Pair]] = {}
        for pair in pairs:
            by_bank.setdefault(pair.bank_of(role), []).append(pair)
        for bank, of_bank in by_bank.items():
            beside = [with_suffix(original, pair.suffix) for pair in of_bank]
            corpus = plan_corpus(beside, audio_format=audio_format, level=of_level, shard=shard)
            directories = [each for each in corpus.datasets if isinstance(each, DataDirectory)]
            for directory in directories:
                _check_shown(directory)
            home = _home(directories)
            copies = [each for number, each in enumerate(directories) if number != home and shard is None]
            for copy in copies:
                _check_copy(copy, overwrite)
            planned = replace(corpus.folders[home], bank=bank, role=role)
            sets.append(AnonymizedSet(name, role, directories[home], planned, tuple(copies)))
    return Experiment(
        [each.directory for each in sets],
        [each.folder for each in sets],
        audio_format,
        sets,
        left_out,
    )


def _check_names(what: str, given: Iterable[str], sets: Collection[str]) -> None:
    """Refuse what is given for a set that is not one of these."""
    strange = [name for name in given if name not in sets]
    if strange:
        raise ArgumentError(f"a {what} is given for {strange[0]}; the sets are {', '.join(sets)}")


def _check_shown(directory: DataDirectory) -> None:
    """Refuse paths that the toolkits cannot read from a ``wav.scp``: they take the second word of a line."""
    shown = directory.audio_dir
    if directory.relative_to is not None:
        shown = Path(os.path.relpath(shown, directory.relative_to))
    if len(str(shown).split()) != 1:
        raise ListError(
            f"{shown}: holds a space, and toolkits read a path in wav.scp only up to it; choose other names, or run "
            "this in the folder above the data, so that paths are relative to it"
        )


def _pairs(attacker: list[Path], user: list[Path], suffix: str) -> list[Pair]:
    """Each pair of banks with its suffix."""
    for role, banks in ((ATTACKER, attacker), (USER, user)):
        if not banks:
            raise ArgumentError(f"no bank of the {role} is given")
        named: dict[str, Path] = {}
        for bank in banks:
            name = directory_name(bank)
            if named.setdefault(name, bank) != bank:
                raise ArgumentError(f"{named[name]} and {bank} are both named {name}, which would name one directory")
    attacker, user = list(dict.fromkeys(attacker)), list(dict.fromkeys(user))
    single = len(attacker) == len(user) == 1
    return [
        Pair(first, second, suffix if single else f"{suffix}_{directory_name(first)}_{directory_name(second)}")
        for first in attacker
        for second in user
    ]


def checkout_of(data: Path) -> Path | None:
    """The checkout that ``data`` is in, or the working directory; None if it is in neither."""
    parent = data.absolute().parent
    return parent if (parent / "run_anonymization.py").exists() or parent == Path.cwd() else None


def _home(directories: Sequence[DataDirectory]) -> int:
    """Which of the directories with the same recordings is computed: one that was begun, else the first."""
    begun = [number for number, each in enumerate(directories) if (each.record_dir / MANIFEST_FILE).exists()]
    return begun[0] if begun else 0


def _check_copy(copy: DataDirectory, overwrite: bool) -> None:
    """Refuse to replace recordings that no run of an experiment has put there."""
    if overwrite or (copy.record_dir / PROVENANCE_FILE).exists() or not copy.audio_dir.is_dir():
        return
    if any(copy.audio_dir.iterdir()):
        raise OutputError(
            f"{copy.audio_dir}: holds recordings, and no run recorded here has written them; choose another suffix, or "
            "--overwrite"
        )


def _finish_copy(computed: AnonymizedSet, copy: DataDirectory, model: Path, silenced: int) -> None:
    """Make the directory of another pair whole: links to the recordings, copies of the lists, provenance."""
    outputs, links = computed.folder.outputs, {}
    try:
        copy.audio_dir.mkdir(parents=True, exist_ok=True)
        copy.record_dir.mkdir(parents=True, exist_ok=True)
        # First, so that a run that is killed and started again finds what it may go on with.
        folder = replace(computed.folder, out=copy.out)
        write_provenance(folder, model, computed.bank, silenced=silenced, role=computed.role, into=copy.record_dir)
        for name, source in outputs.items():
            links[name] = copy.audio_dir / source.name
            _link(source, links[name])
    except OSError as error:
        raise OutputError(f"{error.filename2 or error.filename}: cannot be written ({error.strerror})") from None
    copy.finish(links)


def _link(source: Path, target: Path) -> None:
    """Give a file a second name; copy it where a file system has no hard links."""
    if target.exists() and target.samefile(source):
        return
    with atomic_file(target) as temporary:
        temporary.unlink(missing_ok=True)  # of a process with this number that was killed
        try:
            os.link(source, temporary)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            shutil.copyfile(source, temporary)
