"""Turns a list of k-means models into ``bank/``: one stacked tensor of centroids, and half their squared norms."""

from __future__ import annotations

import errno
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mkc_fast.engine.artifacts import (
    CENTROIDS_FILE,
    HALF_ERRORS_FILE,
    HALF_FILE,
    HALF_NORMS_FILE,
    BankInfo,
    bank_contents,
    write_info,
)
from mkc_fast.engine.atomic_files import atomic_directory
from mkc_fast.engine.cache_folder import cache_folder
from mkc_fast.engine.datasets.path_lists import named_by_path, read_named_paths
from mkc_fast.engine.digests import remember
from mkc_fast.engine.draws import check_seed, draw_entries
from mkc_fast.errors import CheckpointError
from mkc_fast.export.checkpoints.kmeans import memory_needed, read_kmeans, read_kmeans_and_digest
from mkc_fast.export.checkpoints.readers import reading
from mkc_fast.kernels import half_squared_norms, round_to_half

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from os import PathLike

    from numpy.typing import NDArray

    from mkc_fast.engine.artifacts import TrainedEntry
    from mkc_fast.export.checkpoints.kmeans import KMeansModel

logger = logging.getLogger("mkc_fast")


@dataclass(frozen=True)
class _Entry:
    source: str  # SHA-256
    unused: list[int]
    duplicates: list[int]


