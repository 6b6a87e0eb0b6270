"""``mkc-fast vpc install`` and ``remove``: what they print, and what they refuse in one line."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from mkc_fast.cli import main
from tests.conftest import Artifacts
from tests.fakes.toolkits import calls, make_checkout, make_command, run_toolkit, tree


def install(artifacts: Artifacts, root: Path, *more: str) -> int:
    return main(
        ["vpc", "install", str(root), "--model", str(artifacts.model), "--bank-user", str(artifacts.bank),
         "--bank-attacker", str(artifacts.bank), *more]
    )  # fmt: skip


def test_the_last_line_is_the_config_and_the_toolkit_runs_it(
    artifacts: Artifacts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, command = make_checkout(tmp_path / "checkout", "track1", "track2"), make_command(tmp_path / "b in")
    before = tree(root)
    more = ["--mode", "audio", "--stride", "3", "--seed", "5", "--level", "speaker", "--suffix", "_try", "--pad"]
    assert install(artifacts, root, *more, "--command", shlex.quote(str(command))) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [str(root / f"configs/track{track}/anon_try.yaml") for track in (2, 1)]
    assert run_toolkit(root, "--config", lines[-1]).returncode == 0
    (call,) = calls(command)
    said = str(call["arguments"])
    for words in ("'--mode', 'audio'", "'--stride', '3'", "'--seed', '5'", "'--level', 'speaker'", "'--pad'"):
        assert words in said
    assert main(["vpc", "remove", str(root)]) == 0
    assert {name: what for name, what in tree(root).items() if "__pycache__" not in name} == before


def test_by_default_the_toolkit_runs_the_command_that_installed_it(
    artifacts: Artifacts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_checkout(tmp_path / "checkout")
    assert install(artifacts, root) == 0
    (line,) = capsys.readouterr().out.splitlines()
    said = next(row for row in Path(line).read_text().splitlines() if row.startswith("  command:"))
    assert "mkc-fast" in said or "-m mkc_fast" in said


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--suffix", "x/y"], "suffix is 'x/y'"),
        (["--command", "no-such-program-here"], "there is no such program"),
        (["--command", "'"], "is no command"),
        (["--track", "2"], "VoicePrivacy 2024 has no track 2 here; it has track 1"),
        (["--stride", "0"], "stride"),
        (["--level", "word"], "level"),
        (["--bank-user", "none"], "none"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_written(
    artifacts: Artifacts, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    root = make_checkout(tmp_path / "checkout")
    before = tree(root)
    assert install(artifacts, root, *more) == 2
    shown = capsys.readouterr()
    (line,) = shown.err.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert not shown.out
    assert tree(root) == before


def test_a_folder_that_is_no_checkout_is_one_line(
    artifacts: Artifacts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert install(artifacts, tmp_path) == 2
    assert main(["vpc", "remove", str(tmp_path)]) == 2
    for line in capsys.readouterr().err.splitlines():
        assert "is no checkout of VoicePrivacy-Challenge-2024 or -2026: it has no run_anonymization.py" in line
