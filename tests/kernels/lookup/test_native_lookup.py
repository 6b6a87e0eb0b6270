"""The look-up in C++ gives the right ids with every instruction set, number of threads and size of numbers."""

from __future__ import annotations

import os

import numpy as np
import pytest

from mkc_fast import BankError
from mkc_fast.kernels import HalfCentroids, NativeLookup, NumpyLookup, half_squared_norms, make_lookup, round_to_half
from mkc_fast.kernels.lookup.native_lookup import native_nearest
from tests.kernels.lookup.test_lookup import brute_force, half_of

pytestmark = pytest.mark.usefixtures("bits")

if native_nearest() is None:
    pytest.skip("the native operators are not built here: no C++ compiler, or no AVX2", allow_module_level=True)


def bank(centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[int]]:
    with np.errstate(under="ignore"):
        return (
            centroids,
            np.stack([half_squared_norms(each) for each in centroids]),
            [centroids.shape[1]] * len(centroids),
        )


def test_the_default_on_a_cpu_is_native() -> None:
    assert isinstance(make_lookup(*bank(np.ones((1, 2, 4), np.float32))), NativeLookup)
    strided = np.ones((1, 2, 8), np.float32)[:, :, ::2]
    assert isinstance(
        make_lookup(
            strided,
            np.full((1, 2), 2.0),
            [
                2,
            ],
        ),
        NumpyLookup,
    )


# From 60 on, frames are packed where they fill the vectors of a panel well enough, up to 96 together.
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 9, 13, 47, 59, 60, 63, 64, 65, 79, 95, 96, 97, 200])
@pytest.mark.parametrize(("clusters", "dim"), [(1, 37), (5, 37), (14, 128), (29, 5), (130, 37), (130, 300)])
def test_tiles_of_every_size(count: int, clusters: int, dim: int) -> None:
    rng = np.random.default_rng(count)
    centroids = rng.standard_normal((2, clusters, dim), np.float32)
    features, banks = rng.standard_normal((2 * count, dim), np.float32), np.repeat([1, 0], count)
    for threads in (1, 3, 16):
        for half in (None, half_of(centroids)):
            lookup = make_lookup(*bank(centroids), "native", threads=threads, half=half)
            np.testing.assert_array_equal(lookup.assign(features, banks), brute_force(lookup, features, banks))


@pytest.mark.parametrize("threads", [2, 5])
@pytest.mark.parametrize(("entries", "frames"), [(1, 300), (3, 40), (60, 400)])
def test_threads_share_entries_and_centroids(threads: int, entries: int, frames: int) -> None:
    rng = np.random.default_rng(entries)
    centroids = rng.standard_normal((entries, 300, 256), np.float32)
    features, banks = rng.standard_normal((frames, 256), np.float32), rng.integers(0, entries, frames)
    for half in (None, half_of(centroids)):
        lookup = make_lookup(*bank(centroids), "native", threads=threads, half=half)
        np.testing.assert_array_equal(lookup.assign(features, banks), brute_force(lookup, features, banks))


