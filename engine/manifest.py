"""The record of a run in its output folder: what was done, with which settings, so that it can be continued.

``manifest.jsonl`` has a line of JSON for the run's settings, then one for each utterance finished or failed. A line
that was cut off by a kill is passed over; the last line about an utterance counts.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
from typing import TYPE_CHECKING, Any

from mkc_fast import OutputError, WriteError

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows: then nothing keeps two runs apart
    fcntl = None

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path
    from types import ModuleType

MANIFEST_FILE = "manifest.jsonl"
_VERSION = 1
# How a manifest begins, even one whose first line was cut off.
_HEADER = '{"type": "run"'


class Manifest:
    """An output folder's manifest, open for appending and locked against other runs.

    Attributes:
        records: What is known of each utterance, by id: ``file``, ``bytes``, ``seconds``, ``frames``, ``source`` or
            ``error``.
    """

    def __init__(self, folder: Path, settings: Mapping[str, object], *, overwrite: bool = False) -> None:
        """Open or start the manifest of ``folder``, which is made.

        Args:
            folder: The output folder.
            settings: What all outputs in the folder share. Of ``seed`` only a slow, salted digest is kept, since a
                known seed repeats the draws.
            overwrite: Forget what is recorded.

        Raises:
            OutputError: The folder holds outputs of other settings, another run is writing there, or it cannot be
                written.
        """
        self.folder = folder
        self.path = folder / MANIFEST_FILE
        self.records: dict[str, dict[str, Any]] = {}
        self._begun = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if self.path.is_symlink():  # to what is not ours to empty
                raise OutputError(f"{self.path}: is a link; choose another folder")
            # Neither a path that is not UTF-8 nor a character cut off by a full disk is a reason to stop.
            self._file = self.path.open("a+", encoding="utf-8", errors="surrogateescape")
            try:
                self._lock()
                self._begin(settings, overwrite)
            except BaseException:
                self.close()
                raise
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be used ({error.strerror or error})") from None

    def _begin(self, settings: Mapping[str, object], overwrite: bool) -> None:
        """Read what is recorded, or begin anew."""
        self._file.seek(0)
        text = "" if overwrite else self._file.read()
        lines = text.split("\n")
        known = list(_parsed(lines))
        if len(known) > 1 or (known and known[0].get("type") != "run"):
            self._check(known[0], settings)
            if lines[-1]:  # cut off by a kill: the next line must not continue it
                self._file.write("\n")
        else:
            # Nothing is recorded, so nothing binds: a run that was refused or killed at its start may have been here.
            if not (text.startswith(_HEADER) or _HEADER.startswith(text)):
                raise OutputError(f"{self.path}: not a manifest; choose another folder, or --overwrite")
            self._file.truncate(0)
            self._append({"type": "run", "version": _VERSION, **_public(settings)})
        for record in known[1:]:
            if isinstance(record.get("id"), str):
                self.records[record["id"]] = record
        self._begun = True

    def __contains__(self, utterance_id: str) -> bool:
        """Whether anything is recorded of this utterance."""
        return utterance_id in self.records

    def finished(self, utterance_id: str, output: Path) -> bool:
        """Whether this output was written and is there as it was."""
        record = self.records.get(utterance_id, {})
        if "error" in record or record.get("file") != output.name:
            return False
        with contextlib.suppress(OSError):
            return output.stat().st_size == record.get("bytes")
        return False

    def append(self, utterance_id: str, record: Mapping[str, object]) -> None:
        """Record what became of an utterance.

        Raises:
            WriteError: The disk is full.
        """
        entry = {"id": utterance_id, **record}
        self.records[utterance_id] = entry
        try:
            self._append(entry)
        except OSError as error:
            raise WriteError(f"{self.path}: cannot be written ({error.strerror})") from None

    def close(self, outputs: Iterable[Path] = ()) -> None:
        """Let go of the folder; of a run that came to nothing, none of its outputs and no record, leave nothing."""
        with contextlib.suppress(OSError):
            if self._begun and not self.records and not any(output.exists() for output in outputs):
                self.path.unlink()
        with contextlib.suppress(OSError):
            self._file.close()

    def _append(self, entry: Mapping[str, object]) -> None:
        self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self._file.flush()

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(self._file.fileno()).st_nlink:  # removed by the run that has just let go of it
                raise OutputError(f"{self.folder}: another run is writing there")
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise OutputError(f"{self.folder}: another run is writing there") from None
            # A file system without locks: then nothing keeps two runs apart.

    def _check(self, header: dict[str, Any], settings: Mapping[str, object]) -> None:
        if header.get("type") != "run" or header.get("version") != _VERSION:
            raise OutputError(f"{self.path}: not a manifest of this version; choose another folder, or --overwrite")
        asked = _public(settings, header.get("seed_salt"))
        for name, value in asked.items():
            if header.get(name) != value:
                raise OutputError(
                    f"{self.folder}: holds outputs of {name} {_shown(header.get(name))}, asked for is {_shown(value)}; "
                    "choose another folder, or --overwrite"
                )


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


def _shown(value: object) -> str:
    return "none" if value is None else str(value)


def _parsed(lines: Iterable[str]) -> Iterable[dict[str, Any]]:
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            entry = json.loads(line)
            if isinstance(entry, dict):
                yield entry
