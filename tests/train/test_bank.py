"""Banks are trained on speech: repeatably, resumably, as the research code does it, and in its formats."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import joblib
import numpy as np
import pytest
import soundfile
from sklearn.cluster import MiniBatchKMeans

from mkc_fast import Anonymizer, ArgumentError, ListError, OutputError
from mkc_fast.cli import main
from mkc_fast.engine.artifacts import open_bank
from mkc_fast.engine.datasets.dataset import Utterance
from mkc_fast.engine.datasets.path_lists import read_named_paths
from mkc_fast.export import build_bank
from mkc_fast.train import KMeansSettings, train_bank
from mkc_fast.train.groups import Group, grouped, with_enough
from mkc_fast.train.kmeans import spread
from tests.conftest import Artifacts
from tests.train.conftest import SPEAKERS

SETTINGS = KMeansSettings(clusters=8, n_init=2)


def features_of(artifacts: Artifacts, speech: Path, speaker: str) -> np.ndarray:
    parts = [soundfile.read(speech.parent / f"{speaker}-{part}.wav", dtype="float32")[0] for part in range(2)]
    return np.concatenate([artifacts.anonymizer.encode(part) for part in parts])


def test_a_model_for_each_speaker_fits_as_well_as_scikit_learns(
    artifacts: Artifacts, speech: Path, tmp_path: Path
) -> None:
    made = train_bank(
        artifacts.model, tmp_path / "bank", audio_list=speech, settings=SETTINGS, seed=1, save_kmeans=tmp_path / "km"
    )
    bank = open_bank(tmp_path / "bank")
    assert bank.info.names == list(SPEAKERS)
    assert bank.info.num_clusters == [8, 8, 8]
    assert made.failed == {}
    for index, speaker in enumerate(SPEAKERS):
        features = features_of(artifacts, speech, speaker)
        entry = bank.info.training[index]
        assert (entry.utterances, entry.frames) == (2, len(features))
        inertia, empty = spread(features, bank.centroids[index])
        assert entry.inertia == pytest.approx(inertia, rel=1e-5)
        assert made.empty[index] == empty
        # The same algorithm, from several other starts.
        others = [
            -MiniBatchKMeans(8, n_init=2, batch_size=2048, random_state=state).fit(features).score(features)
            for state in range(5)
        ]
        assert 0.9 * min(others) < inertia * len(features) < 1.1 * max(others)
    for name, path in read_named_paths(tmp_path / "km" / "kmeans.scp"):
        loaded = joblib.load(path)  # as the research code does
        features = features_of(artifacts, speech, name)
        index = bank.info.names.index(name)
        expected = artifacts_lookup(artifacts, tmp_path / "bank", features, index)
        np.testing.assert_array_equal(loaded.predict(features), expected)
    built = build_bank(tmp_path / "km" / "kmeans.scp", tmp_path / "again")
    assert (built.names, built.sources) == (bank.info.names, bank.info.sources)
    assert not (tmp_path / "bank.training").exists()


def artifacts_lookup(artifacts: Artifacts, bank: Path, features: np.ndarray, index: int) -> np.ndarray:
    with Anonymizer.load(artifacts.model, bank) as anonymizer:
        return anonymizer.assign(features, np.full(len(features), index))


def test_a_seed_repeats_the_models_whatever_runs_beside_them(
    artifacts: Artifacts, speech: Path, tmp_path: Path
) -> None:
    for name, jobs in (("one", 1), ("three", 3)):
        train_bank(artifacts.model, tmp_path / name, audio_list=speech, settings=SETTINGS, seed=5, jobs=jobs)
    one, three = (open_bank(tmp_path / name) for name in ("one", "three"))
    np.testing.assert_array_equal(one.centroids, three.centroids)
    fewer = tmp_path / "fewer.scp"
    fewer.write_text("".join(line + "\n" for line in speech.read_text().splitlines() if not line.startswith("anna")))
    train_bank(artifacts.model, tmp_path / "two", audio_list=fewer, settings=SETTINGS, seed=5)
    np.testing.assert_array_equal(open_bank(tmp_path / "two").centroids, one.centroids[1:])
    train_bank(artifacts.model, tmp_path / "other", audio_list=speech, settings=SETTINGS, seed=6)
    assert (open_bank(tmp_path / "other").centroids != one.centroids).any()


@pytest.mark.parametrize(("per", "names"), [("group:2", ["group0001", "group0002"]), ("all", ["all"])])
def test_speakers_share_models(artifacts: Artifacts, speech: Path, tmp_path: Path, per: str, names: list[str]) -> None:
    made = train_bank(artifacts.model, tmp_path / "bank", audio_list=speech, per=per, settings=SETTINGS, seed=1)
    assert made.info.names == names
    assert sum(entry.utterances for entry in made.info.training) == 6


def test_the_bank_serves_inference(
    artifacts: Artifacts, speech: Path, tmp_path: Path, clip: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train_bank(artifacts.model, "bank", audio_list=speech.name, settings=SETTINGS)
    with Anonymizer.load(artifacts.model, tmp_path / "bank") as anonymizer:
        result = anonymizer.anonymize(clip, seed=1)
    assert set(result.bank_ids) == {0, 1, 2}
    assert np.isfinite(result.waveform).all()


def test_an_interrupted_training_goes_on(artifacts: Artifacts, speech: Path, tmp_path: Path) -> None:
    whole = train_bank(artifacts.model, tmp_path / "whole", audio_list=speech, settings=SETTINGS, seed=5)
    out, work = tmp_path / "bank", tmp_path / "bank.training"
    command = [
        sys.executable,
        "-c",
        "from mkc_fast.cli import main; main()",
        "bank",
        "train",
        "--model",
        artifacts.model,
        "--out",
        out,
    ]
    command += ["--audio-scp", speech, "--clusters", "8", "--n-init", "2", "--seed", "5", "--jobs", "1"]
    process = subprocess.Popen([*map(str, command)], start_new_session=True, cwd=tmp_path)
    while not (work / "000000.json").exists():
        assert process.poll() is None, "it ended before it could be interrupted"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    with pytest.raises(OutputError, match="an interrupted training with another kmeans, seed"):
        train_bank(artifacts.model, out, audio_list=speech, settings=replace(SETTINGS, clusters=4), seed=6)
    made = train_bank(artifacts.model, out, audio_list=speech, settings=SETTINGS, seed=5)
    assert made.kept >= 1
    assert made.info.sources == whole.info.sources
    assert not work.exists()


def test_a_recording_that_cannot_be_read_is_left_out_and_said(
    artifacts: Artifacts, speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ben-1.wav").write_bytes(b"RIFF nothing")
    arguments = ["bank", "train", "--model", artifacts.model, "--out", tmp_path / "bank", "--audio-scp", speech]
    arguments += ["-k", 8, "--n-init", 1, "--picture", tmp_path / "inertia.svg"]
    assert main([*map(str, arguments)]) == 1
    said = capsys.readouterr()
    assert "failed: ben-1: " in said.err
    assert "3 models" in said.out
    assert [entry.utterances for entry in open_bank(tmp_path / "bank").info.training] == [2, 1, 2]
    assert "<svg" in (tmp_path / "inertia.svg").read_text()
    assert main([*map(str, arguments)]) == 2
    assert "already there; --overwrite replaces it" in capsys.readouterr().err


def test_too_few_frames_are_refused_or_merged(artifacts: Artifacts, speech: Path, tmp_path: Path) -> None:
    least = {"settings": SETTINGS, "min_frames": 250}
    with pytest.raises(ListError, match=r"anna and 2 more: 198 frames, 250 are needed"):
        train_bank(artifacts.model, tmp_path / "bank", audio_list=speech, **least)
    made = train_bank(artifacts.model, tmp_path / "bank", audio_list=speech, few="merge", **least)
    assert made.info.names == ["anna+ben+cleo"]
    for wrong, said in (({"per": "group:0"}, "per is 'group:0'"), ({"few": "drop"}, "few is 'drop'")):
        with pytest.raises(ArgumentError, match=said):
            train_bank(artifacts.model, tmp_path / "other", audio_list=speech, settings=SETTINGS, **wrong)


def test_merged_groups_have_enough_frames_and_all_utterances() -> None:
    groups = [
        Group(f"s{index}", [Utterance(f"u{index}", "a.wav")], frames)
        for index, frames in enumerate((9, 1, 3, 20, 2, 2))
    ]
    merged = with_enough(groups, 4, "merge")
    assert [(group.name, group.frames) for group in merged] == [("s0", 9), ("s1+s2", 4), ("s3", 20), ("s4+s5", 4)]
    last = with_enough(groups[:5], 5, "merge")
    assert [(group.name, group.frames) for group in last] == [("s0", 9), ("s3", 20), ("s1+s2+s4", 6)]
    assert [(group.name, group.frames) for group in with_enough(groups, 30, "merge")] == [("s0+s1+s2+3-more", 37)]
    with pytest.raises(ListError, match="all speech together has 37 frames"):
        with_enough(groups, 38, "merge")


def test_an_utterance_without_a_speaker_is_an_error() -> None:
    with pytest.raises(ListError, match="'u' has no speaker"):
        grouped([Utterance("u", "a.wav")], [1], {}, "speaker")


def test_bank_info_shows_a_trained_bank(
    artifacts: Artifacts, speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_bank(artifacts.model, tmp_path / "bank", audio_list=speech, settings=SETTINGS, per="all")
    assert main(["bank", "info", str(tmp_path / "bank"), "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["models"]
    assert entry["training"]["frames"] == 594
