"""Windows cover a sequence once, and give every kept frame its whole context."""

from __future__ import annotations

import pytest

from mkc_fast.engine.windows import common_window, exact_windows


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


@pytest.mark.parametrize("frames", [[629], [1750, 629, 40], [400, 399], [31], [500] * 9, [10_000, 1]])
def test_a_common_window_fits_all_and_wastes_little(frames: list[int]) -> None:
    size = common_window(frames, 500, 15)
    assert 30 < size <= 500
    windows = [window for count in frames for window in exact_windows(count, size, 15)]
    assert all(window.stop - window.start <= size for window in windows)
    longest = exact_windows(max(frames), size, 15)
    computed = sum(window.stop - window.start for window in longest)
    assert computed <= max(frames) + 30 * (len(longest) - 1) + len(longest)  # the overlaps, and rounding up
