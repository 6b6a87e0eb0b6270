"""The whole pass on a CUDA device, without a copy between the stages and without waiting for it.

A batch is copied to the device once, through page-locked memory on a stream of its own. WavLM, the look-up, the
conformer and the vocoder read and write each other's buffers on one stream that CuPy and ONNX Runtime share. Samples
and cluster ids are copied back once, on a third stream. So one batch is computed while the next is copied in and the
results of the last are copied out.

No GPU has run this yet. Every copy, launch, event and run of it runs in the tests, over stand-ins for CuPy and CUDA
that delay and reorder what streams leave open, with ONNX Runtime's CPU provider bound to the same buffers.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
from collections import deque
from copy import copy as shallow_copy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mkc_fast.engine.passes.device_batch import FLAGS, DeviceBatch
from mkc_fast.engine.passes.device_graphs import DeviceGraphs
from mkc_fast.engine.passes.layout import lay_out, lay_out_in, window_frames
from mkc_fast.engine.passes.pending import StartedPass
from mkc_fast.engine.passes.residual_vocoder import ResidualVocoder
from mkc_fast.engine.passes.results import Result, Utterance
from mkc_fast.engine.passes.shapes import Bucket
from mkc_fast.engine.passes.stages import NotFiniteError
from mkc_fast.engine.sessions.providers import most_frames
from mkc_fast.engine.sessions.shaped import Use
from mkc_fast.engine.windows import crossfaded, exact_pieces, exact_windows, sample_range
from mkc_fast.errors import DeviceMemoryError
from mkc_fast.kernels.cuda.rows import DeviceRows, copy, zero
from mkc_fast.names import ASSIGN, CONFORMER, ENCODE, RESTORE, VOCODE, VOCODER, WAVLM

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import DTypeLike, NDArray

    from mkc_fast.engine.artifacts import ModelInfo
    from mkc_fast.engine.passes.device_context import DeviceContext
    from mkc_fast.engine.passes.layout import Layout, VocoderRun
    from mkc_fast.engine.passes.shapes import Shapes
    from mkc_fast.engine.sessions.opening import Sessions
    from mkc_fast.kernels.lookup.cupy_lookup import CupyLookup

logger = logging.getLogger("mkc_fast")

# Of a long recording, where no bucket says otherwise: its windows run one by one.
_LONG_WINDOW_FRAMES = 1500
# The share of a device's memory that recordings leave to batches, and to shapes that are not recorded.
_KEPT_FREE = 0.2


@dataclass
class _Limits:
    """What batches keep to, also those of other banks over the same graphs.

    Attributes:
        shapes: The shapes of batches; None where these are free.
        padded_s: Padded seconds of a batch, once the device had too little memory for more.
        recorded: Shapes that are recorded as CUDA graphs.
    """

    shapes: Shapes | None
    padded_s: float = float("inf")
    recorded: set[Bucket] = field(default_factory=set)


class DevicePass:
    """Runs utterances through the whole pass on one device. An object is for one thread at a time.

    Args:
        context: The device.
        info: Of the model.
        lookup: Over the bank, on this device.
        sessions: The graphs, on ``context.compute``.
        latency: The same graphs for fixed sizes, one utterance at a time, the smallest first; a single utterance takes
            the first that it fits. Either sessions, or frames, for which sessions are opened.
        shapes: The shapes of batches, where every shape has a session; None where one session takes any.
        record_batches: Whether ``use_lengths`` records each shape as a CUDA graph, as far as there is memory.
        window_frames: A longer utterance is encoded and restored in windows of so many frames.
        overlap_frames: Frames that neighbouring windows share.
    """

    def __init__(
        self,
        context: DeviceContext,
        info: ModelInfo,
        lookup: CupyLookup,
        sessions: Sessions,
        latency: Sequence[Sessions | int] = (),
        *,
        shapes: Shapes | None = None,
        record_batches: bool = False,
        window_frames: int,
        overlap_frames: int,
    ) -> None:
        self._context, self._info, self._lookup = context, info, lookup
        self._limits = _Limits(shapes)
        self._window_frames, self._overlap_frames = window_frames, overlap_frames
        residual = None
        with context.errors(), context.compute:
            self._rows = DeviceRows(context.cupy)
            if sessions.staged is not None:
                residual = ResidualVocoder(context.cupy, context.index, sessions.staged, info.hop)
        graphs = partial(DeviceGraphs, context, sessions, shaped=sessions.shaped, residual=residual)
        self._graphs = DeviceGraphs(
            context, sessions, shaped=None if shapes is None else sessions.shaped, residual=residual
        )
        # What each takes at most, in frames; its bucket, where every shape has a session.
        self._latency: list[tuple[int, Bucket | None, DeviceGraphs]] = []
        latency_graphs = graphs(use=Use.RECORDED)
        # Recordings of batches; None where batches are not recorded.
        self._recorded: DeviceGraphs | None = None
        if record_batches:
            assert shapes is not None
            self._recorded = graphs(use=Use.RECORDED_BATCH)
        for each in latency:
            if isinstance(each, int):
                self._latency.append((each, Bucket(1, each), latency_graphs))
            else:
                assert each.buckets is not None
                self._latency.append((most_frames(each.buckets, info), None, DeviceGraphs(context, each)))
        self._busy: deque[DeviceBatch] = deque()

    @property
    def shapes(self) -> Shapes | None:
        """The shapes of batches; None where these are free."""
        return self._limits.shapes

    def warm_up(self) -> None:
        """Run each of the latency sizes once, which records it."""
        for frames, bucket, _ in self._latency:
            # One frame short of the bucket, so that a window of the end is recorded, too.
            for count in {frames} if bucket else {frames, max(1, frames - 1)}:
                self._queue([self._silence(count)], shrink=False).result()

    def use_lengths(self, lengths: Sequence[int]) -> None:
        """Pad batches to these lengths from now on, and run each once: later batches plan and allocate nothing.

        Args:
            lengths: In frames, ascending; the longest is that of a window of a long recording.

        Raises:
            DeviceError: The device failed.
        """
        if self.shapes is None or (self.shapes.full and tuple(lengths) == self.shapes.lengths):
            return
        shapes = self._limits.shapes = replace(self.shapes, lengths=tuple(lengths), full=True)
        # The largest come first: later ones find room in their memory. The last is for windows of long recordings.
        warmed = [(Bucket(shapes.most_rows(frames), frames), frames) for frames in shapes.lengths]
        warmed.sort(key=lambda each: -each[0].rows * each[0].frames)
        warmed.append((Bucket(1, shapes.lengths[-1]), self._window_frames + 1))
        if self._recorded is not None:
            self._record(self._recorded, warmed)
        for bucket, frames in warmed:
            # A session allocates otherwise in its second run. Recordings have run.
            for _ in range(0 if bucket in self._limits.recorded else 2):
                self.start([self._silence(frames)] * bucket.rows).result()

    def _record(self, graphs: DeviceGraphs, warmed: Sequence[tuple[Bucket, int]]) -> None:
        """Record shapes as CUDA graphs, as many as there is memory for.

        Recordings share the memory that ONNX Runtime takes for free between runs. So whatever stays in memory has to
        be there before the first is recorded: each shape runs before that, unrecorded, and again.

        Args:
            graphs: That record.
            warmed: Shapes, and frames of utterances that run in them.
        """
        self._limits.recorded.clear()
        graphs.forget()
        with graphs.rehearsed():
            fitting = [each for each in warmed if self._fits(graphs, *each)]
        recorded = [each for each in fitting if self._fits(graphs, *each)]
        if len(recorded) < len(warmed):
            logger.warning(
                "cuda:%d: too little memory to record all shapes as CUDA graphs: %d of %d are recorded",
                self._context.index,
                len(recorded),
                len(warmed),
            )

    def _fits(self, graphs: DeviceGraphs, bucket: Bucket, frames: int) -> bool:
        """Run a shape on graphs that record, if there is memory for it; else forget it."""
        free, total = self._context.cupy.cuda.Device(self._context.index).mem_info
        if bucket not in self._limits.recorded and free < total * _KEPT_FREE:
            return False
        self._limits.recorded.add(bucket)
        try:
            with graphs.forgotten_on_failure():
                for _ in range(2):
                    self._queue([self._silence(frames)] * bucket.rows, shrink=False).result()
        except DeviceMemoryError:
            self._limits.recorded.remove(bucket)
        else:
            return True
        self._recover()
        return False

    def _silence(self, frames: int) -> Utterance:
        samples = np.zeros((frames - 1) * self._info.hop + self._info.min_samples, np.float32)
        return Utterance(samples, np.zeros(frames, np.int64), "silence")

    def with_lookup(self, lookup: CupyLookup) -> DevicePass:
        """The same pass over another bank; both use the same graphs and buffers, and queue on the same streams."""
        other = shallow_copy(self)
        other._lookup = lookup
        return other

    def start(self, utterances: Sequence[Utterance]) -> StartedPass:
        """Queue utterances that run at once, or one of any length; a batch that needs too much memory runs in halves.

        More than run at once in a shape run in parts.

        Raises:
            BankError: A bank id does not fit the bank.
            DeviceMemoryError: There is not enough memory for one of them alone.
            DeviceError: The device failed.
        """
        checked = [replace(each, banks=self._lookup.checked_bank_ids(each.banks)) for each in utterances]
        if self.shapes is None or len(checked) == 1:
            return self._start(checked)
        most = self.shapes.most_rows(max(len(each.banks) for each in checked))
        parts = [self._start(checked[first : first + most]) for first in range(0, len(checked), most)]
        return parts[0] if len(parts) == 1 else StartedPass.joined(parts)

    def _start(self, utterances: list[Utterance], *, shrink: bool = False) -> StartedPass:
        padded_s = len(utterances) * max(len(each.waveform) for each in utterances) / self._info.sample_rate
        if len(utterances) == 1 or padded_s <= self._limits.padded_s:
            try:
                return self._queue(utterances, shrink=shrink)
            except DeviceMemoryError as error:
                # Only its text: the error's frames hold the arrays of the failed batch, as long as it lives.
                short = str(error)
            self._recover()
            if len(utterances) == 1:
                if shrink:
                    raise DeviceMemoryError(short)
                # Retried, now that no other batch is on the device.
                return self._start(utterances, shrink=True)
            self._limits.padded_s, shrink = padded_s / 2, True
            logger.warning(
                "cuda:%d: too little memory for %d utterances (%.0f s, padded) at once, going on with halves: %s",
                self._context.index,
                len(utterances),
                padded_s,
                short,
            )
        middle, parts = len(utterances) // 2, []
        for half in (slice(None, middle), slice(middle, None)):
            part = self._start(utterances[half], shrink=shrink)
            # Where memory is short, one half is finished before the next is started.
            parts.append(StartedPass.finished(part.result()) if shrink else part)
        return StartedPass.joined(parts)

    def _queue(self, utterances: Sequence[Utterance], *, shrink: bool) -> StartedPass:
        """Queue utterances that run at once, or one of any length.

        Args:
            utterances: With bank ids that fit the bank.
            shrink: Let ONNX Runtime give back the memory that it keeps for later, as far as that is free.

        Raises:
            DeviceMemoryError: There is not enough memory; none of these utterances is computed.
            DeviceError: The device failed.
        """
        waveforms, banks = [each.waveform for each in utterances], [each.banks for each in utterances]
        while self._busy and self._busy[0].done.done:
            self._busy.popleft()
        counts, frames = [len(part) for part in banks], len(banks[0])
        batch = DeviceBatch(self._context)
        try:
            with self._context.errors(), self._context.compute:
                if max(counts) > self._window_frames:
                    assert len(counts) == 1, "a long recording runs alone"
                    self._run_long(batch, waveforms[0], banks[0], shrink=shrink)
                else:
                    graphs, layout = self._layout_for(counts)
                    frames = layout.frames
                    self._run_batch(batch, graphs, layout, waveforms, banks, shrink=shrink)
        except BaseException:
            with contextlib.suppress(Exception):  # the device may still read the buffers of this incomplete batch
                self._context.wait()
            raise
        self._busy.append(batch)

        def collect() -> list[Result]:
            try:
                collected = batch.collect(counts, frames, self._info.hop)
            except NotFiniteError as error:
                raise error.of(utterances[error.row].name) from None
            return [
                Result(each.waveform, utterance.banks.astype(np.int64), each.cluster_ids, each.stage_seconds)
                for each, utterance in zip(collected, utterances, strict=True)
            ]

        return StartedPass(collect)

    def errors(self) -> contextlib.AbstractContextManager[None]:
        """For graphs that the host runs by itself: turns what they raise into the errors of ``start``."""
        return self._context.errors()

    def _recover(self) -> None:
        """After a ``DeviceMemoryError``: wait for what is queued, and give back all memory that is not in use.

        Raises:
            DeviceError: The device failed.
        """
        with self._context.errors():
            self._context.wait()
        self._busy.clear()
        gc.collect()  # frames of an error may hold each other, and arrays of the failed batch
        self._context.cupy.get_default_memory_pool().free_all_blocks()

    def _layout_for(self, counts: Sequence[int]) -> tuple[DeviceGraphs, Layout]:
        # What is shorter than a window of the end has no recorded shape.
        if len(counts) == 1 and counts[0] >= 2 * self._info.vocoder_reach:
            for frames, bucket, graphs in self._latency:
                if counts[0] <= frames:
                    if bucket is not None:
                        return graphs, lay_out_in(bucket, counts, self._info)
                    return graphs, lay_out(counts, self._info, graphs.buckets)
        if self.shapes is None:
            return self._graphs, lay_out(counts, self._info, self._graphs.buckets)
        # Where memory was short, a batch is not filled up again.
        bucket = self.shapes.bucket(len(counts), max(counts), least=self._limits.padded_s != float("inf"))
        return self._graphs_of(bucket), lay_out_in(bucket, counts, self._info)

    def _graphs_of(self, bucket: Bucket) -> DeviceGraphs:
        """Those that have this shape recorded, where it is."""
        if self._recorded is not None and bucket in self._limits.recorded:
            return self._recorded
        return self._graphs

    def _run_batch(
        self,
        batch: DeviceBatch,
        graphs: DeviceGraphs,
        layout: Layout,
        waveforms: Sequence[NDArray[np.float32]],
        banks: Sequence[NDArray[np.int64]],
        *,
        shrink: bool,
    ) -> None:
        rows, frames, dim = layout.rows, layout.frames, self._info.dim
        # All buffers have the sizes of the shape, not of the utterances: page-locked memory is kept by size, and new
        # memory of another size may wait for the device.
        capacity = rows * frames
        shapes: dict[str, tuple[tuple[int, ...], DTypeLike]] = {
            "waveform": ((rows, layout.samples), np.float32),
            "lengths": ((rows,), np.int64),
            "counts": ((rows,), np.int64),
            "banks": ((capacity,), np.int32),
        }
        for index, run in enumerate(layout.runs):
            shapes[f"origins {index}"] = (run.origins.shape, np.int32)
            for name in ("kept", "places"):
                shapes[f"{name} {index}"] = ((capacity,), np.int32)
        # What is padding: no samples; no frame of any entry; lengths that a graph can take.
        with batch.inputs(shapes) as (host, there):
            host["lengths"][:], host["counts"][:] = self._info.min_samples, 1
            host["banks"][:] = -1
            for row, (waveform, part) in enumerate(zip(waveforms, banks, strict=True)):
                host["waveform"][row, : len(waveform)] = waveform
                host["waveform"][row, len(waveform) :] = 0
                host["lengths"][row], host["counts"][row] = len(waveform), len(part)
                host["banks"][row * frames : row * frames + len(part)] = part
            host["waveform"][len(waveforms) :] = 0
            for index, run in enumerate(layout.runs):
                host[f"origins {index}"][:] = run.origins
                for name, nothing in (("kept", 0), ("places", -1)):
                    values, table = getattr(run, name), host[f"{name} {index}"]
                    table[: len(values)], table[len(values) :] = values, nothing
        result = batch.allocate_outputs(capacity, capacity * self._info.hop, rows)
        flags = [result["flags"][index] for index in range(len(FLAGS))]

        batch.mark("")
        inputs = {name: graphs.copy_in(f"wavlm.{name}", there[name]) for name in ("waveform", "lengths")}
        features = graphs.run(WAVLM, inputs, "features", (rows, frames, dim), shrink=shrink).reshape(-1, dim)
        batch.mark(ENCODE)
        self._rows.flag(features, there["banks"], flags[0], frames)
        quantized = graphs.allocate("conformer.features", (rows, frames, dim))
        zero(quantized)
        self._assign(features, host["banks"], there["banks"], quantized.reshape(-1, dim), result["cluster_ids"])
        self._rows.flag(quantized.reshape(-1, dim), there["banks"], flags[1], frames)
        del features
        batch.mark(ASSIGN)
        inputs = {"features": quantized, "lengths": graphs.copy_in("conformer.lengths", there["counts"])}
        restored = graphs.run(CONFORMER, inputs, "restored", (rows, frames, dim), shrink=shrink).reshape(-1, dim)
        self._rows.flag(restored, there["banks"], flags[2], frames)
        del inputs, quantized
        batch.mark(RESTORE)
        for index, run in enumerate(layout.runs):
            tables = {name: there[f"{name} {index}"] for name in ("origins", "kept", "places")}
            self._vocode(graphs, run, tables, restored, result["waveform"].reshape(capacity, -1), shrink=shrink)
        batch.mark(VOCODE)
        batch.copy_out()

    def _assign(
        self, features: Any, host_banks: NDArray[np.int32], banks: Any, quantized: Any, cluster_ids: Any
    ) -> None:
        """Find the nearest clusters, and write their centroids into the conformer's input."""
        # Where entries are copied in as they are needed, the host has to know which.
        ids = banks if self._lookup.resident else host_banks
        self._lookup.assign_device(features, ids, out=quantized, cluster_ids=cluster_ids, stream=self._context.compute)

    def _vocode(
        self,
        graphs: DeviceGraphs,
        run: VocoderRun,
        tables: Mapping[str, Any],
        restored: Any,
        waveform: Any,
        *,
        shrink: bool,
    ) -> None:
        """Compute windows of ``restored`` (rows, D) and put what they keep into ``waveform`` (frames, hop)."""
        shape = (run.count, run.length, self._info.dim)
        windows = graphs.allocate("vocoder.features", shape, bound=run.bound)
        self._rows.move(restored, tables["origins"], windows.reshape(-1, self._info.dim))
        samples = graphs.run(
            VOCODER,
            {"features": windows},
            "waveform",
            (run.count, run.length * self._info.hop),
            shrink=shrink,
            bound=run.bound,
        )
        self._rows.move(samples.reshape(-1, self._info.hop), tables["kept"], waveform, tables["places"])

    def _run_long(
        self, batch: DeviceBatch, waveform: NDArray[np.float32], banks: NDArray[np.int64], *, shrink: bool
    ) -> None:
        """A recording longer than a window: in cross-faded windows, and for the vocoder in exact ones."""
        graphs, info = self._graphs, self._info
        frames, size, dim, hop = len(banks), self._window_frames, info.dim, info.hop
        bucket = graphs.buckets if graphs.buckets is not None and graphs.buckets.fixed else None
        # In fixed buckets the window is the first of so many utterances, and padded.
        rows, padded = (bucket.max_batch, most_frames(bucket, info)) if bucket else (1, size)
        shape = None if self.shapes is None else Bucket(1, self.shapes.lengths[-1])
        if shape is not None:
            graphs, padded = self._graphs_of(shape), shape.frames
        samples = padded * hop + info.min_samples - 1
        shapes: dict[str, tuple[tuple[int, ...], DTypeLike]] = {
            "waveform": ((len(waveform),), np.float32),
            "banks": ((frames,), np.int32),
            "lengths": ((2, rows), np.int64),  # of every window but the last, and of that one
            "counts": ((rows,), np.int64),
        }
        with batch.inputs(shapes) as (host, there):
            host["waveform"][:], host["banks"][:], host["counts"][:] = waveform, banks, size
            begin, end = sample_range(frames - size, frames, frames, len(waveform), hop, info.min_samples)
            host["lengths"][0], host["lengths"][1] = (size - 1) * hop + info.min_samples, end - begin
        result = batch.allocate_outputs(frames, frames * info.hop, 1)
        flags = [result["flags"][index] for index in range(len(FLAGS))]
        ids = there["banks"] if self._lookup.resident else host["banks"]

        def encode(start: int, stop: int) -> Any:
            begin, end = sample_range(start, stop, frames, len(waveform), hop, info.min_samples)
            given = graphs.allocate("wavlm.waveform", (rows, samples))
            zero(given)
            copy(given.reshape(-1)[: end - begin], there["waveform"][begin:end])
            lengths = graphs.copy_in("wavlm.lengths", there["lengths"][int(stop == frames)])
            inputs = {"waveform": given, "lengths": lengths}
            made = graphs.run(WAVLM, inputs, "features", (rows, padded, dim), shrink=shrink)
            return made.reshape(-1, dim)[:size]

        def restore(start: int, stop: int) -> Any:
            given = graphs.allocate("conformer.features", (rows, padded, dim))
            zero(given)
            clusters, out = result["cluster_ids"][start:stop], given.reshape(-1, dim)[:size]
            self._lookup.gather_device(ids[start:stop], clusters, out, stream=self._context.compute)
            self._rows.flag(out, there["banks"][start:stop], flags[1], frames)
            inputs = {"features": given, "lengths": graphs.copy_in("conformer.lengths", there["counts"])}
            made = graphs.run(CONFORMER, inputs, "restored", (rows, padded, dim), shrink=shrink).reshape(-1, dim)
            self._rows.flag(made[:size], there["banks"][start:stop], flags[2], frames)
            return made[:size]

        batch.mark("")
        for start, features in crossfaded(frames, size, self._overlap_frames, encode, self._rows):
            batch.mark(ENCODE)
            part = slice(start, start + len(features))
            self._rows.flag(features, there["banks"][part], flags[0], frames)
            self._lookup.assign_device(
                features, ids[part], cluster_ids=result["cluster_ids"][part], stream=self._context.compute
            )
            batch.mark(ASSIGN)
        if shape is not None:
            count, length = shape.window(info)
        elif graphs.buckets is not None:
            length = min(frames, window_frames(graphs.buckets, info))
            count = rows * len(exact_windows(padded, length, info.vocoder_reach)) if bucket else 1
        else:
            count, length = 1, min(frames, max(_LONG_WINDOW_FRAMES, 4 * info.vocoder_reach))
        windows = exact_windows(frames, length, info.vocoder_reach)
        restored = crossfaded(frames, size, self._overlap_frames, restore, self._rows)
        ready = exact_pieces(windows, restored, self._rows)
        while parts := list(itertools.islice(ready, count)):
            batch.mark(RESTORE)
            given = graphs.allocate("vocoder.features", (count, length, dim))
            if count > len(parts):
                zero(given)
            for place, (_, features) in enumerate(parts):
                copy(given[place], features)
            made = graphs.run(VOCODER, {"features": given}, "waveform", (count, length * hop), shrink=shrink)
            for place, (window, _) in enumerate(parts):
                kept = slice((window.keep_start - window.start) * hop, (window.keep_stop - window.start) * hop)
                copy(result["waveform"][window.keep_start * hop : window.keep_stop * hop], made[place][kept])
            batch.mark(VOCODE)
        batch.copy_out()
