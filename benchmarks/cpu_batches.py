"""Whether batches pay on a CPU: each graph alone and in a batch, by length, in turn.

python -m mkc_fast.benchmarks.cpu_batches MODEL

Writes results/cpu_batches.json: seconds an utterance, the least of three runs in turn, and the ratio batch / alone.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from mkc_fast.benchmarks.common import result_parser, write_result
from mkc_fast.engine.artifacts import read_model_info
from mkc_fast.engine.sessions.opening import open_sessions
from mkc_fast.names import CPU

CASES = {1: 4, 3: 4}  # seconds of an utterance: how many at once


def main() -> None:
    parser = result_parser(__doc__, "cpu_batches")
    parser.add_argument("model", type=Path, metavar="MODEL")
    args = parser.parse_args()
    info, sessions = read_model_info(args.model), open_sessions(args.model, CPU)
    rng = np.random.default_rng(0)

    def run(count: int, seconds: int) -> float:
        samples = seconds * info.sample_rate
        frames = info.frames(samples)
        waveform = rng.standard_normal((count, samples), np.float32) * np.float32(0.1)
        features = rng.standard_normal((count, frames, info.dim), np.float32)
        begin = time.perf_counter()
        sessions.wavlm.run(["features"], {"waveform": waveform, "lengths": np.full(count, samples)})
        sessions.conformer.run(["restored"], {"features": features, "lengths": np.full(count, frames)})
        sessions.vocoder.run(["waveform"], {"features": features})
        return (time.perf_counter() - begin) / count

    results = {}
    for seconds, count in CASES.items():
        run(1, seconds)
        pairs = [(run(1, seconds), run(count, seconds)) for _ in range(3)]
        alone, batch = (min(column) for column in zip(*pairs, strict=True))
        results[f"{seconds} s"] = {
            "at_once": count,
            "alone_s": alone,
            "batch_s": batch,
            "ratio": round(batch / alone, 3),
        }
        print(seconds, results[f"{seconds} s"], flush=True)
    write_result(args.out, {"dim": info.dim, "results": results})


if __name__ == "__main__":
    main()
