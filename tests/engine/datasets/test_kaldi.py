"""A Kaldi data directory becomes utterances, and its anonymized sibling is one that an evaluation can read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mkc_fast import ListError, OutputError
from mkc_fast.engine.datasets import kaldi as data_directories
from mkc_fast.engine.datasets.kaldi import DataDirectory, finish_data_directory, read_data_directory

LISTS = {
    "utt2spk": "u1 s1\nu2 s1\nu3 s2\n",  # u3 is not in wav.scp
    "spk2utt": "s1 u1 u2\ns2 u3\n",
    "spk2gender": "s1 f\ns2 m\n",
    "text": "u1 HELLO\r\nu2 W\u00d6RLD  \n",
    "utt2dur": "u1 1.0\nu2 2.5\n",
    "trials": "s1 u1 target\ns1 u2 nontarget",
    "enrolls": "u1\n",
}


def make(directory: Path, scp: str | bytes = "u1 /a/a.flac\nu2 /a/b.flac\n", segments: str | None = None) -> Path:
    directory.mkdir(parents=True)
    (directory / "wav.scp").write_bytes(scp if isinstance(scp, bytes) else scp.encode())
    if segments is not None:
        (directory / "segments").write_bytes(segments.encode())
    for name, text in LISTS.items():
        (directory / name).write_bytes(text.encode())
    return directory


def write_all(directory: DataDirectory) -> dict[str, Path]:
    """What the anonymizer does between reading and finishing."""
    (directory.out / "wav").mkdir(parents=True, exist_ok=True)
    written = {u.id: directory.out / "wav" / f"{u.id}.wav" for u in directory.utterances}
    for path in written.values():
        path.write_bytes(b"anonymized")
    return written


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# Reading


def test_without_segments_the_recordings_are_the_utterances(tmp_path: Path) -> None:
    directory = read_data_directory(make(tmp_path / "d", "u2 /a/b.flac\n\nu1\t/a/with space.wav\n"), "_mkc")
    assert [(u.id, u.path, u.begin_s, u.end_s, u.command) for u in directory.utterances] == [
        ("u2", Path("/a/b.flac"), 0.0, None, None),
        ("u1", Path("/a/with space.wav"), 0.0, None, None),
    ]
    assert (directory.path, directory.out) == (tmp_path / "d", tmp_path / "d_mkc")
    assert not directory.out.exists()  # reading writes nothing


def test_a_list_with_crlf_and_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    scp = b"\xef\xbb\xbfr1 /a/a.wav\r\nr2 /a/b.wav\r\n"
    directory = read_data_directory(make(tmp_path / "d", scp, "u1 r1 0 1\r\nu2 r2 0.5 -1\r\n"), "_mkc")
    assert [(u.id, str(u.path), u.end_s) for u in directory.utterances] == [
        ("u1", "/a/a.wav", 1.0),
        ("u2", "/a/b.wav", None),
    ]


def test_a_relative_recording_is_in_the_working_directory_else_in_the_data_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path / "d", "u1 here.wav\nu2 beside.wav\n")
    (tmp_path / "here.wav").touch()
    (path / "beside.wav").touch()
    monkeypatch.chdir(tmp_path)
    directory = read_data_directory(Path("d"), "_mkc")
    assert [u.path for u in directory.utterances] == [Path("here.wav"), Path("d/beside.wav")]


def test_segments_are_parts_of_recordings(tmp_path: Path) -> None:
    segments = "b-1 rec/b 0.25 1.5\na-1 rec/a 0 -1\na-2 rec/a 1e1 20.0\na-3 rec/a 3 -1.0\n"
    directory = read_data_directory(make(tmp_path / "d", "rec/a /x/a.wav\nrec/b /x/b.wav\n", segments), "_mkc")
    assert [(u.id, str(u.path), u.begin_s, u.end_s) for u in directory.utterances] == [
        ("b-1", "/x/b.wav", 0.25, 1.5),
        ("a-1", "/x/a.wav", 0.0, None),
        ("a-2", "/x/a.wav", 10.0, 20.0),
        ("a-3", "/x/a.wav", 3.0, None),
    ]


@pytest.mark.parametrize(
    ("line", "fact"),
    [
        ("u2 nobody 0 1", "'nobody' is not in wav.scp"),
        ("u2 r1 1 1", "expected 0 <= start < end"),
        ("u2 r1 2 1", "expected 0 <= start < end"),
        ("u2 r1 -1 1", "expected 0 <= start < end"),
        ("u2 r1 0 -2", "expected 0 <= start < end"),
        ("u2 r1 0 0", "expected 0 <= start < end"),
        ("u2 r1 nan 1", "expected 0 <= start < end"),
        ("u2 r1 0 nan", "expected 0 <= start < end"),
        ("u2 r1 0 inf", "expected 0 <= start < end"),
        ("u2 r1 inf -1", "expected 0 <= start < end"),
        ("u2 r1 0 1e999", "expected 0 <= start < end"),
        ("u2 r1 zero 1", "not two numbers"),
        ("u2 r1 0", "expected 'utt-id recording-id start end'"),
        ("u2 r1 0 1 A", "expected 'utt-id recording-id start end'"),  # a channel: which one cannot be chosen here
        ("u1 r1 1 2", "'u1' is on line 1 already"),
        ("../u2 r1 0 1", "cannot name an output file"),
        ("u/2 r1 0 1", "cannot name an output file"),
        ("u2\x07 r1 0 1", "control characters"),
    ],
)
def test_a_wrong_segment_is_an_error_that_names_file_and_line(line: str, fact: str, tmp_path: Path) -> None:
    path = make(tmp_path / "d", "r1 /x/a.wav\n", f"u1 r1 0 1\n\n{line}\n")  # the blank line counts
    with pytest.raises(ListError) as error:
        read_data_directory(path, "_mkc")
    assert one_line(error).startswith(f"{path / 'segments'}, line 3: ")
    assert fact in one_line(error)


@pytest.mark.parametrize(
    ("line", "fact"),
    [
        ("/x/b.wav", "expected 'utt-id path'"),  # in wav.scp every line has an id
        ("u2 |", "expected 'utt-id path'"),
        ("u1 /x/c.wav", "'u1' is on line 1 already"),
        ("../u2 /x/b.wav", "cannot name an output file"),
        ("a/b /x/b.wav", "cannot name an output file"),
        (".. /x/b.wav", "cannot name an output file"),
        ("u2 sox in.wav -t wav - rate 8k |", "only with --allow-commands"),
    ],
)
def test_a_wrong_recording_is_an_error_that_names_file_and_line(line: str, fact: str, tmp_path: Path) -> None:
    path = make(tmp_path / "d", f"u1 /x/a.wav\n{line}\n")
    with pytest.raises(ListError) as error:
        read_data_directory(path, "_mkc")
    assert one_line(error).startswith(f"{path / 'wav.scp'}, line 2: ")
    assert fact in one_line(error)


@pytest.mark.parametrize("segments", [None, "u1 u1 0 2\n"])
def test_a_command_is_kept_as_it_is_when_allowed_and_not_run(segments: str | None, tmp_path: Path) -> None:
    command = f"touch {tmp_path}//ran; sph2pipe -f wav 'http://x/a  b.sph'"
    path = make(tmp_path / "d", f"u1 {command} |\n", segments)
    with pytest.raises(ListError, match="line 1: a command"):
        read_data_directory(path, "_mkc")
    (utterance,) = read_data_directory(path, "_mkc", allow_commands=True).utterances
    assert (utterance.command, utterance.end_s) == (command, 2.0 if segments else None)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["wav.scp", "segments"])
@pytest.mark.parametrize("content", [b"", b" \n\r\n", b"u1 \xff\xfe\x80 0 1\n", b"u1 u1\0 0 1\n"])
def test_an_empty_or_binary_list_is_an_error_that_names_it(name: str, content: bytes, tmp_path: Path) -> None:
    path = make(tmp_path / "d", segments="u1 u1 0 1\n")
    (path / name).write_bytes(content)
    with pytest.raises(ListError) as error:
        read_data_directory(path, "_mkc")
    assert str(path / name) in one_line(error)


@pytest.mark.parametrize("name", ["wav.scp", "segments"])
def test_a_list_that_cannot_be_read_is_an_error_that_names_it(name: str, tmp_path: Path) -> None:
    path = make(tmp_path / "d", segments="u1 u1 0 1\n")
    (path / name).unlink()
    (path / name).symlink_to("gone")  # without its segments, a directory would mean other utterances
    with pytest.raises(ListError) as error:
        read_data_directory(path, "_mkc")
    assert str(path / name) in one_line(error)
    (path / name).unlink()
    (path / name).mkdir()
    with pytest.raises(ListError) as error:
        read_data_directory(path, "_mkc")
    assert str(path / name) in one_line(error)


def test_a_missing_directory_or_wav_scp_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(ListError) as error:
        read_data_directory(tmp_path / "nowhere", "_mkc")
    assert "nowhere/wav.scp: cannot be read" in one_line(error)
    (make(tmp_path / "d") / "wav.scp").unlink()
    with pytest.raises(ListError) as error:
        read_data_directory(tmp_path / "d", "_mkc")
    assert "d/wav.scp: cannot be read" in one_line(error)


# Where the sibling goes


@pytest.mark.parametrize(
    ("given", "out"),
    [
        ("data/d/", "data/d_mkc"),
        ("./data/d", "data/d_mkc"),
        ("data/../data/d", "data/../data/d_mkc"),
        ("data/link", "data/link_mkc"),  # beside the link, not beside what it leads to
    ],
)
def test_the_sibling_is_relative_where_the_directory_is(
    given: str, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "data" / "d")
    (tmp_path / "data" / "link").symlink_to(make(tmp_path / "elsewhere" / "d"))
    monkeypatch.chdir(tmp_path)
    assert read_data_directory(Path(given), "_mkc").out == Path(out)


@pytest.mark.parametrize(("given", "inside"), [(".", "."), ("..", "wav"), ("link/..", "..")])
def test_a_directory_given_by_dots_gets_its_sibling_beside_itself(
    given: str, inside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path / "data" / "d")
    (path / "wav").mkdir()
    (tmp_path / "data" / "link").symlink_to("d/wav")  # link/.. is d, although it reads like data
    monkeypatch.chdir(path / inside)
    directory = read_data_directory(Path(given), "_mkc")
    assert not directory.out.is_absolute()
    finish_data_directory(directory, write_all(directory))
    assert (tmp_path / "data" / "d_mkc" / "wav.scp").is_file()
    assert names(tmp_path / "data") == {"d", "d_mkc", "link"}


@pytest.mark.parametrize("suffix", ["", "/", "/../x", "/mkc", "\\mkc", "_m\nkc", "_\0", "_\udcff", "m" * 300])
def test_a_suffix_that_is_empty_or_leads_elsewhere_is_refused(suffix: str, tmp_path: Path) -> None:
    with pytest.raises(ListError) as error:
        read_data_directory(make(tmp_path / "d"), suffix)
    one_line(error).encode()  # can be shown
    assert names(tmp_path) == {"d"}


def test_a_sibling_that_is_the_directory_itself_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "d")
    (tmp_path / "d_mkc").symlink_to("d")
    with pytest.raises(OutputError, match="choose another suffix"):
        read_data_directory(tmp_path / "d", "_mkc")
    make(tmp_path / "real_mkc")
    (tmp_path / "real").symlink_to("real_mkc")
    with pytest.raises(OutputError, match="choose another suffix"):
        read_data_directory(tmp_path / "real", "_mkc")


def test_a_sibling_that_is_a_file_or_would_cut_its_recordings_again_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "d")
    (tmp_path / "d_x").touch()
    with pytest.raises(OutputError, match="d_x: not a directory"):
        read_data_directory(tmp_path / "d", "_x")
    make(tmp_path / "d_mkc", segments="u1 u1 0 1\n")  # such as a copy of the directory, made beforehand
    with pytest.raises(OutputError, match="segments: would cut"):
        read_data_directory(tmp_path / "d", "_mkc")


# Finishing


def test_the_sibling_is_a_data_directory_of_the_anonymized_recordings(tmp_path: Path) -> None:
    directory = read_data_directory(make(tmp_path / "d", "u2 /a/b.flac\nu1 /a/a.flac\n"), "_mkc")
    finish_data_directory(directory, write_all(directory))
    out = tmp_path / "d_mkc"
    assert (out / "wav.scp").read_text() == f"u2 {out}/wav/u2.wav\nu1 {out}/wav/u1.wav\n"
    assert names(out) == {"wav", "wav.scp", *LISTS}
    for name, text in LISTS.items():
        assert (out / name).read_bytes() == text.encode()
    again = read_data_directory(out, "_again")  # and it reads as one
    assert [(u.id, u.path.read_bytes()) for u in again.utterances] == [("u2", b"anonymized"), ("u1", b"anonymized")]


def test_a_relative_directory_gives_a_wav_scp_for_the_same_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "data" / "d")
    monkeypatch.chdir(tmp_path)
    directory = read_data_directory(Path("data/d/"), "_mkc")
    finish_data_directory(directory, write_all(directory))
    assert Path("data/d_mkc/wav.scp").read_text() == "u1 data/d_mkc/wav/u1.wav\nu2 data/d_mkc/wav/u2.wav\n"


def test_only_what_was_written_is_in_wav_scp_in_the_order_of_the_directory(tmp_path: Path) -> None:
    directory = read_data_directory(make(tmp_path / "d", "c /a/c\na /a/a\nb /a/b\n"), "_mkc")
    written = {"b": Path("x/b.wav"), "of another directory": Path("x/z.wav"), "c": Path("x/c.wav")}
    finish_data_directory(directory, written)
    assert (tmp_path / "d_mkc" / "wav.scp").read_text() == "c x/c.wav\nb x/b.wav\n"


def test_segments_become_recordings_of_their_own(tmp_path: Path) -> None:
    path = make(tmp_path / "d", "r/1 /x/a.wav\n", "u1 r/1 0 1\nu2 r/1 1 -1\n")
    for name in ("reco2file_and_channel", "reco2dur"):
        (path / name).write_text("r/1 2.5\n")
    directory = read_data_directory(path, "_mkc")
    finish_data_directory(directory, write_all(directory))
    out = tmp_path / "d_mkc"
    assert (out / "wav.scp").read_text() == f"u1 {out}/wav/u1.wav\nu2 {out}/wav/u2.wav\n"
    assert names(out) == {"wav", "wav.scp", *LISTS}


def test_nothing_of_the_original_speech_is_copied(tmp_path: Path) -> None:
    path = make(tmp_path / "d", "u1 a.wav\nu2 bare\n")
    features = {"feats.scp", "cmvn.scp", "vad.scp", "xvector.scp", "raw_mfcc.1.ark"}
    for name in ("a.wav", "b.FLAC", "bare", *features):
        (path / name).write_bytes(b"original")
    for name in ("manifest.jsonl", ".hidden", ".backup.tmp"):
        (path / name).write_bytes(b"original")
    (path / "split4").mkdir()
    (path / "split4" / "text").touch()
    (path / "conf").symlink_to("split4")
    (path / "gone").symlink_to("nowhere")
    os.mkfifo(path / "pipe")  # copying it would wait for ever
    directory = read_data_directory(path, "_mkc")
    finish_data_directory(directory, write_all(directory))
    out = tmp_path / "d_mkc"
    assert names(out) == {"wav", "wav.scp", *LISTS, *features}, "evaluations compare the names of the files"
    assert not any((out / name).stat().st_size for name in features)
    (out / "feats.scp").write_text("features of the anonymized speech")
    finish_data_directory(directory, write_all(directory))
    assert (out / "feats.scp").read_text() == "features of the anonymized speech"


def test_without_segments_a_list_of_recordings_is_copied(tmp_path: Path) -> None:
    path = make(tmp_path / "d", "u1 /x/a.wav\n")
    (path / "reco2file_and_channel").write_text("u1 u1 A\n")
    directory = read_data_directory(path, "_mkc")
    finish_data_directory(directory, write_all(directory))
    assert (tmp_path / "d_mkc" / "reco2file_and_channel").read_text() == "u1 u1 A\n"


def test_a_list_is_copied_though_a_recording_elsewhere_has_its_name(tmp_path: Path) -> None:
    audio = tmp_path / "audio"
    audio.mkdir()
    (audio / "text").write_bytes(b"a recording without an ending")
    directory = read_data_directory(make(tmp_path / "d", f"u1 {audio}/text\nu2 {audio}/trials\n"), "_mkc")
    finish_data_directory(directory, write_all(directory))
    assert set(LISTS) <= names(tmp_path / "d_mkc")


def test_a_link_to_a_file_is_copied_by_content(tmp_path: Path) -> None:
    path = make(tmp_path / "d")
    (tmp_path / "shared").write_bytes(b"s1 \x80\xff\0\r\n")  # bytes, not text
    (path / "spk2age").symlink_to("../shared")
    directory = read_data_directory(path, "_mkc")
    finish_data_directory(directory, {})
    copy = tmp_path / "d_mkc" / "spk2age"
    assert not copy.is_symlink()
    assert copy.read_bytes() == b"s1 \x80\xff\0\r\n"


def test_finishing_again_replaces_the_lists_and_leaves_the_rest(tmp_path: Path) -> None:
    path = make(tmp_path / "d")
    out = tmp_path / "d_mkc"
    out.mkdir()
    (out / "text").symlink_to(path / "text")  # must be replaced, not written through
    (out / "manifest.jsonl").write_text("{}\n")
    (path / "trials").chmod(0o444)  # read-only copies could not be replaced
    for transcript in (b"u1 ONE\n", b"u1 TWO\n"):
        (path / "text").write_bytes(transcript)
        directory = read_data_directory(path, "_mkc")
        finish_data_directory(directory, write_all(directory))
        assert (out / "text").read_bytes() == (path / "text").read_bytes() == transcript
    assert not (out / "text").is_symlink()
    assert (out / "manifest.jsonl").read_text() == "{}\n"
    assert names(out) == {"wav", "wav.scp", "manifest.jsonl", *LISTS}


def test_a_copy_that_breaks_off_leaves_no_part_and_no_wav_scp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    directory = read_data_directory(make(tmp_path / "d"), "_mkc")
    monkeypatch.setattr(data_directories.shutil, "copyfile", full)
    with pytest.raises(OutputError) as error:
        finish_data_directory(directory, {"u1": Path("u1.wav")})
    assert one_line(error) == (
        f"{tmp_path}/d_mkc/enrolls: cannot be copied from {tmp_path}/d/enrolls (No space left on device)"
    )
    assert names(tmp_path / "d_mkc") == set()


def test_a_sibling_that_cannot_be_written_is_an_error_of_one_line(tmp_path: Path) -> None:
    directory = read_data_directory(make(tmp_path / "d"), "_mkc")
    (tmp_path / "d_mkc").touch()
    with pytest.raises(OutputError) as error:
        finish_data_directory(directory, {})
    assert str(tmp_path / "d_mkc") in one_line(error)
    (tmp_path / "d_mkc").unlink()
    (tmp_path / "d_mkc" / "wav.scp" / "x").mkdir(parents=True)
    with pytest.raises(OutputError) as error:
        finish_data_directory(directory, {})
    assert "d_mkc/wav.scp: cannot be written" in one_line(error)
