"""Reads the centroids out of a pickled scikit-learn k-means model without running anything that the pickle asks for.

The format is ``joblib.dump`` of ``KMeans`` or ``MiniBatchKMeans``: a pickle in which each array is a
``NumpyArrayWrapper`` object followed by the array's raw bytes. The names that such a file has reason to hold map to the
inert stand-ins below (see pickles.py).
"""

from __future__ import annotations

import bz2
import hashlib
import io
import lzma
import math
import os
import stat
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

import numpy as np

from mkc_fast.errors import CheckpointError
from mkc_fast.export.checkpoints.pickles import (
    BLOCK_BYTES,
    Refused,
    Skipped,
    Source,
    Stopped,
    StrictUnpickler,
    encode_latin1,
    never,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

MB = 1 << 20
# Published models have K of 1000 and 1024 and D of 1024, some people use K of 65,536; at most 256 MB together.
_MAX_CLUSTERS = 1 << 16
_MAX_DIM = 1 << 14
_MAX_ARRAY_BYTES = 256 * MB
_MAX_FILE_BYTES = 512 * MB  # labels of 100 million training frames fit; inflated, where the file is compressed
# Random floats shrink to 0.95 of their size, float32 stored as float64 to 0.5, labels of training frames to 0.25.
_MOST_INFLATED = 64
_INFLATED_BYTES = 16 * MB  # whatever the file's size
_MAX_DICTIONARY_BYTES = 128 * MB  # what xz -9 needs is 65 MB; a header of 60 bytes can ask for 4 GB
# What a reader may hold of texts and the like: before the size of the model is known, and beside its centroids. A plain
# pickle holds arrays as such, two of them in old protocols: as text and as bytes.
_SMALL_HELD_BYTES = 4 * MB
_HELD_BYTES = 32 * MB
_HELD_MODELS = 4
_OBJECTS_BYTES = 32 * MB  # what as many opcodes can make as a model may have


class _Inert:
    """Stands in for an object whose state does not matter; takes attributes and does nothing."""

    def __init__(self, *_: object) -> None:
        self.state: dict[Any, Any] = {}


class _Estimator(_Inert):
    """Stands in for ``KMeans`` and ``MiniBatchKMeans``."""


class _NdArray:
    """The name ``numpy.ndarray``, which is only ever passed as an argument."""


class _ArrayWrapper(_Inert):
    """Stands in for ``joblib.numpy_pickle.NumpyArrayWrapper``."""


@dataclass
class _Dtype:
    """Stands in for ``numpy.dtype``: a code such as ``f8`` and, once its state is set, a byte order."""

    code: object
    order: object = "="

    @property
    def is_object(self) -> bool:
        """Whether arrays of it hold objects: the names of columns, in models fitted to a table."""
        return self.code in ("O", "O8", "O4")

    def resolve(self) -> np.dtype[Any] | None:
        """The plain numeric dtype that this is, or None."""
        if not isinstance(self.code, str) or self.code not in _NUMERIC or self.order not in ("<", ">", "|", "="):
            return None
        return np.dtype(f"{self.order}{self.code}")


_NUMERIC = frozenset({"f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "b1"})


class _Array:
    """Stands in for an array: its shape and kind, and its values or which small integers are among them.

    Attributes:
        value: The array, or None where nobody needs it.
        seen: Whether each cluster id is in it, of integers whose values are not kept.
    """

    def __init__(
        self,
        value: NDArray[Any] | None = None,
        shape: tuple[int, ...] = (),
        kind: str = "",
        seen: NDArray[np.bool_] | None = None,
    ) -> None:
        self.value = value
        self.shape = shape
        self.kind = kind
        self.seen = seen

    def build(self, state: object) -> None:
        """Take ``(version, shape, dtype, is_fortran, bytes)``, the state of ``ndarray.__reduce__``."""
        if not isinstance(state, tuple) or len(state) != 5:
            raise Refused("an array of unknown form")
        _, shape, dtype, fortran, data = state
        resolved = dtype.resolve() if isinstance(dtype, _Dtype) else None
        if resolved is None or not isinstance(data, (bytes, Skipped)):
            return  # an array of objects or strings: not the centroids
        shape = _checked_shape(shape, resolved.itemsize)
        size = data.size if isinstance(data, Skipped) else len(data)
        if size is not None and math.prod(shape) * resolved.itemsize != size:
            raise Refused("an array whose bytes do not fit its shape")
        if isinstance(data, bytes):
            flat = np.frombuffer(data, resolved)
            self.value = flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)
        self.shape, self.kind = shape, resolved.kind


def _make_inert(*_: object) -> _Inert:
    return _Inert()


def _make_array(*_: object) -> _Array:
    return _Array()


def _array_from_buffer(data: object = None, dtype: object = None, shape: object = (), order: object = "C") -> _Array:
    """What numpy's ``_frombuffer`` does in pickles of protocol 5."""
    array = _Array()
    array.build((1, shape, dtype, order == "F", data))
    return array


def _make_dtype(code: object = None, *_: object) -> _Dtype:
    return _Dtype(code)


def _reconstruct_object(kind: object = None, *_: object) -> object:
    """What ``copyreg._reconstructor`` does for plain objects in pickles of protocol 0 and 1."""
    return _instance_of(kind)


def _instance_of(kind: object) -> object:
    if kind is _Estimator:
        return _Estimator()
    if kind is _ArrayWrapper:
        return _ArrayWrapper()
    if kind is _Inert:
        return _Inert()
    raise Refused("an instance of something that is no k-means model")


_CLASSES: dict[tuple[str, str], type] = {
    **{
        (module, name): _Estimator
        for module in ("sklearn.cluster._kmeans", "sklearn.cluster.k_means_")
        for name in ("KMeans", "MiniBatchKMeans")
    },
    ("joblib.numpy_pickle", "NumpyArrayWrapper"): _ArrayWrapper,
    ("numpy", "ndarray"): _NdArray,
    ("numpy", "memmap"): _NdArray,
    **{(module, "object"): _Inert for module in ("builtins", "__builtin__")},
    ("numpy.random._mt19937", "MT19937"): _Inert,
}
_FUNCTIONS: dict[tuple[str, str], Callable[..., object]] = {
    ("numpy", "dtype"): _make_dtype,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _make_array for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _array_from_buffer for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _make_inert for core in ("core", "_core")},
    **{
        ("numpy.random._pickle", f"__{name}"): _make_inert
        for name in ("randomstate_ctor", "bit_generator_ctor", "generator_ctor")
    },
    ("_codecs", "encode"): encode_latin1,
    ("copyreg", "_reconstructor"): _reconstruct_object,
    ("copy_reg", "_reconstructor"): _reconstruct_object,
}


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


class _KMeansUnpickler(StrictUnpickler):
    """The opcodes and names that a k-means model has."""

    names: ClassVar[Mapping[tuple[str, str], object]] = {**_CLASSES, **_FUNCTIONS}
    functions: ClassVar[Collection[object]] = _FUNCTIONS.values()
    max_steps: ClassVar[int] = 100_000  # a model has some 200, and a name for each of its D columns at most

    def __init__(
        self, source: Source, may_hold: int, *, skip_arrays: bool, nested: bool = False, stopped: Callable[[], bool]
    ) -> None:
        super().__init__(source, may_hold, skips=True, stopped=stopped)
        self.skip_arrays = skip_arrays
        self.nested = nested

    def instance_of(self, kind: object) -> object:
        return _instance_of(kind)

    def build(self, target: object, state: object) -> None:
        if isinstance(target, _Array):
            target.build(state)
        elif isinstance(target, _Dtype):
            if isinstance(state, tuple) and len(state) > 1:
                target.order = state[1]
        elif isinstance(target, _Inert):
            if isinstance(state, dict):
                target.state = state  # not a copy: one large dict can be the state of many objects
        else:
            super().build(target, state)
        if isinstance(target, _ArrayWrapper):
            name = self.stack[-2] if len(self.stack) > 1 else None  # the attribute that it is the value of
            self.stack[-1] = self._read_array(target.state, isinstance(name, str) and name == "cluster_centers_")

    def _read_array(self, state: dict[Any, Any], are_centroids: bool) -> _Array:
        """Read the bytes that follow a ``NumpyArrayWrapper``; only what is needed stays in memory."""
        dtype = state.get("dtype")
        resolved = dtype.resolve() if isinstance(dtype, _Dtype) else None
        if resolved is None:
            if not isinstance(dtype, _Dtype) or not dtype.is_object or self.nested:
                raise Refused("an array of objects or of no plain numbers")
            inner = type(self)(self.source, 0, skip_arrays=True, nested=True, stopped=self.stopped)
            inner.share(self)
            inner.load()
            self.share(inner)
            return _Array()
        shape, order = _checked_shape(state.get("shape"), resolved.itemsize), state.get("order")
        if state.get("numpy_array_alignment_bytes") is not None:
            self.source.read(self.source.read(1)[0])
        count = math.prod(shape) * resolved.itemsize
        described = _Array(None, shape, resolved.kind)
        vector = len(shape) == 1
        if not self.skip_arrays and ((are_centroids and _fits(shape)) or (vector and shape[0] <= _MAX_CLUSTERS)):
            self.hold(count)
            flat = self._read_values(math.prod(shape), resolved)
            described.value = flat.reshape(shape[::-1]).T if order == "F" else flat.reshape(shape)
        elif not self.skip_arrays and vector and resolved.kind in "iu":
            self.hold(_MAX_CLUSTERS)
            described.seen = np.zeros(_MAX_CLUSTERS, bool)
            for block in self.source.blocks(count):
                _see(described.seen, np.frombuffer(block, resolved))
        else:
            self.source.skip(count)
        return described

    def _read_values(self, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        values: NDArray[Any] = np.empty(count, dtype)  # memory is taken as it is written to
        places = values.data.cast("B") if count else memoryview(b"")
        at = 0
        for block in self.source.blocks(len(places)):
            places[at : at + len(block)] = block
            at += len(block)
        return values


def _see(seen: NDArray[np.bool_], ids: NDArray[Any]) -> None:
    seen[ids[(ids >= 0) & (ids < len(seen))]] = True


def _fits(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and shape[0] <= _MAX_CLUSTERS and shape[1] <= _MAX_DIM


def _checked_shape(shape: object, itemsize: int) -> tuple[int, ...]:
    if not isinstance(shape, tuple) or len(shape) > 8 or not all(type(n) is int and 0 <= n < 1 << 40 for n in shape):
        raise Refused("an array of unknown shape")
    # Labels may be larger; they are not kept.
    if math.prod(shape) * itemsize > (_MAX_FILE_BYTES if len(shape) == 1 else _MAX_ARRAY_BYTES):
        raise Refused(f"an array of shape {shape}")
    return shape


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
    dictionary = _MAX_DICTIONARY_BYTES if magic.startswith((b"\xfd7zXZ\x00", b"\x5d\x00")) else 4 * MB
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
        if before.st_size <= _MAX_FILE_BYTES:
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
    if not isinstance(model, _Estimator):
        raise CheckpointError(f"{path}: not a KMeans or MiniBatchKMeans")
    held = model.state.get("cluster_centers_")
    if not isinstance(held, _Array) or not held.kind:
        raise CheckpointError(f"{path}: the model has no cluster_centers_; it was not fitted")
    if len(held.shape) != 2 or not all(held.shape) or held.kind != "f":
        raise CheckpointError(
            f"{path}: cluster_centers_ has shape {held.shape}, kind {held.kind}; expected floats (K, D)"
        )
    if not _fits(held.shape):
        raise CheckpointError(
            f"{path}: cluster_centers_ has shape {held.shape}; at most {_MAX_CLUSTERS} clusters of {_MAX_DIM} "
            "dimensions are read"
        )
    return held.shape[0], held.shape[1]


def _unused(state: dict[Any, Any], clusters: int) -> tuple[int, ...]:
    """Clusters without training frames: by ``_counts`` (MiniBatchKMeans) or else ``labels_`` (KMeans)."""
    counts, labels = state.get("_counts", state.get("counts_")), state.get("labels_")
    if isinstance(counts, _Array) and counts.value is not None and counts.shape == (clusters,):
        return tuple(np.flatnonzero(counts.value == 0).tolist())
    if not isinstance(labels, _Array) or labels.kind not in ("i", "u") or not math.prod(labels.shape):
        return ()
    seen = labels.seen
    if seen is None and labels.value is not None:
        seen = np.zeros(_MAX_CLUSTERS, bool)
        _see(seen, labels.value.ravel())
    return () if seen is None else tuple(np.flatnonzero(~seen[:clusters]).tolist())


def _unpickle(file: BinaryIO, size: int, shape: tuple[int, int] | None, stopped: Callable[[], bool]) -> Any:
    """What the file holds; of a model whose shape is known, with its centroids."""
    if size > _MAX_FILE_BYTES:
        raise Refused(f"{size} bytes")
    magic = file.read(6)
    file.seek(0)
    if magic.startswith(b"\x04\x22\x4d\x18"):
        raise Refused("LZ4, which is not read here (joblib.dump with another compression)")
    compressed = magic.startswith((b"\x1f\x8b", b"\x78", b"BZh", b"\xfd7zXZ\x00", b"\x5d\x00"))
    source = Source(file, size, stopped)
    if compressed:
        inflated = io.BufferedReader(_Inflated(_inflate(file, magic, stopped)), BLOCK_BYTES)
        most = min(_MAX_FILE_BYTES, _INFLATED_BYTES + _MOST_INFLATED * size)
        source = Source(inflated, most, stopped, inflated_from=size)
    unpickled = _KMeansUnpickler(source, _may_hold(shape), skip_arrays=shape is None, stopped=stopped).load()
    if compressed:
        source.drain()
    return unpickled


def _inflate(file: BinaryIO, magic: bytes, stopped: Callable[[], bool]) -> Iterator[bytes]:
    """The blocks of a compressed file, to the end that its checksum marks."""
    if magic[:1] in (b"\x1f", b"\x78"):
        inflater = zlib.decompressobj(wbits=47)  # zlib or gzip, by the header
        while not inflater.eof:
            data = inflater.unconsumed_tail or file.read(BLOCK_BYTES)
            block = inflater.decompress(data, BLOCK_BYTES)
            if not data and not block:
                raise EOFError
            if stopped():
                raise Stopped
            yield block
        return
    other = bz2.BZ2Decompressor() if magic[:1] == b"B" else lzma.LZMADecompressor(memlimit=_MAX_DICTIONARY_BYTES)
    while not other.eof:
        data = file.read(BLOCK_BYTES) if other.needs_input else b""
        if other.needs_input and not data:
            raise EOFError
        if stopped():
            raise Stopped
        yield other.decompress(data, BLOCK_BYTES)


class _Inflated(io.RawIOBase):
    """Blocks of bytes as a file."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._held = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._held:
            held = next(self._blocks, None)
            if held is None:
                return 0
            self._held = held
        count = min(len(buffer), len(self._held))
        buffer[:count], self._held = self._held[:count], self._held[count:]
        return count
