"""Ids that differ because of the features' error are told from ids that are wrong."""

from __future__ import annotations

import numpy as np
import pytest

from mkc_fast.benchmarks.near_ties import joined, near_ties
from mkc_fast.kernels import make_lookup

ENTRIES, CLUSTERS, DIM, FRAMES = 3, 50, 16, 4000


@pytest.fixture(scope="module")
def bank() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((ENTRIES, CLUSTERS, DIM)).astype(np.float32)


@pytest.fixture(scope="module")
def frames() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.standard_normal((FRAMES, DIM)).astype(np.float32), rng.integers(0, ENTRIES, FRAMES)


def nearest(bank: np.ndarray, features: np.ndarray, banks: np.ndarray) -> np.ndarray:
    half_norms = 0.5 * (bank.astype(np.float64) ** 2).sum(2)
    return make_lookup(bank, half_norms, [CLUSTERS] * ENTRIES).assign(features, banks)


@pytest.mark.parametrize("error", [1e-3, 1e-2, 0.3])
def test_ids_of_right_look_ups_are_all_explained(
    bank: np.ndarray, frames: tuple[np.ndarray, np.ndarray], error: float
) -> None:
    """However large the error is: each look-up is right for its own features."""
    features, banks = frames
    noise = np.random.default_rng(2).standard_normal(features.shape).astype(np.float32)
    other = features + np.float32(error) * noise
    found = near_ties(bank, banks, features, nearest(bank, features, banks), other, nearest(bank, other, banks))
    assert found.differ > 0
    assert found.faults == 0
    assert 0 <= found.explained.max() <= 1
    assert (found.margins >= 0).all()
    said = found.report()
    assert said["rate"] == found.differ / FRAMES
    assert said["not_explained"] == 0


def test_a_smaller_error_changes_fewer_ids_and_by_less(bank: np.ndarray, frames: tuple[np.ndarray, np.ndarray]) -> None:
    features, banks = frames
    noise = np.random.default_rng(2).standard_normal(features.shape).astype(np.float32)
    ids = nearest(bank, features, banks)
    small, large = (
        near_ties(bank, banks, features, ids, other, nearest(bank, other, banks))
        for other in (features + np.float32(error) * noise for error in (1e-3, 1e-1))
    )
    assert small.differ < large.differ
    assert small.margins.max() < large.margins.max()


def test_an_id_that_no_error_explains_is_a_fault(bank: np.ndarray, frames: tuple[np.ndarray, np.ndarray]) -> None:
    features, banks = frames
    ids = nearest(bank, features, banks)
    wrong = ids.copy()
    wrong[7] = (ids[7] + 1) % CLUSTERS
    found = near_ties(bank, banks, features, ids, features + np.float32(1e-6), wrong)
    assert (found.differ, found.faults) == (1, 1)


def test_equal_features_explain_nothing(bank: np.ndarray, frames: tuple[np.ndarray, np.ndarray]) -> None:
    """Not even a tie: of equal distances the lowest id is taken everywhere."""
    features, banks = frames
    bank = bank.copy()
    bank[:, 1] = bank[:, 0]
    features = np.ascontiguousarray(bank[banks, 0])
    ids = nearest(bank, features, banks)
    assert (ids == 0).all()
    found = near_ties(bank, banks, features, ids, features, np.ones_like(ids))
    assert found.faults == found.differ == FRAMES


def test_a_reference_that_is_not_the_nearest_is_a_fault(
    bank: np.ndarray, frames: tuple[np.ndarray, np.ndarray]
) -> None:
    features, banks = frames
    ids = nearest(bank, features, banks)
    wrong = ids.copy()
    wrong[5] = (ids[5] + 1) % CLUSTERS
    found = near_ties(bank, banks, features, wrong, features + np.float32(0.01), ids)
    assert found.faults == 1


def test_slack_allows_for_the_error_of_another_frame(bank: np.ndarray, frames: tuple[np.ndarray, np.ndarray]) -> None:
    features, banks = frames
    noise = np.random.default_rng(2).standard_normal(features.shape).astype(np.float32)
    other, seen = (features + np.float32(0.1) * noise * np.float32(sign) for sign in (1, -1))
    ids = nearest(bank, features, banks)
    found = near_ties(bank, banks, features, ids, seen, nearest(bank, other, banks), slack=2.0)
    assert found.differ > 0
    assert found.faults == 0


def test_recordings_are_joined(bank: np.ndarray, frames: tuple[np.ndarray, np.ndarray]) -> None:
    features, banks = frames
    other = features + np.float32(0.1)
    whole = near_ties(bank, banks, features, nearest(bank, features, banks), other, nearest(bank, other, banks))
    halves = joined(
        near_ties(bank, banks[part], features[part], nearest(bank, features[part], banks[part]), other[part],
                  nearest(bank, other[part], banks[part]))
        for part in (slice(None, 1000), slice(1000, None))
    )  # fmt: skip
    assert halves.report() == pytest.approx(whole.report())
    assert joined([]).report()["rate"] == 0
