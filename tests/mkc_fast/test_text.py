"""What comes from a file is shown as one printable line of bounded length, wherever it is shown."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mkc_fast import BankError, CheckpointError, MkcError
from mkc_fast.cli import main
from mkc_fast.cli.watch import Watch
from mkc_fast.engine.artifacts import BankInfo, write_info
from mkc_fast.engine.corpus.status import Status, Summary
from mkc_fast.text import MAX_MESSAGE, MAX_QUOTED, one_line, printable

# A terminal's escape sequence, a bell, an 8-bit control, a direction of writing, a line's end of Unicode, half a pair.
HOSTILE = "a\x1b[31m\x07\x9b2J\u202egpj.\u2028\ud800\x00\r\nb"


def test_what_a_terminal_would_obey_is_escaped() -> None:
    assert printable(HOSTILE) == r"a\x1b[31m\x07\x9b2J\u202egpj.\u2028\ud800\x00\r\nb"
    assert one_line(HOSTILE) == r"a\x1b[31m\x07\x9b2J\u202egpj. \ud800\x00 b"
    for shown in (printable(HOSTILE), one_line(HOSTILE)):
        assert shown.isprintable()


def test_text_of_any_script_stays_as_it_is() -> None:
    for text in ("привет", "録音 一.wav", "é", r"C:\a\x1b", "it's", 'say "x"', "%s {0} [red]"):
        assert printable(text) == one_line(text) == text


@pytest.mark.parametrize("text", ["x" * 10_000_000, "\x00" * 10_000_000, "\n" * 10_000_000, " \n" * 5_000_000])
def test_text_of_any_length_is_cut_to_a_line(text: str) -> None:
    assert len(printable(text)) <= MAX_QUOTED
    assert len(one_line(f"a{text}z")) <= MAX_MESSAGE


def test_a_cut_message_keeps_where_and_why() -> None:
    shown = one_line(f"/the/file: lacks {'x' * 5000} (damaged)")
    assert shown.startswith("/the/file: lacks x")
    assert shown.endswith("x (damaged)")


def test_every_error_is_one_printable_line() -> None:
    for kind in (MkcError, CheckpointError, BankError):
        assert str(kind(f"/a/{HOSTILE}: {'x' * 9999}")).isprintable()
        assert len(str(kind("x" * 9999))) <= MAX_MESSAGE
    assert str(MkcError("device cuda:0: not here")) == "device cuda:0: not here"


def test_the_program_prints_no_control_characters_of_arguments_and_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.scp").write_text("u1 /\u202ex.wav\nu1 /\u202ey.wav\n")
    (tmp_path / "\x1b[31m.scp").write_text("../\u202eu1 /x.wav\n")
    for arguments in (
        ["infer", "--audio-scp", str(tmp_path / "\x1b[31m.scp"), "--output-dir", str(tmp_path / "out")],
        ["infer", "--audio-scp", str(tmp_path / "a.scp"), "--output-dir", str(tmp_path / "out")],
        ["infer", "--\u202eoption"],
        ["bank", "info", str(tmp_path / "\x07")],
    ):
        assert main(arguments) == 2
        shown = capsys.readouterr().err
        assert shown.startswith("error: ")
        assert shown.removesuffix("\n").isprintable()


def test_failures_and_notes_are_printed_without_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    summary = Summary(files=1, chosen=[f"on {HOSTILE}"])
    watch = Watch(None, quiet=False, as_json=False, where=[])
    watch(Status(summary, 0.0, 0.0, [], failure=("u\u202e1", HOSTILE), notes=(f"x{HOSTILE * 1000}",)))
    lines = capsys.readouterr().err.splitlines()
    assert [line[:6] for line in lines] == ["failed", "note: ", "on a\\x"]
    assert all(line.isprintable() and len(line) <= MAX_MESSAGE for line in lines)


def test_names_in_a_bank_are_shown_without_control_characters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "centroids.npy", np.ones((1, 2, 4), np.float32))
    np.save(tmp_path / "half_norms.npy", np.full((1, 2), 2.0))
    write_info(tmp_path, BankInfo(["name"], [2], [""], [[1]], [[]], 4))
    said = json.loads((tmp_path / "bank.json").read_text())
    (tmp_path / "bank.json").write_text(json.dumps({**said, "names": ["\u202egpj.\u200b"]}))
    main(["bank", "info", str(tmp_path)])
    shown = capsys.readouterr()
    assert all(line.isprintable() for line in (shown.out + shown.err).splitlines())
