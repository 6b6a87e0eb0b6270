"""Half precision against float32, stage by stage, on recordings: errors, cluster ids, waveform SNR, file sizes.

python -m mkc_fast.benchmarks.precision MODEL BANK SPEECH... [--weights random] [--seconds 30] [--cuda mixed]

Takes the half-precision graphs of MODEL, or makes them where it has none, and writes results/precision.json. With
``--cuda mixed`` or ``--cuda fp16`` it takes the graphs that CUDA runs in that precision.

It needs no GPU: each graph runs in a form that shows every rounding to float16
(``mkc_fast.export.precision.half.rounding_shown``), since ONNX Runtime's CPU provider leaves most of them out; what
that provider makes of the graphs is given beside it. It says nothing about speed.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from rich.console import Console
from rich.table import Table

from mkc_fast import Anonymizer
from mkc_fast.benchmarks.common import result_parser, write_result
from mkc_fast.benchmarks.near_ties import joined, near_ties
from mkc_fast.engine.artifacts import read_model_info, weights_file, write_info
from mkc_fast.engine.audio.read import read_waveform
from mkc_fast.engine.sessions.providers import cuda_graph_file
from mkc_fast.export.graphs.cuda import for_cpu
from mkc_fast.export.graphs.files import save_graph
from mkc_fast.export.precision.half import half_file, rounding_shown
from mkc_fast.export.precision.half_graphs import write_half_graphs
from mkc_fast.names import AUDIO, FP16, FRAME, GRAPH_FILES, MIXED, VOCODER_FILE

if TYPE_CHECKING:
    import argparse

    from numpy.typing import NDArray

    from mkc_fast.names import Mode

MODES: tuple[Mode, ...] = (FRAME, AUDIO)
SEED = 7
# A segment of the segmental SNR, and a window of the log-spectral distance: 32 ms, as is usual for speech.
SEGMENT_S = 0.032
# Spectra are compared down to so many dB below the largest value of the recording.
_FLOOR_DB = 80.0
# Frames whose two nearest centroids are measured, to say how close decisions are.
MARGIN_FRAMES = 200


@dataclass
class Pairs:
    """What half precision and float32 make of the same input, recording after recording."""

    found: list[NDArray[np.float32]] = field(default_factory=list)
    expected: list[NDArray[np.float32]] = field(default_factory=list)

    def add(self, found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
        self.found.append(found.ravel())
        self.expected.append(expected.ravel())

    def errors(self) -> dict[str, float]:
        found, expected = np.concatenate(self.found).astype(float), np.concatenate(self.expected).astype(float)
        error = np.abs(found - expected)
        rms, power = np.sqrt((error**2).mean()), np.sqrt((expected**2).mean())
        return {
            "max_error": rounded(error.max()),
            "max_value": rounded(np.abs(expected).max()),
            "rms_error": rounded(rms),
            "rms_value": rounded(power),
            "relative_rms_error": rounded(rms / power),
        }

    def snr(self, segment: int) -> dict[str, float]:
        """Of waveforms: the ratio of all energy, and the median over segments that are not silent, in dB."""
        found, expected = np.concatenate(self.found).astype(float), np.concatenate(self.expected).astype(float)
        count = len(expected) // segment
        signal = (expected[: count * segment].reshape(count, segment) ** 2).sum(1)
        noise = ((found - expected)[: count * segment].reshape(count, segment) ** 2).sum(1)
        heard = signal > 1e-8 * signal.max()
        return {
            "snr_db": decibels((expected**2).sum(), ((found - expected) ** 2).sum()),
            "segmental_median_db": float(
                np.median([decibels(*pair) for pair in zip(signal[heard], noise[heard], strict=True)])
            ),
        }


def rounded(value: float) -> float:
    return float(f"{value:.4g}")


def decibels(signal: float, noise: float) -> float:
    return round(float(10 * np.log10(signal / max(noise, 1e-30))), 2)


def speech_parser(description: str | None, name: str, seconds: float) -> argparse.ArgumentParser:
    """Of the scripts that compare two precisions on recordings."""
    parser = result_parser(description, name)
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("bank", type=Path, metavar="BANK")
    parser.add_argument("speech", type=Path, nargs="+", metavar="SPEECH")
    parser.add_argument("--weights", default="random", help="what the weights are, for the record (default: random)")
    parser.add_argument("--seconds", type=float, default=seconds, help="of each recording that are used")
    return parser


def main() -> None:
    parser = speech_parser(__doc__, "precision", 30.0)
    parser.add_argument("--cuda", choices=(MIXED, FP16), help="the graphs for CUDA in this precision")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        halves = args.model
        if args.cuda is None and not (args.model / half_file(VOCODER_FILE)).is_file():
            halves = work / "made"
            halves.mkdir()
            write_half_graphs(args.model, halves, read_model_info(args.model), print)
        full = Anonymizer.load(args.model, args.bank)
        rate = full.info.sample_rate
        waveforms = [read_waveform(path, rate)[: int(args.seconds * rate)] for path in args.speech]
        names = [half_file(file) if args.cuda is None else cuda_graph_file(file, args.cuda) for file in GRAPH_FILES]
        shown = Anonymizer.load(model_of(args.model, halves, names, work / "shown", show=True), args.bank)
        result = {
            "note": f"weights: {args.weights}; every rounding to float16 made, sums in float32, on a CPU. "
            "No GPU was used: speed was not measured, nor what a GPU's kernels add in error. Where a cluster id "
            "differs, the conformer reads another centroid: the SNR of everything shows that, not rounding.",
            "weights": args.weights,
            "speed_measured_on_gpu": False,
            "recordings": {path.name: round(len(w) / rate, 2) for path, w in zip(args.speech, waveforms, strict=True)},
            "bank": {"entries": len(full.bank), "largest_k": int(full.bank.centroids.shape[1]), "dim": full.info.dim},
            # Of export: what each graph, and what PyTorch's float32, is off float64.
            "against_float64": {file: asdict(check) for file, check in full.info.checks.items()},
            "precision": args.cuda or FP16,
            "graphs": names,
            "files": sizes(args.model, halves, names),
            **compare(full, shown, waveforms),
        }
        del shown
        if args.cuda is None:  # the CPU has no such operators in float16
            as_read = Anonymizer.load(model_of(args.model, halves, names, work / "read", show=False), args.bank)
            result["as_the_cpu_provider_computes_them"] = isolated(full, as_read, waveforms)[0]
    show(result)
    write_result(args.out, result)


def model_of(model: Path, halves: Path, names: list[str], out: Path, *, show: bool) -> Path:
    """A model directory whose graphs are those of these names, as they are or with every rounding shown."""
    out.mkdir()
    for file, name in zip(GRAPH_FILES, names, strict=True):
        graph = for_cpu(onnx.load(halves / name))
        save_graph(rounding_shown(graph) if show else graph, out / file)
    write_info(out, read_model_info(model))
    return out


def sizes(model: Path, halves: Path, names: list[str]) -> dict[str, dict[str, float]]:
    result = {}
    for file, name in zip(GRAPH_FILES, names, strict=True):
        full = sum(path.stat().st_size for path in model.glob(f"{file}*"))
        beside = weights_file(halves / name)
        half = sum(path.stat().st_size for path in (*halves.glob(f"{name}*"), beside) if path.exists())
        result[file] = {"float32_mb": round(full / 1e6, 2), "half_mb": round(half / 1e6, 2)}
    return result


def compare(full: Anonymizer, half: Anonymizer, waveforms: list[NDArray[np.float32]]) -> dict[str, Any]:
    """All that is reported of one pair of models."""
    stages, vocoder_snr = isolated(full, half, waveforms)
    snr = {"vocoder alone, from the same restored features": vocoder_snr}
    ids: dict[str, Any] = {}
    spectral: dict[str, float] = {}
    for mode in MODES:
        same_ids, whole = Pairs(), Pairs()
        agree, agree_equal, agree_rounded, frames, ties = 0, 0, 0, 0, []
        margins: list[float] = []
        apart: list[NDArray[np.float64]] = []
        for index, waveform in enumerate(waveforms):
            expected = full.anonymize(waveform, mode=mode, seed=SEED, utterance_id=str(index))
            found = half.anonymize(waveform, mode=mode, bank_ids=expected.bank_ids)
            banks, features = expected.bank_ids, full.encode(waveform)
            frames += len(banks)
            agree += int((found.cluster_ids == expected.cluster_ids).sum())
            agree_equal += int((half.assign(features, banks) == expected.cluster_ids).sum())
            narrow = features.astype(np.float16).astype(np.float32)
            agree_rounded += int((full.assign(narrow, banks) == expected.cluster_ids).sum())
            theirs = half.encode(waveform)
            ties.append(
                near_ties(full.bank.centroids, banks, features, expected.cluster_ids, theirs, found.cluster_ids)
            )
            for frame in range(0, len(banks), max(1, len(banks) // MARGIN_FRAMES)):
                count = full.bank.info.num_clusters[banks[frame]]
                distances = np.linalg.norm(full.bank.centroids[banks[frame], :count] - features[frame], axis=1)
                first, second = np.partition(distances, 1)[:2]
                margins.append(second / first - 1)
            from_same = half.vocode(half.restore(full.lookup(banks, expected.cluster_ids)))
            same_ids.add(from_same, expected.waveform)
            apart.append(log_spectral_distances(from_same, expected.waveform, full.info.sample_rate))
            whole.add(found.waveform, expected.waveform)
        ids[mode] = {
            "frames": frames,
            "agreement": rounded(agree / frames),
            # Must be 1: equal features give equal ids.
            "agreement_from_the_same_features": rounded(agree_equal / frames),
            "agreement_from_the_same_features_rounded_to_float16": rounded(agree_rounded / frames),
            "near_ties": {
                name: rounded(value) if isinstance(value, float) else value
                for name, value in joined(ties).report().items()
            },
            "median_margin_of_the_nearest_centroid": rounded(float(np.median(margins))),
        }
        spectral[mode] = rounded(float(np.concatenate(apart).mean()))
        segment = int(SEGMENT_S * full.info.sample_rate)
        snr[f"conformer and vocoder, from the same cluster ids, {mode} mode"] = same_ids.snr(segment)
        snr[f"everything, each with its own cluster ids, {mode} mode"] = whole.snr(segment)
    return {"stages": stages, "cluster_ids": ids, "waveform_snr": snr, "log_spectral_distance_db": spectral}


def log_spectral_distances(
    found: NDArray[np.float32], expected: NDArray[np.float32], sample_rate: int
) -> NDArray[np.float64]:
    """Of two waveforms (S,): the RMS difference of their log power spectra in each window of 32 ms, in dB (W,).

    Values more than 80 dB below the largest of the expected spectra count as that.
    """
    size = int(SEGMENT_S * sample_rate)
    if len(expected) < size:
        return np.zeros(0)
    window = np.hanning(size)

    def spectra(waveform: NDArray[np.float32]) -> NDArray[np.float64]:
        frames = np.lib.stride_tricks.sliding_window_view(waveform.astype(np.float64), size)[:: size // 2]
        return np.abs(np.fft.rfft(frames * window)) ** 2

    one, two = spectra(found), spectra(expected)
    floor = max(two.max() * 10 ** (-_FLOOR_DB / 10), 1e-30)
    difference = 10 * np.log10(np.maximum(one, floor) / np.maximum(two, floor))
    distances: NDArray[np.float64] = np.sqrt((difference**2).mean(1))
    return distances


def isolated(
    full: Anonymizer, half: Anonymizer, waveforms: list[NDArray[np.float32]]
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Errors of each stage alone, given what float32 makes of the stages before it; SNR of the vocoder alone."""
    features, restored, speech = Pairs(), Pairs(), Pairs()
    for index, waveform in enumerate(waveforms):
        expected = full.anonymize(waveform, mode=FRAME, seed=SEED, utterance_id=str(index))
        features.add(half.encode(waveform), full.encode(waveform))
        quantized = full.lookup(expected.bank_ids, expected.cluster_ids)
        given = full.restore(quantized)
        restored.add(half.restore(quantized), given)
        speech.add(half.vocode(given), full.vocode(given))
    errors = {"features": features.errors(), "restored": restored.errors(), "waveform": speech.errors()}
    return errors, speech.snr(int(SEGMENT_S * full.info.sample_rate))


