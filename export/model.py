"""Turns the published checkpoints into ``model/``: three ONNX graphs, checked against PyTorch before they are kept."""

from __future__ import annotations

import gc
import logging
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from torch import nn

from mkc_fast import CheckpointError, MkcError
from mkc_fast.engine.artifacts import (
    CONFORMER_FILE,
    CPU_VOCODER_FILE,
    NATIVE_SUFFIX,
    PIECE_REACH,
    VOCODER_FILE,
    WAVLM_FILE,
    ModelInfo,
    check_info,
    graph_metadata,
    model_contents,
    write_info,
)
from mkc_fast.engine.cpu_sessions import CPU_GRAPH_FILES
from mkc_fast.engine.digests import remember
from mkc_fast.engine.files import sha256_of, whole_directory
from mkc_fast.engine.native import native_file, native_library, register
from mkc_fast.engine.prepared import prepared_graph
from mkc_fast.engine.providers import GRAPH_FILES, default_cache
from mkc_fast.engine.windows import pieces
from mkc_fast.export.checkpoints import load_voice, load_wavlm
from mkc_fast.export.conformer import Conformer
from mkc_fast.export.half import (
    MAX_EMBEDDED_BYTES,
    POLICIES,
    half_file,
    measured_peaks,
    open_session,
    rounding_shown,
    save_graph,
    to_half,
)
from mkc_fast.export.hifigan import HifiGan, reach_frames
from mkc_fast.export.hifigan_cpu import CpuHifiGan, fits, piece_reach
from mkc_fast.export.int8 import write_int8_graphs
from mkc_fast.export.native import write_conformer, write_hifigan, write_wavlm
from mkc_fast.export.wavlm import WavLM
from mkc_fast.onnx_runtime import ort

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from os import PathLike

# 20 has Gelu and LayerNormalization as operators of their own, and TensorRT 10 reads it.
OPSET = 20
_MAX_EMBEDDED_BYTES = MAX_EMBEDDED_BYTES
# Of the CPU's vocoder when it is checked; the longest input of the check is long enough for so many.
_PIECES = 3
# Largest difference from PyTorch that is rounding, as a share of the largest value (at least 1).
_TOLERANCE = 1e-4
# Relative RMS error of a half-precision graph past which something is wrong in it: ten times what rounding makes of
# full-size random weights (3e-3, see benchmarks/precision.py), and 30 dB below the signal.
_HALF_TOLERANCE = 3e-2


@dataclass(frozen=True)
class _Graph:
    """A module to export, with the names of its inputs, its output and their axes, and what its metadata says."""

    file: str
    module: nn.Module
    inputs: dict[str, tuple[str, ...]]  # name → names of its axes; "" is a fixed axis
    output: str
    output_axes: tuple[str, ...]
    metadata: dict[str, int] = field(default_factory=dict)


