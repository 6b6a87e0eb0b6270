"""Opens the exported graphs as ONNX Runtime sessions on a device, in a precision, and checks what they run on."""

from __future__ import annotations

import contextlib
import shutil
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from mkc_fast.engine.artifacts import read_model_info, weights_file
from mkc_fast.engine.atomic_files import atomic_directory, discard, holds_regular_files, locked
from mkc_fast.engine.cache_folder import default_cache
from mkc_fast.engine.devices import cuda_index, driver
from mkc_fast.engine.digests import digests
from mkc_fast.engine.options import Buckets, EngineOptions, check_choice
from mkc_fast.engine.sessions.cpu import (
    PiecedVocoder,
    Session,
    configured,
    cpu_graph,
    missing_on_cpu,
    open_on_cpu,
    operators_used,
)
from mkc_fast.engine.sessions.gpu_facts import NVINFER, gather_gpu_facts
from mkc_fast.engine.sessions.provenance import ran_on_cpu, ran_on_gpu
from mkc_fast.engine.sessions.providers import (
    HEAVY_OPERATORS,
    ORT_NAMES,
    TITLES,
    EngineCache,
    Plan,
    candidates,
    cuda_graph_file,
    free_dimensions,
    graph_file,
    has_cuda_graphs,
    profile,
    provider_list,
    refusal,
    resolve_precision,
    stage_precision,
    tensorrt_options,
)
from mkc_fast.engine.sessions.shaped import ArenaUse, ShapedSessions, StagedSessions, Use, share_arena
from mkc_fast.engine.sessions.shared_weights import SharedWeights
from mkc_fast.engine.sessions.support import obstacle
from mkc_fast.errors import ArtifactError, DeviceError, OutputError
from mkc_fast.kernels.cuda.device import import_cupy, one_line_errors
from mkc_fast.kernels.cuda.residual_stages import WEIGHTS_FILE, StagedBlocks, stage_file
from mkc_fast.names import (
    CPU,
    CUDA,
    FP16,
    FP32,
    GRAPH_FILES,
    GRAPHS,
    MIXED,
    TENSORRT,
    VOCODER_FILE,
    WAVLM,
)
from mkc_fast.onnx_runtime import ort
from mkc_fast.text import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mkc_fast.engine.artifacts import ModelInfo
    from mkc_fast.engine.devices import Gpu
    from mkc_fast.engine.sessions.gpu_facts import GpuFacts
    from mkc_fast.names import Graph, Precision, Provider

# ONNX Runtime's errors that are about the file, wherever it was to run; they share no base but Exception.
_FILE_ERRORS = {"NoSuchFile", "InvalidProtobuf", "InvalidGraph", "NoModel", "ModelLoaded"}


@dataclass(frozen=True)
class Sessions:
    """The three graphs, ready to run.

    Attributes:
        wavlm: Waveforms → features.
        conformer: Centroids → restored features.
        vocoder: Restored features → waveforms.
        provider: ``tensorrt``, ``cuda`` or ``cpu``: what every heavy operator runs on.
        precision: ``fp32``, ``tf32``, ``mixed``, ``fp16``, ``bf16``, ``int16`` or ``int8``.
        chosen: One line: what was chosen, and why nothing faster.
        buckets: The sizes that inputs must keep to; None where any will do.
        placement: Nodes that each provider got, by graph; empty on the CPU, or where ONNX Runtime cannot tell.
        cuda_graph: Whether runs are recorded as CUDA graphs, so that they need the same addresses every time.
        ran: What decides the last bits of what the graphs compute, for manifests.
        files: The graphs' files, in the order of the stages, and what else was read; empty where the sessions come from
            no files.
        shaped: On CUDA, further sessions of the same graphs, of fixed shapes.
        staged: The vocoder in stages, where a kernel of our own computes what is between them.
    """

    wavlm: Session
    conformer: Session
    vocoder: Session | PiecedVocoder
    provider: Provider = CPU
    precision: Precision = FP32
    chosen: str = ""
    buckets: Buckets | None = None
    placement: dict[str, dict[str, int]] = field(default_factory=dict)
    cuda_graph: bool = False
    ran: dict[str, object] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    shaped: ShapedSessions | None = None
    staged: StagedSessions | None = None


