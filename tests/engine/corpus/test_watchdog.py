"""Workers that hang are told from those that are slow, stopped, or asleep with the machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from mkc_fast.engine.audio.read import COMMAND_TIMEOUT_S
from mkc_fast.engine.corpus import processes
from mkc_fast.engine.corpus import watchdog as patience
from mkc_fast.engine.corpus.protocol import Task
from mkc_fast.engine.corpus.watchdog import Clock, SilenceTimer, is_stopped
from mkc_fast.engine.datasets.dataset import Utterance


def task(audio_s: float, command: str | None = None) -> Task:
    return Task(0, Utterance("u", Path("u.wav"), command=command), Path("out"), audio_s=audio_s)


def test_the_limit_grows_with_the_audio_and_never_falls_below_the_timeout() -> None:
    fresh = SilenceTimer()
    assert fresh.limit_s(900, loading=False, tasks=[]) == 900
    # Two cores compute full size at 2.4 times real time; a hundredth of that is allowed before anything is measured.
    assert fresh.limit_s(900, loading=False, tasks=[task(40)]) >= 900 + 40 / 0.024
    assert fresh.limit_s(900, loading=False, tasks=[task(40), task(40)]) > fresh.limit_s(900, False, [task(40)])
    # What a segment claims has an end.
    assert fresh.limit_s(900, False, [task(1e300)]) == fresh.limit_s(900, False, [task(24 * 3600)])
    # A command has ten minutes of its own.
    assert fresh.limit_s(900, False, [task(40, "cat")]) - fresh.limit_s(900, False, [task(40)]) == COMMAND_TIMEOUT_S


@pytest.mark.parametrize("rtfx", [0.1, 2.4, 4000.0])
def test_a_worker_of_any_pace_has_twenty_times_what_it_needs(rtfx: float) -> None:
    silence = SilenceTimer()
    for _ in range(3):
        silence.silent_s += 40 / rtfx
        silence.heard(40)
    assert silence.limit_s(900, False, [task(240)]) == pytest.approx(900 + 20 * 240 / rtfx)


def test_silence_does_not_lengthen_its_own_limit() -> None:
    silence = SilenceTimer()
    silence.silent_s = 1
    silence.heard(10)
    before = silence.limit_s(900, False, [task(10)])
    silence.silent_s = 1e6
    assert silence.limit_s(900, False, [task(10)]) == before


def test_sleep_of_the_machine_is_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(patience.time, "perf_counter", lambda: now[0])
    clock = Clock()
    assert clock.step_s() is None
    now[0] += 0.6
    assert clock.step_s() == pytest.approx(0.6)
    now[0] += 8 * 3600
    assert clock.step_s() == 1


def test_a_stopped_process_is_seen_with_and_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    # A name with what the fields of /proc are told by.
    program = "import time, pathlib; pathlib.Path('/proc/self/comm').write_text('a) T ('); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    try:
        for by_proc in (True, False):
            if not by_proc:
                monkeypatch.setattr(patience, "Path", lambda _: Path("/nowhere"))
            os.kill(process.pid, signal.SIGSTOP)
            until(lambda: is_stopped(process.pid))
            os.kill(process.pid, signal.SIGCONT)
            until(lambda: not is_stopped(process.pid))
    finally:
        process.kill()
        process.wait()
    assert not is_stopped(process.pid)


def test_a_process_that_cannot_be_killed_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    # In a driver that never returns even SIGKILL waits. Here the signal is not sent.
    monkeypatch.setattr(processes, "LAST_WAIT_S", 0.1)
    monkeypatch.setattr(processes.os, "killpg", lambda *_: None)
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    worker = processes.WorkerProcess(process, Connection(os.dup(0)))
    try:
        begin = time.monotonic()
        assert worker.end().startswith("killed")
        assert time.monotonic() - begin < 5
    finally:
        process.kill()
        process.wait()


def until(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)
