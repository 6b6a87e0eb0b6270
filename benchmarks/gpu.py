"""Everything that only a GPU can tell: correctness against the CPU path, then throughput, latency, stages, the look-up.

python -m mkc_fast.benchmarks.gpu [--device cuda:0] [--out FILE] [--work DIR] [--budget 460]

Makes a model of the published size and a bank of 1,165 entries with random weights (unless DIR has them), and writes
FILE (default: results/gpu.json) after every part, so that a run cut short keeps what it has. A part that fails is
recorded, and the next one runs. What the budget (seconds) has no room for is skipped, and said to be. The package must
be importable, with onnxruntime-gpu, cupy, torch (for export and as a rival), onnx, onnxscript, soundfile and soxr.

With --rehearse every part runs on a CPU, on small models and on the stand-ins of tests/fakes/cuda: that shows that the
script works, and nothing else.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import gc
import importlib
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mkc_fast import Anonymizer
from mkc_fast.benchmarks.common import repository, result_parser
from mkc_fast.benchmarks.records import context
from mkc_fast.engine.artifacts import BankInfo, open_bank, read_model_info, write_info
from mkc_fast.engine.audio.write import write_waveform
from mkc_fast.engine.devices import cuda_index, driver
from mkc_fast.engine.options import EngineOptions, Tuning
from mkc_fast.kernels import make_lookup
from mkc_fast.names import AUTO, CPU, CUDA, ENCODE, FP16, FP32, RESTORE, TF32, TIMED_STAGES, VOCODE

if TYPE_CHECKING:
    from collections.abc import Callable

    from mkc_fast.names import Precision, Provider

SEED = 7
# The passes' arithmetic for one second of audio at full size, in GFLOP (multiply-adds counted as 2): the floor of a
# stage is this divided by what the device does in a large matrix product.
GFLOP_PER_SECOND = {ENCODE: 14.0, RESTORE: 30.1, VOCODE: 38.6}
# Of a share of a stage's floor that is bound by memory: the look-up reads each entry of the batch once.
START_UP = """
import sys, time
begin = time.perf_counter()
import numpy as np
from mkc_fast import Anonymizer
anonymizer = Anonymizer.load(sys.argv[1], sys.argv[2], sys.argv[3])
loaded = time.perf_counter()
noise = np.random.default_rng(0).uniform(-0.1, 0.1, int(16000 * float(sys.argv[4]))).astype(np.float32)
anonymizer.anonymize(noise, seed=1, utterance_id="u")
first = time.perf_counter()
anonymizer.anonymize(noise, seed=1, utterance_id="u")
print(loaded - begin, first - begin, time.perf_counter() - first)
"""


@dataclass(frozen=True)
class Sizes:
    """How much each part does."""

    model: str = "large"
    entries: int = 1165
    clusters: int = 1024
    check_s: tuple[float, ...] = (0.4, 1.0, 3.0, 10.0)
    long_s: float = 45.0
    batches_s: tuple[float, ...] = (60, 120, 240, 480)
    precisions: tuple[Precision, ...] = (FP32, TF32, FP16)
    corpus_s: float = 1800.0
    longest_s: float = 35.0
    files_s: float = 3600.0
    latencies_s: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0)
    latency_runs: int = 60
    lookup_frames: int = 12_000
    few_entries: int = 8
    gemm: int = 8192
    copy_bytes: int = 2 << 30
    repeats: int = 10
    start_up_s: float = 10.0


REHEARSAL = Sizes(
    model="small", entries=12, clusters=32, check_s=(0.4, 1.0), long_s=9.0, batches_s=(4.0,), precisions=(FP32,),
    corpus_s=8.0, longest_s=2.0, files_s=6.0, latencies_s=(1.0,), latency_runs=2, lookup_frames=60, few_entries=2,
    gemm=64, copy_bytes=1 << 16, repeats=2, start_up_s=0.5,
)  # fmt: skip


class Machine:
    """A CUDA device through CuPy."""

    def __init__(self, device: str) -> None:
        import cupy

        self.device, self.cupy, self.torch_device, self.rehearsal = device, cupy, device, False
        cupy.cuda.Device(cuda_index(device)).use()
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.devices: list[str] = [device]
        self.provider: Provider = CUDA

    def timed(self, work: Callable[[], object], repeats: int) -> float:
        """Median seconds of the device for what ``work`` queues on ``stream``."""
        cupy = self.cupy
        seconds: list[float] = []
        with self.stream:
            for index in range(repeats + 2):
                begin, end = cupy.cuda.Event(), cupy.cuda.Event()
                begin.record(self.stream)
                work()
                end.record(self.stream)
                end.synchronize()
                if index >= 2:
                    seconds.append(cupy.cuda.get_elapsed_time(begin, end) / 1000)
        return statistics.median(seconds)

    def put(self, values: np.ndarray) -> Any:
        with self.stream:
            array = self.cupy.asarray(values)
        self.stream.synchronize()
        return array

    def matmul(self, left: Any, right: Any) -> Any:
        return left @ right

    def free_bytes(self) -> int:
        return int(self.cupy.cuda.runtime.memGetInfo()[0])


class Rehearsal(Machine):
    """The stand-ins of the tests, which only a clone has; its timings mean nothing."""

    def __init__(self) -> None:
        root = repository()
        if root is None:
            raise SystemExit("--rehearse needs a clone as the working directory: it runs on the stand-ins of its tests")
        sys.path.insert(0, str(root))
        import pytest

        fake_gpu = importlib.import_module("tests.fakes.cuda.fake_gpu")
        self.patch = pytest.MonkeyPatch()
        self.gpu = fake_gpu.install(self.patch, schedule=0)
        self.device, self.cupy, self.torch_device, self.rehearsal = "cuda:0", self.gpu.cupy, CPU, True
        self.stream = self.cupy.cuda.Stream(non_blocking=True)
        self.devices, self.provider = [CPU], AUTO

    def timed(self, work: Callable[[], object], repeats: int) -> float:
        seconds = []
        with self.stream:
            for _ in range(repeats):
                begin = time.perf_counter()
                work()
                self.stream.synchronize()
                seconds.append(time.perf_counter() - begin)
        return statistics.median(seconds)

    def matmul(self, left: Any, right: Any) -> Any:
        return left.host @ right.host

    def free_bytes(self) -> int:
        return 0


class Late(Exception):
    """The budget has no room for more."""


@dataclass
class Bench:
    """What the parts share."""

    machine: Machine
    sizes: Sizes
    work: Path
    making: subprocess.Popen[bytes] | None = None
    result: dict[str, Any] = field(default_factory=dict)
    deadline: float = math.inf

    def check_time(self, least_s: float) -> None:
        """Stop where there are no more so many seconds."""
        left = self.deadline - time.perf_counter()
        if left < least_s:
            raise Late(f"{left:.0f} s are left of the budget, {least_s:g} are needed")

    @property
    def model(self) -> Path:
        return self.work / "model"

    @property
    def bank(self) -> Path:
        return self.work / "bank"

    def load(self, device: str | None = None, **how: Any) -> Anonymizer:
        gc.collect()
        self.machine.cupy.get_default_memory_pool().free_all_blocks()  # what the last one held
        return Anonymizer.load(self.model, self.bank, device or self.machine.device, **how)


# ---- What is measured on ----


def make_model(folder: Path, size: str) -> None:
    """Export random weights of a size, then the half-precision graphs; runs in a process of its own."""
    from mkc_fast.export import export_model
    from mkc_fast.export.precision.half_graphs import write_half_graphs
    from mkc_fast.export.random_checkpoints import write_voice, write_wavlm

    if not (folder / "model").is_dir():
        write_wavlm(folder / "WavLM.pt", size=size)
        write_voice(folder / "conformer.pth", size=size)
        export_model(folder / "WavLM.pt", folder / "conformer.pth", folder / "model")
    info = read_model_info(folder / "model")
    write_half_graphs(folder / "model", folder / "model", info, lambda _: None)
    write_info(folder / "model", info)
    (folder / "half").touch()


def make_bank(folder: Path, entries: int, clusters: int, dim: int) -> None:
    """A bank of random centroids: 16 drawn, the others are those with their clusters rolled and scaled."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(SEED)
    drawn = rng.standard_normal((min(16, entries), clusters, dim), np.float32)
    centroids = np.lib.format.open_memmap(folder / "centroids.npy", "w+", np.float32, (entries, clusters, dim))
    norms = np.lib.format.open_memmap(folder / "half_norms.npy", "w+", np.float64, (entries, clusters))

    def write(entry: int) -> None:
        values = np.roll(drawn[entry % len(drawn)], entry, axis=0) * np.float32(1 + entry / (2 * entries))
        centroids[entry] = values
        norms[entry] = 0.5 * np.einsum("kd,kd->k", values, values, dtype=np.float64)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(write, range(entries)))
    none: list[list[int]] = [[]] * entries
    write_info(
        folder, BankInfo([f"spk{i}" for i in range(entries)], [clusters] * entries, [""] * entries, none, none, dim)
    )


