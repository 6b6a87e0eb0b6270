"""Sessions of fixed shapes: one for each shape of each graph, opened when it is first asked for.

On CUDA a session keeps the plan of a convolution for one shape, and two CUDA graphs recorded in one session destroy
each other's plans. So each shape has a session of its own. All of them have the same weights on the device, and take
their memory from one arena.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mkc_fast.errors import DeviceError
from mkc_fast.names import CUDA
from mkc_fast.onnx_runtime import ort
from mkc_fast.text import one_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from mkc_fast.names import Graph

# Devices for which this process has an arena, with its limit in bytes; None: none.
_arenas: dict[int, int | None] = {}
# As ``arena_extend_strategy`` of an arena: growth by what is needed.
_SAME_AS_REQUESTED = 1


class ShapedSessions:
    """The sessions of three graphs by shape.

    Args:
        opened: Opens one: of which graph, rows, samples or frames, and whether runs are to be recorded.
        shares_weights: Whether one more session costs no memory for weights.
    """

    def __init__(
        self, opened: Callable[[Graph, int, int, bool], ort.InferenceSession], *, shares_weights: bool
    ) -> None:
        self.shares_weights = shares_weights
        self._open = opened
        self._sessions: dict[tuple[Graph, int, int, bool], ort.InferenceSession] = {}

    def get(self, graph: Graph, rows: int, length: int, *, recorded: bool = False) -> ort.InferenceSession:
        """The session of a graph for so many rows of so many samples or frames.

        Args:
            graph: Its name.
            rows: Utterances, or windows.
            length: Samples of each for WavLM, frames for the others.
            recorded: Runs are recorded as a CUDA graph; a session has the recording of its one shape.

        Raises:
            DeviceError: It does not open.
            ArtifactError: The graph is damaged.
        """
        key = (graph, rows, length, recorded)
        if key not in self._sessions:
            self._sessions[key] = self._open(*key)
        return self._sessions[key]


def share_arena(index: int, limit: int | None) -> bool:
    """Make one arena of a CUDA device for all sessions of this process; returns whether there is one with this limit.

    The arena stays until the process ends. When memory is short, its free parts are given back.

    Args:
        index: Of the device.
        limit: Of the arena, in bytes; a process that has an arena of another limit keeps that one.

    Raises:
        DeviceError: ONNX Runtime refuses it.
    """
    if index not in _arenas:
        place = ort.OrtMemoryInfo("Cuda", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, index, ort.OrtMemType.DEFAULT)
        told: dict[str, int] = {"arena_extend_strategy": _SAME_AS_REQUESTED}
        if limit is not None:
            told["max_mem"] = limit
        options = {"device_id": str(index)}
        try:
            ort.create_and_register_allocator_v2("CUDAExecutionProvider", place, options, ort.OrtArenaCfg(told))
        except Exception as error:  # ONNX Runtime's errors share no base but Exception
            raise DeviceError(f"provider {CUDA}: no memory arena ({one_line(str(error), 160)})") from None
        _arenas[index] = limit
    return _arenas[index] == limit
