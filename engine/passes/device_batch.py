"""The buffers and events of one batch on a device: copied in, computed, copied out, and collected as results."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mkc_fast.engine.passes.stages import NotFiniteError
from mkc_fast.kernels.cuda.rows import zero
from mkc_fast.names import ASSIGN, ENCODE, LOOKUP, RESTORE, TIMED_STAGES, VOCODE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import DTypeLike, NDArray

    from mkc_fast.engine.passes.device_context import DeviceContext
    from mkc_fast.names import Stage

# What is checked on the device: the first two are what the look-up reads and writes. Cluster ids and samples are copied
# out anyway, and are checked on the host.
FLAGS: tuple[Stage, ...] = (ENCODE, LOOKUP, RESTORE)
# Parts of a packed buffer begin at multiples of this, as what CuPy allocates does.
_ALIGNMENT = 512


@dataclass(frozen=True)
class DeviceResult:
    """One utterance: (T * hop,) float32, (T,) int32, and seconds of the device by stage."""

    waveform: NDArray[np.float32]
    cluster_ids: NDArray[np.int32]
    stage_seconds: dict[str, float]


@dataclass
class DeviceBatch:
    """The events of one batch, and what must outlive it.

    Attributes:
        context: The device.
        marks: The stage that ends with each event; the first event is the beginning.
        parts: Of the page-locked buffer that results are copied to.
        held: Buffers of other streams' pools, and page-locked ones, which the device may still read or write.
        outputs: The buffer on the device that is copied out, and the page-locked one that it is copied to.
        done: The event after which the results are on the host, and nothing here is in use.
    """

    context: DeviceContext
    marks: list[tuple[str, Any]] = field(default_factory=list)
    parts: dict[str, NDArray[Any]] = field(default_factory=dict)
    held: list[Any] = field(default_factory=list)
    outputs: tuple[Any, Any] = (None, None)
    done: Any = None

    @contextlib.contextmanager
    def inputs(
        self, shapes: Mapping[str, tuple[tuple[int, ...], DTypeLike]]
    ) -> Iterator[tuple[dict[str, NDArray[Any]], dict[str, Any]]]:
        """Yield arrays to fill and arrays on the device, to which the first are being copied after the block.

        All arrays of either side lie in one buffer, so that one copy is enough.
        """
        context, size = self.context, _packed_size(shapes)
        pinned = context.pinned(size)
        with context.copies_in:  # memory from this stream's pool, which no computation may still be using
            buffer = context.cupy.empty((size,), np.uint8)
        self.held += [pinned, buffer]
        host = _parts(pinned, shapes)
        yield host, _parts(buffer, shapes)
        buffer.set(pinned, stream=context.copies_in)
        context.compute.wait_event(self._record(context.copies_in))

    def allocate_outputs(self, ids: int, samples: int, rows: int) -> dict[str, Any]:
        """Arrays on the device for cluster ids, samples, and flags that tell whose values are not finite."""
        shapes: dict[str, tuple[tuple[int, ...], DTypeLike]] = {
            "flags": ((len(FLAGS), rows), np.int32),
            "cluster_ids": ((ids,), np.int32),
            "waveform": ((samples,), np.float32),
        }
        size = _packed_size(shapes)
        buffer, pinned = self.outputs = self.context.cupy.empty((size,), np.uint8), self.context.pinned(size)
        self.parts = _parts(pinned, shapes)
        parts = _parts(buffer, shapes)
        zero(parts["flags"])
        return parts

    def copy_out(self) -> None:
        """Queue the copy of the outputs to the host, after everything that is computed so far."""
        context = self.context
        buffer, pinned = self.outputs
        context.copies_out.wait_event(self._record(context.compute))
        buffer.get(stream=context.copies_out, out=pinned, blocking=False)
        self.done = self._record(context.copies_out)

    def mark(self, stage: str) -> None:
        """Record the end of a stage; the first mark is the beginning."""
        event = self.context.cupy.cuda.Event()
        event.record(self.context.compute)
        self.marks.append((stage, event))

    def _record(self, stream: Any) -> Any:
        event = self.context.cupy.cuda.Event(disable_timing=True)
        event.record(stream)
        return event

    def collect(self, counts: Sequence[int], frames: int, hop: int) -> list[DeviceResult]:
        """Wait for the results of utterances of these numbers of frames.

        Args:
            counts: Frames of each utterance.
            frames: Cluster ids between the begin of one utterance and of the next.
            hop: Samples of a frame.

        Raises:
            NotFiniteError: What a stage gives for one of them is not finite.
            DeviceError: The device failed.
        """
        with self.context.errors():
            self.done.synchronize()
            elapsed = self.context.cupy.cuda.get_elapsed_time
            marks = self.marks
            seconds = dict.fromkeys(TIMED_STAGES, 0.0)
            for (_, begin), (stage, end) in itertools.pairwise(marks):
                seconds[stage] += elapsed(begin, end) / 1000
        parts = self.parts
        total, start, results = sum(counts), 0, []
        for row, count in enumerate(counts):
            for stage, flags in zip(FLAGS, parts["flags"], strict=True):
                if flags[row]:
                    raise NotFiniteError(stage, row)
            # Copies: the page-locked memory returns to its pool.
            waveform = parts["waveform"][start * hop : (start + count) * hop].copy()
            ids = parts["cluster_ids"][row * frames : row * frames + count].copy()
            if ids.min() < 0:  # of no distance that can be compared
                raise NotFiniteError(ASSIGN, row)
            if not np.isfinite(waveform).all():
                raise NotFiniteError(VOCODE, row)
            results.append(DeviceResult(waveform, ids, {stage: s * count / total for stage, s in seconds.items()}))
            start += count
        return results


def _packed_size(shapes: Mapping[str, tuple[tuple[int, ...], DTypeLike]]) -> int:
    return sum(_rounded(math.prod(shape) * np.dtype(dtype).itemsize) for shape, dtype in shapes.values())


def _parts(buffer: Any, shapes: Mapping[str, tuple[tuple[int, ...], DTypeLike]]) -> dict[str, Any]:
    """Arrays of these shapes and types in a buffer of bytes, NumPy's or CuPy's, one after the other."""
    parts, start = {}, 0
    for name, (shape, dtype) in shapes.items():
        size = math.prod(shape) * np.dtype(dtype).itemsize
        parts[name] = buffer[start : start + size].view(dtype).reshape(shape)
        start += _rounded(size)
    return parts


def _rounded(size: int) -> int:
    return -(-max(size, 1) // _ALIGNMENT) * _ALIGNMENT
