"""A cluster that grows starts machines for the workers of a run, and gets them back."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

pytest.importorskip("ray", reason="Ray is not installed (extra ray)")

from mkc_fast import anonymize_corpus
from mkc_fast.engine.cluster import RayCluster
from mkc_fast.engine.cluster.ray_module import SILENCE, load_ray
from mkc_fast.engine.corpus.status import Status
from tests.conftest import ROOT, Artifacts
from tests.engine.cluster.test_runs import PATIENCE_S, RECORDINGS, listed, outputs  # noqa: F401 - a fixture

MACHINES = 3
STORE = 80 << 20
HEAD_ID = "f" * 51 + "00000"
PROVIDER = {
    "type": "fake_multinode",
    "head_node_id": HEAD_ID,
    "launch_multiple": True,
    "disable_node_updaters": True,
    "disable_launch_config_check": True,
}
# What Ray reads of the configuration of a cluster, beside its machines.
STEPS = (
    "initialization_commands", "setup_commands", "cluster_synced_files", "head_setup_commands", "worker_setup_commands",
    "rsync_exclude", "rsync_filter", "head_start_ray_commands", "worker_start_ray_commands",
)  # fmt: skip
NO_STEPS = {**{step: [] for step in STEPS}, "auth": {}, "docker": {}, "file_mounts": {}}


@pytest.fixture
def growing(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a cluster without a core, which starts up to three machines of one: as processes, here.

    ``ray.cluster_utils.AutoscalingCluster`` would end all of Ray on this machine first.
    """
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    for name, value in SILENCE.items():
        monkeypatch.setenv(name, value)
    load_ray()
    from ray._private.services import get_node_ip_address

    with socket.socket() as free:
        free.bind(("", 0))
        address = f"{get_node_ip_address()}:{free.getsockname()[1]}"
    folder = tmp_path_factory.mktemp("r")  # paths of sockets are short
    machine = {"resources": {"CPU": 1, "object_store_memory": STORE}, "node_config": {}, "max_workers": MACHINES}
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    config = {
        "cluster_name": "growing",
        "provider": {**PROVIDER, "gcs_address": address},
        "available_node_types": {"ray.head.default": head, "machine": {**machine, "min_workers": 0}},
        "head_node_type": "ray.head.default",
        "max_workers": MACHINES,
        "upscaling_speed": 100.0,
        "idle_timeout_minutes": 0.1,
        **NO_STEPS,
        "file_mounts_sync_continuously": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--include-dashboard=false",
        f"--port={address.rpartition(':')[2]}", "--num-cpus=0", f"--object-store-memory={STORE}",
        f"--autoscaling-config={folder}/config.json", f"--temp-dir={folder}",
    ]  # fmt: skip
    settings = {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "PYTHONPATH": str(ROOT),
    }
    with (folder / "said").open("w") as said:
        started = subprocess.Popen(command, env={**os.environ, **settings}, stdout=said, stderr=said)
    ours = [psutil.Process(started.pid)]
    try:
        deadline = time.monotonic() + PATIENCE_S
        while "Ray runtime started" not in (folder / "said").read_text():
            assert started.poll() is None, (folder / "said").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield address
    finally:
        # The machines are started by a process of the head's, so all are below it.
        ours += ours[0].children(recursive=True)
        for process in ours:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(ours, timeout=30)
        started.wait()


def test_machines_are_started_for_workers_and_given_back(
    growing: str,
    artifacts: Artifacts,
    listed: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    import ray

    local, out = tmp_path / "local", tmp_path / "out"
    anonymize_corpus(artifacts.model, artifacts.bank, audio_list=listed, out=local, seed=7, devices=["cpu"])
    most = []

    def wait_for_all(status: Status) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while status.summary.written and not most and time.monotonic() < deadline:
            if ray.cluster_resources().get("CPU", 0) == MACHINES:
                most.append(MACHINES)
            time.sleep(0.2)
            print(time.monotonic(), ray.cluster_resources(), file=sys.stderr)

    with RayCluster(growing) as cluster:
        assert ray.cluster_resources().get("CPU", 0) == 0
        summary = anonymize_corpus(
            artifacts.model, artifacts.bank, audio_list=listed, out=out, seed=7, cluster=cluster,
            num_proc=MACHINES, least_proc=1, progress=wait_for_all,
        )  # fmt: skip
        assert most
        assert (summary.written, summary.failed, summary.lost_workers) == (RECORDINGS, [], 0)
        assert outputs(out) == outputs(local)
        deadline = time.monotonic() + PATIENCE_S
        while ray.cluster_resources().get("CPU", 0):
            assert time.monotonic() < deadline
            time.sleep(0.5)
