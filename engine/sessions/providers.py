"""What ONNX Runtime is told: session options, provider options and shape profiles, as pure functions on small data.

``sessions`` opens the graphs with what these return. Names and values have been through the parsers of ONNX Runtime
1.31; the reasons come from its documents, source and issue threads. Where one says "not yet measured on a GPU", a
measurement may change the option.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mkc_fast.engine.artifacts import CHECK_PASSED, cuda_file
from mkc_fast.engine.options import Buckets, Tuning
from mkc_fast.engine.windows import exact_windows
from mkc_fast.names import (
    AUTO,
    BF16,
    CONFORMER_FILE,
    CPU,
    CUDA,
    FP16,
    FP32,
    GRAPH_FILES,
    INT8,
    INT16,
    MIXED,
    TENSORRT,
    TF32,
    VOCODER_FILE,
    WAVLM_FILE,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mkc_fast.engine.artifacts import ModelInfo
    from mkc_fast.engine.devices import Gpu
    from mkc_fast.names import Precision, Provider

ORT_NAMES = {TENSORRT: "TensorrtExecutionProvider", CUDA: "CUDAExecutionProvider", CPU: "CPUExecutionProvider"}
TITLES = {TENSORRT: "TensorRT", CUDA: "CUDA", CPU: "CPU"}

# The operators that hold a graph's time: one of these on the CPU makes a GPU session slow. Shapes may stay there.
HEAVY_OPERATORS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "Softmax", "LayerNormalization", "Gelu"})
# Mean utterance of LibriSpeech train-clean-360: 363.6 h in 104,014 files.
_TYPICAL_S = 12.6
# Ampere brought TF32 and bf16 arithmetic.
_AMPERE = (8, 0)


@dataclass(frozen=True)
class EngineCache:
    """Where TensorRT's engines are kept, and what else than the graph an engine is good for."""

    root: Path
    gpu: str
    capability: tuple[int, int]
    tensorrt: str
    onnxruntime: str

    @property
    def folder(self) -> Path:
        """Of everything built on this kind of GPU by these versions; TensorRT opens no engine of another."""
        name = re.sub(r"[^a-z0-9]+", "-", self.gpu.lower()).strip("-") or "gpu"
        machine = f"{name}-sm{self.capability[0]}{self.capability[1]}"
        return self.root / "tensorrt" / machine / f"tensorrt-{self.tensorrt}-onnxruntime-{self.onnxruntime}"

    @property
    def timings(self) -> Path:
        """Of measured kernels; graphs share them, so that one that is built again is not measured again."""
        return self.folder / "timings"

    def engines(self, graph: str, sha256: list[str], options: Mapping[str, str]) -> Path:
        """Of one graph's engines.

        ONNX Runtime names an engine by the graph's file name and the names of its values, and takes it for any graph
        of that name, whatever its weights and the builder's options (microsoft/onnxruntime#6455, #32254). So both are
        in the folder's name.

        Args:
            graph: File name of the graph.
            sha256: Of the graph's file, and of its weights' where they lie beside it.
            options: Of the TensorRT provider, as far as they shape the engine.
        """
        key = hashlib.sha256(json.dumps([sha256, sorted(options.items())]).encode()).hexdigest()[:32]
        return self.folder / f"{graph.removesuffix('.onnx')}-{key}"


@dataclass(frozen=True)
class Plan:
    """Everything that decides how a model's sessions are opened.

    Attributes:
        provider: ``tensorrt``, ``cuda`` or ``cpu``.
        precision: ``fp32``, ``tf32``, ``mixed``, ``fp16``, ``bf16``, ``int16`` or ``int8``.
        index: Of the CUDA device, None on the CPU.
        threads: Of one operator on the CPU, None for one a core.
        stream: Address of the CUDA stream to run on, None for one of ONNX Runtime's own.
        tuning: What a benchmark may vary.
        fused: Whether the graphs are those in the fused operators of the CUDA provider.
    """

    provider: Provider
    precision: Precision
    index: int | None = None
    threads: int | None = None
    stream: int | None = None
    tuning: Tuning = field(default_factory=Tuning)
    fused: bool = False


@dataclass(frozen=True)
class SessionSettings:
    """What ``onnxruntime.SessionOptions`` is given: attributes by name, and configuration entries."""

    attributes: dict[str, int | bool]
    entries: dict[str, str]


@dataclass(frozen=True)
class Profile:
    """The shapes a TensorRT engine is built for, by input: the least, those it is tuned for, the largest."""

    least: dict[str, tuple[int, ...]]
    typical: dict[str, tuple[int, ...]]
    most: dict[str, tuple[int, ...]]


