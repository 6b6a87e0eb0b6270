"""How the work scales: over processes, over a batch, over cores, over memory, and (simulated) over devices.

python benchmarks/scaling.py SPEECH.flac [--model M --bank B | --size small|large] [--work DIR] [--quick]

Writes results/scaling.json and results/scaling.png. Each part supports one claim:

- workers: on a CPU, one process with all cores against one process a core (the default of ``--num-proc``), and one
  process too many. Files to files, as ``mkc-fast infer`` runs them.
- batching: on a CPU, batches do not pay (the default of ``--batch-seconds``).
- exact_batches: what it costs to give each utterance of a vocoder batch exactly what it gets alone, by windows that
  overlap (what the engine does) and by a mask before every convolution.
- host: what a core decodes and writes, with no device work at all. 16 cores have to feed a device that anonymizes at
  4,000 times real time, so a core has to reach an RTFx of 250.
- memory: what a second worker adds, and how much of the bank it shares with the first.
- dispatch: what the parent process spends on an utterance, before and while workers run.
- simulation: no measurement. What these costs come to over 1 to 64 devices on a corpus of LibriSpeech's size.

RTFx is seconds of audio a second of work; models are loaded before the clock starts. The recording is cut and repeated
into corpora by seeded draws. Files lie in the page cache: disks are not measured.
"""

from __future__ import annotations

import argparse
import gc
import heapq
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import soundfile
import soxr

from mkc_fast.benchmarks.common import program, run_timed, write_result
from mkc_fast.engine.artifacts import CENTROIDS_FILE, VOCODER_FILE, ModelInfo, read_model_info
from mkc_fast.engine.audio.read import duration_s, read_waveform
from mkc_fast.engine.audio.waveform import check_waveform
from mkc_fast.engine.audio.write import write_waveform
from mkc_fast.engine.corpus.batching import group_by_length
from mkc_fast.engine.corpus.protocol import AHEAD, Settings
from mkc_fast.engine.corpus.run import Run, plan_folder, run_corpus
from mkc_fast.engine.datasets.dataset import Utterance
from mkc_fast.engine.datasets.path_lists import read_audio_list
from mkc_fast.engine.options import EngineOptions, default_batch_s
from mkc_fast.engine.passes.windows import exact_windows

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from mkc_fast.engine.anonymizer import Anonymizer
    from mkc_fast.engine.corpus.run import Status
    from mkc_fast.onnx_runtime import ort

SEED = 7
RATE = 16_000
ENGINE = "mkc_fast.engine.anonymizer:Anonymizer"
NULL, PINNED_NULL = "null_anonymizer:NullAnonymizer", "null_anonymizer:PinnedNullAnonymizer"
DEVICE_BATCH_S = default_batch_s("cuda:0")
CORPUS_FILES, CORPUS_H = 104_014, 363.6  # train-clean-360

BATCH = 4
BATCH_LENGTHS_S = (1, 3, 10)
# As the engine cuts vocoder batches.
WINDOW_FRAMES = 500
WINDOW_SIZES = (250, 500, 1000, 1500)
WINDOW_CORPUS_FILES = (2000, CORPUS_FILES)
TOLERANCE = 1e-4

# The design's aim for a device, and what 790 TFLOP/s limit it to.
DEVICE_RTFX = {"aim": 4000.0, "limit": 9500.0}
CORES_A_DEVICE = 16
AIM_A_CORE = DEVICE_RTFX["aim"] / CORES_A_DEVICE
DEVICES = (1, 2, 4, 8, 16, 32, 64)
BATCH_FILES = round(DEVICE_BATCH_S / (CORPUS_H * 3600 / CORPUS_FILES))


@dataclass(frozen=True)
class Effort:
    """How much is measured: seconds of wall-clock time, or counts."""

    workers: tuple[int, ...]
    workers_s: float
    repeats: int
    least_rounds: int
    batching_s: float
    exact_s: float
    host_files: int
    host_repeats: int
    memory_utterance_s: float
    tiny_files: int
    planned_files: int
    tiny_workers: tuple[int, ...]


FULL = Effort((1, 2, 3), 120, 2, 2, 90, 60, 1000, 3, 6, 3000, 12_000, (1, 4, 16))
QUICK = Effort((1, 2), 8, 1, 1, 5, 5, 200, 1, 2, 600, 3000, (1, 4))


@dataclass(frozen=True)
class Setup:
    """What is measured on, and where files may go."""

    model: Path
    bank: Path
    folder: Path
    speech: NDArray[np.float32]
    effort: Effort
    cores_a_device: int

    @property
    def info(self) -> ModelInfo:
        """Of the model."""
        return read_model_info(self.model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("speech", type=Path, metavar="SPEECH.flac")
    parser.add_argument("--model", type=Path, help="exported model (with --bank)")
    parser.add_argument("--bank", type=Path, help="bank (with --model)")
    parser.add_argument("--size", choices=["small", "large"], default="small", help="random weights, without --model")
    parser.add_argument("--work", type=Path, help="a folder for artifacts and corpora (default: a temporary one)")
    parser.add_argument("--quick", action="store_true", help="a minute at size small, to see that it works")
    parser.add_argument("--cores-a-device", type=int, default=CORES_A_DEVICE, help="of the simulated machines")
    args = parser.parse_args()
    if (args.model is None) != (args.bank is None):
        parser.error("--model and --bank go together")
    if args.work:
        args.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.work) as temporary:
        model, bank = (args.model, args.bank) if args.model else make_artifacts(args.work or Path(temporary), args.size)
        speech = read_waveform(args.speech, RATE)
        effort = QUICK if args.quick else FULL
        setup = Setup(model.resolve(), bank.resolve(), Path(temporary), speech, effort, args.cores_a_device)
        result = {
            "recording": args.speech.name,
            "dim": setup.info.dim,
            "quick": args.quick,
            "load_average": round(os.getloadavg()[0], 1),
            "results": measure(setup),
        }
    path = write_result("scaling", result)
    draw(path.with_suffix(".png"), result["results"])
    print(f"{path.name}, {path.with_suffix('.png').name}")


