"""The record of a run in its output folder: what was done, with which settings, so that it can be continued.

``manifest.jsonl`` has a line of JSON for the run's settings and what it ran on, then one for each utterance finished or
failed, and one for each group of outputs that has become files of its own. A line that was cut off by a kill is
ignored; the last line about an utterance counts. If runs whose results differ in the last bit were mixed on purpose, a
line says what else has run.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkc_fast.engine.storage.addresses import is_address
from mkc_fast.errors import OutputError, WriteError
from mkc_fast.names import UTTERANCE
from mkc_fast.text import printable

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows: then nothing keeps two runs apart
    fcntl = None

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from types import ModuleType
    from typing import TextIO

    from mkc_fast.engine.datasets.dataset import Utterance

MANIFEST_FILE = "manifest.jsonl"
_VERSION = 2
# How a manifest begins, even one whose first line was cut off.
_HEADER = '{"type": "run"'
_SALT = re.compile(r"[0-9a-f]{32}")
# Settings that manifests of earlier releases lack, with the values that they stand for.
_ABSENT = {"level": UTTERANCE}
_INSTEAD = "choose another folder or suffix, or --overwrite"
_SHOWN_CHARACTERS = 300
# So many characters of lines may wait to be written together.
_MOST_WAITING = 1 << 16
_encoded = json.JSONEncoder(ensure_ascii=False).encode  # made once, since a corpus has a million lines
# What a private manifest says of a failure: its text has paths in it.
_FAILED = "failed; the run has printed why"


@dataclass(frozen=True, slots=True)
class _Known:
    """What is recorded of an utterance."""

    source: str  # what tells the recording, as JSON
    suffix: str | None  # of the output's name behind the id; None: there is none, it failed
    size_bytes: int


class Manifest:
    """An output folder's manifest, open for appending and locked against other runs.

    Nothing is written before ``begin``.

    Attributes:
        entries: The bank entries that the recorded draws are from, where the manifest tells.
        continues: Whether it has records of an earlier run.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, object],
        *,
        overwrite: bool = False,
        allow_mixed: bool = False,
        private: bool = False,
        salt: str | None = None,
        shown: str | None = None,
    ) -> None:
        """Open the manifest of ``folder``, which is made.

        Args:
            folder: The output folder.
            settings: What all outputs in the folder share. Of ``seed`` only a slow, salted digest is kept, since a
                known seed repeats the draws.
            overwrite: Forget what is recorded, once there is something to record.
            allow_mixed: Admit outputs of something that does not compute the same to the last bit.
            private: Keep salted digests of the recordings' paths instead of the paths.
            salt: Of a new manifest's digests: 32 hexadecimal digits. Default: random.
            shown: What messages call the folder. Default: its path.

        Raises:
            OutputError: The folder holds outputs of other settings, another run is writing there, or it cannot be
                written.
        """
        self.folder = folder
        self.path = folder / MANIFEST_FILE
        self.shown = str(folder) if shown is None else shown
        self.entries: object = None
        self.continues = False
        self._settings = {**settings, "private": private}
        self._allow_mixed = allow_mixed
        self._known: dict[str, _Known] = {}
        self._groups: dict[str, dict[str, int]] = {}
        self._ran: list[object] = []
        self._salt = salt
        self._source_salt = salt or secrets.token_hex(16)
        self._cut_off = self._begun = self._recorded = False
        self._waiting: list[str] = []  # lines that are not written yet
        self._waiting_characters = 0
        self._nothing = False  # whether the file holds nothing that has to be kept
        try:
            self._where = os.getcwd()  # noqa: PTH109
            folder.mkdir(parents=True, exist_ok=True)
            if self.path.is_symlink():  # to what is not ours to empty
                raise OutputError(f"{self.path}: is a link; choose another folder")
            # A character cut off by a full disk is no reason to stop.
            self._file: TextIO = self.path.open("a+", encoding="utf-8", errors="surrogateescape", newline="\n")
            try:
                _lock(self._file, folder)
                if overwrite:
                    self._nothing = not os.fstat(self._file.fileno()).st_size
                else:
                    self._read()
                    self._nothing = not self._known
            except BaseException:
                self.close()
                raise
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be used ({error.strerror or error})") from None

    def _read(self) -> None:
        """Read what is recorded, and check that it is of these settings."""
        self._file.seek(0)
        head = self._file.read(len(_HEADER))
        self._file.seek(0)
        first: dict[str, Any] | None = None
        for entry in self._parsed():
            if first is None:
                first = entry
                if first.get("type") != "run":
                    raise OutputError(f"{self.path}: not a manifest; {_INSTEAD}")
            elif entry.get("type") == "ran":
                self._ran.append(entry.get("ran"))
            elif entry.get("type") == "group":
                self._groups[str(entry.get("group"))] = _sizes(entry)
            elif isinstance(entry.get("id"), str):
                if not self._known:
                    self._check(first, self._settings)
                self._known[entry["id"]] = _known(entry["id"], entry)
        if self._known and first is not None:
            self.continues = self._recorded = True
            self.entries = first.get("entries")
            self._ran.insert(0, first.get("ran"))
            self._source_salt = str(first.get("source_salt"))
        elif not (head.startswith(_HEADER) or _HEADER.startswith(head)):
            raise OutputError(f"{self.path}: not a manifest; {_INSTEAD}")
        else:
            # Nothing is recorded, so any settings fit: a run that was refused or killed at its start has left this.
            self._ran = []

    def _parsed(self) -> Iterator[dict[str, Any]]:
        """The lines that are objects of JSON, one at a time: with recorded draws, a manifest may be large."""
        for line in self._file:
            self._cut_off = not line.endswith("\n")
            with contextlib.suppress(ValueError, RecursionError):
                entry = json.loads(line)
                if isinstance(entry, dict):
                    yield entry

    def check_sources(self, utterances: Iterable[Utterance]) -> None:
        """Check that what is recorded of each utterance is about the same recording, or part of one.

        Raises:
            OutputError: One is another.
        """
        if not self._known:
            return
        for utterance in utterances:
            known = self._known.get(utterance.id)
            if known is None or known.source == json.dumps(self._source(utterance)):
                continue
            found, asked = _shown_source(json.loads(known.source)), _shown_source(self._open_source(utterance))
            raise OutputError(
                f"{self.shown}: the output {_shown(utterance.id)} was made of {found}, this run has {asked} under the "
                f"same id; give it another id, {_INSTEAD}"
            )

    def check_ran(self, ran: Mapping[str, object]) -> None:
        """Check that outputs of what runs now may stand beside those that are there.

        Args:
            ran: What decides the last bits of every sample: provider, precision, operators, versions.

        Raises:
            OutputError: It is something else than before, and mixing is not allowed.
        """
        if not self._ran or dict(ran) in self._ran or self._allow_mixed:
            return
        last = self._ran[-1]
        before: dict[str, object] = last if isinstance(last, dict) else {}
        names = [name for name in {**before, **ran} if before.get(name) != ran.get(name)]
        there = ", ".join(f"{_shown(name)} {_shown(before.get(name))}" for name in names)
        here = ", ".join(f"{_shown(name)} {_shown(ran.get(name))}" for name in names)
        raise OutputError(
            f"{self.shown}: its outputs were made with {there}; this run has {here}, which is not equal to the "
            "last bit; choose another folder, --overwrite, or --allow-mixed"
        )

    def begin(self, ran: Mapping[str, object], entries: Sequence[int] | None = None) -> None:
        """Record what runs, before the first output of it; ask ``check_ran`` first.

        Args:
            ran: As for ``check_ran``.
            entries: The bank entries that frames draw from, where they are to be recorded.

        Raises:
            WriteError: The disk is full, or the manifest is gone.
        """
        if not self._begun:
            self._begun = True
            if not self._recorded:
                header: dict[str, object] = {"type": "run", "version": _VERSION, **_public(self._settings, self._salt)}
                if self._settings["private"]:
                    header["source_salt"] = self._source_salt
                if entries is not None:
                    header["entries"] = list(entries)
                self._ran = [dict(ran)]
                self._append({**header, "ran": dict(ran)}, anew=True)
                return
            if self._cut_off:  # by a kill: the next line must not continue it
                self._write("\n")
        if dict(ran) not in self._ran:
            self._ran.append(dict(ran))
            self._append({"type": "ran", "ran": dict(ran)})

    def __contains__(self, utterance_id: str) -> bool:
        """Whether anything is recorded of this utterance."""
        return utterance_id in self._known

    def finished(self, utterance_id: str, suffix: str, size_of: Callable[[str], int | None]) -> bool:
        """Whether the output of an utterance was written, with this suffix, and still exists with its size."""
        known = self._known.get(utterance_id)
        if known is None or known.suffix is None:
            return False
        return known.suffix == suffix and size_of(utterance_id) == known.size_bytes

    def group_is_there(self, name: str, out: Path, objects: Mapping[str, int] | None = None) -> bool:
        """Whether a group of outputs became files, which still exist in ``out`` with their sizes.

        Args:
            name: Of the group.
            out: The output folder.
            objects: Instead of the folder, names and sizes of what is at its address.
        """
        sizes = self._groups.get(name)
        if objects is not None:
            return bool(sizes) and all(objects.get(file) == size for file, size in (sizes or {}).items())
        with contextlib.suppress(OSError):
            return bool(sizes) and all((out / file).stat().st_size == size for file, size in (sizes or {}).items())
        return False

    def flush(self) -> None:
        """Hand what was appended to the system; until then, a kill of this process loses it.

        Raises:
            WriteError: The disk is full, or the manifest is gone.
        """
        if self._waiting:
            self._write("".join(self._waiting))

    def append_group(self, name: str, out: Path, files: Sequence[Path]) -> None:
        """Record that a group of outputs has become these files in ``out``.

        Raises:
            WriteError: As ``append``; or a file is gone.
        """
        try:
            sizes = {os.path.relpath(file, out): file.stat().st_size for file in files}
        except OSError as error:
            raise WriteError(f"{error.filename}: was written and is gone ({error.strerror})") from None
        self._append({"type": "group", "group": name, "files": sizes})

    def forget(self) -> None:
        """Free what is recorded of each utterance: once the tasks are known, a run does not need it."""
        self._known = {}
        self._groups = {}

    def append(self, utterance: Utterance, record: Mapping[str, object], ran: Mapping[str, object]) -> None:
        """Record the outcome of an utterance.

        Args:
            utterance: The utterance.
            record: ``file``, ``bytes``, ``seconds``, ``frames`` and, if they are to be recorded, ``bank_ids``; or
                ``error``, and ``silence`` where silence is its output.
            ran: What its worker runs, as given to ``begin``.

        The line is written by ``flush``, with the next line of another kind, or once many wait.

        Raises:
            WriteError: The disk is full, or the manifest is gone.
        """
        self._recorded = True
        entry: dict[str, object] = {"id": utterance.id, **self._source(utterance), **record}
        if "error" in entry and self._settings["private"]:
            entry["error"] = _FAILED
        number = self._ran.index(ran) if ran in self._ran else 0
        if number:
            entry["ran"] = number
        self._waiting.append(dumped(entry) + "\n")
        self._waiting_characters += len(self._waiting[-1])
        if self._waiting_characters > _MOST_WAITING:
            self.flush()

    def check_there(self) -> None:
        """Check that the manifest still has its name: what is written into a removed file is lost.

        Raises:
            WriteError: It was removed or replaced.
        """
        if not self.is_there():
            raise WriteError(
                f"{self.path}: removed or replaced during the run, so that what it wrote is recorded nowhere; "
                "start again in another folder, or with --overwrite"
            )

    def close(self, outputs: Iterable[Path] = ()) -> None:
        """Close the manifest and release its lock; remove it if the run has neither written nor recorded anything."""
        with contextlib.suppress(OSError):
            ours = (self._begun or self._nothing) and not self._recorded
            if ours and self.is_there() and not any(output.exists() for output in outputs):
                self.path.unlink()
        with contextlib.suppress(OSError, WriteError):
            self.flush()
        with contextlib.suppress(OSError):
            self._file.close()

    def is_there(self) -> bool:
        """Whether the manifest still has its name."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self.path.lstat())
        except OSError:
            return False

    def _append(self, entry: Mapping[str, object], *, anew: bool = False) -> None:
        self.flush()
        self._write(dumped(entry) + "\n", anew=anew)

    def _write(self, text: str, *, anew: bool = False) -> None:
        try:
            self.check_there()
            if anew:
                self._file.truncate(0)
            self._waiting.clear()
            self._waiting_characters = 0
            self._file.write(text)
            self._file.flush()
        except OSError as error:
            raise WriteError(f"{self.path}: cannot be written ({error.strerror})") from None

    def _check(self, header: dict[str, Any], settings: Mapping[str, object]) -> None:
        version = header.get("version")
        if version != _VERSION:
            earlier = "made by an earlier version" if version == 1 else "not a manifest of this version"
            raise OutputError(f"{self.path}: {earlier}; {_INSTEAD}")
        salts = [header[name] for name in ("seed_salt", "source_salt") if name in header]
        if not all(isinstance(salt, str) and _SALT.fullmatch(salt) for salt in salts):
            raise OutputError(f"{self.path}: damaged; {_INSTEAD}")
        asked = _public(settings, header.get("seed_salt"))
        for name, value in asked.items():
            before = header.get(name, _ABSENT.get(name))
            if before != value:
                raise OutputError(f"{self.shown}: {_difference(name, before, value)}; {_INSTEAD}")
        if settings["private"] and "source_salt" not in header:
            raise OutputError(f"{self.path}: damaged; {_INSTEAD}")

    def _source(self, utterance: Utterance) -> dict[str, object]:
        """What tells a recording, or a part of it, from others, as the manifest has it."""
        source = self._open_source(utterance)
        if not self._settings["private"]:
            return source
        text = json.dumps(source).encode()
        return {"source_digest": hashlib.blake2b(text, key=self._source_salt.encode(), digest_size=16).hexdigest()}

    def _open_source(self, utterance: Utterance) -> dict[str, object]:
        source: dict[str, object] = {}
        if utterance.command is not None:
            source["command"] = utterance.command
        elif is_address(str(utterance.file)):
            source["source"] = str(utterance.file)
        else:
            # Absolute: one relative path means different files in different working directories.
            path = os.path.join(self._where, utterance.file)  # noqa: PTH118 - a million of them
            source["source"] = str(Path(path)) if "//" in path or "/./" in path else path
        if utterance.span is not None:
            source["span"] = list(utterance.span)
        if utterance.row is not None:
            source["row"] = list(utterance.row)
        if utterance.channel is not None:
            source["channel"] = utterance.channel
        if utterance.begin_s or utterance.end_s is not None:
            source["segment"] = [utterance.begin_s, utterance.end_s]
        if utterance.draw_id is not None:
            source["draws"] = utterance.draw_id.replace("\0", ":").rstrip(":")
        return source


def _lock(file: TextIO, folder: Path) -> None:
    """Lock a manifest against other runs, until it is closed.

    Raises:
        OutputError: Another run has it.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.fstat(file.fileno()).st_nlink:  # removed by the run that has just let go of it
            raise OutputError(f"{folder}: another run is writing there")
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise OutputError(f"{folder}: another run is writing there") from None
        # A file system without locks: then nothing keeps two runs apart.


