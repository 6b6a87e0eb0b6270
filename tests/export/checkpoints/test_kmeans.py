"""The k-means reader gets from every pickle that scikit-learn users make what scikit-learn itself gets."""

from __future__ import annotations

import copy
import gzip
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mkc_fast import CheckpointError
from mkc_fast.export.checkpoints.joblib_writer import write_kmeans
from mkc_fast.export.checkpoints.kmeans import read_kmeans
from tests.conftest import GOLDEN

joblib = pytest.importorskip("joblib")
cluster = pytest.importorskip("sklearn.cluster")

ESTIMATORS = ("KMeans", "MiniBatchKMeans")
PROTOCOLS = range(6)
COMPRESSIONS = (0, "zlib", "gzip", "bz2", "xz", "lzma")
DTYPES = (np.float64, np.float32)
NUM_CLUSTERS, DIM = 5, 3


@pytest.fixture(scope="module")
def fitted() -> dict[tuple[str, type[Any]], Any]:
    """A fitted estimator of each kind and type."""
    frames = np.random.default_rng(0).standard_normal((60, DIM))
    return {
        (name, dtype): getattr(cluster, name)(NUM_CLUSTERS, n_init=1, random_state=0).fit(frames.astype(dtype))
        for name in ESTIMATORS
        for dtype in DTYPES
    }


def in_order(model: Any, order: str) -> Any:
    """The estimator with its centroids in C or in Fortran order in memory."""
    ordered = copy.copy(model)
    ordered.cluster_centers_ = np.array(model.cluster_centers_, order=order)
    assert ordered.cluster_centers_.flags[f"{order}_CONTIGUOUS"]
    return ordered


def check(data: bytes, model: Any) -> None:
    read = read_kmeans(Path("model.pt"), data)
    assert read.shape == (NUM_CLUSTERS, DIM)
    assert read.centroids is not None
    assert read.centroids.dtype == model.cluster_centers_.dtype
    np.testing.assert_array_equal(read.centroids, model.cluster_centers_)
    only_shape = read_kmeans(Path("model.pt"), data, shape_only=True)
    assert only_shape.shape == (NUM_CLUSTERS, DIM)
    assert only_shape.centroids is None


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_joblib_dumps(fitted: dict[Any, Any], protocol: int, compression: str | int) -> None:
    for model in fitted.values():
        for order in "CF":
            file = io.BytesIO()
            ordered = in_order(model, order)
            joblib.dump(ordered, file, compress=(compression, 3) if compression else 0, protocol=protocol)
            check(file.getvalue(), ordered)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_pickle_dumps(fitted: dict[Any, Any], protocol: int) -> None:
    for model in fitted.values():
        for order in "CF":
            ordered = in_order(model, order)
            check(pickle.dumps(ordered, protocol), ordered)
            check(pickle._dumps(ordered, protocol), ordered)  # type: ignore[attr-defined]  # the pickler in Python


def test_a_model_larger_than_any_buffer(fitted: dict[Any, Any]) -> None:
    model = copy.copy(fitted["KMeans", np.float64])
    model.cluster_centers_ = np.random.default_rng(0).standard_normal((700, 300))  # 1.7 MB; blocks are of 0.3 MB
    model.labels_ = np.arange(700, dtype=np.int32)
    for compression in COMPRESSIONS:
        file = io.BytesIO()
        joblib.dump(model, file, compress=(compression, 1) if compression else 0)
        read = read_kmeans(Path("model.pt"), file.getvalue())
        np.testing.assert_array_equal(read.centroids, model.cluster_centers_)
        assert read_kmeans(Path("model.pt"), file.getvalue(), shape_only=True).shape == (700, 300)


@pytest.mark.parametrize("dtype", [">f8", ">f4", "<f2"])
def test_other_byte_orders_and_half_precision(fitted: dict[Any, Any], dtype: str) -> None:
    model = copy.copy(fitted["KMeans", np.float64])
    model.cluster_centers_ = model.cluster_centers_.astype(dtype)
    for data in (pickle.dumps(model), dumped(model)):
        read = read_kmeans(Path("model.pt"), data)
        assert read.centroids is not None
        assert read.centroids.dtype.isnative
        np.testing.assert_array_equal(read.centroids, model.cluster_centers_)


def dumped(model: Any) -> bytes:
    file = io.BytesIO()
    joblib.dump(model, file)
    return file.getvalue()


