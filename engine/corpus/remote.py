"""Output folders at addresses: a working folder here, outputs and manifest there.

Workers write outputs to the address themselves. The manifest is appended to in the working folder, with all that holds
for manifests; objects cannot be appended to. It is uploaded before the first output, then at intervals, and at the end.
A run on another machine begins with the manifest that is there. What a killed run had written since it was last
uploaded is computed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from mkc_fast.engine.cache_folder import default_cache
from mkc_fast.engine.corpus.manifest import MANIFEST_FILE, locked_manifest
from mkc_fast.engine.storage.reading import read_object
from mkc_fast.engine.storage.writing import upload_file, version_of, write_object
from mkc_fast.errors import MkcError, OutputError, WriteError

if TYPE_CHECKING:
    from concurrent.futures import Future
    from pathlib import Path

    from mkc_fast.engine.corpus.outputs import Folder
    from mkc_fast.engine.storage.addresses import Address

# A machine that is lost costs the others what it has written in this time.
INTERVAL_S = 60.0
# Of a long manifest, uploads take at most this part of the time.
_MOST_BUSY = 0.05
_TEMPORARY_END = ".mkc-fast.tmp"


def working_folder(address: Address) -> Path:
    """Where a run keeps what belongs to an output folder at an address, on this machine."""
    return default_cache() / "outputs" / hashlib.sha256(address.url.encode()).hexdigest()[:32]


class RemoteManifest:
    """Keeps a manifest at an address like the one in the working folder."""

    def __init__(self, path: Path, address: Address) -> None:
        self.path, self.address = path, address
        self._there: tuple[int, str] | None = None
        self._uploaded = 0
        self._next = 0.0
        self._thread = ThreadPoolExecutor(1, "manifest")
        self._uploading: Future[None] | None = None

    def fetch(self) -> None:
        """Take the manifest that is there, unless the one here only has more lines.

        Raises:
            OutputError: Another run is writing here.
            WriteError: The store cannot be asked.
        """
        self._there = version_of(self.address)
        if self._there is None:
            return
        content = read_object(self.address.url, WriteError)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with locked_manifest(self.path.parent):
                if not self.path.read_bytes().startswith(content):
                    with self.path.open("r+b") as file:
                        file.write(content)
                        file.truncate()
                self._uploaded = len(content)
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written ({error.strerror})") from None
        except OutputError:
            raise OutputError(f"{self.address}: another run of this machine is writing there") from None

    def forget(self) -> None:
        """Replace the manifest that is there, whatever it is.

        Raises:
            WriteError: The store cannot be asked.
        """
        self._there = version_of(self.address)

    def advance(self) -> None:
        """Begin to upload, if it is time for that.

        Raises:
            WriteError: An upload has failed, or another run has replaced the manifest.
        """
        if self._uploading is not None:
            if not self._uploading.done():
                return
            self._uploading.result()
            self._uploading = None
        if time.monotonic() >= self._next and self._size() not in {0, self._uploaded}:
            self._uploading = self._thread.submit(self._upload)

    def finish(self) -> None:
        """Upload what is not there yet, and wait for it.

        Raises:
            WriteError: As ``advance``.
        """
        if self._uploading is not None:
            self._uploading.result()
            self._uploading = None
        if self._size() not in {0, self._uploaded}:
            self._upload()

    def close(self) -> None:
        """Upload what can be uploaded, if a run ends with an error of its own."""
        with contextlib.suppress(MkcError, OSError):
            if self._uploaded:
                self.finish()
        self._thread.shutdown()

    def _size(self) -> int:
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def _upload(self) -> None:
        begin, size = time.monotonic(), self._size()
        if version_of(self.address) != self._there:
            raise WriteError(f"{self.address}: was written by another run meanwhile; let only one write there")
        with self.path.open("rb") as file:
            content = file.read(size)
        write_object(self.address, content)
        self._there, self._uploaded = version_of(self.address), size
        now = time.monotonic()
        self._next = now + max(INTERVAL_S, (now - begin) / _MOST_BUSY)


def remote_manifests(folders: list[Folder]) -> list[RemoteManifest]:
    """The manifests of those output folders that are at addresses."""
    return [
        RemoteManifest(folder.path / MANIFEST_FILE, folder.address_of(folder.path / MANIFEST_FILE))
        for folder in folders
        if folder.remote is not None
    ]


def publish(folder: Folder) -> None:
    """Upload what a complete run has left in the working folder, lists last, and remove the working folder.

    Raises:
        WriteError: Something cannot be uploaded.
    """
    out = folder.out or folder.path
    files = [path for path in out.rglob("*") if path.is_file() and not path.name.endswith(_TEMPORARY_END)]
    # The manifest is there, and lists say that the folder is complete.
    for file in sorted(files, key=lambda path: (path.parent == out, path)):
        if file.name != MANIFEST_FILE:
            upload_file(file, folder.address_of(file))
    shutil.rmtree(out, ignore_errors=True)
