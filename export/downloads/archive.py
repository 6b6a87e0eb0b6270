"""Unpacks the archive of k-means models (zip or tar): ``user/*.pt`` and ``attacker/*.pt``, and nothing else."""

from __future__ import annotations

import lzma
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from mkc_fast.errors import DownloadError
from mkc_fast.export.checkpoints.kmeans_pickle import MAX_FILE_BYTES
from mkc_fast.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

FOLDERS = ("user", "attacker")
_MAX_MEMBERS = 1 << 16
_MAX_BYTES = 1 << 36  # of all models; the published ones take some 5 GB
_BLOCK_BYTES = 1 << 20
_MAX_DEPTH = 2  # folders above user/ and attacker/ in the archive
# A name of a model is also a name in a list, which has no blanks.
_NAME = re.compile(r"[\w+=@-][\w.+=@-]{0,180}\.pt", re.ASCII)


def unpack(archive: Path, out: Path, progress: Callable[[int], None] | None = None) -> list[str]:
    """Unpack the models of an archive.

    Other files, such as lists or a README, are left out. Folders above ``user/`` and ``attacker/`` are dropped.

    Args:
        archive: A zip file, or a tar file, which may be compressed.
        out: An empty directory.
        progress: Called with the number of models done.

    Returns:
        The paths of the models in ``out``, sorted.

    Raises:
        DownloadError: The archive is damaged or too large, holds no models, or has a member that is a link, a device or
            an absolute path, that leaves the folder, or that is there twice.
        OSError: A file cannot be written.
    """
    made: list[str] = []
    total = 0
    with _refusing(archive), _opened(archive) as members:
        for number, (name, open_member) in enumerate(members, start=1):
            if number > _MAX_MEMBERS:
                raise DownloadError(f"{archive}: has more than {_MAX_MEMBERS} members")
            model = _model(archive, name)
            if model is None or open_member is None:
                continue
            if model in made:
                raise DownloadError(f"{archive}: has {model} twice")
            path = out / model
            path.parent.mkdir(exist_ok=True)
            total += _write(archive, model, open_member(), path, min(MAX_FILE_BYTES, _MAX_BYTES - total))
            made.append(model)
            if progress is not None:
                progress(len(made))
    if not made:
        raise DownloadError(f"{archive}: holds no models; expected {' and '.join(f'{f}/*.pt' for f in FOLDERS)}")
    return sorted(made)


@contextmanager
def _refusing(archive: Path) -> Iterator[None]:
    try:
        yield
    except (
        zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, struct.error, ValueError,
        NotImplementedError, RuntimeError, OverflowError, MemoryError,
    ) as error:  # fmt: skip
        raise DownloadError(
            f"{archive}: a damaged archive, or one of an unknown form ({printable(str(error))})"
        ) from None


@contextmanager
def _opened(archive: Path) -> Iterator[Iterator[tuple[str, Callable[[], IO[bytes]] | None]]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            yield _of_zip(archive, zipped)
    else:
        with tarfile.open(archive, "r:*") as tar:
            yield _of_tar(archive, tar)


def _of_zip(archive: Path, zipped: zipfile.ZipFile) -> Iterator[tuple[str, Callable[[], IO[bytes]] | None]]:
    for member in zipped.infolist():
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
            raise _hostile(archive, member.filename, "is a link or a device")
        yield member.filename, None if member.is_dir() else lambda member=member: zipped.open(member)  # type: ignore[misc]


def _of_tar(archive: Path, tar: tarfile.TarFile) -> Iterator[tuple[str, Callable[[], IO[bytes]] | None]]:
    while (member := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # it would keep each
        if not (member.isreg() or member.isdir()):
            raise _hostile(archive, member.name, "is a link or a device")
        yield member.name, None if member.isdir() else lambda member=member: _extracted(tar, member)  # type: ignore[misc]


def _extracted(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    stream = tar.extractfile(member)
    if stream is None:
        raise tarfile.TarError("a member without content")
    return stream


def _model(archive: Path, name: str) -> str | None:
    """Where a member goes; None for one that is left out."""
    parts = name.removeprefix("./").rstrip("/").split("/")
    if name.startswith("/") or "\\" in name or "\0" in name or ".." in parts or re.match(r"[A-Za-z]:", name):
        raise _hostile(archive, name, "would be written outside the folder")
    if len(parts) < 2 or len(parts) > 2 + _MAX_DEPTH or parts[-2] not in FOLDERS or "__MACOSX" in parts:
        return None
    if parts[-1].startswith(".") or not parts[-1].endswith(".pt"):
        return None
    if not _NAME.fullmatch(parts[-1]):
        raise _hostile(archive, name, "has a name that a list cannot hold")
    return f"{parts[-2]}/{parts[-1]}"


def _write(archive: Path, model: str, stream: IO[bytes], path: Path, limit: int) -> int:
    size = 0
    with stream, path.open("xb") as written:
        while block := stream.read(_BLOCK_BYTES):
            size += len(block)
            if size > limit:
                raise DownloadError(f"{archive}: {model} is larger than {limit} bytes")
            written.write(block)
    return size


def _hostile(archive: Path, name: str, why: str) -> DownloadError:
    return DownloadError(f"{archive}: refused: {printable(name)} {why}")
