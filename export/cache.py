"""Converted checkpoints in a cache folder, keyed by their content, for runs that are given checkpoints."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from mkc_fast import __version__
from mkc_fast.engine.artifacts import BANK_FORMAT, MODEL_FORMAT, open_bank, read_model_info
from mkc_fast.engine.atomic_files import discard, locked
from mkc_fast.engine.digests import digests, verify
from mkc_fast.errors import ArtifactError, InexactError, MkcError, OutputError
from mkc_fast.export.bank import build_bank, named_models
from mkc_fast.extras import EXPORT_MODULES, required
from mkc_fast.kernels.cpu.loader import NATIVE_FORMAT, native_library

__all__ = ["cached_bank", "cached_model"]

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from mkc_fast.engine.artifacts import FileFacts


def cached_model(
    wavlm_ckpt: Path,
    ckpt: Path,
    hifi_config: Path | None,
    layer: int,
    cache: Path,
    progress: Callable[[str], None] | None = None,
    config: Path | None = None,
) -> Path:
    """The exported model of these checkpoints. It is exported now if the cache does not hold it.

    Raises:
        CheckpointError: As ``export_model``.
        InexactError: As ``export_model``. A model exported with ``allow_inexact`` can be given instead.
        OutputError: The cache folder cannot be written.
        MkcError: torch, which exporting needs, is not installed.
    """
    files = [file for file in (wavlm_ckpt, ckpt, hifi_config, config) if file is not None]
    given = [hifi_config is not None, config is not None]
    # A model exported without the native operators lacks their graphs.
    native = 0 if native_library() is None else NATIVE_FORMAT
    key = _key("model", MODEL_FORMAT, layer, native, given, _content(files, cache))
    path = cache / f"model-{key}"

    def make() -> None:
        with required("converting checkpoints", *EXPORT_MODULES, otherwise=", or give --model and --bank"):
            from mkc_fast.export.model import export_model
        try:
            export_model(wavlm_ckpt, ckpt, path, hifi_config, layer, config=config, progress=progress)
        except InexactError as error:
            raise InexactError(f"{error}, then give it with --model") from None

    _made(path, cache, lambda: read_model_info(path).files, make)
    return path


def cached_bank(kmeans: Path | Sequence[Path], cache: Path, progress: Callable[[int, int], None] | None = None) -> Path:
    """The bank of all k-means models of a list, or of these files. It is built now if the cache does not hold it.

    Raises:
        ListError, CheckpointError: As ``build_bank``.
        OutputError: The cache folder cannot be written.
    """
    models = named_models(kmeans)
    key = _key("bank", BANK_FORMAT, [name for name, _ in models], _content([path for _, path in models], cache))
    path = cache / f"bank-{key}"
    _made(path, cache, lambda: open_bank(path).info.files, lambda: build_bank(kmeans, path, progress=progress))
    return path


def _made(path: Path, cache: Path, files: Callable[[], Mapping[str, FileFacts]], make: Callable[[], object]) -> None:
    """Make an artifact unless the cache holds it whole; a damaged one is made again."""
    if _is_whole(path, cache, files):
        return
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with locked(cache / "lock"):  # one process makes it; the others wait and then find it
            if _is_whole(path, cache, files):
                return
            discard(path)
            make()
    except OSError as error:
        raise OutputError(f"{cache}: cannot be written ({error.strerror})") from None


def _is_whole(path: Path, cache: Path, files: Callable[[], Mapping[str, FileFacts]]) -> bool:
    """Whether the cache holds an artifact and each of its files is unchanged."""
    try:
        verify(path, files(), cache)
    except ArtifactError:
        return False
    return True


def _key(*parts: object) -> str:
    return hashlib.sha256(json.dumps([__version__, *parts]).encode()).hexdigest()[:32]


def _content(files: list[Path], cache: Path) -> list[str]:
    """SHA-256 of each file. Digests are kept by path, size and times, since a bank's sources are 10 GB."""
    try:
        return digests(files, cache)
    except OSError as error:
        raise MkcError(f"{error.filename}: cannot be read ({error.strerror})") from None
