"""Writes the graphs for CUDA, in float32 and in half precision, and judges each as it was written."""

from __future__ import annotations

import contextlib
import gc
from typing import TYPE_CHECKING, Any, cast

import onnx

from mkc_fast.engine.artifacts import CHECK_PASSED, cuda_file, graph_metadata
from mkc_fast.export.graphs.cuda import cuda_conformer, cuda_vocoder, cuda_wavlm, for_cpu
from mkc_fast.export.graphs.files import open_session, save_with_weights
from mkc_fast.export.graphs.residual_stages import cut_vocoder
from mkc_fast.export.precision.half import CUDA_POLICIES, measured_peaks, rounding_shown, to_half
from mkc_fast.export.precision.half_graphs import TOLERANCE, longest_inputs
from mkc_fast.export.precision.judging import judged, judged_rms, runner
from mkc_fast.names import CONFORMER_FILE, VOCODER_FILE, WAVLM_FILE
from mkc_fast.onnx_runtime import ort

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from mkc_fast.engine.artifacts import GraphCheck, ModelInfo
    from mkc_fast.export.graphs.torch_export import ModuleGraph
    from mkc_fast.export.precision.judging import Reference


def cuda_provider_is_here() -> bool:
    """Whether the ONNX Runtime installed is one for CUDA; a GPU is not needed to export for it."""
    return "CUDAExecutionProvider" in ort.get_available_providers()


def cuda_forms(
    out: Path, graph: ModuleGraph, info: ModelInfo, say: Callable[[str], None], found: Sequence[Reference]
) -> Iterator[tuple[str, GraphCheck]]:
    """Write the forms for CUDA of a graph into ``out``; yield each file with its check.

    The CPU judges them: ONNX Runtime has their operators there, too, or what they are made of. In half precision every
    rounding to float16 that a device makes is a node of its own (``rounding_shown``).

    Raises:
        MkcError: A form gives values that are not finite.
    """
    lengths = "lengths" in graph.inputs
    model = _built(graph.file, graph.module, half=False)
    if model is None:
        return
    file = cuda_file(graph.file, half=False)
    say(f"{file}: judging against float64")
    onnx.helper.set_model_props(model, graph_metadata(info))
    save_with_weights(model, out / file)
    del model
    yield file, judged(file, runner(open_session(out / file)), found, lengths=lengths)
    gc.collect()

    file = cuda_file(graph.file, half=True)
    say(f"{file}: converting and judging against float64")
    check: GraphCheck | None = None
    for apart in (True, False) if graph.file == CONFORMER_FILE else (False,):
        model, check = _write_half(out / file, graph, info, say, found, apart=apart)
        if check.status == CHECK_PASSED:
            break
    assert check is not None
    if graph.file == VOCODER_FILE and check.status == CHECK_PASSED:
        # The same operations and weights in parts: there is nothing more to judge.
        with contextlib.suppress(ValueError):  # the kernel of the residual blocks takes none of this vocoder's
            cut_vocoder(model).write(out)
    del model
    yield file, check
    gc.collect()


def _built(file: str, module: Any, *, half: bool, apart: bool = False) -> onnx.ModelProto | None:
    if file == WAVLM_FILE:
        return cuda_wavlm(module, half=half)
    if file == CONFORMER_FILE:
        return cuda_conformer(module, half=half, apart=apart)
    return cuda_vocoder(module)


def _write_half(
    path: Path,
    graph: ModuleGraph,
    info: ModelInfo,
    say: Callable[[str], None],
    found: Sequence[Reference],
    *,
    apart: bool,
) -> tuple[onnx.ModelProto, GraphCheck]:
    lengths = "lengths" in graph.inputs
    model = cast("onnx.ModelProto", _built(graph.file, graph.module, half=True, apart=apart))
    peaks = measured_peaks(for_cpu(model), *longest_inputs(found, lengths=lengths))
    half = to_half(model, CUDA_POLICIES[graph.file], peaks)
    del model
    for node, why in half.outgrown.items():
        say(f"{path.name}: {node} stays float32: {why}")
    onnx.helper.set_model_props(half.model, graph_metadata(info))
    save_with_weights(half.model, path)
    shown = rounding_shown(for_cpu(half.model))
    return half.model, judged_rms(path.name, runner(open_session(shown)), found, TOLERANCE, lengths=lengths)
