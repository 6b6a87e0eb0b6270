"""From ``vpc install`` to what a submission is checked for: the toolkit's own run, with the real command."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from mkc_fast.cli import main
from mkc_fast.engine.voiceprivacy.sets import known_sets
from tests.conftest import Artifacts
from tests.engine.voiceprivacy.conftest import make_set
from tests.fakes.toolkits import make_checkout, run_toolkit

# What the check of a submission of 2026 demands of an anonymized directory, for bash in the checkout: every file of the
# original, as many lines, the same ids, and every path there.
DEMANDS = r"""
for file in data/$1/*; do
    [ -f "$file" ] || continue
    [ -f "data/$1$2/${file##*/}" ] || { echo "no ${file##*/}"; exit 1; }
done
[ "$(wc -l < data/$1/wav.scp)" = "$(wc -l < data/$1$2/wav.scp)" ] || { echo lines; exit 1; }
ids() { cut -d' ' -f1 "$1" | LC_ALL=C sort; }
[ "$(ids data/$1/wav.scp)" = "$(ids data/$1$2/wav.scp)" ] || { echo ids; exit 1; }
while read -r _ path; do [ -f "$path" ] || { echo "no $path"; exit 1; }; done < data/$1$2/wav.scp
"""


@pytest.mark.parametrize(
    ("year", "track", "tracks"), [(2024, 1, ()), (2026, 1, ("track1", "track2")), (2026, 2, ("track1", "track2"))]
)
@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_the_toolkit_makes_directories_that_pass_the_check_of_a_submission(
    artifacts: Artifacts,
    banks: dict[str, Path],
    tmp_path: Path,
    clip: np.ndarray,
    capsys: pytest.CaptureFixture[str],
    year: int,
    track: int,
    tracks: tuple[str, ...],
) -> None:
    root = make_checkout(tmp_path / "a checkout", *tracks)
    names = known_sets(year, track)
    for name in names:
        make_set(root, name, 2, clip[:9000])
    given = ["--model", str(artifacts.model), "--bank-user", str(banks["all"]), "--bank-attacker", str(banks["one"])]
    assert main(["vpc", "install", str(root), *given, "--seed", "3", "--suffix", "_x"]) == 0
    configs = capsys.readouterr().out.splitlines()
    config = next(path for path in configs if not tracks or f"track{track}" in path)
    ran = run_toolkit(root, "--config", config, "--cpu")
    assert ran.returncode == 0, ran.stderr
    for name in names:
        checked = subprocess.run(
            ["bash", "-c", DEMANDS, "check", name, "_x"], cwd=root, capture_output=True, text=True, check=False
        )
        assert (checked.returncode, checked.stdout) == (0, "")
    assert main(["vpc", "check", str(root / "data"), "--anon-suffix", "_x"]) == 0
    # The same outside the toolkit, into other directories.
    assert main(["vpc", "run", "--data", str(root / "data"), *given, "--seed", "3", "--gpus", "cpu", "--quiet"]) == 0
    for name in names:
        inside, outside = (root / "data" / f"{name}{suffix}" / "wav" for suffix in ("_x", "_mkc"))
        assert {path.name: path.read_bytes() for path in inside.iterdir()} == {
            path.name: path.read_bytes() for path in outside.iterdir()
        }
    # It continues where it stopped: nothing is computed again.
    before = {path: path.stat().st_mtime_ns for path in root.glob("data/*_x/wav/*")}
    assert run_toolkit(root, "--config", config, "--cpu").returncode == 0
    assert {path: path.stat().st_mtime_ns for path in root.glob("data/*_x/wav/*")} == before