def open_sessions(
    model: Path,
    device: str,
    options: EngineOptions | None = None,
    *,
    stream: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Sessions:
    """Open the graphs of ``model/`` on a device.

    Args:
        model: The directory.
        device: ``cpu`` or ``cuda:<number>``.
        options: Provider, precision, threads, tuning and cache; default: ``EngineOptions()``. With TensorRT the sizes
            are ``buckets`` of what this returns, by default ``Buckets()``.
        stream: Address of a CUDA stream to run on, such as CuPy's ``stream.ptr``; it must outlive the sessions.
        progress: Called with a line as each graph is opened; with TensorRT, an engine may be built for minutes.

    Raises:
        DeviceError: The device is not here, or cannot do what was asked for.
        ArtifactError: A graph is damaged.
        OutputError: The folder for TensorRT's engines cannot be written.
    """
    index = cuda_index(device)
    options = options or EngineOptions()
    provider, threads, cache = options.provider, options.threads, options.cache or default_cache()
    check_choice(index, provider, options.precision, stream)
    info = read_model_info(model)
    if index is None:
        plan = Plan(CPU, resolve_precision(provider, options.precision, None), threads=threads)
        missing, option = missing_on_cpu(model, plan.precision)
        _check_files(model, plan.precision, missing, option)
        wavlm, conformer, vocoder = open_on_cpu(model, plan, cache)
        chosen = f"{TITLES[CPU]}, {plan.precision}, {operators_used(model, plan.precision)}: the device is cpu"
        ran = ran_on_cpu(model, plan.precision, threads)
        files = tuple(cpu_graph(model, graph, plan.precision) for graph in GRAPH_FILES)
        return Sessions(wavlm, conformer, vocoder, precision=plan.precision, chosen=chosen, ran=ran, files=files)
    gpu = driver().gpus[index]
    precision = resolve_precision(provider, options.precision, gpu, info)
    refused: list[str] = []
    for name in candidates(index, provider):
        fused = name == CUDA and has_cuda_graphs(info, precision)
        plan = Plan(name, precision, index, threads, stream, options.tuning, fused)
        reason = refusal(name, precision, gpu)
        if reason is None:
            try:
                if not fused:
                    missing = [
                        file for graph in GRAPH_FILES if not (model / (file := graph_file(graph, precision))).is_file()
                    ]
                    _check_files(model, precision, missing, "--half")
                return _open_on_gpu(model, info, plan, gpu, cache, refused, progress)
            except DeviceError as error:
                reason = str(error)
        if name == provider:
            raise DeviceError(f"device {device}: provider {name}: {reason}")
        refused.append(f"{TITLES[name]} not used: {reason}")
    raise DeviceError(f"device {device}: {'; '.join(refused)}")


def check_provider(provider: str, index: int) -> GpuFacts:
    """Check that nothing keeps a provider from a CUDA device, as far as can be known before a graph is opened.

    Raises:
        DeviceError: Something does: why, and the command that repairs it.
    """
    facts = gather_gpu_facts((provider,))
    problem = obstacle(facts, provider, index)
    if problem:
        raise DeviceError(f"{problem.reason}; {problem.repair}" if problem.repair else problem.reason)
    return facts


def _open_on_gpu(
    model: Path,
    info: ModelInfo,
    plan: Plan,
    gpu: Gpu,
    cache: Path,
    refused: list[str],
    progress: Callable[[str], None],
) -> Sessions:
    facts = check_provider(plan.provider, gpu.index)
    # A line for each session goes to the default logger, past the session's own severity: 3 is errors only.
    ort.set_default_logger_severity(3)
    engines = None
    if plan.provider == TENSORRT:
        version = facts.library_version(NVINFER) or "unknown"
        engines = EngineCache(cache, gpu.name, gpu.capability, version, ort.__version__)
    chosen = f"{TITLES[plan.provider]}, {_described(plan, info)}, on cuda:{gpu.index} ({gpu.name})"
    if plan.tuning.residual_kernel:
        chosen += ", residual blocks by our own kernel"
    if plan.provider == CUDA and not plan.fused:
        refused = [*refused, "the model has no graphs for CUDA: a faster form comes with 'mkc-fast export --cuda'"]
    opened = _open(model, info, plan, "; ".join([chosen, *refused]), engines, progress)
    return replace(opened, ran=ran_on_gpu(plan, gpu, engines.tensorrt if engines is not None else None))


def _described(plan: Plan, info: ModelInfo) -> str:
    """A precision, and for half precision what it costs."""
    halves = [graph for graph in GRAPH_FILES if stage_precision(graph, plan.precision) == FP16]
    if not halves:
        return plan.precision
    file = cuda_graph_file if plan.fused else graph_file
    checks = [info.checks[name] for graph in halves if (name := file(graph, plan.precision)) in info.checks]
    worst = max((check.error / check.scale for check in checks if check.scale), default=None)
    costs = "" if worst is None else f", whose error is up to {worst:.1g} of what they compute"
    if plan.precision == MIXED:
        return f"mixed (WavLM in float32, conformer and vocoder in half precision{costs})"
    return f"{plan.precision} (half precision{costs})"


def _open(
    model: Path,
    info: ModelInfo,
    plan: Plan,
    chosen: str,
    cache: EngineCache | None,
    progress: Callable[[str], None],
) -> Sessions:
    opened: list[ort.InferenceSession] = []
    placement: dict[str, dict[str, int] | None] = {}
    file = cuda_graph_file if plan.fused else graph_file
    files = tuple(file(graph, plan.precision) for graph in GRAPH_FILES)
    weights: dict[str, SharedWeights] = {}
    arena: ArenaUse | None = None
    blocks = _residual_blocks(model, info, plan) if plan.tuning.residual_kernel else None
    parts = () if blocks is None else tuple(stage_file(number) for number in range(len(blocks.stages) + 1))
    if plan.fused and plan.stream is not None:
        weights, arena = _on_device(model, plan, files + parts)
    for graph, name in zip(GRAPH_FILES, files, strict=True):
        path = model / name
        with _engines(path, graph, info, plan, cache) as (engines, timings):
            progress(f"{path.name}: {'opening' if timings is None else 'building its engine'}")
            sizes = free_dimensions(plan, graph, info)
            providers = provider_list(plan, graph, info, engines, timings)
            shared = arena is not None and not arena.alone
            session = _session(path, plan, providers, sizes, weights.get(name), arena=shared)
            placement[graph] = _checked_placement(path, plan, session)
        opened.append(session)
    if None in placement.values():
        chosen += f"; ONNX Runtime {ort.__version__} cannot tell which nodes run where"
    bound = plan.provider == TENSORRT or plan.tuning.fixed
    wavlm, conformer, vocoder = opened
    return Sessions(
        wavlm,
        conformer,
        vocoder,
        provider=plan.provider,
        precision=plan.precision,
        chosen=chosen,
        buckets=(plan.tuning.buckets or Buckets()) if bound else None,
        placement={graph: nodes for graph, nodes in placement.items() if nodes is not None},
        cuda_graph=plan.tuning.cuda_graph,
        files=files + ((*parts, WEIGHTS_FILE) if parts else ()),
        shaped=_shaped(model, info, plan, files, weights, arena) if plan.provider == CUDA else None,
        staged=None if blocks is None else _staged(model, info, plan, blocks, weights, arena),
    )


def _residual_blocks(model: Path, info: ModelInfo, plan: Plan) -> StagedBlocks:
    """What is between the graphs of a vocoder that is cut at its residual blocks.

    Raises:
        DeviceError: There are none, or they are not of the plan's precision.
    """
    if not plan.fused or stage_precision(VOCODER_FILE, plan.precision) != FP16:
        raise DeviceError(
            f"residual_kernel computes in half precision, with the graphs for CUDA; not in {plan.precision} here"
        )
    if WEIGHTS_FILE not in info.files:
        raise DeviceError(
            f"residual_kernel: {model} lacks {WEIGHTS_FILE}; 'mkc-fast export --cuda' writes it, if the vocoder has "
            "residual blocks that the kernel takes"
        )
    return StagedBlocks.read(model)


def _staged(
    model: Path,
    info: ModelInfo,
    plan: Plan,
    blocks: StagedBlocks,
    weights: dict[str, SharedWeights],
    arena: ArenaUse | None,
) -> StagedSessions:
    """The vocoder in stages, each session of one shape."""
    own = replace(plan, tuning=replace(plan.tuning, buckets=Buckets(fixed=True), cuda_graph=False))
    providers = provider_list(own, VOCODER_FILE, info)

    def opened(number: int, sizes: dict[str, int]) -> ort.InferenceSession:
        path = model / stage_file(number)
        shared = arena is not None and not arena.alone
        session = _session(path, own, providers, sizes, weights.get(path.name), arena=shared)
        _checked_placement(path, own, session)
        return session

    return StagedSessions(blocks, opened)


def _on_device(model: Path, plan: Plan, files: tuple[str, ...]) -> tuple[dict[str, SharedWeights], ArenaUse | None]:
    """The weights of the graphs on the device, by file, and the arena for all of their sessions, if it can be had."""
    cupy, index = import_cupy(), plan.index
    assert index is not None
    with cupy.cuda.Device(index), one_line_errors(cupy, index):
        weights = {name: SharedWeights(cupy, weights_file(model / name)) for name in files}
        return weights, share_arena(index, plan.tuning.gpu_mem_limit_bytes, alone=plan.tuning.record_batches)


def _shaped(
    model: Path,
    info: ModelInfo,
    plan: Plan,
    files: tuple[str, ...],
    weights: dict[str, SharedWeights],
    arena: ArenaUse | None,
) -> ShapedSessions:
    """Further sessions of the same graphs, each of one shape."""
    by_graph = dict(zip(GRAPHS, zip(GRAPH_FILES, files, strict=True), strict=True))

    def opened(graph: Graph, rows: int, length: int, use: Use) -> ort.InferenceSession:
        name, file = by_graph[graph]
        path = model / file
        tuning = replace(plan.tuning, buckets=Buckets(fixed=True), cuda_graph=use != Use.QUEUED)
        own = replace(plan, tuning=tuning)
        providers = provider_list(own, name, info)
        sizes = {"batch": rows, "samples" if graph == WAVLM else "frames": length}
        # A recording goes on using the memory that it was made with, which the arena takes for free.
        shared = arena is not None and use == (Use.RECORDED_BATCH if arena.alone else Use.QUEUED)
        session = _session(path, own, providers, sizes, weights.get(file), arena=shared)
        _checked_placement(path, own, session)
        return session

    return ShapedSessions(opened, shares_weights=bool(weights))


def _check_files(model: Path, precision: str, missing: list[str], option: str) -> None:
    if missing:
        raise DeviceError(
            f"precision {precision}: {model} lacks {', '.join(missing)}; make them with 'mkc-fast export {option}'"
        )


def _session(
    path: Path,
    plan: Plan,
    providers: list[tuple[str, dict[str, str]]],
    sizes: dict[str, int],
    weights: SharedWeights | None = None,
    *,
    arena: bool = False,
) -> ort.InferenceSession:
    """Open one graph, with the provider asked for or not at all.

    Args:
        path: The graph.
        plan: How.
        providers: As ONNX Runtime takes them.
        sizes: Of free axes that are fixed, by name.
        weights: On the device already, in place of those beside the graph.
        arena: Take memory from the arena that all sessions of the device share.
    """
    options = configured(ort.SessionOptions(), plan)
    for axis, size in sizes.items():
        options.add_free_dimension_override_by_name(axis, size)
    if weights is not None:
        for name, value in weights.values.items():
            options.add_initializer(name, value)
    if arena:
        options.add_session_config_entry("session.use_env_allocators", "1")
    try:
        # Without enable_fallback=0, ONNX Runtime prints a provider's failure and uses the CPU, now or in a run.
        session = ort.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
    except Exception as error:  # see _FILE_ERRORS
        said = one_line(str(error), 300)
        if type(error).__name__ in _FILE_ERRORS:
            raise ArtifactError(f"{path}: not a usable graph ({said[:160]})") from None
        raise DeviceError(f"{path.name} does not open: {said}") from None
    if session.get_providers()[0] != providers[0][0]:
        raise DeviceError(f"ONNX Runtime {ort.__version__} cannot load it here, and would run {path.name} on the CPU")
    return session


def _checked_placement(path: Path, plan: Plan, session: ort.InferenceSession) -> dict[str, int] | None:
    """How many nodes each provider got; None where ONNX Runtime (before 1.24) cannot tell.

    Raises:
        DeviceError: Another provider got a heavy one, or the plan's own got none at all.
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return None
    found: dict[str, Counter[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        found.setdefault(part.ep_name, Counter()).update(node.op_type for node in part.get_nodes())
    for other, nodes in found.items():
        heavy = [f"{nodes[name]} {name}" for name in sorted(HEAVY_OPERATORS) if nodes[name]]
        if other != ORT_NAMES[plan.provider] and heavy:
            where = other.removesuffix("ExecutionProvider")
            raise DeviceError(f"ONNX Runtime {ort.__version__} would run {', '.join(heavy)} of {path.name} on {where}")
    if not found.get(ORT_NAMES[plan.provider]):
        raise DeviceError(f"ONNX Runtime {ort.__version__} gives {TITLES[plan.provider]} no node of {path.name}")
    return {name: sum(nodes.values()) for name, nodes in found.items()}


@contextlib.contextmanager
def _engines(
    path: Path, graph: str, info: ModelInfo, plan: Plan, cache: EngineCache | None
) -> Iterator[tuple[Path | None, Path | None]]:
    """Yield the folders of this graph's TensorRT engines and, where they are still to be built, of kernel timings.

    One process builds at a time, the others wait and then read: ONNX Runtime writes these files in place, TensorRT
    measures kernels while it builds, and every worker process of a run opens the same model. Engines appear whole, by
    a rename, even if a process is killed.
    """
    if cache is None:
        yield None, None
        return
    options = tensorrt_options(plan, profile(graph, plan.tuning.buckets or Buckets(), info))
    sources = sorted(path.parent.glob(f"{path.name}*"))  # weights beyond 2 GB lie beside the graph
    folder = cache.engines(path.name, digests(sources, cache.root), _of_any_run(options))
    if holds_regular_files(folder):
        yield folder, None
        return
    try:
        cache.folder.mkdir(parents=True, exist_ok=True)
        with locked(cache.folder / "lock"):
            if not holds_regular_files(cache.timings):
                discard(cache.timings)
                cache.timings.mkdir()
            for left in folder.parent.glob(f".{folder.name}.*.tmp"):
                shutil.rmtree(left, ignore_errors=True)  # of a process that was killed: only this one builds now
            if holds_regular_files(folder):
                yield folder, None
                return
            discard(folder)
            with atomic_directory(folder) as temporary:
                yield temporary, cache.timings
    except OSError as error:
        raise OutputError(f"{cache.root}: cannot be written ({error.strerror})") from None


def _of_any_run(options: dict[str, str]) -> dict[str, str]:
    """Without what differs from process to process and leaves the engine alone."""
    return {name: value for name, value in options.items() if name not in {"device_id", "user_compute_stream"}}
