"""What decides the last bits of every sample, so that a folder's outputs can be told to be of one kind."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING

from mkc_fast.engine.devices import cores
from mkc_fast.engine.sessions.cpu import stage_forms, uses_native
from mkc_fast.kernels.cpu.loader import instruction_set
from mkc_fast.names import CPU, GRAPH_FILES
from mkc_fast.onnx_runtime import ort

if TYPE_CHECKING:
    from mkc_fast.engine.devices import Gpu
    from mkc_fast.engine.sessions.providers import Plan

_OWN = "onnxruntime"


def ran_on_cpu(model: Path, precision: str, threads: int | None) -> dict[str, object]:
    """Of graphs on a CPU.

    Native operators give the same bits with any number of threads, on any processor with these instructions. ONNX
    Runtime's own split sums by threads, and choose kernels by the processor.
    """
    native = [name.removesuffix(".onnx") for name in GRAPH_FILES if uses_native(model, name, precision)]
    whole = len(native) == len(GRAPH_FILES)
    operators = f"native {instruction_set()}{stage_forms(model, precision)}" if native else _OWN
    if native and not whole:
        operators += f" in {', '.join(native)}, else {_OWN}"
    ran: dict[str, object] = {
        "provider": CPU,
        "precision": precision,
        "operators": operators,
        "onnxruntime": ort.__version__,
    }
    return ran if whole else {**ran, "threads": threads or cores(), "processor": _processor()}


def ran_on_gpu(plan: Plan, gpu: Gpu, tensorrt: str | None) -> dict[str, object]:
    """Of graphs on a GPU, with TensorRT's version where that runs them."""
    ran: dict[str, object] = {
        "provider": plan.provider,
        "precision": plan.precision,
        "operators": f"{_OWN}, residual kernel" if plan.tuning.residual_kernel else _OWN,
        "onnxruntime": ort.__version__,
        "gpu": gpu.name,
    }
    return ran if tensorrt is None else {**ran, "tensorrt": tensorrt}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
