"""The whole pass on a CUDA device, without a copy between the stages and without waiting for it.

A batch is copied to the device once, through page-locked memory on a stream of its own. WavLM, the look-up, the
conformer and the vocoder read and write each other's buffers on one stream that CuPy and ONNX Runtime share. Samples
and cluster ids are copied back once, on a third stream. So while one batch is computed, the next one and the results of
the last one can be copied.

No GPU has run this yet. Every copy, launch, event and run of it runs in the tests, over stand-ins for CuPy and CUDA
that delay and reorder what streams leave open, with ONNX Runtime's CPU provider bound to the same buffers.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from mkc_fast.engine.passes.layout import lay_out, most_frames, window_frames
from mkc_fast.engine.passes.stages import STAGES, NotFiniteError
from mkc_fast.engine.windows import crossfaded, exact_pieces, exact_windows, sample_range
from mkc_fast.errors import DeviceError, DeviceMemoryError, LostDeviceError, MkcError
from mkc_fast.kernels.cuda.device import import_cupy, one_line_errors, open_device
from mkc_fast.kernels.cuda.rows import DeviceRows, copy, zero
from mkc_fast.onnx_runtime import ort
from mkc_fast.text import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import DTypeLike, NDArray

    from mkc_fast.engine.artifacts import ModelInfo
    from mkc_fast.engine.passes.layout import Layout, VocoderRun
    from mkc_fast.engine.sessions.opening import Sessions
    from mkc_fast.kernels.lookup.cupy_lookup import CupyLookup

# What is checked on the device: the first two are what the look-up reads and writes. Cluster ids and samples come down
# anyway, and are checked there.
_FLAGS = ("encode", "lookup", "restore")
# Of a long recording, where no bucket says otherwise: its windows run one by one.
_LONG_WINDOW_FRAMES = 1500
# Parts of a packed buffer begin at multiples of this, as what CuPy allocates does.
_ALIGNMENT = 512
# How ONNX Runtime, cuDNN, cuBLAS and CUDA say that memory is short; ONNX Runtime has no exception of its own for it.
_NO_MEMORY = ("out of memory", "Failed to allocate memory", "ALLOC_FAILED", "cudaErrorMemoryAllocation")


@dataclass(frozen=True)
class Passed:
    """What became of one utterance: (T * hop,) float32, (T,) int32, and seconds of the device by stage."""

    waveform: NDArray[np.float32]
    cluster_ids: NDArray[np.int32]
    stage_seconds: dict[str, float]


class Place:
    """A CUDA device as this process uses it: CuPy, and a stream each for computing and for either way of copying.

    Raises:
        DeviceError: There is no CuPy, or no such device.
    """

    def __init__(self, index: int) -> None:
        self.cupy = import_cupy()
        self.index = index
        self.device = open_device(self.cupy, index)
        with self.device, one_line_errors(self.cupy, index):
            # Non-blocking: none of them waits for the null stream, which other libraries use.
            self.compute, self.up, self.down = (self.cupy.cuda.Stream(non_blocking=True) for _ in range(3))

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """What CuPy and ONNX Runtime raise, in one line, and as what it is.

        Raises:
            DeviceMemoryError: Memory is short; the device works.
            LostDeviceError: The device answers no more.
            DeviceError: Anything else.
        """
        try:
            with self.device:
                yield
        except DeviceMemoryError:
            raise
        except DeviceError as error:
            self._check_lost(str(error))
            raise
        except MkcError:
            raise
        except Exception as error:  # ONNX Runtime's share no base but Exception
            said = one_line(str(error), 300)
            if isinstance(error, MemoryError) or any(words in said for words in _NO_MEMORY):
                raise DeviceMemoryError(f"device cuda:{self.index}: out of memory ({said})") from None
            self._check_lost(said)
            raise DeviceError(f"device cuda:{self.index}: {said or type(error).__name__}") from None

    def _check_lost(self, said: str) -> None:
        """An error that CUDA keeps makes every further call fail, and so this one."""
        try:
            self.compute.synchronize()
        except self.cupy.cuda.runtime.CUDARuntimeError as error:
            kept = one_line(str(error), 120)
            raise LostDeviceError(f"device cuda:{self.index}: lost ({kept}), after: {said[:200]}") from None

    def wait(self) -> None:
        """Until the device has done all that was queued."""
        with self.device:
            for stream in (self.up, self.compute, self.down):
                stream.synchronize()

    def pinned(self, size: int) -> NDArray[np.uint8]:
        """Page-locked memory; it goes back to CuPy's pool with the array, when no copy may still be under way."""
        return np.frombuffer(self.cupy.cuda.alloc_pinned_memory(size), np.uint8, size)


