"""Eight-bit integers: the large linear layers of WavLM and the conformer, for CPUs, checked against float32."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

import numpy as np
import onnx

from mkc_fast import MkcError
from mkc_fast.engine.artifacts import CONFORMER_FILE, WAVLM_FILE, ModelInfo
from mkc_fast.export.half import MAX_EMBEDDED_BYTES, open_session
from mkc_fast.onnx_runtime import quantization_tool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

INT8_GRAPHS = (WAVLM_FILE, CONFORMER_FILE)
# Smaller layers, such as WavLM's gates, take no time worth an error.
_LEAST_WEIGHTS = 1 << 16
# Relative RMS error past which something is wrong: some three times what full-size random weights have
# (benchmarks/results/int8.json).
_TOLERANCE = 0.3


def int8_file(name: str) -> str:
    """``wavlm.onnx`` → ``wavlm.int8.onnx``."""
    return name.removesuffix(".onnx") + ".int8.onnx"


def write_int8_graphs(
    source: Path, out: Path, info: ModelInfo, say: Callable[[str], None], *, least_weights: int = _LEAST_WEIGHTS
) -> None:
    """Write the graphs with linear layers in 8 bits (``wavlm.int8.onnx``, ``conformer.int8.onnx``) into ``out``.

    A layer's weights have one scale for each output, found here; its input has one scale a run, found in that run. So
    an utterance's results depend a little on what else is in its batch; on a CPU utterances run alone. Attention's
    products, convolutions and the vocoder stay float32. ONNX Runtime's own tool does the conversion.

    Raises:
        MkcError: A graph gives values that are not finite, or is too far from float32.
    """
    tool = quantization_tool()
    rng = np.random.default_rng(0)
    samples = info.min_samples + 100 * info.hop
    values = {
        WAVLM_FILE: {"waveform": rng.standard_normal((1, samples), np.float32) * np.float32(0.1)},
        CONFORMER_FILE: {"features": rng.standard_normal((1, 101, info.dim), np.float32)},
    }
    for name in INT8_GRAPHS:
        say(f"{int8_file(name)}: converting and checking against float32")
        inputs = {**values[name], "lengths": np.array([next(iter(values[name].values())).shape[1]], np.int64)}
        (expected,) = open_session(source / name).run(None, inputs)
        graph = onnx.load(source / name)
        large = _large_products(graph, least_weights)
        if not large:
            onnx.save(graph, out / int8_file(name))  # a vocoder alone has a conformer of no layers
            continue
        del graph
        with _quietly():
            tool.quantize_dynamic(
                source / name,
                out / int8_file(name),
                nodes_to_quantize=large,
                per_channel=True,
                weight_type=tool.QuantType.QInt8,
                use_external_data_format=(source / name).stat().st_size > 4 * MAX_EMBEDDED_BYTES,
                extra_options={"MatMulConstBOnly": True},
            )
        (found,) = open_session(out / int8_file(name)).run(None, inputs)
        error = float(np.linalg.norm(found - expected) / max(float(np.linalg.norm(expected)), 1e-6))
        if not error <= _TOLERANCE:  # NaN, too
            raise MkcError(
                f"{int8_file(name)}: differs from float32 by {error:.2g} of its RMS, more than {_TOLERANCE:g}; "
                "export without 8-bit graphs"
            )


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
