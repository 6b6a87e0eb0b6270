"""Graphs as ONNX Runtime prepares them for one CPU, kept in a cache folder: fused, weights packed, mapped when opened.

Opening a graph of 1 GB costs ONNX Runtime two copies of its weights: one out of the file, one into the order in which
its matrix product reads them, in every process. Both can be kept in a file beside the graph, which is then mapped, so
that worker processes share one copy of it, too (benchmarks/results/cpu_graphs.json).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from pathlib import Path

from mkc_fast.engine.atomic_files import atomic_directory, cached_object, discard, holds_regular_files, locked
from mkc_fast.onnx_runtime import ort

# Below, a graph is opened in less time than it takes to look for what was kept of it.
_LEAST_BYTES = 32 << 20
# Says which graph a folder was made from, and the sizes of its files.
_SOURCE_FILE = "source.json"
# Smaller weights stay inside the graph.
_LEAST_WEIGHT_BYTES = 1024


def prepared_graph(path: Path, cache: Path, *, least_bytes: int = _LEAST_BYTES) -> Path | None:
    """The prepared form of a graph, made if it is not there; None where the graph is small or nothing can be kept.

    Args:
        path: The graph, with its weights inside.
        cache: The folder; what was kept there of a graph that has changed since, or is gone, is removed.
        least_bytes: Of a graph that is worth it.
    """
    try:
        path = path.resolve()
        status = path.stat()
        if status.st_size < least_bytes:
            return None
        # Not by a digest of its content: to read it takes as long as is to be gained.
        identity = [str(path), status.st_size, status.st_mtime_ns, status.st_ino]
        folder = cache / "cpu" / f"{_digest(str(path))}-{_digest(identity, ort.__version__, _cpu())}"
        if not _is_whole(folder, path.name):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with locked(folder.parent / "lock"):
                if not _is_whole(folder, path.name):
                    discard(folder)
                    _remove_outdated(folder)
                    _prepare(path, folder)
    except Exception:  # ONNX Runtime's errors share no base but this
        return None  # no room, no permission, or a graph that it refuses: who opens that will say so
    return folder / path.name


def _is_whole(folder: Path, name: str) -> bool:
    """Whether what is kept has the files that it was made with, each of its size."""
    if not holds_regular_files(folder):
        return False
    sizes = cached_object(folder / _SOURCE_FILE).get("sizes")
    return isinstance(sizes, dict) and name in sizes and sizes == _sizes(folder)


def _sizes(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in folder.iterdir() if file.name != _SOURCE_FILE}


def _source_of(folder: Path) -> str | None:
    source = cached_object(folder / _SOURCE_FILE).get("source")
    return source if isinstance(source, str) else None


def _prepare(path: Path, folder: Path) -> None:
    """Let ONNX Runtime optimize a graph and pack its weights, and keep what it made."""
    with atomic_directory(folder) as temporary:
        options = ort.SessionOptions()
        # 3: errors. It warns that the graph is for this CPU only, which the folder's name takes care of.
        options.log_severity_level = 3
        options.enable_cpu_mem_arena = False
        options.optimized_model_filepath = str(temporary / path.name)
        for name, value in {
            "session.optimized_model_external_initializers_file_name": f"{path.name}.data",
            "session.optimized_model_external_initializers_min_size_in_bytes": str(_LEAST_WEIGHT_BYTES),
            "session.save_external_prepacked_constant_initializers": "1",
        }.items():
            options.add_session_config_entry(name, value)
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        said = {"source": str(path), "sizes": _sizes(temporary)}
        (temporary / _SOURCE_FILE).write_text(json.dumps(said), encoding="utf-8")


def _remove_outdated(folder: Path) -> None:
    """Remove what is kept of the same file's earlier contents or of files that are gone, and what killed ones left."""
    prefix = folder.name.partition("-")[0]
    for other in folder.parent.iterdir():
        same = other.name.startswith((f"{prefix}-", f".{prefix}-"))
        source = None if same else _source_of(other)
        if same or (source is not None and not Path(source).exists()):
            shutil.rmtree(other, ignore_errors=True)


def _cpu() -> list[str]:
    """What a choice of kernels may depend on: the CPU's model and instruction sets, and how many cores there are."""
    found = [platform.machine(), platform.processor(), str(os.cpu_count())]
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return found
    return found + sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]
