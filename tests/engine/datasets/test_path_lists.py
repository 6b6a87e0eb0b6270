"""Lists become ids and paths as Kaldi and their authors mean them, and a bad line is named instead of guessed at."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mkc_fast import ListError
from mkc_fast.engine.corpus.outputs import plan_folder
from mkc_fast.engine.corpus.protocol import Settings
from mkc_fast.engine.datasets.dataset import Utterance
from mkc_fast.engine.datasets.lines import check_name
from mkc_fast.engine.datasets.path_lists import read_audio_list, read_named_paths
from tests.conftest import ROOT, Artifacts

Reader = Callable[[Path], list[Any]]
both_readers = pytest.mark.parametrize("read", [read_audio_list, read_named_paths])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for lists that is not the working directory, which is an empty folder beside it."""
    (tmp_path / "cwd").mkdir()
    (tmp_path / "lists").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return tmp_path / "lists"


def audio(folder: Path, text: str | bytes) -> list[tuple[str, str]]:
    return [(utterance.id, str(utterance.path)) for utterance in read_audio_list(written(folder, text))]


def named(folder: Path, text: str | bytes) -> list[tuple[str, str]]:
    return [(name, str(path)) for name, path in read_named_paths(written(folder, text))]


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "list.scp"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refused(read: Reader, path: Path) -> str:
    with pytest.raises(ListError) as error:
        read(path)
    message = str(error.value)
    assert str(path) in message
    assert len(message.splitlines()) == 1
    assert message.isprintable()
    return message


def test_a_line_is_an_id_and_a_path(folder: Path) -> None:
    expected = [("u1", "/a/b.flac"), ("u2", "/c/d.wav")]
    assert audio(folder, "u1 /a/b.flac\nu2 /c/d.wav\n") == expected
    assert named(folder, "u1 /a/b.flac\nu2 /c/d.wav\n") == expected


def test_without_an_id_the_stem_is_the_id(folder: Path) -> None:
    assert audio(folder, "/a/b.flac\n/c/d.x.wav\n/e/noextension") == [
        ("b", "/a/b.flac"),
        ("d.x", "/c/d.x.wav"),
        ("noextension", "/e/noextension"),
    ]


def test_order_is_kept(folder: Path) -> None:
    names = [f"u{number}" for number in (3, 1, 2, 10, 0)]
    text = "".join(f"{name} /{name}.wav\n" for name in names)
    assert [name for name, _ in audio(folder, text)] == names
    assert [name for name, _ in named(folder, text)] == names


@pytest.mark.parametrize(
    "text",
    [
        "u1 /a.wav\nu2 /b.wav",  # no newline at the end
        "\n\nu1 /a.wav\n   \n\t\nu2 /b.wav\n\n",
        "u1 /a.wav\r\nu2 /b.wav\r\n",
        "\ufeffu1 /a.wav\nu2 /b.wav\n",
        "\ufeffu1\t/a.wav\r\n\r\nu2 \t  /b.wav \r\n",
        "  u1 /a.wav\n\tu2\t/b.wav\t\n",
    ],
)
def test_blank_lines_and_white_space_and_byte_order_marks_change_nothing(folder: Path, text: str) -> None:
    expected = [("u1", "/a.wav"), ("u2", "/b.wav")]
    assert audio(folder, text) == expected
    assert named(folder, text) == expected


def test_relative_paths_are_against_the_working_directory_else_the_list(folder: Path) -> None:
    (folder / "beside.wav").touch()
    (folder / "both.wav").touch()
    Path("both.wav").touch()
    Path("here.wav").touch()
    text = "a beside.wav\nb both.wav\nc here.wav\nd nowhere.wav\n"
    expected = [("a", str(folder / "beside.wav")), ("b", "both.wav"), ("c", "here.wav"), ("d", "nowhere.wav")]
    assert audio(folder, text) == expected
    assert named(folder, text) == expected
    assert audio(folder, "beside.wav") == [("beside", str(folder / "beside.wav"))]


def test_a_list_reached_through_a_link_lies_where_the_link_does(folder: Path) -> None:
    (folder / "beside.wav").touch()
    (folder.parent / "real.scp").write_text("a beside.wav")
    (folder / "link.scp").symlink_to(folder.parent / "real.scp")
    assert read_named_paths(folder / "link.scp") == [("a", folder / "beside.wav")]


