"""Graph files: written, with large weights in a file beside the graph, and opened on the CPU to check them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
from onnx import ModelProto

from mkc_fast.engine.artifacts import NATIVE_SUFFIX
from mkc_fast.kernels.cpu.loader import register
from mkc_fast.onnx_runtime import ort

# A protobuf message ends at 2 GB. Larger weights go into a file beside the graph.
MAX_EMBEDDED_BYTES = 1_900_000_000


def open_session(model: ModelProto | Path) -> ort.InferenceSession:
    """Open a graph on the CPU, to check it; a file of a native graph with the native operators."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False  # it would keep the largest buffers of every length tried
    if isinstance(model, Path) and model.name.endswith(NATIVE_SUFFIX):
        register(options)
    if isinstance(model, ModelProto) and weight_bytes(model) > MAX_EMBEDDED_BYTES:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "graph.onnx"
            save_graph(model, path)
            return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    source = model.SerializeToString() if isinstance(model, ModelProto) else str(model)
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def weight_bytes(model: ModelProto) -> int:
    """Size of all weights."""
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)


def save_graph(model: ModelProto, path: Path) -> None:
    """Write a graph, its weights beside it where a protobuf message cannot hold them."""
    if weight_bytes(model) > MAX_EMBEDDED_BYTES:
        copy = ModelProto()
        copy.CopyFrom(model)
        onnx.save(copy, path, save_as_external_data=True, location=f"{path.name}.data")
    else:
        onnx.save(model, path)
