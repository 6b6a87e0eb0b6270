"""The device that is measured: a GPU through CuPy, or in a rehearsal the stand-in of the tests."""

from __future__ import annotations

import contextlib
import importlib
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from mkc_fast.benchmarks.common import repository
from mkc_fast.engine import devices
from mkc_fast.engine.options import Tuning
from mkc_fast.engine.sessions.opening import open_sessions
from mkc_fast.engine.sessions.providers import ORT_NAMES, Plan, cuda_options
from mkc_fast.errors import DeviceError
from mkc_fast.kernels.cuda.device import import_cupy, open_device
from mkc_fast.names import AUTO, CPU, CUDA, FP16, FP32, TF32, VOCODER_FILE
from mkc_fast.onnx_runtime import ort

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mkc_fast.engine.options import EngineOptions
    from mkc_fast.engine.sessions.opening import Sessions
    from mkc_fast.names import Precision, Provider

# Runs before those that are timed, of exactly the same work: they allocate memory and plan convolutions.
WARM_UPS = 3


class Machine:
    """A CUDA device through CuPy."""

    rehearsal = False

    def __init__(self, device: str) -> None:
        index = devices.cuda_index(device)
        if index is None:
            raise DeviceError("this script is for a GPU: give --device cuda:<number>")
        cupy = import_cupy()
        self.device, self.index, self.cupy = device, index, cupy
        open_device(cupy, index).use()
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.devices: list[str] = [device]
        self.provider: Provider = CUDA

    def facts(self) -> dict[str, object]:
        """What every figure of this device is of."""
        said = devices.driver()
        gpu = said.gpus[self.index]
        return {
            "gpu": f"{gpu.name}, {gpu.memory_bytes >> 30} GiB",
            "compute_capability": ".".join(map(str, gpu.capability)),
            "driver": said.version,
            "onnxruntime": ort.__version__,
            "cupy": getattr(self.cupy, "__version__", "the stand-in of the tests"),
        }

    def timed(self, work: Callable[[], object], repeats: int) -> float:
        """Median seconds of the device for what ``work`` queues on ``stream``, after warm-up runs of the same."""
        cupy = self.cupy
        seconds: list[float] = []
        with self.stream:
            for index in range(WARM_UPS + repeats):
                begin, end = cupy.cuda.Event(), cupy.cuda.Event()
                begin.record(self.stream)
                work()
                end.record(self.stream)
                end.synchronize()
                if index >= WARM_UPS:
                    seconds.append(cupy.cuda.get_elapsed_time(begin, end) / 1000)
        return statistics.median(seconds)

    def put(self, values: np.ndarray) -> Any:
        """An array on the device; it is there when this returns."""
        with self.stream:
            array = self.cupy.asarray(values)
        self.stream.synchronize()
        return array

    def get(self, array: Any) -> np.ndarray:
        """The values of an array on the device."""
        with self.stream:
            values: np.ndarray = array.get(stream=self.stream)
        return values

    def empty(self, shape: tuple[int, ...], dtype: Any = np.float32) -> Any:
        """An array without values."""
        with self.stream:
            return self.cupy.empty(shape, dtype)

    def matmul(self, left: Any, right: Any) -> Any:
        """A product by cuBLAS."""
        return left @ right

    @contextlib.contextmanager
    def arithmetic(self, precision: str) -> Iterator[Any]:
        """The type of operands of cuBLAS's products in a precision; sums are in float32."""
        linalg = importlib.import_module("cupy._core._routines_linalg")
        dtype = {FP32: np.float32, TF32: np.float32, FP16: np.float16}[precision]
        chosen = {FP32: "DEFAULT", TF32: "TF32", FP16: "FP32"}[precision]
        before = linalg.get_compute_type(dtype)
        linalg.set_compute_type(dtype, getattr(linalg, f"COMPUTE_TYPE_{chosen}"))
        try:
            yield dtype
        finally:
            linalg.set_compute_type(dtype, before)

    def open_sessions(self, model: Path, options: EngineOptions) -> Sessions:
        """The graphs of a model on ``stream``, without the rest of the pass."""
        return open_sessions(model, self.device, options, stream=self.stream.ptr)

    def open_graph(self, path: Path, precision: Precision, *, prefer_nhwc: bool, fused: bool = False) -> Any:
        """A graph on ``stream`` alone, with the options that the vocoder has; an ``InferenceSession``.

        ``fused``: it is one for CUDA, whose convolutions include their bias.
        """
        plan = Plan(
            CUDA, precision, self.index, stream=self.stream.ptr, tuning=Tuning(prefer_nhwc=prefer_nhwc), fused=fused
        )
        options = cuda_options(plan, VOCODER_FILE)
        return ort.InferenceSession(str(path), providers=[(ORT_NAMES[CUDA], options)], enable_fallback=0)

    def free_bytes(self) -> int:
        """Of the device's memory."""
        return int(self.cupy.cuda.runtime.memGetInfo()[0])

    def release(self) -> None:
        """Give back what CuPy's pool keeps for later."""
        self.cupy.get_default_memory_pool().free_all_blocks()


class Rehearsal(Machine):
    """The stand-in of the tests, which only a clone has; its timings mean nothing."""

    rehearsal = True

    def __init__(self, clone: Path | None) -> None:
        root = clone or repository()
        if root is None or not (root / "tests" / "fakes").is_dir():
            raise SystemExit("--rehearse needs a clone (--repository): it runs on the stand-ins of its tests")
        # Last, since the clone's folder mkc_fast is only a part of the package, and worker processes get this path.
        sys.path.append(str(root.resolve()))
        import pytest

        fake_gpu = importlib.import_module("tests.fakes.cuda.fake_gpu")
        self.patch = pytest.MonkeyPatch()
        self.gpu = fake_gpu.install(self.patch, schedule=0, fused=True)
        self.device, self.index, self.cupy = "cuda:0", 0, self.gpu.cupy
        self.stream = self.cupy.cuda.Stream(non_blocking=True)
        self.devices, self.provider = [CPU], AUTO

    def facts(self) -> dict[str, object]:
        return {**super().facts(), "gpu": "none: a rehearsal on the stand-in of the tests"}

    def timed(self, work: Callable[[], object], repeats: int) -> float:
        seconds = []
        with self.stream:
            for _ in range(repeats):
                begin = time.perf_counter()
                work()
                self.stream.synchronize()
                seconds.append(time.perf_counter() - begin)
        return statistics.median(seconds)

    def matmul(self, left: Any, right: Any) -> Any:
        return left.host @ right.host

    @contextlib.contextmanager
    def arithmetic(self, precision: str) -> Iterator[Any]:
        yield np.float16 if precision == FP16 else np.float32

    def open_sessions(self, model: Path, options: EngineOptions) -> Sessions:
        opened: Sessions = self.gpu.open_sessions(model, self.device, options, stream=self.stream.ptr)
        return opened

    def open_graph(self, path: Path, precision: Precision, *, prefer_nhwc: bool, fused: bool = False) -> Any:  # noqa: ARG002
        fake_gpu = importlib.import_module("tests.fakes.cuda.fake_gpu")
        real = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return fake_gpu.QueuedSession(real, self.gpu, self.stream, cuda_graph=False)

    def free_bytes(self) -> int:
        return 0
