"""ONNX Runtime with its telemetry off. Everything here imports it from this module, as ``ort``."""

from __future__ import annotations

from typing import Any

from mkc_fast import telemetry
from mkc_fast.errors import RuntimeMissingError
from mkc_fast.extras import CPU_EXTRA, CUDA13_EXTRA, install_command

try:
    import onnxruntime as ort
except ModuleNotFoundError as error:
    if error.name != "onnxruntime":
        raise
    raise RuntimeMissingError(
        f"ONNX Runtime is not installed: {install_command(CPU_EXTRA)}, or with a GPU 'mkc-fast[{CUDA13_EXTRA}]'"
    ) from None

telemetry.quiet(ort)

__all__ = ["float16_tool", "ort", "quantization_tool"]


def quantization_tool() -> Any:
    """``onnxruntime.quantization``, which needs the package ``onnx``."""
    import onnxruntime.quantization

    return onnxruntime.quantization


def float16_tool() -> Any:
    """``onnxruntime.transformers.float16``, which needs the package ``onnx``."""
    import onnxruntime.transformers.float16

    return onnxruntime.transformers.float16