class Pending:
    """Utterances on their way through a device."""

    def __init__(self, place: Place, counts: Sequence[int], frames: int, hop: int, queued: _Queued) -> None:
        self._place, self._counts, self._frames, self._hop, self._queued = place, counts, frames, hop, queued

    def result(self) -> list[Passed]:
        """Wait for them.

        Raises:
            NotFiniteError: What a stage made of one of them is not finite.
            DeviceError: The device failed.
        """
        with self._place.errors():
            self._queued.done.synchronize()
            elapsed = self._place.cupy.cuda.get_elapsed_time
            marks = self._queued.marks
            seconds = dict.fromkeys(STAGES, 0.0)
            for (_, begin), (stage, end) in itertools.pairwise(marks):
                seconds[stage] += elapsed(begin, end) / 1000
        parts = self._queued.parts
        total, start, passed = sum(self._counts), 0, []
        for row, count in enumerate(self._counts):
            for stage, flags in zip(_FLAGS, parts["flags"], strict=True):
                if flags[row]:
                    raise NotFiniteError(stage, row)
            # Copies: the page-locked memory goes back to its pool.
            waveform = parts["waveform"][start * self._hop : (start + count) * self._hop].copy()
            ids = parts["cluster_ids"][row * self._frames : row * self._frames + count].copy()
            if ids.min() < 0:  # of no distance that can be compared
                raise NotFiniteError("assign", row)
            if not np.isfinite(waveform).all():
                raise NotFiniteError("vocode", row)
            passed.append(Passed(waveform, ids, {stage: s * count / total for stage, s in seconds.items()}))
            start += count
        return passed


@dataclass
class _Queued:
    """A batch's events and what must outlive it.

    Attributes:
        marks: The stage that ends with each event; the first event is the beginning.
        parts: Of the page-locked buffer that comes down.
        down: The buffer on the device that comes down, and the page-locked one that it comes to.
        done: The event after which all of it is there, and nothing here is in use.
        held: Buffers of other streams' pools, and page-locked ones, which the device may still read or write.
    """

    marks: list[tuple[str, Any]] = field(default_factory=list)
    parts: dict[str, NDArray[Any]] = field(default_factory=dict)
    held: list[Any] = field(default_factory=list)
    down: tuple[Any, Any] = (None, None)
    done: Any = None


