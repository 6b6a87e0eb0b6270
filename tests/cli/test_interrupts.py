"""Ctrl-C and SIGTERM end every command with one line and 130 or 143, and leave nothing half done."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import mkc_fast.cli
from mkc_fast.cli import app, interrupts, main
from mkc_fast.export.random_checkpoints import Checkpoints
from tests.conftest import Artifacts

LAST_LINE = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])


@pytest.fixture
def interrupted(tmp_path: Path):
    """A function that runs the program, sends a signal once a line holds some words, and returns the lines."""

    def run(
        arguments: list[str], words: str, number: signal.Signals, *, group: bool = True, children: bool = False
    ) -> list[str]:
        temporary = tmp_path / "temporary"
        temporary.mkdir()
        process = subprocess.Popen(
            [sys.executable, "-m", "mkc_fast", *arguments],
            cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env={**os.environ, "TMPDIR": str(temporary)},
        )  # fmt: skip
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line.rstrip("\n"))
            if words in line:
                break
        while children and not psutil.Process(process.pid).children():
            time.sleep(0.01)
        (os.killpg if group else os.kill)(process.pid, number)
        lines += process.stderr.read().splitlines()  # to the end of every process that could write there
        assert process.wait(60) == 128 + number, lines
        assert lines[-1] == LAST_LINE[number]
        assert all(line.startswith("[") for line in lines[:-1]), lines  # the steps before it, and no traceback
        deadline = time.monotonic() + 60
        while living(process.pid):  # a child that was just being started notices by the end of its input
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert not [path for path in temporary.iterdir() if not path.name.startswith("torchinductor_")]
        return lines

    return run


def living(group: int) -> list[psutil.Process]:
    """Processes of a group that run, dead ones that nobody asked for left out."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@BOTH
def test_an_export_ends_with_one_line_and_leaves_nothing(
    interrupted, checkpoints: Checkpoints, tmp_path: Path, number: signal.Signals
) -> None:
    command = ["export", "--wavlm-ckpt", str(checkpoints.wavlm), "--ckpt", str(checkpoints.ckpt), "--out", "model"]
    interrupted(command, "WavLM, layers", number)
    assert [path.name for path in tmp_path.iterdir()] == ["temporary"]


def test_a_demo_ends_with_one_line_and_no_half_written_model(interrupted, tmp_path: Path) -> None:
    interrupted(["demo", "--random", "--out", "demo"], "export to ONNX", signal.SIGINT)
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == [".mkc-fast-demo", "checkpoints"]


@BOTH
@pytest.mark.parametrize("group", [True, False], ids=["to all", "to the command alone"])
@pytest.mark.parametrize("bench", ["latency", "load"])
def test_a_benchmark_ends_with_one_line_and_no_processes(
    interrupted, artifacts: Artifacts, bench: str, group: bool, number: signal.Signals
) -> None:
    command = ["bench", bench, "--model", str(artifacts.model), "--bank", str(artifacts.bank)]
    interrupted(command, "start-up", number, group=group, children=True)


def _raising(number: signal.Signals) -> Callable[[list[str]], int]:
    def command(_: list[str]) -> int:
        signal.raise_signal(number)
        return 0

    return command


@BOTH
def test_the_exit_code_is_128_and_the_signal(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(app, "run", _raising(number))
    assert main(["doctor"]) == 128 + number
    assert capsys.readouterr().err == f"{LAST_LINE[number]}\n"


def test_what_a_library_makes_of_an_interrupt_is_an_interrupt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def translating(_: list[str]) -> int:
        try:
            signal.raise_signal(signal.SIGINT)
        except BaseException:
            raise RuntimeError("a callback failed") from None
        return 0

    def swallowing(_: list[str]) -> int:
        with contextlib.suppress(BaseException):
            signal.raise_signal(signal.SIGINT)
        return 0

    for command in (translating, swallowing):
        monkeypatch.setattr(app, "run", command)
        assert main(["doctor"]) == 130
        assert capsys.readouterr().err == "interrupted\n"


def test_a_swallowed_interrupt_ends_the_next_step() -> None:
    with interrupts.raising():
        interrupts.check()
        with pytest.raises(interrupts.Interrupted):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(interrupts.Interrupted):
            interrupts.check()
    interrupts.check()  # and is forgotten with the command


@pytest.mark.usefixtures("no_waiting")
def test_an_interrupt_in_a_destructor_is_not_lost(capsys: pytest.CaptureFixture[str]) -> None:
    class Signalling:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    with interrupts.raising():
        held = [Signalling()]
        held.clear()
        with pytest.raises(interrupts.Interrupted) as raised:
            time.sleep(60)
        assert raised.value.number == signal.SIGTERM
    assert capsys.readouterr().err == ""


def test_a_second_ctrl_c_does_not_stop_the_cleaning_up() -> None:
    with interrupts.raising():
        with pytest.raises(interrupts.Interrupted):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)


def test_a_later_ctrl_c_ends_the_process_at_once() -> None:
    script = (
        "import signal\nfrom mkc_fast.cli import interrupts\ninterrupts._CLEANING_UP_S = 0\n"
        "with interrupts.raising():\n    try:\n        signal.raise_signal(signal.SIGTERM)\n"
        "    except interrupts.Interrupted:\n        signal.raise_signal(signal.SIGINT)\n        print('still here')\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (143, "", "")


def test_a_signal_that_the_caller_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as nohup and shells do for what runs in the background
    try:
        with interrupts.raising():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)], sys.unraisablehook
    assert main(["--version"]) == 0
    assert ([signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)], sys.unraisablehook) == before


def test_an_interrupt_while_the_commands_are_imported_is_one_line() -> None:
    script = (
        "import signal, sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'typer':\n"
        "            signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "from mkc_fast.cli import program\n"
        "sys.argv = ['mkc-fast', 'doctor']\n"
        "program()\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "interrupted\n")


def test_the_program_and_the_package_are_one_command() -> None:
    shown = [
        subprocess.run([sys.executable, "-m", "mkc_fast", option], capture_output=True, text=True, check=True).stdout
        for option in ("--version", "-V")
    ]
    assert shown == [f"mkc-fast {mkc_fast.__version__}\n"] * 2
