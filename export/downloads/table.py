"""The published files: whose they are, under which terms, and where they are."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final, Literal
from urllib.parse import parse_qs, urlsplit

from mkc_fast.errors import ArgumentError
from mkc_fast.text import printable

Kind = Literal["http", "google-drive"]
Reader = Literal["wavlm", "conformer", "kmeans"]
_GB = 1 << 30
_DRIVE_HOSTS = ("drive.google.com", "docs.google.com", "drive.usercontent.google.com")
_DRIVE_ID = re.compile(r"[\w-]{10,100}")


@dataclass(frozen=True)
class Published:
    """A published file.

    Attributes:
        name: What the command calls it.
        title: What it is.
        owner: Whose it is.
        terms: Under which terms, with the address of each.
        page: Where its owners publish it.
        address: Where it is downloaded from.
        kind: How: plain HTTP, or the pages of Google Drive before the file.
        file: Its name in the output folder; of an archive, the folder that it is unpacked into.
        reader: What reads it after the download.
        max_bytes: A larger file is refused.
        sha256: Its digest, where its owners publish one.
    """

    name: str
    title: str
    owner: str
    terms: str
    page: str
    address: str
    kind: Kind
    file: str
    reader: Reader
    max_bytes: int
    sha256: str | None = None

    @property
    def is_archive(self) -> bool:
        """Whether it is an archive that is unpacked."""
        return self.reader == "kmeans"


def drive_address(file_id: str) -> str:
    """The address of the first page of Google Drive for a file."""
    return f"https://drive.google.com/uc?export=download&id={file_id}"


_AUTHORS = "Beilong Tang, Xiaoxiao Miao, Xin Wang and Ming Li, the authors of arXiv 2508.07086"
_AUTHORS_TERMS = (
    "their code is under CC BY-NC 4.0 (https://creativecommons.org/licenses/by-nc/4.0/); "
    "no other terms for this file are known"
)
_AUTHORS_PAGE = "https://github.com/Beilong-Tang/sef-mk"

PUBLISHED: Final[dict[str, Published]] = {
    file.name: file
    for file in (
        Published(
            name="wavlm",
            title="WavLM-Large",
            owner="Microsoft; this copy is published by the authors of kNN-VC",
            terms=(
                "of WavLM: https://github.com/microsoft/unilm/blob/master/LICENSE and "
                "https://github.com/microsoft/UniSpeech/blob/main/LICENSE; "
                "of the code of kNN-VC: https://github.com/bshall/knn-vc/blob/master/LICENSE"
            ),
            page="https://github.com/microsoft/unilm/tree/master/wavlm",
            address="https://github.com/bshall/knn-vc/releases/download/v0.1/WavLM-Large.pt",
            kind="http",
            file="WavLM-Large.pt",
            reader="wavlm",
            max_bytes=8 * _GB,
        ),
        Published(
            name="conformer",
            title="conformer + vocoder",
            owner=_AUTHORS,
            terms=_AUTHORS_TERMS,
            page=_AUTHORS_PAGE,
            address=drive_address("1E9NDTnsQp73bHu1Xn8-aTdPDqq1w0K5x"),
            kind="google-drive",
            file="librispeech_conformer_e_50.pth",
            reader="conformer",
            max_bytes=16 * _GB,
        ),
        Published(
            name="kmeans",
            title="k-means models",
            owner=_AUTHORS,
            terms=_AUTHORS_TERMS,
            page=_AUTHORS_PAGE,
            address=drive_address("1pQx_nFZ-Y7v7B_NCGAheAyJ9UNzhyNda"),
            kind="google-drive",
            file="kmeans",
            reader="kmeans",
            max_bytes=64 * _GB,
        ),
    )
}


def published(name: str, url: str | None = None) -> Published:
    """A published file by its name.

    Args:
        name: ``wavlm``, ``conformer`` or ``kmeans``.
        url: Another address of it; one of Google Drive may be that of its page.

    Raises:
        ArgumentError: There is no such file.
    """
    if name not in PUBLISHED:
        raise ArgumentError(f"no published file is called {printable(name)}; expected {', '.join(PUBLISHED)}")
    file = PUBLISHED[name]
    if url is None:
        return file
    drive = _drive_id(url)
    if drive is not None:
        return replace(file, address=drive_address(drive), kind="google-drive")
    return replace(file, address=url, kind="http")


def _drive_id(url: str) -> str | None:
    """The id of a file of Google Drive in an address; None for other addresses."""
    try:
        parts = urlsplit(url)
        if parts.hostname not in _DRIVE_HOSTS:
            return None
    except ValueError:
        return None
    found = re.search(r"/d/([^/]+)", parts.path)
    drive = found[1] if found else "".join(parse_qs(parts.query).get("id", [])[:1])
    return drive if _DRIVE_ID.fullmatch(drive) else None
