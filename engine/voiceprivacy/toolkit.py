"""Installs the pipeline and the configs into a checkout of a toolkit, and removes them again.

A record in the pipeline's folder names the files that were written, with their digests. What was in a file's or the
folder's place is renamed beside it and gets its name back in the end, so the checkout is then as it was before.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from mkc_fast import __version__
from mkc_fast.engine.atomic_files import atomic_file, remove_temporaries
from mkc_fast.engine.corpus.run import check_fit
from mkc_fast.engine.voiceprivacy.checkout import PIPELINES
from mkc_fast.engine.voiceprivacy.config import config_text
from mkc_fast.engine.voiceprivacy.sets import divided, groups
from mkc_fast.errors import ArgumentError, MkcError, OutputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from mkc_fast.engine.voiceprivacy.checkout import Checkout
    from mkc_fast.engine.voiceprivacy.config import Settings

FOLDER = f"{PIPELINES}/template"
PIPELINE = f"{FOLDER}/__init__.py"
RECORD = f"{FOLDER}/installed.json"
# Of what was in the place of something that is installed.
BEFORE = ".before-mkc-fast"
_CACHE = "__pycache__"
_WRITER = "mkc-fast"
# What a record may name; it is read from a folder that others may write to.
_OWN = re.compile(re.escape(PIPELINE) + r"|configs/(?:track[12]/)?anon[\w.-]+\.yaml", re.ASCII)
# The example that VoicePrivacy-Challenge-2024 has in this place: these files, and what one of them imports.
_EXAMPLE = {"__init__.py", "template_pipeline.py", _CACHE}
_EXAMPLE_IMPORTS = "modules.template.anonymise_dir"


@dataclass(frozen=True)
class Done:
    """What was done.

    Attributes:
        configs: The configs that were installed, absolute; the last is that of the first track.
        notes: What the user should know, a line each.
    """

    configs: tuple[Path, ...]
    notes: tuple[str, ...]


def install(
    checkout: Checkout, settings: Settings, *, tracks: Sequence[int] | None = None, overwrite: bool = False
) -> Done:
    """Write the pipeline, and a config for each track, into a checkout.

    Args:
        checkout: Of a toolkit.
        settings: How its sets are anonymized.
        tracks: Those to write a config for. Default: all that the checkout has.
        overwrite: Also replace a pipeline and configs that others wrote, or that were changed. What others wrote gets
            its place back with ``remove``.

    Raises:
        ArgumentError: The checkout does not have a track.
        ArtifactError: The model or a bank cannot be read, or they do not fit.
        OutputError: Something is in the way, or cannot be written.
    """
    for bank in (settings.bank_user, settings.bank_attacker):
        check_fit(settings.model, bank)
    for track in tracks or ():
        if track not in checkout.tracks:
            raise ArgumentError(
                f"{checkout.root}: VoicePrivacy {checkout.year} has no track {track} here; "
                f"it has {', '.join(f'track {there}' for there in checkout.tracks)}"
            )
    root = checkout.root
    texts = {PIPELINE: files(__package__).joinpath("template_pipeline.py.txt").read_text(encoding="utf-8")}
    notes = []
    for track in sorted(tracks or checkout.tracks, reverse=True):
        name, of_track = checkout.config(track, settings.config_name), groups(checkout.year, track)
        there, left_out = divided(of_track, _data_directories(root))
        texts[name] = config_text(settings, there, left_out)
        if left_out:
            missing = ", ".join(each for group in left_out for each in group.roles)
            notes.append(f"{name}: left out, since data/ does not have them: {missing}; they are there as comments")
    with _writing(root):
        recorded = _read_record(root)
        moved = _in_the_way(root, list(texts), recorded, overwrite=overwrite)
        for name in moved:
            (root / name).rename(root / (name + BEFORE))
        (root / FOLDER).mkdir(exist_ok=True)
        _write_record(root, {**recorded, **{name: _digest(text.encode()) for name, text in texts.items()}})
        for name, text in texts.items():
            with atomic_file(root / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
    notes += [f"{name} is now {name}{BEFORE}; 'vpc remove' puts it back" for name in moved]
    return Done(tuple(root / name for name in texts if name != PIPELINE), tuple(notes))


def _data_directories(root: Path) -> set[str]:
    """Names of the folders in the checkout's folder of data."""
    try:
        return {path.name for path in (root / "data").iterdir() if path.is_dir()}
    except OSError:  # there is none yet
        return set()