def show(result: dict[str, Any]) -> None:
    console = Console(width=120)
    table = Table("stage, given the same input", "relative RMS error", "max error", "max value", "on the CPU provider")
    beside = result.get("as_the_cpu_provider_computes_them")
    for stage, errors in result["stages"].items():
        cells = [errors["relative_rms_error"], errors["max_error"], errors["max_value"]]
        provider = "" if beside is None else f"{beside[stage]['relative_rms_error']:.3g}"
        table.add_row(stage, *(f"{cell:.3g}" for cell in cells), provider)
    console.print(table)
    table = Table("cluster ids", "agreement", "same features", "features rounded only", "median margin", "near ties")
    for mode, ids in result["cluster_ids"].items():
        keys = ("agreement", "agreement_from_the_same_features", "agreement_from_the_same_features_rounded_to_float16")
        shown = [f"{ids[key]:.4%}" for key in (*keys, "median_margin_of_the_nearest_centroid")]
        ties = ids["near_ties"]
        table.add_row(mode, *shown, f"{ties['ids_that_differ']}, of these {ties['not_explained']} not explained")
    console.print(table)
    table = Table("waveform", "SNR, dB", "segmental median, dB")
    for name, values in result["waveform_snr"].items():
        table.add_row(name, f"{values['snr_db']:.1f}", f"{values['segmental_median_db']:.1f}")
    console.print(table)
    table = Table("file", "float32, MB", "half, MB")
    for name, mb in result["files"].items():
        table.add_row(name, f"{mb['float32_mb']:.1f}", f"{mb['half_mb']:.1f}")
    console.print(table)
    console.print(result["note"])


if __name__ == "__main__":
    main()
