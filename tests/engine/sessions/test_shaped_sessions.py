"""Sessions of fixed shapes: who shares an arena with whom, and which of them are closed."""

from __future__ import annotations

import gc

import pytest

from mkc_fast.engine.sessions import shaped
from mkc_fast.engine.sessions.shaped import ShapedSessions, Use, share_arena
from mkc_fast.onnx_runtime import ort


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