def test_a_path_may_hold_spaces(folder: Path) -> None:
    (folder / "my file.wav").touch()
    assert audio(folder, "my file.wav") == [("my file", str(folder / "my file.wav"))]  # no id: the file is there
    assert audio(folder, "u1 my file.wav") == [("u1", str(folder / "my file.wav"))]
    assert audio(folder, "u1\t/x/a  b.wav") == [("u1", "/x/a  b.wav")]
    assert named(folder, "u1 my file.wav") == [("u1", str(folder / "my file.wav"))]


def test_other_spaces_of_unicode_are_part_of_a_name(folder: Path) -> None:
    assert audio(folder, "u1 /a/録音\u3000一.wav\n") == [("u1", "/a/録音\u3000一.wav")]
    assert named(folder, "u1 /a/b\u00a0c.pt\n") == [("u1", "/a/b\u00a0c.pt")]


def test_ids_may_be_of_any_script(folder: Path) -> None:
    assert audio(folder, "привет /a.wav\né\u0301-1_x.y /b.wav\n") == [("привет", "/a.wav"), ("é\u0301-1_x.y", "/b.wav")]


def test_two_lines_of_one_id_are_refused_by_both_their_numbers(folder: Path) -> None:
    message = refused(read_audio_list, written(folder, "a /x.wav\n\nb /y.wav\na /z.wav\n"))
    assert "lines 1 and 4" in message
    assert "give them ids" in message


def test_two_files_of_one_stem_are_refused(folder: Path) -> None:
    assert "both named a" in refused(read_audio_list, written(folder, "/x/a.wav\n/y/a.flac\n"))


def test_a_model_that_is_there_twice_is_refused(folder: Path) -> None:
    assert "line 2" in refused(read_named_paths, written(folder, "a /x.pt\na /x.pt\n"))
    assert "/x.pt is there twice" in refused(read_named_paths, written(folder, "a /x.pt\na /y.pt\nb /x.pt\n"))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a /x.pt\nb /x.pt\n", ["a", "b"]),
        ("a /x.pt\na /y.pt\nx /z.pt\n", ["x", "y", "z"]),
        ("a /1/x.pt\na /2/x.pt\nb /y.pt\n", ["1/x", "2/x", "y"]),
        ("a /1/x/k.pt\na /2/x/k.pt\n", ["1/x/k", "2/x/k"]),
        ("a /x.pt\na /x.bin\n", ["x.pt", "x.bin"]),
    ],
)
def test_models_whose_names_recur_are_named_by_their_paths(folder: Path, text: str, names: list[str]) -> None:
    assert [name for name, _ in named(folder, text)] == names


@pytest.mark.parametrize("line", ["a", "a ", "\ta"])
def test_a_model_without_a_path_is_refused(folder: Path, line: str) -> None:
    assert "'name path'" in refused(read_named_paths, written(folder, line))


@pytest.mark.parametrize(
    "name",
    [
        "..",
        ".",
        "../x",
        "/etc/passwd",
        "a/b",
        "a\\b",
        "..\\x",
        "a" * 201,
        "é" * 101,
        "a\u200bb",
        "a\u202eb",
        "a\u3000b",
    ],
)
def test_an_id_that_cannot_name_a_file_in_the_output_folder_is_refused(folder: Path, name: str) -> None:
    assert "cannot name an output file" in refused(read_audio_list, written(folder, f"u /ok.wav\n{name} /x.wav\n"))
    with pytest.raises(ListError, match=r"^here: "):
        check_name(name, "here")


@pytest.mark.parametrize("path", ["/", "..", ".", "x/.."])
def test_a_stem_that_cannot_name_a_file_in_the_output_folder_is_refused(folder: Path, path: str) -> None:
    assert "cannot name an output file" in refused(read_audio_list, written(folder, path))


@pytest.mark.parametrize("command", ["sox a.wav -t wav - rate 8k |", "sox a.wav - rate 8k |  ", "touch canary|"])
def test_a_command_is_refused_and_not_run(folder: Path, command: str) -> None:
    for line in (f"u1 {command}", command):
        assert "command" in refused(read_audio_list, written(folder, line))
    assert list(Path.cwd().iterdir()) == []


