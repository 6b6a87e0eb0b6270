"""K-means models are fitted together: each as alone, as scikit-learn fits it, and on a GPU as on a CPU."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from sklearn.cluster import KMeans

from mkc_fast import BankError
from mkc_fast.cli import main
from mkc_fast.engine.artifacts import open_bank
from mkc_fast.kernels import half_squared_norms, make_lookup
from mkc_fast.kernels.cuda.segments import DeviceSegments
from mkc_fast.train import KMeansSettings, train_bank
from mkc_fast.train.kmeans import spread
from mkc_fast.train.lloyd import LloydFit, fit_together, start_of
from tests.conftest import Artifacts
from tests.fakes.cuda import shim
from tests.fakes.cuda.fake_cupy import FakeCupy

SETTINGS = KMeansSettings(clusters=12, n_init=3, tol=1e-4)


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> FakeCupy:
    """The stand-in for CuPy, which runs kernels on the CPU."""
    shim.library()
    fake = FakeCupy(schedule=2)
    monkeypatch.setitem(sys.modules, "cupy", fake)
    return fake


def speech(model: int) -> np.ndarray:
    random = np.random.default_rng(model)
    middles = random.standard_normal((9, 16)) * 3
    frames = 300 + 70 * model
    return (middles[random.integers(9, size=frames)] + random.standard_normal((frames, 16))).astype(np.float32)


def fitted(device: int | None, models: int = 3) -> tuple[list[np.ndarray], list[np.ndarray], list[LloydFit]]:
    features = [speech(model) for model in range(models)]
    starts = [start_of(each, SETTINGS, seed) for seed, each in enumerate(features)]
    return features, starts, fit_together(features, starts, SETTINGS, device)


def test_each_model_is_scikit_learns_from_the_same_start() -> None:
    features, starts, fits = fitted(None)
    for each, start, made in zip(features, starts, fits, strict=True):
        expected = KMeans(12, init=start, n_init=1, tol=SETTINGS.tol, algorithm="lloyd").fit(each.astype(np.float64))
        np.testing.assert_allclose(made.centroids, expected.cluster_centers_, atol=1e-5)
        assert made.inertia == pytest.approx(expected.inertia_ / len(each), rel=1e-6)
        assert made.iterations == expected.n_iter_
        inertia, empty = spread(each, made.centroids)
        assert (made.inertia, made.empty) == (pytest.approx(inertia, rel=1e-5), empty)
        assert made.counts.sum() == len(each)
        assert made.inertia < 0.9 * spread(each, start)[0]


def test_a_model_does_not_depend_on_those_beside_it() -> None:
    features, starts, fits = fitted(None)
    for each, start, made in zip(features, starts, fits, strict=True):
        (alone,) = fit_together([each], [start], SETTINGS)
        np.testing.assert_array_equal(alone.centroids, made.centroids)
        assert alone.iterations == made.iterations


def test_a_gpu_takes_the_same_steps_as_a_cpu(cupy: FakeCupy) -> None:
    _, _, here = fitted(None)
    _, _, there = fitted(0)
    for one, other in zip(here, there, strict=True):
        np.testing.assert_allclose(one.centroids, other.centroids, rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(one.counts, other.counts)
        assert one.iterations == other.iterations
        assert one.inertia == pytest.approx(other.inertia, rel=1e-6)
    assert {"sum_segments"} <= set(cupy.launched)


def test_a_cluster_without_frames_stays_where_it_is_and_is_counted() -> None:
    features = speech(0)
    start = start_of(features, SETTINGS, 1)
    start[5] = 1e3
    (made,) = fit_together([features], [start], SETTINGS)
    np.testing.assert_array_equal(made.centroids[5], start[5])
    assert (made.empty, made.counts[5]) == (1, 0)


def test_sums_of_segments_are_those_of_float64(cupy: FakeCupy) -> None:
    random = np.random.default_rng(3)
    rows = random.standard_normal((50, 300)).astype(np.float32)
    order = random.permutation(50).astype(np.int32)[:40]
    begins = np.asarray([0, 3, 3, 17, 40], np.int32)
    made = DeviceSegments(cupy).sums(cupy.asarray(rows), order, begins).get()
    expected = [rows[order[begin:end]].astype(np.float64).sum(0) for begin, end in pairwise(begins)]
    np.testing.assert_allclose(made, expected, rtol=1e-12, atol=1e-12)


def test_centroids_on_a_gpu_are_replaced_by_others_of_their_shape(cupy: FakeCupy) -> None:
    random = np.random.default_rng(4)
    first, second = random.standard_normal((2, 3, 10, 8)).astype(np.float32)
    norms = [np.stack([half_squared_norms(each) for each in bank]) for bank in (first, second)]
    lookup = make_lookup(first, norms[0], [10] * 3, "cupy")
    features, ids = random.standard_normal((60, 8)).astype(np.float32), random.integers(3, size=60)
    lookup.assign(features, ids)
    lookup.replace(second, norms[1])
    np.testing.assert_array_equal(
        lookup.assign(features, ids), make_lookup(second, norms[1], [10] * 3, "numpy").assign(features, ids)
    )
    np.testing.assert_array_equal(lookup.lookup(ids, np.zeros(60, int)), second[ids, 0])
    with pytest.raises(BankError, match="the bank has"):
        lookup.replace(second[:2], norms[1][:2])


def test_starts_repeat_with_their_seed_and_are_frames() -> None:
    features = speech(1)
    start = start_of(features, SETTINGS, 7)
    np.testing.assert_array_equal(start, start_of(features, SETTINGS, 7))
    assert not np.array_equal(start, start_of(features, SETTINGS, 8))
    assert {tuple(row) for row in start.tolist()} <= {tuple(row) for row in features.tolist()}


def test_a_bank_is_fitted_on_a_gpu_and_continues(
    artifacts: Artifacts, speech: Path, cupy: FakeCupy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = KMeansSettings(clusters=8, n_init=2)
    given = {"audio_list": speech, "settings": settings, "seed": 1, "fit_device": "cuda:0"}
    whole = train_bank(artifacts.model, tmp_path / "whole", save_kmeans=tmp_path / "km", **given)
    bank = open_bank(tmp_path / "whole")
    assert bank.info.num_clusters == [8] * len(bank.info.names)
    monkeypatch.setattr("mkc_fast.train.bank._MOST_TOGETHER", 1)
    ended, done = RuntimeError("ended"), []

    def end(progress) -> None:
        done.append(progress.done)
        if progress.done == 1:
            raise ended

    with pytest.raises(RuntimeError, match="ended"):
        train_bank(artifacts.model, tmp_path / "parts", progress=end, **given)
    made = train_bank(artifacts.model, tmp_path / "parts", **given)
    assert made.kept == 1
    np.testing.assert_allclose(open_bank(tmp_path / "parts").centroids, bank.centroids, rtol=1e-6, atol=1e-6)
    assert [each.inertia for each in made.info.training] == pytest.approx([e.inertia for e in whole.info.training])
    assert made.empty == whole.empty
    on_a_cpu = train_bank(artifacts.model, tmp_path / "cpu", audio_list=speech, settings=settings, seed=1)
    ratios = [a.inertia / b.inertia for a, b in zip(whole.info.training, on_a_cpu.info.training, strict=True)]
    assert 0.8 < np.mean(ratios) < 1.1


def test_without_a_gpu_the_command_says_so(artifacts: Artifacts, speech: Path, tmp_path: Path, capsys) -> None:
    command = ["bank", "train", "--model", artifacts.model, "--audio-scp", speech, "-k", 8, "--fit-device", "cuda:3"]
    assert main([*map(str, command), "--out", str(tmp_path / "bank")]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1  # before anything is encoded
    assert said[0].startswith("error: ")
