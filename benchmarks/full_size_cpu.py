"""Full size on a CPU: export, bank, frame and audio mode on a recording, and opening 1,165 entries.

python -m mkc_fast.benchmarks.full_size_cpu RECORDING [--work DIR]

Makes checkpoints of the published sizes with random weights (3.3 GB) unless DIR has them, runs the commands a user
would run, and writes results/full_size_cpu.json.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

import numpy as np

from mkc_fast.benchmarks.common import program, result_parser, run_timed, write_result
from mkc_fast.engine.artifacts import BankInfo, FileFacts, write_info
from mkc_fast.export.random_checkpoints import write_checkpoints
from mkc_fast.names import AUDIO, CPU, FRAME

ENTRIES, CLUSTERS, DIM = 1165, 1024, 1024
OPEN_BANK = """
import sys, time
begin = time.perf_counter()
from pathlib import Path
from mkc_fast.engine.artifacts import open_bank
from mkc_fast.kernels import make_lookup
import numpy as np
imported = time.perf_counter()
bank = open_bank(Path(sys.argv[1]))
lookup = make_lookup(bank.centroids, bank.half_norms, bank.info.num_clusters)
print(time.perf_counter() - imported)
lookup.assign(np.ones((10, 1024), np.float32), np.arange(10))
"""


def main() -> None:
    parser = result_parser(__doc__, "full_size_cpu")
    parser.add_argument("recording", type=Path)
    parser.add_argument("--work", type=Path, help="a folder for checkpoints and outputs (default: a temporary one)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        if not (work / "kmeans.scp").exists():
            write_checkpoints(work, size="large", num_kmeans=100)
        results = measure(work, args.recording.resolve(), Path(temporary))
    for name, measured in results.items():
        print(name, measured)
    write_result(args.out, {"recording": args.recording.name, "results": results})


def measure(work: Path, recording: Path, temporary: Path) -> dict[str, dict[str, object]]:
    """Seconds and peak memory of each command, by name."""
    model, bank = temporary / "model", temporary / "bank"
    result: dict[str, dict[str, object]] = {}
    export = [program(), "export", "--wavlm-ckpt", f"{work}/WavLM.pt", "--ckpt", f"{work}/conformer.pth"]
    result["export"] = run_timed([*export, "--out", str(model)])
    result["bank_build_100"] = run_timed(
        [program(), "bank", "build", "--kmeans-scp", f"{work}/kmeans.scp", "--out", str(bank)]
    )
    scp = temporary / "audio.scp"
    scp.write_text(f"{recording}\n")
    for mode in (FRAME, AUDIO):
        infer = [program(), "infer", "--mode", mode, "--model", str(model), "--bank", str(bank), "--seed", "7"]
        run = run_timed([*infer, "--audio-scp", str(scp), "--output-dir", str(temporary / mode), "--gpus", CPU])
        match = re.search(r"RTFx\s+([\d.]+)", str(run["output"]))
        result[f"infer_{mode}"] = {**run, "rtfx": float(match.group(1)) if match else None}
    result["open_bank_1165"] = open_sparse_bank(temporary / "sparse")
    for measured in result.values():
        measured.pop("output", None)
    return result


def open_sparse_bank(folder: Path) -> dict[str, object]:
    """Open a bank of the published size whose file has no disk blocks, and look ten entries up."""
    folder.mkdir()
    np.lib.format.open_memmap(folder / "centroids.npy", "w+", np.float32, (ENTRIES, CLUSTERS, DIM)).flush()
    np.lib.format.open_memmap(folder / "half_norms.npy", "w+", np.float64, (ENTRIES, CLUSTERS)).flush()
    names = [f"spk{index}" for index in range(ENTRIES)]
    none: list[list[int]] = [[]] * ENTRIES
    info = BankInfo(names, [CLUSTERS] * ENTRIES, [""] * ENTRIES, none, none, DIM)
    write_info(folder, info, {file.name: FileFacts(file.stat().st_size, "0" * 64) for file in folder.iterdir()})
    run = run_timed([sys.executable, "-c", OPEN_BANK, str(folder)])
    return {**run, "open_seconds": round(float(str(run["output"])), 4)}


if __name__ == "__main__":
    main()
