"""A run over addresses is the run over files: same bytes, same rules for what fails, and no secret in any of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import soundfile

from mkc_fast import anonymize_corpus
from mkc_fast.cli import main
from tests.conftest import Artifacts
from tests.engine.storage.conftest import SECRET, Bucket


@pytest.fixture
def recordings(speech: Path, tmp_path: Path) -> Path:
    """A folder with pieces of real speech."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    for name in ("jfk_16k_mono", "jfk_44k_stereo"):
        samples, rate = soundfile.read(speech / f"{name}.flac")
        for part in range(3):
            piece = samples[part * rate // 2 : (part + 2) * rate // 2]
            soundfile.write(folder / f"{name}_{part}.flac", piece, rate)
    return folder


def names_of(recordings: Path) -> list[str]:
    return sorted(file.stem for file in recordings.iterdir())


def arguments(model: object, bank: object, scp: object, out: object, *more: str) -> list[str]:
    return [
        "infer", "--model", str(model), "--bank", str(bank), "--audio-scp", str(scp), "-o", str(out), "--seed", "7",
        "--gpus", "cpu", *more,
    ]  # fmt: skip


def listed(tmp_path: Path, recordings: Path, where: str) -> Path:
    scp = tmp_path / f"{len(where)}.scp"
    scp.write_text("".join(f"{name} {where}/{name}.flac\n" for name in names_of(recordings)))
    return scp


def outputs(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.wav"))}


@pytest.fixture
def local(artifacts: Artifacts, recordings: Path, tmp_path: Path) -> dict[str, bytes]:
    """The outputs of a run over files."""
    scp, out = listed(tmp_path, recordings, str(recordings)), tmp_path / "local"
    anonymize_corpus(artifacts.model, artifacts.bank, audio_list=scp, out=out, seed=7, devices=["cpu"])
    return outputs(out)


def test_addresses_of_files_are_paths(
    artifacts: Artifacts, recordings: Path, local: dict[str, bytes], tmp_path: Path
) -> None:
    scp, out = listed(tmp_path, recordings, f"file://{recordings}"), tmp_path / "out"
    model, bank = f"file://{artifacts.model}", f"file://{artifacts.bank}"
    anonymize_corpus(model, bank, audio_list=f"file://{scp}", out=f"file://{out}", seed=7, devices=["cpu"])
    assert outputs(out) == local
    assert main(arguments(model, bank, f"file://{scp}", f"file://{out}")) == 0
    manifest = (out / "manifest.jsonl").read_text()
    assert str(recordings) in manifest
    assert "file:" not in manifest


def test_recordings_model_and_bank_in_a_bucket(
    bucket: Bucket,
    artifacts: Artifacts,
    recordings: Path,
    local: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MKC_FAST_CACHE", str(tmp_path / "cache"))
    where = bucket.put(recordings, "speech")
    scp = bucket.put(listed(tmp_path, recordings, where), "list.scp")
    model, bank = bucket.put(artifacts.model, "model"), bucket.put(artifacts.bank, "bank")
    assert main(arguments(model, bank, scp, tmp_path / "out", "--num-proc", "2")) == 0
    assert outputs(tmp_path / "out") == local
    manifest = (tmp_path / "out" / "manifest.jsonl").read_text()
    sources = [line["source"] for line in map(json.loads, manifest.splitlines()) if "id" in line]
    assert sorted(sources) == [f"{where}/{name}.flac" for name in names_of(recordings)]
    assert SECRET not in manifest + "".join(capsys.readouterr())


def test_an_object_that_vanishes_fails_alone_and_is_tried_again(
    bucket: Bucket, artifacts: Artifacts, recordings: Path, local: dict[str, bytes], tmp_path: Path
) -> None:
    where = bucket.put(recordings, "speech")
    name = names_of(recordings)[2]
    bucket.files.rm(f"{where}/{name}.flac")
    scp, out = listed(tmp_path, recordings, where), tmp_path / "out"
    summary = anonymize_corpus(artifacts.model, artifacts.bank, audio_list=scp, out=out, seed=7, devices=["cpu"])
    assert summary.failed == [(name, f"{where}/{name}.flac: no such object, or no such bucket")]
    assert summary.written == len(local) - 1
    bucket.put(recordings / f"{name}.flac", f"speech/{name}.flac")
    summary = anonymize_corpus(artifacts.model, artifacts.bank, audio_list=scp, out=out, seed=7, devices=["cpu"])
    assert (summary.written, summary.present, summary.failed) == (1, len(local) - 1, [])
    assert outputs(out) == local


def test_a_wrong_bucket_is_one_line(
    bucket: Bucket, artifacts: Artifacts, recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scp = listed(tmp_path, recordings, str(recordings))
    assert main(arguments("s3://no-such-bucket/model", artifacts.bank, scp, tmp_path / "out")) == 2
    assert capsys.readouterr().err.count("\n") <= 2
    assert main(arguments(artifacts.model, artifacts.bank, "s3://no-such-bucket/list.scp", tmp_path / "out")) == 2
    assert "s3://no-such-bucket/list.scp: no such object, or no such bucket" in capsys.readouterr().err


def test_a_ray_cluster_reads_addresses_and_fetches_once(
    bucket: Bucket,
    artifacts: Artifacts,
    recordings: Path,
    local: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (extra ray)")
    from mkc_fast.engine.cluster import RayCluster

    monkeypatch.setenv("MKC_FAST_CACHE", str(tmp_path / "cache"))
    where = bucket.put(recordings, "speech")
    model, bank = bucket.put(artifacts.model, "model"), bucket.put(artifacts.bank, "bank")
    scp, out = listed(tmp_path, recordings, where), tmp_path / "out"
    with RayCluster("local", num_cpus=2) as cluster:
        summary = anonymize_corpus(model, bank, audio_list=scp, out=out, seed=7, cluster=cluster, num_proc=2)
    assert (summary.written, summary.failed) == (len(local), [])
    assert outputs(out) == local