def test_a_command_that_is_allowed_is_kept_and_not_run(folder: Path) -> None:
    (utterance,) = read_audio_list(written(folder, "u1 touch canary |"), allow_commands=True)
    assert (utterance.id, utterance.command) == ("u1", "touch canary")
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("line", ["u1 |", "touch|"])
def test_an_allowed_command_must_be_one(folder: Path, line: str) -> None:
    with pytest.raises(ListError, match="expected 'utt-id command"):
        read_audio_list(written(folder, line), allow_commands=True)


@both_readers
@pytest.mark.parametrize("content", [b"", b"\n \n\t\n", b"\xef\xbb\xbf\n"])
def test_an_empty_list_is_refused(folder: Path, read: Reader, content: bytes) -> None:
    assert "empty" in refused(read, written(folder, content))


@both_readers
@pytest.mark.parametrize("content", [b"u1 /\xff.wav", "u1 /é.wav".encode("latin1"), "u1 /a.wav".encode("utf-16")])
def test_a_list_in_another_encoding_is_refused(folder: Path, read: Reader, content: bytes) -> None:
    assert "UTF-8" in refused(read, written(folder, content))


@both_readers
@pytest.mark.parametrize("character", ["\0", "\x07", "\x1b", "\x0b", "\x0c", "\x7f", "\x85", "\u2028", "\u2029"])
def test_control_characters_are_refused_by_line(folder: Path, read: Reader, character: str) -> None:
    # Errors and logs quote paths: an escape sequence would reach the terminal.
    message = refused(read, written(folder, f"u1 /a.wav\nu2 /x{character}y.wav\n"))
    assert "line 2" in message
    assert "control characters" in message


@both_readers
def test_a_line_longer_than_any_path_is_refused(folder: Path, read: Reader) -> None:
    message = refused(read, written(folder, "u1 /a.wav\nu2 /" + "a/" * 5000))
    assert "line 2" in message
    assert len(message) < 300


@both_readers
def test_a_name_longer_than_file_systems_allow_is_only_a_missing_file(folder: Path, read: Reader) -> None:
    assert len(read(written(folder, "u1 " + "x" * 300))) == 1


@both_readers
@pytest.mark.usefixtures("no_waiting")
def test_what_is_no_file_is_refused_without_waiting_for_it(folder: Path, read: Reader) -> None:
    os.mkfifo(folder / "pipe")
    for path in (folder / "pipe", folder, Path("/dev/zero"), folder / "missing", folder / ("x" * 300)):
        refused(read, path)
    with pytest.raises(ListError, match="cannot be read"):
        read(folder / "nul\0")


@pytest.mark.parametrize("text", ["# u0 /0.wav\nu1 /a.wav\n  \t#\nu2 /b.wav\n#", "\ufeff#\nu1 /a.wav\n#|\nu2 /b.wav"])
def test_lines_that_begin_with_a_number_sign_are_comments(folder: Path, text: str) -> None:
    expected = [("u1", "/a.wav"), ("u2", "/b.wav")]
    assert audio(folder, text) == expected
    assert named(folder, text) == expected
    assert "empty" in refused(read_audio_list, written(folder, "# nothing\n"))
    assert audio(folder, "u#1 /a#b.wav\n./#c.wav") == [("u#1", "/a#b.wav"), ("#c", "#c.wav")]
    assert "line 3" in refused(read_audio_list, written(folder, "#\n\n../x /a.wav"))


def read_standard_input(text: bytes, *, cwd: Path) -> subprocess.CompletedProcess[str]:
    code = (
        "from pathlib import Path; from mkc_fast.engine.datasets.path_lists import read_audio_list\n"
        "print([(u.id, str(u.path)) for u in read_audio_list(Path('-'))])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], check=False, input=text, capture_output=True, timeout=60, cwd=cwd
    )
    return subprocess.CompletedProcess(result.args, result.returncode, result.stdout.decode(), result.stderr.decode())


