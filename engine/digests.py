"""Digests of files: remembered by what the file system says of each, and compared with an artifact's JSON in threads.

A bank of the published size has 4.9 GB, which take seconds to read. So a digest is computed once for each state of a
file on a machine and kept in the cache folder, and a load computes the missing ones while it opens the graphs and runs
the first batch; no result is handed out before they are known to fit.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from mkc_fast.engine.artifacts import ModelInfo, read_info
from mkc_fast.engine.atomic_files import atomic_file, cached_object, locked, sha256_of
from mkc_fast.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from mkc_fast.engine.artifacts import FileFacts

_INDEX = "sha256.json"
# A file changed within its time stamp's resolution would look unchanged; two seconds is the coarsest in use (FAT).
_RESOLUTION_NS = 2_000_000_000
# States that are kept: the newest. A bank's sources are 1,165 files.
_MOST_REMEMBERED = 50_000
_THREADS = 4
# Below, processes that load the same files at once read them side by side; above, one reads and the others wait for it.
_LARGE_BYTES = 64 << 20
_saving = threading.Lock()


def digests(files: Sequence[Path], cache: Path) -> list[str]:
    """SHA-256 of each file, computed only where the cache does not know it for the file as it is now.

    Raises:
        OSError: A file is missing, unreadable or no regular file.
    """
    known, found = cached_object(cache / _INDEX), {}

    def digest(file: Path) -> str:
        key, state = _state(file)
        remembered = _remembered(known, key, state)
        if remembered is not None:
            return remembered
        begin = time.time_ns()
        try:
            computed = sha256_of(file)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(file)) from None
        if _settled(state, begin) and _state(file) == (key, state):
            found[key] = [*state, computed]
        return computed

    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        result = list(pool.map(digest, files))
    _remember(cache, found)
    return result


def remember(directory: Path, files: Mapping[str, FileFacts], cache: Path) -> None:
    """Note digests of files that this process has just written and read, so that the first load need not."""
    now, found = time.time_ns(), {}
    for name, facts in files.items():
        with contextlib.suppress(OSError):
            key, state = _state(directory / name)
            if _settled(state, now) and state[0] == facts.bytes:
                found[key] = [*state, facts.sha256]
    _remember(cache, found)


def verify(directory: Path, files: Mapping[str, FileFacts], cache: Path) -> None:
    """Compare the digest of each file, remembered or computed, with what its artifact's JSON says.

    Args:
        directory: The artifact.
        files: Those to check.
        cache: Where digests are remembered.

    Raises:
        ArtifactError: A file was changed, or cannot be read.
    """
    paths = [directory / name for name in files]
    large = sum(facts.bytes for facts in files.values()) > _LARGE_BYTES
    with _one_process(cache) if large else contextlib.nullcontext():
        try:
            found = digests(paths, cache)
        except OSError as error:
            raise ArtifactError(f"{error.filename or directory}: cannot be read ({error.strerror})") from None
    for path, digest, facts in zip(paths, found, files.values(), strict=True):
        _compare(path, digest, facts)


def verify_whole(directory: Path, cache: Path) -> str:
    """Read every file of a model or bank, whatever is remembered, and compare it with its JSON.

    Returns:
        What was read, in words.

    Raises:
        ArtifactError: A file is missing, was changed, or cannot be read; or the directory is no artifact.
    """
    info = read_info(directory)
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        found = list(pool.map(_digest_or_error, (directory / name for name in info.files)))
    for (name, facts), digest in zip(info.files.items(), found, strict=True):
        _compare(directory / name, digest, facts)
    remember(directory, info.files, cache)
    size = sum(facts.bytes for facts in info.files.values())
    kind = "a model" if isinstance(info, ModelInfo) else "a bank"
    return f"{kind}, its {len(info.files)} files ({size / 1e6:.1f} MB) are as they were made"


class Verification:
    """Compares digests of artifacts in threads, while other work goes on."""

    def __init__(self, cache: Path) -> None:
        """Begin with nothing to compare; digests are remembered in ``cache``."""
        self._cache = cache
        self._threads: list[threading.Thread] = []
        self._errors: list[Exception] = []

    def begin(self, directory: Path, files: Mapping[str, FileFacts]) -> None:
        """Begin to compare these files of an artifact."""
        thread = threading.Thread(target=self._run, args=(directory, dict(files)), name="digests", daemon=True)
        self._threads.append(thread)
        thread.start()

    def wait(self) -> None:
        """Wait until everything is compared; costs nothing once it is.

        Raises:
            ArtifactError: A file is not what its artifact's JSON says, or cannot be read.
        """
        while self._threads:
            self._threads[-1].join()
            self._threads.pop()
        if self._errors:
            raise ArtifactError(str(self._errors[0]))

    def _run(self, directory: Path, files: Mapping[str, FileFacts]) -> None:
        try:
            verify(directory, files, self._cache)
        except Exception as error:  # whatever it was, nothing may run unverified
            self._errors.append(error)


def _digest_or_error(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror})") from None


def _compare(path: Path, digest: str, facts: FileFacts) -> None:
    if digest != facts.sha256:
        raise ArtifactError(
            f"{path}: was changed or damaged: its SHA-256 is {digest[:12]}…, expected {facts.sha256[:12]}…; "
            "make the directory again"
        )


def _state(file: Path) -> tuple[str, list[int]]:
    """A file's path without links, and its size, times and inode."""
    status = file.stat()
    return os.path.realpath(file), [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _settled(state: Sequence[int], now_ns: int) -> bool:
    """Whether a change from now on would show in a file's times."""
    return now_ns - max(state[1:3]) > _RESOLUTION_NS


def _remembered(known: Mapping[str, object], key: str, state: list[int]) -> str | None:
    entry = known.get(key)
    if not isinstance(entry, list) or entry[:-1] != state:
        return None
    return entry[-1] if isinstance(entry[-1], str) else None


def _remember(cache: Path, found: Mapping[str, list[object]]) -> None:
    """Add to what is kept; where nothing can be kept, files are read again next time."""
    if not found:
        return
    with _saving, contextlib.suppress(OSError, ValueError):
        known = cached_object(cache / _INDEX)
        for key in found:
            known.pop(key, None)
        kept = [*known.items(), *found.items()][-_MOST_REMEMBERED:]
        cache.mkdir(parents=True, exist_ok=True)
        with atomic_file(cache / _INDEX) as temporary:
            temporary.write_text(json.dumps(dict(kept), indent=0), encoding="utf-8")


@contextlib.contextmanager
def _one_process(cache: Path) -> Iterator[None]:
    """One process at a time, where the cache folder can hold a lock."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            cache.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(cache / "sha256.lock"))
        yield
