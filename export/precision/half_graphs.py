"""Writes the graphs in half precision, each judged against float64."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import numpy as np
import onnx

from mkc_fast.export.graphs.files import open_session, save_graph
from mkc_fast.export.precision.half import POLICIES, half_file, measured_peaks, rounding_shown, to_half
from mkc_fast.export.precision.judging import graph_references, judged_rms, nearness, runner
from mkc_fast.names import CONFORMER_FILE, VOCODER_FILE, WAVLM_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mkc_fast.engine.artifacts import GraphCheck, ModelInfo
    from mkc_fast.export.precision.judging import Reference

# The largest relative RMS error that passes: ten times what rounding does to random weights of full size (3e-3, see
# benchmarks/precision.py), and 30 dB below the signal.
TOLERANCE = 3e-2


def write_half_graphs(
    source: Path,
    out: Path,
    info: ModelInfo,
    say: Callable[[str], None],
    *,
    found: Mapping[str, Sequence[Reference]] | None = None,
) -> dict[str, GraphCheck]:
    """Write the float32 graphs of ``source`` in half precision (``wavlm.fp16.onnx`` and so on) into ``out``.

    The largest values are measured on speech, also loud speech. What float16 cannot hold stays float32 (see
    ``mkc_fast.export.precision.half``). Each graph is then judged on the inputs of the pass, once with every rounding
    that a device makes and once as ONNX Runtime on a CPU runs it.

    Args:
        source: Holds the float32 graphs.
        out: Where to write.
        info: Of the model.
        say: Called with a line as each step begins.
        found: What the graphs are judged by; default: what the float32 graphs make of the same inputs.

    Returns:
        How far each file is from float64; it is written in any case.

    Raises:
        MkcError: A graph cannot be converted, or gives values that are not finite.
    """
    found = graph_references(source, info) if found is None else found
    checks = {}
    for file in (WAVLM_FILE, CONFORMER_FILE, VOCODER_FILE):
        name, lengths = half_file(file), file != VOCODER_FILE
        say(f"{name}: converting and judging against float64")
        model = onnx.load(source / file)
        half = to_half(model, POLICIES[file], measured_peaks(model, *longest_inputs(found[file], lengths=lengths)))
        del model
        for node, why in half.outgrown.items():
            say(f"{name}: {node} stays float32: {why}")
        shown = judged_rms(
            name, runner(open_session(rounding_shown(half.model))), found[file], TOLERANCE, lengths=lengths
        )
        save_graph(half.model, out / name)
        del half
        read = judged_rms(name, runner(open_session(out / name)), found[file], TOLERANCE, lengths=lengths)
        checks[name] = max(shown, read, key=nearness)
        gc.collect()
    return checks


def longest_inputs(found: Sequence[Reference], *, lengths: bool) -> list[dict[str, NDArray[np.generic]]]:
    """The longest utterance of each kind of input of the pass, as a graph's inputs."""
    inputs = []
    for probe in (reference.probe for reference in found if reference.probe.of_pass):
        row = max(probe.rows, key=len)
        given: dict[str, NDArray[np.generic]] = {"waveform" if row.ndim == 1 else "features": row[None]}
        inputs.append({**given, "lengths": np.array([len(row)], np.int64)} if lengths else given)
    return inputs
