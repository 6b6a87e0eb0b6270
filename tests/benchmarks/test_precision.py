"""The report of two precisions counts ids from equal and from different features apart."""

from __future__ import annotations

import numpy as np

from mkc_fast.benchmarks.precision import compare
from tests.conftest import Artifacts


class Noisy:
    """An anonymizer whose features have an error, as those of another precision have."""

    def __init__(self, artifacts: Artifacts, error: float) -> None:
        self._real, self._error = artifacts.anonymizer, np.float32(error)

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)

    def encode(self, waveform: np.ndarray) -> np.ndarray:
        features = self._real.encode(waveform)
        return features + self._error * np.random.default_rng(0).standard_normal(features.shape).astype(np.float32)

    def anonymize(self, waveform: np.ndarray, *, mode: str, bank_ids: np.ndarray) -> object:
        result = self._real.anonymize(waveform, mode=mode, bank_ids=bank_ids)
        object.__setattr__(result, "cluster_ids", self._real.assign(self.encode(waveform), bank_ids))
        return result


def test_near_ties_are_reported_and_equal_features_give_equal_ids(artifacts: Artifacts, clip: np.ndarray) -> None:
    found = compare(artifacts.anonymizer, Noisy(artifacts, 0.2), [clip])  # type: ignore[arg-type]
    for mode in ("frame", "audio"):
        ids = found["cluster_ids"][mode]
        assert ids["agreement_from_the_same_features"] == 1
        ties = ids["near_ties"]
        assert ties["ids_that_differ"] > 0
        assert ties["not_explained"] == 0
        assert 0 < ties["largest_share_of_what_the_feature_error_explains"] <= 1
        assert ids["agreement"] == np.float64(f"{1 - ties['rate']:.4g}")


def test_a_model_equals_itself(artifacts: Artifacts, clip: np.ndarray) -> None:
    found = compare(artifacts.anonymizer, artifacts.anonymizer, [clip])
    assert found["cluster_ids"]["frame"]["near_ties"]["ids_that_differ"] == 0
    assert found["stages"]["features"]["rms_error"] == 0
