"""A long run that is killed and resumed: 2,000 utterances in the 9 sets of 2024 and two more."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from mkc_fast.cli import main
from mkc_fast.engine.voiceprivacy.sets import known_sets
from tests.conftest import Artifacts
from tests.engine.voiceprivacy.conftest import make_set

UTTERANCES = 2000
SETS = (*known_sets(2024, 1), "libri_dev_trials_mixed", "libri_test_trials_mixed")
TIMEOUT_S = 600  # what a slow machine may take for half a minute


def test_2000_utterances_in_11_sets_survive_a_kill(
    artifacts: Artifacts, tmp_path: Path, clip: np.ndarray, banks: dict[str, Path]
) -> None:
    assert len(SETS) == 11
    checkout, quiet = tmp_path / "checkout", {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    for number, name in enumerate(SETS):
        count = UTTERANCES // len(SETS) + (number < UTTERANCES % len(SETS))
        make_set(checkout, name, count, clip[:3000])
    (checkout / "run_anonymization.py").write_text("")
    command = ["vpc", "run", "--data", str(checkout / "data"), "--model", str(artifacts.model), "--seed", "5"]
    command += ["--bank-user", str(banks["all"]), "--bank-attacker", str(banks["one"]), "--gpus", "cpu", "--quiet"]
    process = subprocess.Popen([sys.executable, "-m", "mkc_fast", *command], **quiet)  # type: ignore[call-overload]
    deadline = time.monotonic() + TIMEOUT_S
    while process.poll() is None and sum(1 for _ in checkout.glob("data/*_mkc/wav/*.wav")) < UTTERANCES // 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    written = sum(1 for _ in checkout.glob("data/*_mkc/wav/*.wav"))
    assert UTTERANCES // 3 <= written < UTTERANCES
    assert main(command) == 0
    assert main([*command, "--anon-suffix", "_whole"]) == 0
    total = 0
    for name in SETS:
        resumed, whole = checkout / "data" / f"{name}_mkc", checkout / "data" / f"{name}_whole"
        names = sorted(path.name for path in (whole / "wav").iterdir())
        total += len(names)
        assert sorted(path.name for path in (resumed / "wav").iterdir()) == names
        assert all((resumed / "wav" / name).read_bytes() == (whole / "wav" / name).read_bytes() for name in names)
        assert len((resumed / "wav.scp").read_text().splitlines()) == len(names)
    assert total == UTTERANCES
    assert main(["vpc", "check", str(checkout / "data")]) == 0