def make_artifacts(work: Path, size: str) -> tuple[Path, Path]:
    """Export random checkpoints of a size, unless the folder has them from before."""
    model, bank, checkpoints = work / f"model-{size}", work / f"bank-{size}", work / f"checkpoints-{size}"
    if not model.exists():
        say(f"making artifacts of size {size}")
        make = str(Path(__file__).with_name("make_checkpoints.py"))
        run_timed([sys.executable, make, str(checkpoints), "--size", size])
        ckpts = ["--wavlm-ckpt", f"{checkpoints}/WavLM.pt", "--ckpt", f"{checkpoints}/conformer.pth"]
        run_timed([program(), "export", *ckpts, "--out", str(model)])
        run_timed([program(), "bank", "build", "--kmeans-scp", f"{checkpoints}/kmeans.scp", "--out", str(bank)])
    return model, bank


def measure(setup: Setup) -> dict[str, Any]:
    """All parts, one after the other."""
    result: dict[str, Any] = {}
    result["batching"] = timed("batching", lambda: measure_batching(setup))
    result["exact_batches"] = timed("exact_batches", lambda: measure_exact_batches(setup))
    gc.collect()
    alone = result["batching"]["lengths"][-1]["alone_rtfx"]
    result["workers"] = timed("workers", lambda: measure_workers(setup, alone))
    result["memory"] = timed("memory", lambda: measure_memory(setup, alone))
    result["host"] = timed("host", lambda: measure_host(setup))
    result["dispatch"] = timed("dispatch", lambda: measure_dispatch(setup))
    best = max(run["rtfx"] for run in result["workers"]["counts"])
    result["simulation"] = timed("simulation", lambda: simulate_corpus(setup, result, best))
    return result


