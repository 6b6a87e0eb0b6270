"""The table of the published recipe in the docs: each of its commands runs, in their order, in a toy checkout."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from mkc_fast.cli import main
from mkc_fast.engine.voiceprivacy.sets import known_sets, role_of
from tests.conftest import Artifacts
from tests.engine.voiceprivacy.conftest import make_set

PAGE = Path(__file__).parents[3] / "docs" / "voiceprivacy.md"
SECTION = re.search(r"^## The published recipe\n(.*?)^## ", PAGE.read_text(), re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^\|[^|]*\| `mkc-fast ([^`]+)`", SECTION[1], re.MULTILINE) if SECTION else []


def test_the_table_has_the_steps_of_the_scripts() -> None:
    assert [command.split()[0] + " " + command.split()[1] for command in COMMANDS] == [
        *("bank build", "vpc run", "bank build", "vpc run", "vpc run", "vpc check")
    ]
    of_steps = [set(command.partition("--set ")[2].split()) for command in COMMANDS if "--set" in command]
    assert of_steps[0] == {name for name in known_sets(2024, 1) if role_of(name) == "attacker"}
    assert of_steps[1] == {name for name in known_sets(2024, 1) if role_of(name) == "user"}


def test_the_recipe_step_by_step_is_the_recipe_at_once(
    artifacts: Artifacts, golden: Path, tmp_path: Path, clip: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = tmp_path / "checkout"
    for name in known_sets(2024, 1):
        make_set(checkout, name, 2, clip)
    (checkout / "run_anonymization.py").write_text("")
    shutil.copytree(artifacts.model, checkout / "model")
    models = (golden / "kmeans.scp").read_text().splitlines()
    lines = [f"{line.split()[0]} {golden / Path(line.split()[1]).name}" for line in models]
    for role, chosen in {"attacker": lines[:1], "user": lines}.items():
        paths = [(line.split()[0], next(golden.rglob(Path(line.split()[1]).name))) for line in chosen]
        (checkout / f"kmeans_{role}.scp").write_text("".join(f"{name} {path}\n" for name, path in paths))
    monkeypatch.chdir(checkout)
    for command in COMMANDS:
        words = shlex.split(command)
        if words[:2] == ["vpc", "run"]:
            words += ["--seed", "1234", "--gpus", "cpu"]
            if "--set" not in words:  # all at once, into directories of its own
                words[words.index("_mk")] = "_at_once"
        assert main(words) == 0, command
    for name in known_sets(2024, 1):
        stepwise, at_once = checkout / "data" / f"{name}_mk", checkout / "data" / f"{name}_at_once"
        wavs = {path.name: path.read_bytes() for path in (stepwise / "wav").iterdir()}
        assert len(wavs) == 2
        assert wavs == {path.name: path.read_bytes() for path in (at_once / "wav").iterdir()}
