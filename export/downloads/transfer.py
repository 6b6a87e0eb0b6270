"""Downloads one file over HTTP; a download that was cut off goes on where it stopped."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from http.cookiejar import CookieJar
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from mkc_fast.engine.atomic_files import atomic_file, cached_object
from mkc_fast.errors import ArgumentError, DownloadError, StoppedError
from mkc_fast.extras import required
from mkc_fast.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable
    from email.message import Message
    from pathlib import Path

    from mkc_fast.export.downloads.table import Published

    Progress = Callable[[int, "int | None"], None]

PART_END = ".part"
_STATE_END = ".part.json"
_BLOCK_BYTES = 1 << 18
_TIMEOUT_S = 60.0
_ATTEMPTS = 4  # in a row that bring nothing
_WAIT_S = 2.0  # after the first of them, and so much longer after each further one
_PAGE_BYTES = 1 << 20
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_BY_HAND = "; or download it in a browser and give it with --from"
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_PAGE = re.compile(rb"\s*<(!doctype\s+html|html|head|body)\b", re.IGNORECASE)


@dataclass(frozen=True)
class _State:
    """Which file on the server a beginning belongs to."""

    address: str
    validator: str | None  # a strong ETag, else the date of its last change
    size: int | None

    @classmethod
    def of(cls, address: str, headers: Message) -> _State:
        etag = headers.get("ETag", "")
        strong = etag if etag.startswith('"') else None
        length = headers.get("Content-Length", "")
        return cls(address, strong or headers.get("Last-Modified"), int(length) if length.isdecimal() else None)


class _CutOff(Exception):
    """The connection ended before the file did."""


def download(file: Published, target: Path, progress: Progress | None = None) -> Path:
    """Download a file to ``target`` with ``.part`` added to its name, or go on with what is there.

    Args:
        file: What to download.
        target: Its final name; nothing is written under it.
        progress: Called with the bytes that are there and, where it is known, the size.

    Returns:
        The path of the whole download.

    Raises:
        ArgumentError: The address is neither https nor of this machine.
        DownloadError: The server refuses, sends a web page, or sends more than the file may have.
        StoppedError: The connection was cut off repeatedly; what came is kept, and the next call goes on.
        OSError: The download cannot be written.
    """
    check_address(file.address)
    part = target.with_name(target.name + PART_END)
    opener = _opener(file.address)
    before, failures = -1, 0
    while True:
        try:
            _attempt(opener, file, part, target.with_name(target.name + _STATE_END), progress)
            return part
        except _CutOff as cut:
            size = part.stat().st_size if part.exists() else 0
            failures = 0 if size > before else failures + 1
            before = size
            if failures >= _ATTEMPTS - 1:
                raise StoppedError(
                    f"{part}: the download stopped after {size} bytes ({cut}); run the same command to continue"
                ) from None
            time.sleep(_WAIT_S * failures)


def forget(target: Path) -> None:
    """Remove what is remembered of an unfinished download."""
    target.with_name(target.name + _STATE_END).unlink(missing_ok=True)


def check_address(address: str, *, local: bool = True) -> None:
    """Refuse an address that is neither https nor, if ``local``, http of this machine.

    Raises:
        ArgumentError: It is neither.
    """
    try:
        parts = urlsplit(address)
        host = parts.hostname
    except ValueError:
        host = None
    if host and (parts.scheme == "https" or (local and parts.scheme == "http" and host in _LOOPBACK)):
        return
    raise ArgumentError(f"{printable(address)}: only addresses that begin with https:// are downloaded from")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https only; to http on this machine if the first address was there."""

    def __init__(self, first: str) -> None:
        self._local = urlsplit(first).hostname in _LOOPBACK

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        try:
            check_address(newurl, local=self._local)
        except ArgumentError as error:
            raise DownloadError(f"redirected to {error}") from None
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


def _opener(address: str) -> urllib.request.OpenerDirector:
    """Requests with the system's proxies and certificates; cookies are forgotten with it."""
    return urllib.request.build_opener(
        urllib.request.HTTPSHandler(context=ssl.create_default_context()),
        urllib.request.HTTPCookieProcessor(CookieJar()),
        _Redirects(address),
    )


def _attempt(
    opener: urllib.request.OpenerDirector, file: Published, part: Path, state_path: Path, progress: Progress | None
) -> None:
    """Download what is missing.

    Raises:
        _CutOff: The connection ended early.
        DownloadError: As ``download``.
    """
    state = _read_state(state_path)
    begin = part.stat().st_size if part.exists() else 0
    if state is None or state.address != file.address or (state.size is not None and begin > state.size):
        state, begin = None, 0
    if state is not None and begin == state.size:
        return
    resumes = state is not None and begin > 0 and (state.validator is not None or state.size is not None)
    headers = {}
    if resumes and state is not None:
        headers["Range"] = f"bytes={begin}-"
        if state.validator is not None:
            headers["If-Range"] = state.validator
    response = _response(opener, file, headers)
    if response is None:  # the server has no such range
        part.unlink(missing_ok=True)
        raise _CutOff("the file on the server is shorter than before")
    with response:
        goes_on = resumes and response.status == http.client.PARTIAL_CONTENT
        if goes_on and state is not None:
            found = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
            now = _State.of(file.address, response.headers)
            validator_differs = None not in {state.validator, now.validator} and state.validator != now.validator
            if not found or int(found[1]) != begin or validator_differs or state.size not in {None, int(found[3])}:
                part.unlink(missing_ok=True)
                raise _CutOff("the file on the server is not the same as before")
            total: int | None = int(found[3])
        else:
            begin = 0
            state = _State.of(file.address, response.headers)
            total = state.size
            part.unlink(missing_ok=True)
            with atomic_file(state_path) as temporary:
                temporary.write_text(json.dumps(asdict(state)), encoding="utf-8")
        _check_size(file, part, begin, total)
        _receive(response, file, part, begin, total, progress)