def build_bank(
    kmeans_scp: str | PathLike[str] | Sequence[str | PathLike[str]],
    out: str | PathLike[str],
    kmeans_num: int | None = None,
    seed: int | None = None,
    *,
    overwrite: bool = False,
    workers: int | None = None,
    cache: str | PathLike[str] | bool = True,
    training: Sequence[TrainedEntry] = (),
    half: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> BankInfo:
    """Build a bank from pickled scikit-learn k-means models, without executing anything in them.

    The shape of every model is read before the first model is read whole, so that a bad file is found at once. Memory
    is that of ``workers`` models, at most 1 GB. Ctrl-C ends the build within a second.

    Args:
        kmeans_scp: List of ``name path`` a line; or the models' files, which are then named by their stems.
        out: Directory to make. It must not be there, or be empty, unless ``overwrite``.
        kmeans_num: Size of a random subset of the list, in the list's order: the one that ``Anonymizer.draw_entries``
            draws from a bank of the whole list. If the list has fewer, all are taken.
        seed: Seed of that subset; default: the operating system's entropy.
        overwrite: Replace ``out`` if it holds a bank and nothing else, and none of the sources.
        workers: Threads that read models; default: one a processor, at most 8.
        cache: Folder that the digests of the bank's files are also written into, so that the first load is quick. True:
            the user's cache folder (``mkc_fast.engine.cache_folder``), where ``Anonymizer.load`` looks.
            False: nothing outside ``out`` is written.
        training: How each model was trained, for ``bank.json``; in the list's order, without ``kmeans_num``.
        half: Write a copy of the centroids in float16, too: half as many bytes more. The look-up on a CPU reads it
            and decides from the float32 rows, with the same ids.
        progress: Called with the numbers of models done and in all.

    Returns:
        What ``bank.json`` says.

    Raises:
        BankError: ``kmeans_num`` is below 1.
        ArgumentError: The seed is not a whole number of at most 256 bits.
        ListError: The list is unreadable or empty, or a file is there twice.
        CheckpointError: A model is missing, damaged, hostile, not finite, or of another D than the first.
        OutputError: ``out`` cannot be written.
    """
    models = named_models(kmeans_scp)
    check_seed(seed)
    if kmeans_num is not None:
        drawn = draw_entries(len(models), kmeans_num, seed)
        if kmeans_num > len(models):
            logger.warning(
                "kmeans_num is %d, %s has %d k-means models: all of them are used",
                kmeans_num,
                kmeans_scp if isinstance(kmeans_scp, str | os.PathLike) else "the list",
                len(models),
            )
        models = [models[entry] for entry in drawn]
    threads = workers or min(8, os.cpu_count() or 1)
    paths = [path for _, path in models]
    with reading(threads) as readers:

        def look(path: Path) -> tuple[int, int]:
            return read_kmeans(path, shape_only=True, stopped=readers.stopped).shape

        shapes = list(readers.map(look, paths, memory_needed))
        dim = shapes[0][1]
        for (name, path), shape in zip(models, shapes, strict=True):
            if shape[1] != dim:
                raise CheckpointError(f"{path}: {name} has {shape[1]} dimensions, {models[0][0]} has {dim}")
        size = (len(models), max(clusters for clusters, _ in shapes), dim)
        lists = [Path(kmeans_scp)] if isinstance(kmeans_scp, str | os.PathLike) else []
        replaces = bank_contents(*lists, *paths) if overwrite else None
        with atomic_directory(Path(out), replaces=replaces) as directory:
            centroids = _map_new(directory / CENTROIDS_FILE, np.float32, size)
            half_norms = _map_new(directory / HALF_NORMS_FILE, np.float64, size[:2])
            if half:
                halves = _map_new(directory / HALF_FILE, np.float16, size)
                errors = _map_new(directory / HALF_ERRORS_FILE, np.float64, size[:2])

            def fill(index: int) -> tuple[_Entry, int]:
                model, digest = read_kmeans_and_digest(paths[index], shapes[index], readers.stopped)
                entry, exponent = _fill(paths[index], model, digest, centroids[index], half_norms[index]), 0
                if half:
                    halves[index], errors[index], exponent = round_to_half(centroids[index])
                return entry, exponent

            def size_of(index: int) -> int:
                return memory_needed(paths[index], shapes[index])

            entries, exponents = [], []
            for done, (entry, exponent) in enumerate(readers.map(fill, range(len(models)), size_of), start=1):
                entries.append(entry)
                exponents.append(exponent)
                if progress:
                    progress(done, len(models))
            for array in (centroids, half_norms, *((halves, errors) if half else ())):
                array.flush()
            info = BankInfo(
                names=[name for name, _ in models],
                num_clusters=[clusters for clusters, _ in shapes],
                sources=[entry.source for entry in entries],
                unused=[entry.unused for entry in entries],
                duplicates=[entry.duplicates for entry in entries],
                dim=dim,
                training=list(training),
                half_exponents=exponents if half else [],
            )
            info = write_info(directory, info)
    folder = cache_folder(cache)
    if folder is not None:
        remember(Path(out), info.files, folder)
    return info


def named_models(kmeans: str | PathLike[str] | Sequence[str | PathLike[str]]) -> list[tuple[str, Path]]:
    """Name and path of each k-means model: of a list, or of the files themselves.

    Raises:
        ListError: The list is unreadable or empty, or a file is there twice.
    """
    if isinstance(kmeans, str | os.PathLike):
        return read_named_paths(Path(kmeans))
    return named_by_path([Path(path) for path in kmeans], "k-means models")


def _map_new(path: Path, dtype: type[np.floating[Any]], shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """A new array file, mapped, with its space taken: a disk that fills up under a map kills the process."""
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # file systems without it
                    raise
    return array


def _fill(
    path: Path, model: KMeansModel, digest: str, centroids: NDArray[np.float32], half_norms: NDArray[np.float64]
) -> _Entry:
    """Put one model into its rows of the stacked arrays."""
    assert model.centroids is not None
    clusters = model.shape[0]
    with np.errstate(over="ignore"):
        rows = model.centroids.astype(np.float32)
    if not np.isfinite(rows).all():
        raise CheckpointError(f"{path}: cluster_centers_ holds values beyond float32")
    centroids[:clusters] = rows
    # Of the centroids as they are stored: the look-up compares distances to these.
    half_norms[:clusters] = half_squared_norms(rows)
    half_norms[clusters:] = np.inf
    return _Entry(digest, list(model.unused), duplicate_rows(rows))


def duplicate_rows(rows: NDArray[Any]) -> list[int]:
    """Rows equal to an earlier one; ties go to the lowest id, so these are never chosen."""
    keys = np.ascontiguousarray(rows + 0.0).view(np.dtype((np.void, rows.shape[1] * rows.itemsize))).ravel()
    _, first = np.unique(keys, return_index=True)
    return np.setdiff1d(np.arange(len(rows)), first).tolist()  # type: ignore[no-any-return]