def export_model(
    wavlm_ckpt: str | PathLike[str],
    ckpt: str | PathLike[str],
    out: str | PathLike[str],
    hifi_config: str | PathLike[str] | None = None,
    layer: int = 6,
    *,
    half: bool = False,
    int8: bool = False,
    overwrite: bool = False,
    progress: Callable[[str], None] | None = None,
) -> ModelInfo:
    """Export WavLM up to ``layer``, the conformer and the vocoder as ONNX graphs with standard operators only.

    Every graph is run against PyTorch on several lengths and batches, one of the shortest allowed, and on a padded
    batch against its utterances alone; nothing is written unless they agree.

    Args:
        wavlm_ckpt: WavLM checkpoint, ``{"cfg": dict, "model": state_dict}``.
        ckpt: Conformer + vocoder checkpoint, or a vocoder alone (``{"generator": state_dict}``).
        out: Directory to make. It must not be there, or be empty, unless ``overwrite``.
        hifi_config: JSON file with the vocoder's sizes, where the checkpoint's own are missing.
        layer: WavLM transformer layer whose output the k-means models were trained on, from 1.
        half: Also write each graph in half precision, checked against the float32 one (``write_half_graphs``).
        int8: Also write WavLM and the conformer with linear layers in 8 bits, for CPUs (``write_int8_graphs``).
        overwrite: Replace ``out``, if it holds an exported model and nothing else, none of the sources.
        progress: Called with a line of text as each step begins.

    Returns:
        What ``model.json`` says.

    Raises:
        CheckpointError: A checkpoint is missing, damaged, hostile or inconsistent, or a graph does not match PyTorch.
        OutputError: ``out`` cannot be written.
    """
    wavlm_path, voice_path, out_path = Path(wavlm_ckpt), Path(ckpt), Path(out)
    say = progress or (lambda _: None)
    config = None if hifi_config is None else Path(hifi_config)
    replaces = model_contents(wavlm_path, voice_path, config) if overwrite else None
    with whole_directory(out_path, replaces=replaces) as directory, torch.no_grad():
        say("reading checkpoints")
        wavlm, voice = (
            load_wavlm(wavlm_path),
            load_voice(voice_path, config),
        )
        if wavlm.config.dim != voice.conformer.dim:
            raise CheckpointError(
                f"{voice_path}: takes {voice.conformer.dim} dimensions, {wavlm_path} gives {wavlm.config.dim}"
            )
        if wavlm.config.hop != voice.hifigan.hop:
            raise CheckpointError(
                f"{voice_path}: makes {voice.hifigan.hop} samples a frame, {wavlm_path} takes {wavlm.config.hop}"
            )
        info = ModelInfo(
            sample_rate=voice.hifigan.sample_rate,
            hop=wavlm.config.hop,
            min_samples=wavlm.config.min_samples,
            dim=wavlm.config.dim,
            layer=layer,
            precision="fp32",
            conformer_layers=voice.conformer.num_layers,
            vocoder_reach=reach_frames(voice.hifigan),
            sources={"wavlm": sha256_of(wavlm_path), "ckpt": sha256_of(voice_path)},
        )
        check_info(voice_path, info)
        # One after the other, each built, written, checked and let go before the next: memory is that of the largest.
        say(f"WavLM, layers 1 to {layer} of {wavlm.config.num_layers}")
        _export(directory, _wavlm_graph(WavLM(wavlm_path, wavlm, layer)), info, say, write_wavlm)
        del wavlm
        say(f"conformer, {voice.conformer.num_layers} layers")
        _export(directory, _conformer_graph(Conformer(voice_path, voice)), info, say, write_conformer)
        voice.conformer_weights.clear()
        say("vocoder")
        generator = HifiGan(voice_path, voice)
        _export(directory, _vocoder_graph(generator), info, say, write_hifigan)
        if fits(generator):
            say("vocoder, as a CPU takes it")
            _export(directory, _cpu_vocoder_graph(generator, piece_reach(voice.hifigan)), info, say)
        del voice, generator
        if half:
            write_half_graphs(directory, directory, info, say)
        if int8:
            write_int8_graphs(directory, directory, info, say)
        info = write_info(directory, info)
    remember(out_path, info.files, default_cache())
    for file, plain in zip(CPU_GRAPH_FILES, GRAPH_FILES, strict=True):
        if not (out_path / native_file(plain)).is_file():
            say(f"{file}: preparing it for this CPU")
            prepared_graph(out_path / file, default_cache())
    return info


def _wavlm_graph(module: WavLM) -> _Graph:
    inputs = {"waveform": ("batch", "samples"), "lengths": ("batch",)}
    return _Graph(WAVLM_FILE, module, inputs, "features", ("batch", "frames", ""))


def _conformer_graph(module: Conformer) -> _Graph:
    inputs = {"features": ("batch", "frames", ""), "lengths": ("batch",)}
    return _Graph(CONFORMER_FILE, module, inputs, "restored", ("batch", "frames", ""))


def _vocoder_graph(module: HifiGan) -> _Graph:
    return _Graph(VOCODER_FILE, module, {"features": ("batch", "frames", "")}, "waveform", ("batch", "samples"))


def _cpu_vocoder_graph(generator: HifiGan, reach: int) -> _Graph:
    inputs = {"features": ("batch", "frames", ""), "pieces": ("pieces", "width"), "kept": ("frames",)}
    module = CpuHifiGan(generator)
    return _Graph(CPU_VOCODER_FILE, module, inputs, "waveform", ("batch", "samples"), {PIECE_REACH: reach})


