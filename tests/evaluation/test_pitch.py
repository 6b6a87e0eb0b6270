"""Pitch is compared over the frames that are voiced in both recordings."""

from __future__ import annotations

import numpy as np
import pytest

from mkc_fast.evaluation.pitch import compare

COURSE = np.where(np.arange(100) % 10 < 7, 120 + 30 * np.sin(np.arange(100) / 7), 0).astype(np.float32)


def test_a_course_correlates_with_itself_and_with_its_shift() -> None:
    same, higher = compare(COURSE, COURSE), compare(COURSE, COURSE * np.float32(2 ** (3 / 12)))
    assert (same.correlation, same.semitones, same.same_voicing) == (pytest.approx(1), 0, 1)
    assert higher.correlation == pytest.approx(1)
    assert higher.semitones == pytest.approx(3, abs=1e-4)


def test_a_mirrored_course_correlates_negatively() -> None:
    mirrored = np.where(COURSE > 0, 120**2 / np.maximum(COURSE, 1), 0).astype(np.float32)
    assert compare(COURSE, mirrored).correlation == pytest.approx(-1)


def test_frames_that_are_voiced_on_one_side_alone_do_not_count() -> None:
    other = COURSE.copy()
    other[3:7] = 0
    found = compare(COURSE, other)
    assert found.correlation == pytest.approx(1)
    assert found.same_voicing == pytest.approx(0.96)


@pytest.mark.parametrize("other", [np.zeros(100, np.float32), np.full(100, 100, np.float32)])
def test_without_voice_and_of_a_constant_pitch_there_is_no_correlation(other: np.ndarray) -> None:
    assert compare(COURSE, other).correlation is None


def test_a_slower_recording_is_compared_at_the_same_share_of_its_length() -> None:
    assert compare(COURSE, np.repeat(COURSE, 2)).correlation == pytest.approx(1)
    assert compare(np.repeat(COURSE, 2), COURSE).correlation == pytest.approx(1)
