"""What the machine can do at most, measured: matrix products in each precision, and copies; and the floors they give.

The floor of a stage is the larger of two times: its arithmetic, as the published layers have it, at the measured rate
of matrix products, and reading its weights and centroids once at the measured copy rate. Activations are left out, so
no program that computes the layers as they are written goes below it. The vocoder's native operators do: they need half
the multiplications of its residual blocks (Winograd's method).
"""

from __future__ import annotations

import ctypes
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mkc_fast.benchmarks.records import short
from mkc_fast.engine.artifacts import open_bank
from mkc_fast.engine.devices import cores, cuda_index
from mkc_fast.errors import DeviceError
from mkc_fast.extras import CUDA13_EXTRA, install_command
from mkc_fast.kernels.cpu.loader import native_library
from mkc_fast.names import ASSIGN, BF16, FP16, FP32, INT8, INT16, TF32

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mkc_fast.benchmarks.target import Target

_SIZE, _GPU_SIZE = 2048, 8192
_COPY_BYTES, _GPU_COPY_BYTES = 1 << 28, 1 << 30
# Of the register tiles: some tens of milliseconds.
_ROUNDS = 20_000
# How much smaller weights are than in float32.
_SMALLER = {FP16: 2, BF16: 2, INT16: 2, INT8: 4}
# cudaDataType and cublasComputeType of each precision.
_GPU_TYPES = {FP32: (0, 4, 68), TF32: (0, 4, 77), FP16: (2, 2, 68), BF16: (14, 2, 68)}


def measure_ceilings(
    device: str,
    threads: int | None = None,
    budget_s: float = 10.0,
    *,
    torch: bool = False,
) -> dict[str, Any]:
    """Rates of a device.

    Args:
        device: ``cpu`` or ``cuda:<number>``.
        threads: On a CPU; default: one a core. NumPy takes what its library takes.
        budget_s: Seconds to measure for, about.
        torch: On a CPU, measure PyTorch's matrix products, too: the best library is the ceiling.

    Returns:
        ``gemm_gflops`` by precision (on a CPU float32, the best of all libraries and of arithmetic in registers, and
        with the native operators int16 and int8), ``gemm_by`` with the rate of each in float32, and ``copy_gbs``: bytes
        read and written a second, in GB/s.

    Raises:
        DeviceError: A GPU is asked for, and CuPy is not there.
    """
    index = cuda_index(device)
    if index is not None:
        return _gpu_ceilings(index, budget_s)
    threads = threads or cores()
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((_SIZE, _SIZE), np.float32) for _ in range(2))
    operations = 2.0 * _SIZE**3
    session = _product_session(threads)
    arms: dict[str, Callable[[], object]] = {
        "numpy": lambda: left @ right,
        "onnxruntime": lambda: session.run(None, {"a": left, "b": right}),
    }
    if torch:
        from mkc_fast.benchmarks.baseline.pipeline import product

        arms["torch"] = partial(product, left, right)
    share_s = budget_s / (len(arms) + 2)
    rates = {name: operations / _least_s(arm, share_s) for name, arm in arms.items()}
    whole = _operator_rates(threads, share_s)
    if FP32 in whole:
        rates["registers"] = whole.pop(FP32)
    return {
        "gemm_gflops": {
            FP32: short(max(rates.values()) / 1e9),
            **{precision: short(rate / 1e9) for precision, rate in whole.items()},
        },
        "gemm_by": {name: short(rate / 1e9) for name, rate in rates.items()},
        "gemm_size": _SIZE,
        "copy_gbs": short(_copy_rate(threads, share_s) / 1e9),
        "threads": threads,
    }


