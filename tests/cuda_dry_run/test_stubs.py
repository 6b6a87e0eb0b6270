"""The stubs notice what CUDA would refuse, and their log is counted right."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.cuda.dry_run.build import CannotBuildError, Stubs, build
from tests.fakes.cuda.dry_run.calls import Calls, count, short_name
from tests.fakes.cuda.dry_run.programs import run_python

# A program's first lines: the runtime, a stream, memory of 1 MiB, and page-locked memory of as much.
PROLOGUE = """
import ctypes
cuda = ctypes.CDLL("libcudart.so.13")
size, stream, memory, pinned = ctypes.c_size_t(1 << 20), ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
assert cuda.cudaStreamCreateWithFlags(ctypes.byref(stream), 1) == 0
assert cuda.cudaMalloc(ctypes.byref(memory), size) == 0
assert cuda.cudaHostAlloc(ctypes.byref(pinned), size, 0) == 0
H2D, D2H = 1, 2
"""


@pytest.fixture
def calls_of(stubs: Stubs, tmp_path: Path) -> Callable[..., Calls]:
    def run(program: str, memory_mb: int | None = None) -> Calls:
        return run_python(stubs, PROLOGUE + textwrap.dedent(program), tmp_path, memory_mb=memory_mb).calls

    return run


def test_what_is_right_is_not_called_wrong(calls_of: Callable[..., Calls]) -> None:
    calls = calls_of("""
        assert cuda.cudaMemcpyAsync(memory, pinned, size, H2D, stream) == 0
        assert cuda.cudaStreamSynchronize(stream) == 0
        assert cuda.cudaFree(memory) == 0
    """)
    assert (calls.mallocs, calls.malloc_bytes, calls.frees, calls.pins, calls.waits) == (1, 1 << 20, 1, 1, 1)
    assert calls.copies == {"H2D async": 1}
    assert calls.copied_bytes == {"H2D": 1 << 20}
    assert (calls.wrong, calls.refused, calls.null_stream) == ([], [], 0)


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("cuda.cudaFree(memory); cuda.cudaFree(memory)", "no allocation"),
        ("cuda.cudaFree(ctypes.c_void_p(memory.value + 8))", "no allocation"),
        ("cuda.cudaMemcpy(memory, pinned, ctypes.c_size_t(size.value + 1), H2D)", "not that much is allocated"),
        ("cuda.cudaMemset(ctypes.c_void_p(memory.value + 8), 0, size)", "not that much is allocated"),
        ("cuda.cudaStreamDestroy(stream); cuda.cudaMemsetAsync(memory, 0, size, stream)", "which is no stream"),
        ("cuda.cudaEventRecord(stream, stream)", "record of an event"),
    ],
)
def test_what_cuda_would_not_take_is_wrong(program: str, said: str, calls_of: Callable[..., Calls]) -> None:
    assert said in "; ".join(calls_of(program).wrong)


@pytest.mark.parametrize(
    "call",
    [
        "cuda.cudaMalloc(ctypes.byref(pinned), size)",
        "cuda.cudaStreamSynchronize(stream)",
        "cuda.cudaMemcpy(memory, pinned, size, H2D)",
        "cuda.cudaMemsetAsync(memory, 0, size, None)",
    ],
)
def test_what_a_capture_refuses_is_noticed(call: str, calls_of: Callable[..., Calls]) -> None:
    capture = "cuda.cudaStreamBeginCapture(stream, 0); {}; cuda.cudaStreamEndCapture(stream, ctypes.byref(memory))"
    assert calls_of(capture.format("cuda.cudaMemsetAsync(memory, 0, size, stream)")).refused == []
    assert len(calls_of(capture.format(call)).refused) == 1


def test_a_copy_that_would_wait_is_told_from_one_that_would_not(calls_of: Callable[..., Calls]) -> None:
    calls = calls_of("""
        pageable = ctypes.create_string_buffer(1 << 20)
        cuda.cudaMemcpyAsync(pageable, memory, size, D2H, stream)
    """)
    assert calls.copies == {"D2H pageable": 1}


def test_the_direction_of_a_copy_is_seen_from_its_addresses(calls_of: Callable[..., Calls]) -> None:
    calls = calls_of("""
        ANY = 4
        cuda.cudaMemcpyAsync(pinned, memory, size, ANY, stream)
        cuda.cudaMemcpyAsync(memory, memory, size, ANY, stream)
    """)
    assert calls.copies == {"D2H async": 1, "D2D async": 1}


def test_memory_has_an_end(calls_of: Callable[..., Calls]) -> None:
    calls = calls_of(
        """
        OUT_OF_MEMORY, other = 2, ctypes.c_void_p()
        assert cuda.cudaMalloc(ctypes.byref(other), size) == OUT_OF_MEMORY
        assert cuda.cudaGetLastError() == OUT_OF_MEMORY
        assert cuda.cudaGetLastError() == 0
        cuda.cudaFree(memory)
        assert cuda.cudaMalloc(ctypes.byref(other), size) == 0
        """,
        memory_mb=1,
    )
    assert (calls.mallocs, calls.short) == (2, 1)


def test_where_the_stubs_cannot_be_built_the_reason_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CannotBuildError, match=r"gcc is not on PATH|are for Linux"):
        build(tmp_path)


def test_lines_are_counted_by_their_first_word() -> None:
    calls = count(
        [
            "kernel 0x5 1024 _ZN11onnxruntime4cuda4fillIfEEvPT_",
            "kernel 0x5 2048 _ZN11onnxruntime4cuda4fillIdEEvPT_",
            "gemm 0x5 8 cublasGemmEx 2x2x2 batch=1 type=0",
            "plan - 1 cudnn",
            "execute 0x5 1 cudnn",
            "library 0x0 1 cudnnAddTensor",
            "copy 0x5 64 D2D async",
            "copy - 32 D2H sync",
            "capture - 1 begin",
            "capture - 0 end",
            "instantiate - 7 ",
            "replay 0x5 7 ",
            "short - 4096 malloc",
            "wrong - 0 free of 0x1, which is no allocation",
        ]
    )
    assert calls.kernels == {"fill": 2}
    assert (calls.gemms, calls.plans, calls.executions, calls.launches) == (1, 1, 1, 5)
    assert (calls.host_copies, calls.copied_bytes) == (1, {"D2D": 64, "D2H": 32})
    assert (calls.captures, calls.recorded_calls, calls.replays, calls.short, calls.null_stream) == (1, 7, 1, 1, 1)
    assert calls.wrong == ["free of 0x1, which is no allocation"]
    assert Calls.from_json(calls.to_json()) == calls


@pytest.mark.parametrize(
    ("mangled", "short"),
    [
        ("_ZN11onnxruntime4cuda4fillIfEEvPT_", "fill"),
        ("_ZN2at6nativeL6kernelEv", "kernel"),
        ("_Z6kernelPf", "kernel"),
        ("nearest_tile", "nearest_tile"),
    ],
)
def test_a_kernel_is_called_by_its_own_name(mangled: str, short: str) -> None:
    assert short_name(mangled) == short