def timed(name: str, part: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A part's result, with how long it took to get."""
    say(f"{name} ...")
    begin = time.perf_counter()
    result = part()
    seconds = round(time.perf_counter() - begin, 1)
    say(f"{name}: {seconds} s")
    return {"measuring_s": seconds, **result}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def short(value: float) -> float:
    """To three significant digits."""
    return float(f"{value:.3g}")


def alternate(arms: Mapping[str, Callable[[], object]], budget_s: float, least: int, most: int = 5) -> dict[str, float]:
    """Median seconds of each arm. They run in turn, A B A B, after one run each that does not count.

    There are ``least`` rounds, and further ones while the budget lasts; one, if that first run has already used it up.
    """
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    begin = time.perf_counter()
    for arm in arms.values():
        arm()
    for count in range(most):
        spent = time.perf_counter() - begin
        if count >= (1 if spent > budget_s else least) and spent * (count + 2) / (count + 1) > budget_s:
            break
        for name, arm in arms.items():
            start = time.perf_counter()
            arm()
            seconds[name].append(time.perf_counter() - start)
    return {name: median(each) for name, each in seconds.items()}


# Corpora


def draw_lengths(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Lengths in seconds shaped like LibriSpeech's: most near 15 s, a third below 12 s, few up to 35 s, mean 12.6 s."""
    kinds = rng.choice(3, count, p=[0.35, 0.60, 0.05])
    draws = np.stack([rng.uniform(1, 12.4, count), rng.normal(15, 1.3, count), rng.uniform(17, 35, count)])
    return np.clip(draws[kinds, np.arange(count)], 1, 35)


def cut(speech: NDArray[np.float32], rng: np.random.Generator, length_s: float) -> NDArray[np.float32]:
    """A piece of the recording from a random place on, which begins anew where the recording ends."""
    samples = int(rng.integers(len(speech))) + np.arange(round(length_s * RATE))
    return speech.take(samples, mode="wrap")


def write_corpus(setup: Setup, name: str, lengths_s: Sequence[float]) -> list[Utterance]:
    """FLAC files of 16 kHz with these lengths."""
    folder, rng = setup.folder / name, np.random.default_rng(SEED)
    folder.mkdir()
    utterances = []
    for index, length_s in enumerate(lengths_s):
        path = folder / f"u{index:05d}.flac"
        soundfile.write(path, cut(setup.speech, rng, length_s), RATE)
        utterances.append(Utterance(path.stem, path))
    return utterances


# Runs of worker processes


@dataclass
class Probe:
    """Watches a run: takes CPU seconds as each worker becomes ready and at the last outcome, when all are still there.

    Attributes:
        at_end: Called with the workers' process ids at the last outcome.
        workers_cpu_s: What the workers have used in between.
        parent_cpu_s: What this process has used in between.
        ready_at: When the first worker was ready.
        work_s: From then to the last outcome.
        peak_bytes: Of each worker.
        end: What ``at_end`` returned.
    """

    files: int
    at_end: Callable[[list[int]], Any] = list
    workers_cpu_s: float = 0.0
    parent_cpu_s: float = 0.0
    ready_at: float = 0.0
    work_s: float = 0.0
    peak_bytes: list[int] = field(default_factory=list)
    end: Any = None
    _begun: dict[int, float] = field(default_factory=dict)

    def __call__(self, status: Status) -> None:
        """Take note of a status."""
        if len(self._begun) < len(status.workers):
            for worker in status.workers:
                if worker.ready_at is not None and worker.pid not in self._begun:
                    if not self._begun:
                        self.ready_at, self.parent_cpu_s = time.perf_counter(), -time.process_time()
                    self._begun[worker.pid] = cpu_s(worker.pid)
        if not self.work_s and status.summary.written + len(status.summary.failed) == self.files:
            self.work_s = time.perf_counter() - self.ready_at
            self.parent_cpu_s += time.process_time()
            self.workers_cpu_s = sum(cpu_s(pid) - before for pid, before in self._begun.items())
            self.peak_bytes = [peak_bytes(pid) for pid in self._begun]
            self.end = self.at_end(list(self._begun))


def cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def peak_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


@dataclass(frozen=True)
class Measured:
    """A run's probe, and what else is known of it."""

    probe: Probe
    files: int
    audio_s: float

    @property
    def rtfx(self) -> float:
        """From the first worker's being ready to the last file."""
        return self.audio_s / self.probe.work_s


def run_workers(
    setup: Setup,
    utterances: list[Utterance],
    count: int,
    factory: str = ENGINE,
    batch_s: float | None = None,
    at_end: Callable[[list[int]], Any] = list,
) -> Measured:
    """Anonymize utterances with so many worker processes into a fresh folder, which is removed again."""
    out, settings, probe = setup.folder / "out", Settings(seed=SEED), Probe(len(utterances), at_end)
    folder = plan_folder(utterances, out, out, settings)
    run = Run(
        [folder], setup.model, setup.bank, settings, ["cpu"], count, EngineOptions(batch_s=batch_s), factory=factory
    )
    summary = run_corpus(run, watch=probe)
    if summary.failed:
        raise SystemExit(f"failed: {summary.failed[0]}")
    shutil.rmtree(out)
    return Measured(probe, len(utterances), summary.audio_s)


# 1. Workers


def measure_workers(setup: Setup, rtfx: float) -> dict[str, Any]:
    """RTFx by the number of worker processes, and what each costs; ``rtfx`` is what to expect."""
    effort = setup.effort
    target_s = effort.workers_s * rtfx / (effort.repeats * len(effort.workers))
    drawn = draw_lengths(np.random.default_rng(SEED), 2000)
    files = max(2 * max(effort.workers), int(np.searchsorted(drawn.cumsum(), target_s)))
    utterances = write_corpus(setup, "workers", drawn[:files].tolist())
    runs: dict[int, list[Measured]] = {count: [] for count in effort.workers}
    for _ in range(effort.repeats):
        for count, each in runs.items():
            each.append(run_workers(setup, utterances, count))
    cores = len(os.sched_getaffinity(0))
    first = median(run.rtfx for run in runs[effort.workers[0]])
    counts = [
        {
            "workers": count,
            "threads_each": cores,
            "rtfx": short(median(run.rtfx for run in each)),
            "runs": [short(run.rtfx) for run in each],
            "ratio_to_1": short(median(run.rtfx for run in each) / first),
            "cpu_s_per_audio_s": short(median(run.probe.workers_cpu_s / run.audio_s for run in each)),
            "peak_gb": [short(peak / 1e9) for peak in each[-1].probe.peak_bytes],
        }
        for count, each in runs.items()
    ]
    return {
        "files": files,
        "audio_s": round(runs[effort.workers[0]][0].audio_s, 1),
        "longest_s": round(float(drawn[:files].max()), 1),
        "counts": counts,
    }


# 2. Batches


def measure_batching(setup: Setup) -> dict[str, Any]:
    """RTFx of utterances alone and of batches of them, in this process."""
    from mkc_fast.engine.anonymizer import Anonymizer

    anonymizer = Anonymizer.load(setup.model, setup.bank)
    rng, lengths = np.random.default_rng(SEED), []
    for length_s in BATCH_LENGTHS_S:
        waveforms = [cut(setup.speech, rng, length_s) for _ in range(BATCH)]
        budget_s = setup.effort.batching_s * length_s / sum(BATCH_LENGTHS_S)
        arms = {
            "alone": partial(run_batch, anonymizer, waveforms, 0.0),
            "together": partial(run_batch, anonymizer, waveforms, float("inf")),
        }
        seconds = alternate(arms, budget_s, setup.effort.least_rounds)
        lengths.append(
            {
                "length_s": length_s,
                "alone_rtfx": short(BATCH * length_s / seconds["alone"]),
                "batch_rtfx": short(BATCH * length_s / seconds["together"]),
                "batch_to_alone": short(seconds["alone"] / seconds["together"]),
            }
        )
    return {"batch": BATCH, "lengths": lengths}


def run_batch(anonymizer: Anonymizer, waveforms: list[NDArray[np.float32]], batch_s: float) -> None:
    ids = [f"u{index}" for index in range(len(waveforms))]
    anonymizer.anonymize_batch(waveforms, "frame", 1, SEED, ids, batch_s=batch_s)


def measure_exact_batches(setup: Setup) -> dict[str, Any]:
    """What exactness costs in vocoder batches: masks, and windows that overlap."""
    graph, resolutions = masked_vocoder(setup.model / VOCODER_FILE)
    plain, masked = session(str(setup.model / VOCODER_FILE)), session(graph)
    rng, dim, reach = np.random.default_rng(SEED), setup.info.dim, setup.info.vocoder_reach
    errors = check_masks(plain, masked, resolutions, rng, dim)

    counts = (WINDOW_FRAMES // 2, WINDOW_FRAMES // 2 - 50)
    features = rng.standard_normal((len(counts), counts[0], dim), np.float32)
    arms = {
        "plain": partial(plain.run, None, {"features": features}),
        "masked": partial(masked.run, None, {"features": features, **masks(resolutions, counts)}),
    }
    seconds = alternate(arms, setup.effort.exact_s / 4, setup.effort.least_rounds)
    mean_frames = round(CORPUS_H * 3600 / CORPUS_FILES * setup.info.sample_rate / setup.info.hop)
    timed_windows = {
        2 * (WINDOW_FRAMES - reach): [WINDOW_FRAMES],  # at its best: two windows are full
        mean_frames: [WINDOW_FRAMES, one_length([mean_frames], reach)],
    }
    return {
        "masks": {
            **errors,
            "frames": list(features.shape[:2]),
            "seconds": {name: short(value) for name, value in seconds.items()},
            "masked_to_plain": short(seconds["masked"] / seconds["plain"]),
        },
        "windows": {
            "reach_frames": reach,
            "overlap_alone": short(WINDOW_FRAMES / (WINDOW_FRAMES - 2 * reach)),
            "librispeech": {str(files): window_costs(setup.info, files) for files in WINDOW_CORPUS_FILES},
            "timed": [
                row for frames, sizes in timed_windows.items() for row in time_windows(setup, plain, rng, frames, sizes)
            ],
        },
    }


def one_length(counts: Sequence[int], reach: int) -> int:
    """The length that cuts all utterances of a batch, of like length, into equally many windows, none past 500."""
    longest = max(counts)
    windows = max(2, -(-(longest - 2 * reach) // (WINDOW_FRAMES - 2 * reach)))
    return max(2 * reach + 1, -(-(longest + 2 * reach * (windows - 1)) // windows))


def window_costs(info: ModelInfo, files: int) -> dict[str, dict[str, float]]:
    """By the windows' size: frames computed for each frame kept, and vocoder runs, over LibriSpeech's lengths.

    Utterances are batched as on a GPU, so that in a large corpus those of a batch have nearly one length. Windows of
    one length run together; each further length is a further run.
    """
    lengths = draw_lengths(np.random.default_rng(SEED), files)
    frames = [info.frames(int(length_s * info.sample_rate)) for length_s in lengths]
    batches = [[frames[index] for index in group] for group in group_by_length(lengths.tolist(), DEVICE_BATCH_S)]
    reach, costs = info.vocoder_reach, {}
    for size in (*WINDOW_SIZES, None):
        computed = runs = 0
        for counts in batches:
            windows = [exact_windows(count, size or one_length(counts, reach), reach) for count in counts]
            cut_into = [window.stop - window.start for each in windows for window in each]
            computed, runs = computed + sum(cut_into), runs + len(set(cut_into))
        costs[f"windows of {size}" if size else "one length a batch"] = {
            "computed_to_kept": short(computed / sum(frames)),
            "runs_a_batch": short(runs / len(batches)),
        }
    return costs


def time_windows(
    setup: Setup,
    vocoder: ort.InferenceSession,
    rng: np.random.Generator,
    frames: int,
    sizes: Sequence[int],
) -> list[dict[str, Any]]:
    """An utterance in windows of each of these sizes, as one batch, against the whole at once."""
    whole = rng.standard_normal((1, frames, setup.info.dim), np.float32)
    arms = {"whole": partial(vocoder.run, None, {"features": whole})}
    counts = {}
    for size in sizes:
        windows = exact_windows(frames, size, setup.info.vocoder_reach)
        batched = np.concatenate([whole[:, window.start : window.stop] for window in windows])
        arms[str(size)] = partial(vocoder.run, None, {"features": batched})
        counts[size] = len(windows)
    seconds = alternate(arms, setup.effort.exact_s * 3 / 8, setup.effort.least_rounds)
    return [
        {
            "frames": frames,
            "windows": count,
            "window_frames": size,
            "computed_to_kept": short(count * size / frames),
            "seconds": {"whole": short(seconds["whole"]), "windows": short(seconds[str(size)])},
            "windows_to_whole": short(seconds[str(size)] / seconds["whole"]),
        }
        for size, count in counts.items()
    ]


def session(graph: str | bytes) -> ort.InferenceSession:
    """On the CPU, with the engine's options."""
    from mkc_fast.onnx_runtime import ort

    options = ort.SessionOptions()
    options.enable_mem_pattern = False
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def masked_vocoder(path: Path) -> tuple[bytes, list[int]]:
    """The vocoder's graph with a product with a mask before every convolution, and the resolutions of its masks.

    ``mask_<r>`` is a further input, (batch, 1, frames * r): 1 where an utterance is and 0 where it is over. A
    convolution then meets the zeros that it would itself pad the utterance with. The first one needs a mask too: the
    linear layer in front of it makes its bias of zeros.
    """
    import onnx

    model = onnx.load(path)
    resolution = {model.graph.input[0].name: 1}
    masked: dict[str, str] = {}
    nodes = []
    for node in model.graph.node:
        here = next((resolution[name] for name in node.input if name in resolution), None)
        if node.op_type in ("Conv", "ConvTranspose"):
            assert here is not None
            source = node.input[0]
            if source not in masked:
                masked[source] = f"{source}_masked"
                nodes.append(onnx.helper.make_node("Mul", [source, f"mask_{here}"], [masked[source]]))
            node.input[0] = masked[source]
        if here is not None:
            strides = next((a.ints[0] for a in node.attribute if a.name == "strides"), 1)
            resolution.update(dict.fromkeys(node.output, here * strides if node.op_type == "ConvTranspose" else here))
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    resolutions = sorted({resolution[source] for source in masked})
    for each in resolutions:
        shape: list[str | int | None] = ["batch", 1, f"frames_{each}"]
        model.graph.input.append(onnx.helper.make_tensor_value_info(f"mask_{each}", onnx.TensorProto.FLOAT, shape))
    return model.SerializeToString(), resolutions


def masks(resolutions: Sequence[int], counts: Sequence[int]) -> dict[str, NDArray[np.float32]]:
    """The masks of a batch of utterances with so many frames."""
    frames = np.arange(max(counts)) < np.array(counts)[:, None]
    return {f"mask_{each}": frames.repeat(each, axis=1)[:, None].astype(np.float32) for each in resolutions}


def check_masks(
    plain: ort.InferenceSession,
    masked: ort.InferenceSession,
    resolutions: Sequence[int],
    rng: np.random.Generator,
    dim: int,
) -> dict[str, float]:
    """Largest difference of a padded batch of two from each alone, with masks and without."""
    counts = (90, 57)
    features = np.zeros((2, max(counts), dim), np.float32)
    errors = {"error_masked": 0.0, "error_without_masks": 0.0}
    for row, count in zip(features, counts, strict=True):
        row[:count] = rng.standard_normal((count, dim), np.float32)
    found = {
        "error_masked": masked.run(None, {"features": features, **masks(resolutions, counts)})[0],
        "error_without_masks": plain.run(None, {"features": features})[0],
    }
    for index, count in enumerate(counts):
        alone = plain.run(None, {"features": features[index : index + 1, :count]})[0][0]
        for name, waveforms in found.items():
            errors[name] = max(errors[name], float(np.abs(waveforms[index, : len(alone)] - alone).max()))
    if errors["error_masked"] > TOLERANCE:
        raise SystemExit(f"the masked vocoder is wrong by {errors['error_masked']:.2g}")
    return {name: short(error) for name, error in errors.items()}


# 3. The host pipeline


@dataclass(frozen=True)
class Encoding:
    """How a corpus is stored."""

    name: str
    suffix: str
    rate: int
    channels: int


ENCODINGS = (
    Encoding("FLAC, 16 kHz mono", "flac", 16_000, 1),
    Encoding("FLAC, 44.1 kHz stereo", "flac", 44_100, 2),
    Encoding("WAV, 16 kHz mono", "wav", 16_000, 1),
)


def measure_host(setup: Setup) -> dict[str, Any]:
    """What a core reads and writes without any device work, and what takes the time."""
    # Each file is read many times under further ids: decoding costs the same, and the disk holds less.
    lengths = np.random.default_rng(SEED).uniform(2, 15, 40)
    corpora = {encoding: write_encoded(setup, encoding, lengths) for encoding in ENCODINGS}
    runs: dict[Encoding, list[Measured]] = {encoding: [] for encoding in ENCODINGS}
    for _ in range(setup.effort.host_repeats):
        for encoding, paths in corpora.items():
            # Of the encoding that takes longest, fewer files.
            files = setup.effort.host_files // encoding.channels**2
            utterances = [Utterance(f"u{index:05d}", paths[index % len(paths)]) for index in range(files)]
            runs[encoding].append(run_workers(setup, utterances, 1, PINNED_NULL, DEVICE_BATCH_S))
    cases = [host_case(setup, encoding, corpora[encoding], runs[encoding]) for encoding in ENCODINGS]
    return {
        "aim_rtfx_a_core": AIM_A_CORE,
        "aim": f"{CORES_A_DEVICE} cores feed a device at {DEVICE_RTFX['aim']:g} times real time",
        "falls_short": [case["input"] for case in cases if case["rtfx_per_worker_cpu_s"] < AIM_A_CORE],
        "cases": cases,
    }


def write_encoded(setup: Setup, encoding: Encoding, lengths_s: NDArray[np.float64]) -> list[Path]:
    """Files of these lengths in an encoding; with the faint noise of a real recording where it was resampled."""
    folder, rng = setup.folder / encoding.name.replace(" ", "_"), np.random.default_rng(SEED)
    folder.mkdir()
    paths = []
    for index, length_s in enumerate(lengths_s):
        waveform = cut(setup.speech, rng, length_s)
        if encoding.rate != RATE:
            waveform = soxr.resample(waveform, RATE, encoding.rate)
            waveform = waveform + rng.normal(0, 3e-4, len(waveform))
        channels = np.stack([np.roll(waveform, 7 * channel) * 0.9**channel for channel in range(encoding.channels)], 1)
        paths.append(folder / f"u{index:05d}.{encoding.suffix}")
        soundfile.write(paths[-1], channels, encoding.rate, subtype="PCM_16")
    return paths


def host_case(setup: Setup, encoding: Encoding, paths: list[Path], runs: list[Measured]) -> dict[str, Any]:
    """The result of an encoding."""
    a_core = median(run.audio_s / run.probe.workers_cpu_s for run in runs)
    stages = profile_host(setup, encoding, paths)
    rest = 1e6 / a_core - sum(stages.values())
    return {
        "input": encoding.name,
        "files": runs[0].files,
        "audio_s": round(runs[0].audio_s),
        "rtfx_per_worker_cpu_s": short(a_core),
        "rtfx_wall_one_core": short(median(run.rtfx for run in runs)),
        "to_aim": short(a_core / AIM_A_CORE),
        "cores_for_4000": short(DEVICE_RTFX["aim"] / a_core),
        "parent_cpu_us_per_file": short(median(run.probe.parent_cpu_s / run.files for run in runs) * 1e6),
        "worker_us_per_audio_s": {**{name: short(value) for name, value in stages.items()}, "rest": short(rest)},
    }


def profile_host(setup: Setup, encoding: Encoding, paths: list[Path]) -> dict[str, float]:
    """CPU microseconds a second of audio of each step of ``read_waveform`` and ``write_waveform``, step by step.

    What a worker takes beyond these goes into messages, queues, threads and objects.
    """
    clock, audio_s = StepClock(), 0.0
    output = setup.folder / f"profile.{encoding.suffix}"
    for path in paths:
        samples, _ = clock.step("decode", lambda: soundfile.read(path, dtype="float32", always_2d=True))  # noqa: B023
        audio_s += len(samples) / encoding.rate
        waveform = samples[:, 0]
        if encoding.channels > 1:
            waveform = clock.step("mean of channels", lambda: samples.mean(axis=1, dtype=np.float32))  # noqa: B023
        if encoding.rate != RATE:
            waveform = clock.step("resample", lambda: resample(waveform, encoding.rate))  # noqa: B023
        checked = clock.step("check", lambda: check_waveform(waveform, 1))  # noqa: B023
        output = setup.folder / f"{path.stem}.wav"
        clock.step("encode and write", lambda: write_waveform(output, checked, RATE))  # noqa: B023
        output.unlink()
    return {name: seconds / audio_s * 1e6 for name, seconds in clock.seconds.items()}


def resample(waveform: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    stream = soxr.ResampleStream(rate, RATE, 1)
    return np.concatenate([stream.resample_chunk(waveform), stream.resample_chunk(waveform[:0], last=True)])


# 4. Memory


def measure_memory(setup: Setup, rtfx: float) -> dict[str, Any]:
    """Memory of workers that have anonymized utterances in frame mode: of one alone, and of two side by side."""
    length_s = setup.effort.memory_utterance_s
    # Enough that the second worker, ready later, still finds some.
    files = max(6, int(4 * rtfx / length_s))
    utterances = write_corpus(setup, "memory", [length_s] * files)
    alone = run_workers(setup, utterances[:2], 1, at_end=lambda pids: [memory_of(setup, pid) for pid in pids])
    both = run_workers(setup, utterances, 2, at_end=lambda pids: [memory_of(setup, pid) for pid in pids])
    first, second = both.probe.end
    return {
        "utterance_s": length_s,
        "bank_mb": short((setup.bank / CENTROIDS_FILE).stat().st_size / 1e6),
        "model_mb": short(sum(file.stat().st_size for file in setup.model.iterdir()) / 1e6),
        "one_worker": alone.probe.end[0],
        "two_workers": [first, second],
        "second_worker_adds_mb": second["private_mb"],
        "bank_shared_share": short(1 - second["bank_private_mb"] / max(second["bank_rss_mb"], 1e-3)),
    }


def memory_of(setup: Setup, pid: int) -> dict[str, float]:
    """Megabytes of a process: all of it, and of it the mapped centroids.

    Pages of the bank that no other worker has touched yet count as private; they are the page cache's all the same.
    """
    total = add_up(Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines())
    lines, inside = [], False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if not line.split(" ", 1)[0].endswith(":"):
            inside = line.endswith(str(setup.bank / CENTROIDS_FILE))
        elif inside:
            lines.append(line)
    bank = add_up(lines)
    return {
        "rss_mb": short(total["Rss"]),
        "pss_mb": short(total["Pss"]),
        "shared_mb": short(total["Shared_Clean"] + total["Shared_Dirty"]),
        "private_mb": short(total["Private_Clean"] + total["Private_Dirty"]),
        "bank_rss_mb": short(bank["Rss"]),
        "bank_pss_mb": short(bank["Pss"]),
        "bank_private_mb": short(bank["Private_Clean"] + bank["Private_Dirty"]),
    }


def add_up(lines: list[str]) -> dict[str, float]:
    """Sums of the sizes in lines such as ``Rss: 12 kB``, in MB."""
    names = ("Rss", "Pss", "Shared_Clean", "Shared_Dirty", "Private_Clean", "Private_Dirty")
    sums = dict.fromkeys(names, 0.0)
    for line in lines:
        name, _, value = line.partition(":")
        if name in sums:
            sums[name] += int(value.split()[0]) * 1024 / 1e6
    return sums


# 5. What the parent spends, and the simulation


def measure_dispatch(setup: Setup) -> dict[str, Any]:
    """CPU time of the parent for each utterance, on recordings too short to cost anything."""
    frame = setup.info.min_samples
    path = setup.folder / "tiny.wav"
    soundfile.write(path, setup.speech[:frame], RATE)
    utterances = [Utterance(f"u{index:05d}", path) for index in range(setup.effort.tiny_files)]
    runs = []
    for workers in setup.effort.tiny_workers:
        for files in (1, BATCH_FILES):
            run = run_workers(setup, utterances, workers, NULL, (files + 0.5) * frame / RATE)
            runs.append(
                {
                    "workers": workers,
                    "batch_files": files,
                    "parent_us": short(run.probe.parent_cpu_s / run.files * 1e6),
                    "worker_us": short(run.probe.workers_cpu_s / run.files * 1e6),
                }
            )
    one, many = runs[-2]["parent_us"], runs[-1]["parent_us"]
    per_batch = max(0.0, (one - many) * BATCH_FILES / (BATCH_FILES - 1))
    planning = time_planning(setup)
    return {
        "files": len(utterances),
        "runs": runs,
        "parent_us_per_utterance": short(one - per_batch),
        "parent_us_per_batch": short(per_batch),
        "planning_us_per_utterance": {name: short(value) for name, value in planning.items()},
        "planning_s_librispeech": short(sum(planning.values()) * CORPUS_FILES / 1e6),
        "header_cpu_us_in_one_thread": short(time_headers(setup)),
    }


def time_planning(setup: Setup) -> dict[str, float]:
    """Wall-clock microseconds an utterance of what comes before the first worker starts."""
    clock, out = StepClock(time.perf_counter), setup.folder / "nothing"
    (recording,) = write_corpus(setup, "planning", [12.0])
    count = setup.effort.planned_files
    scp = setup.folder / "planning.scp"
    scp.write_text("".join(f"u{index:06d} {recording.path}\n" for index in range(count)))
    utterances = clock.step("read list", lambda: read_audio_list(scp))
    clock.step("plan outputs", lambda: plan_folder(utterances, out, out, Settings()))
    steps = {name: seconds / count * 1e6 for name, seconds in clock.seconds.items()}
    # What does not grow with the corpus (a digest of the seed, a process that is begun and stopped) drops out.
    fewer = count // 4
    seconds = time_to_start(setup, utterances) - time_to_start(setup, utterances[:fewer])
    return {**steps, "manifest, checks and headers": seconds / (count - fewer) * 1e6}


def time_to_start(setup: Setup, utterances: list[Utterance]) -> float:
    """Seconds until a run has begun its first worker; it is stopped then."""
    out, settings, begun = setup.folder / "nothing", Settings(seed=SEED), list[float]()
    folder = plan_folder(utterances, out, out, settings)
    run = Run([folder], setup.model, setup.bank, settings, options=EngineOptions(batch_s=DEVICE_BATCH_S), factory=NULL)
    begin = time.perf_counter()
    run_corpus(run, stopped=lambda: bool(begun), watch=lambda _: begun.append(time.perf_counter()))
    shutil.rmtree(out)
    return begun[0] - begin


def time_headers(setup: Setup) -> float:
    """CPU microseconds of reading a header, without threads."""
    utterance, count = Utterance("u", setup.folder / "planning" / "u00000.flac"), 1000
    clock = StepClock()
    clock.step("headers", lambda: [duration_s(utterance) for _ in range(count)])
    return clock.seconds["headers"] / count * 1e6


class StepClock:
    """Adds up the seconds of named steps: CPU seconds of this thread, or by another clock."""

    def __init__(self, clock: Callable[[], float] = time.thread_time) -> None:
        self.clock = clock
        self.seconds: dict[str, float] = {}

    def step(self, name: str, work: Callable[[], Any]) -> Any:
        """What ``work`` returns."""
        begin = self.clock()
        done = work()
        self.seconds[name] = self.seconds.get(name, 0.0) + self.clock() - begin
        return done


@dataclass(frozen=True)
class Costs:
    """What a simulated run costs.

    Attributes:
        device_rtfx: Of a device.
        host_rtfx: Of the cores of a device together, reading and writing.
        utterance_s: Of the parent, for an outcome.
        batch_s: Of the parent, for a batch sent.
    """

    device_rtfx: float
    host_rtfx: float
    utterance_s: float
    batch_s: float


def simulate(batches: Sequence[Sequence[float]], devices: int, costs: Costs) -> float:
    """Seconds from the first batch sent to the last outcome recorded.

    Batches go out in their order to whichever worker has fewer than ``AHEAD``; a worker's cores prepare one while its
    device computes another; the parent does one thing at a time, first come first served.
    """
    parent = 0.0
    host_free, device_free = [0.0] * devices, [0.0] * devices
    done: list[tuple[float, int, int]] = []  # when, which worker, how many utterances
    pending = iter(batches)

    def send(worker: int) -> None:
        nonlocal parent
        group = next(pending, None)
        if group is None:
            return
        parent += costs.batch_s
        audio_s = sum(group)
        host_free[worker] = max(parent, host_free[worker]) + audio_s / costs.host_rtfx
        device_free[worker] = max(host_free[worker], device_free[worker]) + audio_s / costs.device_rtfx
        heapq.heappush(done, (device_free[worker], worker, len(group)))

    for worker in [*range(devices)] * AHEAD:
        send(worker)
    while done:
        finished, worker, utterances = heapq.heappop(done)
        parent = max(parent, finished) + utterances * costs.utterance_s
        send(worker)
    return parent


def simulate_corpus(setup: Setup, measured: Mapping[str, Any], cpu_rtfx: float) -> dict[str, Any]:
    """A corpus of train-clean-360's size over 1 to 64 devices, from the costs measured above."""
    host, dispatch, cores = measured["host"], measured["dispatch"], setup.cores_a_device
    lengths = draw_lengths(np.random.default_rng(SEED), CORPUS_FILES)
    lengths *= CORPUS_H * 3600 / lengths.sum()
    a_core = host["cases"][0]["rtfx_per_worker_cpu_s"]
    parent_s = dispatch["parent_us_per_utterance"] / 1e6, dispatch["parent_us_per_batch"] / 1e6
    rates = {"this CPU, measured": cpu_rtfx, **{f"the design's {name}": rate for name, rate in DEVICE_RTFX.items()}}
    scenarios = []
    for name, rate in rates.items():
        groups = group_by_length(lengths.tolist(), 0.0 if rate == cpu_rtfx else DEVICE_BATCH_S)
        batches = [lengths[group].tolist() for group in groups]
        costs = Costs(rate, cores * a_core, *parent_s)
        limit = CORPUS_H * 3600 / (CORPUS_FILES * costs.utterance_s + len(batches) * costs.batch_s)
        seconds = {devices: simulate(batches, devices, costs) for devices in DEVICES}
        rtfx = {devices: CORPUS_H * 3600 / value for devices, value in seconds.items()}
        planned = {n: CORPUS_H * 3600 / (value + dispatch["planning_s_librispeech"]) for n, value in seconds.items()}
        needed = {case["input"]: short(rate / case["rtfx_per_worker_cpu_s"]) for case in host["cases"]}
        scenarios.append(
            {
                "device": name,
                "device_rtfx": rate,
                "rtfx_by_devices": {str(devices): short(value) for devices, value in rtfx.items()},
                "rtfx_with_planning": {str(devices): short(value) for devices, value in planned.items()},
                "devices_at_90_percent": max(n for n, value in rtfx.items() if value >= 0.9 * n * rtfx[1]),
                "parent_limit_rtfx": short(limit),
                "parent_is_full_at_devices": short(limit / min(rate, costs.host_rtfx)),
                "cores_a_device_needed": needed,
                "cores_do_not_suffice_for": [name for name, count in needed.items() if count > cores],
            }
        )
    return {
        "note": "SIMULATED from the costs measured here; there were no such devices. Loading is not counted.",
        "files": CORPUS_FILES,
        "hours": CORPUS_H,
        "order": "longest first",
        "batch_s": DEVICE_BATCH_S,
        "cores_a_device": cores,
        "host_rtfx_a_core": a_core,
        "planning_s": dispatch["planning_s_librispeech"],
        "scenarios": scenarios,
    }


# The plot

TIMES = "\N{MULTIPLICATION SIGN}"
INK, BLUE, ORANGE, GREEN, GREY = "#22313f", "#2471a3", "#d68910", "#1e8449", "#95a5a6"
LEGEND: dict[str, Any] = {"handlelength": 1.2, "columnspacing": 1.2, "handletextpad": 0.6}
STEP_COLORS = {
    "decode": BLUE,
    "mean of channels": "#5dade2",
    "resample": "#aed6f1",
    "check": "#7d3c98",
    "encode and write": ORANGE,
    "rest": GREY,
}


def draw(path: Path, results: Mapping[str, Any]) -> None:
    """Four panels."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    style: dict[Any, Any] = {
        "font.size": 10,
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": INK,
        "axes.axisbelow": True,
    }
    with rc_context(style):
        figure = Figure(figsize=(11.5, 8), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
        FigureCanvasAgg(figure)
        axes = figure.subplots(2, 2)
        draw_workers(axes[0, 0], results["workers"])
        draw_ratios(axes[0, 1], results["batching"], results["exact_batches"])
        draw_host(axes[1, 0], results["host"])
        draw_simulation(axes[1, 1], results["simulation"])
        figure.savefig(path, dpi=160)


def draw_workers(axes: Axes, result: Mapping[str, Any]) -> None:
    counts = result["counts"]
    places = range(len(counts))
    bars = axes.bar(places, [each["rtfx"] for each in counts], width=0.55, color=BLUE)
    axes.bar_label(bars, [f"{each['rtfx']:.3g}" for each in counts], label_type="center", color="white", weight="bold")
    for place, each in zip(places, counts, strict=True):
        axes.plot([place] * len(each["runs"]), each["runs"], "o", color=INK, markersize=4, alpha=0.7)
    names = [f"{n} worker{'s' * (n > 1)}\n{TIMES} {t} thread{'s' * (t > 1)}" for n, t in _shapes(counts)]
    axes.set_xticks(places, names)
    axes.set_ylabel("RTFx (s of audio / s)")
    axes.margins(y=0.12)
    axes.set_title(f"(a) Worker processes on this CPU, {result['files']} files")
    axes.grid(axis="y", alpha=0.3)


def _shapes(counts: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
    return [(each["workers"], each["threads_each"]) for each in counts]


def draw_ratios(axes: Axes, batching: Mapping[str, Any], exact: Mapping[str, Any]) -> None:
    rows = [
        (f"batch of {batching['batch']}, {each['length_s']} s\n(alone = 1)", 1 / each["batch_to_alone"], BLUE)
        for each in batching["lengths"]
    ]
    rows.append(("vocoder with masks\n(without = 1)", exact["masks"]["masked_to_plain"], ORANGE))
    rows += [
        (
            f"{each['frames']} frames in {each['windows']} {TIMES} {each['window_frames']}\n(whole = 1)",
            each["windows_to_whole"],
            GREEN,
        )
        for each in exact["windows"]["timed"]
    ]
    names, values, colors = zip(*reversed(rows), strict=True)
    bars = axes.barh(names, values, color=colors, height=0.6)
    axes.bar_label(bars, [f"{value:.2f}" for value in values], label_type="center", color="white", weight="bold")
    axes.axvline(1, color=INK, linewidth=1, linestyle="--")
    axes.margins(x=0.05)
    axes.tick_params(axis="y", labelsize=9)
    axes.set_xlabel("time, relative")
    axes.set_title("(b) Batches on this CPU, and their exactness")
    axes.grid(axis="x", alpha=0.3)


def draw_host(axes: Axes, result: Mapping[str, Any]) -> None:
    cases = list(reversed(result["cases"]))
    left = np.zeros(len(cases))
    names = [case["input"].replace(", ", "\n") for case in cases]
    for step, color in STEP_COLORS.items():
        widths = np.array([max(0.0, case["worker_us_per_audio_s"].get(step, 0.0)) / 1000 for case in cases])
        axes.barh(names, widths, left=left, color=color, height=0.55, label=step)
        left += widths
    for place, case in enumerate(cases):
        axes.annotate(f"{case['rtfx_per_worker_cpu_s']:,.0f}{TIMES}", (left[place], place), (6, 0),
                      textcoords="offset points", va="center", weight="bold")  # fmt: skip
    axes.axvline(1000 / AIM_A_CORE, color=INK, linewidth=1, linestyle="--")
    axes.annotate(f"aim: {AIM_A_CORE:.0f}{TIMES}", (1000 / AIM_A_CORE, 1.5), (-6, 0),
                  textcoords="offset points", ha="right", va="center", color=INK)  # fmt: skip
    axes.set_xlim(0, max(float(left.max()), 1000 / AIM_A_CORE) * 1.15)
    axes.set_xlabel("ms of a core for a second of audio")
    axes.set_title("(c) Reading and writing alone: RTFx of a core")
    axes.legend(fontsize=8.5, frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(0.87, 0.02), **LEGEND)
    axes.grid(axis="x", alpha=0.3)


def draw_simulation(axes: Axes, result: Mapping[str, Any]) -> None:
    shown = [each for each in result["scenarios"] if each["device_rtfx"] in DEVICE_RTFX.values()]
    for each, color in zip(shown, (BLUE, ORANGE), strict=True):
        devices = [int(count) for count in each["rtfx_by_devices"]]
        name = f"{each['device']}: {each['device_rtfx']:,.0f}{TIMES} a device"
        axes.plot(devices, [each["device_rtfx"] * n for n in devices], ":", color=color, linewidth=1)
        axes.plot(devices, list(each["rtfx_by_devices"].values()), "o-", color=color, markersize=4, label=name)
        axes.plot(devices, list(each["rtfx_with_planning"].values()), "--", color=color, linewidth=1)
    limit = shown[0]["parent_limit_rtfx"]
    axes.axhline(limit, color=INK, linewidth=1, linestyle="--")
    axes.annotate(f"the parent's limit: {limit:,.0f}{TIMES}", (1, limit), (0, 4), textcoords="offset points", color=INK)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(DEVICES, [str(count) for count in DEVICES])
    for line, name in ((":", "in proportion to the devices"), ("--", "with the planning before it")):
        axes.plot([], [], line, color=GREY, label=name)
    axes.set_xlabel("devices")
    axes.set_ylabel("RTFx")
    axes.set_title(f"(d) Simulated: {result['files']:,} files, {result['hours']} h")
    axes.legend(fontsize=9, frameon=False, loc="lower right")
    axes.grid(alpha=0.3)


if __name__ == "__main__":
    main()
