"""``bench precision``: what it reports of each precision, on a small model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from mkc_fast import DeviceError
from mkc_fast.benchmarks.cpu_precision import bench_precision
from mkc_fast.benchmarks.precision import log_spectral_distances
from mkc_fast.benchmarks.setup import Checkpoints
from mkc_fast.benchmarks.target import Target
from mkc_fast.cli.bench_tables import TABLES
from mkc_fast.export.model import export_model
from mkc_fast.kernels.cpu.loader import native_library

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Artifacts
    from tests.conftest import Checkpoints as CheckpointFiles


@pytest.mark.skipif(native_library() is None, reason="the native operators are not built here")
def test_each_precision_is_compared_and_one_without_graphs_is_named(
    checkpoints: CheckpointFiles,
    artifacts: Artifacts,
    clip: np.ndarray,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    export_model(checkpoints.wavlm, checkpoints.ckpt, tmp_path / "m", int16=True)
    record = bench_precision(
        Target(tmp_path / "m", artifacts.bank),
        [clip[:24_000], clip[24_000:48_000]],
        baseline=Checkpoints(checkpoints.wavlm, checkpoints.ckpt, checkpoints.kmeans_scp),
        rounds=1,
    )
    for part in record["beside_the_baseline"].values():
        assert set(part["baseline_divided_by_it"]) == {"fp32", "mixed", "int16"}
        assert all(len(ratios) == 1 and ratios[0] > 0 for ratios in part["baseline_divided_by_it"].values())
    assert list(record["precisions"]) == ["mixed", "int16"]
    assert any("export --int8" in line for line in record["cut"])
    mixed, int16 = record["precisions"].values()
    for mode in ("audio", "frame"):
        assert mixed["cluster_ids"][mode]["agreement"] == 1
        assert 0.9 < int16["cluster_ids"][mode]["agreement"] <= 1
    assert mixed["stages"]["features"]["rms_error"] == 0
    assert int16["stages"]["features"]["rms_error"] > 0
    for found in (mixed, int16):
        assert 40 < found["waveform_snr"]["conformer and vocoder, from the same cluster ids, frame mode"]["snr_db"] < 90
        assert 0 < found["log_spectral_distance_db"]["frame"] < 3
        assert found["times"]["fp32_divided_by_it"]["all"] > 0
    TABLES["precision"](record)
    assert "int16" in capsys.readouterr().out


def test_it_is_for_the_cpu(artifacts: Artifacts, clip: np.ndarray) -> None:
    with pytest.raises(DeviceError, match="precisions of the device cpu"):
        bench_precision(Target(artifacts.model, artifacts.bank, "cuda:0"), [clip])


def test_log_spectral_distance_of_a_louder_copy_is_its_gain(clip: np.ndarray) -> None:
    assert log_spectral_distances(clip, clip, 16_000).max() == 0
    noise = np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    np.testing.assert_allclose(log_spectral_distances(10 * noise, noise, 16_000), 20.0, rtol=1e-5)
    assert len(log_spectral_distances(clip[:100], clip[:100], 16_000)) == 0
