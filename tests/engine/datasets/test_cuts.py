"""CutSets and Shar come back as they were with the anonymized recordings; nothing of the original speech is kept."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from mkc_fast import ListError, OutputError, anonymize_corpus
from mkc_fast.engine.audio.read import read_utterance, read_waveform
from mkc_fast.engine.corpus.anonymize import plan_corpus
from mkc_fast.engine.corpus.merge import merge_dataset
from mkc_fast.engine.datasets.cuts import read_cut_manifest
from mkc_fast.engine.datasets.shar import read_shar
from mkc_fast.engine.datasets.shards import Shard
from tests.conftest import Artifacts
from tests.engine.datasets.running import echoed

needs_lhotse = pytest.mark.skipif(importlib.util.find_spec("lhotse") is None, reason="Lhotse is not installed")


@pytest.fixture
def recording(speech: Path, tmp_path: Path) -> dict[str, Any]:
    """A recording of two channels, the second one half as loud, as Lhotse describes it."""
    samples, rate = soundfile.read(speech / "jfk_44k_stereo.flac", dtype="float32")
    soundfile.write(tmp_path / "talk.flac", np.stack([samples[:, 0], samples[:, 0] / 2], 1), rate)
    return {
        "id": "talk",
        "sources": [{"type": "file", "channels": [0, 1], "source": str(tmp_path / "talk.flac")}],
        "sampling_rate": rate,
        "num_samples": len(samples),
        "duration": len(samples) / rate,
        "channel_ids": [0, 1],
    }


def cut(recording: dict[str, Any], name: str, start: float, duration: float, channel: int = 0) -> dict[str, Any]:
    return {
        "id": name,
        "start": start,
        "duration": duration,
        "channel": channel,
        "supervisions": [
            {
                "id": f"{name}-s",
                "recording_id": recording["id"],
                "start": 0.1,
                "duration": duration - 0.2,
                "channel": channel,
                "text": "and so, my fellow Americans",
                "language": "English",
                "speaker": "jfk" if channel == 0 else "other",
                "alignment": {"word": [["and", 0.1, 0.2], ["so", 0.3, 0.2]]},
                "custom": {"accent": "Boston"},
            }
        ],
        "recording": recording,
        "custom": {"snr": 12.5, "labels": ["a", "b"], "nested": {"x": 1}},
        "type": "MonoCut",
    }


@pytest.fixture
def cuts(recording: dict[str, Any]) -> list[dict[str, Any]]:
    """Three cuts of it, in an order of their own."""
    return [
        cut(recording, "z/late", 0.4, 2.5),
        cut(recording, "a", 0.0, recording["duration"], 1),
        cut(recording, "m", 1.25, 0.75, 1),
    ]


def written(path: Path, lines: list[Any]) -> Path:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


@pytest.mark.parametrize("name", ["cuts.jsonl.gz", "cuts.jsonl"])
def test_cuts_keep_everything_but_their_recordings(
    name: str, cuts: list[dict[str, Any]], artifacts: Artifacts, tmp_path: Path
) -> None:
    dataset = read_cut_manifest(written(tmp_path / name, cuts), tmp_path / "out")
    assert echoed(dataset, artifacts).written == 3
    made = read(tmp_path / "out" / "cuts.jsonl.gz")
    assert [each["id"] for each in made] == ["z/late", "a", "m"]
    for before, after in zip(cuts, made, strict=True):
        assert after["start"] == 0
        assert after["duration"] == pytest.approx(before["duration"], abs=1 / 16000)
        assert after["custom"] == before["custom"]
        (said,) = after["supervisions"]
        assert said == {**before["supervisions"][0], "recording_id": after["id"], "channel": 0}
        source = after["recording"]["sources"][0]
        samples, rate = soundfile.read(source["source"])
        assert (source["type"], source["channels"], rate) == ("file", [0], 16000)
        assert after["recording"]["num_samples"] == len(samples)
        assert after["recording"]["duration"] == after["duration"] == len(samples) / rate


def test_a_cut_is_its_part_and_its_channel(
    cuts: list[dict[str, Any]], recording: dict[str, Any], tmp_path: Path
) -> None:
    dataset = read_cut_manifest(written(tmp_path / "cuts.jsonl.gz", cuts), tmp_path / "out")
    samples, rate = soundfile.read(recording["sources"][0]["source"], dtype="float32")
    for utterance, each in zip(dataset.utterances, cuts, strict=True):
        begin = round(each["start"] * rate)
        expected = samples[begin : begin + round(each["duration"] * rate), each["channel"]]
        np.testing.assert_array_equal(read_utterance(utterance, rate, 1), expected)
    assert dataset.utterances[1].end_s is None


def test_sources_of_one_channel_each_are_told_apart(recording: dict[str, Any], tmp_path: Path) -> None:
    samples, rate = soundfile.read(recording["sources"][0]["source"], dtype="float32")
    for channel in (0, 1):
        soundfile.write(tmp_path / f"{channel}.wav", samples[:, channel], rate)
    recording["sources"] = [
        {"type": "file", "channels": [channel], "source": str(tmp_path / f"{channel}.wav")} for channel in (0, 1)
    ]
    path = written(tmp_path / "cuts.jsonl", [cut(recording, "a", 0.0, 1.0, 1), cut(recording, "b", 0.0, 1.0, 0)])
    first, second = read_cut_manifest(path, tmp_path / "out").utterances
    assert (Path(first.file).name, first.channel, Path(second.file).name) == ("1.wav", None, "0.wav")


def test_data_of_the_original_speech_is_left_out(
    recording: dict[str, Any], artifacts: Artifacts, tmp_path: Path
) -> None:
    array = {"storage_type": "numpy_files", "storage_path": "original", "storage_key": "a.npy", "shape": [1]}
    made = cut(recording, "a", 0.0, 1.0)
    made["features"] = {
        "type": "fbank",
        "storage_type": "lilcom_chunky",
        "storage_path": "original",
        "storage_key": "0",
    }
    made["custom"] |= {"clean": recording, "xvector": array, "codes": {"array": array, "temporal_dim": 0}}
    made["supervisions"][0]["custom"]["xvector"] = array
    echoed(read_cut_manifest(written(tmp_path / "cuts.jsonl", [made]), tmp_path / "out"), artifacts)
    text = gzip.decompress((tmp_path / "out" / "cuts.jsonl.gz").read_bytes()).decode()
    assert not any(word in text for word in ("numpy_files", "lilcom", "talk", "features", "xvector", "clean", "codes"))
    assert "accent" in text
    assert "snr" in text


def test_a_run_that_was_stopped_goes_on_and_writes_the_cuts_last(
    cuts: list[dict[str, Any]], artifacts: Artifacts, tmp_path: Path
) -> None:
    late = tmp_path / "late.flac"
    cuts[1]["recording"] = {
        **cuts[1]["recording"],
        "sources": [{"type": "file", "channels": [0, 1], "source": str(late)}],
    }
    path = written(tmp_path / "cuts.jsonl.gz", cuts)
    summary = echoed(read_cut_manifest(path, tmp_path / "out"), artifacts)
    assert [name for name, _ in summary.failed] == ["a"]
    assert not (tmp_path / "out" / "cuts.jsonl.gz").exists()
    late.write_bytes(Path(cuts[0]["recording"]["sources"][0]["source"]).read_bytes())
    summary = echoed(read_cut_manifest(path, tmp_path / "out"), artifacts)
    assert (summary.written, summary.present) == (1, 2)
    assert len(read(tmp_path / "out" / "cuts.jsonl.gz")) == 3


def test_a_manifest_that_changed_during_the_run_is_refused(cuts: list[dict[str, Any]], tmp_path: Path) -> None:
    path = written(tmp_path / "cuts.jsonl.gz", cuts)
    dataset = read_cut_manifest(path, tmp_path / "out")
    written(path, [*cuts, cut(cuts[0]["recording"], "new", 0.0, 1.0)])
    (tmp_path / "out").mkdir()
    for name in ("z/late", "a", "m"):
        (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / "out" / f"{name}.wav", np.zeros(100), 16000)
    outputs = {name: tmp_path / "out" / f"{name}.wav" for name in ("z/late", "a", "m")}
    with pytest.raises(OutputError, match="line 4: changed during the run"):
        dataset.finish(outputs)
    assert not (tmp_path / "out" / "cuts.jsonl.gz").exists()


REFUSED = {
    "has no recording": {"recording": None},
    "a MixedCut; expected a MonoCut": {"type": "MixedCut"},
    "a MultiCut; expected a MonoCut": {"type": "MultiCut"},
    "has no id": {"id": 7},
    "cannot name an output file": {"id": "../../etc/passwd"},
    "expected start >= 0 and duration > 0": {"start": -1.0},
    "has the channel 5": {"channel": 5},
    "has the channel \\[0, 1\\]": {"channel": [0, 1]},
}


@pytest.mark.parametrize("reason", REFUSED)
def test_other_cuts_are_one_line(reason: str, recording: dict[str, Any], tmp_path: Path) -> None:
    made = {**cut(recording, "a", 0.0, 1.0), **REFUSED[reason]}
    with pytest.raises(ListError, match=reason) as caught:
        read_cut_manifest(written(tmp_path / "cuts.jsonl", [made]), tmp_path / "out")
    assert "cuts.jsonl, line 1" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("url", "source type url; expected file"), ("memory", "source type memory"), ("command", "--allow-commands")],
)
def test_only_files_are_read_unless_commands_are_allowed(
    kind: str, reason: str, recording: dict[str, Any], tmp_path: Path
) -> None:
    file = recording["sources"][0]["source"]
    recording["sources"][0] |= {"type": kind, "source": f"touch {tmp_path}/ran; cat '{file}'"}
    path = written(tmp_path / "cuts.jsonl", [cut(recording, "a", 0.5, 1.0, 1)])
    with pytest.raises(ListError, match=reason):
        read_cut_manifest(path, tmp_path / "out")
    if kind == "command":
        (utterance,) = read_cut_manifest(path, tmp_path / "out", allow_commands=True).utterances
        assert not (tmp_path / "ran").exists()
        samples = soundfile.read(file, dtype="float32")[0]
        np.testing.assert_array_equal(read_utterance(utterance, 44100, 1), samples[22050:66150, 1])


def test_transforms_are_refused(recording: dict[str, Any], tmp_path: Path) -> None:
    recording["transforms"] = [{"name": "Speed", "kwargs": {"factor": 1.1}}]
    with pytest.raises(ListError, match="has transforms"):
        read_cut_manifest(written(tmp_path / "cuts.jsonl", [cut(recording, "a", 0.0, 1.0)]), tmp_path / "out")


BROKEN = {
    "empty.jsonl": b"",
    "text.jsonl": b"not json\n",
    "list.jsonl": b"[1]\n",
    "deep.jsonl": b"[" * 100_000 + b"\n",
    "cut.jsonl.gz": gzip.compress(b"{}\n" * 10_000)[:40],
    "plain.jsonl.gz": b"{}\n",
    "cuts.yaml": b"- id: a\n",
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_manifests_are_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(BROKEN[name])
    with pytest.raises(ListError, match=name) as caught:
        read_cut_manifest(tmp_path / name, tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_an_id_that_is_there_twice_is_refused(recording: dict[str, Any], tmp_path: Path) -> None:
    twice = [cut(recording, "a", 0.0, 1.0), cut(recording, "a", 1.0, 1.0)]
    with pytest.raises(ListError, match="line 2: the id 'a' is there twice"):
        read_cut_manifest(written(tmp_path / "cuts.jsonl", twice), tmp_path / "out")


def test_cuts_of_a_speaker_share_their_draws(cuts: list[dict[str, Any]], tmp_path: Path) -> None:
    path = written(tmp_path / "cuts.jsonl", cuts)
    draws = [each.draw_id for each in read_cut_manifest(path, tmp_path / "out", by_speaker=True).utterances]
    assert draws[0] != draws[1] == draws[2]
    cuts[2]["supervisions"] = []
    with pytest.raises(ListError, match="line 3: has no speakers"):
        read_cut_manifest(written(path, cuts), tmp_path / "out", by_speaker=True)


def test_neither_torch_nor_lhotse_is_imported(cuts: list[dict[str, Any]], tmp_path: Path) -> None:
    written(tmp_path / "cuts.jsonl", cuts)
    code = (
        "import sys; from pathlib import Path; from mkc_fast.engine.datasets.cuts import read_cut_manifest; "
        "import mkc_fast.engine.datasets.shar; read_cut_manifest(Path('cuts.jsonl'), Path('out')); "
        "sys.exit('torch' in sys.modules or 'lhotse' in sys.modules)"
    )
    assert (
        os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", f"import os; os.chdir({str(tmp_path)!r}); {code}"])
        == 0
    )


@needs_lhotse
def test_lhotse_reads_what_is_written(cuts: list[dict[str, Any]], artifacts: Artifacts, tmp_path: Path) -> None:
    from lhotse import CutSet, validate

    before = CutSet.from_dicts(json.loads(json.dumps(cuts)))
    before.to_file(tmp_path / "cuts.jsonl.gz")
    dataset = read_cut_manifest(tmp_path / "cuts.jsonl.gz", tmp_path / "out")
    echoed(dataset, artifacts, "flac")
    after = CutSet.from_file(tmp_path / "out" / "cuts.jsonl.gz")
    validate(after.to_eager(), read_data=True)
    for old, new, utterance in zip(before, after, dataset.utterances, strict=True):
        assert (old.id, old.supervisions[0].text, old.custom) == (new.id, new.supervisions[0].text, new.custom)
        assert new.supervisions[0].alignment == old.supervisions[0].alignment
        heard = new.load_audio()
        assert heard.shape == (1, new.num_samples)
        np.testing.assert_allclose(heard[0], read_utterance(utterance, 16000, 1), atol=1 / 32767)


@pytest.fixture
def shar(cuts: list[dict[str, Any]], recording: dict[str, Any], tmp_path: Path) -> Path:
    """Two shards that Lhotse has written."""
    pytest.importorskip("lhotse", reason="Lhotse is not installed")
    from lhotse import CutSet
    from lhotse.shar import SharWriter

    more = [cut(recording, f"n{number}", 0.5 * number, 0.5, number % 2) for number in range(4)]
    (tmp_path / "shar").mkdir()
    with SharWriter(str(tmp_path / "shar"), {"recording": "flac"}, shard_size=4) as writer:
        for each in CutSet.from_dicts(json.loads(json.dumps([*cuts, *more]))):
            writer.write(each)
    return tmp_path / "shar"


def test_shar_comes_back_shard_by_shard(shar: Path, artifacts: Artifacts, tmp_path: Path) -> None:
    from lhotse import CutSet

    dataset = read_shar(shar, tmp_path / "out")
    assert echoed(dataset, artifacts, "flac").written == 7
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(path.name for path in shar.iterdir())
    assert not list(dataset.audio_dir.rglob("*.flac"))
    before, after = CutSet.from_shar(in_dir=shar), CutSet.from_shar(in_dir=tmp_path / "out")
    for old, new, utterance in zip(before, after, dataset.utterances, strict=True):
        assert (old.id, old.supervisions[0].text, new.channel) == (new.id, new.supervisions[0].text, 0)
        assert {**old.custom, "shard_origin": 0} == {**new.custom, "shard_origin": 0}
        assert new.duration == pytest.approx(old.duration, abs=1 / 16000)
        np.testing.assert_allclose(new.load_audio()[0], read_utterance(utterance, 16000, 1), atol=1 / 32767)
    assert echoed(read_shar(shar, tmp_path / "out"), artifacts, "flac").present == 7


def test_a_killed_run_over_shar_leaves_whole_shards_and_goes_on(
    shar: Path, artifacts: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mkc_fast.engine.datasets import shar as module

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_lines", killed)  # between an archive and its manifest
        with pytest.raises(KeyboardInterrupt):
            echoed(read_shar(shar, tmp_path / "out"), artifacts)
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith("cuts")]
    summary = echoed(read_shar(shar, tmp_path / "out"), artifacts)
    assert summary.failed == []
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_parts_of_shar_are_whole_shards(shar: Path, artifacts: Artifacts, tmp_path: Path) -> None:
    dataset = read_shar(shar, tmp_path / "out")
    parts = [dataset.part(Shard(number, 2)) for number in (1, 2)]
    assert [each.id for part in parts for each in part.utterances] == [each.id for each in dataset.utterances]
    echoed(dataset, artifacts, shard=Shard(2, 2))
    made = sorted(path.name for path in parts[1].out.iterdir() if not path.name.startswith("."))
    assert made == ["cuts.000001.jsonl.gz", "recording.000001.tar"]
    echoed(dataset, artifacts, shard=Shard(1, 2))
    merge_dataset(dataset)
    assert sorted(path.name for path in dataset.out.iterdir()) == sorted(path.name for path in shar.iterdir())


def test_shar_whose_files_do_not_fit_is_refused(shar: Path, tmp_path: Path) -> None:
    (shar / "recording.000001.tar").rename(shar / "kept.tar")
    with pytest.raises(ListError, match=r"recording\.000001\.tar: cannot be read"):
        read_shar(shar, tmp_path / "out")
    (shar / "recording.000000.tar").rename(shar / "recording.000001.tar")
    (shar / "kept.tar").rename(shar / "recording.000000.tar")
    with pytest.raises(ListError, match=r"is 'z/late', and .* has 'n1' there"):
        read_shar(shar, tmp_path / "out")
    with pytest.raises(ListError, match="holds no cuts"):
        read_shar(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_cut_archives_are_refused(share: float, shar: Path, tmp_path: Path) -> None:
    archive = shar / "recording.000000.tar"
    whole = archive.read_bytes()
    archive.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ListError, match=r"recording\.000000\.tar") as caught:
        read_shar(shar, tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_links_in_an_archive_are_refused(shar: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.wav"
    soundfile.write(secret, np.zeros(1000), 16000)
    with tarfile.open(shar / "recording.000000.tar", "w") as tar:
        link = tarfile.TarInfo("z/late.flac")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        tar.addfile(link)
    with pytest.raises(ListError, match="is not a plain file"):
        read_shar(shar, tmp_path / "out")


def test_both_forms_give_what_the_recordings_alone_give(
    cuts: list[dict[str, Any]], shar: Path, artifacts: Artifacts, tmp_path: Path
) -> None:
    manifest = read_cut_manifest(written(tmp_path / "cuts.jsonl.gz", cuts), tmp_path / "cuts")
    for dataset in (manifest, read_shar(shar, tmp_path / "out")):
        summary = anonymize_corpus(artifacts.model, artifacts.bank, corpus=plan_corpus([dataset]), seed=3)
        assert summary.failed == []
    part = read_utterance(manifest.utterances[0], 16000, 1)
    alone = artifacts.anonymizer.anonymize(part, mode="frame", stride=1, seed=3, utterance_id="z/late")
    for path in (tmp_path / "cuts" / "recordings" / "z" / "late.wav",):
        np.testing.assert_allclose(read_waveform(path, 16000), alone.waveform, atol=1 / 32767)
    with tarfile.open(tmp_path / "out" / "recording.000000.tar") as tar:
        member = tar.extractfile("z/late.wav")
        assert member is not None
        heard, _ = soundfile.read(member, dtype="float32")
    assert len(heard) == len(alone.waveform)