@contextlib.contextmanager
def locked_manifest(folder: Path) -> Iterator[None]:
    """Keep runs out of a folder that has a manifest.

    Raises:
        OutputError: A run is at work there, or the manifest cannot be opened.
    """
    path = folder / MANIFEST_FILE
    try:
        file = path.open("a", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path}: cannot be used ({error.strerror})") from None
    with file:
        _lock(file, folder)
        yield


def dumped(entry: Mapping[str, object]) -> str:
    """An entry as the manifest has it, without the end of its line."""
    text = _encoded(entry)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:  # half a surrogate pair, or a path that is not UTF-8
            text = json.dumps(entry)
    return text


def read_entries(
    path: Path, *, utterances: bool = True
) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """A manifest's first line, what its outputs were computed with, and the last line about each utterance.

    Args:
        path: The manifest.
        utterances: Read the lines about utterances; without them, a manifest with recorded draws is read in no time.

    Raises:
        OutputError: The manifest cannot be read, or is none.
    """
    lines = _objects(path, utterances=utterances)
    header = next(lines, {})
    if header.get("type") != "run":
        raise OutputError(f"{path}: not a manifest")
    ran = [header["ran"]] if isinstance(header.get("ran"), dict) else []
    entries: dict[str, dict[str, Any]] = {}
    for entry in lines:
        if isinstance(entry.get("id"), str):
            entries[entry["id"]] = entry
        elif isinstance(entry.get("ran"), dict):
            ran.append(entry["ran"])
    return header, ran, entries


