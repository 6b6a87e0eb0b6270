"""Child process of the benchmarks: how long artifacts take until a bank, or a whole pass, is ready and has run once."""

from __future__ import annotations

import time

BEGIN = time.perf_counter()

from pathlib import Path  # noqa: E402 - the clock starts before anything is imported
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402

from mkc_fast.benchmarks.child import serve  # noqa: E402


def bank_ready(arguments: dict[str, Any]) -> tuple[dict[str, Any], object]:
    """Open a bank and look ``frames`` frames up, each in an entry of its own draw."""
    from mkc_fast.engine.artifacts import open_bank
    from mkc_fast.kernels import make_lookup

    imported = time.perf_counter()
    bank = open_bank(Path(arguments["bank"]))
    lookup = make_lookup(bank.centroids, bank.half_norms, bank.info.num_clusters)
    opened = time.perf_counter()
    rng = np.random.default_rng(0)
    features = rng.standard_normal((arguments["frames"], bank.info.dim), np.float32)
    lookup.assign(features, rng.integers(0, len(bank), len(features)))
    report = {
        "import_s": imported - BEGIN,
        "open_s": opened - imported,
        "first_lookup_s": time.perf_counter() - opened,
        "entries": len(bank),
    }
    return report, lookup


def pass_ready(arguments: dict[str, Any]) -> tuple[dict[str, Any], object]:
    """Open model and bank and anonymize one utterance, given as samples in a file."""
    from mkc_fast.benchmarks.target import Target
    from mkc_fast.engine.options import EngineOptions

    imported = time.perf_counter()
    target = Target(
        Path(arguments["model"]),
        Path(arguments["bank"]),
        arguments["device"],
        EngineOptions(provider=arguments["provider"], precision=arguments["precision"], threads=arguments["threads"]),
    )
    anonymizer = target.load()
    loaded = time.perf_counter()
    result = anonymizer.anonymize(np.load(arguments["waveform"]), arguments["mode"], seed=7, utterance_id="u")
    report = {
        "import_s": imported - BEGIN,
        "load_s": loaded - imported,
        "first_output_s": time.perf_counter() - loaded,
        "samples": len(result.waveform),
    }
    return report, anonymizer


if __name__ == "__main__":
    serve(lambda arguments: (bank_ready if arguments["what"] == "bank" else pass_ready)(arguments))
