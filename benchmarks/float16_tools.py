"""ONNX Runtime's float16 converter beside ``export/precision/half.py``: what stays float32, and the errors.

python -m mkc_fast.benchmarks.float16_tools

Exports small random weights twice, once with large activations, converts each graph with both tools, and writes
results/float16_tools.json. Errors are relative RMS errors against float32 on the inputs of the pass: speech, quiet and
loud. Each graph runs with every rounding to float16 shown, as a device makes them.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import torch

from mkc_fast.benchmarks.common import result_parser, write_result
from mkc_fast.errors import MkcError
from mkc_fast.export import export_model
from mkc_fast.export.graphs.files import open_session
from mkc_fast.export.precision.half import FLOAT, POLICIES, measured_peaks, rounding_shown, to_half, value_types
from mkc_fast.export.precision.half_graphs import longest_inputs
from mkc_fast.export.precision.judging import graph_references, judged_rms, runner
from mkc_fast.export.random_checkpoints import Checkpoints, write_checkpoints
from mkc_fast.names import VOCODER_FILE
from mkc_fast.onnx_runtime import float16_tool

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mkc_fast.export.precision.judging import Reference

# Counted in each graph: products, and operators whose precision matters.
_COUNTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LayerNormalization", "Softmax", "Tanh", "Add")
# What half.py keeps in float32 of every graph, as operators: the nearest that the tool can be told.
_BLOCKED = ["LayerNormalization", "ReduceMean", "ReduceSum", "Reciprocal", "Softmax", "Sqrt", "Tanh"]


def main() -> None:
    args = result_parser(__doc__, "float16_tools").parse_args()
    models = {}
    for name, factor in (("small", 1.0), ("small, large activations", 3e4)):
        with tempfile.TemporaryDirectory() as folder:
            made = write_checkpoints(Path(folder), num_kmeans=1)
            _enlarge(made, factor)
            # Large activations are not exact in float32 either; here float32 is the reference.
            out = Path(folder) / "model"
            info = export_model(made.wavlm, made.ckpt, out, allow_inexact=True, cache=False, progress=print)
            found = graph_references(out, info)
            models[name] = {file: _compare(out, file, found[file]) for file in POLICIES}
    write_result(args.out, {"models": models})


def _enlarge(made: Checkpoints, factor: float) -> None:
    """Make values of the residual streams larger by about ``factor``; layer norms take it out again."""
    if factor == 1.0:
        return
    for path, key, weight in (
        (made.wavlm, "model", "encoder.layers.1.fc2"),
        (made.ckpt, "model_state_dict", "conformer.conformer_layers.1.ffn1.sequential.4"),
    ):
        loaded = torch.load(path, weights_only=True)
        for part in (".weight", ".bias"):
            loaded[key][weight + part] *= factor
        torch.save(loaded, path)


def _compare(folder: Path, file: str, found: Sequence[Reference]) -> dict[str, Any]:
    model, lengths = onnx.load(folder / file), file != VOCODER_FILE
    tool = float16_tool()
    peaks = measured_peaks(model, *longest_inputs(found, lengths=lengths))

    def converted(**options: Any) -> onnx.ModelProto:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        result: onnx.ModelProto = tool.convert_float_to_float16(copy, keep_io_types=True, **options)
        return _sorted(result)

    blocked = [*tool.DEFAULT_OP_BLOCK_LIST, *_BLOCKED]
    ways = {
        "half.py": lambda: to_half(model, POLICIES[file], peaks).model,
        "tool": converted,
        "tool, operators blocked": lambda: converted(op_block_list=blocked),
    }
    judged = {way: _judge(make, file, found) for way, make in ways.items()}
    return {"largest_value": float(f"{max(peaks.values()):.3g}"), **judged}


def _sorted(model: onnx.ModelProto) -> onnx.ModelProto:
    """The nodes in an order in which each comes after those that it reads; the tool puts its casts at the end."""
    made = {value.name for value in (*model.graph.input, *model.graph.initializer)} | {""}
    left, ordered = list(model.graph.node), []
    while left:
        ready = [node for node in left if made.issuperset(node.input)]
        assert ready, "a cycle, or a value that no node makes"
        left = [node for node in left if not made.issuperset(node.input)]
        made.update(name for node in ready for name in node.output)
        ordered += ready
    del model.graph.node[:]
    model.graph.node.extend(ordered)
    return model


def _judge(make: Any, file: str, found: Sequence[Reference]) -> dict[str, Any]:
    """What one way of converting gives: nodes in float32 and in float16, types of inputs and outputs, errors."""
    half = make()
    types = value_types(half)
    wide: Counter[str] = Counter()
    narrow: Counter[str] = Counter()
    for node in half.graph.node:
        if node.op_type in _COUNTED and types[node.output[0]] in (FLOAT, onnx.TensorProto.FLOAT16):
            (wide if types[node.output[0]] == FLOAT else narrow)[node.op_type] += 1
    result: dict[str, Any] = {
        "float32_nodes": dict(sorted(wide.items())),
        "float16_nodes": dict(sorted(narrow.items())),
        "casts": sum(node.op_type == "Cast" for node in half.graph.node),
        "inputs_and_outputs_float32": all(
            value.type.tensor_type.elem_type != onnx.TensorProto.FLOAT16
            for value in (*half.graph.input, *half.graph.output)
        ),
    }
    for name, graph in (("device", rounding_shown(half)), ("onnxruntime_cpu", half)):
        try:
            session = open_session(graph)
            check = judged_rms(file, runner(session), found, 1.0, lengths=file != VOCODER_FILE)
            result[name] = {"relative_rms": float(f"{check.error / check.scale:.3g}"), "on": check.inputs}
        except MkcError as error:
            result[name] = str(error)
        except Exception as error:  # ONNX Runtime refuses graphs with errors of its own
            result[name] = " ".join(str(error).split())[:200]
    return result


if __name__ == "__main__":
    main()