def utterances(total_s: float, longest_s: float) -> list[np.ndarray]:
    """Noise with the lengths of a read corpus: most of 12 to 16 s, some of any length from 1 s up."""
    rng, made, sum_s = np.random.default_rng(SEED), [], 0.0
    noise = rng.uniform(-0.1, 0.1, int(16000 * longest_s) + 1).astype(np.float32)
    while sum_s < total_s:
        seconds = rng.uniform(1, 12) if rng.random() < 0.3 else rng.normal(14.5, 1.5)
        seconds = float(np.clip(seconds * longest_s / 35, 0.5, longest_s))
        made.append(noise[: int(16000 * seconds)] * np.float32(rng.uniform(0.5, 1)))
        sum_s += seconds
    return made


def making(bench: Bench) -> dict[str, Any]:
    begin = time.perf_counter()
    dim = {"small": 64, "base": 768, "large": 1024}[bench.sizes.model]
    bench.work.mkdir(parents=True, exist_ok=True)
    if not (bench.work / "half").exists():
        command = [sys.executable, "-m", "mkc_fast.benchmarks.gpu", "--out", os.devnull]
        command += ["--make", str(bench.work), "--size", bench.sizes.model]
        bench.making = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    if not bench.bank.is_dir():
        make_bank(bench.bank, bench.sizes.entries, bench.sizes.clusters, dim)
    return {"bank_s": time.perf_counter() - begin, "entries": bench.sizes.entries, "size": bench.sizes.model}