def candidates(index: int | None, provider: Provider) -> tuple[Provider, ...]:
    """The providers to try, the fastest first; one asked for by name stands alone."""
    if index is None:
        return (CPU,)
    return (TENSORRT, CUDA) if provider == AUTO else (provider,)


def resolve_precision(
    provider: Provider, precision: Precision, gpu: Gpu | None, info: ModelInfo | None = None
) -> Precision:
    """What ``auto`` means, and ``bf16`` on a CPU: int16 there, which is as fast and nearer to float32.

    On a CPU ``auto`` is fp32. On a GPU it is mixed, where the model has the graphs for it and its export found them
    within their bound; else fp32, and where TensorRT was asked for by name the nearest thing that it has.
    """
    if gpu is None:
        return {AUTO: FP32, BF16: INT16}.get(precision, precision)  # type: ignore[return-value]
    if precision != AUTO:
        return precision
    if provider == TENSORRT:
        return TF32 if refusal(TENSORRT, FP32, gpu) else FP32
    return MIXED if info is not None and is_checked(info, MIXED) else FP32


def is_checked(info: ModelInfo, precision: str) -> bool:
    """Whether a model has all graphs for CUDA in a precision, each within the bound of its check at export."""
    checks = [info.checks.get(cuda_graph_file(graph, precision)) for graph in GRAPH_FILES]
    return all(check is not None and check.status == CHECK_PASSED for check in checks)


def has_cuda_graphs(info: ModelInfo, precision: str) -> bool:
    """Whether a model has all of its graphs for CUDA in a precision."""
    return all(cuda_graph_file(graph, precision) in info.files for graph in GRAPH_FILES)


def stage_precision(file: str, precision: str) -> str:
    """The precision of one graph of standard operators: in mixed only WavLM is fp32, in int8 only the vocoder."""
    if precision == MIXED:
        return FP32 if file == WAVLM_FILE else FP16
    return FP32 if precision == INT8 and file == VOCODER_FILE else precision


def cuda_graph_file(file: str, precision: str) -> str:
    """The file that holds a graph in a precision, in the fused operators of the CUDA provider."""
    return cuda_file(file, half=stage_precision(file, precision) == FP16)


def refusal(provider: str, precision: str, gpu: Gpu) -> str | None:
    """Why a provider cannot compute in a precision on this GPU, None if it can."""
    if precision in {TF32, BF16} and gpu.capability < _AMPERE:
        return f"{precision} needs compute capability 8.0; {gpu.name} has {gpu.capability[0]}.{gpu.capability[1]}"
    if provider == CUDA and precision == BF16:
        return "ONNX Runtime's CUDA provider computes bf16 only in graphs made so; take provider tensorrt, or fp16"
    if provider == TENSORRT and precision == MIXED:
        return "it is opened with one precision for all graphs; take tf32, fp16 or bf16"
    if provider == TENSORRT and precision == FP32 and gpu.capability >= _AMPERE:
        # No option of ONNX Runtime clears the builder's TF32 flag (microsoft/onnxruntime#26029).
        return "it computes float32 in TF32, and ONNX Runtime cannot turn that off; take precision tf32"
    return None


def graph_file(file: str, precision: str) -> str:
    """The file that holds a graph in a precision, in standard operators."""
    own = stage_precision(file, precision)
    return f"{file.removesuffix('.onnx')}.{own}.onnx" if own in {FP16, INT8} else file


def session_settings(plan: Plan) -> SessionSettings:
    """Session options of a plan."""
    attributes: dict[str, int | bool] = {
        # Errors; warnings here are about the placement of shape arithmetic.
        "log_severity_level": 3,
        # Every utterance has a length of its own: a plan of buffers kept for each length would only grow.
        "enable_mem_pattern": plan.provider != CPU and plan.tuning.fixed,
    }
    if plan.provider == CPU:
        if plan.threads:
            attributes["intra_op_num_threads"] = plan.threads
        # Threads that wait spin by default, on cores that another worker, or decoding, could use.
        return SessionSettings(attributes, {"session.intra_op.allow_spinning": "0"})
    # What a GPU session leaves on the CPU is arithmetic on a few lengths: threads would cost more than they do, and
    # spin between runs on cores that decoding needs.
    attributes["intra_op_num_threads"] = plan.threads or 1
    entries = {
        "session.intra_op.allow_spinning": "0",
        # Lets `sessions` see which provider got each node. ("session.disable_cpu_ep_fallback" would also forbid the
        # shape arithmetic that ONNX Runtime puts on the CPU on purpose.)
        "session.record_ep_graph_assignment_info": "1",
        # Weights beside the arena, which then grows by what runs need alone.
        "session.use_device_allocator_for_initializers": "1",
    }
    return SessionSettings(attributes, entries)


