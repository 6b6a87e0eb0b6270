"""Files and directories that are written atomically: under a temporary name, then renamed."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import platform
import re
import shutil
import stat
import sys
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkc_fast.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Iterator

# Names of ``atomic_file``'s temporaries, whatever process made them; no other program uses such names.
_TEMPORARY_END = ".mkc-fast.tmp"
# Digests of machines' names have up to four digits.
_HOSTS = 10_000
_TEMPORARY = re.compile(r"\..+\.\d+" + re.escape(_TEMPORARY_END))
# Ends of the names of ``atomic_directory``'s temporaries: what is being made, and what is being replaced.
_MADE, _REPLACED = ".mkc-fast-dir.tmp", ".mkc-fast-dir.old"
# Of renameat2(2): swaps two names.
_RENAME_EXCHANGE, _AT_FDCWD = 2, -100
_NAMES_SHOWN = 3
# A list of cached digests of some 100,000 files has so many bytes.
_MAX_CACHED_BYTES = 1 << 26
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Contents:
    """What a directory that may be replaced holds: files of one artifact, and nothing else.

    Attributes:
        names: Matches the whole name of each file that belongs to it.
        marker: The file that every such directory has.
        sources: Files that the new directory is made from; a directory with one of them in or below it is never
            replaced.
    """

    names: re.Pattern[str]
    marker: str
    sources: tuple[Path, ...] = ()


@contextlib.contextmanager
def atomic_directory(path: Path, *, replaces: Contents | None = None) -> Iterator[Path]:
    """Yield a temporary directory beside ``path`` that becomes ``path`` when the block ends without an error.

    A link is followed. What a process that died left of such work in the same folder is removed first.

    Args:
        path: The directory to make. It must not be there, or be empty.
        replaces: What ``path`` may hold instead; it is then replaced in one step.

    Raises:
        OutputError: ``path`` holds something else, now or when the block ends, is the working directory or the home
            directory or holds one of them, is a link to nothing, or cannot be written.
    """
    given = path
    try:
        path = _resolved(path)
        _check_free(path, replaces)
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_dead(path.parent, replaces)
        temporary, lock = _locked_temporary(path)
    except (OSError, ValueError) as error:
        raise OutputError(f"{given}: cannot be written ({getattr(error, 'strerror', error)})") from None
    try:
        temporary.chmod(0o777 & ~_umask())
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _sync(file)
        _sync(temporary)
        _put(temporary, path, replaces)
        _sync(path.parent)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _resolved(path: Path) -> Path:
    """The absolute path without links; a link to nothing is refused."""
    if path.is_symlink() and not path.exists():
        raise OutputError(f"{path}: is a link to nothing; remove it, or make the directory that it names")
    return Path(os.path.realpath(path))


def _check_free(path: Path, replaces: Contents | None) -> None:
    """Check that nothing would be lost if a new directory took the place of ``path``."""
    if not path.exists():
        return
    if not path.is_dir():
        raise OutputError(f"{path}: is there, and is no directory")
    for place, name in ((Path.cwd, "the working directory"), (Path.home, "the home directory")):
        with contextlib.suppress(RuntimeError, FileNotFoundError):  # there may be none
            if place().resolve().is_relative_to(path):
                raise OutputError(f"{path}: is {name}, or holds it; name a directory to make")
    if replaces is None:
        if any(path.iterdir()):
            raise OutputError(f"{path}: already there; remove it, or ask to overwrite it")
        return
    for source in {file.parent for file in replaces.sources}:
        for folder in (source.absolute(), source.resolve()):
            if folder.is_relative_to(path):
                raise OutputError(f"{path}: holds a file that this is made from, in {folder}; choose another directory")
    for source in replaces.sources:
        if source.resolve().is_relative_to(path):
            raise OutputError(f"{path}: holds {source}, which this is made from; choose another directory")
    _check_contents(path, path, replaces)


def _check_contents(path: Path, where: Path, replaces: Contents) -> None:
    """Check that ``where``, called ``path`` in the message, holds nothing but files of the artifact."""
    with os.scandir(where) as entries:
        own = {entry.name: entry.is_file(follow_symlinks=False) for entry in entries}
    if not own:
        return
    foreign = sorted(name for name, regular in own.items() if not (regular and replaces.names.fullmatch(name)))
    if foreign:
        more = f" and {len(foreign) - _NAMES_SHOWN} more" if len(foreign) > _NAMES_SHOWN else ""
        names = ", ".join(ascii(name)[1:-1][:60] for name in foreign[:_NAMES_SHOWN])
        raise OutputError(f"{path}: not replaced, since it holds other things: {names}{more}; choose another directory")
    if replaces.marker not in own:
        raise OutputError(f"{path}: not replaced, since it holds files but no {replaces.marker}; remove them first")


def _put(temporary: Path, path: Path, replaces: Contents | None) -> None:
    """Rename a directory to its final name; what appeared there since the first check is not replaced."""
    if replaces is not None and not path.is_symlink():
        _check_free(path, replaces)
    try:
        temporary.rename(path)  # an empty directory gives way; what holds something, a file and a link do not
        return
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
            raise
    if replaces is None or path.is_symlink() or not path.is_dir():
        raise OutputError(f"{path}: appeared while this was being made; nothing was replaced")
    old = temporary.with_name(temporary.name.removesuffix(_MADE) + _REPLACED)
    if _exchange(temporary, path):
        temporary.rename(old)
    else:
        path.rename(old)
        _undone_if_it_fails(temporary, path, old)
    try:
        _check_contents(path, old, replaces)  # when no process can find it under its name any more
    except OutputError:
        if _exchange(old, path):
            old.rename(temporary)
        else:
            path.rename(temporary)
            old.rename(path)
        raise
    _remove_files(old, replaces)


def _undone_if_it_fails(temporary: Path, path: Path, old: Path) -> None:
    try:
        temporary.rename(path)
    except OSError:
        old.rename(path)
        raise


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step; False where the system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return not rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)


def _remove_files(folder: Path, contents: Contents) -> None:
    """Remove an artifact's files and then its directory, which stays if anything else is in it."""
    with contextlib.suppress(OSError):
        for file in list(folder.iterdir()):
            if contents.names.fullmatch(file.name):
                file.unlink()
        folder.rmdir()


