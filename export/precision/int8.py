"""Eight-bit integers: the large linear layers of WavLM and the conformer, for CPUs, judged against float64."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

import numpy as np
import onnx

from mkc_fast.export.graphs.files import MAX_EMBEDDED_BYTES, open_session
from mkc_fast.export.precision.judging import graph_references, judged_rms, runner
from mkc_fast.names import CONFORMER_FILE, WAVLM_FILE
from mkc_fast.onnx_runtime import quantization_tool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from mkc_fast.engine.artifacts import GraphCheck, ModelInfo
    from mkc_fast.export.precision.judging import Reference

INT8_GRAPHS = (WAVLM_FILE, CONFORMER_FILE)
# Smaller layers, such as WavLM's gates, take no time worth an error.
_LEAST_WEIGHTS = 1 << 16
# Relative RMS error past which something is wrong: some three times what full-size random weights have
# (a run at full size).
_TOLERANCE = 0.3


def int8_file(name: str) -> str:
    """``wavlm.onnx`` → ``wavlm.int8.onnx``."""
    return name.removesuffix(".onnx") + ".int8.onnx"


def write_int8_graphs(
    source: Path,
    out: Path,
    info: ModelInfo,
    say: Callable[[str], None],
    *,
    found: Mapping[str, Sequence[Reference]] | None = None,
    least_weights: int = _LEAST_WEIGHTS,
) -> dict[str, GraphCheck]:
    """Write the graphs with linear layers in 8 bits (``wavlm.int8.onnx``, ``conformer.int8.onnx``) into ``out``.

    A layer's weights have one scale for each output, found here; its input has one scale a run, found in that run. So
    an utterance's results depend a little on what else is in its batch; on a CPU utterances run alone. Attention's
    products, convolutions and the vocoder stay float32. ONNX Runtime's own tool does the conversion.

    Args:
        source: Holds the float32 graphs.
        out: Where to write.
        info: Of the model.
        say: Called with a line as each step begins.
        found: What the graphs are judged by; default: what the float32 graphs make of the same inputs.
        least_weights: Of a layer that is worth it.

    Returns:
        How far each file is from float64 on the inputs of the pass; it is written in any case.

    Raises:
        MkcError: A graph gives values that are not finite.
    """
    tool = quantization_tool()
    found = graph_references(source, info) if found is None else found
    checks = {}
    for name in INT8_GRAPHS:
        file = int8_file(name)
        say(f"{file}: converting and judging against float64")
        graph = onnx.load(source / name)
        large = _large_products(graph, least_weights)
        if large:
            del graph
            with _quietly():
                tool.quantize_dynamic(
                    source / name,
                    out / file,
                    nodes_to_quantize=large,
                    per_channel=True,
                    weight_type=tool.QuantType.QInt8,
                    use_external_data_format=(source / name).stat().st_size > 4 * MAX_EMBEDDED_BYTES,
                    extra_options={"MatMulConstBOnly": True},
                )
        else:
            onnx.save(graph, out / file)  # a vocoder alone has a conformer of no layers
        # Alone only: what else is in a batch decides how an utterance is rounded.
        checks[file] = judged_rms(file, runner(open_session(out / file)), found[name], _TOLERANCE, lengths=False)
    return checks


def _large_products(graph: onnx.ModelProto, least_weights: int) -> list[str]:
    """Names of the matrix products with constant weights of at least so many values."""
    sizes = {weight.name: int(np.prod(weight.dims)) for weight in graph.graph.initializer}
    return [
        node.name
        for node in graph.graph.node
        if node.op_type == "MatMul" and sizes.get(node.input[1], 0) >= least_weights
    ]


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the advice of ONNX Runtime's tool, which goes to the root logger."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
