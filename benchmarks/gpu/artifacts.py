"""What is measured on: a model of the published size and a bank, both of random weights."""

from __future__ import annotations

import concurrent.futures
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from mkc_fast.benchmarks.gpu.bench import SEED, Bench
from mkc_fast.engine.artifacts import BankInfo, read_model_info, write_info
from mkc_fast.kernels import half_squared_norms

if TYPE_CHECKING:
    from pathlib import Path

_DIMS = {"small": 64, "base": 768, "large": 1024}
_DRAWN = 16


def make_model(folder: Path, size: str) -> None:
    """Export random weights of a size, then the half-precision graphs; runs in a process of its own."""
    from mkc_fast.export import export_model
    from mkc_fast.export.precision.half_graphs import write_half_graphs
    from mkc_fast.export.random_checkpoints import write_voice, write_wavlm

    if not (folder / "model").is_dir():
        write_wavlm(folder / "WavLM.pt", size=size)
        write_voice(folder / "conformer.pth", size=size)
        export_model(folder / "WavLM.pt", folder / "conformer.pth", folder / "model", cuda=True, cache=folder / "cache")
    info = read_model_info(folder / "model")
    write_half_graphs(folder / "model", folder / "model", info, lambda _: None)
    write_info(folder / "model", info)
    (folder / "half").touch()


def make_bank(folder: Path, entries: int, clusters: int, dim: int) -> None:
    """A bank of random centroids: 16 drawn, the others are those with their clusters rolled and scaled."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(SEED)
    drawn = rng.standard_normal((min(_DRAWN, entries), clusters, dim), np.float32)
    centroids = np.lib.format.open_memmap(folder / "centroids.npy", "w+", np.float32, (entries, clusters, dim))
    norms = np.lib.format.open_memmap(folder / "half_norms.npy", "w+", np.float64, (entries, clusters))

    def write(entry: int) -> None:
        values = np.roll(drawn[entry % len(drawn)], entry, axis=0) * np.float32(1 + entry / (2 * entries))
        centroids[entry] = values
        norms[entry] = half_squared_norms(values)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(write, range(entries)))
    none: list[list[int]] = [[]] * entries
    write_info(
        folder, BankInfo([f"spk{i}" for i in range(entries)], [clusters] * entries, [""] * entries, none, none, dim)
    )


def start_making(bench: Bench, found: dict[str, Any]) -> None:
    """Begin to export the model in a process of its own, and make the bank meanwhile."""
    begin, sizes = time.perf_counter(), bench.sizes
    if bench.model.parent == bench.work and not (bench.work / "half").exists():
        command = [sys.executable, "-m", "mkc_fast.benchmarks.gpu", "--out", os.devnull]
        command += ["--make", str(bench.work), "--size", sizes.model]
        with (bench.work / "making.log").open("wb") as log:
            # From the folder of artifacts: a clone's own folder mkc_fast is only a part of the package.
            bench.making = subprocess.Popen(command, stdout=log, stderr=log, cwd=bench.work, start_new_session=True)
    if not bench.bank.is_dir():
        make_bank(bench.bank, sizes.entries, sizes.clusters, _DIMS[sizes.model])
    found |= {"bank_s": time.perf_counter() - begin, "entries": sizes.entries, "model_size": sizes.model}
    if bench.model.parent != bench.work:
        found["model_size"] = "given"


def wait_for_model(bench: Bench, *, half: bool = False) -> float:
    """Wait until the model's graphs are there, in half precision too; the seconds that it took.

    Raises:
        RuntimeError: They were not made.
        Late: There is no time for it.
    """
    begin = time.perf_counter()
    while bench.making is not None and not is_made(bench, half=half):
        if bench.making.poll() is not None and not is_made(bench, half=half):
            said = (bench.work / "making.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise RuntimeError(f"the export ended with code {bench.making.returncode}: {' '.join(said[-1:])[:300]}")
        bench.check_time(1)
        time.sleep(0.2)
    return time.perf_counter() - begin


def is_made(bench: Bench, *, half: bool = False) -> bool:
    """Whether the model's graphs are there."""
    if bench.model.parent != bench.work:
        return True
    return (bench.work / "half").exists() or (not half and (bench.model / "model.json").exists())
