"""The native operators compared with those of ONNX Runtime, by width: vocoders, WavLM and conformers.

python -m mkc_fast.benchmarks.widths [--widths 2,4,...] [--channels 16,...] [--dims 64,...] [--budget-s 0.2] [--quick]

Writes results/widths.json. ``blocks``: the residual blocks of one stage of a width, by either native operator and as
standard operators, in one dimension (as in vocoder.onnx) and in pieces (as in vocoder.cpu.onnx); all in turn, in one
process. ``vocoders``: whole exported vocoders, by ``upsample_initial_channel``. ``encoders``: WavLM and conformers of
few dimensions. Other processes only make a run slower, so ways are compared by their fastest run, and again by the
processor time of the one that took least, which others hardly add to; medians stand beside them. ``least`` holds the
smallest ratio of all cases.
"""

from __future__ import annotations

import ctypes
import os
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from mkc_fast.benchmarks.common import result_parser, write_result
from mkc_fast.engine.artifacts import CPU_VOCODER_FILE, PIECE_REACH, native_file
from mkc_fast.engine.windows import pieces
from mkc_fast.export import export_model
from mkc_fast.export.graphs.native import DIRECT, WINOGRAD, blocks_operator
from mkc_fast.export.graphs.packing import PANEL, pack_convolution, pack_winograd
from mkc_fast.export.random_checkpoints import write_voice, write_wavlm
from mkc_fast.kernels.cpu.loader import DOMAIN, native_library, register
from mkc_fast.names import CONFORMER_FILE, VOCODER_FILE, WAVLM_FILE
from mkc_fast.onnx_runtime import ort

if TYPE_CHECKING:
    from collections.abc import Callable

    Ways = dict[str, Callable[[], object]]

# What is measured by default, and by --quick.
FULL: dict[str, Any] = {
    "widths": (2, 4, 8, 12, 16, 20, 24, 32, 48, 64, 96, 128, 256, 512),
    "channels": (16, 32, 64, 128, 256, 512),
    "dims": (64, 128, 256),
    "budget_s": 0.2,
}
QUICK: dict[str, Any] = {"widths": (8,), "channels": (16,), "dims": (64,), "budget_s": 0.0}
# Above this width the direct operator has always been the slower one.
WIDEST_DIRECT = 64
KERNELS, DILATIONS, SLOPE = (3, 7, 11), (1, 3, 5), 0.1
SECONDS = (0.5, 2.0, 10.0)
PLAIN, PIECED = "onnxruntime", "onnxruntime, in pieces"
VECTORS = {512: "AVX-512", 256: "AVX2"}


def main() -> None:
    parser = result_parser(__doc__, "widths")
    parser.add_argument("--widths", type=numbers, help="of the stages measured alone")
    parser.add_argument("--channels", type=numbers, help="of the whole vocoders")
    parser.add_argument("--dims", type=numbers, help="of WavLM and the conformer")
    parser.add_argument("--budget-s", type=float, help="seconds for each case; each way runs three times at least")
    parser.add_argument("--quick", action="store_true", help="one small size of each, three runs, to see that it works")
    args = parser.parse_args()
    if native_library() is None:
        raise SystemExit("the native operators are not built here")
    given = {name: value for name in FULL if (value := getattr(args, name)) is not None}
    effort = {**(QUICK if args.quick else FULL), **given}
    budget_s = effort["budget_s"]
    result: dict[str, Any] = {
        "load_average": round(os.getloadavg()[0], 2),
        "blocks": [],
        "vocoders": [],
        "encoders": [],
    }
    for case in cases(effort["widths"]):
        result["blocks"].append(measured_blocks(case, budget_s))
        show(result["blocks"][-1])
    for channels in effort["channels"]:
        for found in measured_vocoder(channels, budget_s):
            result["vocoders"].append(found)
            show(found)
    for dim in effort["dims"]:
        for found in measured_encoders(dim, budget_s):
            result["encoders"].append(found)
            show(found)
    result["least"] = {
        kind: {
            label: min((case[label] for case in result[kind]), default=None)
            for label in ("times_as_fast", "processor_times_as_fast")
        }
        for kind in ("blocks", "vocoders", "encoders")
    }
    print(result["least"])
    write_result(args.out, result)


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)


