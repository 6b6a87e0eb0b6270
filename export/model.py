"""Turns the published checkpoints into ``model/``: three ONNX graphs, judged against float64 before they are kept."""

from __future__ import annotations

import dataclasses
import gc
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mkc_fast.engine.artifacts import (
    CHECK_LEFT_OUT,
    CHECK_PASSED,
    CPU_VOCODER_FILE,
    PIECE_REACH,
    ModelInfo,
    check_info,
    model_contents,
    native_file,
    write_info,
)
from mkc_fast.engine.atomic_files import atomic_directory, sha256_of
from mkc_fast.engine.cache_folder import cache_folder
from mkc_fast.engine.digests import remember
from mkc_fast.engine.sessions.cpu import CPU_GRAPH_FILES
from mkc_fast.engine.sessions.prepared import prepared_graph
from mkc_fast.errors import ArtifactError, CheckpointError, InexactError
from mkc_fast.export.checkpoints.published import VoiceCheckpoint, WavLMCheckpoint, load_voice, load_wavlm
from mkc_fast.export.cuda_forms import cuda_forms, cuda_provider_is_here
from mkc_fast.export.graphs.files import open_session
from mkc_fast.export.graphs.native import write_conformer, write_hifigan, write_wavlm
from mkc_fast.export.graphs.torch_export import (
    ModuleGraph,
    add_metadata,
    conformer_graph,
    cpu_vocoder_graph,
    vocoder_graph,
    wavlm_graph,
    write_graph,
)
from mkc_fast.export.networks.conformer import Conformer
from mkc_fast.export.networks.hifigan import HifiGan, reach_frames
from mkc_fast.export.networks.hifigan_cpu import fits, piece_reach
from mkc_fast.export.networks.wavlm import WavLM
from mkc_fast.export.precision.half_graphs import write_half_graphs
from mkc_fast.export.precision.int8 import write_int8_graphs
from mkc_fast.export.precision.judging import (
    judged,
    judged_rms,
    next_rows,
    numbers,
    pass_rows,
    references,
    runner,
)
from mkc_fast.export.precision.probes import feature_probes, quantized, waveform_probes
from mkc_fast.kernels.cpu.loader import native_library
from mkc_fast.names import CONFORMER_FILE, FP32, GRAPH_FILES, INT8, INT16, VOCODER_FILE, WAVLM_FILE

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike

    from mkc_fast.engine.artifacts import GraphCheck
    from mkc_fast.export.precision.judging import Reference


# Of the native graphs' products.
_BITS = {FP32: 32, INT16: 16, INT8: 8}
# Relative RMS error that passes: at least twice what whole numbers do to random weights of full size, which is 2e-3 to
# 4e-3 in 16 bits and 2e-2 to 6e-2 in 8.
_TOLERANCES = {INT16: 1e-2, INT8: 0.3}