def read_groups(path: Path) -> dict[str, dict[str, int]]:
    """The groups of outputs that a manifest records as complete: the files of each and their sizes, by its name.

    Raises:
        OutputError: The manifest cannot be read.
    """
    lines = _objects(path, utterances=False)
    return {str(entry["group"]): _sizes(entry) for entry in lines if entry.get("type") == "group" and "group" in entry}


def recorded_seconds(path: Path) -> float:
    """Seconds of audio of all recordings that a manifest records as written; each counts once.

    Raises:
        OutputError: The manifest cannot be read.
    """
    seconds = {}
    for entry in _objects(path):
        said = entry.get("seconds", 0.0)
        if isinstance(entry.get("id"), str) and isinstance(said, (int, float)):
            seconds[entry["id"]] = float(said)
    return sum(seconds.values())


def _objects(path: Path, *, utterances: bool = True) -> Iterator[dict[str, Any]]:
    """The lines of a manifest as objects, one at a time; a line that is none is empty."""
    try:
        with path.open(encoding="utf-8", errors="surrogateescape") as file:
            for number, line in enumerate(file):
                if number and not utterances and not line.startswith('{"type"'):
                    continue
                entry: object = None
                with contextlib.suppress(ValueError, RecursionError):
                    entry = json.loads(line)
                yield entry if isinstance(entry, dict) else {}
    except OSError as error:
        raise OutputError(f"{path}: cannot be read ({error.strerror})") from None


