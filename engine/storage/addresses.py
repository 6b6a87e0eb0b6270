"""What is an address (``s3://bucket/key``) and what is a path; which addresses are refused.

A text is an address if it begins with a protocol of two or more letters and ``://``. ``file://`` addresses are paths.
Addresses hold no secrets: one with a password or a signed query is refused, so that those that are left may stand in
manifests, messages and logs.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import unquote

from mkc_fast.errors import ArgumentError
from mkc_fast.text import printable

if TYPE_CHECKING:
    from os import PathLike

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(.*)", re.DOTALL)
# As ``Path`` writes an address: it makes one slash of two.
_URL_OF_PATH = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)
# Whose queries hold signatures: "presigned" addresses.
_WITH_QUERIES = frozenset({"http", "https"})
_LOCAL = frozenset({"file", "local"})
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(frozen=True, slots=True)
class Address:
    """An address that was checked; what a ``Path`` is for files, for objects.

    Attributes:
        url: As text, without a slash at its end.
    """

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, below: str) -> Address:
        """An address below this one."""
        return Address(f"{self.url}/{below}")

    @property
    def protocol(self) -> str:
        """What it begins with: ``s3``."""
        return self.url.partition("://")[0].lower()

    @property
    def name(self) -> str:
        """What follows its last slash."""
        return self.url.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The ending of its name, with its dot."""
        return os.path.splitext(self.name)[1]  # noqa: PTH122


Place: TypeAlias = Path | Address


def is_address(text: str) -> bool:
    """Whether a text, such as an entry of a list, is an address and no path."""
    return "://" in text and _URL.match(text) is not None


def reason_against(url: str) -> str | None:
    """Why an address is refused, in words that do not quote what may be secret; None if it is not."""
    match = _URL.match(url)
    protocol, rest = (match[1].lower(), match[2]) if match else ("", url)
    if _CONTROL.search(url):
        return "it holds control characters"
    if "::" in url:
        return "chains of protocols (::) are not read"
    if protocol in _LOCAL:
        return None
    user, at, _ = rest.partition("/")[0].rpartition("@")
    if at and (":" in user or "%3a" in user.lower()):
        return "it holds a password; give credentials as the protocol's package takes them"
    if protocol in _WITH_QUERIES and ("?" in rest or "#" in rest):
        return "it has a query, which may hold a signature; give an address without one"
    if not rest.strip("/"):
        return "it names no object"
    return None


def without_secrets(text: str) -> str:
    """A text of a library without what addresses in it may hold: passwords and queries."""
    text = re.sub(r"://[^\s/'\"@]*@", "://…@", text)
    return re.sub(r"(://[^\s?'\"]*)\?[^\s'\")]*", r"\1?…", text)


def shown(url: str) -> str:
    """An address that was not checked, as a message may quote it."""
    return printable(without_secrets(url), 300)


def read_entry(text: str) -> str:
    """An entry of a list that is an address: itself, or the path that a ``file://`` address stands for.

    Raises:
        ArgumentError: It is refused.
    """
    reason = reason_against(text)
    if reason is not None:
        raise ArgumentError(f"{shown(text)}: {reason}")
    match = _URL.match(text)
    assert match is not None
    if match[1].lower() in _LOCAL:
        return _local_path(match[2], text)
    return text


def place_of(given: str | PathLike[str]) -> Place:
    """The path or the address that an argument names.

    A ``Path`` of an address is taken for it, too: ``Path("s3://bucket/key")`` has one slash.

    Raises:
        ArgumentError: It is an address that is refused.
    """
    text = os.fspath(given)
    match = _URL.match(text) if isinstance(given, str) else _URL_OF_PATH.match(text)
    if match is None:
        return Path(text)
    url = f"{match[1]}://{match[2]}"
    if match[1].lower() in _LOCAL and not isinstance(given, str):
        url = f"{match[1]}:///{match[2]}"
    entry = read_entry(url)
    return Address(entry.rstrip("/")) if is_address(entry) else Path(entry)


def _local_path(rest: str, url: str) -> str:
    """``/a b`` of ``///a%20b`` or of ``//localhost/a%20b``."""
    host, slash, path = rest.partition("/")
    if host not in {"", "localhost"} or not slash:
        raise ArgumentError(f"{shown(url)}: expected an absolute path, file:///…")
    return unquote("/" + path.lstrip("/")) if "%" in path else "/" + path.lstrip("/")
