"""A run begins on a cluster without a core, and takes the machines as they come."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

pytest.importorskip("ray", reason="Ray is not installed (extra ray)")

from mkc_fast import MkcError, anonymize_corpus
from mkc_fast.engine.cluster import RayCluster
from mkc_fast.engine.cluster.ray_module import SILENCE
from mkc_fast.engine.corpus.status import Status
from tests.conftest import ROOT, Artifacts

RECORDINGS, MACHINES = 24, 2
STORE = 80 << 20


@pytest.fixture
def empty() -> Iterator[object]:
    """A cluster whose head has no core, as that of a cluster that grows often has."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SILENCE.items():
            patch.setenv(name, value)
        patch.setenv("PYTHONPATH", str(ROOT))
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": STORE})
        yield cluster
        cluster.shutdown()


def test_machines_that_come_during_a_run_get_its_workers(
    empty, artifacts: Artifacts, clip: np.ndarray, tmp_path: Path
) -> None:
    paths = [tmp_path / f"u{number:03}.wav" for number in range(RECORDINGS)]
    for number, path in enumerate(paths):
        soundfile.write(path, clip[: 14000 + 100 * number], 16000)
    scp = tmp_path / "audio.scp"
    scp.write_text("".join(f"{path}\n" for path in paths))
    asked: list[int] = []
    machines: set[str] = set()

    def grow(status: Status) -> None:
        """What the machinery of a cluster does that sees workers wait: start a machine, later another."""
        if not asked or (len(asked) < MACHINES and status.summary.written >= 3):
            asked.append(status.summary.written)
            empty.add_node(num_cpus=1, object_store_memory=STORE)
        machines.update(str(worker.pid) for worker in status.workers if worker.ready_at is not None)

    run = {"model": artifacts.model, "bank": artifacts.bank, "audio_list": scp, "seed": 7}
    with RayCluster(empty.address) as cluster:
        with pytest.raises(MkcError, match="no core"):
            anonymize_corpus(**run, out=tmp_path / "refused", cluster=cluster)
        # More workers than there will ever be places for: those that wait are let go at the end.
        summary = anonymize_corpus(
            **run, out=tmp_path / "out", cluster=cluster, num_proc=4, least_proc=1, progress=grow
        )
    assert asked[0] == 0
    assert len(asked) == MACHINES
    assert machines
    assert (summary.written, summary.failed, summary.lost_workers) == (RECORDINGS, [], 0)
    anonymize_corpus(**run, out=tmp_path / "local", devices=["cpu"])
    for path in paths:
        assert (tmp_path / "out" / path.name).read_bytes() == (tmp_path / "local" / path.name).read_bytes()
    lines = [json.loads(line) for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()]
    assert len({line["id"] for line in lines if "id" in line}) == RECORDINGS