def wait_for(bench: Bench, name: str, most_s: float) -> float:
    begin = time.perf_counter()
    while not (bench.work / name).exists():
        if bench.making is None or bench.making.poll() is not None:
            raise RuntimeError(f"{name} was not made (exit code {bench.making.returncode if bench.making else None})")
        if time.perf_counter() - begin > most_s:
            raise RuntimeError(f"{name} was not made within {most_s:.0f} s")
        time.sleep(0.2)
    return time.perf_counter() - begin


# ---- Parts ----


def ceilings(bench: Bench) -> dict[str, Any]:
    """What the device does at best: copies, and large matrix products."""
    machine = bench.machine
    found: dict[str, Any] = {"copy_gb_per_s": copied_gb_per_s(machine, bench.sizes)}
    import torch

    size = bench.sizes.gemm
    for name, dtype in ((FP32, torch.float32), (TF32, torch.float32), (FP16, torch.float16)):
        torch.backends.cuda.matmul.allow_tf32 = name == TF32
        matrix = torch.ones((size, size), dtype=dtype, device=machine.torch_device)
        found[f"gemm_{name}_tflops"] = (
            2 * size**3 / torch_timed(machine, partial(torch.matmul, matrix, matrix), bench.sizes.repeats) / 1e12
        )
    torch.backends.cuda.matmul.allow_tf32 = False
    return found


