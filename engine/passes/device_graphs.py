"""Runs the three sessions on device arrays, bound to buffers, and recorded as CUDA graphs where sizes are fixed."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from mkc_fast.engine.sessions.shaped import Use, queued_options
from mkc_fast.kernels.cuda.rows import copy
from mkc_fast.names import CONFORMER, VOCODER, WAVLM

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import DTypeLike

    from mkc_fast.engine.passes.device_context import DeviceContext
    from mkc_fast.engine.passes.residual_vocoder import ResidualVocoder
    from mkc_fast.engine.sessions.opening import Sessions
    from mkc_fast.engine.sessions.shaped import ShapedSessions
    from mkc_fast.names import Graph
    from mkc_fast.onnx_runtime import ort


class DeviceGraphs:
    """Runs three sessions on device arrays.

    Where runs are recorded as CUDA graphs, buffers are kept: a recording reads and writes the addresses that it was
    made with. Recordings of several shapes share them.

    Args:
        context: The device.
        sessions: The graphs.
        shaped: A session for each shape, where there is one; else ``sessions`` run in all of them.
        use: Of the shaped sessions. Default: they are recorded if ``sessions`` are.
        residual: What runs in place of the vocoder's graph.
    """

    def __init__(
        self,
        context: DeviceContext,
        sessions: Sessions,
        *,
        shaped: ShapedSessions | None = None,
        use: Use | None = None,
        residual: ResidualVocoder | None = None,
    ) -> None:
        self._context, self._shaped, self._residual = context, shaped, residual
        self._use = use or (Use.RECORDED if sessions.cuda_graph else Use.QUEUED)
        self._recorded = self._use != Use.QUEUED
        # On a GPU all are ONNX Runtime's own.
        self._sessions = {
            name: cast("ort.InferenceSession", session)
            for name, session in (
                (WAVLM, sessions.wavlm), (CONFORMER, sessions.conformer), (VOCODER, sessions.vocoder),
            )
        }  # fmt: skip
        self.buckets = sessions.buckets
        self._memory: dict[str, Any] = {}
        self._buffers: dict[tuple[object, ...], Any] = {}
        self._recordings: dict[tuple[object, ...], tuple[Any, ort.RunOptions]] = {}
        self._rehearsing = False

    def allocate(self, name: str, shape: tuple[int, ...], dtype: DTypeLike = np.float32, *, bound: bool = True) -> Any:
        """An uninitialized array for an input of this name, ``graph.input``."""
        if not (self._recorded and bound):
            return self._context.cupy.empty(shape, dtype)
        key = (name, shape)
        if key not in self._buffers:
            size, memory = math.prod(shape), self._memory.get(name)
            if memory is None or memory.size < size:
                # What was recorded with the smaller one keeps it.
                memory = self._memory[name] = self._context.cupy.empty((size,), dtype)
            self._buffers[key] = memory[:size].reshape(shape)
        return self._buffers[key]

    def copy_in(self, name: str, array: Any) -> Any:
        """The array as the input of this name: itself, or copied into the buffer that a recording reads."""
        if not self._recorded:
            return array
        buffer = self.allocate(name, array.shape, array.dtype)
        copy(buffer, array)
        return buffer

    def run(
        self,
        graph: Graph,
        inputs: Mapping[str, Any],
        output: str,
        shape: tuple[int, ...],
        *,
        shrink: bool = False,
        bound: bool = True,
    ) -> Any:
        """Queue a run; the output's shape is known beforehand, so it is written straight into a buffer."""
        if graph == VOCODER and self._residual is not None:
            return self._residual.run(inputs["features"])
        recorded = self._recorded and bound
        if self._shaped is None:
            session = self._sessions[graph]
        else:
            rows, length, *_ = next(iter(inputs.values())).shape
            session = self._shaped.get(graph, rows, length, self._use if recorded else Use.QUEUED)
        made = self.allocate(f"{graph}.{output}", shape, bound=bound)
        key = (graph, *((name, array.shape) for name, array in inputs.items()))
        if recorded and key in self._recordings:
            binding, options = self._recordings[key]
        else:
            binding = session.io_binding()
            for name, array in inputs.items():
                binding.bind_input(name, "cuda", self._context.index, array.dtype.type, array.shape, array.data.ptr)
            binding.bind_output(output, "cuda", self._context.index, np.float32, shape, made.data.ptr)
            options = self._options(shrink=shrink)
            if recorded and not self._rehearsing:
                options.add_run_config_entry("gpu_graph_id", str(len(self._recordings) + 1))
                self._recordings[key] = binding, options
            elif recorded or (self._recorded and self._shaped is None):
                options.add_run_config_entry("gpu_graph_id", "-1")
        session.run_with_iobinding(binding, options)
        return made

    @contextlib.contextmanager
    def rehearsed(self) -> Iterator[None]:
        """Record nothing in the block, although its runs are those of recordings."""
        self._rehearsing = True
        try:
            yield
        finally:
            self._rehearsing = False

    @contextlib.contextmanager
    def forgotten_on_failure(self) -> Iterator[None]:
        """Forget what is opened and recorded in the block if it fails, so that its memory is free."""
        assert self._shaped is not None
        kept: tuple[dict[Any, Any], ...] = self._memory, self._buffers, self._recordings
        before = [set(each) for each in kept]
        try:
            with self._shaped.closed_on_failure():
                yield
        except BaseException:
            for each, keys in zip(kept, before, strict=True):
                for key in each.keys() - keys:
                    del each[key]
            raise

    def forget(self) -> None:
        """Forget all recordings, with their buffers and sessions."""
        assert self._shaped is not None
        for kept in (self._memory, self._buffers, self._recordings):
            kept.clear()
        self._shaped.close(self._use)

    def _options(self, *, shrink: bool) -> ort.RunOptions:
        options = queued_options()
        if shrink and not self._recorded:  # buffers of a CUDA graph must not move
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", f"gpu:{self._context.index}")
        return options