def free_dimensions(plan: Plan, graph: str, info: ModelInfo) -> dict[str, int]:
    """Sizes of a graph's free axes, where every run has them: shape arithmetic then folds away when it is opened.

    The vocoder has no such arithmetic, and runs with windows of the end, too, which are shorter.
    """
    if not plan.tuning.fixed or plan.tuning.buckets is None or graph == VOCODER_FILE:
        return {}
    shapes = profile(graph, plan.tuning.buckets, info).most
    if graph == WAVLM_FILE:
        batch, samples = shapes["waveform"]
        return {"batch": batch, "samples": samples}
    batch, frames, _ = shapes["features"]
    return {"batch": batch, "frames": frames}


def provider_list(
    plan: Plan, graph: str, info: ModelInfo, engines: Path | None = None, timings: Path | None = None
) -> list[tuple[str, dict[str, str]]]:
    """The ``providers`` argument of ``onnxruntime.InferenceSession``, the one to be preferred first.

    Args:
        plan: How sessions are opened.
        graph: ``wavlm.onnx``, ``conformer.onnx`` or ``vocoder.onnx``.
        info: Of the model.
        engines: Folder of this graph's TensorRT engines; none are kept without it.
        timings: Folder of TensorRT's kernel timings.
    """
    cpu: tuple[str, dict[str, str]] = (ORT_NAMES[CPU], {})
    if plan.provider == CPU:
        return [cpu]
    cuda = (ORT_NAMES[CUDA], cuda_options(plan, graph))
    if plan.provider == CUDA:
        return [cuda, cpu]
    options = tensorrt_options(plan, profile(graph, plan.tuning.buckets or Buckets(), info))
    if engines is not None:
        options |= {"trt_engine_cache_enable": "True", "trt_engine_cache_path": str(engines)}
    if timings is not None:
        options |= {"trt_timing_cache_enable": "True", "trt_timing_cache_path": str(timings)}
    return [(ORT_NAMES[TENSORRT], options), cuda, cpu]


def cuda_options(plan: Plan, graph: str) -> dict[str, str]:
    """Options of the CUDA provider for a graph."""
    tuning = plan.tuning
    nhwc = graph == VOCODER_FILE and (plan.fused if tuning.prefer_nhwc is None else tuning.prefer_nhwc)
    options = {
        "device_id": str(plan.index),
        # Since 1.20 a convolution keeps the plan of one shape, that of its last run, and makes a new one whenever it
        # changes (microsoft/onnxruntime#23006). With cuDNN 9 nothing is tried out for it: HEURISTIC takes the first
        # plan of cuDNN's heuristic A, EXHAUSTIVE that of B, which thinks for longer (microsoft/onnxruntime#22705). In
        # another project a new length costs 17 ms with the one and 142 ms with the other, against 5 ms in a steady
        # run (sgl-project/sglang-omni#2176). Where shapes are fixed it happens once. Not yet measured on a GPU.
        "cudnn_conv_algo_search": tuning.conv_search or ("EXHAUSTIVE" if tuning.fixed else "HEURISTIC"),
        # A plan may take what scratch memory it likes: a limit of 32 MB rules out the fast ones. Not yet measured on
        # a GPU; in one network the limit was faster (microsoft/onnxruntime#20712).
        "cudnn_conv_use_max_workspace": "1",
        # All convolutions here have one dimension, and cuDNN takes two: (N, C, 1, T), as PyTorch pads, not
        # (N, C, T, 1). Not yet measured on a GPU; both ways round have been reported as the slower by 2 to 3 times
        # (microsoft/onnxruntime#7702, #10999).
        "cudnn_conv1d_pad_to_nc1d": "1",
        # float32 as float32, unless TF32 was asked for. For a graph in fp16 it must be on: without it a convolution of
        # any type is kept from tensor cores. The fp16 graphs for CUDA have no product in float32 that could become one
        # in TF32. (A convolution for which cuDNN has no other plan gets tensor cores all the same: fp32 is then TF32
        # there, and nothing says so.)
        "use_tf32": "0" if stage_precision(graph, plan.precision) == FP32 else "1",
        # Growth by what is needed, not to the next power of two, so that batches may fill the GPU. Lengths that vary
        # fragment the arena more (microsoft/onnxruntime#14474); not yet measured on a GPU.
        "arena_extend_strategy": "kSameAsRequested",
        # For the vocoder only: see Tuning.
        "prefer_nhwc": "1" if nhwc else "0",
        # A convolution with its bias, where channels are last: otherwise each bias is a pass of its own. With channels
        # first ONNX Runtime would clear memory on the null stream for each convolution.
        "fuse_conv_bias": "1" if nhwc and plan.fused else "0",
        # Copies in the compute stream need no event to wait for; the other way has raced (microsoft/onnxruntime#4829).
        "do_copy_in_default_stream": "1",
        # Attention: no option. "sdpa_kernel" chooses among kernels of the fused attention operator, which the graphs
        # for CUDA have; ONNX Runtime's own choice is cuDNN's in fp16, and the memory-efficient one in float32.
    }
    if tuning.gpu_mem_limit_bytes is not None:
        options["gpu_mem_limit"] = str(tuning.gpu_mem_limit_bytes)
    if tuning.cuda_graph and plan.provider == CUDA:
        options["enable_cuda_graph"] = "1"
    if plan.stream is not None:
        # One stream with the look-up's kernels: what they wrote is there when a graph reads it, without waiting.
        options["user_compute_stream"] = str(plan.stream)
    return options


