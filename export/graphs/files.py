"""Graph files: written, with large weights in a file beside the graph, and opened on the CPU to check them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import onnx
from onnx import ModelProto, TensorProto, helper

from mkc_fast.engine.artifacts import is_native, weights_file
from mkc_fast.engine.sessions.shared_weights import ALIGNMENT, SAFETENSORS_TYPES
from mkc_fast.kernels.cpu.loader import register
from mkc_fast.onnx_runtime import ort

# A protobuf message ends at 2 GB. Larger weights go into a file beside the graph.
MAX_EMBEDDED_BYTES = 1_900_000_000
# Of a weight that sessions share; smaller ones stay in the graph.
LEAST_SHARED_BYTES = 1024
_PAGE = 4096


def open_session(model: ModelProto | Path) -> ort.InferenceSession:
    """Open a graph on the CPU, to check it; a file of a native graph with the native operators."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False  # it would keep the largest buffers of every length tried
    if isinstance(model, Path) and is_native(model.name):
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


def save_with_weights(model: ModelProto, path: Path) -> None:
    """Write a graph, and its large weights beside it in the form of safetensors: a table in JSON, then the values.

    ONNX reads them at their places in that file. The engine reads the table, copies the values to a device once, and
    shares them between all sessions of the graph (``mkc_fast.engine.sessions.shared_weights``). Those whose sizes are
    multiples of the alignment of a device come first, so that they lie aligned.
    """
    large = [tensor for tensor in model.graph.initializer if len(tensor.raw_data) >= LEAST_SHARED_BYTES]
    large.sort(key=lambda tensor: len(tensor.raw_data) % ALIGNMENT != 0)
    table, place = {}, 0
    for tensor in large:
        size = len(tensor.raw_data)
        kind = SAFETENSORS_TYPES[helper.tensor_dtype_to_np_dtype(tensor.data_type)]
        table[tensor.name] = {"dtype": kind, "shape": list(tensor.dims), "data_offsets": [place, place + size]}
        place += size
    header = json.dumps(table).encode()
    # So that values begin at the start of a page.
    header += b" " * (-(len(header) + 8) % _PAGE)
    data = weights_file(path)
    beside = {tensor.name for tensor in large}
    with data.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for tensor in large:
            file.write(tensor.raw_data)
    written = ModelProto()
    written.CopyFrom(without_weights(model))
    written.graph.node.extend(model.graph.node)
    for tensor in model.graph.initializer:
        if tensor.name not in beside:
            written.graph.initializer.append(tensor)
            continue
        begin, end = table[tensor.name]["data_offsets"]
        outside = written.graph.initializer.add(
            name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, data_location=TensorProto.EXTERNAL
        )
        values = {"location": data.name, "offset": begin + 8 + len(header), "length": end - begin}
        for key, value in values.items():
            outside.external_data.add(key=key, value=str(value))
    onnx.save(written, path)


def without_weights(model: ModelProto) -> ModelProto:
    """A copy of everything but nodes and weights."""
    copy = ModelProto(
        ir_version=model.ir_version,
        producer_name=model.producer_name,
        producer_version=model.producer_version,
        opset_import=model.opset_import,
    )
    copy.metadata_props.extend(model.metadata_props)
    copy.graph.name = model.graph.name
    copy.graph.input.extend(model.graph.input)
    copy.graph.output.extend(model.graph.output)
    return copy
