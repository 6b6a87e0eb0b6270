"""A store of objects on this machine: moto's server, which speaks S3."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# What must never appear in what a run writes or says.
SECRET = "a-secret-that-nothing-may-show"


@dataclass(frozen=True)
class Bucket:
    """A bucket, and what reads and writes it beside the program."""

    url: str
    files: Any

    def put(self, source: Path, name: str) -> str:
        """Upload a file or a folder; returns its address."""
        self.files.put(str(source), f"{self.url}/{name}", recursive=source.is_dir())
        self.files.invalidate_cache()
        return f"{self.url}/{name}"

    def names(self, below: str = "") -> list[str]:
        """The names of all objects below a prefix."""
        self.files.invalidate_cache()
        top = f"{self.url}/{below}".rstrip("/").removeprefix("s3://") + "/"
        return sorted(path.removeprefix(top) for path in self.files.find(top))

    def content(self, below: str) -> dict[str, bytes]:
        """The outputs below a prefix."""
        return {name: self.files.cat_file(f"{self.url}/{below}/{name}") for name in self.names(below)}


@pytest.fixture(scope="module")
def store() -> Iterator[Any]:
    """An empty server of S3 on a free port, which processes that are started here use, too."""
    pytest.importorskip("moto.server", reason="moto's server is not installed (moto[server])")
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed")
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "tests")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        s3fs.S3FileSystem.clear_instance_cache()
        yield s3fs.S3FileSystem()
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture
def bucket(store: Any) -> Bucket:
    """A bucket of this test's own."""
    name = f"bucket-{secrets.token_hex(6)}"
    store.mkdir(name)
    return Bucket(f"s3://{name}", store)


@pytest.fixture
def memory() -> Iterator[Any]:
    """The empty file system ``memory://`` of this process."""
    fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed (extra remote)")
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield files
    files.store.clear()
