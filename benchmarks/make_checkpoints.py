"""Writes checkpoints of the published sizes with random weights, for the other benchmarks to export.

python -m mkc_fast.benchmarks.make_checkpoints OUT --size large --num-kmeans 100
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from mkc_fast.export.random_checkpoints import write_checkpoints


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write into")
    parser.add_argument("--size", choices=["small", "base", "large"], default="large")
    parser.add_argument("--num-kmeans", type=int, default=100, metavar="N", help="how many k-means models")
    parser.add_argument("--num-clusters", type=int, metavar="K", help="clusters of each (1024; 32 at size small)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    start = time.perf_counter()
    written = write_checkpoints(
        args.out,
        size=args.size,
        num_kmeans=args.num_kmeans,
        num_clusters=args.num_clusters,
        seed=args.seed,
        progress=lambda line: print(f"{time.perf_counter() - start:6.1f} s  {line}", flush=True),
    )
    models = (line.split()[1] for line in written.kmeans_scp.read_text().splitlines())
    paths = [written.wavlm, written.ckpt, *(args.out / model for model in models)]
    total_gb = sum(path.stat().st_size for path in paths) / 1e9
    print(f"{time.perf_counter() - start:6.1f} s  {len(paths)} files, {total_gb:.2f} GB")


if __name__ == "__main__":
    main()