def _export(
    directory: Path,
    graph: _Graph,
    info: ModelInfo,
    say: Callable[[str], None],
    write_native: Callable[[Path, Any], bool] | None = None,
) -> None:
    """Write a graph and, where the native operators are here and take it, the one of them, each checked."""
    path = directory / graph.file
    graph.module.eval()
    _write_graph(path, graph, info)
    say(f"{graph.file}: checking against PyTorch")
    _check_graph(path, graph, info)
    gc.collect()
    native = directory / native_file(graph.file)
    if write_native is not None and native_library() is not None and write_native(native, graph.module):
        _describe(native, info)
        say(f"{native.name}: checking against PyTorch")
        _check_graph(native, graph, info)
        gc.collect()


def _write_graph(path: Path, graph: _Graph, info: ModelInfo) -> None:
    # Sizes other than 1 and different from each other, so that none is taken for a constant.
    example = _inputs(graph, info, [info.min_samples + 13 * info.hop, info.min_samples + 7 * info.hop])
    dynamic = torch.export.Dim.DYNAMIC
    shapes = tuple({axis: dynamic for axis, name in enumerate(axes) if name} for axes in graph.inputs.values())
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            graph.module,
            tuple(torch.from_numpy(value) for value in example.values()),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(graph.inputs),
            output_names=[graph.output],
            dynamic_shapes=shapes,
            verbose=False,
        )
    assert program is not None
    size = sum(value.numel() * value.element_size() for value in graph.module.state_dict().values())
    if size > _MAX_EMBEDDED_BYTES:
        program.save(path, external_data=True)
        model = onnx.load(path, load_external_data=False)
    else:
        model = program.model_proto
    _tidy(model, graph)
    onnx.helper.set_model_props(
        model, {**graph_metadata(info), **{name: str(value) for name, value in graph.metadata.items()}}
    )
    onnx.save(model, path)


def _describe(path: Path, info: ModelInfo) -> None:
    """Put the model's facts into the metadata of a graph whose weights lie beside it."""
    model = onnx.load(path, load_external_data=False)
    onnx.helper.set_model_props(model, graph_metadata(info))
    onnx.save(model, path)


def _tidy(model: onnx.ModelProto, graph: _Graph) -> None:
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


def _inputs(graph: _Graph, info: ModelInfo, lengths: Sequence[int]) -> dict[str, np.ndarray]:
    """Noise of these lengths (in samples) as the graph's inputs, padded with more noise, so that leaks would show."""
    rng = np.random.default_rng(len(lengths) * 7919 + sum(lengths))
    if "waveform" in graph.inputs:
        values: dict[str, np.ndarray] = {
            "waveform": rng.standard_normal((len(lengths), max(lengths)), np.float32) * np.float32(0.1)
        }
        counts = list(lengths)
    else:
        counts = [info.frames(length) for length in lengths]
        values = {"features": rng.standard_normal((len(lengths), max(counts), info.dim), np.float32)}
    if "lengths" in graph.inputs:
        values["lengths"] = np.array(counts, np.int64)
    if "pieces" in graph.inputs:
        values["pieces"], values["kept"] = pieces(max(counts), _PIECES, graph.metadata[PIECE_REACH])
    return values


def _check_graph(path: Path, graph: _Graph, info: ModelInfo) -> None:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # No arena: it would keep the largest buffers of every length tried.
    options.enable_cpu_mem_arena = False
    if path.name.endswith(NATIVE_SUFFIX):
        register(options)
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    shortest, hop = info.min_samples, info.hop
    batches = [
        [shortest],
        [shortest + hop - 1],
        [shortest + 50 * hop + 11],
        [shortest, shortest + 20 * hop + 5, shortest + 3 * hop],
    ]
    for lengths in batches:
        inputs = _inputs(graph, info, lengths)
        (found,) = session.run([graph.output], inputs)
        if "lengths" not in inputs:
            # The graph in pieces, too, against the module that knows of none.
            module = graph.module.generator if isinstance(graph.module, CpuHifiGan) else graph.module
            _compare(path, found, module(torch.from_numpy(inputs["features"])).numpy(), lengths)
            continue
        name = next(iter(inputs))
        for row, count in enumerate(inputs["lengths"].tolist()):
            alone = torch.from_numpy(inputs[name][row : row + 1, :count])
            expected = graph.module(alone, torch.tensor([count])).numpy()
            _compare(path, found[row : row + 1, : expected.shape[1]], expected, lengths)


