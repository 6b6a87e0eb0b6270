"""Sessions of fixed shapes: one for each shape of each graph, opened when it is first asked for.

On CUDA a session keeps the plan of a convolution for one shape, and two CUDA graphs recorded in one session destroy
each other's plans. So each shape has a session of its own. All of them have the same weights on the device, and take
their memory from one arena.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING
from weakref import WeakSet

from mkc_fast.errors import DeviceError
from mkc_fast.names import CUDA
from mkc_fast.onnx_runtime import ort
from mkc_fast.text import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mkc_fast.kernels.cuda.residual_stages import StagedBlocks
    from mkc_fast.names import Graph

# As ``arena_extend_strategy`` of an arena: growth by what is needed.
_SAME_AS_REQUESTED = 1


class Use(Enum):
    """What a session is for.

    Attributes:
        QUEUED: Each kernel is launched.
        RECORDED: Runs are recorded as a CUDA graph, which has memory of its own.
        RECORDED_BATCH: Runs are recorded; one at a time runs of all such recordings, so they share their memory.
    """

    QUEUED = "queued"
    RECORDED = "recorded"
    RECORDED_BATCH = "recorded batch"


class ShapedSessions:
    """The sessions of three graphs by shape.

    Args:
        opened: Opens one: of which graph, rows, samples or frames, and for which use.
        shares_weights: Whether one more session costs no memory for weights.
    """

    def __init__(self, opened: Callable[[Graph, int, int, Use], ort.InferenceSession], *, shares_weights: bool) -> None:
        self.shares_weights = shares_weights
        self._open = opened
        self._sessions: dict[tuple[Graph, int, int, Use], ort.InferenceSession] = {}

    def get(self, graph: Graph, rows: int, length: int, use: Use = Use.QUEUED) -> ort.InferenceSession:
        """The session of a graph for so many rows of so many samples or frames.

        Args:
            graph: Its name.
            rows: Utterances, or windows.
            length: Samples of each for WavLM, frames for the others.
            use: What it is for; a session has the recording of its one shape.

        Raises:
            DeviceError: It does not open.
            ArtifactError: The graph is damaged.
        """
        key = (graph, rows, length, use)
        if key not in self._sessions:
            self._sessions[key] = self._open(*key)
        return self._sessions[key]

    def close(self, use: Use) -> None:
        """Close the sessions of a use."""
        for key in [key for key in self._sessions if key[3] == use]:
            del self._sessions[key]

    @contextlib.contextmanager
    def closed_on_failure(self) -> Iterator[None]:
        """Close the sessions that are opened in the block if it fails."""
        before = set(self._sessions)
        try:
            yield
        except BaseException:
            for key in self._sessions.keys() - before:
                del self._sessions[key]
            raise


class StagedSessions:
    """The sessions of a vocoder that is cut at its residual blocks, by shape.

    Args:
        blocks: Between the graphs.
        opened: Opens one: of which graph, and sizes of its axes.
    """

    def __init__(self, blocks: StagedBlocks, opened: Callable[[int, dict[str, int]], ort.InferenceSession]) -> None:
        self.blocks = blocks
        self._open = opened
        self._sessions: dict[tuple[int, int, int], ort.InferenceSession] = {}

    def get(self, number: int, rows: int, frames: int) -> ort.InferenceSession:
        """The session of a graph for so many windows of so many features.

        Raises:
            DeviceError: It does not open.
            ArtifactError: The graph is damaged.
        """
        key = (number, rows, frames)
        if key not in self._sessions:
            stages = self.blocks.stages
            sizes = {"batch": rows}
            sizes |= {"cut_frames": frames * stages[number - 1].frames} if number else {"frames": frames}
            if number < len(stages):
                sizes["next_frames"] = frames * stages[number].frames
            self._sessions[key] = self._open(number, sizes)
        return self._sessions[key]


@dataclass(eq=False)
class ArenaUse:
    """Leave to take memory from the arena of a device, as long as this object is there.

    Attributes:
        alone: Nobody else has it meanwhile.
    """

    alone: bool = False


@dataclass
class _Arena:
    """The arena of a device.

    Attributes:
        limit: In bytes; None: none.
        uses: Who takes memory from it.
    """

    limit: int | None
    uses: WeakSet[ArenaUse] = field(default_factory=WeakSet)


_arenas: dict[int, _Arena] = {}


def share_arena(index: int, limit: int | None, *, alone: bool = False) -> ArenaUse | None:
    """Make one arena of a CUDA device for many sessions of this process; None if it cannot be had so.

    The arena stays until the process ends. When memory is short, its free parts are given back.

    Args:
        index: Of the device.
        limit: Of the arena, in bytes; a process that has an arena of another limit keeps that one.
        alone: For sessions whose recordings write to memory that the arena takes for free. Whoever else had memory
            from it would find it overwritten.

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
        _arenas[index] = _Arena(limit)
    arena = _arenas[index]
    if arena.limit != limit or any(alone or other.alone for other in arena.uses):
        return None
    use = ArenaUse(alone)
    arena.uses.add(use)
    return use


def queued_options() -> ort.RunOptions:
    """For a run that is queued: otherwise it would wait for the stream at its end."""
    options = ort.RunOptions()
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    return options
