"""Recordings are found in files and folders as their owners expect, and nothing else is taken for one."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from mkc_fast import ArgumentError, ListError, OutputError
from mkc_fast.engine.datasets import folders, kinds
from mkc_fast.engine.datasets.folders import read_folders
from mkc_fast.engine.datasets.forms import Asked, read_inputs
from mkc_fast.engine.datasets.kinds import decodable, ending_of

MANIFEST = '{"type": "run", "version": 2}\n'


def made(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def found(*inputs: Path, out: Path = Path("elsewhere")) -> list[str]:
    return [utterance.id for utterance in read_folders([str(path) for path in inputs], out)]


def said(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records)


def test_ids_mirror_the_tree(tmp_path: Path) -> None:
    root = made(
        tmp_path / "in", "b.wav", "spk/ch/a.flac", "spk/ch/A.B.WAV", "Ünï/日 本.ogg", "notes.txt", "a/x.mp3", "noending"
    )
    assert found(root) == ["b", "a/x", "spk/ch/A.B", "spk/ch/a", "Ünï/日 本"]


def test_several_folders_have_their_names_first(tmp_path: Path) -> None:
    made(tmp_path, "one/a.wav", "two/a.wav", "alone.wav")
    assert found(tmp_path / "one", tmp_path / "two", tmp_path / "alone.wav") == ["one/a", "two/a", "alone"]
    (tmp_path / "else").mkdir()
    made(tmp_path / "else", "one/a.wav")
    with pytest.raises(ListError, match="would have one output"):
        found(tmp_path / "one", tmp_path / "else" / "one")


def test_hidden_files_are_left_out(tmp_path: Path) -> None:
    assert found(made(tmp_path / "in", ".a.wav", "._b.wav", ".git/c.wav", "d.wav")) == ["d"]


def test_two_endings_of_one_name_are_one_line(tmp_path: Path) -> None:
    root = made(tmp_path / "in", "s/a.wav", "s/a.flac")
    with pytest.raises(ListError, match=r"s/a\.wav and \S+s/a\.flac would have one output; rename one"):
        found(root)


def test_outputs_of_runs_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = made(
        tmp_path / "in",
        "a.wav",
        "out/a.wav",
        "out.shard-1-of-2/a.wav",
        "old/a.wav",
        "set_mkc/wav/b.wav",
        "js/audio/c.wav",
    )
    (root / "old" / "manifest.jsonl").write_text(MANIFEST)
    for record in (root / ".mkc-fast" / "set_mkc", root / "js" / ".mkc-fast"):
        record.mkdir(parents=True)
        (record / "manifest.jsonl").write_text(MANIFEST)
    with caplog.at_level(logging.WARNING, "mkc_fast"):
        assert found(root, out=root / "out") == ["a"]
    assert "since it holds outputs: " in said(caplog)
    assert "and 2 more" in said(caplog)


def test_a_manifest_of_others_is_no_sign(tmp_path: Path) -> None:
    root = made(tmp_path / "in", "set/a.wav")
    (root / "set" / "manifest.jsonl").write_text('{"audio_filepath": "a.wav"}\n')
    assert found(root) == ["set/a"]


def test_links_are_followed_once_and_loops_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = made(tmp_path / "in", "s/a.wav")
    made(tmp_path / "far", "b.wav")
    (root / "s" / "loop").symlink_to(root)
    (root / "again").symlink_to(root / "s")
    (root / "far").symlink_to(tmp_path / "far")
    (root / "c.wav").symlink_to(root / "s" / "a.wav")
    (root / "gone.wav").symlink_to(tmp_path / "nothing")
    for number in range(12):  # each leads to all others: without a memory the walk would never end
        (root / "s" / f"up{number}").symlink_to("..")
    with caplog.at_level(logging.WARNING, "mkc_fast"):
        assert found(root) == ["c", "gone", "s/a", "far/b"]
    assert "that were read: 14 link(s)" in said(caplog)


def test_pipes_and_devices_are_no_recordings(tmp_path: Path, no_waiting: None) -> None:
    root = made(tmp_path / "in", "a.wav")
    os.mkfifo(root / "pipe.wav")
    (root / "folder.wav").mkdir()
    assert found(root) == ["a"]


@pytest.mark.parametrize("name", ["a\nb.wav", "a\x1bb.wav", "back\\slash.wav", "a" * 220 + ".wav"])
def test_names_that_no_output_can_have_are_one_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(ListError, match="cannot name an output file") as error:
        found(made(tmp_path / "in", name))
    assert "\n" not in str(error.value)


def test_names_that_are_not_utf_8_are_taken(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    try:
        Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.wav")).touch()
    except OSError:
        pytest.skip("this file system has UTF-8 only")
    assert found(folder) == ["caf\udce9"]


def test_what_is_not_there_or_empty_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path, words in ((tmp_path / "gone", "no such file or folder"), (tmp_path / "empty", "no recordings"),
                        (made(tmp_path / "tars", "a.tar"), r"no recordings; of its 1 \.tar files")):  # fmt: skip
        with pytest.raises(ListError, match=words):
            found(path)
    root = made(tmp_path / "in", "a.wav")
    with pytest.raises(OutputError, match="is the input itself"):
        found(root, out=root)
    with pytest.raises(ListError, match="is given twice"):
        found(root, root)
    for inputs in ([], [""]):
        with pytest.raises(ArgumentError, match="no input"):
            read_inputs(inputs, Asked(tmp_path / "out"))


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = made(tmp_path / "in", "a.wav")

    def refused(path: str) -> object:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(folders.os, "scandir", refused)
    with pytest.raises(ListError, match=r"in: cannot be read \(Permission denied\)"):
        found(root)


def test_what_cannot_be_decoded_here_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root = made(tmp_path / "in", "a.wav", "b.m4a", "c.m4a", "d.webm", "e.pdf")
    monkeypatch.setattr(kinds.importlib.util, "find_spec", lambda _: None)
    decodable.cache_clear()
    try:
        with caplog.at_level(logging.WARNING, "mkc_fast"):
            assert found(root) == ["a"]
        assert "2 .m4a, 1 .webm; install the extra av" in said(caplog)
        monkeypatch.setattr(kinds.importlib.util, "find_spec", lambda _: object())
        decodable.cache_clear()
        assert found(root) == ["a", "b", "c", "d"]
    finally:
        monkeypatch.undo()
        decodable.cache_clear()


def test_a_file_that_is_named_is_taken_whatever_its_ending_is(tmp_path: Path) -> None:
    made(tmp_path, "speech.bin", "noending", "a-0.wav", "a-1.wav")
    dataset = read_inputs(
        [str(tmp_path / "speech.bin"), str(tmp_path / "noending"), str(tmp_path / "a-{0..1}.wav")],
        Asked(tmp_path / "out"),
    )
    assert [each.id for each in dataset.utterances] == ["speech", "noending", "a-0", "a-1"]


def test_endings_are_those_of_the_last_part() -> None:
    assert [ending_of(name) for name in ("a.WAV", "x.y/a", "b.tar.gz", ".hidden", "")] == [
        "wav",
        "",
        "gz",
        "hidden",
        "",
    ]


def test_inputs_of_several_forms_are_refused(tmp_path: Path) -> None:
    made(tmp_path, "a.wav", "b.jsonl")
    with pytest.raises(ArgumentError, match=r"of several forms: .*a\.wav \(files\), .*b\.jsonl \(jsonl\)"):
        read_inputs([str(tmp_path / "a.wav"), str(tmp_path / "b.jsonl")], Asked(tmp_path / "out"))
    with pytest.raises(ArgumentError, match="expected one of lhotse, shar, huggingface, webdataset, jsonl, files"):
        read_inputs([str(tmp_path / "a.wav")], Asked(tmp_path / "out"), "csv")