class DevicePass:
    """Runs utterances through the whole pass on one device. An object is for one thread at a time.

    Args:
        place: The device.
        info: Of the model.
        lookup: Over the bank, on this device.
        sessions: The graphs, on ``place.compute``.
        latency: The same graphs for fixed sizes, one utterance at a time, the smallest first; a single utterance takes
            the first that it fits.
        window_frames: A longer utterance is encoded and restored in windows of so many frames.
        overlap_frames: What neighbouring ones share.
    """

    def __init__(
        self,
        place: Place,
        info: ModelInfo,
        lookup: CupyLookup,
        sessions: Sessions,
        latency: Sequence[Sessions] = (),
        *,
        window_frames: int,
        overlap_frames: int,
    ) -> None:
        self._place, self._info, self._lookup = place, info, lookup
        self._cupy = place.cupy
        self._window_frames, self._overlap_frames = window_frames, overlap_frames
        with place.errors():
            self._rows = DeviceRows(place.cupy)
        self._graphs = _Graphs(place, sessions)
        self._latency = [_Graphs(place, each) for each in latency]
        self._busy: deque[_Queued] = deque()

    def warm_up(self) -> None:
        """Run each of the latency sizes once, which records it."""
        for graphs in self._latency:
            assert graphs.buckets is not None
            frames = most_frames(graphs.buckets, self._info)
            # One frame short of the bucket, so that a window of the end is recorded, too.
            for count in {frames, max(1, frames - 1)}:
                samples = np.zeros((count - 1) * self._info.hop + self._info.min_samples, np.float32)
                self.submit([samples], [np.zeros(count, np.int64)]).result()

    def submit(
        self, waveforms: Sequence[NDArray[np.float32]], banks: Sequence[NDArray[np.int64]], *, shrink: bool = False
    ) -> Pending:
        """Queue utterances that run at once, or one that may be of any length.

        Args:
            waveforms: (S,) float32 each.
            banks: (T,) each, the bank entry of each frame.
            shrink: Let ONNX Runtime give back the memory that it keeps for later, as far as that is free.

        Raises:
            DeviceMemoryError: There is not enough memory; nothing of this batch will come.
            DeviceError: The device failed.
        """
        while self._busy and self._busy[0].done.done:
            self._busy.popleft()
        counts, frames = [len(part) for part in banks], len(banks[0])
        queued = _Queued()
        try:
            with self._place.errors(), self._place.compute:
                if max(counts) > self._window_frames:
                    assert len(counts) == 1, "a long recording runs alone"
                    self._long(queued, waveforms[0], banks[0], shrink=shrink)
                else:
                    graphs = self._graphs_for(counts)
                    layout = lay_out(counts, self._info, graphs.buckets)
                    frames = layout.frames
                    self._batch(queued, graphs, layout, waveforms, banks, shrink=shrink)
        except BaseException:
            with contextlib.suppress(Exception):  # the device may still read what this half of a batch holds
                self._place.wait()
            raise
        self._busy.append(queued)
        return Pending(self._place, counts, frames, self._info.hop, queued)

    def errors(self) -> contextlib.AbstractContextManager[None]:
        """For graphs that the host runs by itself: what they raise, in one line, as ``submit`` would raise it."""
        return self._place.errors()

    def recover(self) -> None:
        """After a ``DeviceMemoryError``: wait for what is queued, and give back all memory that is not in use.

        Raises:
            DeviceError: The device failed.
        """
        with self._place.errors():
            self._place.wait()
        self._busy.clear()
        self._cupy.get_default_memory_pool().free_all_blocks()

    def _graphs_for(self, counts: Sequence[int]) -> _Graphs:
        # What is shorter than a window of the end has no recorded shape.
        if len(counts) == 1 and counts[0] >= 2 * self._info.vocoder_reach:
            for graphs in self._latency:
                assert graphs.buckets is not None
                if counts[0] <= most_frames(graphs.buckets, self._info):
                    return graphs
        return self._graphs

    # ---- Several utterances at once ----

    def _batch(
        self,
        queued: _Queued,
        graphs: _Graphs,
        layout: Layout,
        waveforms: Sequence[NDArray[np.float32]],
        banks: Sequence[NDArray[np.int64]],
        *,
        shrink: bool,
    ) -> None:
        rows, frames, dim = layout.rows, layout.frames, self._info.dim
        total = sum(len(part) for part in banks)
        shapes: dict[str, tuple[tuple[int, ...], DTypeLike]] = {
            "waveform": ((rows, layout.samples), np.float32),
            "lengths": ((rows,), np.int64),
            "counts": ((rows,), np.int64),
            "banks": ((rows * frames,), np.int32),
        }
        for index, run in enumerate(layout.runs):
            for name in ("origins", "kept", "places"):
                shapes[f"{name} {index}"] = (getattr(run, name).shape, np.int32)
        # What is padding: no samples; no frame of any entry; lengths that a graph can take.
        with self._uploading(queued, shapes) as (host, there):
            host["lengths"][:], host["counts"][:] = self._info.min_samples, 1
            host["banks"][:] = -1
            for row, (waveform, part) in enumerate(zip(waveforms, banks, strict=True)):
                host["waveform"][row, : len(waveform)] = waveform
                host["waveform"][row, len(waveform) :] = 0
                host["lengths"][row], host["counts"][row] = len(waveform), len(part)
                host["banks"][row * frames : row * frames + len(part)] = part
            host["waveform"][len(waveforms) :] = 0
            for index, run in enumerate(layout.runs):
                for name in ("origins", "kept", "places"):
                    host[f"{name} {index}"][:] = getattr(run, name)
        result = self._result_buffer(queued, rows * frames, total, rows)
        flags = [result["flags"][index] for index in range(len(_FLAGS))]

        self._mark(queued, "")
        inputs = {name: graphs.placed(f"wavlm.{name}", there[name]) for name in ("waveform", "lengths")}
        features = graphs.run("wavlm", inputs, "features", (rows, frames, dim), shrink=shrink).reshape(-1, dim)
        self._mark(queued, "encode")
        self._rows.flag(features, there["banks"], flags[0], frames)
        quantized = graphs.taken("conformer.features", (rows, frames, dim))
        zero(quantized)
        self._assign(features, host["banks"], there["banks"], quantized.reshape(-1, dim), result["cluster_ids"])
        self._rows.flag(quantized.reshape(-1, dim), there["banks"], flags[1], frames)
        del features
        self._mark(queued, "assign")
        inputs = {"features": quantized, "lengths": graphs.placed("conformer.lengths", there["counts"])}
        restored = graphs.run("conformer", inputs, "restored", (rows, frames, dim), shrink=shrink).reshape(-1, dim)
        self._rows.flag(restored, there["banks"], flags[2], frames)
        del inputs, quantized
        self._mark(queued, "restore")
        for index, run in enumerate(layout.runs):
            tables = {name: there[f"{name} {index}"] for name in ("origins", "kept", "places")}
            self._vocode(graphs, run, tables, restored, result["waveform"].reshape(total, -1), shrink=shrink)
        self._mark(queued, "vocode")
        self._download(queued)

    def _assign(
        self, features: Any, host_banks: NDArray[np.int32], banks: Any, quantized: Any, cluster_ids: Any
    ) -> None:
        """Nearest clusters, and their centroids straight into the conformer's input."""
        # Where entries must be brought, the host has to know which.
        ids = banks if self._lookup.resident else host_banks
        self._lookup.assign_device(features, ids, out=quantized, cluster_ids=cluster_ids, stream=self._place.compute)

    def _vocode(
        self,
        graphs: _Graphs,
        run: VocoderRun,
        tables: Mapping[str, Any],
        restored: Any,
        waveform: Any,
        *,
        shrink: bool,
    ) -> None:
        """Compute windows of ``restored`` (rows, D) and put what they keep into ``waveform`` (frames, hop)."""
        shape = (run.count, run.length, self._info.dim)
        windows = graphs.taken("vocoder.features", shape, bound=run.bound)
        self._rows.move(restored, tables["origins"], windows.reshape(-1, self._info.dim))
        samples = graphs.run(
            "vocoder",
            {"features": windows},
            "waveform",
            (run.count, run.length * self._info.hop),
            shrink=shrink,
            bound=run.bound,
        )
        self._rows.move(samples.reshape(-1, self._info.hop), tables["kept"], waveform, tables["places"])

    # ---- One recording longer than a window ----

    def _long(self, queued: _Queued, waveform: NDArray[np.float32], banks: NDArray[np.int64], *, shrink: bool) -> None:
        """Features and restored features in cross-faded windows, the vocoder in exact ones, all as they come."""
        graphs, info = self._graphs, self._info
        frames, size, dim, hop = len(banks), self._window_frames, info.dim, info.hop
        bucket = graphs.buckets if graphs.buckets is not None and graphs.buckets.fixed else None
        # In fixed buckets the window is the first of so many utterances, and padded.
        rows, padded = (bucket.max_batch, most_frames(bucket, info)) if bucket else (1, size)
        samples = padded * hop + info.min_samples - 1
        shapes: dict[str, tuple[tuple[int, ...], DTypeLike]] = {
            "waveform": ((len(waveform),), np.float32),
            "banks": ((frames,), np.int32),
            "lengths": ((2, rows), np.int64),  # of every window but the last, and of that one
            "counts": ((rows,), np.int64),
        }
        with self._uploading(queued, shapes) as (host, there):
            host["waveform"][:], host["banks"][:], host["counts"][:] = waveform, banks, size
            begin, end = sample_range(frames - size, frames, frames, len(waveform), hop, info.min_samples)
            host["lengths"][0], host["lengths"][1] = (size - 1) * hop + info.min_samples, end - begin
        result = self._result_buffer(queued, frames, frames, 1)
        flags = [result["flags"][index] for index in range(len(_FLAGS))]
        ids = there["banks"] if self._lookup.resident else host["banks"]

        def encode(start: int, stop: int) -> Any:
            begin, end = sample_range(start, stop, frames, len(waveform), hop, info.min_samples)
            given = graphs.taken("wavlm.waveform", (rows, samples))
            zero(given)
            copy(given.reshape(-1)[: end - begin], there["waveform"][begin:end])
            lengths = graphs.placed("wavlm.lengths", there["lengths"][int(stop == frames)])
            inputs = {"waveform": given, "lengths": lengths}
            made = graphs.run("wavlm", inputs, "features", (rows, padded, dim), shrink=shrink)
            return made.reshape(-1, dim)[:size]

        def restore(start: int, stop: int) -> Any:
            given = graphs.taken("conformer.features", (rows, padded, dim))
            zero(given)
            clusters, out = result["cluster_ids"][start:stop], given.reshape(-1, dim)[:size]
            self._lookup.gather_device(ids[start:stop], clusters, out, stream=self._place.compute)
            self._rows.flag(out, there["banks"][start:stop], flags[1], frames)
            inputs = {"features": given, "lengths": graphs.placed("conformer.lengths", there["counts"])}
            made = graphs.run("conformer", inputs, "restored", (rows, padded, dim), shrink=shrink).reshape(-1, dim)
            self._rows.flag(made[:size], there["banks"][start:stop], flags[2], frames)
            return made[:size]

        self._mark(queued, "")
        for start, features in crossfaded(frames, size, self._overlap_frames, encode, self._rows):
            self._mark(queued, "encode")
            part = slice(start, start + len(features))
            self._rows.flag(features, there["banks"][part], flags[0], frames)
            self._lookup.assign_device(
                features, ids[part], cluster_ids=result["cluster_ids"][part], stream=self._place.compute
            )
            self._mark(queued, "assign")
        length = min(frames, max(_LONG_WINDOW_FRAMES, 4 * info.vocoder_reach))
        if graphs.buckets is not None:
            length = min(frames, window_frames(graphs.buckets, info))
        count = rows * len(exact_windows(padded, length, info.vocoder_reach)) if bucket else 1
        windows = exact_windows(frames, length, info.vocoder_reach)
        restored = crossfaded(frames, size, self._overlap_frames, restore, self._rows)
        for window, features in exact_pieces(windows, restored, self._rows):
            self._mark(queued, "restore")
            given = graphs.taken("vocoder.features", (count, length, dim))
            if count > 1:
                zero(given)
            copy(given.reshape(-1, dim)[:length], features)
            made = graphs.run("vocoder", {"features": given}, "waveform", (count, length * hop), shrink=shrink)
            kept = slice((window.keep_start - window.start) * hop, (window.keep_stop - window.start) * hop)
            copy(result["waveform"][window.keep_start * hop : window.keep_stop * hop], made.reshape(-1)[kept])
            self._mark(queued, "vocode")
        self._download(queued)

    # ---- Up and down ----

    @contextlib.contextmanager
    def _uploading(
        self, queued: _Queued, shapes: Mapping[str, tuple[tuple[int, ...], DTypeLike]]
    ) -> Iterator[tuple[dict[str, NDArray[Any]], dict[str, Any]]]:
        """Yield arrays to fill and arrays on the device; what was filled in is on its way there after the block.

        Both lie in one buffer each, so that everything goes up in one copy.
        """
        place, size = self._place, _packed_size(shapes)
        pinned = place.pinned(size)
        with place.up:  # memory from this stream's pool: nobody who computes may still be using it
            buffer = self._cupy.empty((size,), np.uint8)
        queued.held += [pinned, buffer]
        host = _parts(pinned, shapes)
        yield host, _parts(buffer, shapes)
        buffer.set(pinned, stream=place.up)
        place.compute.wait_event(self._recorded(place.up))

    def _result_buffer(self, queued: _Queued, ids: int, frames: int, rows: int) -> dict[str, Any]:
        """What comes down: cluster ids, samples, and flags of each utterance for values that are not finite."""
        shapes: dict[str, tuple[tuple[int, ...], DTypeLike]] = {
            "flags": ((len(_FLAGS), rows), np.int32),
            "cluster_ids": ((ids,), np.int32),
            "waveform": ((frames * self._info.hop,), np.float32),
        }
        size = _packed_size(shapes)
        buffer, pinned = queued.down = self._cupy.empty((size,), np.uint8), self._place.pinned(size)
        queued.parts = _parts(pinned, shapes)
        parts = _parts(buffer, shapes)
        zero(parts["flags"])
        return parts

    def _download(self, queued: _Queued) -> None:
        place = self._place
        buffer, pinned = queued.down
        place.down.wait_event(self._recorded(place.compute))
        buffer.get(stream=place.down, out=pinned, blocking=False)
        queued.done = self._recorded(place.down)

    def _mark(self, queued: _Queued, stage: str) -> None:
        event = self._cupy.cuda.Event()
        event.record(self._place.compute)
        queued.marks.append((stage, event))

    def _recorded(self, stream: Any) -> Any:
        event = self._cupy.cuda.Event(disable_timing=True)
        event.record(stream)
        return event


