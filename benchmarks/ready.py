"""A process of its own until something is ready and has run once: a bank, the engine, k-means models, the baseline.

The parent starts it with ``run_ready``. The clock starts before anything is imported, so each part imports what it
needs itself.
"""

from __future__ import annotations

import time

BEGIN = time.perf_counter()

from pathlib import Path  # noqa: E402 - the clock starts before anything is imported
from typing import TYPE_CHECKING, Any  # noqa: E402

import numpy as np  # noqa: E402

from mkc_fast.benchmarks.child import run_children, serve  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

    Report = tuple[dict[str, Any], object]


def run_ready(*arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """Start a process for each of the arguments, whose ``what`` is a key of ``PARTS``; what each reports.

    Raises:
        MkcError: A process failed, or took too long.
    """
    return run_children("mkc_fast.benchmarks.ready", arguments)


def bank_ready(arguments: dict[str, Any]) -> Report:
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
    return _looked_up(imported, opened, len(bank)), lookup


def kmeans_ready(arguments: dict[str, Any]) -> Report:
    """Unpickle every k-means model and predict ``frames`` frames, each in a model of its own draw."""
    import sklearn.cluster  # noqa: F401 - what joblib would import while it reads the first file

    from mkc_fast.benchmarks.baseline.kmeans import load_kmeans

    imported = time.perf_counter()
    models = load_kmeans([Path(path) for path in arguments["kmeans"]])
    opened = time.perf_counter()
    rng = np.random.default_rng(0)
    features = rng.standard_normal((arguments["frames"], models[0].cluster_centers_.shape[1]))
    for frame, entry in zip(features, rng.integers(0, len(models), len(features)), strict=True):
        models[entry].predict(frame[None])
    return _looked_up(imported, opened, len(models)), models


def engine_ready(arguments: dict[str, Any]) -> Report:
    """Open model and bank and anonymize one utterance, given as samples in a file."""
    from mkc_fast.benchmarks.target import Target
    from mkc_fast.engine.options import EngineOptions

    imported = time.perf_counter()
    options = EngineOptions(
        provider=arguments["provider"], precision=arguments["precision"], threads=arguments["threads"]
    )
    target = Target(Path(arguments["model"]), Path(arguments["bank"]), arguments["device"], options)
    return _first_output(target.load(), imported, arguments)


def baseline_ready(arguments: dict[str, Any]) -> Report:
    """Load checkpoints and k-means models and anonymize one utterance, given as samples in a file."""
    from mkc_fast.benchmarks.baseline.pipeline import Baseline

    imported = time.perf_counter()
    baseline = Baseline.load(
        Path(arguments["wavlm_ckpt"]),
        Path(arguments["ckpt"]),
        Path(arguments["kmeans_scp"]),
        device=arguments["device"],
        threads=arguments["threads"],
        check=False,
    )
    return _first_output(baseline, imported, arguments)


def _looked_up(imported: float, opened: float, entries: int) -> dict[str, Any]:
    return {
        "import_s": imported - BEGIN,
        "open_s": opened - imported,
        "first_lookup_s": time.perf_counter() - opened,
        "entries": entries,
    }


def _first_output(anonymizer: Any, imported: float, arguments: dict[str, Any]) -> Report:
    loaded = time.perf_counter()
    result = anonymizer.anonymize(np.load(arguments["waveform"]), arguments["mode"], seed=7, utterance_id="u")
    report = {
        "import_s": imported - BEGIN,
        "load_s": loaded - imported,
        "first_output_s": time.perf_counter() - loaded,
        "samples": len(result.waveform),
    }
    return report, anonymizer


PARTS: dict[str, Callable[[dict[str, Any]], Report]] = {
    "bank": bank_ready,
    "kmeans": kmeans_ready,
    "engine": engine_ready,
    "baseline": baseline_ready,
}

if __name__ == "__main__":
    serve(lambda arguments: PARTS[arguments["what"]](arguments))
