"""Every back end finds the nearest centroid whatever the rounding, the order of frames and the sizes of the models."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

import numpy as np
import pytest

from mkc_fast import BankError, DeviceError
from mkc_fast.kernels import HalfCentroids, Lookup, make_lookup, round_to_half
from mkc_fast.kernels.lookup.native_lookup import native_nearest
from tests.fakes.cuda import shim
from tests.fakes.cuda.fake_cupy import FakeCupy

MakeLookup = Callable[..., Lookup]

# Shapes (entries, largest K, D): one of everything, ragged, the published D with few clusters, D not a multiple of 8.
SHAPES = [(1, 1, 4), (5, 7, 12), (3, 64, 1024), (40, 33, 20)]
FRAMES = [1, 2, 17, 300]


@pytest.fixture(
    params=[
        "numpy",
        "native",
        "native, from float16",
        "cuda source on the CPU",
        pytest.param("cupy", marks=pytest.mark.gpu),
    ]
)
def make(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> MakeLookup:
    """``make_lookup`` with each back end."""
    if request.param == "numpy":
        return functools.partial(make_lookup, backend="numpy")
    if request.param.startswith("native"):
        if native_nearest() is None:
            pytest.skip("the native operators are not built here, or the processor has neither AVX-512 nor AVX2")
        return make_from_half if "float16" in request.param else functools.partial(make_lookup, backend="native")
    if request.param == "cupy":
        try:
            make_lookup(np.zeros((1, 1, 4), np.float32), np.zeros((1, 1)), [1], backend="cupy")
        except DeviceError as error:
            pytest.skip(str(error))
    else:
        shim.library()
        monkeypatch.setitem(sys.modules, "cupy", FakeCupy(schedule=2))
    return functools.partial(make_lookup, backend="cupy")


def half_of(centroids: np.ndarray) -> HalfCentroids:
    """The copy in float16 of a bank's centroids."""
    values, errors, exponents = zip(*map(round_to_half, centroids), strict=True)
    return HalfCentroids(np.stack(values), np.stack(errors), np.asarray(exponents))


def make_from_half(centroids: np.ndarray, half_norms: np.ndarray, num_clusters: list[int]) -> Lookup:
    """The native look-up, with a copy in float16."""
    return make_lookup(centroids, half_norms, num_clusters, "native", half=half_of(centroids))


def random_bank(make: MakeLookup, shape: tuple[int, int, int], seed: int = 0) -> Lookup:
    rng = np.random.default_rng(seed)
    entries, clusters, _ = shape
    sizes = rng.integers(1, clusters + 1, entries)
    sizes[0] = clusters
    centroids = rng.standard_normal(shape).astype(np.float32)
    half_norms = 0.5 * (centroids.astype(np.float64) ** 2).sum(-1)
    for entry, size in enumerate(sizes):
        centroids[entry, size:] = 0  # nearer to most frames than any centroid, were it one
        half_norms[entry, size:] = np.inf
    return make(centroids, half_norms, sizes.tolist())


def brute_force(lookup: Lookup, features: np.ndarray, banks: np.ndarray) -> np.ndarray:
    ids = []
    for frame, entry in zip(features.astype(np.float64), banks, strict=True):
        centroids = lookup.centroids[entry, : lookup.num_clusters[entry]].astype(np.float64)
        ids.append(((centroids - frame) ** 2).sum(-1).argmin())
    return np.array(ids, np.int32)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("frames", FRAMES)
def test_ids_equal_brute_force_in_float64(make: MakeLookup, shape: tuple[int, int, int], frames: int) -> None:
    lookup, rng = random_bank(make, shape), np.random.default_rng(frames)
    features = rng.standard_normal((frames, shape[2])).astype(np.float32)
    banks = rng.integers(0, shape[0], frames)
    found = lookup.assign(features, banks)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, brute_force(lookup, features, banks))
    np.testing.assert_array_equal(lookup.lookup(banks, found), lookup.centroids[banks, found])


