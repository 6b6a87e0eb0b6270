"""Windows cover a sequence once, and give every kept frame its whole context."""

from __future__ import annotations

import numpy as np
import pytest

from mkc_fast.engine import anonymizer as module
from mkc_fast.engine.windows import exact_windows
from tests.conftest import Artifacts


@pytest.mark.parametrize("frames", [1, 40, 41, 59, 60, 61, 100, 1000])
@pytest.mark.parametrize(("size", "reach"), [(40, 15), (31, 15), (40, 0)])
def test_every_frame_is_kept_once_with_its_context(frames: int, size: int, reach: int) -> None:
    windows = exact_windows(frames, size, reach)
    assert [frame for w in windows for frame in range(w.keep_start, w.keep_stop)] == list(range(frames))
    for w in windows:
        assert w.stop - w.start == min(size, frames)
        assert w.start == 0 or w.keep_start - w.start >= reach
        assert w.stop == frames or w.stop - w.keep_stop >= reach


def test_windows_without_room_are_refused() -> None:
    with pytest.raises(ValueError, match="keep nothing"):
        exact_windows(100, 30, 15)


def test_windowed_vocoder_equals_the_whole(artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    features = np.random.default_rng(0).standard_normal((500, 64)).astype(np.float32)
    whole = artifacts.anonymizer.vocode(features)
    monkeypatch.setattr(module, "_VOCODER_WINDOW_FRAMES", 1)
    cut = artifacts.anonymizer.vocode(features)
    # The same sums in another order: rounding, not context.
    np.testing.assert_allclose(cut, whole, atol=1e-5, rtol=0)
