"""Weights of a graph on a device, copied there once and shared by all of its sessions.

A graph for CUDA has a session for each shape that it runs in, since a session keeps the plan of a convolution for one
shape alone. Its weights lie in a file beside it, in the form of safetensors. They are copied to the device once, and
every session is given the same arrays in place of its own copies.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mkc_fast.errors import ArtifactError
from mkc_fast.kernels.cuda.rows import copy
from mkc_fast.onnx_runtime import ort

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

# Where values should begin on a device, in bytes.
ALIGNMENT = 256
# Names of types in these files.
SAFETENSORS_TYPES: dict[np.dtype[Any], str] = {
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(np.int64): "I64",
    np.dtype(np.int32): "I32",
}
_TYPES: dict[str, np.dtype[Any]] = {name: kind for kind, name in SAFETENSORS_TYPES.items()}
_MOST_HEADER_BYTES = 1 << 24


@dataclass(frozen=True)
class StoredWeight:
    """Where a weight lies in its file.

    Attributes:
        kind: Type of its values.
        shape: Of the weight.
        begin: Its first byte in the file.
        end: The byte after its last.
    """

    kind: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int
    end: int


def read_table(path: Path) -> dict[str, StoredWeight]:
    """The table of a file of weights.

    Raises:
        ArtifactError: The file is missing or damaged.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= min(size, _MOST_HEADER_BYTES):
                raise ValueError
            table = json.loads(file.read(length))
        found = {name: _stored(value, 8 + length, size) for name, value in table.items() if name != "__metadata__"}
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror}); export the model again") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ArtifactError(f"{path}: is no file of weights, or damaged; export the model again") from None
    return found


def _stored(said: Any, base: int, size: int) -> StoredWeight:
    kind, shape = _TYPES[said["dtype"]], tuple(int(length) for length in said["shape"])
    begin, end = (base + int(place) for place in said["data_offsets"])
    if min(shape, default=1) < 0 or end - begin != math.prod(shape) * kind.itemsize or not base <= begin <= end <= size:
        raise ValueError
    return StoredWeight(kind, shape, begin, end)


class SharedWeights:
    """The weights of one graph on the current device of CuPy.

    Args:
        cupy: The module.
        path: The file of weights.

    Attributes:
        values: Each as a session takes it, by its name; they are valid as long as this object.

    Raises:
        ArtifactError: The file is missing or damaged.
    """

    def __init__(self, cupy: Any, path: Path) -> None:
        self.values: dict[str, ort.OrtValue] = {}
        table = read_table(path)
        if not table:
            return
        begin = min(each.begin for each in table.values())
        end = max(each.end for each in table.values())
        mapped: NDArray[np.uint8] = np.memmap(path, np.uint8, "r", begin, (end - begin,))
        # Plain copies: for anything else CuPy would compile a kernel.
        whole = cupy.empty(mapped.shape, np.uint8)
        whole.set(np.asarray(mapped))
        self._held = [whole]
        for name, each in table.items():
            part = whole[each.begin - begin : each.end - begin]
            if (each.begin - begin) % ALIGNMENT:
                unaligned, part = part, cupy.empty(part.shape, np.uint8)
                copy(part, unaligned)
                self._held.append(part)
            array = part.view(each.kind).reshape(each.shape)
            # A session takes values that it does not own only from such a capsule.
            self.values[name] = ort.OrtValue.from_dlpack(array)
        # Sessions run on another stream, which does not wait for this one.
        cupy.cuda.get_current_stream().synchronize()
