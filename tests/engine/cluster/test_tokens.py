"""A cluster that is started for a run lets in only those who know its token."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="Ray is not installed (extra ray)")

from mkc_fast.engine.cluster import RayCluster

TOKEN, MODE = "RAY_AUTH_TOKEN", "RAY_AUTH_MODE"
PATIENCE_S = 300


def test_who_lacks_the_token_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (TOKEN, MODE, "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # where Ray looks for a token of its own
    with RayCluster("local", num_cpus=1):
        import ray

        address = ray.get_runtime_context().gcs_address
        program = f"import ray; ray.init({address!r}, log_to_driver=False); print(len(ray.nodes()), 'node')"
        known = dict(os.environ)
        without = {name: value for name, value in known.items() if name != TOKEN}
        unasked = {name: value for name, value in without.items() if name != MODE}
        wrong = {**known, TOKEN: "0" * len(known[TOKEN])}
        options = {"capture_output": True, "text": True, "timeout": PATIENCE_S}
        command = [sys.executable, "-c", program]
        done = [subprocess.run(command, env=env, check=False, **options) for env in (known, without, unasked, wrong)]
    assert [each.stdout.strip() for each in done] == ["1 node", "", "", ""], [each.stderr[-500:] for each in done]
    assert [each.returncode == 0 for each in done] == [True, False, False, False]


def test_nothing_of_the_token_is_left_for_the_next_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (TOKEN, MODE, "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    with RayCluster("local", num_cpus=1):
        assert TOKEN in os.environ
    assert TOKEN not in os.environ
    assert MODE not in os.environ
