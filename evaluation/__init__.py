"""Evaluates anonymized speech beside the original: privacy, intelligibility, quality, pitch, duration."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkc_fast.evaluation.choosing import Given
    from mkc_fast.evaluation.run import Evaluation, evaluate

__all__ = ["Evaluation", "Given", "evaluate"]

_MODULES = {"Evaluation": "run", "Given": "choosing", "evaluate": "run"}


def __dir__() -> list[str]:
    return sorted(__all__)  # the public names, whether loaded yet or not


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"mkc_fast.evaluation.{_MODULES[name]}"), name)