def copied_gb_per_s(machine: Machine, sizes: Sizes) -> float:
    """Of copies from device memory to device memory, read and written."""
    source, target = (machine.put(np.zeros(sizes.copy_bytes // 4, np.float32)) for _ in range(2))
    seconds = machine.timed(lambda: target.data.copy_from_device_async(source.data, source.nbytes), sizes.repeats)
    return 2.0 * int(source.nbytes) / seconds / 1e9


def torch_timed(machine: Machine, work: Callable[[], object], repeats: int) -> float:
    """Median seconds of what PyTorch queues on its own stream."""
    import torch

    seconds = []
    for index in range(repeats + 2):
        begin = time.perf_counter()
        work()
        if not machine.rehearsal:
            torch.cuda.synchronize()
        if index >= 2:
            seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def each(operation: Callable[[Any, Any], Any], pairs: list[tuple[Any, Any]]) -> list[Any]:
    """What an operation makes of each pair."""
    return [operation(left, right) for left, right in pairs]


def lookup(bench: Bench) -> dict[str, Any]:
    """The look-up in both regimes, against copying the entries it reads, cuBLAS, and cdist and argmin in PyTorch."""
    import torch

    def nearest(frames: Any, centroids: Any) -> Any:
        return torch.cdist(frames, centroids).argmin(1)

    machine, sizes, bank = bench.machine, bench.sizes, open_bank(bench.bank)
    index = cuda_index(machine.device) or 0
    there = make_lookup(bank.centroids, bank.half_norms, bank.info.num_clusters, backend="cupy", device=index)
    rng, dim = np.random.default_rng(SEED), bank.info.dim
    clusters, found = bank.centroids.shape[1], {"resident": there.resident}  # type: ignore[attr-defined]
    for name, entries in (("few frames an entry", sizes.entries), ("many frames an entry", sizes.few_entries)):
        frames = sizes.lookup_frames
        host, ids = rng.standard_normal((frames, dim), np.float32), rng.integers(0, entries, frames)
        features, banks = machine.put(host), machine.put(ids.astype(np.int32))
        out = machine.put(np.zeros((frames, dim), np.float32))
        with machine.stream:
            made = there.assign_device(features, banks, out=out, stream=machine.stream).get()  # type: ignore[attr-defined]
        some = rng.permutation(frames)[:200]
        cpu = make_lookup(bank.centroids, bank.half_norms, bank.info.num_clusters).assign(host[some], ids[some])

        def assign(features: Any = features, banks: Any = banks, out: Any = out) -> None:
            there.assign_device(features, banks, out=out, stream=machine.stream)  # type: ignore[attr-defined]

        seconds = machine.timed(assign, sizes.repeats)
        touched = len(np.unique(ids))
        read_bytes, flop = touched * clusters * dim * 4, 2 * frames * clusters * dim
        part: dict[str, Any] = {
            "frames": frames, "entries": touched, "seconds": seconds, "frames_per_s": frames / seconds,
            "ids_equal_the_cpus": bool((made[some] == cpu).all()), "gb_per_s_of_entries": read_bytes / seconds / 1e9,
            "tflops": flop / seconds / 1e12,
        }  # fmt: skip
        groups = [np.flatnonzero(ids == entry) for entry in np.unique(ids)]
        chosen = groups[: min(len(groups), 64)]  # the rivals are timed on so many entries
        share = sum(map(len, chosen)) / frames
        parts = [(machine.put(host[g]), machine.put(np.ascontiguousarray(bank.centroids[ids[g[0]]].T))) for g in chosen]
        part["cublas_products_alone_s"] = machine.timed(partial(each, machine.matmul, parts), sizes.repeats) / share
        del parts
        where = machine.torch_device
        tensors = [
            (torch.from_numpy(host[g]).to(where), torch.from_numpy(np.array(bank.centroids[ids[g[0]]])).to(where))
            for g in chosen
        ]
        part["torch_cdist_argmin_s"] = torch_timed(machine, partial(each, nearest, tensors), sizes.repeats) / share
        found[name] = part
    return found


def correctness(bench: Bench) -> dict[str, Any]:
    """The pass in fp32 against the CPU's: ids, samples, alone, in a batch, and longer than a window."""
    sizes, waited = bench.sizes, wait_for(bench, "model/model.json", 240)
    rng = np.random.default_rng(SEED)
    there, cpu = bench.load(provider=bench.machine.provider, max_window_s=8), bench.load(CPU, max_window_s=8)
    waveforms = [rng.uniform(-0.1, 0.1, int(16000 * s)).astype(np.float32) for s in (*sizes.check_s, sizes.long_s)]
    names = [f"u{index}" for index in range(len(waveforms))]
    expected = [cpu.anonymize(w, seed=SEED, utterance_id=n) for w, n in zip(waveforms, names, strict=True)]
    rows: list[dict[str, Any]] = []
    runs = {
        "alone": [there.anonymize(w, seed=SEED, utterance_id=n) for w, n in zip(waveforms, names, strict=True)],
        "in a batch": there.anonymize_batch(waveforms, seed=SEED, utterance_ids=names, batch_s=1e9),
    }
    for how, results in runs.items():
        for waveform, found, wanted in zip(waveforms, results, expected, strict=True):
            rows.append({
                "how": how, "seconds": len(waveform) / 16000,
                "bank_ids_equal": bool((found.bank_ids == wanted.bank_ids).all()),
                "cluster_ids_differ": int((found.cluster_ids != wanted.cluster_ids).sum()),
                "frames": len(wanted.cluster_ids), "max_error": float(np.abs(found.waveform - wanted.waveform).max()),
            })  # fmt: skip
    features = cpu.encode(waveforms[1])
    banks = rng.integers(0, sizes.entries, len(features))
    return {
        "waited_for_export_s": waited,
        "chosen": there.chosen,
        "passes": all(not row["cluster_ids_differ"] and row["max_error"] <= 1e-4 for row in rows),
        "lookup_of_the_same_features_equal": bool((there.assign(features, banks) == cpu.assign(features, banks)).all()),
        "features_max_error": float(np.abs(there.encode(waveforms[1]) - features).max()),
        "rows": rows,
    }


def throughput(bench: Bench) -> dict[str, Any]:
    """Memory to memory, one batch behind the other on the device: RTFx by batch and precision."""
    sizes = bench.sizes
    found: dict[str, Any] = {}
    if bench.making is not None and FP16 in sizes.precisions:
        found["waited_for_half_s"] = wait_for(bench, "half", 180)
    waveforms = utterances(sizes.corpus_s, sizes.longest_s)
    variants: list[tuple[str, Tuning]] = [(precision, Tuning()) for precision in sizes.precisions]
    variants += [(sizes.precisions[-1], Tuning(prefer_nhwc=True))]
    for precision, tuning in variants:
        name = precision + (" nhwc" if tuning.prefer_nhwc else "")
        try:
            bench.check_time(20)
            found[name] = _throughput(bench, waveforms, precision, tuning)
        except Late as late:
            found[name] = {"skipped": str(late)}
        except Exception as error:  # the others are still worth having
            found[name] = {"failed": f"{type(error).__name__}: {error}"[:400]}
        bench.result["throughput so far"] = found
        write(bench)
    bench.result.pop("throughput so far", None)
    return found


def _throughput(bench: Bench, waveforms: list[np.ndarray], precision: str, tuning: Tuning) -> dict[str, Any]:
    free = bench.machine.free_bytes()
    begin = time.perf_counter()
    anonymizer = bench.load(provider=bench.machine.provider, precision=precision, tuning=tuning)
    found: dict[str, Any] = {"load_s": time.perf_counter() - begin}
    for batch_s in bench.sizes.batches_s if not tuning.prefer_nhwc else bench.sizes.batches_s[-2:-1]:
        waves = sorted(waveforms, key=len, reverse=True)
        names = [f"u{index}" for index in range(len(waves))]
        some = slice(max(1, len(waves) // 4))
        anonymizer.anonymize_batch(waves[some], seed=SEED, utterance_ids=names[some], batch_s=batch_s)
        begin = time.perf_counter()
        results = anonymizer.anonymize_batch(waves, seed=SEED, utterance_ids=names, batch_s=batch_s)
        seconds = time.perf_counter() - begin
        audio_s = sum(map(len, waves)) / 16000
        stages = {stage: sum(result.stage_seconds[stage] for result in results) for stage in TIMED_STAGES}
        found[f"batches of {batch_s:g} s"] = {
            "rtfx": audio_s / seconds, "device_busy": sum(stages.values()) / seconds,
            "stage_share": {stage: value / sum(stages.values()) for stage, value in stages.items()},
            "stage_s_per_audio_s": {stage: value / audio_s for stage, value in stages.items()},
            "utterances": len(waves), "audio_s": audio_s,
        }  # fmt: skip
    found["device_gb"] = (free - bench.machine.free_bytes()) / 1e9
    return found


def floors(bench: Bench) -> dict[str, Any]:
    """Each stage's time beside what its arithmetic, or the memory that it reads, takes at the ceilings."""
    top, runs = bench.result["ceilings"], bench.result["throughput"]
    found: dict[str, Any] = {}
    for precision in bench.sizes.precisions:
        tflops = top[f"gemm_{precision}_tflops"]
        for batch, run in runs.get(precision, {}).items():
            if not batch.startswith("batches"):
                continue
            took = run["stage_s_per_audio_s"]
            found[f"{precision}, {batch}"] = {
                stage: {"seconds": took[stage], "floor": floor, "floor_of_time": floor / took[stage]}
                for stage, floor in ((stage, gflop / 1e3 / tflops) for stage, gflop in GFLOP_PER_SECOND.items())
            }
    return found


def latency(bench: Bench) -> dict[str, Any]:
    """One utterance from host memory to host memory, with launches and with recorded CUDA graphs."""
    buckets = bench.sizes.latencies_s
    ways = (("launches", (), None), ("CUDA graphs", buckets, "HEURISTIC"))
    return _latencies(bench, [(precision, *way) for precision in bench.sizes.precisions[::-2] for way in ways])


def latency_searched(bench: Bench) -> dict[str, Any]:
    """The same with the search for convolutions that fixed shapes get by default; it may take minutes."""
    return _latencies(bench, [(bench.sizes.precisions[-1], "CUDA graphs", bench.sizes.latencies_s, "EXHAUSTIVE")])


def _latencies(bench: Bench, variants: list[tuple[str, str, tuple[float, ...], str | None]]) -> dict[str, Any]:
    sizes = bench.sizes
    found: dict[str, Any] = {}
    for precision, how, buckets, search in variants:
        name = f"{precision}, {how}"
        try:
            bench.check_time(30)
            begin = time.perf_counter()
            anonymizer = bench.load(
                provider=bench.machine.provider,
                precision=precision,
                latency_buckets_s=buckets,
                tuning=Tuning(conv_search=search),
            )
            found[name] = {"load_s": time.perf_counter() - begin}
            for seconds in sizes.latencies_s:
                found[name][f"{seconds:g} s"] = _latency(anonymizer, seconds, sizes.latency_runs)
            del anonymizer
        except Late as late:
            found[name] = {"skipped": str(late)}
        except Exception as error:
            found[name] = {"failed": f"{type(error).__name__}: {error}"[:400]}
        bench.result["latency so far"] = found
        write(bench)
    bench.result.pop("latency so far", None)
    return found


def _latency(anonymizer: Anonymizer, seconds: float, runs: int) -> dict[str, float]:
    waveform = np.random.default_rng(SEED).uniform(-0.1, 0.1, int(16000 * seconds)).astype(np.float32)
    took, stages = [], dict.fromkeys(TIMED_STAGES, 0.0)
    for index in range(runs + max(1, runs // 5)):
        begin = time.perf_counter()
        result = anonymizer.anonymize(waveform, seed=index, utterance_id="u")
        if index >= max(1, runs // 5):
            took.append(1000 * (time.perf_counter() - begin))
            stages = {stage: value + 1000 * result.stage_seconds[stage] / runs for stage, value in stages.items()}
    p50, p95, p99 = np.percentile(took, [50, 95, 99])
    return {"p50_ms": p50, "p95_ms": p95, "p99_ms": p99, **{f"{stage}_ms": value for stage, value in stages.items()}}


def start_up(bench: Bench) -> dict[str, Any]:
    """A new process until its first output, and the output after it."""
    device = bench.machine.devices[0]
    command = [sys.executable, "-c", START_UP, str(bench.model), str(bench.bank), device, str(bench.sizes.start_up_s)]
    found = []
    for _ in range(2):  # the second finds compiled kernels and the bank in the page cache
        begin = time.perf_counter()
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
        wall = time.perf_counter() - begin
        if run.returncode:
            raise RuntimeError(run.stderr[-400:])
        loaded, first, again = map(float, run.stdout.split())
        found.append({"process_s": wall, "loaded_s": loaded, "first_output_s": first, "next_output_s": again})
    return {"runs": found, "peak_rss_gb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6}


def files(bench: Bench) -> dict[str, Any]:
    """Files to files, as ``mkc-fast infer`` does it: one process on the device, and two."""
    from mkc_fast.engine.corpus.outputs import plan_folder
    from mkc_fast.engine.corpus.protocol import Settings
    from mkc_fast.engine.corpus.run import Run, run_corpus
    from mkc_fast.engine.datasets.dataset import Utterance

    sizes, source, listed = bench.sizes, bench.work / "files", []
    source.mkdir(exist_ok=True)
    for index, waveform in enumerate(utterances(sizes.files_s, sizes.longest_s)):
        path = source / f"u{index}.wav"
        write_waveform(path, waveform, 16000)
        listed.append(Utterance(path.stem, path))
    found, precision = {}, sizes.precisions[-1]
    for processes in (1, 2):
        with tempfile.TemporaryDirectory(dir=bench.work) as out:
            settings = Settings(seed=SEED)
            folder = plan_folder(listed, Path(out), Path(out), settings)
            options = EngineOptions(provider=bench.machine.provider, precision=precision)
            run = Run([folder], bench.model, bench.bank, settings, bench.machine.devices, processes, options)
            summary = run_corpus(run)
            found[f"{processes} processes"] = {
                "precision": precision, "rtfx": summary.rtfx, "audio_s": summary.audio_s, "wall_s": summary.wall_s,
                "start_up_s": summary.start_up_s, "failed": summary.failed[:3], "written": summary.written,
                "stage_seconds": dict(summary.stage_seconds), "chosen": summary.chosen,
            }  # fmt: skip
    return found


# In the order in which they are worth having, as far as one needs another.
PARTS: dict[str, tuple[Callable[[Bench], dict[str, Any]], float]] = {  # with the seconds that one needs at least
    "making": (making, 30),
    "ceilings": (ceilings, 10),
    "lookup": (lookup, 20),
    "correctness": (correctness, 60),
    "throughput": (throughput, 60),
    "floors": (floors, 0),
    "latency": (latency, 50),
    "files": (files, 50),
    "start_up": (start_up, 30),
    "latency_searched": (latency_searched, 60),
}


def write(bench: Bench) -> None:
    """Write what there is, atomically."""
    out: Path = bench.result["out"]
    shown = {name: value for name, value in bench.result.items() if name != "out"}
    temporary = out.with_name(f".{out.name}.tmp")
    temporary.write_text(json.dumps(shown, indent=1, default=str) + "\n")
    temporary.replace(out)


def rounded(value: Any) -> Any:
    """Four digits of every number."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.4g}") if math.isfinite(value) else str(value)
    return value


def run_parts(bench: Bench, out: Path, budget_s: float) -> dict[str, Any]:
    """Run every part that there is time for; what each found, or why it found nothing."""
    begin = time.perf_counter()
    bench.deadline = begin + budget_s
    known = context()
    known["machine"]["gpu"] = [f"{gpu.name}, {gpu.memory_bytes >> 30} GiB" for gpu in driver().gpus]
    known["driver"] = driver().version
    bench.result = {"out": out, **known, "rehearsal": bench.machine.rehearsal, "seconds": {}}
    for name, (part, least_s) in PARTS.items():
        at = time.perf_counter()
        try:
            bench.check_time(least_s)
            bench.result[name] = rounded(part(bench))
        except Late as late:
            bench.result[name] = {"skipped": str(late)}
        except Exception as error:
            where = traceback.format_exc().strip().splitlines()[-8:]
            bench.result[name] = {"failed": f"{type(error).__name__}: {error}"[:600], "where": where}
        bench.result["seconds"][name] = round(time.perf_counter() - at, 1)
        write(bench)
        state = next((word for word in ("failed", "skipped") if word in bench.result[name]), "done")
        print(f"{time.perf_counter() - begin:6.1f} s  {name}: {state}", flush=True)
    write(bench)
    return bench.result


def main() -> int:
    parser = result_parser(__doc__, "gpu")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--work", type=Path, help="a folder for model, bank and outputs (default: a temporary one)")
    parser.add_argument("--budget", type=float, default=460, help="seconds")
    parser.add_argument("--rehearse", action="store_true", help="every part, small, on a CPU")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--size", default="large", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make is not None:
        make_model(args.make, args.size)
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        machine = Rehearsal() if args.rehearse else Machine(args.device)
        bench = Bench(machine, REHEARSAL if args.rehearse else Sizes(), args.work or Path(temporary))
        args.out.parent.mkdir(parents=True, exist_ok=True)
        try:
            result = run_parts(bench, args.out, args.budget)
        finally:
            if bench.making is not None and bench.making.poll() is None:
                bench.making.kill()
    failed = [name for name in PARTS if "failed" in result[name]]
    print(f"{args.out}: {len(PARTS) - len(failed)} of {len(PARTS)} parts; failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
