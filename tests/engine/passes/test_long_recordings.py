"""Recordings longer than a window: no clicks at the joints, features close to the whole's."""

from __future__ import annotations

import numpy as np
import pytest

from mkc_fast import Anonymizer, MkcError
from mkc_fast.engine.passes import host as module
from mkc_fast.engine.windows import NUMPY_ROWS, crossfaded
from tests.conftest import Artifacts


@pytest.fixture(scope="module")
def windowed(artifacts: Artifacts) -> Anonymizer:
    """The same model, with the shortest windows there are: 8 s, or 400 frames."""
    return Anonymizer.load(artifacts.model, artifacts.bank, max_window_s=8)


def noise(seconds: float) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(int(16000 * seconds)).astype(np.float32) * np.float32(0.1)


@pytest.mark.parametrize("frames", [1, 50, 99, 100, 101, 180, 181, 1000])
def test_crossfaded_pieces_cover_the_sequence_once(frames: int) -> None:
    whole = np.arange(frames, dtype=np.float32)[:, None]
    pieces = list(crossfaded(frames, 100, 20, lambda start, stop: whole[start:stop], NUMPY_ROWS))
    assert [start for start, _ in pieces] == np.cumsum([0, *(len(piece) for _, piece in pieces[:-1])]).tolist()
    # What all windows agree on is not changed by fading between them.
    np.testing.assert_allclose(np.concatenate([piece for _, piece in pieces]), whole, rtol=1e-6)


def test_fading_is_gradual() -> None:
    # Windows that disagree: the first says 0, the second 1, and so on. No step is larger than one of the ramp.
    pieces = crossfaded(
        460, 100, 40, lambda start, stop: np.full((stop - start, 1), start / 60, np.float32), NUMPY_ROWS
    )
    values = np.concatenate([piece for _, piece in pieces])[:, 0]
    assert values[0] == 0
    assert values[-1] == 6
    assert np.abs(np.diff(values)).max() <= 1 / 20 + 1e-6


def test_a_recording_of_one_window_is_not_cut(artifacts: Artifacts, windowed: Anonymizer) -> None:
    waveform = noise(8)  # 399 frames
    np.testing.assert_array_equal(windowed.encode(waveform), artifacts.anonymizer.encode(waveform))


def test_windowed_features_are_close_to_the_whole(artifacts: Artifacts, windowed: Anonymizer) -> None:
    waveform = noise(30)
    whole, cut = artifacts.anonymizer.encode(waveform), windowed.encode(waveform)
    assert cut.shape == whole.shape
    # Random weights attend evenly to everything, which is the worst case. It is small beside what tells frames apart,
    # and no joint stands out.
    error = np.abs(cut - whole).mean(axis=1)
    assert error.mean() < 0.2 * np.abs(whole[100:] - whole[:-100]).mean()
    assert error.max() < 8 * np.median(error)


@pytest.mark.parametrize("size", [1, 100])  # 1 stands for the smallest, four times the reach
def test_joints_of_the_vocoder_equal_the_unwindowed_one(
    size: int, artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = np.random.default_rng(1).standard_normal((1200, 64)).astype(np.float32)
    whole = artifacts.anonymizer.vocode(features)
    monkeypatch.setattr(module, "_VOCODER_WINDOW_FRAMES", size)
    cut = artifacts.anonymizer.vocode(features)
    # The same sums in another order: rounding, not context.
    np.testing.assert_allclose(cut, whole, atol=1e-5, rtol=0)


def test_anonymize_equals_its_own_stages(windowed: Anonymizer) -> None:
    waveform = noise(40)
    result = windowed.anonymize(waveform, seed=1, utterance_id="long")
    ids = windowed.assign(windowed.encode(waveform), result.bank_ids)
    np.testing.assert_array_equal(ids, result.cluster_ids)
    speech = windowed.vocode(windowed.restore(windowed.lookup(result.bank_ids, ids)))
    np.testing.assert_allclose(result.waveform, speech, atol=1e-5, rtol=0)


def test_long_recordings_in_a_batch_equal_those_alone(windowed: Anonymizer) -> None:
    waveforms = [noise(20), noise(3), noise(9)]
    batch = windowed.anonymize_batch(waveforms, seed=1, utterance_ids=["a", "b", "c"], batch_s=60)
    for name, waveform, result in zip("abc", waveforms, batch, strict=True):
        alone = windowed.anonymize(waveform, seed=1, utterance_id=name)
        np.testing.assert_array_equal(result.cluster_ids, alone.cluster_ids)
        np.testing.assert_allclose(result.waveform, alone.waveform, atol=1e-4, rtol=0)


def test_windows_too_short_to_fade_are_refused(artifacts: Artifacts) -> None:
    with pytest.raises(MkcError, match="at least 8"):
        Anonymizer.load(artifacts.model, artifacts.bank, max_window_s=5)
