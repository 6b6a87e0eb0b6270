"""Linear layers in 8 bits against float32, on a CPU: errors, cluster ids, waveform SNR, and speed, side by side.

python -m mkc_fast.benchmarks.int8 MODEL BANK SPEECH... [--weights random] [--seconds 10] [--rounds 5]

Takes the 8-bit graphs of MODEL, or makes them where it has none, and writes results/int8.json.
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from mkc_fast import Anonymizer
from mkc_fast.benchmarks.common import write_result
from mkc_fast.benchmarks.precision import compare, speech_parser
from mkc_fast.engine.artifacts import MODEL_FILE, read_model_info, write_info
from mkc_fast.engine.audio.read import read_waveform
from mkc_fast.export.precision.int8 import INT8_GRAPHS, int8_file, write_int8_graphs
from mkc_fast.names import FP32, INT8


def main() -> None:
    parser = speech_parser(__doc__, "int8", 10.0)
    parser.add_argument("--rounds", type=int, default=5, help="timings of each precision, in turn")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        model = args.model
        if not all((model / int8_file(name)).is_file() for name in INT8_GRAPHS):
            model = Path(temporary)
            for file in args.model.iterdir():
                (model / file.name).symlink_to(file.resolve())
            info = read_model_info(args.model)
            checks = write_int8_graphs(args.model, model, info, print)
            (model / MODEL_FILE).unlink()  # a link to the one that does not list these
            write_info(model, replace(info, checks={**info.checks, **checks}))
        full, small = (Anonymizer.load(model, args.bank, precision=name) for name in (FP32, INT8))
        rate = full.info.sample_rate
        waveforms = [read_waveform(path, rate)[: int(args.seconds * rate)] for path in args.speech]
        result = compare(full, small, waveforms)
        times: dict[str, list[dict[str, float]]] = {FP32: [], INT8: []}
        for _ in range(args.rounds):
            for name, anonymizer in ((FP32, full), (INT8, small)):
                begin = time.perf_counter()
                stages = anonymizer.anonymize(waveforms[0], seed=7, utterance_id="u").stage_seconds
                times[name].append({**stages, "all": time.perf_counter() - begin})
    seconds = {
        name: {stage: round(median(run[stage] for run in runs), 3) for stage in runs[0]} for name, runs in times.items()
    }
    result = {
        "note": f"weights: {args.weights}. Where a cluster id differs, the conformer reads another centroid: the SNR "
        "of everything shows that, not rounding.",
        "weights": args.weights,
        # Of export: what each graph, and what PyTorch's float32, is off float64.
        "against_float64": {file: asdict(check) for file, check in full.info.checks.items()},
        "audio_s": round(len(waveforms[0]) / rate, 2),
        "load_average": round(os.getloadavg()[0], 2),
        "median_seconds": seconds,
        "fp32_to_int8": {
            stage: round(median(a[stage] / b[stage] for a, b in zip(*times.values(), strict=True)), 2)
            for stage in seconds[FP32]
        },
        "graph_mb": {
            name: round((model / name).stat().st_size / 1e6)
            for graph in INT8_GRAPHS
            for name in (graph, int8_file(graph))
        },
        **result,
    }
    table = Table("stage", "fp32, s", "int8, s", "times as fast")
    for stage, ratio in result["fp32_to_int8"].items():
        table.add_row(stage, *(f"{seconds[name][stage]:.3f}" for name in times), f"{ratio:.2f}")
    Console().print(table)
    print({mode: ids["agreement"] for mode, ids in result["cluster_ids"].items()}, result["waveform_snr"])
    write_result(args.out, result)


if __name__ == "__main__":
    main()
