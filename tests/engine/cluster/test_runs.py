"""A run on a Ray cluster is the run of one machine: same bytes, same manifest, and whatever dies, nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile

pytest.importorskip("ray", reason="Ray is not installed (extra ray)")

from mkc_fast import ArgumentError, anonymize_corpus
from mkc_fast.cli import main
from mkc_fast.engine.cluster import AnonymizeBatch, RayCluster
from mkc_fast.engine.cluster.actor import Mailbox
from mkc_fast.engine.cluster.ray_module import SILENCE
from mkc_fast.engine.corpus import anonymize
from mkc_fast.engine.corpus.run import Run
from mkc_fast.engine.corpus.status import Status
from tests.conftest import ROOT, Artifacts
from tests.fakes.anonymizers import DEADLY, factory

RECORDINGS = 24
# What a slow machine may take for what takes a second.
PATIENCE_S = 120


@pytest.fixture(scope="module")
def nodes() -> Iterator[object]:
    """Three nodes of one core each, on this machine; nothing of them is left."""
    before = {process.pid for process in psutil.process_iter()}
    # Importing it imports Ray, so statistics are switched off first, as a run does.
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SILENCE.items():
            patch.setenv(name, value)
        patch.setenv("PYTHONPATH", str(ROOT))
        # How soon a machine that is gone is missed.
        patch.setenv("RAY_health_check_period_ms", "500")
        patch.setenv("RAY_health_check_failure_threshold", "4")
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80 << 20})
        for _ in range(2):
            cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
        yield cluster
        cluster.shutdown()
    left = [process for process in psutil.process_iter() if process.pid not in before and "ray" in process.name()]
    _, alive = psutil.wait_procs(left, timeout=30)
    assert not alive


@pytest.fixture
def listed(tmp_path: Path, clip: np.ndarray) -> Path:
    """A list of recordings of about a second; number 11 is the deadly one."""
    (tmp_path / "audio").mkdir()
    for number in range(RECORDINGS):
        length = DEADLY if number == 11 else 14000 + 100 * number
        soundfile.write(tmp_path / "audio" / f"u{number:03}.wav", clip[:length], 16000)
    scp = tmp_path / "audio.scp"
    scp.write_text("".join(f"{tmp_path}/audio/u{number:03}.wav\n" for number in range(RECORDINGS)))
    return scp


def outputs(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.wav"))}


def arguments(artifacts: Artifacts, scp: Path, out: Path, *more: str) -> list[str]:
    return [
        "infer", "--model", str(artifacts.model), "--bank", str(artifacts.bank), "--audio-scp", str(scp),
        "--output-dir", str(out), "--seed", "7", "--json", *more,
    ]  # fmt: skip


def records(out: Path) -> dict[str, dict]:
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    return {line["id"]: line for line in lines if "id" in line}


def test_a_killed_node_changes_nothing(nodes, artifacts: Artifacts, listed: Path, tmp_path: Path) -> None:
    local, out = tmp_path / "local", tmp_path / "out"
    anonymize_corpus(artifacts.model, artifacts.bank, audio_list=listed, out=local, seed=7, devices=["cpu"])
    doomed = nodes.add_node(num_cpus=1, object_store_memory=80 << 20)
    killed = []

    def kill(status: Status) -> None:
        if not killed and status.summary.written >= 3:
            nodes.remove_node(doomed, allow_graceful=False)
            killed.append(doomed)

    with RayCluster(nodes.address) as cluster:
        summary = anonymize_corpus(
            artifacts.model, artifacts.bank, audio_list=listed, out=out, seed=7, cluster=cluster, progress=kill
        )
    assert killed
    assert (summary.written, summary.failed) == (RECORDINGS, [])
    assert outputs(out) == outputs(local)
    assert records(out) == records(local)


def test_a_killed_driver_goes_on_where_it_was(nodes, artifacts: Artifacts, listed: Path, tmp_path: Path) -> None:
    local, out = tmp_path / "local", tmp_path / "out"
    assert main(arguments(artifacts, listed, local, "--gpus", "cpu")) == 0
    program = (
        "import sys, time; import mkc_fast.engine.corpus.manifest as m; from mkc_fast.cli import main; "
        "append = m.Manifest.append; m.Manifest.append = lambda *a: (append(*a), time.sleep(0.1))[0]; sys.exit(main())"
    )
    command = [sys.executable, "-c", program, *arguments(artifacts, listed, out, "--ray", nodes.address)]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + PATIENCE_S
    manifest = out / "manifest.jsonl"
    while not manifest.exists() or manifest.read_bytes().count(b"\n") < 5:
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    assert len(records(out)) < RECORDINGS
    assert main(arguments(artifacts, listed, out, "--ray", nodes.address)) == 0
    assert outputs(out) == outputs(local)
    assert set(records(out)) == set(records(local))


def test_the_recording_that_kills_actors_is_found(
    nodes, artifacts: Artifacts, listed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anonymize, "Run", lambda **given: Run(**given, factory=factory("DiesOfOne")))
    with RayCluster(nodes.address) as cluster:
        summary = anonymize_corpus(
            artifacts.model, artifacts.bank, audio_list=listed, out=tmp_path / "out", seed=7, cluster=cluster
        )
    ((name, why),) = summary.failed
    assert name == "u011"
    assert "3 workers died of it" in why
    assert summary.written == RECORDINGS - 1


def test_rows_of_ray_data_get_what_a_run_writes(artifacts: Artifacts, clip: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "one.wav"
    soundfile.write(path, clip[:20000], 16000)
    step = AnonymizeBatch(artifacts.model, artifacts.bank, device="cpu", seed=7)
    by_path = step({"path": np.array([str(path), str(tmp_path / "none.wav")]), "id": np.array(["one", "two"])})
    by_bytes = step({"bytes": np.array([path.read_bytes()], dtype=object), "id": np.array(["one"])})
    expected = artifacts.anonymizer.anonymize(soundfile.read(path, dtype="float32")[0], "frame", 1, 7, "one")
    np.testing.assert_array_equal(by_path["audio"][0], expected.waveform)
    np.testing.assert_array_equal(by_bytes["audio"][0], expected.waveform)
    assert by_path["error"][0] == ""
    assert "no such file" in by_path["error"][1]
    assert len(by_path["audio"][1]) == 0


def test_messages_come_in_the_order_in_which_they_were_sent() -> None:
    mailbox = Mailbox()
    for number in (2, 0, 1):
        mailbox.put(number, number)
    assert [mailbox.recv() for _ in range(3)] == [0, 1, 2]


def test_usage_statistics_are_off(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SILENCE:
        monkeypatch.setenv(name, "1")
    RayCluster("local")
    assert {name: os.environ[name] for name in SILENCE} == SILENCE


def test_a_second_cluster_of_a_process_gets_its_own_token(tmp_path: Path) -> None:
    # In a process of its own, since Ray keeps what it once knew of tokens.
    program = """
import os, secrets, sys
from mkc_fast.engine.cluster import RayCluster
def works():
    import ray
    return ray.get(ray.remote(num_cpus=1)(lambda: 5).remote(), timeout=100)
for token in (None, secrets.token_hex(32), None):
    if token: os.environ["RAY_AUTH_TOKEN"] = token
    with RayCluster("local", num_cpus=1):
        print(works())
    assert os.environ.pop("RAY_AUTH_TOKEN", None) == token
    assert "RAY_AUTH_MODE" not in os.environ
"""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    environment = {**clean, "HOME": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment, cwd=ROOT
    )
    assert run.stdout.split() == ["5", "5", "5"], run.stderr
    assert not (tmp_path / ".ray").exists()


@pytest.mark.parametrize("address", ["", "http://x", "host", "ray://", "local;x"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ArgumentError, match="expected local"):
        RayCluster(address)


@pytest.mark.parametrize(("given", "said"), [("0", "expected a number"), ("8:4", "expected"), ("2:4", "--ray")])
def test_a_range_of_workers_is_for_clusters(
    given: str, said: str, artifacts: Artifacts, listed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(artifacts, listed, tmp_path / "out", "--num-proc", given)) != 0
    assert said in capsys.readouterr().err
