"""Reads the centroids out of a pickled scikit-learn k-means model without running anything that the pickle asks for.

The format is ``joblib.dump`` of ``KMeans`` or ``MiniBatchKMeans``: a pickle in which each array is a
``NumpyArrayWrapper`` object followed by the array's raw bytes. The names that such a file has reason to hold map to the
inert stand-ins below (see pickles.py).
"""

from __future__ import annotations

import bz2
import io
import lzma
import math
import stat
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

import numpy as np

from mkc_fast import CheckpointError
from mkc_fast.export.pickles import (
    BLOCK_BYTES,
    MAX_VALUE_BYTES,
    Refused,
    Source,
    StrictUnpickler,
    encode_latin1,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

# Real models are far below these: K = 4096, D = 4096 in float64 is 134 MB. Several models are read at once, so these
# bound a bank's memory too.
_MAX_FILE_BYTES = 1 << 29  # inflated, where the file is compressed
_MAX_DICTIONARY_BYTES = 1 << 27  # what xz -9 needs is 65 MB; a header of 60 bytes can ask for 4 GB


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

    def resolve(self) -> np.dtype[Any] | None:
        """The plain numeric dtype that this is, or None."""
        if not isinstance(self.code, str) or self.code not in _NUMERIC or self.order not in ("<", ">", "|", "="):
            return None
        return np.dtype(f"{self.order}{self.code}")


_NUMERIC = frozenset({"f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "b1"})


class _Array:
    """Stands in for an array that the pickle itself holds, ``numpy.core.multiarray._reconstruct``."""

    def __init__(self, value: NDArray[Any] | None = None, shape: tuple[int, ...] = (), kind: str = "") -> None:
        self.value = value
        self.shape = shape
        self.kind = kind

    def build(self, state: object) -> None:
        """Take ``(version, shape, dtype, is_fortran, bytes)``, the state of ``ndarray.__reduce__``."""
        if not isinstance(state, tuple) or len(state) != 5:
            raise Refused("an array of unknown form")
        _, shape, dtype, fortran, data = state
        resolved = dtype.resolve() if isinstance(dtype, _Dtype) else None
        if resolved is None or not isinstance(data, bytes):
            return  # an array of objects or strings: not the centroids
        shape = _checked_shape(shape, resolved.itemsize)
        if math.prod(shape) * resolved.itemsize != len(data):
            raise Refused("an array whose bytes do not fit its shape")
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

    def __init__(self, source: Source, *, skip_arrays: bool) -> None:
        super().__init__(source)
        self.skip_arrays = skip_arrays

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
            self.stack[-1] = self._read_array(target.state)

    def _read_array(self, state: dict[Any, Any]) -> _Array:
        """Read the bytes that follow a ``NumpyArrayWrapper``."""
        dtype = state.get("dtype")
        resolved = dtype.resolve() if isinstance(dtype, _Dtype) else None
        if resolved is None:
            raise Refused("an array of objects, which would be a pickle of its own")
        shape, order = _checked_shape(state.get("shape"), resolved.itemsize), state.get("order")
        if state.get("numpy_array_alignment_bytes") is not None:
            self.source.read(self.source.read(1)[0])
        count = math.prod(shape) * resolved.itemsize
        if self.skip_arrays:
            self.source.skip(count)
            return _Array(None, shape, resolved.kind)
        flat = np.frombuffer(self.source.read(count), resolved)
        return _Array(flat.reshape(shape[::-1]).T if order == "F" else flat.reshape(shape), shape, resolved.kind)


def _checked_shape(shape: object, itemsize: int) -> tuple[int, ...]:
    if not isinstance(shape, tuple) or len(shape) > 8 or not all(type(n) is int and 0 <= n < 1 << 40 for n in shape):
        raise Refused("an array of unknown shape")
    if math.prod(shape) * itemsize > MAX_VALUE_BYTES:
        raise Refused(f"an array of shape {shape}")
    return shape


def read_kmeans(path: Path, data: bytes | None = None, *, shape_only: bool = False) -> KMeansModel:
    """Read a pickled ``KMeans`` or ``MiniBatchKMeans``, of scikit-learn 0.24 or later.

    Nothing in the file is executed; scikit-learn and joblib are not needed. Files that joblib compressed (zlib, gzip,
    bz2, xz, lzma) are read too.

    Args:
        path: The file.
        data: Its bytes, where they have been read already.
        shape_only: Skip the arrays: quick, and enough to refuse a file that is no k-means model.

    Raises:
        CheckpointError: The file is missing, damaged, holds anything beyond a k-means model, or its centroids are not
            finite.
    """
    try:
        if data is not None:
            model = _unpickle(io.BytesIO(data), len(data), skip_arrays=shape_only)
        else:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):  # a pipe or device may never begin, or never end
                raise OSError("not a regular file")
            with path.open("rb") as file:
                model = _unpickle(file, status.st_size, skip_arrays=shape_only)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Refused as refused:
        raise CheckpointError(f"{path}: refused: the pickle asks for {refused}, which no k-means model needs") from None
    except (EOFError, zlib.error, lzma.LZMAError):
        raise CheckpointError(f"{path}: empty, truncated or damaged") from None
    except Exception as error:  # a damaged stream can raise nearly anything, and none may become a traceback
        raise CheckpointError(f"{path}: not a k-means model (damaged pickle: {type(error).__name__})") from None
    if not isinstance(model, _Estimator):
        raise CheckpointError(f"{path}: not a KMeans or MiniBatchKMeans")
    held = model.state.get("cluster_centers_")
    if not isinstance(held, _Array) or not held.kind:
        raise CheckpointError(f"{path}: the model has no cluster_centers_; it was not fitted")
    if len(held.shape) != 2 or not all(held.shape) or held.kind != "f":
        raise CheckpointError(
            f"{path}: cluster_centers_ has shape {held.shape}, kind {held.kind}; expected floats (K, D)"
        )
    shape = (held.shape[0], held.shape[1])
    if shape_only or held.value is None:
        return KMeansModel(shape, None, ())
    if not np.isfinite(held.value).all():
        raise CheckpointError(f"{path}: cluster_centers_ holds values that are not finite")
    centroids = held.value.astype(held.value.dtype.newbyteorder("="), copy=False)
    return KMeansModel(shape, centroids, _unused(model.state, shape[0]))


def _unused(state: dict[Any, Any], clusters: int) -> tuple[int, ...]:
    """Clusters without training frames: by ``_counts`` (MiniBatchKMeans) or else ``labels_`` (KMeans)."""
    counts, labels = state.get("_counts", state.get("counts_")), state.get("labels_")
    if isinstance(counts, _Array) and counts.value is not None and counts.shape == (clusters,):
        return tuple(np.flatnonzero(counts.value == 0).tolist())
    if isinstance(labels, _Array) and labels.value is not None and labels.kind in "iu" and labels.value.size:
        return tuple(np.setdiff1d(np.arange(clusters), labels.value).tolist())
    return ()


def _unpickle(file: BinaryIO, size: int, *, skip_arrays: bool) -> object:
    if size > _MAX_FILE_BYTES:
        raise Refused(f"{size} bytes")
    magic = file.read(6)
    file.seek(0)
    compressed = magic.startswith((b"\x1f\x8b", b"\x78", b"BZh", b"\xfd7zXZ\x00", b"\x5d\x00"))
    if compressed:
        file, size = io.BufferedReader(_Inflated(_inflate(file, magic)), BLOCK_BYTES), _MAX_FILE_BYTES
    source = Source(file, size)
    unpickled = _KMeansUnpickler(source, skip_arrays=skip_arrays).load()
    if compressed:
        source.drain()
    return unpickled


def _inflate(file: BinaryIO, magic: bytes) -> Iterator[bytes]:
    """The blocks of a compressed file, to the end that its checksum marks."""
    if magic[:1] in (b"\x1f", b"\x78"):
        inflater = zlib.decompressobj(wbits=47)  # zlib or gzip, by the header
        while not inflater.eof:
            data = inflater.unconsumed_tail or file.read(BLOCK_BYTES)
            block = inflater.decompress(data, BLOCK_BYTES)
            if not data and not block:
                raise EOFError
            yield block
        return
    other = bz2.BZ2Decompressor() if magic[:1] == b"B" else lzma.LZMADecompressor(memlimit=_MAX_DICTIONARY_BYTES)
    while not other.eof:
        data = file.read(BLOCK_BYTES) if other.needs_input else b""
        if other.needs_input and not data:
            raise EOFError
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
