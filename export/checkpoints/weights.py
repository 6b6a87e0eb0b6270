"""Weights of a state dict: found by name, checked in shape and value, and converted to float32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mkc_fast.errors import CheckpointError
from mkc_fast.text import printable

if TYPE_CHECKING:
    from pathlib import Path

Weights = dict[str, torch.Tensor]


def named_weights(path: Path, state: dict[Any, Any]) -> Weights:
    """Keep the tensors of a state dict, without the ``module.`` that data-parallel training puts before every key."""
    weights: Weights = {}
    storages: dict[int, int] = {}
    for key, value in state.items():
        if isinstance(key, str) and isinstance(value, torch.Tensor):
            weights[key] = value
            storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
    if not weights:
        raise CheckpointError(f"{path}: the state dict holds no tensors")
    # A tensor may repeat its data without end, and two may share it (a few do); made whole they must fit in memory.
    if sum(value.numel() * value.element_size() for value in weights.values()) > 4 * sum(storages.values()):
        raise CheckpointError(f"{path}: the weights are many times as large as their data")
    for _ in range(4):
        if all(key.startswith("module.") for key in weights):
            weights = under(weights, "module.")
    return weights


def under(weights: Weights, prefix: str) -> Weights:
    """The weights whose names begin with ``prefix``, under the rest of their names."""
    return {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}


class WeightReader:
    """Takes named weights out of a state dict as float32, checking shapes, with weight norm folded."""

    def __init__(self, path: Path, weights: Weights) -> None:
        self.path = path
        self.weights = weights

    def has(self, name: str) -> bool:
        """Whether a weight of this name is there, plain or weight-normed."""
        return any(name + suffix in self.weights for suffix in ("", "_g")) or self._parametrized(name) in self.weights

    def take(self, name: str, *shape: int) -> torch.Tensor:
        """The weight as a float32 tensor of this shape.

        Raises:
            CheckpointError: It is missing, of another shape, or not finite.
        """
        parametrized = self._parametrized(name)
        if name in self.weights:
            value = self._plain(name)
        elif name + "_g" in self.weights and name + "_v" in self.weights:
            value = self._folded(name + "_g", name + "_v", shape)
        elif parametrized in self.weights and parametrized[:-1] + "1" in self.weights:
            value = self._folded(parametrized, parametrized[:-1] + "1", shape)
        else:
            raise CheckpointError(f"{self.path}: lacks the weight {name}")
        if tuple(value.shape) != shape:
            raise CheckpointError(f"{self.path}: {name} has shape {_sizes(value)}, expected {shape}")
        if not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{self.path}: {name} holds values that are not finite")
        return value

    def take_or_zeros(self, name: str, *shape: int) -> torch.Tensor:
        """The weight, or zeros where a layer was trained without this bias."""
        return self.take(name, *shape) if self.has(name) else torch.zeros(shape)

    @staticmethod
    def _parametrized(name: str) -> str:
        head, _, tail = name.rpartition(".")
        return f"{head}.parametrizations.{tail}.original0"

    def _plain(self, name: str) -> torch.Tensor:
        value = self.weights[name].detach()
        if value.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
            raise CheckpointError(f"{self.path}: {name} is of {value.dtype}, not of floats")
        return value.to(torch.float32, copy=True).contiguous()

    def _folded(self, gain_name: str, direction_name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """``g * v / ‖v‖``; the norm runs over every axis along which g has size 1 (Salimans and Kingma 2016)."""
        gain, direction = self._plain(gain_name), self._plain(direction_name)
        if tuple(direction.shape) != shape:
            return direction  # of the wrong shape: the caller says so
        axes = [axis for axis, size in enumerate(gain.shape) if size == 1]
        if tuple(gain.shape) != tuple(1 if axis in axes else size for axis, size in enumerate(shape)) or not axes:
            raise CheckpointError(
                f"{self.path}: {gain_name} has shape {_sizes(gain)}, which is no norm of {tuple(direction.shape)}"
            )
        norm: torch.Tensor = torch.linalg.vector_norm(direction.double(), dim=axes, keepdim=True)
        folded: torch.Tensor = (gain.double() * direction.double() / norm).float()
        return folded


def _sizes(tensor: torch.Tensor) -> str:
    return printable(str(tuple(tensor.shape[:16])))