def show(found: dict[str, Any]) -> None:
    said = " ".join(str(value) for name, value in found.items() if name != "ms")
    print(
        said, *(f"| {name} {run['least']:.3f} {run['processor']:.3f}" for name, run in found["ms"].items()), flush=True
    )


@dataclass(frozen=True)
class Case:
    """The residual blocks of a stage: ``resblock`` "1" or "2", and how many samples they get from how many threads."""

    width: int
    samples: int
    threads: int = 2
    kernels: tuple[int, ...] = KERNELS
    resblock: str = "1"

    @property
    def dilations(self) -> tuple[int, ...]:
        return DILATIONS if self.resblock == "1" else DILATIONS[:2]

    @property
    def steps(self) -> list[list[tuple[int, int]]]:
        """Kernel and dilation of each convolution, block by block."""
        return [
            [(k, each) for d in self.dilations for each in ((d, 1) if self.resblock == "1" else (d,))]
            for k in self.kernels
        ]


def cases(widths: tuple[int, ...]) -> list[Case]:
    found = []
    for width in widths:
        # Samples a second of the stage of that width in the published vocoder.
        rate = 500 if width > 128 else 4000 if width > 64 else 8000 if width > 32 else 16000
        lengths = sorted({250, *(int(seconds * rate) for seconds in SECONDS)})
        found += [Case(width, samples, threads) for samples in lengths[:-1] for threads in (1, 2)]
        found.append(Case(width, lengths[-1]))
        typical = int(2 * rate)
        found += [Case(width, typical, kernels=(kernel,)) for kernel in KERNELS]
        found.append(Case(width, typical, kernels=(3, 5, 7), resblock="2"))
    return found


