"""Sessions of fixed shapes: who shares an arena with whom, and which of them are closed."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest

from mkc_fast.engine.artifacts import read_model_info
from mkc_fast.engine.sessions import shaped
from mkc_fast.engine.sessions.opening import _residual_blocks
from mkc_fast.engine.sessions.providers import Plan
from mkc_fast.engine.sessions.shaped import ShapedSessions, StagedSessions, Use, share_arena
from mkc_fast.errors import DeviceError
from mkc_fast.kernels.cuda.residual_stages import ResidualBlocks, StagedBlocks
from mkc_fast.onnx_runtime import ort
from tests.conftest import Artifacts


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The arenas that ONNX Runtime was asked for."""
    asked: list[object] = []
    monkeypatch.setattr(shaped, "_arenas", {})
    monkeypatch.setattr(ort, "OrtMemoryInfo", lambda *what: what)
    monkeypatch.setattr(ort, "create_and_register_allocator_v2", lambda *what: asked.append(what), raising=False)
    return asked


def test_an_arena_is_shared_unless_its_limit_differs(made: list[object]) -> None:
    first, second = share_arena(0, None), share_arena(0, None)
    assert first is not None
    assert second is not None
    assert share_arena(0, 1 << 30) is None
    assert share_arena(1, 1 << 30) is not None
    assert len(made) == 2


def test_recordings_of_batches_have_an_arena_alone(made: list[object]) -> None:
    first = share_arena(0, None)
    assert share_arena(0, None, alone=True) is None, "recordings would overwrite what others keep there"
    del first
    gc.collect()
    alone = share_arena(0, None, alone=True)
    assert alone is not None
    assert share_arena(0, None) is None
    assert share_arena(0, None, alone=True) is None
    del alone
    gc.collect()
    assert share_arena(0, None) is not None
    assert len(made) == 1


def test_a_session_is_opened_once_for_each_shape_and_use() -> None:
    opened: list[tuple[object, ...]] = []

    def open_one(*key: object) -> object:
        opened.append(key)
        return object()

    sessions = ShapedSessions(open_one, shares_weights=True)  # type: ignore[arg-type]
    queued = sessions.get("wavlm", 1, 2)
    assert sessions.get("wavlm", 1, 2) is queued
    sessions.get("wavlm", 1, 2, Use.RECORDED_BATCH)

    def fail() -> None:
        with sessions.closed_on_failure():
            sessions.get("vocoder", 1, 2, Use.RECORDED_BATCH)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    sessions.close(Use.RECORDED_BATCH)
    assert len(opened) == 3
    assert sessions.get("wavlm", 1, 2) is queued
    sessions.get("vocoder", 1, 2, Use.RECORDED_BATCH)
    sessions.get("wavlm", 1, 2, Use.RECORDED_BATCH)
    assert len(opened) == 5


def test_parts_of_a_vocoder_have_the_sizes_of_their_cuts() -> None:
    opened: list[tuple[int, dict[str, int]]] = []

    def open_one(number: int, sizes: dict[str, int]) -> object:
        opened.append((number, sizes))
        return object()

    blocks = StagedBlocks([ResidualBlocks(10, []), ResidualBlocks(80, [])])
    sessions = StagedSessions(blocks, open_one)  # type: ignore[arg-type]
    first = sessions.get(0, 4, 100)
    assert sessions.get(0, 4, 100) is first
    sessions.get(1, 4, 100)
    sessions.get(2, 4, 100)
    assert opened == [
        (0, {"batch": 4, "frames": 100, "next_frames": 1000}),
        (1, {"batch": 4, "cut_frames": 1000, "next_frames": 8000}),
        (2, {"batch": 4, "cut_frames": 8000}),
    ]


def test_the_residual_kernel_is_refused_where_its_files_or_precision_are_missing(cuda_artifacts: Artifacts) -> None:
    model = cuda_artifacts.model
    info = read_model_info(model)
    half = Plan("cuda", "mixed", 0, fused=True)
    assert len(_residual_blocks(model, info, half).stages) == len(list(model.glob("vocoder.stage*.onnx"))) - 1
    for plan in (replace(half, precision="fp32"), replace(half, fused=False)):
        with pytest.raises(DeviceError, match="computes in half precision, with the graphs for CUDA"):
            _residual_blocks(model, info, plan)
    with pytest.raises(DeviceError, match=r"lacks vocoder\.residual\.fp16\.npz; 'mkc-fast export --cuda' writes it"):
        _residual_blocks(model, replace(info, files={}), half)
