"""Writes k-means models as ``joblib.dump`` writes those of scikit-learn, with neither of the two."""

from __future__ import annotations

import pickle
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import BinaryIO

    from numpy.typing import NDArray

_ALIGNMENT_BYTES = 16  # of the arrays in a joblib file


def write_kmeans(path: Path, centroids: NDArray[Any], counts: NDArray[Any] | None = None) -> None:
    """Write a k-means model as ``joblib.dump`` writes scikit-learn's MiniBatchKMeans, with neither of the two.

    ``joblib.load`` of the file needs scikit-learn and gives an estimator that can ``predict``.

    Args:
        path: The file to write.
        centroids: ``cluster_centers_``, (K, D) float64 or float32.
        counts: (K,), frames of each cluster. Default: 1 each.

    Raises:
        ValueError: The centroids are not such an array.
    """
    if centroids.ndim != 2 or centroids.dtype not in (np.float64, np.float32):
        raise ValueError(f"centroids must be (K, D) of float64 or float32, not {centroids.shape} of {centroids.dtype}")
    num_clusters, dim = centroids.shape
    attributes = {
        "n_clusters": num_clusters,
        "init": "k-means++",
        "max_iter": 100,
        "tol": 0.0,
        "n_init": 1,
        "verbose": 0,
        "random_state": None,
        "max_no_improvement": 10,
        "batch_size": 1024,
        "compute_labels": False,
        "init_size": None,
        "reassignment_ratio": 0.01,
        "n_features_in_": dim,
        "n_steps_": 1,
        "_tol": 0.0,
        "_n_init": 1,
        "_batch_size": 1024,
        "_init_size": 3 * num_clusters,
        "_n_threads": 1,
        "cluster_centers_": centroids,
        "_counts": np.ones(num_clusters, centroids.dtype) if counts is None else counts.astype(centroids.dtype),
        "_n_since_last_reassign": 0,
        "_n_features_out": num_clusters,
        "_sklearn_version": "1.2.2",
    }
    with path.open("wb") as file:
        stream = _JoblibStream(file)
        stream.put_object(_Global("sklearn.cluster._kmeans", "MiniBatchKMeans"), attributes)
        stream.end()


@dataclass(frozen=True)
class _Global:
    """A class, by name: it need not be there."""

    module: str
    name: str


class _JoblibStream:
    """As much of joblib's uncompressed format as an estimator needs.

    It is a pickle of protocol 4, except that each array stands in it as a ``NumpyArrayWrapper``, and that between the
    opcodes that make the wrapper and those of whatever comes next stand the array's bytes, aligned for memory mapping.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.frame = bytearray()
        file.write(pickle.PROTO + b"\x04")

    def put(self, value: object) -> None:
        """The opcodes that make a value."""
        match value:
            case None:
                self.frame += pickle.NONE
            case bool():
                self.frame += pickle.NEWTRUE if value else pickle.NEWFALSE
            case int():
                self.frame += pickle.BININT + struct.pack("<i", value)
            case float():
                self.frame += pickle.BINFLOAT + struct.pack(">d", value)
            case str():
                encoded = value.encode()
                self.frame += pickle.SHORT_BINUNICODE + bytes([len(encoded)]) + encoded
            case tuple():
                self.frame += pickle.MARK
                for item in value:
                    self.put(item)
                self.frame += pickle.TUPLE
            case _Global():
                self.put(value.module)
                self.put(value.name)
                self.frame += pickle.STACK_GLOBAL
            case np.dtype():
                self.put(_Global("numpy", "dtype"))
                self.put((value.str[1:], False, True))
                self.frame += pickle.REDUCE
                self.put((3, "<", None, None, None, -1, -1, 0))
                self.frame += pickle.BUILD
            case np.ndarray():
                self._put_array(np.ascontiguousarray(value, value.dtype.newbyteorder("<")))
            case _:
                raise TypeError(f"no opcodes for {type(value).__name__}")

    def put_object(self, kind: _Global, attributes: Mapping[str, object]) -> None:
        """The opcodes that make an object without constructor arguments and set its attributes."""
        self.put(kind)
        self.frame += pickle.EMPTY_TUPLE + pickle.NEWOBJ + pickle.EMPTY_DICT + pickle.MARK
        for name, value in attributes.items():
            self.put(name)
            self.put(value)
        self.frame += pickle.SETITEMS + pickle.BUILD

    def end(self) -> None:
        """The last opcode."""
        self.frame += pickle.STOP
        self._end_frame()

    def _put_array(self, array: NDArray[Any]) -> None:
        wrapper = {
            "subclass": _Global("numpy", "ndarray"),
            "shape": array.shape,
            "order": "C",
            "dtype": array.dtype,
            "allow_mmap": True,
            "numpy_array_alignment_bytes": _ALIGNMENT_BYTES,
        }
        self.put_object(_Global("joblib.numpy_pickle", "NumpyArrayWrapper"), wrapper)
        self._end_frame()  # what a frame holds is read ahead, and the array's bytes must not be
        padding = _ALIGNMENT_BYTES - (self.file.tell() + 1) % _ALIGNMENT_BYTES
        self.file.write(bytes([padding]) + b"\xff" * padding)
        self.file.write(array.data)

    def _end_frame(self) -> None:
        self.file.write(pickle.FRAME + struct.pack("<Q", len(self.frame)) + self.frame)
        self.frame.clear()
