"""Invariant 1: every stage gives what the reference implementation gives."""

from __future__ import annotations

from pathlib import Path

import joblib
import numpy as np
import pytest

from mkc_fast.engine.audio.read import read_waveform
from mkc_fast.engine.datasets.path_lists import read_named_paths
from tests.conftest import RECORDINGS, Artifacts, needs_numpy_2

# Float32 rounding over the depth of these networks; the references are well conditioned (their README says 1e-5).
TOLERANCE = 1e-4
MODES = ("frame1", "frame4", "audio")


@pytest.fixture(params=RECORDINGS)
def recording(request: pytest.FixtureRequest, golden: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    waveform = read_waveform(golden / "audio" / f"{request.param}.wav", 16000)
    with np.load(golden / f"expected_{request.param}.npz") as loaded:
        return waveform, dict(loaded)


def banks_of(expected: dict[str, np.ndarray], mode: str) -> np.ndarray:
    if mode == "audio":
        return np.full(len(expected["features"]), expected["audio_bank"])
    return expected[f"{mode}_banks"]


@pytest.fixture(scope="module")
def centers(golden: Path) -> list[np.ndarray]:
    """The clusters of each entry as scikit-learn has them, (K, D) float64."""
    return [joblib.load(path).cluster_centers_ for _, path in read_named_paths(golden / "kmeans.scp")]


def quantized_of(expected: dict[str, np.ndarray], banks: np.ndarray, centers: list[np.ndarray]) -> np.ndarray:
    ids = expected["ids_all_banks"][banks, np.arange(len(banks))]
    return np.stack([centers[bank][cluster] for bank, cluster in zip(banks, ids, strict=True)]).astype(np.float32)


def test_features_equal_reference(recording, golden_artifacts: Artifacts) -> None:
    waveform, expected = recording
    np.testing.assert_allclose(
        golden_artifacts.anonymizer.encode(waveform), expected["features"], atol=TOLERANCE, rtol=0
    )


def test_cluster_ids_equal_reference_in_every_entry(recording, golden_artifacts: Artifacts) -> None:
    _, expected = recording
    for entry, ids in enumerate(expected["ids_all_banks"]):
        found = golden_artifacts.anonymizer.assign(expected["features"], np.full(len(ids), entry))
        np.testing.assert_array_equal(found, ids)


@needs_numpy_2
@pytest.mark.parametrize("mode", MODES)
def test_each_stage_equals_reference_from_reference_inputs(
    recording, mode: str, golden_artifacts: Artifacts, centers: list[np.ndarray]
) -> None:
    _, expected = recording
    anonymizer, banks = golden_artifacts.anonymizer, banks_of(expected, mode)
    quantized = quantized_of(expected, banks, centers)
    np.testing.assert_array_equal(anonymizer.lookup(banks, anonymizer.assign(expected["features"], banks)), quantized)
    restored = anonymizer.restore(quantized)
    np.testing.assert_allclose(restored, expected[f"{mode}_conformer"], atol=TOLERANCE, rtol=0)
    waveform = anonymizer.vocode(expected[f"{mode}_conformer"])
    np.testing.assert_allclose(waveform, expected[f"{mode}_waveform"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("mode", MODES)
def test_whole_pass_equals_reference(recording, mode: str, golden_artifacts: Artifacts) -> None:
    waveform, expected = recording
    result = golden_artifacts.anonymizer.anonymize(waveform, bank_ids=banks_of(expected, mode))
    np.testing.assert_allclose(result.waveform, expected[f"{mode}_waveform"], atol=TOLERANCE, rtol=0)
