"""Writes objects, each of which appears whole or not at all, and removes them."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from typing import TYPE_CHECKING, Any

from mkc_fast.engine.storage.file_systems import OBJECT_STORES, file_system, in_one_line
from mkc_fast.errors import WriteError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mkc_fast.engine.storage.addresses import Address

# Beside what the protocol's package repeats itself: a store that is away for a minute need not end a run of days.
_WAITS_S = (1.0, 5.0, 25.0)
# What waiting does not change.
_FINAL = (FileNotFoundError, PermissionError, NotImplementedError, ImportError)


def write_object(address: Address, content: bytes) -> None:
    """Write an object, in place of the one that is there.

    Raises:
        WriteError: It cannot be written, also after some time.
    """
    _repeated(address, lambda found, name: found.pipe_file(name, content))


def upload_file(file: Path, address: Address) -> None:
    """Write a file's content as an object, in place of the one that is there.

    Raises:
        WriteError: It cannot be read or written, also after some time.
    """
    _repeated(address, lambda found, name: found.put_file(str(file), name))


def remove_object(address: Address) -> None:
    """Remove an object, if it is there.

    Raises:
        WriteError: It cannot be removed.
    """
    with in_one_line(address.url, WriteError, "cannot be removed"):
        found, name = file_system(address.url)
        found.invalidate_cache()
        with contextlib.suppress(FileNotFoundError):
            found.rm_file(name)


def version_of(address: Address) -> tuple[int, str] | None:
    """What changes when an object is replaced: its size, and its ETag or time; None if it is not there.

    Raises:
        WriteError: The store cannot be asked.
    """
    with in_one_line(address.url, WriteError):
        found, name = file_system(address.url)
        found.invalidate_cache()
        try:
            facts = found.info(name)
        except FileNotFoundError:
            return None
        names = ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "mtime", "updated", "created")
        marks = [str(facts[each]) for each in names if facts.get(each) is not None]
        return int(facts.get("size") or 0), marks[0] if marks else ""


def _repeated(address: Address, write: Callable[[Any, str], object]) -> None:
    with in_one_line(address.url, WriteError, "cannot be written"):
        found, name = file_system(address.url)
        for wait_s in (*_WAITS_S, None):
            try:
                _written(found, name, address, write)
            except _FINAL:
                raise
            except Exception:
                if wait_s is None:
                    raise
                time.sleep(wait_s)
            else:
                return


def _written(found: Any, name: str, address: Address, write: Callable[[Any, str], object]) -> None:
    if address.protocol in OBJECT_STORES:
        write(found, name)
        return
    folder, _, last = name.rpartition("/")
    temporary = f"{folder}/.{last}.{os.getpid()}.{secrets.token_hex(4)}.mkc-fast.tmp"
    found.makedirs(folder, exist_ok=True)
    try:
        write(found, temporary)
        found.mv(temporary, name)
    except BaseException:
        with contextlib.suppress(Exception):
            found.rm_file(temporary)
        raise
