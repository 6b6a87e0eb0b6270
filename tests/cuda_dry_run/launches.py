"""The table of what a run of each graph launches on a GPU, ``launches.json``.

``python -m tests.cuda_dry_run.launches --write`` writes it anew, where the environment has onnxruntime-gpu.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.cuda_dry_run.graphs import CASES, Case, job, write_artifacts
from tests.fakes.cuda.dry_run.build import build
from tests.fakes.cuda.dry_run.calls import Calls
from tests.fakes.cuda.dry_run.sessions import Report, measure

TABLE = Path(__file__).with_name("launches.json")
COMMAND = "python -m tests.cuda_dry_run.launches --write"


def row(steady: Calls) -> dict[str, Any]:
    """What a steady run launches: kernels and other calls by name, products, convolutions, copies on the device."""
    return {
        "launches": steady.launches,
        "products": steady.gemms,
        "convolutions": steady.executions,
        "other calls": dict(sorted(steady.library_calls.items())),
        "device copies": steady.copies["D2D async"],
        "kernels": dict(sorted(steady.kernels.items())),
    }


def read_table() -> dict[str, dict[str, Any]]:
    """The rows, by the case."""
    return dict(json.loads(TABLE.read_text(encoding="utf-8")))


def write_table() -> None:
    """Run all graphs dry, and write the table."""
    with tempfile.TemporaryDirectory() as folder:
        stubs = build(Path(folder, "stubs"))
        write_artifacts(Path(folder))

        def measured(case: Case) -> Report:
            return measure(stubs, job(case, Path(folder, "model"), runs=3))

        table = {str(case): row(measured(case).runs[-1]) for case in CASES}
    TABLE.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(COMMAND)
    write_table()
