"""Long recordings on a CPU: peak memory and speed of 80 s at full size, and of two hours with the small model.

python -m mkc_fast.benchmarks.long_recordings RECORDING [--model DIR --bank DIR]

The recording is repeated until it is long enough, and goes through ``mkc-fast infer`` as a user's would. Without
``--model``, checkpoints of the published sizes are made of random weights and exported (6.6 GB of memory, two minutes).
Writes results/long_recordings.json.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from mkc_fast.benchmarks.common import program, result_parser, run_timed, write_result
from mkc_fast.names import CPU

FULL_SIZE_S, SMALL_S = 80.0, 7200.0
WINDOW_S = 40.0  # the default of infer, said here so that the result names it


def main() -> None:
    parser = result_parser(__doc__, "long_recordings")
    parser.add_argument("recording", type=Path, help="speech at 16 kHz, one channel")
    parser.add_argument("--model", type=Path, help="a full-size exported model")
    parser.add_argument("--bank", type=Path, help="its bank")
    parser.add_argument("--small-model", type=Path, help="a small exported model")
    parser.add_argument("--small-bank", type=Path, help="its bank")
    args = parser.parse_args()
    for model, bank in ((args.model, args.bank), (args.small_model, args.small_bank)):
        if (model is None) != (bank is None):
            parser.error("a model and its bank go together")
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        large = (args.model, args.bank) if args.model else exported(work, "large", 100)
        small = (args.small_model, args.small_bank) if args.small_model else exported(work, "small", 8)
        result = {
            "recording": args.recording.name,
            "max_window_seconds": WINDOW_S,
            "memory": "peak of the larger process, the worker; the parent's is under 0.1 GB",
            "results": {
                "80_s_full_size": measure(work, args.recording, FULL_SIZE_S, *large),
                "two_hours_small_model": measure(work, args.recording, SMALL_S, *small),
            },
        }
    print(result["results"])
    write_result(args.out, result)


def exported(work: Path, size: str, entries: int) -> tuple[Path, Path]:
    """A model and a bank of random weights."""
    checkpoints, model, bank = (work / f"{size}-{name}" for name in ("checkpoints", "model", "bank"))
    make = [sys.executable, "-m", "mkc_fast.benchmarks.make_checkpoints"]  # its memory is given back before the runs
    run_timed([*make, str(checkpoints), "--size", size, "--num-kmeans", str(entries)])
    wavlm, ckpt, scp = (str(checkpoints / name) for name in ("WavLM.pt", "conformer.pth", "kmeans.scp"))
    run_timed([program(), "export", "--wavlm-ckpt", wavlm, "--ckpt", ckpt, "--out", str(model)])
    run_timed([program(), "bank", "build", "--kmeans-scp", scp, "--out", str(bank)])
    return model, bank


def measure(work: Path, recording: Path, seconds: float, model: Path, bank: Path) -> dict[str, Any]:
    """Anonymize a recording of so many seconds: RTFx, peak memory, and seconds of each stage."""
    speech, rate = soundfile.read(recording, dtype="int16")
    if rate != 16000 or speech.ndim != 1:
        raise SystemExit(f"{recording}: expected one channel at 16 kHz")
    name = f"long_{seconds:.0f}"
    soundfile.write(work / f"{name}.flac", np.resize(speech, int(seconds * rate)), rate)
    scp = work / f"{name}.scp"
    scp.write_text(f"{work}/{name}.flac\n")
    infer = [program(), "infer", "--model", str(model), "--bank", str(bank), "--seed", "7", "--gpus", CPU]
    infer += ["--audio-scp", str(scp), "--output-dir", str(work / name), "--max-window-seconds", str(WINDOW_S)]
    run = run_timed([*infer, "--json", "--quiet"])
    summary = json.loads(run["output"])
    return {
        "audio_s": seconds,
        "wall_s": run["seconds"],
        "peak_gb": run["peak_gb"],
        "rtfx": round(summary["rtfx"], 2),
        "start_up_s": round(summary["start_up_s"], 2),
        "stage_seconds": summary["stage_seconds"],
    }


if __name__ == "__main__":
    main()
