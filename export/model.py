"""Turns the published checkpoints into ``model/``: three ONNX graphs, judged against float64 before they are kept."""

from __future__ import annotations

import dataclasses
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

from mkc_fast.engine.artifacts import (
    CHECK_LEFT_OUT,
    CHECK_PASSED,
    CPU_VOCODER_FILE,
    NATIVE_SUFFIX,
    PIECE_REACH,
    ModelInfo,
    check_info,
    graph_metadata,
    model_contents,
    native_file,
    write_info,
)
from mkc_fast.engine.atomic_files import atomic_directory, sha256_of
from mkc_fast.engine.cache_folder import default_cache
from mkc_fast.engine.digests import remember
from mkc_fast.engine.sessions.cpu import CPU_GRAPH_FILES
from mkc_fast.engine.sessions.prepared import prepared_graph
from mkc_fast.errors import ArtifactError, CheckpointError, InexactError
from mkc_fast.export.checkpoints.published import load_voice, load_wavlm
from mkc_fast.export.graphs.native import write_conformer, write_hifigan, write_wavlm
from mkc_fast.export.networks.conformer import Conformer
from mkc_fast.export.networks.hifigan import HifiGan, reach_frames
from mkc_fast.export.networks.hifigan_cpu import CpuHifiGan, fits, piece_reach
from mkc_fast.export.networks.wavlm import WavLM
from mkc_fast.export.precision.half import (
    MAX_EMBEDDED_BYTES,
    POLICIES,
    half_file,
    measured_peaks,
    open_session,
    rounding_shown,
    save_graph,
    to_half,
)
from mkc_fast.export.precision.int8 import write_int8_graphs
from mkc_fast.export.precision.judging import (
    example,
    graph_references,
    judged,
    judged_rms,
    nearness,
    next_rows,
    numbers,
    pass_rows,
    references,
    runner,
)
from mkc_fast.export.precision.probes import feature_probes, quantized, waveform_probes
from mkc_fast.kernels.cpu.loader import native_library, register
from mkc_fast.names import CONFORMER_FILE, FP32, GRAPH_FILES, VOCODER_FILE, WAVLM_FILE
from mkc_fast.onnx_runtime import ort

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from os import PathLike

    from numpy.typing import NDArray

    from mkc_fast.engine.artifacts import GraphCheck
    from mkc_fast.export.precision.judging import Reference

# 20 has Gelu and LayerNormalization as operators of their own, and TensorRT 10 reads it.
OPSET = 20
_MAX_EMBEDDED_BYTES = MAX_EMBEDDED_BYTES
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


