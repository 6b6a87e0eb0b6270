"""Trains what ``mkc_fast.export`` takes: banks of k-means models and conformers, from speech."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkc_fast.train.bank import TrainedBank, train_bank
    from mkc_fast.train.conformer.settings import ConformerSettings
    from mkc_fast.train.conformer.train import TrainedConformer, train_conformer
    from mkc_fast.train.features.cache import FeatureCache
    from mkc_fast.train.features.make import MadeFeatures, make_features
    from mkc_fast.train.kmeans import KMeansSettings
    from mkc_fast.train.restoration import Restored, measure_restoration

__all__ = [
    "ConformerSettings",
    "FeatureCache",
    "KMeansSettings",
    "MadeFeatures",
    "Restored",
    "TrainedBank",
    "TrainedConformer",
    "make_features",
    "measure_restoration",
    "train_bank",
    "train_conformer",
]

_MODULES = {
    "ConformerSettings": "conformer.settings",
    "FeatureCache": "features.cache",
    "KMeansSettings": "kmeans",
    "MadeFeatures": "features.make",
    "Restored": "restoration",
    "TrainedBank": "bank",
    "TrainedConformer": "conformer.train",
    "make_features": "features.make",
    "measure_restoration": "restoration",
    "train_bank": "bank",
    "train_conformer": "conformer.train",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"mkc_fast.train.{_MODULES[name]}"), name)
