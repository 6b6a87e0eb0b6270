"""K-means models as the baseline has them: unpickled by joblib, asked by scikit-learn. Executes what a pickle holds."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import joblib
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def load_kmeans(paths: Sequence[Path]) -> list[Any]:
    """Unpickle k-means models with joblib, float64 as they were trained. Give it only files that you made or checked.

    Paths may repeat: each is loaded anew.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's, that another version wrote the file
        models = [joblib.load(path) for path in paths]
    for model in models:
        model.cluster_centers_ = np.ascontiguousarray(model.cluster_centers_, np.float64)
    return models