def measured_blocks(case: Case, budget_s: float) -> dict[str, Any]:
    """Milliseconds of each way, and how many times as fast the native operator is as the faster of ONNX Runtime's."""
    rng = np.random.default_rng(0)
    weights = [
        [(rng.standard_normal((case.width, case.width, k), np.float32) * np.float32(0.5 / np.sqrt(case.width * k)))
         for k, _ in steps]
        for steps in case.steps
    ]  # fmt: skip
    rows = rng.standard_normal((1, case.samples, case.width), np.float32)
    planes = np.ascontiguousarray(rows.transpose(0, 2, 1))
    reach = max(sum((k - 1) // 2 * d for k, d in steps) for steps in case.steps)
    share = -(-case.samples // case.threads) + reach  # a piece has a neighbour on one side at two threads
    cut = planes[:, :, : min(share, case.samples)] if case.threads > 1 else planes
    cut = np.ascontiguousarray(np.repeat(cut, case.threads, 0)[:, :, None])
    one, other = standard(case, weights, 1), standard(case, weights, 2)
    ways: Ways = {PLAIN: lambda: one.run(None, {"x": planes}), PIECED: lambda: other.run(None, {"x": cut})}
    for operator in (DIRECT, WINOGRAD) if case.width <= WIDEST_DIRECT else (WINOGRAD,):
        session = native(case, weights, operator)
        for bits, name in sets():
            ways[f"{operator}, {name}"] = limited(bits, session, {"x": rows})
    found = timed(ways, budget_s)
    chosen = blocks_operator(case.width)
    return {
        "width": case.width, "samples": case.samples, "threads": case.threads, "kernels": list(case.kernels),
        "resblock": case.resblock, "operator": chosen, **compared(found, chosen), "ms": found,
    }  # fmt: skip


def compared(found: dict[str, dict[str, float]], way: str) -> dict[str, float]:
    """How many times as fast the native way is as the faster of ONNX Runtime's, which always has the best set."""
    told = {}
    for _, name in sets():
        for label, key in (("times_as_fast", "least"), ("processor_times_as_fast", "processor")):
            own = min(found[other][key] for other in (PLAIN, PIECED) if other in found)
            told[label if name == sets()[0][1] else f"{label}_in_{name}"] = round(own / found[f"{way}, {name}"][key], 2)
    return told


def sets() -> list[tuple[int, str]]:
    vectors = ctypes.CDLL(str(native_library())).mkc_fast_vector_bits()
    return [(bits, name) for bits, name in VECTORS.items() if bits <= vectors]


def limited(bits: int, session: ort.InferenceSession, inputs: dict[str, Any]) -> Callable[[], object]:
    library = ctypes.CDLL(str(native_library()))

    def run() -> None:
        library.mkc_fast_limit_vector_bits(bits)
        session.run(None, inputs)
        library.mkc_fast_limit_vector_bits(512)

    return run


def options(threads: int) -> ort.SessionOptions:
    made = ort.SessionOptions()
    made.intra_op_num_threads = threads
    made.log_severity_level = 3
    made.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return made


def opened(nodes: list[Any], weights: dict[str, np.ndarray], shape: list[Any], threads: int, *, native: bool) -> Any:
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )  # fmt: skip
    domains = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    settings = options(threads)
    if native:
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        register(settings)
    text = helper.make_model(graph, opset_imports=domains, ir_version=10).SerializeToString()
    return ort.InferenceSession(text, settings, providers=["CPUExecutionProvider"])


def standard(case: Case, weights: list[list[np.ndarray]], rank: int) -> Any:
    """The blocks as in vocoder.onnx (rank 1) and vocoder.cpu.onnx (rank 2)."""
    nodes: list[Any] = []
    kept: dict[str, np.ndarray] = {"bias": np.full(case.width, 0.1, np.float32)}

    def add(operator: str, *inputs: str, **told: Any) -> str:
        nodes.append(helper.make_node(operator, list(inputs), [f"y{len(nodes)}"], **told))
        return str(nodes[-1].output[0])

    total = ""
    for block, (steps, tensors) in enumerate(zip(case.steps, weights, strict=True)):
        x = y = "x"
        for index, ((kernel, dilation), weight) in enumerate(zip(steps, tensors, strict=True)):
            name, padding = f"w{block}_{index}", (kernel - 1) * dilation // 2
            kept[name] = weight if rank == 1 else weight[:, :, None]
            front = [0] * (rank - 1)
            y = add(
                "Conv", add("LeakyRelu", y, alpha=SLOPE), name, "bias", dilations=[1] * (rank - 1) + [dilation],
                pads=[*front, padding, *front, padding], kernel_shape=list(kept[name].shape[2:]),
            )  # fmt: skip
            if case.resblock == "2" or index % 2:
                x = y = add("Add", x, y)
        total = add("Add", total, x) if total else x
    if len(case.kernels) == 1:
        add("Identity", total)
    shape = ["batch", case.width, *([] if rank == 1 else [1]), "samples"]
    return opened(nodes, kept, shape, case.threads, native=False)


def native(case: Case, weights: list[list[np.ndarray]], operator: str) -> Any:
    packing = pack_winograd if operator == WINOGRAD else pack_convolution
    flat = [weight for tensors in weights for weight in tensors]
    kept = {
        "w": np.concatenate([packing(weight).reshape(-1) for weight in flat]),
        "b": np.pad(np.full((len(flat), case.width), 0.1, np.float32), ((0, 0), (0, -case.width % PANEL))),
    }
    node = helper.make_node(
        operator, ["x", "w", "b"], ["y"], domain=DOMAIN, kernels=list(case.kernels),
        dilations=case.dilations * len(case.kernels), plain=int(case.resblock == "1"), slope=SLOPE,
    )  # fmt: skip
    return opened([node], kept, ["batch", "samples", case.width], case.threads, native=True)


def measured_vocoder(channels: int, budget_s: float) -> list[dict[str, Any]]:
    """A whole vocoder, exported as any other, with a conformer and WavLM of the small size beside it."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        write_wavlm(home / "WavLM.pt")
        hifi = {"upsample_initial_channel": channels, "hifi_dim": channels}
        write_voice(home / "voice.pth", {"hifi_config": hifi, "conformer_num_layers": 1})
        info = export_model(home / "WavLM.pt", home / "voice.pth", home / "model", layer=1)
        for threads in (1, 2):
            plain, pieced, ours = (
                session_of(home / "model" / file, threads)
                for file in (VOCODER_FILE, CPU_VOCODER_FILE, native_file(VOCODER_FILE))
            )
            reach = int(pieced.get_modelmeta().custom_metadata_map[PIECE_REACH])
            for seconds in SECONDS:
                frames = info.frames(int(seconds * info.sample_rate))
                features = np.random.default_rng(0).standard_normal((1, frames, info.dim), np.float32)
                ways = ways_of_vocoder(plain, pieced, ours, features, reach, threads)
                times = timed(ways, budget_s)
                found.append(
                    {"channels": channels, "seconds": seconds, "threads": threads, **compared(times, "native"),
                     "ms": times}
                )  # fmt: skip
    return found


def measured_encoders(dim: int, budget_s: float) -> list[dict[str, Any]]:
    """WavLM and a conformer of so many dimensions, otherwise of the small size."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        layers = f"[({dim // 2},10,5)] + [({dim // 2},3,2)] * 4 + [({dim // 2},2,2)] * 2"
        sizes = {"encoder_embed_dim": dim, "encoder_ffn_embed_dim": 2 * dim, "conv_feature_layers": layers}
        write_wavlm(home / "WavLM.pt", sizes)
        write_voice(home / "voice.pth", {"feature_dim": dim, "ffn_dim": 2 * dim})
        info = export_model(home / "WavLM.pt", home / "voice.pth", home / "model")
        rng = np.random.default_rng(0)
        for file in (WAVLM_FILE, CONFORMER_FILE):
            for threads in (1, 2):
                plain, ours = (session_of(home / "model" / name, threads) for name in (file, native_file(file)))
                for seconds in SECONDS:
                    samples = int(seconds * info.sample_rate)
                    frames = info.frames(samples)
                    inputs = (
                        {"waveform": rng.standard_normal((1, samples), np.float32), "lengths": np.array([samples])}
                        if file == WAVLM_FILE
                        else {
                            "features": rng.standard_normal((1, frames, dim), np.float32),
                            "lengths": np.array([frames]),
                        }
                    )
                    times = timed(ways_of_encoder(plain, ours, inputs), budget_s)
                    found.append(
                        {"graph": file, "dim": dim, "seconds": seconds, "threads": threads,
                         **compared(times, "native"), "ms": times}
                    )  # fmt: skip
    return found


def ways_of_encoder(plain: Any, ours: Any, inputs: dict[str, Any]) -> Ways:
    ways: Ways = {PLAIN: lambda: plain.run(None, inputs)}
    return ways | {f"native, {name}": limited(bits, ours, inputs) for bits, name in sets()}


def session_of(path: Path, threads: int) -> Any:
    settings = options(threads)
    if ".native." in path.name:
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        register(settings)
    return ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])


def ways_of_vocoder(plain: Any, pieced: Any, ours: Any, features: np.ndarray, reach: int, threads: int) -> Ways:
    taken, kept = pieces(features.shape[1], threads, reach)
    ways: Ways = {
        PLAIN: lambda: plain.run(None, {"features": features}),
        PIECED: lambda: pieced.run(None, {"features": features, "pieces": taken, "kept": kept}),
    }
    return ways | {f"native, {name}": limited(bits, ours, {"features": features}) for bits, name in sets()}


def timed(ways: Ways, budget_s: float) -> dict[str, dict[str, float]]:
    """Milliseconds of each way's fastest run and of its median, in turn until the time is up, three times at least."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    processor: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()  # to warm up
    start, turns = time.perf_counter(), 0
    while turns < 3 or time.perf_counter() - start < budget_s:
        for name in random.sample(list(ways), len(ways)):
            begin, used = time.perf_counter(), time.process_time()
            ways[name]()
            times[name].append((time.perf_counter() - begin) * 1e3)
            processor[name].append((time.process_time() - used) * 1e3)
        turns += 1
    return {
        name: {
            "least": round(min(runs), 4),
            "median": round(median(runs), 4),
            "processor": round(min(processor[name]), 4),
        }
        for name, runs in times.items()
    }


if __name__ == "__main__":
    main()
