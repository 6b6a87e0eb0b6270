"""First part: CUDA's libraries load, ONNX Runtime computes on the device, and CuPy compiles for it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from mkc_fast.engine.sessions.gpu_facts import gather_gpu_facts
from mkc_fast.engine.sessions.probe import try_provider
from mkc_fast.engine.sessions.support import obstacle
from mkc_fast.names import CUDA

if TYPE_CHECKING:
    from mkc_fast.benchmarks.gpu.bench import Bench

_TWICE = """
extern "C" __global__ void twice(const float* values, float* result, int count) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) result[i] = 2 * values[i];
}
"""


def libraries(bench: Bench, found: dict[str, Any]) -> None:
    """What is installed and loads, and one small computation by ONNX Runtime and one by CuPy."""
    if bench.machine.rehearsal:
        found["note"] = "a rehearsal: nothing of CUDA is here"
        return
    facts = gather_gpu_facts((CUDA,))
    problem = obstacle(facts, CUDA, bench.machine.index)
    found |= {
        "onnxruntime_cuda": facts.runtime.cuda,
        "providers": list(facts.runtime.providers),
        "loaded": {library.name: library.problem or library.version or "loaded" for library in facts.libraries},
        "obstacle": problem.reason if problem else None,
    }
    bench.save()
    bench.figure(found, "onnxruntime_computes", lambda: _provider(bench), least_s=0)
    bench.figure(found, "cupy_computes", lambda: _kernel(bench), least_s=0)


def _provider(bench: Bench) -> dict[str, Any]:
    begin = time.perf_counter()
    said = try_provider(CUDA, bench.machine.index)
    if said:
        raise RuntimeError(said)
    return {"seconds": time.perf_counter() - begin}


def _kernel(bench: Bench) -> dict[str, Any]:
    machine, cupy = bench.machine, bench.machine.cupy
    begin = time.perf_counter()
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    source, target = machine.put(values), machine.empty(values.shape)
    with machine.stream:
        cupy.RawModule(code=_TWICE).get_function("twice")((8,), (128,), (source, target, np.int32(len(values))))
    if not np.array_equal(machine.get(target), 2 * values):
        raise RuntimeError("a kernel computes something else than it should")
    return {"seconds": time.perf_counter() - begin, "nvrtc": list(cupy.cuda.nvrtc.getVersion())}
