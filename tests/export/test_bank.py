"""A bank holds exactly the models' centroids, opens at once however large, and is whole or absent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mkc_fast import ArtifactError, BankError, CheckpointError, ListError, MkcError
from mkc_fast.engine.artifacts import BankInfo, FileFacts, identity, open_bank, write_info
from mkc_fast.engine.draws import draw_entries
from mkc_fast.export import build_bank
from mkc_fast.export.checkpoints.joblib_writer import write_kmeans
from mkc_fast.export.random_checkpoints import Checkpoints
from tests.conftest import signed


def write_list(folder: Path, models: dict[str, np.ndarray]) -> Path:
    for name, centroids in models.items():
        write_kmeans(folder / f"{name}.pt", centroids)
    scp = folder / "kmeans.scp"
    scp.write_text("".join(f"{name} {name}.pt\n" for name in models))
    return scp


@pytest.fixture
def models() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "double": rng.standard_normal((10, 16)),
        "single": rng.standard_normal((10, 16)).astype(np.float32),
        "fewer": rng.standard_normal((7, 16)),
    }


def test_centroids_and_half_norms_are_exact(models: dict[str, np.ndarray], tmp_path: Path) -> None:
    build_bank(write_list(tmp_path, models), tmp_path / "bank")
    bank = open_bank(tmp_path / "bank")
    assert bank.info.names == list(models)
    assert bank.info.num_clusters == [10, 10, 7]
    for entry, centroids in enumerate(models.values()):
        rows = centroids.astype(np.float32)
        np.testing.assert_array_equal(bank.centroids[entry, : len(rows)], rows)
        expected = 0.5 * (rows.astype(np.float64) ** 2).sum(-1)
        np.testing.assert_allclose(bank.half_norms[entry, : len(rows)], expected, rtol=1e-14)
    assert np.isposinf(bank.half_norms[2, 7:]).all()
    assert (bank.centroids[2, 7:] == 0).all()


def test_a_copy_in_float16_changes_no_id(models: dict[str, np.ndarray], tmp_path: Path) -> None:
    scp = write_list(tmp_path, models)
    for name, half in (("plain", False), ("half", True)):
        build_bank(scp, tmp_path / name, half=half)
    plain, copied = open_bank(tmp_path / "plain"), open_bank(tmp_path / "half")
    assert plain.half is None
    assert copied.half is not None
    np.testing.assert_array_equal(plain.centroids, copied.centroids)
    near = np.ldexp(copied.half.values[2, :7].astype(np.float64), copied.half.exponents[2])
    np.testing.assert_allclose(near, models["fewer"], rtol=1e-3, atol=1e-6)
    assert identity(tmp_path / "plain" / "bank.json") == identity(tmp_path / "half" / "bank.json")
    build_bank(scp, tmp_path / "half", overwrite=True)
    assert open_bank(tmp_path / "half").half is None


def test_a_copy_of_another_size_is_refused(models: dict[str, np.ndarray], tmp_path: Path) -> None:
    info = build_bank(write_list(tmp_path, models), tmp_path / "bank", half=True)
    np.save(tmp_path / "bank" / "half_errors.npy", np.zeros((3, 9)))
    write_info(tmp_path / "bank", info)
    with pytest.raises(ArtifactError, match=r"centroids_half.npy and the bank do not fit"):
        open_bank(tmp_path / "bank")


def test_kmeans_num_takes_a_random_subset_in_the_lists_order(
    models: dict[str, np.ndarray], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scp, names = write_list(tmp_path, models), list(models)
    subsets = [build_bank(scp, tmp_path / f"{seed}", 2, seed).names for seed in range(12)]
    for seed, subset in enumerate(subsets):
        assert subset == [names[entry] for entry in draw_entries(3, 2, seed)]
        assert sorted(subset, key=names.index) == subset
    assert len(set(map(tuple, subsets))) == 3  # the first two of the list are one of three pairs
    assert len({tuple(build_bank(scp, tmp_path / f"none {turn}", 2).names) for turn in range(40)}) == 3
    assert not caplog.messages
    assert build_bank(scp, tmp_path / "all", 100).names == names
    assert caplog.messages == [f"kmeans_num is 100, {scp} has 3 k-means models: all of them are used"]
    with pytest.raises(BankError):
        build_bank(scp, tmp_path / "none", 0)


def test_duplicate_and_unused_clusters_are_recorded(models: dict[str, np.ndarray], tmp_path: Path) -> None:
    models["double"][[4, 8]] = models["double"][1]
    info = build_bank(write_list(tmp_path, models), tmp_path / "bank")
    assert info.duplicates == [[4, 8], [], []]


def test_unused_clusters_are_what_scikit_learn_counted(tmp_path: Path) -> None:
    cluster, joblib = pytest.importorskip("sklearn.cluster"), pytest.importorskip("joblib")
    points = np.repeat(np.eye(4), 5, axis=0)
    model = cluster.KMeans(6, init=np.vstack([np.eye(4), 9 * np.ones((2, 4))]), n_init=1, max_iter=1).fit(points)
    joblib.dump(model, tmp_path / "m.pt")
    (tmp_path / "kmeans.scp").write_text("m m.pt\n")
    info = build_bank(tmp_path / "kmeans.scp", tmp_path / "bank")
    assert info.unused[0] == np.setdiff1d(np.arange(6), model.labels_).tolist()


@pytest.mark.parametrize("bad", [np.full((3, 16), np.nan), np.full((3, 16), np.inf), np.full((3, 16), 1e300)])
def test_centroids_that_are_not_finite_are_refused(
    bad: np.ndarray, models: dict[str, np.ndarray], tmp_path: Path
) -> None:
    scp = write_list(tmp_path, {**models, "bad": bad})
    with pytest.raises(CheckpointError, match=r"bad\.pt"):
        build_bank(scp, tmp_path / "bank")
    assert not (tmp_path / "bank").exists()
    assert not list(tmp_path.glob(".bank*"))


def test_names_there_twice_and_other_dimensions_are_refused(models: dict[str, np.ndarray], tmp_path: Path) -> None:
    scp = write_list(tmp_path, {**models, "wide": np.zeros((3, 17))})
    with pytest.raises(CheckpointError, match="wide has 17 dimensions, double has 16"):
        build_bank(scp, tmp_path / "bank")
    scp.write_text("a double.pt\na double.pt\n")
    with pytest.raises(ListError, match="twice"):
        build_bank(scp, tmp_path / "bank")


def test_a_damaged_bank_is_refused(models: dict[str, np.ndarray], tmp_path: Path) -> None:
    build_bank(write_list(tmp_path, models), tmp_path / "bank")
    said = tmp_path / "bank" / "bank.json"
    text = said.read_text()
    for change in ({"format_version": 99}, {"dim": 17}, {"names": ["a"]}, {"num_clusters": [10, 10, 11]}, {"names": 3}):
        signed(tmp_path / "bank", **change)
        with pytest.raises(ArtifactError, match=r"expected|format version|do not fit together"):
            open_bank(tmp_path / "bank")
    said.write_text(text)
    centroids = tmp_path / "bank" / "centroids.npy"
    open_bank(tmp_path / "bank")
    with centroids.open("r+b") as file:
        file.truncate(300)
    with pytest.raises(ArtifactError, match=r"centroids\.npy"):
        open_bank(tmp_path / "bank")


def test_1165_entries_cost_only_what_is_touched(tmp_path: Path) -> None:
    # A sparse file of the published size, 4.9 GB: what is never touched is never read, and takes no disk here.
    entries, clusters, dim = 1165, 1024, 1024
    np.lib.format.open_memmap(tmp_path / "centroids.npy", "w+", np.float32, (entries, clusters, dim)).flush()
    np.save(tmp_path / "half_norms.npy", np.zeros((entries, clusters)))
    names = [f"spk{index}" for index in range(entries)]
    info = BankInfo(names, [clusters] * entries, [""] * entries, [[]] * entries, [[]] * entries, dim)
    files = {file.name: FileFacts(file.stat().st_size, "0" * 64) for file in tmp_path.iterdir()}  # opening reads none
    write_info(tmp_path, info, files)
    script = """
