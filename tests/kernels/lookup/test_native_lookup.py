"""The look-up in C++ gives the right ids with every instruction set, number of threads and size of numbers."""

from __future__ import annotations

import numpy as np
import pytest

from mkc_fast.kernels import NativeLookup, NumpyLookup, half_squared_norms, make_lookup
from mkc_fast.kernels.lookup.native_lookup import native_nearest
from tests.kernels.lookup.test_lookup import brute_force

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


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 9, 13, 96, 97, 200])
@pytest.mark.parametrize("clusters", [1, 5, 130])
def test_tiles_of_every_size(count: int, clusters: int) -> None:
    rng = np.random.default_rng(count)
    centroids = rng.standard_normal((2, clusters, 37), np.float32)
    features, banks = rng.standard_normal((2 * count, 37), np.float32), np.repeat([1, 0], count)
    for threads in (1, 3, 16):
        lookup = make_lookup(*bank(centroids), "native", threads=threads)
        np.testing.assert_array_equal(lookup.assign(features, banks), brute_force(lookup, features, banks))


@pytest.mark.parametrize("threads", [2, 5])
@pytest.mark.parametrize(("entries", "frames"), [(1, 300), (3, 40), (60, 400)])
def test_threads_share_entries_and_centroids(threads: int, entries: int, frames: int) -> None:
    rng = np.random.default_rng(entries)
    centroids = rng.standard_normal((entries, 300, 256), np.float32)
    features, banks = rng.standard_normal((frames, 256), np.float32), rng.integers(0, entries, frames)
    lookup = make_lookup(*bank(centroids), "native", threads=threads)
    np.testing.assert_array_equal(lookup.assign(features, banks), brute_force(lookup, features, banks))


def test_more_frames_than_a_round() -> None:
    rng = np.random.default_rng(4)
    centroids = rng.standard_normal((3, 40, 16), np.float32)
    features, banks = rng.standard_normal((9000, 16), np.float32), rng.integers(0, 3, 9000)
    found = make_lookup(*bank(centroids), "native").assign(features, banks)
    np.testing.assert_array_equal(found, make_lookup(*bank(centroids), "numpy").assign(features, banks))


def test_no_frames() -> None:
    lookup = make_lookup(*bank(np.ones((1, 2, 4), np.float32)), "native")
    assert lookup.assign(np.zeros((0, 4), np.float32), []).shape == (0,)