def test_near_ties_far_from_the_origin_are_decided_in_float64(make: MakeLookup) -> None:
    # Norms of 1e3 and gaps of 1e-4: float32's products (error near 0.1) say nothing about which is nearer.
    rng = np.random.default_rng(1)
    base = 1e3 / 16 * np.ones(256)
    centroids = (base + 1e-4 * rng.standard_normal((1, 50, 256))).astype(np.float32)
    half_norms = 0.5 * (centroids.astype(np.float64) ** 2).sum(-1)
    lookup = make(centroids, half_norms, [50])
    features = (base + 1e-4 * rng.standard_normal((200, 256))).astype(np.float32)
    banks = np.zeros(200, int)
    naive = (half_norms[0].astype(np.float32) - features @ centroids[0].T).argmin(axis=1)
    expected = brute_force(lookup, features, banks)
    assert (naive != expected).mean() > 0.5, "this test asks nothing of float64"
    np.testing.assert_array_equal(lookup.assign(features, banks), expected)


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-20, 1e18, 1e25, 1e37])
def test_numbers_of_any_size(make: MakeLookup, request: pytest.FixtureRequest, scale: float) -> None:
    # The products of small ones are below float32's range, and those of large ones above it.
    if request.node.callspec.params["make"] not in {"numpy", "native"} and scale < 1e-15:
        pytest.skip("on a GPU, products must be within float32's range")
    rng = np.random.default_rng(3)
    centroids = (rng.standard_normal((2, 50, 64)) * scale).astype(np.float32)
    half_norms = 0.5 * (centroids.astype(np.float64) ** 2).sum(-1)
    features, banks = (rng.standard_normal((60, 64)) * scale).astype(np.float32), rng.integers(0, 2, 60)
    lookup = make(centroids, half_norms, [50, 50])
    np.testing.assert_array_equal(lookup.assign(features, banks), brute_force(lookup, features, banks))


def test_ties_go_to_the_lowest_id(make: MakeLookup) -> None:
    centroids = np.zeros((1, 6, 8), np.float32)
    centroids[0, [1, 4]] = 1.0
    centroids[0, [0, 2, 3, 5]] = -1.0
    lookup = make(centroids, np.full((1, 6), 4.0), [6])
    features = np.array([np.ones(8), -np.ones(8), np.zeros(8)], np.float32)
    np.testing.assert_array_equal(lookup.assign(features, [0, 0, 0]), [1, 0, 0])


def test_order_of_frames_does_not_matter(make: MakeLookup) -> None:
    lookup, rng = random_bank(make, (9, 30, 16)), np.random.default_rng(5)
    features, banks = rng.standard_normal((100, 16)).astype(np.float32), rng.integers(0, 9, 100)
    order = rng.permutation(100)
    np.testing.assert_array_equal(lookup.assign(features, banks)[order], lookup.assign(features[order], banks[order]))


def test_more_frames_than_one_product_takes(make: MakeLookup) -> None:
    lookup, rng = random_bank(make, (1, 5, 4)), np.random.default_rng(6)
    features = rng.standard_normal((10_000, 4)).astype(np.float32)
    banks = np.zeros(10_000, np.int32)
    np.testing.assert_array_equal(lookup.assign(features, banks), brute_force(lookup, features, banks))


@pytest.mark.gpu
@pytest.mark.parametrize("held", [8, 3])
@pytest.mark.parametrize("frames", [1, 50, 3000, 20_000])
def test_a_gpu_gives_the_ids_of_numpy_at_full_size(frames: int, held: int) -> None:
    from mkc_fast.kernels.lookup.cupy_lookup import CupyLookup

    rng = np.random.default_rng(frames)
    centroids = rng.standard_normal((8, 1024, 1024), np.float32)
    bank = centroids, 0.5 * (centroids.astype(np.float64) ** 2).sum(-1), [1024, 1000, 1, 1024, 33, 1024, 1024, 1024]
    try:
        make_lookup(centroids[:1, :1], bank[1][:1, :1], [1], backend="cupy")
    except DeviceError as error:
        pytest.skip(str(error))
    import cupy

    free, _ = cupy.cuda.Device(0).mem_info
    lookup = CupyLookup(*bank, memory_fraction=(held + 0.5) * 4 * 1024**2 / free)  # so many entries are on the device
    features, banks = rng.standard_normal((frames, 1024), np.float32), rng.integers(0, 8, frames)
    expected, out = make_lookup(*bank).assign(features, banks), cupy.zeros((frames, 1024), np.float32)
    ids = lookup.assign_device(cupy.asarray(features), banks, out=out)
    np.testing.assert_array_equal(ids.get(), expected)
    np.testing.assert_array_equal(out.get(), centroids[banks, expected])
    np.testing.assert_array_equal(lookup.assign(features, banks), expected)