@dataclass
class _Work:
    """An export under way: where it writes, and what has been found so far."""

    directory: Path
    info: ModelInfo
    say: Callable[[str], None]
    allow_inexact: bool
    found: dict[str, list[Reference]] = field(default_factory=dict)
    checks: dict[str, GraphCheck] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def settle(self, file: str, check: GraphCheck, *, spare: bool = False) -> None:
        """Keep a graph that has been judged, or leave it out if it is to ``spare``, or end the export.

        Raises:
            InexactError: The graph is further from float64 than passes.
        """
        self.checks[file] = check
        if check.status == CHECK_PASSED:
            return
        if self.allow_inexact:
            self.warnings.append(f"{numbers(file, check)}; written all the same, as was asked for")
        elif spare:
            self.checks[file] = dataclasses.replace(check, status=CHECK_LEFT_OUT)
            for path in (self.directory / file, self.directory / f"{file.removesuffix('.onnx')}.bin"):
                path.unlink(missing_ok=True)
            self.say(
                f"{numbers(file, check)}; it is left out, and another form of this graph runs instead; "
                "--allow-inexact keeps it"
            )
        else:
            raise InexactError(f"{numbers(file, check)}; to write it all the same: 'mkc-fast export --allow-inexact'")


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
    allow_inexact: bool = False,
    progress: Callable[[str], None] | None = None,
) -> ModelInfo:
    """Export WavLM up to ``layer``, the conformer and the vocoder as ONNX graphs with standard operators only.

    Every graph is judged against the PyTorch module in double, by what PyTorch's own float32 loses there: on speech
    as it passes from stage to stage, on noise, on quiet and loud inputs and such with outlier channels, on several
    lengths, alone and padded (``export.judging``). A form of a graph that only some devices use, and that goes past the
    bound, is left out. If any other graph does, nothing is written.

    Args:
        wavlm_ckpt: WavLM checkpoint, ``{"cfg": dict, "model": state_dict}``.
        ckpt: Conformer + vocoder checkpoint, or a vocoder alone (``{"generator": state_dict}``).
        out: Directory to make. It must not be there, or be empty, unless ``overwrite``.
        hifi_config: JSON file with the vocoder's sizes, where the checkpoint's own are missing.
        layer: WavLM transformer layer whose output the k-means models were trained on, from 1.
        half: Also write each graph in half precision (``write_half_graphs``).
        int8: Also write WavLM and the conformer with linear layers in 8 bits, for CPUs (``write_int8_graphs``).
        overwrite: Replace ``out``, if it holds an exported model and nothing else, none of the sources.
        allow_inexact: Write graphs that go past their bound all the same; ``model.json`` and every load warn of them.
        progress: Called with a line of text as each step begins.

    Returns:
        What ``model.json`` says.

    Raises:
        CheckpointError: A checkpoint is missing, damaged, hostile or inconsistent.
        InexactError: A graph is further from float64 than passes.
        OutputError: ``out`` cannot be written.
    """
    wavlm_path, voice_path, out_path = Path(wavlm_ckpt), Path(ckpt), Path(out)
    say = progress or (lambda _: None)
    config = None if hifi_config is None else Path(hifi_config)
    replaces = model_contents(wavlm_path, voice_path, config) if overwrite else None
    with atomic_directory(out_path, replaces=replaces) as directory, torch.no_grad():
        say("reading checkpoints")
        wavlm = load_wavlm(wavlm_path)
        wavlm.config.check_layer(wavlm_path, layer)
        voice = load_voice(voice_path, config)
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
            precision=FP32,
            conformer_layers=voice.conformer.num_layers,
            vocoder_reach=reach_frames(voice.hifigan),
            sources={"wavlm": sha256_of(wavlm_path), "ckpt": sha256_of(voice_path)},
        )
        _check_facts(voice_path, info)
        # One after the other, each built, written, checked and let go before the next: memory is that of the largest.
        work = _Work(directory, info, say, allow_inexact)
        say(f"WavLM, layers 1 to {layer} of {wavlm.config.num_layers}")
        encoder = WavLM(wavlm_path, wavlm, layer)
        del wavlm
        found = work.found[WAVLM_FILE] = references(wavlm_path, encoder, waveform_probes(info), lengths=True)
        _export(work, _wavlm_graph(encoder), write_wavlm)
        del encoder
        say(f"conformer, {voice.conformer.num_layers} layers")
        conformer, probes = Conformer(voice_path, voice), feature_probes(quantized(next_rows(found), pass_rows(found)))
        voice.conformer_weights.clear()
        found = work.found[CONFORMER_FILE] = references(voice_path, conformer, probes, lengths=True)
        _export(work, _conformer_graph(conformer), write_conformer)
        del conformer
        say("vocoder")
        generator, probes = HifiGan(voice_path, voice), feature_probes(next_rows(found))
        found = work.found[VOCODER_FILE] = references(voice_path, generator, probes, lengths=False)
        _export(work, _vocoder_graph(generator), write_hifigan)
        if fits(generator):
            say("vocoder, as a CPU takes it")
            work.found[CPU_VOCODER_FILE] = found
            _export(work, _cpu_vocoder_graph(generator, piece_reach(voice.hifigan)), spare=True)
        del voice, generator
        for write in (write_half_graphs,) * half + (write_int8_graphs,) * int8:
            for file, check in write(directory, directory, info, say, found=work.found).items():
                work.settle(file, check)
        info = dataclasses.replace(info, checks=work.checks, warnings=work.warnings)
        info = write_info(directory, info)
    remember(out_path, info.files, default_cache())
    for file, plain in zip(CPU_GRAPH_FILES, GRAPH_FILES, strict=True):
        if not (out_path / native_file(plain)).is_file():
            say(f"{file}: preparing it for this CPU")
            prepared_graph(out_path / file, default_cache())
    return info