import sys, resource
from pathlib import Path
import numpy as np
from mkc_fast.engine.artifacts import open_bank
from mkc_fast.kernels import make_lookup
def resident(): return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 1e6
before = resident()
bank = open_bank(Path(sys.argv[1]))
lookup = make_lookup(bank.centroids, bank.half_norms, bank.info.num_clusters)
lookup.assign(np.ones((10, 1024), np.float32), np.arange(10))
print(resident() - before)
"""
    if not Path("/proc/self/statm").exists():
        pytest.skip("resident memory is read from /proc")
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # BLAS buffers are a thread each, and not the bank's
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True, env=environment
    )
    # What is not read costs neither memory nor time.
    megabytes = float(run.stdout)
    assert megabytes < 10 * 4.2 + 60  # ten entries of 4.2 MB, and what NumPy's product allocates


@pytest.mark.parametrize("seed", [pytest.param(10**5000, id="huge"), "q", 1.5])
def test_a_seed_that_is_none_is_refused(seed: object, checkpoints: Checkpoints, tmp_path: Path) -> None:
    with pytest.raises(MkcError, match="seed is"):
        build_bank(checkpoints.kmeans_scp, tmp_path / "bank", 2, seed)  # type: ignore[arg-type]
    assert not (tmp_path / "bank").exists()


def test_a_build_writes_beside_its_directory_only_where_it_is_told_to(
    tmp_path: Path, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MKC_FAST_CACHE", str(tmp_path / "user"))
    folders: list[Path] = []  # that digests are written into; those of new files are not kept
    monkeypatch.setattr("mkc_fast.export.bank.remember", lambda *given: folders.append(given[2]))
    build_bank(checkpoints.kmeans_scp, tmp_path / "first", cache=False)
    assert folders == []
    assert [path.name for path in tmp_path.iterdir()] == ["first"]
    build_bank(checkpoints.kmeans_scp, tmp_path / "second", cache=tmp_path / "mine")
    assert folders == [tmp_path / "mine"]
    assert not (tmp_path / "user").exists()
    build_bank(checkpoints.kmeans_scp, tmp_path / "third")
    assert folders[1:] == [tmp_path / "user"]