def _compare(path: Path, found: np.ndarray, expected: np.ndarray, lengths: Sequence[int]) -> None:
    if found.shape != expected.shape or not np.isfinite(expected).all():
        raise CheckpointError(
            f"{path.name}: gives {found.shape}, or values that are not finite, for lengths {list(lengths)}"
        )
    error, scale = float(np.abs(found - expected).max()), max(1.0, float(np.abs(expected).max()))
    if not error <= _TOLERANCE * scale:
        raise MkcError(
            f"{path.name}: differs from PyTorch by {error:.2g} (largest value {scale:.2g}) for lengths {list(lengths)}"
        )


def write_half_graphs(source: Path, out: Path, info: ModelInfo, say: Callable[[str], None]) -> None:
    """Write the float32 graphs of ``source`` in half precision (``wavlm.fp16.onnx`` and so on) into ``out``.

    What float16 cannot hold is measured on a loud synthetic voice, passed from graph to graph, and stays float32 (see
    ``export.half``). Then each graph is run on a padded batch of voice, of quiet noise and of the shortest utterance,
    with every rounding that a device would make, and as ONNX Runtime reads it, and compared with the float32 graph.

    Raises:
        MkcError: A graph cannot be converted, gives values that are not finite, or is too far from float32.
    """
    lengths = [info.min_samples + 100 * info.hop + 7, info.min_samples, info.min_samples + 40 * info.hop]
    waveforms = np.zeros((3, lengths[0]), np.float32)
    waveforms[0] = _voice(lengths[0], info.sample_rate)
    waveforms[1:] = np.random.default_rng(0).standard_normal((2, lengths[0]), np.float32) * np.float32(0.003)
    counts = [info.frames(length) for length in lengths]
    values, sizes = waveforms, lengths
    graphs = ((WAVLM_FILE, "waveform", "features"), (CONFORMER_FILE, "features", "restored"))
    for file, given, made in (*graphs, (VOCODER_FILE, "features", "waveform")):
        say(f"{half_file(file)}: converting and checking against float32")
        inputs, alone = {given: values}, {given: values[:1]}
        if file != VOCODER_FILE:
            inputs["lengths"], alone["lengths"] = np.array(sizes, np.int64), np.array(sizes[:1], np.int64)
        expected = open_session(source / file).run([made], inputs)[0]
        model = onnx.load(source / file)
        half = to_half(model, POLICIES[file], measured_peaks(model, alone))
        del model
        for node, why in half.outgrown.items():
            say(f"{half_file(file)}: {node} stays float32: {why}")
        kept = counts if file != VOCODER_FILE else [expected.shape[1]]
        _compare_half(file, open_session(rounding_shown(half.model)).run([made], inputs)[0], expected, kept)
        save_graph(half.model, out / half_file(file))
        del half
        _compare_half(file, open_session(out / half_file(file)).run([made], inputs)[0], expected, kept)
        values, sizes = expected, counts
        if file == CONFORMER_FILE:
            values = expected[:1]  # the vocoder takes one length
        gc.collect()


def _voice(samples: int, rate: int) -> np.ndarray:
    """Something like a loud voice: harmonics of a gliding pitch under three formants, in syllables."""
    seconds = np.arange(samples) / rate
    pitch = 120 + 30 * np.sin(2 * np.pi * 0.7 * seconds)
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    sound = np.zeros(samples)
    for harmonic in range(1, 30):
        formants = np.exp(-(((harmonic * 120 - np.array([500, 1500, 2500])) / 150) ** 2)).sum()
        sound += (0.02 + formants) * np.sin(harmonic * phase + harmonic**2)
    sound *= 0.5 - 0.5 * np.cos(2 * np.pi * 4 * seconds)
    loud: np.ndarray = (0.9 * sound / np.abs(sound).max()).astype(np.float32)
    return loud


def _compare_half(file: str, found: np.ndarray, expected: np.ndarray, counts: Sequence[int]) -> None:
    for row, count in enumerate(counts):
        one, other = found[row, :count], expected[row, :count]
        if not np.isfinite(one).all():
            raise MkcError(f"{half_file(file)}: gives values that are not finite; export without half precision")
        error = float(np.linalg.norm(one - other) / max(float(np.linalg.norm(other)), 1e-6))
        if not error <= _HALF_TOLERANCE:
            raise MkcError(
                f"{half_file(file)}: differs from float32 by {error:.2g} of its RMS, more than {_HALF_TOLERANCE:g}; "
                "export without half precision"
            )
