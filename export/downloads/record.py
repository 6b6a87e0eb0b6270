"""``downloads.json``: what was downloaded into a folder, from where, and the digest of each file."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mkc_fast.engine.atomic_files import atomic_file, open_regular
from mkc_fast.errors import DownloadError, OutputError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

RECORD_FILE = "downloads.json"
FORMAT_VERSION = 1
_MAX_BYTES = 1 << 26
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Entry:
    """What the record says of one published file.

    Attributes:
        address: Where it came from.
        bytes: Its size, as downloaded.
        sha256: Its digest, as downloaded.
        date: When, in UTC.
        owner: Whose it is.
        terms_accepted: The terms that the user accepted.
        files: The digest of each file that it became, by its path in the folder.
    """

    address: str
    bytes: int
    sha256: str
    date: str
    owner: str
    terms_accepted: str
    files: dict[str, str]


def read_record(out: Path) -> dict[str, Entry]:
    """The entries of a folder's record; empty if there is none.

    Raises:
        DownloadError: The record is damaged or of another version.
    """
    path = out / RECORD_FILE
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            if os.fstat(file.fileno()).st_size > _MAX_BYTES:
                raise ValueError("too large")
            loaded = json.loads(file.read(_MAX_BYTES))
        if loaded["format_version"] != FORMAT_VERSION:
            raise ValueError("another format version")
        return {name: _entry(fields) for name, fields in loaded["files"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else "damaged, or of another version"
        raise DownloadError(f"{path}: not a readable record of downloads ({why}); move it away") from None


def write_record(out: Path, entries: Mapping[str, Entry]) -> None:
    """Write a folder's record atomically.

    Raises:
        OutputError: It cannot be written.
    """
    said = {
        "format_version": FORMAT_VERSION,
        "files": {name: dataclasses.asdict(entries[name]) for name in sorted(entries)},
    }
    try:
        with atomic_file(out / RECORD_FILE) as temporary:
            temporary.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{out / RECORD_FILE}: cannot be written ({error.strerror or error})") from None


def is_digest(text: str) -> bool:
    """Whether a text is a SHA-256 in lower-case hexadecimal."""
    return _SHA256.fullmatch(text) is not None


def _entry(fields: dict[str, Any]) -> Entry:
    entry = Entry(**fields)
    texts = (entry.address, entry.date, entry.owner, entry.terms_accepted)
    if not (all(isinstance(text, str) for text in texts) and isinstance(entry.bytes, int)):
        raise ValueError("a wrong type")
    for path in entry.files:
        if path.startswith("/") or ".." in path.split("/"):
            raise ValueError("a path that leaves the folder")
    if not all(is_digest(digest) for digest in (entry.sha256, *entry.files.values())):
        raise ValueError("not a digest")
    return entry
