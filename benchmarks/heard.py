"""What an attacker and a listener notice of a precision: EER and WER of each, beside SNR and cluster ids.

python -m mkc_fast.benchmarks.heard MODEL BANK DATA --asr FOLDER [--weights "what they are"] [--recordings 12]

DATA is a Kaldi data directory with utt2spk, text, enrolls and trials; FOLDER holds Whisper's files. Anonymizes all of
it in each precision and mode with one seed, and evaluates that (docs/evaluation.md). The enrolment of the lazy-informed
attacker is anonymized in float32 with another seed. Writes results/heard.json. It runs on the CPU, where ONNX Runtime
computes fp16 and keeps many values in float32.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console
from rich.table import Table

from mkc_fast import Anonymizer, EngineOptions, anonymize_corpus
from mkc_fast.benchmarks.common import result_parser, write_result
from mkc_fast.benchmarks.precision import SEED, compare
from mkc_fast.engine.audio.read import read_waveform
from mkc_fast.evaluation.choosing import Given
from mkc_fast.evaluation.measures import INTELLIGIBILITY, PRIVACY
from mkc_fast.evaluation.privacy import IGNORANT, LAZY_INFORMED, ORIGINAL
from mkc_fast.evaluation.recognizers import Whisper
from mkc_fast.evaluation.resemblyzer import Resemblyzer
from mkc_fast.evaluation.run import evaluate
from mkc_fast.names import AUDIO, CPU, FP16, FP32, FRAME, INT8, INT16, MIXED

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from mkc_fast.names import Mode, Precision

_Heard = TypeVar("_Heard")
PRECISIONS: tuple[Precision, ...] = (FP32, MIXED, INT16, INT8, FP16)
MODES: tuple[Mode, ...] = (AUDIO, FRAME)


def main() -> None:
    parser = result_parser(__doc__, "heard")
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("bank", type=Path, metavar="BANK")
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--asr", type=Path, required=True, help="a folder with Whisper's files, for faster-whisper")
    parser.add_argument("--weights", default="random", help="what the weights are, for the record (default: random)")
    parser.add_argument("--recordings", type=int, default=12, help="that SNR and cluster ids are compared on")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    args = parser.parse_args()
    result: dict[str, Any] = {
        "note": "EER and WER by mkc-fast evaluate: no attacker is trained, so the EERs overstate privacy. Where a "
        "cluster id differs from float32's, the conformer reads another centroid. All on the CPU.",
        "weights": args.weights,
        "models": [Resemblyzer().facts().as_record(), Whisper(args.asr).facts().as_record()],
        "heard": {},
        "beside_float32": beside_float32(args),
    }
    with ProcessPoolExecutor(len(MODES), multiprocessing.get_context("spawn")) as pool:
        for mode, (recordings, heard) in zip(MODES, pool.map(listen, [args] * len(MODES), MODES), strict=True):
            result["recordings"], result["heard"][mode] = recordings, heard
    write_result(args.out, result)
    show(result)


def listen(args: argparse.Namespace, mode: Mode) -> tuple[dict[str, Any], dict[str, Any]]:
    """Evaluate all precisions in a mode: facts of the recordings, and rates by precision."""
    given = Given(verifier=remembered(Resemblyzer().open()), recognizer=remembered(Whisper(args.asr).open()))
    found, recordings = {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        other = anonymized(args, mode, FP32, SEED + 1, Path(temporary, "other"))
        for precision in args.precision:
            made = anonymized(args, mode, precision, SEED, Path(temporary, precision))
            record = evaluate(
                args.data, made, enrolment_anonymized=other, only=(PRIVACY, INTELLIGIBILITY), given=given
            ).record
            recordings, found[precision] = record["recordings"], facts(record["measures"])
            rates = (f"{name} {part.get('eer', part.get('rate')):.3f}" for name, part in found[precision].items())
            print(mode, precision, *rates, flush=True)
    return recordings, found


def remembered(hear: Callable[[NDArray[np.float32]], _Heard]) -> Callable[[NDArray[np.float32]], _Heard]:
    """The same function, which hears each recording once: the original ones are in every evaluation."""
    known: dict[bytes, _Heard] = {}

    def hear_once(waveform: NDArray[np.float32]) -> _Heard:
        key = hashlib.sha256(waveform.tobytes()).digest()
        if key not in known:
            known[key] = hear(waveform)
        return known[key]

    return hear_once


def anonymized(args: argparse.Namespace, mode: Mode, precision: Precision, seed: int, out: Path) -> Path:
    """A folder of the anonymized recordings."""
    anonymize_corpus(
        args.model,
        args.bank,
        audio_list=args.data / "wav.scp",
        out=out,
        mode=mode,
        seed=seed,
        devices=[CPU],
        num_proc=1,
        options=EngineOptions(precision=precision),
    )
    return out


def facts(measures: dict[str, Any]) -> dict[str, Any]:
    """The rates of an evaluation, each with its interval."""
    found, words = measures[PRIVACY]["verifications"], measures[INTELLIGIBILITY]
    return {
        **{f"eer_{name}": found[name] for name in (ORIGINAL, IGNORANT, LAZY_INFORMED)},
        **{f"{rate}_{side}": words[side][rate] for side in ("original", "anonymized") for rate in ("wer", "cer")},
    }


def beside_float32(args: argparse.Namespace) -> dict[str, Any]:
    """Errors of each stage, cluster ids and SNR of each precision but float32, on some of the recordings."""
    paths = [args.data / line.split()[1] for line in (args.data / "wav.scp").read_text().splitlines()]
    paths = paths[:: max(1, len(paths) // args.recordings)]
    found = {}
    with Anonymizer.load(args.model, args.bank, precision=FP32) as full:
        waveforms = [read_waveform(path, full.info.sample_rate, full.info.min_samples) for path in paths]
        for precision in args.precision:
            if precision != FP32:
                with Anonymizer.load(args.model, args.bank, precision=precision) as other:
                    found[precision] = compare(full, other, waveforms)
    return found


def show(result: dict[str, Any]) -> None:
    """Print the rates."""
    table = Table("mode", "precision", "EER ignorant", "EER lazy-informed", "WER", box=None)
    for mode, part in result["heard"].items():
        for precision, each in part.items():
            values = (each["eer_ignorant"]["eer"], each["eer_lazy_informed"]["eer"], each["wer_anonymized"]["rate"])
            table.add_row(mode, precision, *(f"{100 * value:.1f} %" for value in values))
    Console().print(table)


if __name__ == "__main__":
    main()