@pytest.mark.parametrize("count", [5, 40, 96, 300])
@pytest.mark.parametrize("dim", [64, 1024])
def test_near_ties_of_few_and_many_frames(count: int, dim: int) -> None:
    """Centroids in pairs that float32 sums cannot tell apart, and frames between the two of a pair."""
    rng = np.random.default_rng(dim)
    centroids = 10 + rng.standard_normal((1, 100, dim), np.float32)
    centroids[:, 1::2] = np.nextafter(centroids[:, ::2], np.float32(100))
    centroids[:, 1::2, : dim // 2] = centroids[:, ::2, : dim // 2]
    features = centroids[0, rng.integers(0, 100, count)]
    features[::3] = np.nextafter(features[::3], np.float32(0))
    for half in (None, half_of(centroids)):
        lookup = make_lookup(*bank(centroids), "native", half=half)
        ids = np.zeros(count, np.int64)
        np.testing.assert_array_equal(lookup.assign(features, ids), brute_force(lookup, features, ids))


@pytest.mark.parametrize("threads", [1, 4])
def test_frames_in_any_order_and_place_get_the_same_ids(threads: int) -> None:
    """Frames of an entry that lie together are multiplied where they are, others are copied or packed."""
    rng = np.random.default_rng(8)
    centroids = rng.standard_normal((3, 150, 200), np.float32)
    features, banks = rng.standard_normal((320, 200), np.float32), np.repeat([0, 2, 1], [40, 80, 200])
    order = rng.permutation(320)
    for half in (None, half_of(centroids)):
        lookup = make_lookup(*bank(centroids), "native", threads=threads, half=half)
        together = lookup.assign(features, banks)
        np.testing.assert_array_equal(together, brute_force(lookup, features, banks))
        np.testing.assert_array_equal(lookup.assign(features[order], banks[order]), together[order])


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system tells no cores of threads")
def test_the_cores_of_the_caller_stay() -> None:
    """Other threads are kept off the caller's core, also those that find no work left and end at once."""
    before = os.sched_getaffinity(0)
    # So much to read that eight threads are started, and so little to multiply that the first ones do it all.
    centroids = np.ones((4096, 2, 2048), np.float32)
    lookup = NativeLookup(centroids, np.full((4096, 2), 1024.0), [2] * 4096, threads=8)
    features, banks = np.ones((4096, 2048), np.float32), np.arange(4096)
    for _ in range(50):
        lookup.assign(features, banks)
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize("count", [6, 96])
def test_products_that_overflow(count: int) -> None:
    """Products that float32 cannot hold say nothing, so all centroids are compared in float64."""
    rng = np.random.default_rng(9)
    centroids = rng.choice(np.float32([-1e30, 1e30]), (1, 30, 64)).astype(np.float32)
    features = centroids[0, rng.integers(0, 30, count)]
    ids = np.zeros(count, np.int64)
    lookup = make_lookup(*bank(centroids), "native")
    np.testing.assert_array_equal(lookup.assign(features, ids), brute_force(lookup, features, ids))


@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e-6, 1.0, 1e6, 1e18, 1e33])
def test_a_copy_in_float16_of_any_size_gives_the_same_ids(size: float) -> None:
    """Also with an outlier that takes float16's range, and with centroids that float16 cannot tell apart."""
    rng = np.random.default_rng(3)
    centroids = rng.standard_normal((3, 50, 64), np.float32)
    centroids[1, :, 5] *= 1e4
    centroids[2] = centroids[2, :1] * (1 + 1e-5 * rng.standard_normal((50, 64), np.float32))
    centroids *= np.float32(size)
    features = centroids[[0, 1, 2] * 20, rng.integers(0, 50, 60)]
    features = features + (1e-4 * size * rng.standard_normal(features.shape)).astype(np.float32)
    banks = np.asarray([0, 1, 2] * 20)
    lookup = make_lookup(*bank(centroids), "native", half=half_of(centroids))
    np.testing.assert_array_equal(lookup.assign(features, banks), brute_force(lookup, features, banks))


def test_the_copy_is_within_its_errors() -> None:
    centroids = np.random.default_rng(0).standard_normal((40, 33)).astype(np.float32) * np.float32(1e20)
    values, errors, exponent = round_to_half(centroids)
    apart = np.linalg.norm(np.ldexp(values.astype(np.float64), exponent) - centroids, axis=1)
    assert (apart <= errors).all()
    assert (errors < 1e-3 * np.linalg.norm(centroids.astype(np.float64), axis=1)).all()
    assert 2**14 <= np.abs(values).max() <= 2**15


def test_the_copy_is_what_is_read() -> None:
    """A copy that lies, and says that it has no errors, is believed."""
    centroids = np.eye(2, 8, dtype=np.float32)[None]
    lie = HalfCentroids(centroids[:, ::-1].astype(np.float16), np.zeros((1, 2)), np.zeros(1, int))
    lookup = make_lookup(*bank(centroids), "native", half=lie)
    assert lookup.assign(centroids[0], [0, 0]).tolist() == [1, 0]


def test_a_copy_that_does_not_fit_is_refused() -> None:
    centroids = np.ones((2, 3, 8), np.float32)
    half = half_of(centroids)
    with pytest.raises(BankError, match=r"no bounds"):
        HalfCentroids(half.values, np.full((2, 3), np.nan), half.exponents)
    with pytest.raises(BankError, match=r"errors of shape"):
        HalfCentroids(half.values, half.errors[:1], half.exponents)
    with pytest.raises(BankError, match=r"for centroids"):
        make_lookup(*bank(centroids[:, :2].copy()), "native", half=half)


def test_more_frames_than_a_round() -> None:
    rng = np.random.default_rng(4)
    centroids = rng.standard_normal((3, 40, 16), np.float32)
    features, banks = rng.standard_normal((9000, 16), np.float32), rng.integers(0, 3, 9000)
    found = make_lookup(*bank(centroids), "native").assign(features, banks)
    np.testing.assert_array_equal(found, make_lookup(*bank(centroids), "numpy").assign(features, banks))


def test_no_frames() -> None:
    lookup = make_lookup(*bank(np.ones((1, 2, 4), np.float32)), "native")
    assert lookup.assign(np.zeros((0, 4), np.float32), []).shape == (0,)