def test_a_random_state_and_initial_centroids_are_no_obstacle() -> None:
    frames = np.random.default_rng(0).standard_normal((40, DIM))
    model = cluster.KMeans(NUM_CLUSTERS, init=frames[:NUM_CLUSTERS], n_init=1, random_state=np.random.RandomState(1))
    model.fit(frames)
    for protocol in PROTOCOLS:
        check(pickle.dumps(model, protocol), model)
        file = io.BytesIO()
        joblib.dump(model, file, protocol=protocol)
        check(file.getvalue(), model)


def test_a_partially_fitted_model() -> None:
    model = cluster.MiniBatchKMeans(NUM_CLUSTERS, n_init=1, random_state=0)
    for seed in range(3):
        model.partial_fit(np.random.default_rng(seed).standard_normal((20, DIM)))
    check(dumped(model), model)
    check(pickle.dumps(model), model)


def test_a_file_is_read_as_its_bytes_are(fitted: dict[Any, Any], tmp_path: Path) -> None:
    model = fitted["KMeans", np.float64]
    link = tmp_path / "link.pt"
    link.symlink_to(tmp_path / "model.pt")
    for compression in (0, 3):
        joblib.dump(model, tmp_path / "model.pt", compress=compression)
        for path in (tmp_path / "model.pt", link):
            np.testing.assert_array_equal(read_kmeans(path).centroids, model.cluster_centers_)
            assert read_kmeans(path, shape_only=True).shape == (NUM_CLUSTERS, DIM)


def test_what_gzip_made_of_a_pickle(fitted: dict[Any, Any]) -> None:
    model = fitted["KMeans", np.float64]
    check(gzip.compress(pickle.dumps(model)), model)


def test_clusters_without_frames_are_reported(fitted: dict[Any, Any]) -> None:
    by_labels, by_counts = (copy.copy(fitted[name, np.float64]) for name in ESTIMATORS)
    by_labels.labels_ = np.array([0, 0, 2, 4], np.int32)
    by_counts._counts = np.array([3.0, 0.0, 1.0, 1.0, 0.0])
    assert read_kmeans(Path("model.pt"), dumped(by_labels)).unused == (1, 3)
    assert read_kmeans(Path("model.pt"), dumped(by_counts)).unused == (1, 4)


def test_a_model_of_an_older_scikit_learn_equals_its_recorded_centroids() -> None:
    read = read_kmeans(GOLDEN / "kmeans" / "old_sklearn.pt")
    np.testing.assert_array_equal(read.centroids, np.load(GOLDEN / "old_sklearn_centers.npy"))


def test_a_model_written_without_scikit_learn(tmp_path: Path) -> None:
    centroids = np.random.default_rng(0).standard_normal((4, 2)).astype(np.float32)
    write_kmeans(tmp_path / "model.pt", centroids)
    np.testing.assert_array_equal(read_kmeans(tmp_path / "model.pt").centroids, centroids)


@pytest.mark.parametrize(
    ("centroids", "why"),
    [
        (np.zeros((0, 3)), "shape"),
        (np.zeros((3, 0)), "shape"),
        (np.zeros(3), "shape"),
        (np.zeros((2, 2, 2)), "shape"),
        (np.zeros((3, 2), np.int64), "floats"),
        (np.zeros((3, 2), bool), "floats"),
        (np.zeros((3, 2), complex), "cluster_centers_|array of objects"),
        (np.array([[None, 1.0]]), "cluster_centers_|array of objects"),
        (np.array([[np.nan, 1.0]]), "not finite"),
        (np.array([[np.inf, 1.0]]), "not finite"),
        (None, "not fitted"),
        ([[1.0, 2.0]], "not fitted"),
    ],
    ids=str,
)
def test_centroids_that_are_no_finite_float_matrix_are_refused(
    fitted: dict[Any, Any], centroids: Any, why: str
) -> None:
    model = copy.copy(fitted["KMeans", np.float64])
    model.cluster_centers_ = centroids
    for data in (pickle.dumps(model), dumped(model)):
        with pytest.raises(CheckpointError, match=why):
            read_kmeans(Path("model.pt"), data)


def test_an_estimator_that_was_not_fitted_is_refused() -> None:
    with pytest.raises(CheckpointError, match="not fitted"):
        read_kmeans(Path("model.pt"), pickle.dumps(cluster.KMeans(3)))


def test_other_pickles_are_refused() -> None:
    for other in (None, 1, "text", {"cluster_centers_": [1.0]}, [1, 2]):
        with pytest.raises(CheckpointError, match="not a KMeans"):
            read_kmeans(Path("model.pt"), pickle.dumps(other))
    with pytest.raises(CheckpointError, match="DBSCAN"):
        read_kmeans(Path("model.pt"), pickle.dumps(cluster.DBSCAN()))