def _operator_rates(threads: int, budget_s: float) -> dict[str, float]:
    """Operations a second of register tiles whose numbers stay in the first-level cache; empty without operators."""
    path = native_library()
    if path is None:
        return {}
    exercise = ctypes.CDLL(str(path)).mkc_fast_exercise
    exercise.restype, exercise.argtypes = ctypes.c_double, [ctypes.c_long, ctypes.c_long]
    rates = {}
    with ThreadPoolExecutor(threads) as pool:
        for precision, bits in ((FP32, 32), (INT16, 16), (INT8, 8)):

            def run(bits: int = bits) -> float:
                return sum(pool.map(lambda _: float(exercise(bits, _ROUNDS)), range(threads)))

            rates[precision] = run() / _least_s(run, budget_s / 3)
    return rates


def best_of(ceilings: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The best rates of several measurements in one run: other programs can only lower a rate."""
    best = dict(ceilings[0])
    for name in ("gemm_gflops", "gemm_by"):
        keys = [key for key in best[name] if all(key in each[name] for each in ceilings)]
        best[name] = {key: max(each[name][key] for each in ceilings) for key in keys}
    best["copy_gbs"] = max(each["copy_gbs"] for each in ceilings)
    best["measured"] = len(ceilings)
    first = next(iter(best["gemm_gflops"]))
    # If they are far apart, something else was running, and every time in the record is uncertain.
    best["gemm_spread"] = [each["gemm_gflops"][first] for each in ceilings]
    return best


def floors(target: Target, ceilings: dict[str, Any], precision: str, length_s: float, entries: int) -> dict[str, Any]:
    """Least seconds of each stage for one utterance, and what bounds it; empty where the rates or sizes are unknown.

    Args:
        target: What runs.
        ceilings: From ``measure_ceilings``.
        precision: Whose rate of matrix products counts.
        length_s: Of the utterance.
        entries: Bank entries that its frames have, at the most.
    """
    gflop, rate = target.gflop_a_second(), ceilings["gemm_gflops"].get(precision)
    if gflop is None or rate is None:
        return {}
    info = target.info
    read = min(entries, info.frames(int(length_s * info.sample_rate)))
    clusters = open_bank(target.bank).centroids.shape[1]
    found = {}
    for stage, work in gflop.items():
        size = read * clusters * info.dim * 4 if stage == ASSIGN else target.weight_bytes(stage)
        if stage != ASSIGN:
            size //= _SMALLER.get(precision, 1)
        # Half of the copied bytes are read.
        arithmetic, memory = work * length_s / rate, size / (ceilings["copy_gbs"] * 1e9)
        found[stage] = {
            "gflop": short(work * length_s, 4),
            "mb": short(size / 1e6, 4),
            "floor_s": short(max(arithmetic, memory)),
            "bound_by": "arithmetic" if arithmetic >= memory else "memory",
        }
    return found


def _least_s(run: Callable[[], object], budget_s: float, most: int = 30) -> float:
    """The least seconds of a run, after a warm-up: other programs can only make a run longer."""
    run()
    begin, least = time.perf_counter(), float("inf")
    for count in range(most):
        if count >= 3 and time.perf_counter() - begin > budget_s:
            break
        start = time.perf_counter()
        run()
        least = min(least, time.perf_counter() - start)
    return least


def _copy_rate(threads: int, budget_s: float) -> float:
    source = np.ones(_COPY_BYTES // 4, np.float32)
    target = np.empty_like(source)
    parts = list(zip(np.array_split(source, threads), np.array_split(target, threads), strict=True))
    with ThreadPoolExecutor(threads) as pool:

        def copy() -> None:
            list(pool.map(lambda part: np.copyto(part[1], part[0]), parts))

        return 2.0 * _COPY_BYTES / _least_s(copy, budget_s)


def _product_session(threads: int) -> Any:
    """ONNX Runtime's own matrix product as a session with inputs a and b; the graph is a few bytes of protobuf."""
    from mkc_fast.onnx_runtime import ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return ort.InferenceSession(_product_graph(), options, providers=["CPUExecutionProvider"])


def _product_graph() -> bytes:
    """An ONNX model ``c = MatMul(a, b)`` of float32 matrices, as onnx.proto numbers its fields."""

    def varint(value: int) -> bytes:
        encoded = b""
        while value > 127:
            encoded += bytes([value & 127 | 128])
            value >>= 7
        return encoded + bytes([value])

    def part(number: int, content: bytes) -> bytes:
        return varint(number << 3 | 2) + varint(len(content)) + content

    def number(field: int, value: int) -> bytes:
        return varint(field << 3) + varint(value)

    def matrix(name: bytes) -> bytes:
        axes = 2 * part(1, part(2, b"m"))
        return part(1, name) + part(2, part(1, number(1, 1) + part(2, axes)))

    node = part(1, b"a") + part(1, b"b") + part(2, b"c") + part(4, b"MatMul")
    graph = (
        part(1, node) + part(2, b"product") + part(11, matrix(b"a")) + part(11, matrix(b"b")) + part(12, matrix(b"c"))
    )
    return number(1, 8) + part(7, graph) + part(8, number(2, 13))


def _gpu_ceilings(index: int, budget_s: float) -> dict[str, Any]:
    try:
        import cupy
    except ImportError:
        raise DeviceError(f"measuring cuda:{index} needs CuPy: {install_command(CUDA13_EXTRA)}") from None
    rates: dict[str, float] = {}
    missing: dict[str, str] = {}
    with cupy.cuda.Device(index):
        for precision, (kind, size, compute) in _GPU_TYPES.items():
            try:
                seconds = _gpu_product_s(cupy, kind, size, compute, budget_s / 5)
            except Exception as error:  # cuBLAS refuses what the chip has not, in several types
                missing[precision] = " ".join(str(error).split())[:100]
                continue
            rates[precision] = short(2.0 * _GPU_SIZE**3 / seconds / 1e9)
        source = cupy.ones(_GPU_COPY_BYTES // 4, cupy.float32)
        target = cupy.empty_like(source)
        copy_s = _gpu_least_s(cupy, lambda: cupy.copyto(target, source), budget_s / 5)
    if FP32 not in rates:
        raise DeviceError(f"cuda:{index}: cuBLAS does not run: {missing.get('fp32', '')}")
    return {
        "gemm_gflops": rates,
        "gemm_by": {"cublas": rates[FP32]},
        "gemm_size": _GPU_SIZE,
        "gemm_missing": missing,
        "copy_gbs": short(2.0 * _GPU_COPY_BYTES / copy_s / 1e9),
        "threads": None,
    }


def _gpu_product_s(cupy: Any, kind: int, size: int, compute: int, budget_s: float) -> float:
    """Seconds of a square product by cuBLAS, of random bits that are small finite numbers in each type."""
    count = _GPU_SIZE * _GPU_SIZE
    if size == 4:
        left, right = (cupy.random.standard_normal(count, dtype=cupy.float32) for _ in range(2))
    else:
        # Numbers between 1 and 2 in either 16-bit type: what is multiplied changes a chip's power, not its limits.
        least, span = (0x3C00, 0x400) if kind == 2 else (0x3F80, 0x80)
        left, right = ((least + cupy.random.randint(0, span, count)).astype(cupy.uint16) for _ in range(2))
    out = cupy.empty(count, cupy.float32)
    one, zero = (np.array(struct.pack("f", value)) for value in (1.0, 0.0))
    cublas, handle, n = cupy.cuda.cublas, cupy.cuda.device.get_cublas_handle(), _GPU_SIZE

    def product() -> None:
        cublas.gemmEx(
            handle, 0, 0, n, n, n, one.ctypes.data, left.data.ptr, kind, n, right.data.ptr, kind, n, zero.ctypes.data,
            out.data.ptr, 0, n, compute, -1,
        )  # fmt: skip

    return _gpu_least_s(cupy, product, budget_s)


def _gpu_least_s(cupy: Any, run: Callable[[], object], budget_s: float) -> float:
    def finished() -> None:
        run()
        cupy.cuda.get_current_stream().synchronize()

    return _least_s(finished, budget_s)