_SOURCE_FIELDS = ("source", "command", "span", "row", "channel", "segment", "draws", "source_digest")


def _sizes(entry: Mapping[str, Any]) -> dict[str, int]:
    """The files of a group and their sizes; none if the line is damaged."""
    files = entry.get("files")
    if not isinstance(files, dict) or not all(isinstance(size, int) for size in files.values()):
        return {}
    return files


def _known(utterance_id: str, entry: dict[str, Any]) -> _Known:
    source = json.dumps({name: entry[name] for name in _SOURCE_FIELDS if name in entry})
    file, size = entry.get("file"), entry.get("bytes")
    if "error" not in entry and isinstance(file, str) and isinstance(size, int) and file.startswith(utterance_id):
        return _Known(source, sys.intern(file[len(utterance_id) :]), size)
    return _Known(source, None, 0)


def _public(settings: Mapping[str, object], salt: object = None) -> dict[str, object]:
    """The settings as they may stand in the folder: the seed as a digest."""
    public = {name: value for name, value in settings.items() if name != "seed"}
    seed = settings.get("seed")
    if seed is None:
        return {**public, "seed": None}
    if not isinstance(salt, str):
        salt = secrets.token_hex(16)
    digest = hashlib.scrypt(str(seed).encode(), salt=salt.encode(), n=2**14, r=8, p=1, dklen=8).hex()
    return {**public, "seed": digest, "seed_salt": salt}