def remove(checkout: Checkout) -> Done:
    """Remove what ``install`` wrote, also where it was changed since, and put back what was there before.

    Raises:
        OutputError: Nothing is installed, something is in the way of what was there before, or a file cannot be
            removed.
    """
    root, folder = checkout.root, checkout.root / FOLDER
    with _writing(root):
        recorded = _read_record(root)
        if not recorded:
            if not _exists(folder) and _put_back(root, FOLDER):
                return Done((), (f"{FOLDER} is back in its place",))
            raise OutputError(f"{root}: nothing of mkc-fast is installed here")
        for name in (RECORD, *recorded):
            remove_temporaries((root / name).parent)
        own = {os.path.basename(PIPELINE), os.path.basename(RECORD), _CACHE}  # noqa: PTH119 - not paths here
        foreign = sorted(entry.name for entry in folder.iterdir() if entry.name not in own)
        if foreign and _exists(root / (FOLDER + BEFORE)):
            raise OutputError(
                f"{folder}: holds other things: {', '.join(foreign[:3])}; move them, so that the folder that was here "
                "before can be put back"
            )
        notes = [
            f"{name}: was changed since it was installed, and is removed all the same"
            for name, digest in recorded.items()
            if _exists(root / name) and _digest_of(root / name) != digest
        ]
        for name in recorded:
            (root / name).unlink(missing_ok=True)
            if name != PIPELINE and _put_back(root, name):
                notes.append(f"{name} is back in its place")
        if (folder / _CACHE).is_dir() and not (folder / _CACHE).is_symlink():
            shutil.rmtree(folder / _CACHE)
        (root / RECORD).unlink()
        if foreign:
            notes.append(f"{FOLDER}: stays, since it holds other things: {', '.join(foreign[:3])}")
        else:
            folder.rmdir()
            if _put_back(root, FOLDER):
                notes.append(f"{FOLDER} is back in its place")
    return Done((), tuple(notes))


def _in_the_way(root: Path, names: Sequence[str], recorded: dict[str, str], *, overwrite: bool) -> list[str]:
    """What must be renamed before these files can be written; refuses what must not be replaced."""
    moved = []
    folder = root / FOLDER
    if not recorded and _exists(folder):
        if not overwrite and not _is_example(folder):
            raise OutputError(
                f"{folder}: is there, and mkc-fast did not write it; --overwrite keeps it under another name until "
                "'vpc remove' puts it back"
            )
        moved.append(FOLDER)
    for name in names:
        path = root / name
        if (FOLDER in moved and name == PIPELINE) or not _exists(path):
            continue
        if name not in recorded:
            if not overwrite:
                raise OutputError(
                    f"{path}: is there, and mkc-fast did not write it; choose another --suffix, or --overwrite keeps "
                    "it under another name until 'vpc remove' puts it back"
                )
            moved.append(name)
        elif not overwrite and _digest_of(path) != recorded[name]:
            raise OutputError(f"{path}: was changed since it was installed; --overwrite replaces it")
    for name in moved:
        if _exists(root / (name + BEFORE)):
            raise OutputError(f"{root / (name + BEFORE)}: is there already; move it away first")
    return moved


def _is_example(folder: Path) -> bool:
    """Whether a folder holds the example of the toolkit itself, which shows how to write a pipeline; or nothing."""
    try:
        names = {entry.name for entry in folder.iterdir()}
        if names <= {_CACHE}:
            return True
        text = (folder / "template_pipeline.py").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return names <= _EXAMPLE and _EXAMPLE_IMPORTS in text


def _read_record(root: Path) -> dict[str, str]:
    """The files that were installed, with their digests; empty if there is no record."""
    path = root / RECORD
    try:
        record: Any = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError:
        record = None
    named = record.get("files") if isinstance(record, dict) and record.get("written_by") == _WRITER else None
    if not isinstance(named, dict) or not all(_OWN.fullmatch(name) for name in named):
        raise OutputError(f"{path}: is no record of what mkc-fast installed; remove {FOLDER} by hand")
    return {name: str(digest) for name, digest in named.items()}


def _write_record(root: Path, named: dict[str, str]) -> None:
    record = {"written_by": _WRITER, "version": __version__, "files": named}
    with atomic_file(root / RECORD) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _put_back(root: Path, name: str) -> bool:
    """Give what was in a place before its name back, if there was something."""
    if not _exists(root / (name + BEFORE)):
        return False
    (root / (name + BEFORE)).rename(root / name)
    return True


def _exists(path: Path) -> bool:
    return os.path.lexists(path)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _digest_of(path: Path) -> str | None:
    """The digest of a regular file; None of anything else."""
    return _digest(path.read_bytes()) if path.is_file() and not path.is_symlink() else None


@contextmanager
def _writing(root: Path) -> Iterator[None]:
    """What the system refuses becomes one line."""
    try:
        yield
    except MkcError:
        raise
    except OSError as error:
        raise OutputError(f"{error.filename or root}: cannot be written ({error.strerror or error})") from None
