"""The cache folder: what is damaged in it is made again, and nothing in it gives a traceback or a wait."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import mkc_fast.export.model as exporter
from mkc_fast import MkcError
from mkc_fast.engine.artifacts import CENTROIDS_FILE, MODEL_FILE, open_bank, read_model_info
from mkc_fast.engine.digests import verify
from mkc_fast.engine.sessions.prepared import prepared_graph
from mkc_fast.export.cache import cached_bank, cached_model
from mkc_fast.export.checkpoints.joblib_writer import write_kmeans
from mkc_fast.export.random_checkpoints import Checkpoints
from mkc_fast.names import CONFORMER_FILE
from mkc_fast.onnx_runtime import ort
from tests.conftest import Artifacts

pytestmark = pytest.mark.usefixtures("no_waiting")
PLACES: dict[str, Callable[[Path], object]] = {
    "deep nesting": lambda path: path.write_text("[" * 100_000),
    "a pipe": os.mkfifo,
    "a directory": lambda path: (path / "x").mkdir(parents=True),
    "a link to nothing": lambda path: path.symlink_to("gone"),
    "an endless file": lambda path: path.symlink_to("/dev/zero"),
    "an empty file": lambda path: path.touch(),
    "nothing": lambda _: None,
}
every_place = pytest.mark.parametrize("put", PLACES.values(), ids=PLACES)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


@pytest.fixture
def scp(tmp_path: Path) -> Path:
    """A list of two k-means models."""
    for name in ("a", "b"):
        write_kmeans(tmp_path / f"{name}.pt", np.random.default_rng(0).standard_normal((5, 8)))
    (tmp_path / "kmeans.scp").write_text("a a.pt\nb b.pt\n")
    return tmp_path / "kmeans.scp"


def whole(bank: Path, cache: Path) -> bool:
    info = open_bank(bank).info
    verify(bank, info.files, cache)
    return info.names == ["a", "b"]


@every_place
@pytest.mark.parametrize("part", ["", CENTROIDS_FILE, "bank.json"])
def test_a_damaged_cached_bank_is_built_again(
    scp: Path, tmp_path: Path, part: str, put: Callable[[Path], object]
) -> None:
    cache = tmp_path / "cache"
    path = cached_bank(scp, cache)
    remove(path / part)
    put(path / part)
    assert cached_bank(scp, cache) == path
    assert whole(path, cache)
    assert not [file.name for file in cache.iterdir() if file.name.endswith((".tmp", ".old"))]


def test_a_changed_value_in_a_cached_bank_is_mended(scp: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    path = cached_bank(scp, cache)
    before = (path / CENTROIDS_FILE).read_bytes()
    (path / CENTROIDS_FILE).write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    assert cached_bank(scp, cache) == path
    assert (path / CENTROIDS_FILE).read_bytes() == before


@every_place
@pytest.mark.parametrize("place", ["sha256.json", "lock", ""])
def test_whatever_lies_in_the_cache_a_bank_is_made_or_refused(
    scp: Path, tmp_path: Path, place: str, put: Callable[[Path], object]
) -> None:
    cache = tmp_path / "cache"
    if place:
        cache.mkdir()
    put(cache / place)
    path, said = None, ""
    try:
        path = cached_bank(scp, cache)
    except MkcError as error:
        said = str(error)
    assert "\n" not in said
    if place == "sha256.json":  # what is only remembered is never needed
        assert path is not None
    if path is not None:
        assert whole(path, cache)


def test_a_damaged_cached_model_is_exported_again(
    artifacts: Artifacts, checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exports = []

    def export_model(*given: object, **_: object) -> None:
        exports.append(given)
        shutil.copytree(artifacts.model, str(given[2]))

    monkeypatch.setattr(exporter, "export_model", export_model)
    cache = tmp_path / "cache"
    path = cached_model(checkpoints.wavlm, checkpoints.ckpt, None, 6, cache)
    assert cached_model(checkpoints.wavlm, checkpoints.ckpt, None, 6, cache) == path
    assert len(exports) == 1
    for damage in (
        (path / CONFORMER_FILE).unlink,
        lambda: (path / CONFORMER_FILE).write_bytes((path / CONFORMER_FILE).read_bytes()[:-1] + b"x"),
        lambda: (path / MODEL_FILE).write_text("{}"),
        lambda: (shutil.rmtree(path), os.mkfifo(path)),
    ):
        before = len(exports)
        damage()
        assert cached_model(checkpoints.wavlm, checkpoints.ckpt, None, 6, cache) == path
        assert len(exports) == before + 1
        verify(path, read_model_info(path).files, cache)


@every_place
@pytest.mark.parametrize("part", ["", "source.json", CONFORMER_FILE, f"{CONFORMER_FILE}.data"])
def test_a_damaged_prepared_graph_is_prepared_again(
    artifacts: Artifacts, tmp_path: Path, part: str, put: Callable[[Path], object]
) -> None:
    graph, cache = artifacts.model / CONFORMER_FILE, tmp_path / "cache"
    kept = prepared_graph(graph, cache, least_bytes=0)
    assert kept is not None
    remove(kept.parent / part)
    put(kept.parent / part)
    assert prepared_graph(graph, cache, least_bytes=0) == kept
    ort.InferenceSession(str(kept), providers=["CPUExecutionProvider"])
    assert json.loads((kept.parent / "source.json").read_text())["source"] == str(graph.resolve())


@every_place
@pytest.mark.parametrize("place", ["cpu", "cpu/lock", "cpu/other"])
def test_whatever_lies_beside_a_prepared_graph_it_is_made_or_done_without(
    artifacts: Artifacts, tmp_path: Path, place: str, put: Callable[[Path], object]
) -> None:
    cache = tmp_path / "cache"
    (cache / place).parent.mkdir(parents=True)
    put(cache / place)
    kept = prepared_graph(artifacts.model / CONFORMER_FILE, cache, least_bytes=0)
    assert kept is None or kept.is_file()
