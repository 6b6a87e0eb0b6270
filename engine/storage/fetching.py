"""Fetches a model or a bank from an address into the cache folder: once on a machine, whole or not at all.

What an artifact is called there is the SHA-256 of its JSON, which has the digests of all other files. So a folder of
the cache holds what its name says, wherever it came from, and a machine that has it asks for nothing. Every file is
compared with its digest before the folder gets its name.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mkc_fast.engine.artifacts import BANK_FILE, MODEL_FILE, FileFacts, listed_files
from mkc_fast.engine.atomic_files import atomic_directory, discard, locked, sha256_of
from mkc_fast.engine.cache_folder import default_cache
from mkc_fast.engine.storage.addresses import Address, place_of
from mkc_fast.engine.storage.file_systems import file_system, in_one_line
from mkc_fast.engine.storage.reading import read_object
from mkc_fast.errors import ArtifactError, OutputError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike
    from pathlib import Path

    from mkc_fast.engine.storage.addresses import Place

FOLDER = "fetched"
_DIGITS = 32
# The bank.json of the published bank has 0.3 MB.
_MOST_JSON_BYTES = 1 << 26


@dataclass(frozen=True)
class RemoteArtifact:
    """A model or a bank at an address, as it is when a run begins.

    Attributes:
        address: Its directory.
        json_file: ``model.json`` or ``bank.json``.
        digest: SHA-256 of that file.
    """

    address: Address
    json_file: str
    digest: str

    def folder(self, cache: Path) -> Path:
        """Where it is in a cache folder."""
        return cache / FOLDER / self.digest[:_DIGITS] / self.json_file.partition(".")[0]


def looked_up(given: str | PathLike[str], json_file: str) -> Path | RemoteArtifact:
    """An artifact as an argument names it: a directory, or what an address holds now.

    Args:
        given: A path or an address.
        json_file: ``model.json`` or ``bank.json``.

    Raises:
        ArgumentError: The address is refused.
        ArtifactError: There is no such object, or it cannot be read.
    """
    place: Place = place_of(given)
    if not isinstance(place, Address):
        return place
    return RemoteArtifact(place, json_file, hashlib.sha256(_json_of(place, json_file)).hexdigest())


def on_this_machine(artifact: Path | RemoteArtifact, cache: Path | None = None) -> Path:
    """The directory of an artifact here; one at an address is fetched, unless the cache folder has it.

    Of several processes that need it at once, one fetches it, and the others wait.

    Args:
        artifact: As ``looked_up`` returned it, perhaps on another machine.
        cache: The cache folder. Default: the user's.

    Raises:
        ArtifactError: It is not there any more, was replaced or changed, or cannot be read.
        OutputError: It cannot be written into the cache folder.
    """
    if not isinstance(artifact, RemoteArtifact):
        return artifact
    folder = artifact.folder(default_cache() if cache is None else cache)
    if _is_whole(folder, artifact):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.parent.with_name(f"{folder.parent.name}.lock")):
            if not _is_whole(folder, artifact):
                if folder.exists():
                    discard(folder)
                _fetch(artifact, folder)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror})") from None
    return folder


def fetched(given: str | PathLike[str], json_file: str, cache: Path | None = None) -> Path:
    """The directory of a model or a bank that an argument names, fetched if it is an address.

    Raises:
        ArgumentError, ArtifactError, OutputError: As ``looked_up`` and ``on_this_machine``.
    """
    return on_this_machine(looked_up(given, json_file), cache)


def fetched_model(given: str | PathLike[str], cache: Path | None = None) -> Path:
    """See ``fetched``."""
    return fetched(given, MODEL_FILE, cache)


def fetched_bank(given: str | PathLike[str], cache: Path | None = None) -> Path:
    """See ``fetched``."""
    return fetched(given, BANK_FILE, cache)


def _json_of(address: Address, json_file: str) -> bytes:
    content = read_object((address / json_file).url, ArtifactError, 0, _MOST_JSON_BYTES + 1)
    if len(content) > _MOST_JSON_BYTES:
        raise ArtifactError(f"{address / json_file}: larger than {_MOST_JSON_BYTES} bytes")
    return content


def _is_whole(folder: Path, artifact: RemoteArtifact) -> bool:
    """Whether a folder of the cache is there, with all its files; somebody may have removed some."""
    try:
        if sha256_of(folder / artifact.json_file) != artifact.digest:
            return False
        files = listed_files(folder, artifact.json_file)
        return all((folder / name).stat().st_size == facts.bytes for name, facts in files.items())
    except (OSError, ArtifactError):
        return False


def _fetch(artifact: RemoteArtifact, folder: Path) -> None:
    content = _json_of(artifact.address, artifact.json_file)
    if hashlib.sha256(content).hexdigest() != artifact.digest:
        raise ArtifactError(f"{artifact.address}: was replaced since the run began; run the same command again")
    with atomic_directory(folder) as made:
        (made / artifact.json_file).write_bytes(content)
        files = listed_files(made, artifact.json_file)
        _check_room(made, files)
        for name, facts in files.items():
            _fetch_file(artifact.address / name, made / name, facts)


def _check_room(folder: Path, files: Mapping[str, FileFacts]) -> None:
    needed, free = sum(facts.bytes for facts in files.values()), shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(f"{folder.parent}: {needed / 1e9:.1f} GB are to be fetched, {free / 1e9:.1f} GB are free")


def _fetch_file(address: Address, target: Path, facts: FileFacts) -> None:
    with in_one_line(address.url, ArtifactError, "cannot be fetched"):
        found, name = file_system(address.url)
        found.get_file(name, str(target))
    digest = sha256_of(target)
    if digest != facts.sha256:
        raise ArtifactError(
            f"{address}: was changed or damaged: its SHA-256 is {digest[:12]}…, expected {facts.sha256[:12]}…; "
            "upload the directory again"
        )
