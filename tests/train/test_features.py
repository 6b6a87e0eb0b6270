"""A cache of features holds what the encoder gives, is written whole or not at all, and belongs to one encoder."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mkc_fast import ArtifactError, ListError, OutputError, StageError
from mkc_fast.cli import main
from mkc_fast.engine.encoder import Encoder
from mkc_fast.engine.options import EngineOptions
from mkc_fast.export import export_model
from mkc_fast.export.random_checkpoints import Checkpoints, write_wavlm
from mkc_fast.train.features.cache import FeatureCache
from mkc_fast.train.features.make import make_features
from tests.conftest import Artifacts


def test_the_cache_has_the_features_of_the_encoder(artifacts: Artifacts, speech: Path, tmp_path: Path) -> None:
    made = make_features(artifacts.model, tmp_path / "cache", audio_list=speech, shard_frames=150)
    cache = FeatureCache.open(tmp_path / "cache", artifacts.model)
    assert [entry.id for entry in cache.entries] == [f"{s}-{part}" for s in ("anna", "ben", "cleo") for part in (0, 1)]
    assert [entry.speaker for entry in cache.entries] == ["anna", "anna", "ben", "ben", "cleo", "cleo"]
    assert len(made.facts.shard_frames) == 6  # two recordings have more frames than a shard
    for index, entry in enumerate(cache.entries):
        waveform = soundfile.read(speech.parent / f"{entry.id}.wav", dtype="float32")[0]
        expected = artifacts.anonymizer.encode(waveform)
        np.testing.assert_array_equal(cache.read(index), expected)
        np.testing.assert_array_equal(cache.read(index, 10, 25), expected[10:25])


def test_batches_of_mixed_lengths_give_the_same_features(artifacts: Artifacts, speech: Path, tmp_path: Path) -> None:
    for number, entry in enumerate(("anna-0", "ben-1", "cleo-0")):
        path = speech.parent / f"{entry}.wav"
        samples = soundfile.read(path, dtype="float32")[0]
        soundfile.write(path, samples[: -3000 * (number + 1)], 16000)
    encoder = Encoder.load(artifacts.model, options=EngineOptions(batch_s=20))
    assert len(encoder.batches([99, 80, 40, 99])) == 1
    together, alone = tmp_path / "together", tmp_path / "alone"
    make_features(artifacts.model, together, audio_list=speech, options=EngineOptions(batch_s=20))
    make_features(artifacts.model, alone, audio_list=speech)
    one, other = FeatureCache.open(together), FeatureCache.open(alone)
    assert [entry.id for entry in one.entries] == [entry.id for entry in other.entries]
    assert len({entry.frames for entry in one.entries}) > 1
    for index in range(len(one.entries)):
        np.testing.assert_allclose(one.read(index), other.read(index), atol=1e-4)


def test_half_precision_takes_half_the_disk(artifacts: Artifacts, speech: Path, tmp_path: Path) -> None:
    for dtype in ("float32", "float16"):
        make_features(artifacts.model, tmp_path / dtype, audio_list=speech, dtype=dtype)
    full, half = (FeatureCache.open(tmp_path / dtype) for dtype in ("float32", "float16"))
    np.testing.assert_array_equal(half.read(3), full.read(3).astype(np.float16).astype(np.float32))
    sizes = [(tmp_path / dtype / "shard-000000.npy").stat().st_size - 128 for dtype in ("float32", "float16")]
    assert sizes[0] == 2 * sizes[1]


def test_features_too_large_for_half_precision_are_refused(
    checkpoints: Checkpoints, speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, artifacts: Artifacts
) -> None:
    before = Encoder.encode_batch
    monkeypatch.setattr(Encoder, "encode_batch", lambda self, waves: [1e6 * each for each in before(self, waves)])
    with pytest.raises(StageError, match="too large for float16; use float32"):
        make_features(artifacts.model, tmp_path / "cache", audio_list=speech, dtype="float16")
    assert not (tmp_path / "cache").exists()


def test_an_interrupted_run_keeps_its_shards(artifacts: Artifacts, speech: Path, tmp_path: Path) -> None:
    make_features(artifacts.model, tmp_path / "whole", audio_list=speech, shard_frames=150)
    out, work = tmp_path / "cache", tmp_path / "cache.making"
    command = [sys.executable, "-c", "from mkc_fast.cli import main; main()", "features", "--model", artifacts.model]
    command += ["--out", out, "--audio-scp", speech, "--shard-frames", "150"]
    process = subprocess.Popen([*map(str, command)], start_new_session=True, cwd=tmp_path)
    while not (work / "000001.json").exists():
        assert process.poll() is None, "it ended before it could be interrupted"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    with pytest.raises(OutputError, match="shards of an interrupted run with another type, shards"):
        make_features(artifacts.model, out, audio_list=speech, dtype="float16")
    made = make_features(artifacts.model, out, audio_list=speech, shard_frames=150)
    assert made.kept >= 2
    assert not work.exists()
    for name in [path.name for path in (tmp_path / "whole").iterdir()]:
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_cache_of_another_encoder_is_refused(
    artifacts: Artifacts, checkpoints: Checkpoints, speech: Path, tmp_path: Path
) -> None:
    make_features(artifacts.model, tmp_path / "cache", audio_list=speech)
    write_wavlm(tmp_path / "other.pt", seed=5)
    export_model(tmp_path / "other.pt", checkpoints.ckpt, tmp_path / "other", layer=4)
    with pytest.raises(ArtifactError, match=r"features of another model than .*: wavlm_sha256, layer differ"):
        FeatureCache.open(tmp_path / "cache", tmp_path / "other")


def test_a_recording_that_cannot_be_read_is_left_out_and_said(
    artifacts: Artifacts, speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ben-1.wav").write_bytes(b"RIFF nothing")
    arguments = ["features", "--model", artifacts.model, "--out", tmp_path / "cache", "--audio-scp", speech]
    assert main([*map(str, arguments)]) == 1
    said = capsys.readouterr()
    assert "failed: ben-1: " in said.err
    assert "5 utterances, 495 frames in 1 file" in said.out
    assert "ben-1" not in [entry.id for entry in FeatureCache.open(tmp_path / "cache").entries]
    assert main([*map(str, arguments)]) == 2
    assert "already there; --overwrite replaces it" in capsys.readouterr().err
    for path in tmp_path.glob("*.wav"):
        path.write_bytes(b"RIFF nothing")
    with pytest.raises(ListError, match="no recording could be read"):
        make_features(artifacts.model, tmp_path / "none", audio_list=speech)


def test_a_damaged_cache_is_refused_in_a_line(artifacts: Artifacts, speech: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    make_features(artifacts.model, cache, audio_list=speech)
    files = {path.name: path.read_bytes() for path in cache.iterdir()}
    facts = json.loads(files["features.json"])
    line = json.loads(files["index.jsonl"].splitlines()[0])
    for name, content, said in (
        ("features.json", b"[", "not readable"),
        ("features.json", b"{}", "format version None, expected 1"),
        ("features.json", json.dumps({**facts, "shard_frames": [-1]}).encode(), "damaged"),
        ("features.json", json.dumps({**facts, "shard_frames": 3}).encode(), "damaged"),
        ("features.json", json.dumps({**facts, "encoder": {}}).encode(), "damaged"),
        ("index.jsonl", b"", "0 utterances, expected 6"),
        ("index.jsonl", json.dumps({**line, "frames": 1000}).encode() + b"\n", "line 1: not readable"),
        ("index.jsonl", b"[]\n", "line 1: not readable"),
        ("shard-000000.npy", files["shard-000000.npy"][:-1], "cannot be read"),
        ("shard-000000.npy", files["shard-000000.npy"][:20], "cannot be read"),
    ):
        (cache / name).write_bytes(content)
        with pytest.raises(ArtifactError, match=said):
            FeatureCache.open(cache)
        (cache / name).write_bytes(files[name])
    FeatureCache.open(cache)
    with pytest.raises(ArtifactError, match="no cache of features"):
        FeatureCache.open(tmp_path)
