"""Artifacts carry the digest of every file: what was changed never gives a result, whatever the cache holds."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mkc_fast import Anonymizer, ArtifactError
from mkc_fast.cli import main
from mkc_fast.engine import digests as digests_module
from mkc_fast.engine.artifacts import (
    BANK_FILE,
    CENTROIDS_FILE,
    HALF_NORMS_FILE,
    MODEL_FILE,
    open_bank,
    read_model_info,
)
from mkc_fast.engine.atomic_files import sha256_of
from mkc_fast.engine.digests import Verification, digests, remember, verify
from mkc_fast.export import build_bank
from mkc_fast.export.checkpoints.joblib_writer import write_kmeans
from tests.conftest import Artifacts, signed

pytestmark = pytest.mark.usefixtures("no_waiting")
NOISE = np.random.default_rng(0).uniform(-0.1, 0.1, 8000).astype(np.float32)
INDEX = "sha256.json"


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    """A bank of two models."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        write_kmeans(tmp_path / f"{name}.pt", rng.standard_normal((5, 8)))
    (tmp_path / "kmeans.scp").write_text("a a.pt\nb b.pt\n")
    build_bank(tmp_path / "kmeans.scp", tmp_path / "bank")
    return tmp_path / "bank"


@pytest.fixture
def copies(artifacts: Artifacts, tmp_path: Path) -> tuple[Path, Path]:
    """A model and a bank of the test's own."""
    shutil.copytree(artifacts.model, tmp_path / "model")
    shutil.copytree(artifacts.bank, tmp_path / "bank")
    return tmp_path / "model", tmp_path / "bank"


def flip(path: Path, at: int = -1) -> None:
    """Change one byte, and keep the size and the time."""
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def reverse_norms(folder: Path) -> None:
    half_norms = np.load(folder / HALF_NORMS_FILE)
    np.save(folder / HALF_NORMS_FILE, half_norms[:, ::-1].copy())


