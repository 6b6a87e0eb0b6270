"""Brings a published file into a folder: downloads it, compares its digest, reads it, records it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from mkc_fast.engine.atomic_files import atomic_directory, atomic_file, locked, sha256_of
from mkc_fast.errors import ArgumentError, CheckpointError, DownloadError, OutputError
from mkc_fast.export.checkpoints.kmeans import read_kmeans
from mkc_fast.export.downloads.archive import FOLDERS, unpack
from mkc_fast.export.downloads.record import Entry, is_digest, read_record, write_record
from mkc_fast.export.downloads.transfer import PART_END, check_address, download, forget
from mkc_fast.extras import required
from mkc_fast.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mkc_fast.export.downloads.table import Published
    from mkc_fast.export.downloads.transfer import Progress

REFUSED_END = ".refused"
_LOCK_FILE = ".downloads.lock"


@dataclass(frozen=True)
class Fetched:
    """What ``fetch`` brought.

    Attributes:
        path: The file; of an archive, the folder that it was unpacked into.
        sha256: Of the file as downloaded.
        bytes: Of the file as downloaded.
        was_there: Nothing was downloaded, since it was there, as recorded.
        lists: Lists of k-means models that were written.
    """

    path: Path
    sha256: str
    bytes: int
    was_there: bool
    lists: tuple[Path, ...] = ()


def needs_terms(file: Published, out: Path) -> bool:
    """Whether the terms of a file have still to be accepted for a folder.

    Raises:
        DownloadError: The folder's record is damaged.
    """
    entry = read_record(out).get(file.name)
    return entry is None or entry.terms_accepted != file.terms


def fetch(
    file: Published,
    out: Path,
    *,
    accept_terms: bool,
    sha256: str | None = None,
    source: Path | None = None,
    progress: Progress | None = None,
    step: Callable[[str], None] | None = None,
) -> Fetched:
    """Bring a published file into a folder; nothing is downloaded if it is there, as recorded.

    The file gets its final name when it is whole, has the expected digest, and was read by the reader of its kind.

    Args:
        file: What to bring.
        out: The folder; it is made.
        accept_terms: The user has read the file's terms and accepts them.
        sha256: The digest that the file must have.
        source: The file itself, downloaded by other means; it is copied, and no connection is opened.
        progress: Called with the bytes that are there and, where it is known, the size.
        step: Called with what is being done after the download.

    Raises:
        ArgumentError: The digest is none, or the address is neither https nor of this machine.
        DownloadError: The terms are not accepted, the file cannot be downloaded, is not the one that was recorded or
            asked for, or is refused by its reader; then it is kept under a name that ends in ``.refused``.
        StoppedError: The connection was cut off; the next call continues.
        OutputError: ``out`` cannot be written, or holds something else under the file's name.
        MkcError: A package is missing.
    """
    sha256 = None if sha256 is None else sha256.lower()
    if sha256 is not None and not is_digest(sha256):
        raise ArgumentError(f"{printable(sha256)}: not a SHA-256; expected 64 hexadecimal digits")
    if source is None:
        check_address(file.address)
    try:
        if needs_terms(file, out) and not accept_terms:
            raise DownloadError(f"{file.title}: not downloaded, since its terms were not accepted: {file.terms}")
        _check_packages(file, connects=source is None)
        out.mkdir(parents=True, exist_ok=True)
        with locked(out / _LOCK_FILE):
            return _fetch(file, out, sha256, source, progress, step or (lambda _: None))
    except OSError as error:
        raise OutputError(f"{error.filename or out}: {error.strerror or error}") from None


def _check_packages(file: Published, *, connects: bool) -> None:
    """Say before a long download that a package is missing which reads the file after it."""
    if file.reader != "kmeans":
        with required(f"reading {file.title}", "torch"):
            pass
    if connects and file.kind == "google-drive":
        with required("downloading from Google Drive", "gdown"):
            pass


def _fetch(
    file: Published,
    out: Path,
    sha256: str | None,
    source: Path | None,
    progress: Progress | None,
    step: Callable[[str], None],
) -> Fetched:
    record = read_record(out)
    entry = record.get(file.name)
    target = out / file.file
    expected = _expected(file, out, entry, sha256)
    if target.exists() or target.is_symlink():
        if entry is None:
            raise OutputError(f"{target}: already there, and not recorded as downloaded; move it away")
        step(f"comparing {target} with its digest")
        _check_recorded(out, entry)
        target.with_name(target.name + PART_END).unlink(missing_ok=True)  # of a call that was killed at its end
        forget(target)
        return Fetched(target, entry.sha256, entry.bytes, True, _lists(file, target))
    part = download(file, target, progress) if source is None else _copied(source, target)
    step(f"computing the SHA-256 of {file.title}")
    digest = sha256_of(part)
    if expected is not None and digest != expected:
        refused = _set_aside(part, target)
        raise DownloadError(
            f"{target}: not the expected file: its SHA-256 is {digest}, expected {expected}; kept as {refused}"
        )
    made = Entry(
        address=file.address if source is None else f"a file named {source.name}",
        bytes=part.stat().st_size,
        sha256=digest,
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        owner=file.owner,
        terms_accepted=file.terms,
        files={},
    )
    step(f"reading {file.title}")
    try:
        if file.is_archive:
            _unpack(file, part, out, record, made, step)
        else:
            _read(file, part)
            # Recorded first: after a kill between the two, the next call finds the download whole.
            write_record(out, {**record, file.name: _with_files(made, {file.file: digest})})
            part.replace(target)
    except (DownloadError, CheckpointError) as error:
        refused = _set_aside(part, target)
        raise DownloadError(f"{refused}: not {file.title}: {str(error).removeprefix(f'{part}: ')}") from None
    part.unlink(missing_ok=True)
    forget(target)
    return Fetched(target, digest, made.bytes, False, _lists(file, target))


def _expected(file: Published, out: Path, entry: Entry | None, sha256: str | None) -> str | None:
    """The digest that the file must have, if any is known; all that are known must agree."""
    known = {
        "asked for": sha256,
        "published": file.sha256,
        f"recorded in {out}": None if entry is None else entry.sha256,
    }
    digests = {what: digest for what, digest in known.items() if digest is not None}
    if len(set(digests.values())) > 1:
        said = ", ".join(f"{digest} ({what})" for what, digest in digests.items())
        raise DownloadError(f"{file.title}: its SHA-256 cannot be all of these: {said}")
    return next(iter(digests.values()), None)


def _check_recorded(out: Path, entry: Entry) -> None:
    for name, expected in entry.files.items():
        try:
            found = sha256_of(out / name)
        except OSError as error:
            raise DownloadError(f"{out / name}: was downloaded and cannot be read ({error.strerror})") from None
        if found != expected:
            raise DownloadError(
                f"{out / name}: was changed: its SHA-256 is {found}, expected {expected}; it is left as it is"
            )


def _copied(source: Path, target: Path) -> Path:
    part = target.with_name(target.name + PART_END)
    if not source.is_file():
        raise DownloadError(f"{source}: no such file")
    if not (part.exists() and part.samefile(source)):
        forget(target)
        shutil.copyfile(source, part)
    return part


def _set_aside(part: Path, target: Path) -> Path:
    refused = target.with_name(target.name + REFUSED_END)
    part.replace(refused)
    forget(target)
    return refused


def _read(file: Published, path: Path) -> None:
    with required(f"reading {file.title}", "torch"):
        from mkc_fast.export.checkpoints.published import load_voice, load_wavlm
    if file.reader == "wavlm":
        load_wavlm(path)
    elif not load_voice(path).conformer_weights:
        raise CheckpointError(f"{path}: holds a vocoder alone, and no conformer")


def _unpack(
    file: Published, part: Path, out: Path, record: dict[str, Entry], made: Entry, step: Callable[[str], None]
) -> None:
    """Unpack the models, read each, and write a list of each folder's."""
    target = out / file.file
    with atomic_directory(target) as folder:
        models = unpack(part, folder)
        digests = {}
        for number, model in enumerate(models, start=1):
            if number % 100 == 1:
                step(f"reading the k-means models: {number} of {len(models)}")
            try:
                read_kmeans(folder / model)
            except CheckpointError as error:
                raise CheckpointError(f"{model}: {str(error).removeprefix(f'{folder / model}: ')}") from None
            digests[f"{file.file}/{model}"] = sha256_of(folder / model)
        for name in FOLDERS:
            lines = [
                f"{model.split('/')[1].removesuffix('.pt')} {target.resolve() / model}\n"
                for model in models
                if model.startswith(f"{name}/")
            ]
            if lines:
                with atomic_file(folder / _list_name(name)) as temporary:
                    temporary.write_text("".join(lines), encoding="utf-8")
        # Recorded first, as above; the download is removed last.
        write_record(out, {**record, file.name: _with_files(made, digests)})


def _with_files(made: Entry, files: dict[str, str]) -> Entry:
    return Entry(**{**vars(made), "files": files})


def _list_name(folder: str) -> str:
    return f"kmeans_{folder}.scp"


def _lists(file: Published, target: Path) -> tuple[Path, ...]:
    if not file.is_archive:
        return ()
    return tuple(path for name in FOLDERS if (path := target / _list_name(name)).is_file())
