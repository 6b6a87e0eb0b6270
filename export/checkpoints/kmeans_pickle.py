"""The unpickler of k-means models: scikit-learn's classes and NumPy's arrays as inert stand-ins.

The format is ``joblib.dump`` of ``KMeans`` or ``MiniBatchKMeans``: a pickle in which each array is a
``NumpyArrayWrapper`` object followed by the array's raw bytes. Each name that such a file has reason to hold maps to
one of the stand-ins below (see pickles.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mkc_fast.export.checkpoints.pickles import Refused, Skipped, Source, StrictUnpickler, encode_latin1

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from numpy.typing import NDArray

MB = 1 << 20
# Published models have K of 1000 and 1024 and D of 1024, some people use K of 65,536; at most 256 MB together.
MAX_CLUSTERS = 1 << 16
MAX_DIM = 1 << 14
_MAX_ARRAY_BYTES = 256 * MB
MAX_FILE_BYTES = 512 * MB  # labels of 100 million training frames fit; inflated, where the file is compressed


class _StandIn:
    """Stands in for an object whose state does not matter; takes attributes and does nothing."""

    def __init__(self, *_: object) -> None:
        self.state: dict[Any, Any] = {}


class EstimatorStandIn(_StandIn):
    """Stands in for ``KMeans`` and ``MiniBatchKMeans``."""


class _NdarrayStandIn:
    """The name ``numpy.ndarray``, which is only ever passed as an argument."""


class _WrapperStandIn(_StandIn):
    """Stands in for ``joblib.numpy_pickle.NumpyArrayWrapper``."""


@dataclass
class _DtypeStandIn:
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


class ArrayStandIn:
    """Stands in for an array: its shape and kind, and its values or which small integers are among them.

    Attributes:
        value: The array, or None if it is not needed.
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
        resolved = dtype.resolve() if isinstance(dtype, _DtypeStandIn) else None
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


def _make_inert(*_: object) -> _StandIn:
    return _StandIn()


def _make_array(*_: object) -> ArrayStandIn:
    return ArrayStandIn()


def _array_from_buffer(
    data: object = None, dtype: object = None, shape: object = (), order: object = "C"
) -> ArrayStandIn:
    """What numpy's ``_frombuffer`` does in pickles of protocol 5."""
    array = ArrayStandIn()
    array.build((1, shape, dtype, order == "F", data))
    return array


def _make_dtype(code: object = None, *_: object) -> _DtypeStandIn:
    return _DtypeStandIn(code)


def _reconstruct_object(kind: object = None, *_: object) -> object:
    """What ``copyreg._reconstructor`` does for plain objects in pickles of protocol 0 and 1."""
    return _instance_of(kind)


def _instance_of(kind: object) -> object:
    if kind is EstimatorStandIn:
        return EstimatorStandIn()
    if kind is _WrapperStandIn:
        return _WrapperStandIn()
    if kind is _StandIn:
        return _StandIn()
    raise Refused("an instance of something that is no k-means model")


_CLASSES: dict[tuple[str, str], type] = {
    **{
        (module, name): EstimatorStandIn
        for module in ("sklearn.cluster._kmeans", "sklearn.cluster.k_means_")
        for name in ("KMeans", "MiniBatchKMeans")
    },
    ("joblib.numpy_pickle", "NumpyArrayWrapper"): _WrapperStandIn,
    ("numpy", "ndarray"): _NdarrayStandIn,
    ("numpy", "memmap"): _NdarrayStandIn,
    **{(module, "object"): _StandIn for module in ("builtins", "__builtin__")},
    ("numpy.random._mt19937", "MT19937"): _StandIn,
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


class KMeansUnpickler(StrictUnpickler):
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
        if isinstance(target, ArrayStandIn):
            target.build(state)
        elif isinstance(target, _DtypeStandIn):
            if isinstance(state, tuple) and len(state) > 1:
                target.order = state[1]
        elif isinstance(target, _StandIn):
            if isinstance(state, dict):
                target.state = state  # not a copy: one large dict can be the state of many objects
        else:
            super().build(target, state)
        if isinstance(target, _WrapperStandIn):
            name = self.stack[-2] if len(self.stack) > 1 else None  # the attribute that it is the value of
            self.stack[-1] = self._read_array(target.state, isinstance(name, str) and name == "cluster_centers_")

    def _read_array(self, state: dict[Any, Any], are_centroids: bool) -> ArrayStandIn:
        """Read the bytes that follow a ``NumpyArrayWrapper``; only what is needed stays in memory."""
        dtype = state.get("dtype")
        resolved = dtype.resolve() if isinstance(dtype, _DtypeStandIn) else None
        if resolved is None:
            if not isinstance(dtype, _DtypeStandIn) or not dtype.is_object or self.nested:
                raise Refused("an array of objects or of no plain numbers")
            inner = type(self)(self.source, 0, skip_arrays=True, nested=True, stopped=self.stopped)
            inner.share(self)
            inner.load()
            self.share(inner)
            return ArrayStandIn()
        shape, order = _checked_shape(state.get("shape"), resolved.itemsize), state.get("order")
        if state.get("numpy_array_alignment_bytes") is not None:
            self.source.read(self.source.read(1)[0])
        count = math.prod(shape) * resolved.itemsize
        described = ArrayStandIn(None, shape, resolved.kind)
        vector = len(shape) == 1
        if not self.skip_arrays and ((are_centroids and fits(shape)) or (vector and shape[0] <= MAX_CLUSTERS)):
            self.hold(count)
            flat = self._read_values(math.prod(shape), resolved)
            described.value = flat.reshape(shape[::-1]).T if order == "F" else flat.reshape(shape)
        elif not self.skip_arrays and vector and resolved.kind in "iu":
            self.hold(MAX_CLUSTERS)
            described.seen = np.zeros(MAX_CLUSTERS, bool)
            for block in self.source.blocks(count):
                mark_seen(described.seen, np.frombuffer(block, resolved))
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


def mark_seen(seen: NDArray[np.bool_], ids: NDArray[Any]) -> None:
    """Mark the cluster ids that occur; others are left out."""
    seen[ids[(ids >= 0) & (ids < len(seen))]] = True


def fits(shape: tuple[int, ...]) -> bool:
    """Whether centroids of this shape are read."""
    return len(shape) == 2 and shape[0] <= MAX_CLUSTERS and shape[1] <= MAX_DIM


def _checked_shape(shape: object, itemsize: int) -> tuple[int, ...]:
    if not isinstance(shape, tuple) or len(shape) > 8 or not all(type(n) is int and 0 <= n < 1 << 40 for n in shape):
        raise Refused("an array of unknown shape")
    # Labels may be larger; they are not kept.
    if math.prod(shape) * itemsize > (MAX_FILE_BYTES if len(shape) == 1 else _MAX_ARRAY_BYTES):
        raise Refused(f"an array of shape {shape}")
    return shape