def test_every_file_but_the_json_is_listed_with_its_size_and_sha256(artifacts: Artifacts) -> None:
    for folder, info in ((artifacts.model, MODEL_FILE), (artifacts.bank, BANK_FILE)):
        listed = json.loads((folder / info).read_text())["files"]
        assert listed == {
            file.name: {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
            for file in folder.iterdir()
            if file.name != info
        }


def test_half_norms_of_other_entries_give_no_result(artifacts: Artifacts, copies: tuple[Path, Path]) -> None:
    model, bank = copies
    reverse_norms(bank)
    anonymizer = Anonymizer.load(model, bank)
    for call in (
        lambda: anonymizer.anonymize(NOISE, seed=1),
        lambda: anonymizer.anonymize_batch([NOISE, NOISE], seed=1),
        lambda: anonymizer.encode(NOISE),
        lambda: anonymizer.lookup([0], [0]),
    ):
        with pytest.raises(ArtifactError, match=r"half_norms\.npy: was changed or damaged"):
            call()
    artifacts.anonymizer.anonymize(NOISE, seed=1)


@pytest.mark.parametrize("name", [".bin", ".onnx", CENTROIDS_FILE])
def test_one_changed_byte_gives_no_result(copies: tuple[Path, Path], name: str) -> None:
    model, bank = copies
    anonymizer = Anonymizer.load(model, bank)
    used = anonymizer._sessions.files
    file = bank / name if name == CENTROIDS_FILE else model / used[0]
    if name == ".bin":
        file = file.with_suffix(".bin")
        if not file.exists():
            pytest.skip("the native operators, whose weights lie in a .bin, are not built here")
    anonymizer.anonymize(NOISE, seed=1)
    # Of a graph the end is metadata: the graph still opens.
    flip(file, -1 if name != ".onnx" else file.read_bytes().rindex(b"sample_rate") + len(b"sample_rate"))
    with pytest.raises(ArtifactError, match=rf"{file.name}: "):
        Anonymizer.load(model, bank).anonymize(NOISE, seed=1)


def test_swapped_graphs_are_refused(copies: tuple[Path, Path]) -> None:
    model, bank = copies
    used = Anonymizer.load(model, bank)._sessions.files
    one, other = model / used[1], model / used[2]
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    with pytest.raises(ArtifactError, match=r"bytes, expected|was changed"):
        Anonymizer.load(model, bank).anonymize(NOISE, seed=1)
    signed(model)  # even where the JSON says so
    with pytest.raises(ArtifactError, match=r"\.onnx: makes \w+ of .*; expected restored of features, lengths"):
        Anonymizer.load(model, bank)


@pytest.mark.parametrize("fact", ["sample_rate", "hop", "min_samples", "layer", "vocoder_reach", "conformer_layers"])
def test_a_changed_number_is_refused(copies: tuple[Path, Path], fact: str) -> None:
    model, _ = copies
    said = json.loads((model / MODEL_FILE).read_text())
    (model / MODEL_FILE).write_text(json.dumps({**said, fact: said[fact] + 1}))
    with pytest.raises(ArtifactError, match=r"model\.json: was changed after it was written"):
        read_model_info(model)


@pytest.mark.parametrize("fact", ["sample_rate", "hop", "min_samples", "layer"])
def test_a_changed_number_with_a_digest_to_match_is_not_that_of_the_graphs(
    copies: tuple[Path, Path], fact: str
) -> None:
    model, bank = copies
    said = getattr(read_model_info(model), fact)
    with pytest.raises(ArtifactError, match=rf"is of {fact} {said}; model\.json says {said + 1}"):
        Anonymizer.load(signed(model, **{fact: said + 1}), bank)


def test_a_graph_that_is_not_listed_is_not_run(copies: tuple[Path, Path]) -> None:
    model, bank = copies
    used = Anonymizer.load(model, bank)._sessions.files[0]
    listed = json.loads((model / MODEL_FILE).read_text())["files"]
    extra = {name: facts for name, facts in listed.items() if name != used}
    if used == "wavlm.onnx":
        pytest.skip("every model lists its plain graphs")
    with pytest.raises(ArtifactError, match=rf"{used}: not listed in model\.json"):
        Anonymizer.load(signed(model, files=extra), bank)


def test_a_file_of_another_size_or_kind_is_refused_before_anything_is_read(bank: Path) -> None:
    file = bank / HALF_NORMS_FILE
    data = file.read_bytes()
    file.write_bytes(data + b"\0")
    with pytest.raises(ArtifactError, match=rf"has {len(data) + 1} bytes, expected {len(data)}; build the bank again"):
        open_bank(bank)
    file.unlink()
    with pytest.raises(ArtifactError, match=r"half_norms\.npy is missing"):
        open_bank(bank)
    os.mkfifo(file)
    with pytest.raises(ArtifactError, match="not a readable regular file"):
        open_bank(bank)


def test_a_run_with_changed_weights_writes_nothing(
    copies: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import soundfile

    model, bank = copies
    reverse_norms(bank)
    for name in ("u1", "u2", "u3"):
        soundfile.write(tmp_path / f"{name}.wav", NOISE, 16000)
    (tmp_path / "audio.scp").write_text("".join(f"{name} {tmp_path / name}.wav\n" for name in ("u1", "u2", "u3")))
    code = main(
        ["infer", "--mode", "frame", "--model", str(model), "--bank", str(bank), "--gpus", "cpu", "--seed", "7",
         "--audio-scp", str(tmp_path / "audio.scp"), "--output-dir", str(tmp_path / "out")]
    )  # fmt: skip
    assert code == 2
    assert "half_norms.npy: was changed or damaged" in capfd.readouterr().err
    assert not list((tmp_path / "out").rglob("*.wav"))


# What is remembered


def test_a_digest_is_remembered_for_a_file_as_it_is_and_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, cache, read = tmp_path / "file", tmp_path / "cache", []
    file.write_bytes(b"one")

    def counted(path: Path) -> str:
        read.append(path)
        return sha256_of(path)

    monkeypatch.setattr(digests_module, "sha256_of", counted)
    digests([file], cache)
    digests([file], cache)
    assert len(read) == 2  # it has only just been written: a change now might not show in its time
    monkeypatch.setattr(digests_module, "_RESOLUTION_NS", -1_000_000_000)  # as if it had not
    assert digests([file], cache) == digests([file], cache) == [hashlib.sha256(b"one").hexdigest()]
    assert len(read) == 3
    flip(file)
    assert digests([file], cache) == [sha256_of(file)] != [hashlib.sha256(b"one").hexdigest()]
    file.unlink()
    file.write_bytes(b"one")
    assert digests([file], cache) == [hashlib.sha256(b"one").hexdigest()]
    assert len(json.loads((cache / INDEX).read_text())) == 1  # of each path, the last


def test_what_the_maker_read_is_not_read_again(bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = open_bank(bank).info
    monkeypatch.setattr(digests_module, "_RESOLUTION_NS", -1_000_000_000)
    remember(bank, info.files, tmp_path / "cache")
    monkeypatch.setattr(digests_module, "sha256_of", lambda path: pytest.fail(f"{path} was read"))
    verify(bank, info.files, tmp_path / "cache")


PLACES: dict[str, Callable[[Path], object]] = {
    "deep nesting": lambda path: path.write_text("[" * 100_000),
    "deep object": lambda path: path.write_text('{"a":' * 100_000),
    "a pipe": os.mkfifo,
    "a directory": lambda path: (path / "x").mkdir(parents=True),
    "an endless file": lambda path: path.symlink_to("/dev/zero"),
    "a list": lambda path: path.write_text("[1]"),
    "binary": lambda path: path.write_bytes(b"\xff\x00"),
    "wrong entries": lambda path: path.write_text(json.dumps({"/a": 3, "/b": [], "/c": [1, 2, 3, 4, {}]})),
}


@pytest.mark.parametrize("make", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("place", [INDEX, "sha256.lock"])
def test_whatever_the_cache_holds_digests_are_computed(
    bank: Path, tmp_path: Path, make: Callable[[Path], object], place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    make(cache / place)
    monkeypatch.setattr(digests_module, "_LARGE_BYTES", 0)  # take the lock
    info = open_bank(bank).info
    verify(bank, info.files, cache)
    flip(bank / CENTROIDS_FILE)
    with pytest.raises(ArtifactError, match=r"centroids\.npy: was changed"):
        verify(bank, info.files, cache)


def test_where_nothing_can_be_kept_files_are_read_each_time(bank: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder would be")
    info = open_bank(bank).info
    verify(bank, info.files, tmp_path / "cache")
    flip(bank / CENTROIDS_FILE)
    with pytest.raises(ArtifactError):
        verify(bank, info.files, tmp_path / "cache")


def test_loading_does_not_wait_for_digests_and_the_first_result_does(
    artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    may_go_on, waited = threading.Event(), threading.Event()

    def slow(path: Path) -> str:
        waited.set()
        may_go_on.wait()
        return sha256_of(path)

    monkeypatch.setattr(digests_module, "sha256_of", slow)
    anonymizer = Anonymizer.load(artifacts.model, artifacts.bank, cache=tmp_path / "cache")
    waited.wait()
    results: list[object] = []
    thread = threading.Thread(target=lambda: results.append(anonymizer.anonymize(NOISE, seed=1)))
    thread.start()
    thread.join(1.0)
    assert not results
    may_go_on.set()
    thread.join()
    assert len(results) == 1


def test_an_error_that_a_changed_file_explains_is_not_another(tmp_path: Path, bank: Path) -> None:
    info = open_bank(bank).info
    flip(bank / HALF_NORMS_FILE)
    verification = Verification(tmp_path / "cache")
    verification.begin(bank, info.files)
    for _ in range(2):
        with pytest.raises(ArtifactError, match="was changed"):
            verification.wait()


# The commands


def test_doctor_verifies_whole_artifacts(
    copies: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model, bank = copies
    assert main(["doctor", "--verify", str(model), str(bank)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"{model}: a model, its ")
    assert lines[1].startswith(f"{bank}: a bank, its 2 files")
    flip(bank / CENTROIDS_FILE)
    assert main(["doctor", "--verify", str(model), str(bank)]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"{model}: a model")
    assert lines[1].startswith(f"{bank / CENTROIDS_FILE}: was changed")
    assert main(["doctor", "--verify", "--model", str(model), "--bank", str(bank)]) == 2
    capsys.readouterr()
    assert main(["doctor", "--verify", "--json", str(tmp_path / "missing")]) == 2
    (found,) = json.loads(capsys.readouterr().out)["verified"]
    assert (found["ok"], found["path"]) == (False, str(tmp_path / "missing"))
    assert main(["doctor", "--verify"]) == main(["doctor", str(model)]) == 2


def test_bank_info_is_json_when_asked(bank: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bank", "info", "--json", str(bank)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["entries"], said["clusters"], said["dim"]) == (2, 5, 8)
    assert [model["name"] for model in said["models"]] == ["a", "b"]
    assert said["files"].keys() == {CENTROIDS_FILE, HALF_NORMS_FILE}
