"""Reads the centroids out of a pickled scikit-learn k-means model without running anything that the pickle asks for."""

from __future__ import annotations

import hashlib
import io
import lzma
import math
import os
import stat
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from mkc_fast.errors import CheckpointError
from mkc_fast.export.checkpoints.compressed import MAX_DICTIONARY_BYTES, inflated, is_compressed
from mkc_fast.export.checkpoints.kmeans_pickle import (
    MAX_CLUSTERS,
    MAX_DIM,
    MAX_FILE_BYTES,
    MB,
    ArrayStandIn,
    EstimatorStandIn,
    KMeansUnpickler,
    fits,
    mark_seen,
)
from mkc_fast.export.checkpoints.pickles import Refused, Source, Stopped, never

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

# Random floats shrink to 0.95 of their size, float32 stored as float64 to 0.5, labels of training frames to 0.25.
_MOST_INFLATED = 64
_INFLATED_BYTES = 16 * MB  # whatever the file's size
# What a reader may hold of texts and the like: before the size of the model is known, and beside its centroids. A plain
# pickle holds arrays as such, two of them in old protocols: as text and as bytes.
_SMALL_HELD_BYTES = 4 * MB
_HELD_BYTES = 32 * MB
_HELD_MODELS = 4
_OBJECTS_BYTES = 32 * MB  # what as many opcodes can make as a model may have


@dataclass(frozen=True)
class KMeansModel:
    """What a bank keeps of a k-means model.

    Attributes:
        shape: (K, D).
        centroids: (K, D) float64 or float32 as stored, or None where only the shape was asked for.
        unused: Clusters that no training frame fell into, where the model says so.
    """

    shape: tuple[int, int]
    centroids: NDArray[np.floating[Any]] | None
    unused: tuple[int, ...]


def memory_needed(path: Path, shape: tuple[int, int] | None = None) -> int:
    """Bytes that reading a model takes at most, with what ``duplicate_rows`` then does to its centroids.

    Args:
        path: The file.
        shape: (K, D), where it is known: then of the whole model, else of its shape.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(6)
    except (OSError, ValueError):
        return 0  # reading it says why not
    dictionary = MAX_DICTIONARY_BYTES if magic.startswith((b"\xfd7zXZ\x00", b"\x5d\x00")) else 4 * MB
    if shape is None:
        return _OBJECTS_BYTES + _SMALL_HELD_BYTES + dictionary
    numbers = shape[0] * shape[1]
    return _OBJECTS_BYTES + _may_hold(shape) + dictionary + numbers * (8 + 4 * 4)


def _may_hold(shape: tuple[int, int] | None) -> int:
    return _SMALL_HELD_BYTES if shape is None else _HELD_BYTES + _HELD_MODELS * 8 * shape[0] * shape[1]


def read_kmeans(
    path: Path, data: bytes | None = None, *, shape_only: bool = False, stopped: Callable[[], bool] = never
) -> KMeansModel:
    """Read a pickled ``KMeans`` or ``MiniBatchKMeans``, of scikit-learn 0.24 or later.

    Nothing in the file is executed; scikit-learn and joblib are not needed. Files that joblib compressed (zlib, gzip,
    bz2, xz, lzma) are read too. The file is read twice: its arrays are passed over at first, and then so much is kept
    as (K, D) explains.

    Args:
        path: The file.
        data: Its bytes, where they have been read already.
        shape_only: Skip the arrays: quick, and enough to refuse a file that is no k-means model.
        stopped: Asked often; once true, reading ends within a moment.

    Raises:
        CheckpointError: The file is missing, damaged, holds anything beyond a k-means model, has more than 65,536
            clusters or 16,384 dimensions, takes more memory than its size explains, or its centroids are not finite.
        Stopped: ``stopped`` became true.
    """
    with _refusing(path):
        if data is not None:
            return _read(path, io.BytesIO(data), len(data), shape_only, stopped)
        with open(path, "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):  # a pipe or device may never begin, or never end
                raise OSError("not a regular file")
            return _read(path, file, status.st_size, shape_only, stopped)


def read_kmeans_and_digest(
    path: Path, shape: tuple[int, int], stopped: Callable[[], bool] = never
) -> tuple[KMeansModel, str]:
    """Read a model whose shape is known, and the SHA-256 of its file.

    Raises:
        CheckpointError: As ``read_kmeans``, or the file is another by now.
        Stopped: ``stopped`` became true.
    """
    with _refusing(path), open(path, "rb", opener=_open_at_once) as file:
        before = os.fstat(file.fileno())
        if not stat.S_ISREG(before.st_mode):
            raise OSError("not a regular file")
        digest = hashlib.sha256()
        if before.st_size <= MAX_FILE_BYTES:
            for block in Source(file, before.st_size, stopped).blocks(before.st_size):
                digest.update(block)
        file.seek(0)
        model = _read(path, file, before.st_size, False, stopped, shape)
        after = os.fstat(file.fileno())
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise CheckpointError(f"{path}: changed while it was being read")
    return model, digest.hexdigest()


def _open_at_once(name: str, flags: int) -> int:
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe is opened when its other end is, else


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Turn whatever reading raises into an error of one line."""
    try:
        yield
    except (CheckpointError, Stopped):
        raise
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Refused as refused:
        raise CheckpointError(f"{path}: refused: the pickle asks for {refused}, which no k-means model needs") from None
    except (EOFError, zlib.error, lzma.LZMAError):
        raise CheckpointError(f"{path}: empty, truncated or damaged") from None
    except Exception as error:  # a damaged stream can raise nearly anything, and none may become a traceback
        raise CheckpointError(f"{path}: not a k-means model (damaged pickle: {type(error).__name__})") from None


