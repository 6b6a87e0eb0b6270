"""Child process of the benchmarks: how long the practice takes until its k-means models, or a whole pass, are ready."""

from __future__ import annotations

import time

BEGIN = time.perf_counter()

from pathlib import Path  # noqa: E402 - the clock starts before anything is imported
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402

from mkc_fast.benchmarks.child import serve  # noqa: E402


def kmeans_ready(arguments: dict[str, Any]) -> tuple[dict[str, Any], object]:
    """Unpickle every model and predict ``frames`` frames, each in a model of its own draw."""
    import sklearn.cluster  # noqa: F401 - what joblib would import while it reads the first file

    from mkc_fast.benchmarks.baseline.kmeans import load_kmeans

    imported = time.perf_counter()
    models = load_kmeans([Path(path) for path in arguments["kmeans"]])
    opened = time.perf_counter()
    rng = np.random.default_rng(0)
    features = rng.standard_normal((arguments["frames"], models[0].cluster_centers_.shape[1]))
    for frame, entry in zip(features, rng.integers(0, len(models), len(features)), strict=True):
        models[entry].predict(frame[None])
    report = {
        "import_s": imported - BEGIN,
        "open_s": opened - imported,
        "first_lookup_s": time.perf_counter() - opened,
        "entries": len(models),
    }
    return report, models


def pass_ready(arguments: dict[str, Any]) -> tuple[dict[str, Any], object]:
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
    loaded = time.perf_counter()
    result = baseline.anonymize(np.load(arguments["waveform"]), arguments["mode"], seed=7, utterance_id="u")
    report = {
        "import_s": imported - BEGIN,
        "load_s": loaded - imported,
        "first_output_s": time.perf_counter() - loaded,
        "samples": len(result.waveform),
    }
    return report, baseline


if __name__ == "__main__":
    serve(lambda arguments: (kmeans_ready if arguments["what"] == "kmeans" else pass_ready)(arguments))
