"""Opens a graph on ONNX Runtime's CUDA provider over the stubs, runs it, and counts what it calls.

``measure`` does so in a process of its own, since the stubs have to be there before ONNX Runtime looks for the real
libraries. This module is that process's program, too.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.fakes.cuda.dry_run.build import RUNTIME, Stubs
from tests.fakes.cuda.dry_run.calls import CallLog, Calls

ROOT = Path(__file__).resolve().parents[4]
CUDA = "CUDAExecutionProvider"
# Of a type, the bytes and ONNX's number.
_TYPES = {"tensor(float)": (4, 1), "tensor(float16)": (2, 10), "tensor(int64)": (8, 7), "tensor(int32)": (4, 6)}


@dataclass(frozen=True)
class Job:
    """A graph, and how it is opened and run.

    Attributes:
        graph: Path of the file.
        sizes: Of the free axes of its inputs and outputs, for each run.
        cuda_options: Of the provider, without the stream.
        fixed: Sizes of free axes that are fixed when the graph is opened, by the axis.
        attributes: Of the session's options.
        entries: Further options of the session.
        record: Run as a recorded CUDA graph, one for each of the sizes.
        memory_mb: What the device has.
    """

    graph: str
    sizes: list[dict[str, int]]
    cuda_options: dict[str, str]
    fixed: dict[str, int] = field(default_factory=dict)
    attributes: dict[str, int | bool] = field(default_factory=dict)
    entries: dict[str, str] = field(default_factory=dict)
    record: bool = False
    memory_mb: int | None = None


@dataclass(frozen=True)
class Report:
    """What became of a graph.

    Attributes:
        nodes: Operators that each provider got, by the provider's name.
        operators: Of the graph as it was optimized, also the copies between providers (``MemcpyToHost``).
        opened: What opening the session called.
        runs: What each run called.
        error: With which the last of these failed; empty if none did. A size that is computed on the device and read
            back is garbage, so that a run with such a size fails.
    """

    nodes: dict[str, Counter[str]]
    operators: Counter[str]
    opened: Calls
    runs: list[Calls]
    error: str = ""

    @property
    def memcpy_nodes(self) -> int:
        """Copies between host and device that ONNX Runtime put into the graph."""
        return sum(number for name, number in self.operators.items() if name.startswith("Memcpy"))


class DryRunError(Exception):
    """The process failed: the end of what it wrote."""


def measure(stubs: Stubs, job: Job) -> Report:
    """Open and run a graph in a process of its own.

    Raises:
        DryRunError: The graph does not open.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | stubs.environment(Path(folder, "calls"), job.memory_mb)
        command = [sys.executable, "-m", "tests.fakes.cuda.dry_run.sessions", folder]
        Path(folder, "job.json").write_text(json.dumps(asdict(job)), encoding="utf-8")
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise DryRunError(done.stderr.strip()[-2000:] or f"exit code {done.returncode}")
        said = json.loads(Path(folder, "report.json").read_text(encoding="utf-8"))
    return Report(
        {provider: Counter(nodes) for provider, nodes in said["nodes"].items()},
        Counter(said["operators"]),
        Calls.from_json(said["opened"]),
        [Calls.from_json(run) for run in said["runs"]],
        said["error"],
    )


class DeviceMemory:
    """Memory and a stream of the imagined device."""

    def __init__(self) -> None:
        self._runtime = ctypes.CDLL(RUNTIME)
        assert hasattr(self._runtime, "cuda_dry_run"), f"{RUNTIME} is the real one"
        stream = ctypes.c_void_p()
        non_blocking = 1
        assert self._runtime.cudaStreamCreateWithFlags(ctypes.byref(stream), non_blocking) == 0
        assert stream.value is not None
        self.stream: int = stream.value

    def allocate(self, size: int) -> int:
        """The address of so many bytes."""
        address = ctypes.c_void_p()
        assert self._runtime.cudaMalloc(ctypes.byref(address), ctypes.c_size_t(size)) == 0
        assert address.value is not None
        return address.value

    @staticmethod
    def fill(address: int, values: list[int], size: int) -> None:
        """Write integers of so many bytes each; it is the host's memory."""
        data = b"".join(value.to_bytes(size, "little") for value in values)
        ctypes.memmove(address, data, len(data))


def _shape(axes: list[int | str], sizes: Mapping[str, int]) -> list[int]:
    return [axis if isinstance(axis, int) else sizes[axis] for axis in axes]


def _bytes(shape: list[int], kind: str) -> int:
    total = _TYPES[kind][0]
    for size in shape:
        total *= size
    return total


def _opened(job: Job, stream: int, ort: Any) -> tuple[Any, dict[str, Counter[str]], Counter[str]]:
    import onnx

    options = ort.SessionOptions()
    for name, value in job.attributes.items():
        setattr(options, name, value)
    for name, entry in (job.entries | {"session.record_ep_graph_assignment_info": "1"}).items():
        options.add_session_config_entry(name, entry)
    for axis, size in job.fixed.items():
        options.add_free_dimension_override_by_name(axis, size)
    provider = (CUDA, job.cuda_options | {"user_compute_stream": str(stream)})
    with tempfile.TemporaryDirectory() as folder:
        # The provider's own report does not know the copies, which are put in later.
        options.optimized_model_filepath = str(Path(folder, "optimized.onnx"))
        providers = [provider, "CPUExecutionProvider"]
        session = ort.InferenceSession(job.graph, options, providers=providers, enable_fallback=0)
        optimized = onnx.load(options.optimized_model_filepath, load_external_data=False)
    assert session.get_providers()[0] == CUDA, "ONNX Runtime did not load its CUDA provider"
    nodes: dict[str, Counter[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        nodes.setdefault(part.ep_name, Counter()).update(node.op_type for node in part.get_nodes())
    return session, nodes, Counter(node.op_type for node in optimized.graph.node)


def main(folder: Path) -> None:
    """Do the job of ``job.json``, and write ``report.json``."""
    from mkc_fast.onnx_runtime import ort

    job = Job(**json.loads((folder / "job.json").read_text(encoding="utf-8")))
    ort.set_default_logger_severity(3)
    log, device = CallLog(Path(os.environ["CUDA_DRY_RUN_LOG"])), DeviceMemory()
    log.take()
    session, nodes, operators = _opened(job, device.stream, ort)
    opened, runs, error = log.take(), [], ""
    bindings: dict[str, Any] = {}
    for sizes in job.sizes:
        key = json.dumps(sizes, sort_keys=True)
        if key not in bindings:
            bindings[key] = binding = session.io_binding()
            longest = max(_shape(value.shape, sizes)[1] for value in session.get_inputs() if value.shape[1:])
            for value, bind in (
                *((value, binding.bind_input) for value in session.get_inputs()),
                *((value, binding.bind_output) for value in session.get_outputs()),
            ):
                shape = _shape(value.shape, sizes)
                address = device.allocate(_bytes(shape, value.type))
                if "int" in value.type:  # lengths: all of them are as long as they can be
                    device.fill(address, [longest] * shape[0], _TYPES[value.type][0])
                bind(value.name, "cuda", 0, _TYPES[value.type][1], shape, address)
        options = ort.RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        if job.record:
            options.add_run_config_entry("gpu_graph_id", str(list(bindings).index(key) + 1))
        log.take()
        try:
            session.run_with_iobinding(bindings[key], options)
        except Exception as failure:  # ONNX Runtime's share no base but Exception
            error = str(failure)
        runs.append(log.take().to_json())
        if error:
            break
    report = {"nodes": nodes, "operators": operators, "opened": opened.to_json(), "runs": runs, "error": error}
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
