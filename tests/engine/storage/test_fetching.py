"""A model or a bank at an address is fetched once on a machine, whole and as its digests say, or not at all."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mkc_fast import Anonymizer, ArtifactError
from mkc_fast.engine.artifacts import BANK_FILE, MODEL_FILE
from mkc_fast.engine.storage import fetching
from mkc_fast.engine.storage.fetching import RemoteArtifact, fetched_bank, fetched_model, looked_up, on_this_machine
from tests.conftest import Artifacts

MODEL, BANK = "memory://bucket/model", "memory://bucket/bank"


@pytest.fixture
def uploaded(memory: Any, artifacts: Artifacts) -> Any:
    """The store with a model and a bank."""
    for name, folder in (("model", artifacts.model), ("bank", artifacts.bank)):
        for file in folder.iterdir():
            memory.put_file(str(file), f"/bucket/{name}/{file.name}")
    return memory


def test_a_path_stays_what_it_is(artifacts: Artifacts, tmp_path: Path) -> None:
    assert fetched_model(artifacts.model, tmp_path) == artifacts.model
    assert not any(tmp_path.iterdir())


def test_what_is_fetched_is_what_was_uploaded(uploaded: Any, artifacts: Artifacts, tmp_path: Path) -> None:
    model, bank = fetched_model(MODEL, tmp_path), fetched_bank(Path(BANK), tmp_path)
    for here, there in ((model, artifacts.model), (bank, artifacts.bank)):
        assert {file.name: file.read_bytes() for file in here.iterdir()} == {
            file.name: file.read_bytes() for file in there.iterdir()
        }
    Anonymizer.load(model, bank)


def test_several_at_once_fetch_once_and_later_ones_ask_for_nothing(
    uploaded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = looked_up(MODEL, MODEL_FILE)
    assert isinstance(artifact, RemoteArtifact)
    fetch, calls = fetching._fetch, []
    monkeypatch.setattr(fetching, "_fetch", lambda *given: (calls.append(given), fetch(*given)))
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: on_this_machine(artifact, tmp_path), range(4)))
    assert (len(folders), len(calls)) == (1, 1)
    uploaded.store.clear()
    assert on_this_machine(artifact, tmp_path) in folders


def test_nothing_is_left_of_what_could_not_be_fetched_whole(uploaded: Any, tmp_path: Path) -> None:
    whole = uploaded.cat_file("/bucket/bank/centroids.npy")
    uploaded.pipe_file("/bucket/bank/centroids.npy", whole[:-1] + b"!")
    with pytest.raises(ArtifactError, match=r"memory://bucket/bank/centroids.npy: was changed or damaged"):
        fetched_bank(BANK, tmp_path)
    uploaded.rm_file("/bucket/bank/centroids.npy")
    with pytest.raises(ArtifactError, match=r"memory://bucket/bank/centroids.npy: no such object"):
        fetched_bank(BANK, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"]
    uploaded.pipe_file("/bucket/bank/centroids.npy", whole)
    assert fetched_bank(BANK, tmp_path).is_dir()


def test_what_was_removed_from_the_cache_is_fetched_again(uploaded: Any, tmp_path: Path) -> None:
    folder = fetched_bank(BANK, tmp_path)
    (folder / "centroids.npy").unlink()
    assert (fetched_bank(BANK, tmp_path) / "centroids.npy").is_file()


def test_a_model_that_is_replaced_during_a_run_is_refused(uploaded: Any, artifacts: Artifacts, tmp_path: Path) -> None:
    artifact = looked_up(MODEL, MODEL_FILE)
    uploaded.pipe_file("/bucket/model/model.json", (artifacts.model / MODEL_FILE).read_bytes() + b"\n")
    with pytest.raises(ArtifactError, match="was replaced since the run began"):
        on_this_machine(artifact, tmp_path)


def test_a_bank_is_no_model(uploaded: Any, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"memory://bucket/bank/model.json: no such object"):
        looked_up(BANK, MODEL_FILE)
    assert isinstance(looked_up(BANK, BANK_FILE), RemoteArtifact)