def test_no_frames_give_no_ids(make: MakeLookup) -> None:
    lookup = random_bank(make, (2, 3, 4))
    assert lookup.assign(np.empty((0, 4), np.float32), np.empty(0, int)).shape == (0,)
    assert lookup.lookup([], []).shape == (0, 4)


def test_features_whose_products_overflow_still_get_a_cluster(make: MakeLookup) -> None:
    lookup = random_bank(make, (1, 10, 4))
    found = lookup.assign(np.array([[3e38, 3e38, -3e38, 3e38]], np.float32), [0])
    assert 0 <= found[0] < 10


@pytest.mark.parametrize(
    ("features", "banks", "words"),
    [
        (np.zeros((2, 5), np.float32), [0, 0], r"\(2, 5\)"),
        (np.zeros(4, np.float32), [0], r"\(4,\)"),
        (np.zeros((2, 4), np.int32), [0, 0], "int32"),
        (np.array([[0, 0, 0, 0], [0, np.nan, 0, 0]], np.float32), [0, 0], "frame 1"),
        (np.full((1, 4), 1e300), [0], "frame 0"),
        (np.zeros((2, 4), np.float32), [0, 3], r"bank_ids\[1\] is 3"),
        (np.zeros((2, 4), np.float32), [-1, 0], r"bank_ids\[0\] is -1"),
        (np.zeros((2, 4), np.float32), [0], "1 frames"),
        (np.zeros((2, 4), np.float32), [0.0, 1.0], "float64"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    make: MakeLookup, features: np.ndarray, banks: list[int], words: str
) -> None:
    with pytest.raises(BankError, match=words):
        random_bank(make, (3, 6, 4)).assign(features, banks)


def test_cluster_ids_past_an_entrys_own_k_are_refused(make: MakeLookup) -> None:
    half_norms = np.zeros((2, 5))
    half_norms[1, 3:] = np.inf
    lookup = make(np.zeros((2, 5, 4), np.float32), half_norms, [5, 3])
    lookup.lookup([0, 1], [4, 2])
    with pytest.raises(BankError, match="clusters 0 to 2"):
        lookup.lookup([0, 1], [4, 3])
    with pytest.raises(BankError, match=r"cluster_ids\[0\] is -1"):
        lookup.lookup([0], [-1])


def test_an_unknown_back_end_is_refused() -> None:
    with pytest.raises(DeviceError, match="abacus"):
        make_lookup(np.zeros((1, 1, 4), np.float32), np.zeros((1, 1)), [1], backend="abacus")


@pytest.mark.parametrize("wrong", [float("nan"), float("-inf"), float("inf"), -1.0])
def test_half_norms_that_fit_no_centroid_are_refused(wrong: float) -> None:
    rng = np.random.default_rng(0)
    centroids = rng.standard_normal((2, 4, 3), np.float32)
    half_norms = (centroids.astype(np.float64) ** 2).sum(axis=2) / 2
    half_norms[1, 2] = wrong
    with pytest.raises(BankError, match="half_norms of entry 1"):
        make_lookup(centroids, half_norms, [4, 4])
    half_norms[1, 2:] = 0.5  # finite past the entry's own clusters
    with pytest.raises(BankError, match="half_norms of entry 1"):
        make_lookup(centroids, half_norms, [4, 2])
