"""The native operators compared with those of ONNX Runtime on a CPU, stage by stage, and the cost of opening them.

python -m mkc_fast.benchmarks.cpu_graphs MODEL [--seconds 10] [--rounds 6]

Writes results/cpu_graphs.json: each stage with the native operators in AVX-512 and in AVX2, and with ONNX Runtime's own
(the vocoder in one dimension and in pieces), in turn; the time to open the graphs; and the memory of one and of two
processes that hold them.
"""

from __future__ import annotations

import ctypes
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from mkc_fast.benchmarks.common import result_parser, write_result
from mkc_fast.benchmarks.memory import memory_mb
from mkc_fast.engine.artifacts import CPU_VOCODER_FILE, PIECE_REACH, native_file, read_model_info
from mkc_fast.engine.cache_folder import default_cache
from mkc_fast.engine.sessions.cpu import CPU_GRAPH_FILES, configured
from mkc_fast.engine.sessions.prepared import prepared_graph
from mkc_fast.engine.sessions.providers import Plan
from mkc_fast.engine.windows import pieces
from mkc_fast.kernels.cpu.loader import native_library, register
from mkc_fast.names import CONFORMER_FILE, CPU, ENCODE, FP32, GRAPH_FILES, RESTORE, VOCODE, VOCODER_FILE, WAVLM_FILE
from mkc_fast.onnx_runtime import ort

if TYPE_CHECKING:
    from collections.abc import Callable

    Ways = dict[str, Callable[[], object]]

# Opens the model, says so, and holds it until its input ends.
HOLD = """
import sys
from pathlib import Path
import numpy as np
from mkc_fast.engine.sessions import cpu as cpu_sessions
if sys.argv[3] != "native":
    cpu_sessions.native_library = lambda: None
from mkc_fast.engine.sessions.opening import open_sessions
sessions = open_sessions(Path(sys.argv[1]), "cpu")
dim = int(sys.argv[2])
sessions.conformer.run(None, {"features": np.zeros((1, 50, dim), np.float32), "lengths": np.array([50])})
print("ready", flush=True)
sys.stdin.read()
"""


def main() -> None:
    parser = result_parser(__doc__, "cpu_graphs")
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=6)
    args = parser.parse_args()
    assert native_library() is not None, "the native operators are not built here"
    result = {
        "load_average": round(os.getloadavg()[0], 2),
        "seconds_of_audio": args.seconds,
        "stages": stages(args.model, args.seconds, args.rounds),
        "open": opening(args.model, args.rounds),
        "memory": {how: memory(args.model, how) for how in ("native", "prepared")},
    }
    print(result)
    write_result(args.out, result)


def session(path: Path, *, optimize: bool = True) -> ort.InferenceSession:
    options = configured(ort.SessionOptions(), Plan(CPU, FP32))
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if ".native." in path.name:
        register(options)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def stages(model: Path, seconds: float, rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Of each stage: the median of each way, and how many times as fast as ONNX Runtime's own operators it is."""
    info, rng = read_model_info(model), np.random.default_rng(0)
    samples = int(seconds * info.sample_rate)
    frames = info.frames(samples)
    waveform = rng.standard_normal((1, samples), np.float32) * np.float32(0.1)
    features = rng.standard_normal((1, frames, info.dim), np.float32)
    inputs: dict[str, dict[str, Any]] = {
        WAVLM_FILE: {"waveform": waveform, "lengths": np.array([samples])},
        CONFORMER_FILE: {"features": features, "lengths": np.array([frames])},
        VOCODER_FILE: {"features": features},
    }
    library = ctypes.CDLL(str(native_library()))
    vectors = library.mkc_fast_vector_bits()
    found = {}
    for stage, file in zip((ENCODE, RESTORE, VOCODE), GRAPH_FILES, strict=True):
        own, ours = session(model / file), session(model / native_file(file), optimize=False)
        ways: Ways = {"onnxruntime": lambda own=own, file=file: own.run(None, inputs[file])}  # type: ignore[misc]
        if file == VOCODER_FILE:
            ways["onnxruntime, in pieces"] = pieced(model, features)
        for bits, name in ((256, "AVX2"), (512, "AVX-512")):
            if bits <= vectors:
                ways[f"native, {name}"] = lambda bits=bits, ours=ours, file=file: (  # type: ignore[misc]
                    library.mkc_fast_limit_vector_bits(bits),
                    ours.run(None, inputs[file]),
                )
        found[stage] = timed(ways, rounds)
    library.mkc_fast_limit_vector_bits(512)
    return found


def pieced(model: Path, features: np.ndarray) -> Callable[[], object]:
    graph = session(model / CPU_VOCODER_FILE)
    reach = int(graph.get_modelmeta().custom_metadata_map[PIECE_REACH])
    taken, kept = pieces(features.shape[1], os.cpu_count() or 1, reach)
    return lambda: graph.run(None, {"features": features, "pieces": taken, "kept": kept})


def timed(ways: Ways, rounds: int) -> dict[str, dict[str, float]]:
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):  # the first is to warm up
        for name in random.sample(list(ways), len(ways)):
            begin = time.perf_counter()
            ways[name]()
            if turn:
                times[name].append(time.perf_counter() - begin)
    first = median(times["onnxruntime"])
    return {
        name: {"median_s": round(median(runs), 3), "times_as_fast": round(first / median(runs), 2)}
        for name, runs in times.items()
    }


def opening(model: Path, rounds: int) -> dict[str, float]:
    """Seconds to open the three graphs, with their files in the page cache."""
    prepared = [path for name in CPU_GRAPH_FILES if (path := prepared_graph(model / name, default_cache()))]
    assert len(prepared) == len(CPU_GRAPH_FILES), "the graphs are too small to be kept"
    forms = {
        "as_exported": [model / file for file in CPU_GRAPH_FILES],
        "as_prepared": prepared,
        "native": [model / native_file(file) for file in GRAPH_FILES],
    }
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(rounds):
        for name, paths in forms.items():
            begin = time.perf_counter()
            opened = [session(path, optimize=name == "as_exported") for path in paths]
            times[name].append(time.perf_counter() - begin)
            del opened
    return {f"{name}_s": round(median(runs), 3) for name, runs in times.items()}


def memory(model: Path, how: str) -> dict[str, float]:
    """Proportional set size: a page that two processes share counts half in each."""
    command = [sys.executable, "-c", HOLD, str(model), str(read_model_info(model).dim), how]
    held: list[subprocess.Popen[str]] = []
    found = {}
    for count in ("one_process_mb", "two_processes_mb"):
        held.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        assert held[-1].stdout is not None
        assert held[-1].stdout.readline().strip() == "ready"
        found[count] = round(sum(memory_mb(process.pid)["pss_mb"] for process in held))
    for process in held:
        process.communicate()
    return {**found, "second_adds_mb": found["two_processes_mb"] - found["one_process_mb"]}


if __name__ == "__main__":
    main()