def test_a_dash_is_the_standard_input(folder: Path) -> None:
    (folder / "a b.wav").touch()
    read = read_standard_input("\ufeffu1 /x.wav\n# c\na b.wav\nü rel.wav\n".encode(), cwd=folder)
    assert read.stdout == "[('u1', '/x.wav'), ('a b', 'a b.wav'), ('ü', 'rel.wav')]\n"
    for text, why in (
        (b"", "the list is empty"),
        (b"a /x\na /y", "lines 1 and 2"),
        (b"\xff", "UTF-8"),
        (b"u1 " + b"x" * 10_000, "line 1: too long"),
        (b"u1 |", "line 1: a command"),
    ):
        read = read_standard_input(text, cwd=folder)
        assert read.returncode == 1
        assert "ListError: standard input" in read.stderr
        assert why in read.stderr


def test_infer_reads_its_list_from_standard_input(artifacts: Artifacts, tmp_path: Path) -> None:
    # Workers get none of it: the second line would be lost to them.
    speech = ROOT / "cli" / "demo_speech.flac"
    (tmp_path / "speech.flac").write_bytes(speech.read_bytes())
    arguments = [
        "infer",
        "--audio-scp",
        "-",
        "--output-dir",
        "out",
        "--model",
        artifacts.model,
        "--bank",
        artifacts.bank,
    ]
    run = subprocess.run(
        [sys.executable, "-c", "import sys; from mkc_fast.cli import main; sys.exit(main(sys.argv[1:]))",
         *map(str, arguments), "--gpus", "cpu"],
        input=f"# a comment\nu1 speech.flac\nu2 {speech}\n".encode(), capture_output=True, cwd=tmp_path, timeout=300,
        check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert sorted(path.name for path in (tmp_path / "out").glob("*.wav")) == ["u1.wav", "u2.wav"]


@contextmanager
def counting_looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """The files that were asked for within the block."""
    looked: list[object] = []
    stat = os.stat

    def counted(path: Any, **options: Any) -> os.stat_result:
        looked.append(path)
        return stat(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", counted)
        yield looked


LINES = 20_000
FEW = 20  # questions about the list, the working directory and the folders, however many lines there are


@pytest.mark.parametrize("kind", ["absolute", "beside the list", "in the working directory"])
def test_a_long_list_is_read_without_looking_for_each_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    # On a network's file system each look is a wait: a million of them were an hour.
    (folder / "audio").mkdir()
    start = {"absolute": "/data", "beside the list": "audio", "in the working directory": "here"}[kind]
    if kind == "in the working directory":
        Path("here").mkdir()
    (folder / "one with spaces.txt").touch()
    path = written(folder, "".join(f"u{number} {start}/{number}.wav\n" for number in range(LINES)))
    with counting_looks(monkeypatch) as looked:
        utterances = read_audio_list(path)
        plan_folder(utterances, folder / "out", folder / "out", Settings())
    assert len(utterances) == LINES
    assert utterances[-1].path == (folder if kind == "beside the list" else Path()) / start / f"{LINES - 1}.wav"
    assert len(looked) < FEW


def test_a_plan_of_many_utterances_looks_for_no_output_in_an_empty_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "out").mkdir()
    utterances = [Utterance(f"u{number}", "/x.wav") for number in range(LINES)]
    with counting_looks(monkeypatch) as looked:
        planned = plan_folder(utterances, folder / "out", folder / "out", Settings(format="flac"))
    assert len(looked) < FEW
    assert planned.outputs["u7"] == folder / "out" / "u7.flac"
    assert list(planned.outputs.existing()) == []
    (folder / "out" / "u7.flac").touch()
    (folder / "out" / "other.flac").touch()
    assert list(planned.outputs.existing()) == [folder / "out" / "u7.flac"]


def test_a_long_list_takes_little_memory(folder: Path) -> None:
    # An id of 20 characters and a path of 60 are 200 bytes of Python text; as many again for what holds them, while
    # ids are compared. With paths as Path it was over 700 bytes a line.
    line = "speaker-{0:012d} /data/corpus/train-clean-360/speaker/chapter/{0:012d}.flac\n"
    path = written(folder, "".join(line.format(number) for number in range(LINES)))
    tracemalloc.start()
    try:
        utterances = read_audio_list(path)
        planned = plan_folder(utterances, folder / "out", folder / "out", Settings())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(planned.outputs) == LINES
    assert peak / LINES < 450
