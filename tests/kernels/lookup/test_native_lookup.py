"""The look-up in C++ gives the right ids with every instruction set, number of threads and size of numbers."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import numpy as np
import pytest

from mkc_fast.kernels import NativeLookup, NumpyLookup, half_squared_norms, make_lookup
from mkc_fast.kernels.cpu.loader import native_library
from mkc_fast.kernels.lookup.native_lookup import native_nearest

pytestmark = pytest.mark.skipif(
    native_nearest() is None, reason="the native operators are not built or cannot run here"
)


@pytest.fixture(params=[512, 256], ids=["AVX-512", "AVX2"], autouse=True)
def instruction_set(request: pytest.FixtureRequest) -> Iterator[None]:
    library = ctypes.CDLL(str(native_library()))
    library.mkc_fast_limit_vector_bits(request.param)
    if library.mkc_fast_vector_bits() != request.param:
        pytest.skip("this processor has no AVX-512")
    yield
    library.mkc_fast_limit_vector_bits(512)


def bank(centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[int]]:
    with np.errstate(under="ignore"):
        return (
            centroids,
            np.stack([half_squared_norms(each) for each in centroids]),
            [centroids.shape[1]] * len(centroids),
        )


def nearest(centroids: np.ndarray, features: np.ndarray, banks: np.ndarray) -> np.ndarray:
    wide = centroids.astype(np.float64)
    pairs = zip(features.astype(np.float64), banks, strict=True)
    return np.array([((wide[entry] - frame) ** 2).sum(-1).argmin() for frame, entry in pairs])


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
    expected = nearest(centroids, features, banks)
    for threads in (1, 3, 16):
        found = make_lookup(*bank(centroids), "native", threads=threads).assign(features, banks)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("threads", [2, 5])
@pytest.mark.parametrize(("entries", "frames"), [(1, 300), (3, 40), (60, 400)])
def test_threads_share_entries_and_centroids(threads: int, entries: int, frames: int) -> None:
    rng = np.random.default_rng(entries)
    centroids = rng.standard_normal((entries, 300, 256), np.float32)
    features, banks = rng.standard_normal((frames, 256), np.float32), rng.integers(0, entries, frames)
    found = make_lookup(*bank(centroids), "native", threads=threads).assign(features, banks)
    np.testing.assert_array_equal(found, nearest(centroids, features, banks))


def test_more_frames_than_a_round() -> None:
    rng = np.random.default_rng(4)
    centroids = rng.standard_normal((3, 40, 16), np.float32)
    features, banks = rng.standard_normal((9000, 16), np.float32), rng.integers(0, 3, 9000)
    found = make_lookup(*bank(centroids), "native").assign(features, banks)
    np.testing.assert_array_equal(found, make_lookup(*bank(centroids), "numpy").assign(features, banks))


def test_no_frames() -> None:
    lookup = make_lookup(*bank(np.ones((1, 2, 4), np.float32)), "native")
    assert lookup.assign(np.zeros((0, 4), np.float32), []).shape == (0,)
