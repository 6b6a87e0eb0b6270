"""Outputs at an address are those of a folder; each appears whole, and the bucket alone is enough to go on."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from mkc_fast import ArgumentError, MkcError, OutputError, WriteError, anonymize_corpus
from mkc_fast.cli import main
from mkc_fast.engine.audio.write import write_waveform, written_waveform
from mkc_fast.engine.corpus import remote
from mkc_fast.engine.corpus.anonymize import open_corpus
from mkc_fast.engine.corpus.merge import merge_corpus
from mkc_fast.engine.corpus.status import Status
from mkc_fast.engine.storage import writing
from mkc_fast.engine.storage.addresses import Address
from mkc_fast.engine.storage.writing import remove_object, version_of, write_object
from tests.conftest import Artifacts
from tests.engine.storage.conftest import SECRET, Bucket

RECORDINGS = 12
PATIENCE_S = 120


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder, and so a working folder, of this test's own."""
    monkeypatch.setenv("MKC_FAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def listed(tmp_path: Path, clip: np.ndarray) -> Path:
    """A list of recordings of about a second."""
    (tmp_path / "audio").mkdir()
    for number in range(RECORDINGS):
        soundfile.write(tmp_path / "audio" / f"u{number:03}.wav", clip[: 14000 + 100 * number], 16000)
    scp = tmp_path / "audio.scp"
    scp.write_text("".join(f"{tmp_path}/audio/u{number:03}.wav\n" for number in range(RECORDINGS)))
    return scp


def run(artifacts: Artifacts, scp: Path, out: object, **more: Any) -> Any:
    return anonymize_corpus(
        artifacts.model, artifacts.bank, audio_list=scp, out=out, seed=7, **{"devices": ["cpu"], **more}
    )


def outputs(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.wav"))}


def sound_of(bucket: Bucket, below: str = "anon") -> dict[str, bytes]:
    return {name: content for name, content in bucket.content(below).items() if name.endswith(".wav")}


def records(bucket: Bucket, name: str = "anon/manifest.jsonl") -> dict[str, dict]:
    text = bucket.files.cat_file(f"{bucket.url}/{name}").decode()
    return {line["id"]: line for line in map(json.loads, text.splitlines()) if "id" in line}


@pytest.fixture
def local(artifacts: Artifacts, listed: Path, tmp_path: Path) -> dict[str, bytes]:
    """The outputs of a run into a folder."""
    run(artifacts, listed, tmp_path / "local")
    return outputs(tmp_path / "local")


def test_a_bucket_gets_what_a_folder_gets(
    bucket: Bucket, artifacts: Artifacts, listed: Path, local: dict[str, bytes], cache: Path
) -> None:
    summary = run(artifacts, listed, f"{bucket.url}/anon", num_proc=2)
    assert (summary.written, summary.failed) == (RECORDINGS, [])
    assert sound_of(bucket) == local
    assert bucket.names("anon") == sorted([*local, "manifest.jsonl"])
    assert set(records(bucket)) == {name.removesuffix(".wav") for name in local}
    assert not [path for path in (cache / "outputs").rglob("*") if path.is_file()]
    again = run(artifacts, listed, f"{bucket.url}/anon")
    assert (again.written, again.present) == (0, RECORDINGS)


def test_the_command_says_where_and_no_secret(
    bucket: Bucket, artifacts: Artifacts, listed: Path, local: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--model", str(artifacts.model), "--bank", str(artifacts.bank), "--audio-scp", str(listed), "--seed", "7"]
    assert main(["infer", *given, "-o", f"{bucket.url}/anon/", "--gpus", "cpu"]) == 0
    said = "".join(capsys.readouterr())
    assert f"{RECORDINGS} of {RECORDINGS} recordings written to {bucket.url}/anon" in " ".join(said.split())
    assert SECRET not in said + bucket.files.cat_file(f"{bucket.url}/anon/manifest.jsonl").decode()
    assert sound_of(bucket) == local
    assert main(["infer", *given[:-1], "8", "-o", f"{bucket.url}/anon", "--gpus", "cpu"]) == 2
    assert f"{bucket.url}/anon: its outputs were made with another seed" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("same_machine", [True, False])
def test_a_killed_run_goes_on_from_what_is_in_the_bucket(
    bucket: Bucket, artifacts: Artifacts, listed: Path, local: dict[str, bytes], cache: Path, same_machine: bool
) -> None:
    program = (
        "import sys, time; import mkc_fast.engine.corpus.manifest as m; import mkc_fast.engine.corpus.remote as r; "
        "from mkc_fast.cli import main; r.INTERVAL_S = 0.2; append = m.Manifest.append; "
        "m.Manifest.append = lambda *a: (append(*a), time.sleep(0.2))[0]; sys.exit(main())"
    )
    given = ["--model", str(artifacts.model), "--bank", str(artifacts.bank), "--audio-scp", str(listed), "--seed", "7"]
    command = [sys.executable, "-c", program, "infer", *given, "-o", f"{bucket.url}/anon", "--gpus", "cpu"]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + PATIENCE_S
    done: dict[str, dict] = {}
    while len(done) < 3:
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
        with contextlib.suppress(FileNotFoundError):
            done = records(bucket)
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    known = len(records(bucket))
    assert 3 <= known < RECORDINGS
    whole = sound_of(bucket)
    assert all(content == local[name] for name, content in whole.items())
    if not same_machine:
        shutil.rmtree(cache)
    summary = run(artifacts, listed, f"{bucket.url}/anon")
    assert summary.present >= known
    assert summary.written == RECORDINGS - summary.present
    assert sound_of(bucket) == local
    assert len(records(bucket)) == RECORDINGS


def test_lines_that_were_not_uploaded_are_uploaded_by_a_run_with_nothing_to_do(
    bucket: Bucket, artifacts: Artifacts, listed: Path, cache: Path
) -> None:
    address = Address(f"{bucket.url}/anon")
    run(artifacts, listed, address.url)
    whole = bucket.files.cat_file(f"{address}/manifest.jsonl")
    folder = remote.working_folder(address)
    folder.mkdir(parents=True)
    (folder / "manifest.jsonl").write_bytes(whole)
    bucket.files.pipe_file(f"{address}/manifest.jsonl", b"".join(whole.splitlines(keepends=True)[:3]))
    summary = run(artifacts, listed, address.url)
    assert (summary.written, summary.present) == (0, RECORDINGS)
    assert bucket.files.cat_file(f"{address}/manifest.jsonl") == whole


def test_an_output_that_vanishes_is_written_again(
    bucket: Bucket, artifacts: Artifacts, listed: Path, local: dict[str, bytes]
) -> None:
    run(artifacts, listed, f"{bucket.url}/anon")
    bucket.files.rm(f"{bucket.url}/anon/u003.wav")
    bucket.files.pipe_file(f"{bucket.url}/anon/u004.wav", b"cut")
    summary = run(artifacts, listed, f"{bucket.url}/anon")
    assert (summary.written, summary.present) == (2, RECORDINGS - 2)
    assert sound_of(bucket) == local


def test_what_no_run_has_written_is_not_replaced(bucket: Bucket, artifacts: Artifacts, listed: Path) -> None:
    bucket.files.pipe_file(f"{bucket.url}/anon/u003.wav", b"mine")
    with pytest.raises(OutputError, match=f"^{bucket.url}/anon/u003.wav: exists, and no run recorded here"):
        run(artifacts, listed, f"{bucket.url}/anon")
    assert bucket.names("anon") == ["u003.wav"]


def test_recordings_are_not_replaced_by_their_outputs(bucket: Bucket, tmp_path: Path, clip: np.ndarray) -> None:
    soundfile.write(tmp_path / "a.wav", clip[:16000], 16000)
    bucket.put(tmp_path / "a.wav", "anon/a.wav")
    scp = tmp_path / "own.scp"
    scp.write_text(f"{bucket.url}/anon/a.wav\n")
    with pytest.raises(OutputError, match=r"anon/a.wav: is a recording, and would be replaced"):
        open_corpus(audio_list=scp, out=f"{bucket.url}/anon")
    with pytest.raises(OutputError, match="is the input itself"):
        open_corpus(input=f"{bucket.url}/anon", out=f"{bucket.url}/anon")
    bucket.put(tmp_path / "a.wav", "b.wav")
    corpus = open_corpus(input=bucket.url, out=f"{bucket.url}/anon")
    assert [each.id for each in corpus.datasets[0].utterances] == ["b"]


def test_the_manifest_is_in_the_bucket_before_the_first_output(
    bucket: Bucket, artifacts: Artifacts, listed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote.RemoteManifest, "advance", lambda _: None)
    seen: list[list[str]] = []

    def look(status: Status) -> None:
        if not status.done and status.summary.written in {1, 2}:
            seen.append(bucket.names("anon"))

    run(artifacts, listed, f"{bucket.url}/anon", progress=look)
    assert seen
    assert all("manifest.jsonl" in names for names in seen)


def test_two_machines_do_not_write_at_one_address(
    bucket: Bucket, artifacts: Artifacts, listed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "INTERVAL_S", 0.0)

    def intrude(status: Status) -> None:
        if status.summary.written >= 2:  # often: it may write between a look at the manifest and an upload
            bucket.files.pipe_file(f"{bucket.url}/anon/manifest.jsonl", b"of another machine")

    with pytest.raises(WriteError, match=r"anon/manifest.jsonl: was written by another run meanwhile"):
        run(artifacts, listed, f"{bucket.url}/anon", progress=intrude)


def test_a_wrong_bucket_is_one_line_before_anything_is_computed(
    bucket: Bucket, artifacts: Artifacts, listed: Path
) -> None:
    with pytest.raises(MkcError, match=r"^s3://no-such-bucket/anon/manifest.jsonl: no such object, or no such bucket"):
        run(artifacts, listed, "s3://no-such-bucket/anon")


def test_silence_of_what_failed_is_uploaded(
    bucket: Bucket, artifacts: Artifacts, listed: Path, local: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / "audio" / "u003.wav").write_bytes(b"broken")
    summary = run(artifacts, listed, f"{bucket.url}/anon", on_failure="copy-silence")
    assert (summary.written, summary.silenced) == (RECORDINGS - 1, 1)
    samples, _ = soundfile.read(io.BytesIO(sound_of(bucket)["u003.wav"]))
    assert len(samples)
    assert not samples.any()


def test_long_recordings_are_uploaded_when_they_are_complete(bucket: Bucket, clip: np.ndarray) -> None:
    address, alone = Address(f"{bucket.url}/long.flac"), Address(f"{bucket.url}/short.flac")
    with written_waveform(address, 16000) as writer:
        for start in range(0, len(clip), 4096):
            writer.write(clip[start : start + 4096])
            assert not bucket.names()
    assert write_waveform(alone, clip, 16000) == writer.size_bytes
    assert bucket.files.cat_file(address.url) == bucket.files.cat_file(alone.url)
    with contextlib.suppress(RuntimeError), written_waveform(Address(f"{bucket.url}/none.wav"), 16000) as writer:
        writer.write(clip)
        raise RuntimeError
    assert bucket.names() == ["long.flac", "short.flac"]


def test_jsonl_manifests_in_the_bucket_name_what_lies_there(
    bucket: Bucket, artifacts: Artifacts, listed: Path, local: dict[str, bytes], tmp_path: Path
) -> None:
    bucket.put(tmp_path / "audio", "speech")
    names = [f"u{number:03}" for number in range(RECORDINGS)]
    lines = [
        {"audio_filepath": f"{bucket.url}/speech/{name}.wav", "duration": 0.5, "text": "so"}
        if name == "u005"
        else {"audio_filepath": f"audio/{name}.wav", "text": "so"}
        for name in names
    ]
    manifest = tmp_path / "train.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def go() -> Any:
        return anonymize_corpus(
            artifacts.model, artifacts.bank, input=manifest, out=f"{bucket.url}/nemo", seed=7, devices=["cpu"]
        )

    missing = tmp_path / "audio" / "u007.wav"
    missing.rename(tmp_path / "aside.wav")
    assert len(go().failed) == 1
    assert "train.jsonl" not in bucket.names("nemo")
    (tmp_path / "aside.wav").rename(missing)
    assert go().failed == []
    written = [json.loads(line) for line in bucket.content("nemo")["train.jsonl"].splitlines()]
    assert [line["text"] for line in written] == ["so"] * RECORDINGS
    for name, line in zip(names, written, strict=True):
        path = line["audio_filepath"]
        assert path.startswith(f"{bucket.url}/nemo/audio/") if name == "u005" else path.startswith("audio/")
        assert name in path
        url = path if "://" in path else f"{bucket.url}/nemo/{path}"
        samples, rate = soundfile.read(io.BytesIO(bucket.files.cat_file(url)))
        if name == "u005":
            assert line["duration"] == pytest.approx(len(samples) / rate, abs=1e-6)
    assert {".mkc-fast/manifest.jsonl", ".mkc-fast/provenance.json"} <= set(bucket.names("nemo"))
    # A run that has something to do again says so by taking the list away.
    bucket.files.rm(f"{bucket.url}/nemo/{written[2]['audio_filepath']}")
    missing.unlink()
    bucket.files.rm(f"{bucket.url}/nemo/{written[7]['audio_filepath']}")
    assert len(go().failed) == 1
    assert "train.jsonl" not in bucket.names("nemo")


def test_shards_in_the_bucket_become_shards_there(
    bucket: Bucket, artifacts: Artifacts, listed: Path, tmp_path: Path, cache: Path
) -> None:
    for number in range(2):
        with tarfile.open(tmp_path / f"shard-{number}.tar", "w") as tar:
            for member in range(number, RECORDINGS, 2):
                tar.add(tmp_path / "audio" / f"u{member:03}.wav", f"u{member:03}.wav")
        bucket.put(tmp_path / f"shard-{number}.tar", f"in/shard-{number}.tar")

    def go(source: object, out: object) -> Any:
        where = f"{source}/shard-{{0..1}}.tar"
        return anonymize_corpus(artifacts.model, artifacts.bank, input=where, out=out, seed=7, devices=["cpu"])

    go(tmp_path, tmp_path / "out")
    assert go(f"{bucket.url}/in", f"{bucket.url}/out").written == RECORDINGS
    for number in range(2):
        content = bucket.content("out")[f"shard-{number}.tar"]
        assert content == (tmp_path / "out" / f"shard-{number}.tar").read_bytes()
    assert not [path for path in (cache / "outputs").rglob("*") if path.is_file()]
    bucket.files.rm(f"{bucket.url}/out/shard-1.tar")
    again = go(f"{bucket.url}/in", f"{bucket.url}/out")
    assert (again.written, again.present) == (RECORDINGS // 2, RECORDINGS // 2)
    assert "shard-1.tar" in bucket.names("out")


def test_a_ray_cluster_writes_to_the_bucket(
    bucket: Bucket, artifacts: Artifacts, listed: Path, local: dict[str, bytes]
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (extra ray)")
    from mkc_fast.engine.cluster import RayCluster

    with RayCluster("local", num_cpus=2) as cluster:
        summary = run(artifacts, listed, f"{bucket.url}/anon", devices=None, cluster=cluster, num_proc=2)
    assert (summary.written, summary.failed) == (RECORDINGS, [])
    assert sound_of(bucket) == local
    assert len(records(bucket)) == RECORDINGS


def test_a_store_that_is_away_for_a_while_is_asked_again(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "_WAITS_S", (0.0, 0.0))
    pipe, left = type(memory).pipe_file, [2]

    def fails(self: Any, *given: Any, **more: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise TimeoutError("away")
        return pipe(self, *given, **more)

    monkeypatch.setattr(type(memory), "pipe_file", fails)
    address = Address("memory://bucket/a")
    write_object(address, b"content")
    assert memory.cat_file("/bucket/a") == b"content"
    left[0] = 3
    with pytest.raises(WriteError, match=r"memory://bucket/a: cannot be written \(TimeoutError: away\)"):
        write_object(address, b"other")


def test_where_files_can_be_seen_half_written_they_get_their_names_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fsspec", reason="fsspec is not installed (extra remote)")
    from fsspec.implementations.local import LocalFileSystem

    seen: list[list[str]] = []
    mv: Callable[..., Any] = LocalFileSystem.mv

    def watched(self: Any, *given: Any, **more: Any) -> Any:
        seen.append([path.name for path in (tmp_path / "out").iterdir()])
        return mv(self, *given, **more)

    monkeypatch.setattr(LocalFileSystem, "mv", watched)
    address = Address(f"local://{tmp_path}/out/a.wav")
    write_object(address, b"one")
    write_object(address, b"two")
    assert [[name for name in names if not name.startswith(".")] for names in seen] == [[], ["a.wav"]]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.wav"]
    assert (tmp_path / "out" / "a.wav").read_bytes() == b"two"


def test_versions_tell_objects_apart(memory: Any) -> None:
    address = Address("memory://bucket/a")
    assert version_of(address) is None
    write_object(address, b"one")
    first = version_of(address)
    write_object(address, b"two!")
    assert None not in {first, version_of(address)}
    assert first != version_of(address)
    remove_object(address)
    remove_object(address)
    assert version_of(address) is None


def test_what_addresses_cannot_do_is_refused(tmp_path: Path, listed: Path, artifacts: Artifacts) -> None:
    pytest.importorskip("fsspec", reason="fsspec is not installed (extra remote)")
    with pytest.raises(ArgumentError, match="outputs cannot be written at memory://"):
        open_corpus(audio_list=listed, out="memory://bucket/anon")
    with pytest.raises(OutputError, match="shards are joined in folders"):
        merge_corpus(audio_list=listed, out="s3://bucket/anon")