class _Graphs:
    """Runs three sessions on device arrays.

    Where runs are recorded as CUDA graphs, each shape has buffers of its own, which stay: a recording reads
    and writes the addresses that it was made with.
    """

    def __init__(self, place: Place, sessions: Sessions) -> None:
        self._place, self._kept = place, sessions.cuda_graph
        # On a GPU all are ONNX Runtime's own.
        self._sessions = {
            name: cast("ort.InferenceSession", session)
            for name, session in (
                ("wavlm", sessions.wavlm), ("conformer", sessions.conformer), ("vocoder", sessions.vocoder),
            )
        }  # fmt: skip
        self.buckets = sessions.buckets
        self._buffers: dict[tuple[object, ...], Any] = {}
        self._recordings: dict[tuple[object, ...], tuple[Any, ort.RunOptions]] = {}

    def taken(self, name: str, shape: tuple[int, ...], dtype: DTypeLike = np.float32, *, bound: bool = True) -> Any:
        """An uninitialized array for an input of this name, ``graph.input``."""
        if not (self._kept and bound):
            return self._place.cupy.empty(shape, dtype)
        key = (name, shape)
        if key not in self._buffers:
            self._buffers[key] = self._place.cupy.empty(shape, dtype)
        return self._buffers[key]

    def placed(self, name: str, array: Any) -> Any:
        """An array as the input of this name."""
        if not self._kept:
            return array
        buffer = self.taken(name, array.shape, array.dtype)
        copy(buffer, array)
        return buffer

    def run(
        self,
        graph: str,
        inputs: Mapping[str, Any],
        output: str,
        shape: tuple[int, ...],
        *,
        shrink: bool = False,
        bound: bool = True,
    ) -> Any:
        """Queue a run; the output's shape is known beforehand, so that it is written where it is read."""
        session, recorded = self._sessions[graph], self._kept and bound
        made = self.taken(f"{graph}.{output}", shape, bound=bound)
        key = (graph, *((name, array.shape) for name, array in inputs.items()))
        if recorded and key in self._recordings:
            binding, options = self._recordings[key]
        else:
            binding = session.io_binding()
            for name, array in inputs.items():
                binding.bind_input(name, "cuda", self._place.index, array.dtype.type, array.shape, array.data.ptr)
            binding.bind_output(output, "cuda", self._place.index, np.float32, shape, made.data.ptr)
            options = self._options(shrink=shrink)
            if self._kept:
                options.add_run_config_entry("gpu_graph_id", str(len(self._recordings) + 1) if recorded else "-1")
            if recorded:
                self._recordings[key] = binding, options
        session.run_with_iobinding(binding, options)
        return made

    def _options(self, *, shrink: bool) -> ort.RunOptions:
        options = ort.RunOptions()
        # Or every run would wait for the stream at its end.
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        if shrink and not self._kept:  # what a CUDA graph uses is not to move
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", f"gpu:{self._place.index}")
        return options


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