def tensorrt_options(plan: Plan, shapes: Profile) -> dict[str, str]:
    """Options of the TensorRT provider, without the folders of its caches.

    Its parser wants True and False where the CUDA provider's wants 1 and 0.
    """
    options = {
        "device_id": str(plan.index),
        # All three for every input, or none: with them the engine is built when the session is opened; without them
        # again at each run whose shape is outside those seen so far.
        "trt_profile_min_shapes": _shapes_text(shapes.least),
        "trt_profile_opt_shapes": _shapes_text(shapes.typical),
        "trt_profile_max_shapes": _shapes_text(shapes.most),
        # A kernel may be chosen in these types where it is faster; fp16 graphs are refused without theirs.
        "trt_fp16_enable": str(plan.precision == FP16),
        "trt_bf16_enable": str(plan.precision == BF16),
        # The sums of squares in a LayerNorm may overflow fp16.
        "trt_layer_norm_fp32_fallback": str(plan.precision in {FP16, BF16}),
        # The builder's default, 0 to 5; more searches longer. Not yet measured on a GPU.
        "trt_builder_optimization_level": "3",
        # One scratch buffer for all engines of a session: they run one after another.
        "trt_context_memory_sharing_enable": "True",
    }
    if plan.tuning.gpu_mem_limit_bytes is not None:
        options["trt_max_workspace_size"] = str(plan.tuning.gpu_mem_limit_bytes)
    if plan.tuning.cuda_graph:
        options["trt_cuda_graph_enable"] = "True"
    if plan.stream is not None:
        options["user_compute_stream"] = str(plan.stream)
    return options


def most_frames(buckets: Buckets, info: ModelInfo) -> int:
    """Frames of the longest utterance, or window of one, that these buckets take."""
    return max(1, info.whole_frames(buckets.max_seconds))


def profile(graph: str, buckets: Buckets, info: ModelInfo) -> Profile:
    """Shapes of a graph's inputs under these buckets.

    A window of T frames is cut with the samples of T frames, and the last one takes those along that make no frame:
    T * hop + min_samples - 1 at most.
    """
    most = most_frames(buckets, info)
    typical = most if buckets.fixed else min(most, info.whole_frames(_TYPICAL_S))
    least = most if buckets.fixed else 1
    batch, one = buckets.max_batch, buckets.max_batch if buckets.fixed else 1
    if graph == WAVLM_FILE:
        return Profile(
            _waveforms(one, least * info.hop + info.min_samples - 1 if buckets.fixed else info.min_samples),
            _waveforms(batch, typical * info.hop + info.min_samples - 1),
            _waveforms(batch, most * info.hop + info.min_samples - 1),
        )
    if graph == CONFORMER_FILE:
        return Profile(
            *(_features(n, t, info, lengths=True) for n, t in ((one, least), (batch, typical), (batch, most)))
        )
    window = max(buckets.window_frames, 4 * info.vocoder_reach)
    windows = batch * len(exact_windows(most, window, info.vocoder_reach))
    window = min(window, most)
    if buckets.fixed:  # but for windows of the end, and for what is shorter than those
        return Profile(_features(1, 1, info), *(_features(windows, window, info) for _ in range(2)))
    return Profile(
        _features(1, 1, info),
        _features(batch * len(exact_windows(typical, window, info.vocoder_reach)), window, info),
        _features(windows, window, info),
    )


def _waveforms(batch: int, samples: int) -> dict[str, tuple[int, ...]]:
    return {"waveform": (batch, samples), "lengths": (batch,)}


def _features(batch: int, frames: int, info: ModelInfo, *, lengths: bool = False) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"features": (batch, frames, info.dim)}
    return {**shapes, "lengths": (batch,)} if lengths else shapes


def _shapes_text(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """As TensorRT's own tools write them: ``waveform:1x400,lengths:1``."""
    return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())
