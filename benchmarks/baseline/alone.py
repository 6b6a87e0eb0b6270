"""The baseline, alone: RTFx of eager PyTorch modules and scikit-learn, one utterance at a time.

python -m mkc_fast.benchmarks.baseline.alone CHECKPOINTS RECORDING [--threads N] [--lengths 3 10] [--repeats 3]
    [--out FILE.json]

CHECKPOINTS is a folder that make_checkpoints.py wrote. What runs is
``mkc_fast.benchmarks.baseline.pipeline``, written for this comparison, to be fair:

- float32, ``torch.inference_mode``, PyTorch's fused attention, weight norm removed beforehand everywhere;
- WavLM with all its layers in memory, its forward pass stopped after the sixth;
- every k-means model loaded by joblib; scikit-learn's ``predict`` on float64 once a stride group (at stride 1: once a
  frame); centroids looked up on the host;
- the engine's draws, threads and inputs; its waveforms equal the reference's to 1e-4
  (tests/benchmarks/test_baseline.py).

``mkc-fast bench throughput --baseline`` runs it and the engine in turn; this script is for looking at it alone.
Writes results/baseline.json.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from mkc_fast.benchmarks.baseline.pipeline import Baseline
from mkc_fast.benchmarks.common import result_parser, write_result
from mkc_fast.engine.audio.read import read_waveform
from mkc_fast.names import AUDIO, CPU, FRAME


def main() -> None:
    parser = result_parser(__doc__, "baseline")
    parser.add_argument("checkpoints", type=Path, metavar="CHECKPOINTS")
    parser.add_argument("recording", type=Path, metavar="RECORDING")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: one a core")
    parser.add_argument("--lengths", type=float, nargs="+", default=[3.0, 10.0], help="in seconds")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--kmeans-num", type=int, metavar="N", help="how many of the k-means models")
    parser.add_argument("--device", default=CPU)
    args = parser.parse_args()

    folder, begin = args.checkpoints, time.perf_counter()
    baseline = Baseline.load(
        folder / "WavLM.pt", folder / "conformer.pth", folder / "kmeans.scp",
        kmeans_num=args.kmeans_num, device=args.device, threads=args.threads,
    )  # fmt: skip
    load_s = time.perf_counter() - begin
    speech = read_waveform(args.recording, baseline.info.sample_rate)
    results: list[dict[str, Any]] = []
    for mode in (FRAME, AUDIO):
        for length_s in args.lengths:
            waveform = np.resize(speech, round(length_s * baseline.info.sample_rate))
            baseline.anonymize(waveform, mode)  # warm-up
            runs = []
            for _ in range(args.repeats):
                start = time.perf_counter()
                result = baseline.anonymize(waveform, mode)
                runs.append((time.perf_counter() - start, result.stage_seconds))
            seconds = sorted(taken for taken, _ in runs)
            stages = {stage: round(median(stage_s[stage] for _, stage_s in runs), 4) for stage in runs[0][1]}
            results.append(
                {
                    "mode": mode,
                    "stride": 1,
                    "length_s": length_s,
                    "seconds": [round(s, 4) for s in seconds],
                    "rtfx": round(length_s / median(seconds), 3),
                    "stage_seconds": stages,
                }
            )
            print(results[-1], flush=True)
    write_result(
        args.out,
        {
            "recording": args.recording.name,
            "device": args.device,
            "threads": args.threads,
            "entries": len(baseline.kmeans),
            "load_s": round(load_s, 2),
            "results": results,
        },
    )


if __name__ == "__main__":
    main()