def _check_facts(path: Path, info: ModelInfo) -> None:
    """Check before the work that ``model.json`` can say what the checkpoints do; the layer is checked with WavLM's."""
    try:
        check_info(path, dataclasses.replace(info, layer=1))
    except ArtifactError as error:
        raise CheckpointError(str(error)) from None


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
    work: _Work, graph: _Graph, write_native: Callable[[Path, Any], bool] | None = None, *, spare: bool = False
) -> None:
    """Write a graph and, where the native operators are here and take it, the one of them, each judged."""
    graph.module.eval()
    _write_graph(work.directory / graph.file, graph, work.info)
    _judge(work, graph.file, graph, spare=spare)
    native = native_file(graph.file)
    if write_native is None or native_library() is None:
        return
    if write_native(work.directory / native, graph.module):
        _describe(work.directory / native, work.info)
        _judge(work, native, graph, spare=True)


def _judge(work: _Work, file: str, graph: _Graph, *, spare: bool) -> None:
    work.say(f"{file}: judging against float64")
    run = runner(_open(work.directory / file), graph.metadata.get(PIECE_REACH, 0))
    check = judged(file, run, work.found[graph.file], lengths="lengths" in graph.inputs)
    del run
    gc.collect()
    work.settle(file, check, spare=spare)


def _open(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # No arena: it would keep the largest buffers of every length tried.
    options.enable_cpu_mem_arena = False
    if path.name.endswith(NATIVE_SUFFIX):
        register(options)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _write_graph(path: Path, graph: _Graph, info: ModelInfo) -> None:
    # Sizes other than 1 and different from each other, so that none is taken for a constant.
    inputs = example(list(graph.inputs), info, graph.metadata.get(PIECE_REACH, 0))
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


def write_half_graphs(
    source: Path,
    out: Path,
    info: ModelInfo,
    say: Callable[[str], None],
    *,
    found: Mapping[str, Sequence[Reference]] | None = None,
) -> dict[str, GraphCheck]:
    """Write the float32 graphs of ``source`` in half precision (``wavlm.fp16.onnx`` and so on) into ``out``.

    What float16 cannot hold is measured on speech, also loud, and stays float32 (see ``export.half``). Then each graph
    is judged on the inputs of the pass, with every rounding that a device would make, and as ONNX Runtime reads it.

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
        half = to_half(model, POLICIES[file], measured_peaks(model, *_longest(found[file], lengths=lengths)))
        del model
        for node, why in half.outgrown.items():
            say(f"{name}: {node} stays float32: {why}")
        shown = judged_rms(
            name, runner(open_session(rounding_shown(half.model))), found[file], _HALF_TOLERANCE, lengths=lengths
        )
        save_graph(half.model, out / name)
        del half
        read = judged_rms(name, runner(open_session(out / name)), found[file], _HALF_TOLERANCE, lengths=lengths)
        checks[name] = max(shown, read, key=nearness)
        gc.collect()
    return checks


def _longest(found: Sequence[Reference], *, lengths: bool) -> list[dict[str, NDArray[np.generic]]]:
    """The longest utterance of each kind of input of the pass, as a graph's inputs."""
    inputs = []
    for probe in (reference.probe for reference in found if reference.probe.of_pass):
        row = max(probe.rows, key=len)
        given: dict[str, NDArray[np.generic]] = {"waveform" if row.ndim == 1 else "features": row[None]}
        inputs.append({**given, "lengths": np.array([len(row)], np.int64)} if lengths else given)
    return inputs
