"""Checkpoints with random weights, exported once into the cache folder, for benchmarks without the published ones."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mkc_fast import __version__
from mkc_fast.engine.artifacts import MODEL_FORMAT
from mkc_fast.engine.atomic_files import atomic_directory
from mkc_fast.engine.datasets.path_lists import read_named_paths
from mkc_fast.errors import MkcError, OutputError
from mkc_fast.export.bank import build_bank
from mkc_fast.extras import EXPORT_MODULES, required
from mkc_fast.kernels.cpu.loader import NATIVE_FORMAT, native_library

if TYPE_CHECKING:
    from collections.abc import Callable

SIZES = ("small", "large")
DEFAULT_ENTRIES = 100


@dataclass(frozen=True)
class BenchArtifacts:
    """Where they lie.

    Attributes:
        model: Exported model.
        bank: Bank of the k-means models.
        wavlm: WavLM checkpoint.
        ckpt: Conformer + vocoder checkpoint.
        kmeans_scp: List of pickled k-means models.
    """

    model: Path
    bank: Path
    wavlm: Path
    ckpt: Path
    kmeans_scp: Path

    @property
    def kmeans(self) -> list[Path]:
        """The pickled k-means models."""
        return [path for _, path in read_named_paths(self.kmeans_scp)]


def random_artifacts(
    size: str, cache: Path, entries: int = DEFAULT_ENTRIES, progress: Callable[[str], None] = lambda _: None
) -> BenchArtifacts:
    """Random-weight artifacts of a size, from the cache or made now: some minutes and 9 GB at size large.

    Where the native operators are built, the model has graphs in int16 and int8, too.

    Args:
        size: ``small`` or ``large``: the published sizes.
        cache: The cache folder.
        entries: K-means models.
        progress: Called with a line as each step begins.

    Raises:
        MkcError: The size is not known, or torch, which exporting needs, is not installed.
        OutputError: The cache cannot be written.
    """
    if size not in SIZES:
        raise MkcError(f"size is {size!r}; expected one of {', '.join(SIZES)}")
    native = "" if native_library() is None else f"-native{NATIVE_FORMAT}"
    home = cache / "bench" / f"{__version__}-format{MODEL_FORMAT}-{size}-{entries}{native}"
    made = _at(home)
    if home.is_dir():
        return made
    with required("making random weights", *EXPORT_MODULES, otherwise=", or give --model and --bank"):
        from mkc_fast.export.model import export_model
        from mkc_fast.export.random_checkpoints import write_checkpoints
    free = shutil.disk_usage(next(parent for parent in home.parents if parent.is_dir())).free
    if size == "large" and free < 12e9:
        raise OutputError(f"{cache}: random weights of size large take 9 GB, and {free / 1e9:.1f} GB are free")
    try:
        with atomic_directory(home) as folder:
            progress(f"random checkpoints, size {size}, {entries} k-means models")
            written = write_checkpoints(folder, size=size, num_kmeans=entries)
            progress("export to ONNX")
            own = native_library() is not None
            export_model(written.wavlm, written.ckpt, folder / "model", int16=own, int8=own, progress=progress)
            progress("bank")
            build_bank(written.kmeans_scp, folder / "bank")
    except OutputError:
        if not home.is_dir():  # another process may have made the same meanwhile
            raise
    return made


def _at(home: Path) -> BenchArtifacts:
    return BenchArtifacts(home / "model", home / "bank", home / "WavLM.pt", home / "conformer.pth", home / "kmeans.scp")