def _difference(name: str, before: object, now: object) -> str:
    """How a setting of the run that wrote the folder differs from that of this run, in a few words."""
    if name == "private":
        return "its manifest was written " + ("with" if before else "without") + " --private-manifest"
    if name == "seed" and before is not None:
        return "its outputs were made with " + ("a seed, this run has none" if now is None else "another seed")
    return f"its outputs were made with {name} {_shown(before)}, this run has {_shown(now)}"


def _shown_source(source: Mapping[str, object]) -> str:
    if "source_digest" in source:
        return f"another recording (digest {_shown(source['source_digest'])})"
    text = _shown(source["command"]) + " |" if "command" in source else _shown(source.get("source"))
    if "span" in source:
        text += f", bytes {_shown(source['span'])}"
    if "row" in source:
        text += f", row {_shown(source['row'])}"
    if "channel" in source:
        text += f", channel {_shown(source['channel'])}"
    segment = source.get("segment")
    if isinstance(segment, list) and len(segment) == 2:
        begin, end = segment
        text += f", {_shown(begin)} s to {'its end' if end is None else _shown(end) + ' s'}"
    if "draws" in source:
        text += f" with the draws of {_shown(source['draws'])}"
    return text


def _shown(value: object) -> str:
    """For an error: on one line, not long, and nothing that a terminal would act on."""
    return "none" if value is None else printable(str(value), _SHOWN_CHARACTERS)