def _check_size(file: Published, part: Path, begin: int, total: int | None) -> None:
    if total is None:
        return
    if total > file.max_bytes:
        raise DownloadError(f"{file.address}: has {total} bytes, expected at most {file.max_bytes}")
    free = shutil.disk_usage(part.parent).free
    if total - begin > free:
        raise DownloadError(f"{part.parent}: has {free} bytes of free disk space, expected {total - begin}")


def _receive(
    response: Any, file: Published, part: Path, begin: int, total: int | None, progress: Progress | None
) -> None:
    size = begin
    with part.open("ab") as stream:
        try:
            while block := response.read(_BLOCK_BYTES):
                if size == 0 and _PAGE.match(block):
                    raise _web_page(file)
                stream.write(block)
                size += len(block)
                if size > (file.max_bytes if total is None else total):
                    raise DownloadError(f"{file.address}: sends more than the {total or file.max_bytes} bytes expected")
                if progress is not None:
                    progress(size, total)
        except http.client.IncompleteRead as error:
            stream.write(error.partial)
            raise _CutOff("incomplete") from None
        except (http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
            raise _CutOff(_why(error)) from None
        stream.flush()
        os.fsync(stream.fileno())
    if total is not None and size != total:
        raise _CutOff(f"{total} expected")


def _response(opener: urllib.request.OpenerDirector, file: Published, headers: dict[str, str]) -> Any:
    """The answer that holds the file; None if the server has no such range."""
    response = _get(opener, file.address, headers)
    if response is None or not _is_page(response.headers):
        return response
    if file.kind != "google-drive":
        response.close()
        raise _web_page(file)
    with response:
        page = response.read(_PAGE_BYTES).decode("utf-8", "replace")
        where = response.geturl()
    address = urljoin(where, _confirmed(file, page))
    try:
        check_address(address, local=urlsplit(file.address).hostname in _LOOPBACK)
    except ArgumentError as error:
        raise DownloadError(f"{file.address}: its page leads to {error}") from None
    response = _get(opener, address, headers)
    if response is not None and _is_page(response.headers):
        response.close()
        raise _web_page(file)
    return response


def _confirmed(file: Published, page: str) -> str:
    """The address of the file in the page that Google Drive shows before large files."""
    with required("downloading from Google Drive", "gdown", otherwise=_BY_HAND):
        from gdown.download import get_url_from_gdrive_confirmation
    try:
        return str(get_url_from_gdrive_confirmation(page))
    except Exception:  # gdown raises errors of its own, and what the parsing of a strange page raises
        raise _web_page(file) from None


def _get(opener: urllib.request.OpenerDirector, address: str, headers: dict[str, str]) -> Any:
    request = urllib.request.Request(  # noqa: S310 - check_address has seen it
        address, headers={"User-Agent": "mkc-fast", "Accept-Encoding": "identity", **headers}
    )
    try:
        response = opener.open(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and "Range" in headers:
            return None
        if error.code >= 500 or error.code == http.client.TOO_MANY_REQUESTS:
            raise _CutOff(f"the server answers {error.code} {printable(str(error.reason))}") from None
        raise DownloadError(
            f"{address}: the server answers {error.code} {printable(str(error.reason))}{_BY_HAND}"
        ) from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise DownloadError(f"{address}: the server's certificate is not valid ({_why(error.reason)})") from None
        raise _CutOff(_why(error.reason)) from None
    except (http.client.HTTPException, OSError) as error:
        raise _CutOff(_why(error)) from None
    except ValueError as error:
        raise ArgumentError(f"{printable(address)}: not an address ({_why(error)})") from None
    if response.headers.get("Content-Encoding", "identity") != "identity":
        response.close()
        raise DownloadError(f"{address}: the server sends the file compressed, although it was asked not to")
    return response


def _is_page(headers: Message) -> bool:
    return headers.get_content_type() == "text/html"


def _web_page(file: Published) -> DownloadError:
    return DownloadError(
        f"{file.address}: a web page came in place of the file; Google Drive does so when too many people download "
        f"a file, or when it was removed: try again later, look at {file.page}{_BY_HAND}"
    )


def _why(error: object) -> str:
    return printable(getattr(error, "strerror", None) or str(error) or type(error).__name__)


def _read_state(path: Path) -> _State | None:
    loaded = cached_object(path)
    address, validator, size = (loaded.get(name) for name in ("address", "validator", "size"))
    if not isinstance(address, str) or not isinstance(validator, str | None) or not isinstance(size, int | None):
        return None
    return _State(address, validator, size)
