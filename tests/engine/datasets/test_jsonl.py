"""JSONL manifests are read as NeMo reads them, and what is wrong with one is said in one line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from mkc_fast import ListError, OutputError
from mkc_fast.engine.datasets.jsonl import JsonlManifests, read_manifests


def manifest(folder: Path, *lines: object, name: str = "train.json") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def read(path: Path, *more: Path, out: Path = Path("elsewhere")) -> JsonlManifests:
    return read_manifests([path, *more], out)[0]


def test_paths_are_against_the_working_directory_then_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    for path in (here / "both.wav", tmp_path / "set" / "both.wav", tmp_path / "set" / "wav" / "beside.wav"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(here)
    lines = [{"audio_filepath": name} for name in ("both.wav", "wav/beside.wav", str(tmp_path / "set" / "both.wav"))]
    files = [each.file for each in read(manifest(tmp_path / "set", *lines)).utterances]
    assert files == [f"{here}/both.wav", f"{tmp_path}/set/wav/beside.wav", f"{tmp_path}/set/both.wav"]


def test_ids_are_below_the_folder_that_all_share(tmp_path: Path) -> None:
    lines = [{"audio_filepath": f"/data/set/{name}"} for name in ("s1/a.flac", "s2/b.x.wav", "s2/c")]
    assert [each.id for each in read(manifest(tmp_path, *lines)).utterances] == ["s1/a", "s2/b.x", "s2/c"]


def test_offset_and_duration_cut_the_recording(tmp_path: Path) -> None:
    parts = [{"duration": 2.5}, {"offset": 1, "duration": 0.25}, {"offset": 3.5}]
    lines = [{"audio_filepath": "/d/a.wav", **part} for part in parts]
    lines.append({"audio_filepath": "/d/b.wav", "duration": None})
    found = [(each.id, each.begin_s, each.end_s) for each in read(manifest(tmp_path, *lines)).utterances]
    assert found == [("a", 0, 2.5), ("a-0001000-0001250", 1, 1.25), ("a-0003500-end", 3.5, None), ("b", 0, None)]


def test_lines_about_one_recording_share_its_output(tmp_path: Path) -> None:
    lines = [{"audio_filepath": "/d/a.wav", "duration": 1.0, "lang": lang} for lang in ("en", "de", "fr")]
    dataset = read(manifest(tmp_path, *lines))
    assert [each.id for each in dataset.utterances] == ["a"]
    assert list(dataset.sources[0].lines) == [0, 0, 0]


def test_speakers_of_lines_decide_draws_only_where_asked(tmp_path: Path) -> None:
    _, speakers = read_manifests([manifest(tmp_path, {"audio_filepath": "/d/s/a.wav", "speaker": 7})], tmp_path / "out")
    assert speakers == {"a": "7"}
    with pytest.raises(ListError, match="line 2: the recording has another speaker above"):
        read(manifest(tmp_path, *({"audio_filepath": "/d/a.wav", "speaker": name} for name in "xy")))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("[1]", "expected an object of JSON"),
        ("{", "expected an object of JSON"),
        ("[" * 100000, "expected an object of JSON"),
        ({"text": "a"}, "expected the path of a recording in 'audio_filepath', found none"),
        ({"audio_filepath": ["a.wav", "b.wav"]}, "expected the path"),
        ({"audio_filepath": "a\0b"}, "expected the path"),
        ({"audio_filepath": "a.wav", "duration": "3"}, "duration is '3'; expected seconds"),
        ({"audio_filepath": "a.wav", "duration": -1}, "duration is -1"),
        ({"audio_filepath": "a.wav", "duration": 0}, "duration is 0"),
        ('{"audio_filepath": "a.wav", "offset": NaN}', "offset is nan"),
        ('{"audio_filepath": "a.wav", "offset": Infinity}', "offset is inf"),
        ({"audio_filepath": "a.wav", "offset": True}, "offset is True"),
        ({"audio_filepath": "/d/a\nb.wav"}, ".* cannot name an output file"),
        (b"\xff\xfe".decode("latin-1"), "expected an object"),
    ],
)
def test_what_is_wrong_with_a_line_is_said_with_its_number(line: object, words: str, tmp_path: Path) -> None:
    path = manifest(tmp_path, {"audio_filepath": "/d/fine.wav"}, "", line)
    with pytest.raises(ListError, match=f"json, line 3: {words}") as error:
        read(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_outputs_that_would_be_one_are_named(tmp_path: Path) -> None:
    path = manifest(tmp_path, {"audio_filepath": "/d/a.wav"}, {"audio_filepath": "/d/a.flac"})
    with pytest.raises(ListError, match=r"line 2: would have the same output as line 1 of .*, a; rename"):
        read(path)


def test_manifests_that_cannot_be_read_are_one_line(tmp_path: Path, no_waiting: None) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe{}\n")
    manifest(tmp_path, name="none.json")
    words = {"none": "is empty", "gone": "cannot be read", "pipe": "not a regular file", "bytes": "line 1: not UTF-8"}
    for name, said in words.items():
        with pytest.raises(ListError, match=said):
            read(tmp_path / f"{name}.json")
    first = manifest(tmp_path / "x", {"audio_filepath": "/d/a.wav"})
    with pytest.raises(ListError, match="would have one name"):
        read(first, manifest(tmp_path / "y", {"audio_filepath": "/d/b.wav"}))
    with pytest.raises(OutputError, match="would be replaced"):
        read(first, out=tmp_path / "x")


def test_a_manifest_that_was_changed_is_not_completed(tmp_path: Path) -> None:
    path = manifest(tmp_path, {"audio_filepath": "/d/a.wav"})
    dataset = read(path, out=tmp_path / "out")
    path.write_text(path.read_text() * 2)
    with pytest.raises(OutputError, match="was changed during the run"):
        dataset.finish({"a": tmp_path / "out" / "audio" / "a.wav"})


def test_fields_that_name_other_recordings_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read(manifest(tmp_path, {"audio_filepath": "/d/a.wav", "clean_filepath": "/d/clean.wav", "text": "a b"}))
    (record,) = caplog.records
    assert "'clean_filepath' is copied, and may name a recording that is not anonymized" in record.getMessage()