@dataclass
class _Export:
    """The state of an export: where it writes, the references of each graph, and the result of each check."""

    directory: Path
    info: ModelInfo
    say: Callable[[str], None]
    allow_inexact: bool
    cuda: bool
    # Of native operators in whole numbers, by the graph's file.
    forms: dict[str, list[str]]
    found: dict[str, list[Reference]] = field(default_factory=dict)
    checks: dict[str, GraphCheck] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def accept(self, file: str, check: GraphCheck, *, optional: bool = False) -> None:
        """Keep a graph that passed its check. Otherwise leave it out if it is optional, else end the export.

        Raises:
            InexactError: The graph is not optional, and its error exceeds its bound.
        """
        self.checks[file] = check
        if check.status == CHECK_PASSED:
            return
        if self.allow_inexact:
            self.warnings.append(f"{numbers(file, check)}; written all the same, as was asked for")
        elif optional:
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
    config: str | PathLike[str] | None = None,
    half: bool = False,
    int16: bool = False,
    int8: bool = False,
    cuda: bool | None = None,
    overwrite: bool = False,
    allow_inexact: bool = False,
    cache: str | PathLike[str] | bool = True,
    progress: Callable[[str], None] | None = None,
) -> ModelInfo:
    """Export WavLM up to ``layer``, the conformer and the vocoder as ONNX graphs with standard operators only.

    Every graph is compared with the PyTorch module in float64. The bound on its error comes from the error of PyTorch's
    own float32. The inputs are speech as it passes from stage to stage, noise, quiet and loud inputs, and inputs with
    outlier channels, in several lengths, alone and padded (``mkc_fast.export.precision.judging``). An optional form of
    a graph, for some devices only, is left out if its error exceeds the bound. If that of any other graph does, nothing
    is written.

    Args:
        wavlm_ckpt: WavLM checkpoint, ``{"cfg": dict, "model": state_dict}``.
        ckpt: Conformer + vocoder checkpoint, with its sizes or as a bare state dict; or a vocoder alone
            (``{"generator": state_dict}``).
        out: Directory to make. It must not be there, or be empty, unless ``overwrite``.
        hifi_config: JSON file with the vocoder's sizes, where the checkpoint's own are missing.
        layer: WavLM transformer layer whose output the k-means models were trained on, from 1.
        config: YAML file with the conformer's sizes, for a bare state dict; without it they are the published ones.
        half: Also write each graph in half precision (``write_half_graphs``).
        int16: Also write each graph of native operators in whole numbers of 16 bits, for CPUs
            (``mkc_fast.export.graphs.packing.in_whole``).
        int8: Also write WavLM and the conformer with linear layers in 8 bits, and the rest in 16, for CPUs. Where there
            are no native operators, ONNX Runtime's own tool does it (``write_int8_graphs``), and the rest is float32.
        cuda: Also write each graph in the fused operators of ONNX Runtime's CUDA provider, in float32 and in half
            precision (``mkc_fast.export.graphs.cuda``). Default: where the ONNX Runtime installed has that provider.
        overwrite: Replace ``out`` if it holds an exported model and nothing else, and none of the sources.
        allow_inexact: Also write graphs whose error exceeds their bound; ``model.json`` and every load warn of them.
        cache: Folder that is also written into, so that the first load is quick: digests of the files and, without the
            native operators, graphs prepared for this CPU. True: the user's cache folder
            (``mkc_fast.engine.cache_folder``), where ``Anonymizer.load`` looks. False: nothing is written outside
            ``out``.
        progress: Called with a line of text as each step begins.

    Returns:
        What ``model.json`` says.

    Raises:
        CheckpointError: A checkpoint is missing, damaged, hostile or inconsistent.
        InexactError: The error of a graph exceeds its bound.
        OutputError: ``out`` cannot be written.
    """
    wavlm_path, voice_path, out_path = Path(wavlm_ckpt), Path(ckpt), Path(out)
    say = progress or (lambda _: None)
    hifi_path = None if hifi_config is None else Path(hifi_config)
    sizes_path = None if config is None else Path(config)
    replaces = model_contents(wavlm_path, voice_path, hifi_path, sizes_path) if overwrite else None
    with atomic_directory(out_path, replaces=replaces) as directory, torch.no_grad():
        say("reading checkpoints")
        wavlm, voice = _read(wavlm_path, voice_path, hifi_path, sizes_path, layer)
        info = _model_info(wavlm_path, wavlm, voice_path, voice, layer)
        # Each network is built, written, judged and released before the next, so memory is that of the largest.
        forms = _native_forms(int16=int16, int8=int8)
        work = _Export(directory, info, say, allow_inexact, cuda_provider_is_here() if cuda is None else cuda, forms)
        say(f"WavLM, layers 1 to {layer} of {wavlm.config.num_layers}")
        encoder = WavLM(wavlm_path, wavlm, layer)
        del wavlm
        found = work.found[WAVLM_FILE] = references(wavlm_path, encoder, waveform_probes(info), lengths=True)
        _write_and_judge(work, wavlm_graph(encoder), write_wavlm)
        del encoder
        say(f"conformer, {voice.conformer.num_layers} layers")
        conformer, probes = Conformer(voice_path, voice), feature_probes(quantized(next_rows(found), pass_rows(found)))
        voice.conformer_weights.clear()
        found = work.found[CONFORMER_FILE] = references(voice_path, conformer, probes, lengths=True)
        _write_and_judge(work, conformer_graph(conformer), write_conformer)
        del conformer
        say("vocoder")
        generator, probes = HifiGan(voice_path, voice), feature_probes(next_rows(found))
        found = work.found[VOCODER_FILE] = references(voice_path, generator, probes, lengths=False)
        _write_and_judge(work, vocoder_graph(generator), write_hifigan)
        if fits(generator):
            say("vocoder, as a CPU takes it")
            work.found[CPU_VOCODER_FILE] = found
            _write_and_judge(work, cpu_vocoder_graph(generator, piece_reach(voice.hifigan)), optional=True)
        del voice, generator
        for write in (write_half_graphs,) * half + (write_int8_graphs,) * (int8 and native_library() is None):
            for file, check in write(directory, directory, info, say, found=work.found).items():
                work.accept(file, check)
        info = dataclasses.replace(info, checks=work.checks, warnings=work.warnings)
        info = write_info(directory, info)
    folder = cache_folder(cache)
    if folder is not None:
        _fill_cache(folder, out_path, info, say)
    return info


