"""ONNX Runtime with its telemetry off. Everything here imports it from this module, as ``ort``."""

from __future__ import annotations

from typing import Any

import onnxruntime as ort

from mkc_fast import telemetry

telemetry.quiet(ort)

__all__ = ["ort", "quantization_tool"]


def quantization_tool() -> Any:
    """``onnxruntime.quantization``, which needs the package ``onnx``."""
    import onnxruntime.quantization

    return onnxruntime.quantization
