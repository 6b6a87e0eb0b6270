"""A machine with a GPU, as far as Anonymizer can tell: CuPy's stand-in, and ONNX Runtime on its streams."""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from mkc_fast.engine import anonymizer, devices
from mkc_fast.engine.artifacts import cuda_file
from mkc_fast.engine.devices import Driver, Gpu
from mkc_fast.engine.options import EngineOptions, Tuning
from mkc_fast.engine.sessions import opening as sessions
from mkc_fast.engine.sessions.opening import Sessions, open_sessions
from mkc_fast.engine.sessions.shaped import ShapedSessions, StagedSessions, Use
from mkc_fast.kernels.cuda.residual_stages import StagedBlocks, stage_file
from mkc_fast.names import CUDA, GRAPH_FILES, GRAPHS
from tests.fakes.cuda import shim
from tests.fakes.cuda.fake_cupy import FakeCupy


class QueuedBinding:
    """``onnxruntime.IOBinding``: takes addresses on the device."""

    def __init__(self) -> None:
        self.inputs: dict[str, tuple[Any, ...]] = {}
        self.outputs: dict[str, tuple[Any, ...]] = {}

    def bind_input(self, name: str, device: str, index: int, kind: Any, shape: Any, address: int) -> None:
        assert (device, index) == ("cuda", 0)
        self.inputs[name] = (kind, tuple(shape), address)

    def bind_output(self, name: str, device: str, index: int, kind: Any, shape: Any, address: int) -> None:
        assert (device, index) == ("cuda", 0)
        self.outputs[name] = (kind, tuple(shape), address)


class QueuedSession:
    """``onnxruntime.InferenceSession`` on a stream: a bound run is put off, as a GPU does.

    ``shape`` are the rows and samples, or frames, that it was opened for; None takes any.
    """

    def __init__(
        self,
        real: onnxruntime.InferenceSession,
        gpu: FakeGpu,
        stream: Any,
        *,
        cuda_graph: bool,
        shape: tuple[int, int] | None = None,
    ) -> None:
        self.real, self.gpu, self.stream, self.cuda_graph, self.shape = real, gpu, stream, cuda_graph, shape
        self.recorded: dict[str, tuple[dict, dict]] = {}  # by graph id
        self.run, self.get_inputs, self.get_outputs = real.run, real.get_inputs, real.get_outputs

    def io_binding(self) -> QueuedBinding:
        return QueuedBinding()

    def run_with_iobinding(self, binding: QueuedBinding, options: onnxruntime.RunOptions) -> None:
        gpu = self.gpu
        assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        if gpu.failures:
            raise gpu.failures.pop(0)
        try:
            graph = options.get_run_config_entry("gpu_graph_id")
        except RuntimeError:
            graph = ""
        inputs, outputs = dict(binding.inputs), dict(binding.outputs)
        assert set(inputs) == {value.name for value in self.real.get_inputs()}
        _, first, _ = next(iter(inputs.values()))
        assert self.shape in {None, first[:2]}, f"a session for {self.shape} is given {first}"
        if self.cuda_graph:
            assert graph not in {"", "0"}, "of several shapes, each recording needs a number of its own"
            if graph != "-1":  # a recording is replayed with the addresses that it was made with
                assert self.recorded.setdefault(graph, (inputs, outputs)) == (inputs, outputs)
        gpu.runs.append(
            (Path(self.real._model_path).stem, {name: shape for name, (_, shape, _) in inputs.items()}, graph)
        )

        def compute() -> None:
            real = self.real.io_binding()
            for name, (kind, shape, address) in inputs.items():
                real.bind_input(name, "cpu", 0, kind, shape, address)
            for name, (kind, shape, address) in outputs.items():
                real.bind_output(name, "cpu", 0, kind, shape, address)
            self.real.run_with_iobinding(real)
            for _, shape, address in outputs.values():
                values = (ctypes.c_float * math.prod(shape)).from_address(address)
                gpu.spoil(Path(self.real._model_path).stem, np.ctypeslib.as_array(values).reshape(shape))

        gpu.cupy.queues.put(compute, self.stream)


class FakeGpu:
    """What a test sees of it.

    Attributes:
        cupy: The stand-in for CuPy.
        runs: Graph, shapes of its inputs, and number of its recording, of every bound run.
        failures: What the next bound runs raise instead.
        opened: Tuning of each set of sessions.
        shaped: Graph, rows, length and use, of each session of one shape.
        fused: Whether the graphs are those for CUDA.
        spoil: Is given the name of each graph that has run and its output, to change it.
    """

    def __init__(self, cupy: FakeCupy, *, fused: bool = False) -> None:
        self.cupy, self.fused = cupy, fused
        self.shaped: list[tuple[str, int, int, Use]] = []
        self.runs: list[tuple[str, dict[str, tuple[int, ...]], str]] = []
        self.failures: list[Exception] = []
        self.opened: list[Tuning] = []
        self.spoil: Callable[[str, np.ndarray], None] = lambda graph, output: None

    def open_sessions(
        self,
        model: Path,
        device: str,
        options: EngineOptions | None = None,
        *,
        stream: int | None = None,
    ) -> Sessions:
        options = options or EngineOptions()
        if device == "cpu":
            return open_sessions(model, device, replace(options, cache=None))
        tuning = options.tuning
        self.opened.append(tuning)
        (place,) = [each for each in self.cupy.queues.streams if each.ptr == stream]
        for_cuda = [cuda_file(name, half=False) for name in GRAPH_FILES]
        fused = self.fused and all((model / name).is_file() for name in for_cuda)
        files = for_cuda if fused else GRAPH_FILES
        real = {
            graph: onnxruntime.InferenceSession(str(model / name), providers=["CPUExecutionProvider"])
            for graph, name in zip(GRAPHS, files, strict=True)
        }

        def of_shape(graph: str, rows: int, length: int, use: Use) -> QueuedSession:
            self.shaped.append((graph, rows, length, use))
            return QueuedSession(real[graph], self, place, cuda_graph=use != Use.QUEUED, shape=(rows, length))

        def of_stage(number: int, sizes: dict[str, int]) -> QueuedSession:
            path = model / stage_file(number)
            stage = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            frames = sizes.get("frames") or sizes["cut_frames"]
            return QueuedSession(stage, self, place, cuda_graph=False, shape=(sizes["batch"], frames))

        wrapped = [QueuedSession(session, self, place, cuda_graph=tuning.cuda_graph) for session in real.values()]
        return Sessions(
            *wrapped,
            CUDA,
            "fp32",
            "CUDA, fp32, on a stand-in",
            tuning.buckets,
            cuda_graph=tuning.cuda_graph,
            shaped=ShapedSessions(of_shape, shares_weights=fused),
            staged=StagedSessions(StagedBlocks.read(model), of_stage) if tuning.residual_kernel else None,
        )


def install(patch: pytest.MonkeyPatch, *, schedule: int = 2, free_bytes: int = 1 << 30, fused: bool = False) -> FakeGpu:
    """Put a GPU into this machine."""
    shim.library()
    gpu = FakeGpu(FakeCupy(schedule=schedule, free_bytes=free_bytes), fused=fused)
    said = Driver(True, "580.65.06", (13, 0), (Gpu(0, "stand-in", (9, 0), 80 << 30),))
    patch.setitem(sys.modules, "cupy", gpu.cupy)
    for module in (devices, sessions):
        patch.setattr(module, "driver", lambda: said)
    patch.setattr(anonymizer, "open_sessions", gpu.open_sessions)
    return gpu