def _read(
    wavlm_path: Path, voice_path: Path, hifi_config: Path | None, config: Path | None, layer: int
) -> tuple[WavLMCheckpoint, VoiceCheckpoint]:
    """Load both checkpoints and check that they fit each other."""
    wavlm = load_wavlm(wavlm_path)
    wavlm.config.check_layer(wavlm_path, layer)
    voice = load_voice(voice_path, hifi_config, config)
    if wavlm.config.dim != voice.conformer.dim:
        raise CheckpointError(
            f"{voice_path}: takes {voice.conformer.dim} dimensions, {wavlm_path} gives {wavlm.config.dim}"
        )
    if wavlm.config.hop != voice.hifigan.hop:
        raise CheckpointError(
            f"{voice_path}: makes {voice.hifigan.hop} samples a frame, {wavlm_path} takes {wavlm.config.hop}"
        )
    return wavlm, voice


def _model_info(
    wavlm_path: Path, wavlm: WavLMCheckpoint, voice_path: Path, voice: VoiceCheckpoint, layer: int
) -> ModelInfo:
    """What ``model.json`` will say of the checkpoints, checked before the work begins."""
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
    try:
        check_info(voice_path, dataclasses.replace(info, layer=1))  # _read has checked the layer
    except ArtifactError as error:
        raise CheckpointError(str(error)) from None
    return info


def _fill_cache(folder: Path, out: Path, info: ModelInfo, say: Callable[[str], None]) -> None:
    """Write what the first load would otherwise compute: digests, and graphs that ONNX Runtime optimizes at opening."""
    remember(out, info.files, folder)
    for file, plain in zip(CPU_GRAPH_FILES, GRAPH_FILES, strict=True):
        if not (out / native_file(plain)).is_file():
            say(f"{file}: preparing it for this CPU")
            prepared_graph(out / file, folder)


def _write_and_judge(
    work: _Export,
    graph: ModuleGraph,
    write_native: Callable[..., bool] | None = None,
    *,
    optional: bool = False,
) -> None:
    """Write and judge a graph and, where the native operators are here and support it, its form for them."""
    graph.module.eval()
    write_graph(work.directory / graph.file, graph, work.info)
    _judge(work, graph.file, graph, optional=optional)
    if write_native is not None and native_library() is not None:
        for form in [FP32, *work.forms[graph.file]]:
            native = native_file(graph.file, form)
            if write_native(work.directory / native, graph.module, _BITS[form]):
                add_metadata(work.directory / native, work.info)
                _judge(work, native, graph, optional=True, tolerance=_TOLERANCES.get(form))
    if work.cuda and graph.file in GRAPH_FILES:
        for file, check in cuda_forms(work.directory, graph, work.info, work.say, work.found[graph.file]):
            work.accept(file, check, optional=True)


def _native_forms(*, int16: bool, int8: bool) -> dict[str, list[str]]:
    """The forms in whole numbers that are asked for; int8 has the vocoder in 16 bits, and the others in 8."""
    both = [INT16] * int16 + [INT8] * int8
    return {WAVLM_FILE: both, CONFORMER_FILE: both, VOCODER_FILE: [INT16] * (int16 or int8)}


def _judge(work: _Export, file: str, graph: ModuleGraph, *, optional: bool, tolerance: float | None = None) -> None:
    """Judge a graph by what float32 loses or, with ``tolerance``, by its relative RMS error."""
    work.say(f"{file}: judging against float64")
    run = runner(open_session(work.directory / file), graph.metadata.get(PIECE_REACH, 0))
    found, lengths = work.found[graph.file], "lengths" in graph.inputs
    if tolerance is None:
        check = judged(file, run, found, lengths=lengths)
    else:
        check = judged_rms(file, run, found, tolerance, lengths=lengths)
    del run
    gc.collect()
    work.accept(file, check, optional=optional)