def _read(
    path: Path,
    file: BinaryIO,
    size: int,
    shape_only: bool,
    stopped: Callable[[], bool],
    known: tuple[int, int] | None = None,
) -> KMeansModel:
    """Read a model's shape and, unless only that is asked for, again with its centroids."""
    shape = known or _shape(path, _unpickle(file, size, None, stopped))
    if shape_only:
        return KMeansModel(shape, None, ())
    file.seek(0)
    model = _unpickle(file, size, shape, stopped)
    if _shape(path, model) != shape:
        raise CheckpointError(f"{path}: changed while it was being read")
    held = model.state["cluster_centers_"].value
    if held is None:
        raise CheckpointError(f"{path}: holds more data than a k-means model of {shape[0]} x {shape[1]} explains")
    if not np.isfinite(held).all():
        raise CheckpointError(f"{path}: cluster_centers_ holds values that are not finite")
    return KMeansModel(shape, held.astype(held.dtype.newbyteorder("="), copy=False), _unused(model.state, shape[0]))


def _shape(path: Path, model: object) -> tuple[int, int]:
    """(K, D) of an estimator."""
    if not isinstance(model, EstimatorStandIn):
        raise CheckpointError(f"{path}: not a KMeans or MiniBatchKMeans")
    held = model.state.get("cluster_centers_")
    if not isinstance(held, ArrayStandIn) or not held.kind:
        raise CheckpointError(f"{path}: the model has no cluster_centers_; it was not fitted")
    if len(held.shape) != 2 or not all(held.shape) or held.kind != "f":
        raise CheckpointError(
            f"{path}: cluster_centers_ has shape {held.shape}, kind {held.kind}; expected floats (K, D)"
        )
    if not fits(held.shape):
        raise CheckpointError(
            f"{path}: cluster_centers_ has shape {held.shape}; at most {MAX_CLUSTERS} clusters of {MAX_DIM} "
            "dimensions are read"
        )
    return held.shape[0], held.shape[1]


def _unused(state: dict[Any, Any], clusters: int) -> tuple[int, ...]:
    """Clusters without training frames: by ``_counts`` (MiniBatchKMeans) or else ``labels_`` (KMeans)."""
    counts, labels = state.get("_counts", state.get("counts_")), state.get("labels_")
    if isinstance(counts, ArrayStandIn) and counts.value is not None and counts.shape == (clusters,):
        return tuple(np.flatnonzero(counts.value == 0).tolist())
    if not isinstance(labels, ArrayStandIn) or labels.kind not in ("i", "u") or not math.prod(labels.shape):
        return ()
    seen = labels.seen
    if seen is None and labels.value is not None:
        seen = np.zeros(MAX_CLUSTERS, bool)
        mark_seen(seen, labels.value.ravel())
    return () if seen is None else tuple(np.flatnonzero(~seen[:clusters]).tolist())


def _unpickle(file: BinaryIO, size: int, shape: tuple[int, int] | None, stopped: Callable[[], bool]) -> Any:
    """What the file holds; of a model whose shape is known, with its centroids."""
    if size > MAX_FILE_BYTES:
        raise Refused(f"{size} bytes")
    magic = file.read(6)
    file.seek(0)
    if magic.startswith(b"\x04\x22\x4d\x18"):
        raise Refused("LZ4, which is not read here (joblib.dump with another compression)")
    compressed = is_compressed(magic)
    source = Source(file, size, stopped)
    if compressed:
        most = min(MAX_FILE_BYTES, _INFLATED_BYTES + _MOST_INFLATED * size)
        source = Source(inflated(file, magic, stopped), most, stopped, inflated_from=size)
    unpickled = KMeansUnpickler(source, _may_hold(shape), skip_arrays=shape is None, stopped=stopped).load()
    if compressed:
        source.drain()
    return unpickled
