"""A run over three nodes that loses one, and then its driver: what happens to it, and whether outputs stay the same.

python -m mkc_fast.benchmarks.cluster.faults RECORDING [--model DIR --bank DIR] [--recordings 2000] [--quick]

Three nodes of a Ray cluster are started on this machine, each with one core. The same recordings are anonymized by the
local runner, then by the cluster: when a third is done, a node is killed; when two thirds are done, the command that
runs the corpus is killed (SIGKILL), and run again. Then all outputs are compared byte by byte. Without ``--model`` and
``--bank``: small random weights. Writes results/cluster_faults.json, and exits with 1 if an output differs or lacks.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkc_fast.benchmarks.cluster.setup import RATE, artifacts_of, benchmark_parser, say
from mkc_fast.benchmarks.common import write_result
from mkc_fast.benchmarks.records import short
from mkc_fast.benchmarks.utterances import write_corpus
from mkc_fast.engine.audio.read import read_waveform
from mkc_fast.engine.cluster.ray_module import load_ray
from mkc_fast.engine.corpus.manifest import MANIFEST_FILE

if TYPE_CHECKING:
    from collections.abc import Iterator

import numpy as np

NODES = 3
_STORE_BYTES = 80 << 20
_POLL_S = 0.02
# Seconds after which a node that does not answer counts as lost: Ray's default is half a minute.
_CHECKS = {"RAY_health_check_period_ms": "500", "RAY_health_check_failure_threshold": "4"}


def main() -> None:
    parser = benchmark_parser(__doc__, "cluster_faults")
    parser.add_argument("--recordings", type=int, default=2000, help="how many")
    args = parser.parse_args()
    count = 60 if args.quick else args.recordings
    model, bank = artifacts_of(parser, args)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lengths = np.random.default_rng(7).uniform(1.0, 3.0, count).round(2).tolist()
        utterances = write_corpus(folder / "recordings", read_waveform(args.recording, RATE), lengths, RATE)
        scp = folder / "audio.scp"
        scp.write_text("".join(f"{utterance.file}\n" for utterance in utterances), encoding="utf-8")
        command = [sys.executable, "-m", "mkc_fast", "infer", "--model", str(model), "--bank", str(bank)]
        command += ["--audio-scp", str(scp), "--seed", "7", "--json", "--quiet"]
        say(f"{count} recordings by the local runner")
        local, local_s = finished([*command, "-o", str(folder / "local"), "--gpus", "cpu"])
        out = folder / "out"
        with cluster() as nodes:
            over_ray = [*command, "-o", str(out), "--ray", nodes.address]
            say("by three nodes")
            events, first_s = interrupted(over_ray, nodes, out / MANIFEST_FILE, count)
            done_before = lines(out / MANIFEST_FILE)
            say("the same command again")
            again, again_s = finished(over_ray)
        kept, whole = outputs(folder / "local"), outputs(out)
    result = {
        "recordings": count,
        "nodes": NODES,
        "local": {"seconds": short(local_s), "written": local["written"]},
        "first": {"seconds": short(first_s), "events": events, "recorded_before_the_kill": done_before},
        "again": {
            "seconds": short(again_s),
            "written": again["written"],
            "present": again["present"],
            "failed": len(again["failed"]),
            "replaced_workers": again["replaced_workers"],
        },
        "outputs": len(whole),
        "equal": sum(whole.get(name) == content for name, content in kept.items()),
    }
    result["all_equal"] = result["equal"] == result["outputs"] == count
    say(f"{result['equal']} of {count} outputs equal those of the local run")
    write_result(args.out, {"quick": args.quick, **result})
    sys.exit(0 if result["all_equal"] else 1)


@contextmanager
def cluster() -> Iterator[Any]:
    """Three nodes of one core each, on this machine; their processes end with the block."""
    os.environ.update(_CHECKS)
    load_ray()  # first, since it switches statistics off
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": _STORE_BYTES})
    try:
        for _ in range(NODES - 1):
            nodes.add_node(num_cpus=1, object_store_memory=_STORE_BYTES)
        yield nodes
    finally:
        nodes.shutdown()


def interrupted(command: list[str], nodes: Any, manifest: Path, count: int) -> tuple[list[dict[str, Any]], float]:
    """Run a command; kill a node when a third of its recordings are done, and it when two thirds are."""
    begin = time.perf_counter()
    events: list[dict[str, Any]] = []
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def reached(wanted: int) -> None:
        while (done := lines(manifest)) < wanted:
            if process.poll() is not None:
                raise SystemExit(f"the run ended with {done} of {count} recordings, before it was killed")
            time.sleep(_POLL_S)
        events.append({"at_s": short(time.perf_counter() - begin), "done": done})

    reached(count // 3)
    doomed = min(nodes.worker_nodes, key=str)
    events[-1]["killed"] = "a node, with its worker"
    nodes.remove_node(doomed, allow_graceful=False)
    reached(2 * count // 3)
    events[-1]["killed"] = "the command"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return events, time.perf_counter() - begin


def finished(command: list[str]) -> tuple[dict[str, Any], float]:
    """Run a command to its end: its summary, and seconds."""
    begin = time.perf_counter()
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(f"failed: {run.stderr.strip().splitlines()[-1:]}")
    return json.loads(run.stdout), time.perf_counter() - begin


def lines(manifest: Path) -> int:
    """How many recordings a manifest has a line about."""
    return manifest.read_bytes().count(b'\n{"id"') if manifest.exists() else 0


def outputs(folder: Path) -> dict[str, bytes]:
    """The outputs in a folder, by name."""
    return {path.name: path.read_bytes() for path in folder.glob("*.wav")}


if __name__ == "__main__":
    main()
