"""Trains what ``mkc_fast.export`` takes: banks of k-means models, from speech."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkc_fast.train.bank import TrainedBank, train_bank
    from mkc_fast.train.kmeans import KMeansSettings

__all__ = ["KMeansSettings", "TrainedBank", "train_bank"]


def __getattr__(name: str) -> object:
    if name in {"TrainedBank", "train_bank"}:
        from mkc_fast.train import bank

        return getattr(bank, name)
    if name == "KMeansSettings":
        from mkc_fast.train.kmeans import KMeansSettings

        return KMeansSettings
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
