"""Trains what ``mkc_fast.export`` takes: banks of k-means models, conformers and vocoders, from speech."""

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
    from mkc_fast.train.vocoder.settings import VocoderSettings
    from mkc_fast.train.vocoder.train import TrainedVocoder, train_vocoder

__all__ = [
    "ConformerSettings",
    "FeatureCache",
    "KMeansSettings",
    "MadeFeatures",
    "Restored",
    "TrainedBank",
    "TrainedConformer",
    "TrainedVocoder",
    "VocoderSettings",
    "make_features",
    "measure_restoration",
    "train_bank",
    "train_conformer",
    "train_vocoder",
]

_MODULES = {
    "ConformerSettings": "conformer.settings",
    "FeatureCache": "features.cache",
    "KMeansSettings": "kmeans",
    "MadeFeatures": "features.make",
    "Restored": "restoration",
    "TrainedBank": "bank",
    "TrainedConformer": "conformer.train",
    "TrainedVocoder": "vocoder.train",
    "VocoderSettings": "vocoder.settings",
    "make_features": "features.make",
    "measure_restoration": "restoration",
    "train_bank": "bank",
    "train_conformer": "conformer.train",
    "train_vocoder": "vocoder.train",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"mkc_fast.train.{_MODULES[name]}"), name)
