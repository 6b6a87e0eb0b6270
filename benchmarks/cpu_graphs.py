"""What the CPU's own forms of the graphs bring: the vocoder in pieces, and graphs that open as they were prepared.

python benchmarks/cpu_graphs.py MODEL [--seconds 10] [--rounds 6]

Writes results/cpu_graphs.json: the vocoder in one dimension and in 1 to 16 pieces, in turn; the time to open the graphs
as exported and as prepared; and the memory of one and of two processes that hold prepared graphs.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort
from common import write_result

from mkc_fast.engine.artifacts import CPU_VOCODER_FILE, PIECE_REACH, VOCODER_FILE, read_model_info
from mkc_fast.engine.cpu_sessions import CPU_GRAPH_FILES, configured
from mkc_fast.engine.prepared import prepared_graph
from mkc_fast.engine.providers import Plan, default_cache
from mkc_fast.engine.windows import pieces

if TYPE_CHECKING:
    from collections.abc import Callable

PIECES = (1, 2, 4, 8, 16)
# Opens the model, says so, and holds it until its input ends.
HOLD = """
import sys
from pathlib import Path
import numpy as np
from mkc_fast.engine.sessions import open_sessions
sessions = open_sessions(Path(sys.argv[1]), "cpu")
dim = int(sys.argv[2])
sessions.conformer.run(None, {"features": np.zeros((1, 50, dim), np.float32), "lengths": np.array([50])})
print("ready", flush=True)
sys.stdin.read()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=6)
    args = parser.parse_args()
    result = {
        "load_average": round(os.getloadavg()[0], 2),
        "seconds_of_audio": args.seconds,
        "vocoder": vocoder(args.model, args.seconds, args.rounds),
        "open": opening(args.model, args.rounds),
        "memory": memory(args.model),
    }
    print(result)
    print(write_result("cpu_graphs", result))


def session(path: Path, *, optimize: bool = True) -> ort.InferenceSession:
    options = configured(ort.SessionOptions(), Plan("cpu", "fp32"))
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def vocoder(model: Path, seconds: float, rounds: int) -> dict[str, dict[str, float]]:
    info = read_model_info(model)
    frames = int(seconds * info.sample_rate / info.hop)
    features = np.random.default_rng(0).standard_normal((1, frames, info.dim), np.float32)
    plain, pieced = session(model / VOCODER_FILE), session(model / CPU_VOCODER_FILE)
    reach = int(pieced.get_modelmeta().custom_metadata_map[PIECE_REACH])
    ways: dict[str, Callable[[], object]] = {"one dimension": lambda: plain.run(None, {"features": features})}
    for count in PIECES:
        taken, kept = pieces(frames, count, reach)
        inputs = {"features": features, "pieces": taken, "kept": kept}
        ways[f"{len(taken)} pieces"] = lambda inputs=inputs: pieced.run(None, inputs)  # type: ignore[misc]
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):  # the first is to warm up
        for name in random.sample(list(ways), len(ways)):
            begin = time.perf_counter()
            ways[name]()
            if turn:
                times[name].append(time.perf_counter() - begin)
    first = median(times["one dimension"])
    return {
        name: {"median_s": round(median(runs), 3), "times_as_fast": round(first / median(runs), 2)}
        for name, runs in times.items()
    }


def opening(model: Path, rounds: int) -> dict[str, float]:
    prepared = [prepared_graph(model / name, default_cache()) for name in CPU_GRAPH_FILES]
    assert all(prepared), "the graphs are too small to be kept"
    times: dict[str, list[float]] = {"as_exported": [], "as_prepared": []}
    for _ in range(rounds):
        for name, paths in (("as_exported", [model / file for file in CPU_GRAPH_FILES]), ("as_prepared", prepared)):
            begin = time.perf_counter()
            opened = [session(path, optimize=name == "as_exported") for path in paths if path]
            times[name].append(time.perf_counter() - begin)
            del opened
    return {f"{name}_s": round(median(runs), 2) for name, runs in times.items()}


def memory(model: Path) -> dict[str, float]:
    """Proportional set size: a page that two processes share counts half in each."""
    command = [sys.executable, "-c", HOLD, str(model), str(read_model_info(model).dim)]
    held: list[subprocess.Popen[str]] = []
    found = {}
    for count in ("one_process_mb", "two_processes_mb"):
        held.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        assert held[-1].stdout is not None
        assert held[-1].stdout.readline().strip() == "ready"
        found[count] = round(sum(pss_mb(process.pid) for process in held))
    for process in held:
        process.communicate()
    return {**found, "second_adds_mb": found["two_processes_mb"] - found["one_process_mb"]}


def pss_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("Pss:"))


if __name__ == "__main__":
    main()
