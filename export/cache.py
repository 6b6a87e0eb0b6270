"""Converts raw checkpoints once into a cache folder keyed by their content, for runs that are given checkpoints."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from mkc_fast import MkcError, OutputError, __version__
from mkc_fast.engine.artifacts import BANK_FORMAT, MODEL_FORMAT, open_bank, read_model_info
from mkc_fast.engine.files import sha256_of, whole_file
from mkc_fast.engine.lists import read_named_paths
from mkc_fast.engine.native import native_library
from mkc_fast.engine.providers import default_cache
from mkc_fast.export.bank import build_bank

__all__ = ["cached_bank", "cached_model", "default_cache"]

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def cached_model(
    wavlm_ckpt: Path,
    ckpt: Path,
    hifi_config: Path | None,
    layer: int,
    cache: Path,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """The exported model of these checkpoints, exported now if the cache does not hold it.

    Raises:
        CheckpointError: As ``export_model``.
        OutputError: The cache folder cannot be written.
        MkcError: torch, which exporting needs, is not installed.
    """
    files = [wavlm_ckpt, ckpt, *([hifi_config] if hifi_config else [])]
    # A model exported where there were no native operators has no graphs of them.
    native = native_library() is not None
    key = _key("model", MODEL_FORMAT, layer, native, _content(files, cache))
    path = cache / f"model-{key}"
    if not path.is_dir():
        try:
            from mkc_fast.export.model import export_model
        except ImportError as error:
            raise MkcError(
                f"converting checkpoints needs {error.name}: pip install 'mkc-fast[export]', or give --model and --bank"
            ) from None
        _make(path, lambda: export_model(wavlm_ckpt, ckpt, path, hifi_config, layer, progress=progress))
    read_model_info(path)
    return path


def cached_bank(kmeans_scp: Path, cache: Path, progress: Callable[[int, int], None] | None = None) -> Path:
    """The bank of all k-means models of a list, built now if the cache does not hold it.

    Raises:
        ListError, CheckpointError: As ``build_bank``.
        OutputError: The cache folder cannot be written.
    """
    models = read_named_paths(kmeans_scp)
    key = _key("bank", BANK_FORMAT, [name for name, _ in models], _content([path for _, path in models], cache))
    path = cache / f"bank-{key}"
    if not path.is_dir():
        _make(path, lambda: build_bank(kmeans_scp, path, progress=progress))
    open_bank(path)
    return path


def _make(path: Path, make: Callable[[], object]) -> None:
    try:
        make()
    except OutputError:
        # Somebody else may have made the same directory meanwhile; one whole copy is as good as the other.
        if not path.is_dir():
            raise


def _key(*parts: object) -> str:
    return hashlib.sha256(json.dumps([__version__, *parts]).encode()).hexdigest()[:32]


def _content(files: list[Path], cache: Path) -> list[str]:
    """SHA-256 of each file; remembered by path, size and times, since a bank's sources are 10 GB."""
    index = cache / "sha256.json"
    try:
        known = json.loads(index.read_text(encoding="utf-8"))
        known = known if isinstance(known, dict) else {}
    except (OSError, ValueError):
        known = {}
    digests, before = [], dict(known)
    for file in files:
        try:
            stat = file.stat()
            name = f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ctime_ns}|{stat.st_ino}"
            digest = known.get(name)
            if not isinstance(digest, str):
                digest = known[name] = sha256_of(file)
        except OSError as error:
            raise MkcError(f"{file}: cannot be read ({error.strerror})") from None
        digests.append(digest)
    if known != before:
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with whole_file(index) as temporary:
                temporary.write_text(json.dumps(known, indent=0), encoding="utf-8")
        except OSError as error:
            raise OutputError(f"{cache}: cannot be written ({error.strerror})") from None
    return digests
