"""Modules → ONNX graphs of standard operators, through PyTorch's exporter."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx
import torch
from torch import nn

from mkc_fast.engine.artifacts import (
    CPU_VOCODER_FILE,
    PIECE_REACH,
    ModelInfo,
    graph_metadata,
)
from mkc_fast.engine.windows import pieces
from mkc_fast.export.graphs.files import MAX_EMBEDDED_BYTES
from mkc_fast.export.networks.hifigan_cpu import CpuHifiGan
from mkc_fast.names import CONFORMER_FILE, VOCODER_FILE, WAVLM_FILE

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from mkc_fast.export.networks.conformer import Conformer
    from mkc_fast.export.networks.hifigan import HifiGan
    from mkc_fast.export.networks.wavlm import WavLM

# 20 has Gelu and LayerNormalization as operators of their own, and TensorRT 10 reads it.
OPSET = 20


@dataclass(frozen=True)
class ModuleGraph:
    """A module to export, with the names of its inputs, its output and their axes, and what its metadata says."""

    file: str
    module: nn.Module
    inputs: dict[str, tuple[str, ...]]  # name → names of its axes; "" is a fixed axis
    output: str
    output_axes: tuple[str, ...]
    metadata: dict[str, int] = field(default_factory=dict)


def wavlm_graph(module: WavLM) -> ModuleGraph:
    """WavLM as ``wavlm.onnx``: padded batches of waveforms → features."""
    inputs = {"waveform": ("batch", "samples"), "lengths": ("batch",)}
    return ModuleGraph(WAVLM_FILE, module, inputs, "features", ("batch", "frames", ""))


def conformer_graph(module: Conformer) -> ModuleGraph:
    """The conformer as ``conformer.onnx``: padded batches of features → restored features."""
    inputs = {"features": ("batch", "frames", ""), "lengths": ("batch",)}
    return ModuleGraph(CONFORMER_FILE, module, inputs, "restored", ("batch", "frames", ""))


def vocoder_graph(module: HifiGan) -> ModuleGraph:
    """The vocoder as ``vocoder.onnx``: features → waveforms."""
    return ModuleGraph(VOCODER_FILE, module, {"features": ("batch", "frames", "")}, "waveform", ("batch", "samples"))


def cpu_vocoder_graph(generator: HifiGan, reach: int) -> ModuleGraph:
    """The vocoder in pieces, as CPUs run it; ``reach`` is that of a piece, in frames."""
    inputs = {"features": ("batch", "frames", ""), "pieces": ("pieces", "width"), "kept": ("frames",)}
    module = CpuHifiGan(generator)
    return ModuleGraph(CPU_VOCODER_FILE, module, inputs, "waveform", ("batch", "samples"), {PIECE_REACH: reach})


def write_graph(path: Path, graph: ModuleGraph, info: ModelInfo) -> None:
    """Export a module and write its graph, with what ``info`` says as metadata."""
    inputs = _example(graph, info)
    dynamic = torch.export.Dim.DYNAMIC
    shapes = tuple({axis: dynamic for axis, name in enumerate(axes) if name} for axes in graph.inputs.values())
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            graph.module,
            tuple(torch.from_numpy(value) for value in inputs),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(graph.inputs),
            output_names=[graph.output],
            dynamic_shapes=shapes,
            verbose=False,
        )
    assert program is not None
    size = sum(value.numel() * value.element_size() for value in graph.module.state_dict().values())
    if size > MAX_EMBEDDED_BYTES:
        program.save(path, external_data=True)
        model = onnx.load(path, load_external_data=False)
    else:
        model = program.model_proto
    _tidy(model, graph)
    onnx.helper.set_model_props(
        model, {**graph_metadata(info), **{name: str(value) for name, value in graph.metadata.items()}}
    )
    onnx.save(model, path)


def add_metadata(path: Path, info: ModelInfo) -> None:
    """Add what ``info`` says to the metadata of a graph whose weights lie beside it."""
    model = onnx.load(path, load_external_data=False)
    onnx.helper.set_model_props(model, graph_metadata(info))
    onnx.save(model, path)


def _example(graph: ModuleGraph, info: ModelInfo) -> tuple[NDArray[np.generic], ...]:
    """Noise to trace a module with. Sizes are not 1 and differ, so that none is taken for a constant."""
    samples = [info.min_samples + 13 * info.hop, info.min_samples + 7 * info.hop]
    waveforms = "waveform" in graph.inputs
    counts = samples if waveforms else [info.frames(length) for length in samples]
    rows = (len(counts), max(counts)) if waveforms else (len(counts), max(counts), info.dim)
    inputs: list[NDArray[np.generic]] = [np.random.default_rng(0).standard_normal(rows, np.float32)]
    if "lengths" in graph.inputs:
        inputs.append(np.array(counts, np.int64))
    if "pieces" in graph.inputs:
        inputs += pieces(max(counts), 3, graph.metadata[PIECE_REACH])
    return tuple(inputs)


def _tidy(model: onnx.ModelProto, graph: ModuleGraph) -> None:
    """Name the dynamic axes and drop what only the exporter needed (traces, shapes of inner values)."""
    del model.graph.value_info[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    axes = {**graph.inputs, graph.output: graph.output_axes}
    for value in (*model.graph.input, *model.graph.output):
        for dimension, name in zip(value.type.tensor_type.shape.dim, axes[value.name], strict=True):
            if name:
                dimension.dim_param = name
    model.producer_name, model.producer_version = "mkc-fast", ""