def _locked_temporary(path: Path) -> tuple[Path, int | None]:
    """A new directory beside ``path``, locked for as long as this process lives, and the lock's descriptor."""
    while True:
        made = Path(tempfile.mkdtemp(prefix=f".{path.name}."[:200], suffix=_MADE, dir=path.parent))
        try:
            lock = _lock_of(made)
        except BlockingIOError:
            continue  # a process is removing it that took it for left behind
        if lock is None:
            return made, None  # then no process can lock it, and none removes it
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(lock), made.stat()):
                return made, lock
        os.close(lock)  # it was removed before it was locked


def _lock_of(folder: Path) -> int | None:
    """A descriptor that holds the lock of a directory; None where the file system has no locks.

    Raises:
        BlockingIOError: Another process holds it.
    """
    try:
        import fcntl
    except ImportError:
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return descriptor


def _remove_dead(folder: Path, replaces: Contents | None) -> None:
    """Remove the temporary directories of processes that are gone; a living one holds the lock of its own."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):  # noqa: PTH208 - ten times as fast as iterdir in a folder of a corpus
            if name.startswith(".") and name.endswith(_MADE):
                with contextlib.suppress(BlockingIOError):
                    lock = _lock_of(folder / name)
                    if lock is not None:
                        shutil.rmtree(folder / name, ignore_errors=True)
                        os.close(lock)
            # Where nothing took its place, the process died between two renames, and this is the only copy.
            elif replaces and name.endswith(_REPLACED) and (folder / name[1:].rsplit(".", 3)[0]).exists():
                _remove_files(folder / name, replaces)


def discard(path: Path) -> None:
    """Remove whatever is at ``path`` in a folder of our own, so that it can be made again.

    Raises:
        OutputError: It cannot be removed.
    """
    try:
        if path.is_dir() and not path.is_symlink():
            # Renamed first, so that no process finds a half-removed one.
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=_MADE, dir=path.parent))
            path.rename(old)
            shutil.rmtree(old, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot be removed ({error.strerror})") from None


def holds_regular_files(folder: Path) -> bool:
    """Whether a directory of the cache holds files and nothing that an open could wait for."""
    try:
        with os.scandir(folder) as entries:
            kinds = [entry.is_file(follow_symlinks=False) for entry in entries]
    except OSError:
        return False
    return all(kinds)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock that goes with the process; without one where the system has none of these."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    # Not to wait for the other end of a pipe, whatever lies there.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path`` that is renamed to ``path`` when the block ends without an error."""
    temporary = _temporary(path, os.getpid())
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:  # only then: on a network's file system, to look for what is not there takes a while, too
        temporary.unlink(missing_ok=True)
        raise


def remove_temporary(path: Path, pid: int, machine: str | None = None) -> None:
    """Remove what a process that is dead now may have left of ``path`` under its temporary name.

    Args:
        path: The final name.
        pid: Of the process.
        machine: Its machine (``platform.node()``); default: this one.
    """
    with contextlib.suppress(OSError):
        _temporary(path, pid, machine).unlink(missing_ok=True)


def remove_temporaries(folder: Path) -> None:
    """Remove what killed processes left in a folder under temporary names; no process may be writing there."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):  # noqa: PTH208 - ten times as fast as iterdir in a folder of a corpus
            if name.endswith(_TEMPORARY_END) and _TEMPORARY.fullmatch(name):
                with contextlib.suppress(OSError):  # a directory of such a name is not ours, either
                    (folder / name).unlink(missing_ok=True)


def _temporary(path: Path, pid: int, machine: str | None = None) -> Path:
    # Machines that share a folder may have processes of one id.
    host = zlib.crc32((platform.node() if machine is None else machine).encode())
    return path.with_name(f".{path.name}.{pid}.{host % _HOSTS}{_TEMPORARY_END}")


def open_regular(path: Path) -> int:
    """A descriptor for reading a regular file.

    Raises:
        OSError: It is missing, unreadable, or no regular file (to read a pipe is to wait for its writer).
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a file", str(path))
    return descriptor


def sha256_of(path: Path) -> str:
    """SHA-256 of a regular file, in hexadecimal.

    Raises:
        OSError: It is missing, unreadable, or no regular file.
    """
    digest, block = hashlib.sha256(), bytearray(_BLOCK_BYTES)
    with os.fdopen(open_regular(path), "rb", buffering=0) as file:
        while size := file.readinto(block):
            digest.update(memoryview(block)[:size])
    return digest.hexdigest()


def cached_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of the cache; empty where there is none, whatever lies there instead."""
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            if os.fstat(file.fileno()).st_size > _MAX_CACHED_BYTES:
                return {}
            loaded = json.loads(file.read(_MAX_CACHED_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return loaded if isinstance(loaded, dict) else {}


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
