"""How the engine runs: provider, precision, threads, windows, batches and cache, as one object passed whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mkc_fast.errors import ArgumentError, DeviceError
from mkc_fast.names import AUTO, CPU, CUDA, INT8, INT16, PRECISIONS, PROVIDERS, TENSORRT, TF32, Precision, Provider

# With ONNX Runtime's own operators attention's buffers grow with the square of a recording's length: at full size on a
# CPU, 40 s peak near 5 GB and 60 s near 8 GB. LibriSpeech's longest recording has 35 s.
DEFAULT_WINDOW_S = 40.0
# Seconds that neighbouring windows of a long recording share: a quarter at either end is dropped, the middle half is
# faded.
OVERLAP_S = 4.0
_LEAST_WINDOW_S = 2 * OVERLAP_S
# A day, which no recording exceeds.
_MOST_WINDOW_S = 86400.0


@dataclass(frozen=True)
class Buckets:
    """The sizes that inputs are kept to by whoever runs the sessions.

    Attributes:
        max_batch: Utterances that run at once.
        max_seconds: Of the longest, as a whole or as the window of a longer one.
        window_frames: Of the vocoder's windows, of one utterance and of a batch alike.
        fixed: Every run has exactly these sizes, padded up to them where needed.
    """

    max_batch: int = 16
    max_seconds: float = DEFAULT_WINDOW_S
    window_frames: int = 500
    fixed: bool = False


@dataclass(frozen=True)
class Tuning:
    """What a benchmark may vary; the defaults are what runs use.

    Attributes:
        buckets: The sizes that inputs are kept to; None where they have any size.
        gpu_mem_limit_bytes: Of ONNX Runtime's arena in each session, or of the one that the sessions of graphs for CUDA
            share; default: what the GPU has.
        prefer_nhwc: The vocoder's convolutions with channels last, as tensor cores want them. In a dry run all 78 of
            them get it, without a transpose. In WavLM and the conformer it added copies between host and device, for
            which every run waits, so it is never on there. Default: on for the graphs for CUDA. Not measured on a GPU.
        conv_search: How ONNX Runtime asks for cuDNN's plan of a convolution, ``HEURISTIC`` or ``EXHAUSTIVE``; with
            cuDNN 9 these are its two heuristics, A and B. Default: the second where shapes are fixed.
        cuda_graph: Record a run and replay it. Needs fixed buckets, and inputs and outputs bound to the same addresses
            in every run (``io_binding``); a run's ``gpu_graph_id`` option tells recordings of several sizes apart.
        record_batches: With the graphs for CUDA, record each shape of ``use_lengths`` as a CUDA graph, so that a batch
            is queued with one launch a graph. Recordings share their memory. Shapes for which there is no room are not
            recorded. Not measured on a GPU.
        residual_kernel: With the graphs for CUDA in half precision, compute the vocoder's residual blocks by a kernel
            of our own (``mkc_fast.kernels.cuda.residual``), between graphs of the rest. The vocoder's runs are then not
            recorded. Not measured on a GPU.
    """

    buckets: Buckets | None = None
    gpu_mem_limit_bytes: int | None = None
    prefer_nhwc: bool | None = None
    conv_search: str | None = None
    cuda_graph: bool = False
    record_batches: bool = False
    residual_kernel: bool = False

    @property
    def fixed(self) -> bool:
        """Whether every run has the same shapes."""
        return self.buckets is not None and self.buckets.fixed


@dataclass(frozen=True)
class EngineOptions:
    """How artifacts are opened and run on a device; the same object serves the CLI, corpus runs and ``Anonymizer``.

    Attributes:
        provider: Of ONNX Runtime: ``auto`` (the fastest that the device can do), ``tensorrt``, ``cuda`` or ``cpu``. One
            given by name is used or refused, never replaced. Default: ``auto``.
        precision: ``fp32``, ``tf32``, ``mixed`` (WavLM in float32, so that cluster ids are those of float32; the
            conformer and the vocoder in half precision or, on a CPU, in int16), ``fp16`` (all three in half precision),
            ``bf16`` (TensorRT; on a CPU it is int16), ``int16`` or ``int8`` (whole numbers, CPU only); the last five
            need graphs exported for them. ``auto``: fp32 on a CPU; on a GPU mixed, if the model has the graphs for it
            and its export found them within their bound, else fp32 (tf32 where TensorRT was given by name and has no
            fp32). Default: ``auto``.
        threads: Threads of one operator on the CPU. Default: one per core; on a GPU, one.
        max_window_s: Seconds. A longer recording is encoded and restored in windows of this length, cross-faded; 8
            to 86,400. Default: 40.
        batch_s: Padded seconds of audio that run at once; 0 runs each utterance alone. Default: ``default_batch_s``.
        latency_buckets_s: Sizes in seconds, on a GPU, for which the graphs are also opened with fixed shapes and
            recorded as CUDA graphs. Each size holds another copy of the weights. Default: none.
        tuning: Sizes of inputs (buckets) and options of the provider. Default: ``Tuning()``.
        cache: Folder of TensorRT's engines, of prepared CPU graphs and of known digests. Default: the user's cache
            folder.

    Raises:
        ArgumentError: ``max_window_s`` is not a number of seconds in its range.
        DeviceError: The provider or precision is unknown, or CUDA graphs are asked for without fixed buckets.
    """

    provider: Provider = AUTO
    precision: Precision = AUTO
    threads: int | None = None
    max_window_s: float = DEFAULT_WINDOW_S
    batch_s: float | None = None
    latency_buckets_s: tuple[float, ...] = ()
    tuning: Tuning = field(default_factory=Tuning)
    cache: Path | None = None

    def __post_init__(self) -> None:
        _check_names(self.provider, self.precision)
        object.__setattr__(self, "max_window_s", _checked_window(self.max_window_s))
        if self.tuning.cuda_graph and not self.tuning.fixed:
            raise DeviceError("a CUDA graph is a recording of one shape: it needs fixed buckets")


def default_batch_s(device: str) -> float:
    """Padded seconds of audio that run at once on a device, where ``EngineOptions.batch_s`` is None.

    On a CPU batches are faster for the shortest utterances only (benchmarks/results/cpu_batches.json), and alone every
    sample is the same to the last bit.
    """
    return 0.0 if device == CPU else 240.0


def check_choice(index: int | None, provider: str, precision: str, stream: int | None = None) -> None:
    """Check that device, provider, precision and stream go together, as far as no machine is needed to know.

    Args:
        index: Of the CUDA device; None for the CPU.
        provider: As in ``EngineOptions``.
        precision: As in ``EngineOptions``.
        stream: Address of a CUDA stream to run on.

    Raises:
        DeviceError: A name is unknown, or two of them contradict each other.
    """
    _check_names(provider, precision)
    device = "device cpu" if index is None else f"device cuda:{index}"
    if index is None and provider in {TENSORRT, CUDA}:
        raise DeviceError(f"provider {provider} needs a GPU: give the device as cuda:<number>, not cpu")
    if index is not None and provider == CPU:
        raise DeviceError(f"{device}: provider cpu runs on the device cpu")
    if index is None and precision == TF32:
        raise DeviceError("precision tf32 needs a GPU; the CPU computes fp32, mixed, int16 and int8, and fp16 slowly")
    if index is not None and precision in {INT16, INT8}:
        raise DeviceError(f"precision {precision} is for the device cpu; a GPU has mixed and fp16")
    if stream is not None and index is None:
        raise DeviceError("a CUDA stream was given with the device cpu")
    if stream == 0:
        # ONNX Runtime takes 0 for none and makes a stream of its own, which does not wait for the null stream.
        raise DeviceError("the null stream cannot be shared; give one made with cupy.cuda.Stream(non_blocking=True)")


def _check_names(provider: str, precision: str) -> None:
    if provider not in PROVIDERS:
        raise DeviceError(f"provider {provider[:40]!r}: expected one of {', '.join(PROVIDERS)}")
    if precision not in PRECISIONS:
        raise DeviceError(f"precision {precision[:40]!r}: expected one of {', '.join(PRECISIONS)}")


def _checked_window(max_window_s: object) -> float:
    try:
        seconds = float(max_window_s)  # type: ignore[arg-type]
        shown = f"{seconds:g}"
    except OverflowError:  # a large integer
        seconds, shown = float("inf"), "too large"
    except (TypeError, ValueError):
        seconds = float("nan")
        shown = ascii(max_window_s[:40]) if isinstance(max_window_s, str) else f"of type {type(max_window_s).__name__}"
    if not _LEAST_WINDOW_S <= seconds <= _MOST_WINDOW_S:
        raise ArgumentError(
            f"max_window_s is {shown}; it must be a number of seconds, at least {_LEAST_WINDOW_S:g}, at most a day"
        )
    return seconds
