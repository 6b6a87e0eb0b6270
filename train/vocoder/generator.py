"""HiFi-GAN's generator as it is trained (Kong et al. 2020, arXiv 2010.05646), with a linear layer in front."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from mkc_fast.export.checkpoints.weights import WeightReader
from mkc_fast.export.networks.hifigan import LAST_SLOPE, SLOPE

if TYPE_CHECKING:
    from pathlib import Path

    from mkc_fast.export.checkpoints.configs import HifiGanConfig
    from mkc_fast.export.checkpoints.weights import Weights

# Of the weights of a new generator's convolutions, as published.
_STD = 0.01
_PARAMETRIZED = re.compile(r"parametrizations\.weight\.original([01])$")


class Generator(nn.Module):
    """Features (B, T, D) → waveforms (B, T * hop) in [-1, 1]."""

    def __init__(self, config: HifiGanConfig) -> None:
        super().__init__()
        self.hop, self.num_blocks = config.hop, len(config.resblock_kernel_sizes)
        channels = config.upsample_initial_channel
        self.lin_pre = nn.Linear(config.input_dim, config.hidden_dim)
        self.conv_pre = weight_norm(nn.Conv1d(config.hidden_dim, channels, 7, padding=3))
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        for rate, kernel in zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True):
            up = nn.ConvTranspose1d(channels, channels // 2, kernel, rate, padding=(kernel - rate) // 2)
            self.ups.append(_drawn(up))
            channels //= 2
            blocks = zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True)
            self.resblocks.extend(ResBlock(channels, size, dilations, config.resblock) for size, dilations in blocks)
        self.conv_post = _drawn(nn.Conv1d(channels, 1, 7, padding=3))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Float32 (B, T, D) → (B, T * hop)."""
        x = self.conv_pre(self.lin_pre(features).transpose(1, 2))
        for index, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, SLOPE))
            blocks = self.resblocks[index * self.num_blocks : (index + 1) * self.num_blocks]
            x = torch.stack([block(x) for block in blocks]).mean(0)
        waveform = torch.tanh(self.conv_post(F.leaky_relu(x, LAST_SLOPE))).squeeze(1)
        return waveform[:, : features.shape[1] * self.hop]

    def take(self, path: Path, weights: Weights) -> None:
        """Take the weights of a checkpoint, weight-normed or not, on the CPU.

        Raises:
            CheckpointError: One is missing or has another shape.
        """
        read = WeightReader(path, weights)
        with torch.no_grad():
            for name, layer in self.named_modules():
                if isinstance(layer, nn.Linear | nn.Conv1d | nn.ConvTranspose1d):
                    layer.weight = _assigned(layer, read.take(f"{name}.weight", *layer.weight.shape))
                    assert layer.bias is not None
                    layer.bias.copy_(read.take_or_zeros(f"{name}.bias", *layer.bias.shape))

    def published(self) -> Weights:
        """Its weights under their published names: ``weight_g`` and ``weight_v``."""
        return {
            _PARAMETRIZED.sub(lambda found: "weight_" + "gv"[int(found[1])], name): tensor.detach().cpu()
            for name, tensor in self.state_dict().items()
        }


class ResBlock(nn.Module):
    """Residual dilated convolutions: pairs of them in type "1", single ones in type "2": (B, C, S) → (B, C, S)."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...], kind: str) -> None:
        super().__init__()

        def convolutions(sizes: tuple[int, ...]) -> nn.ModuleList:
            return nn.ModuleList(
                _drawn(nn.Conv1d(channels, channels, kernel, dilation=size, padding=(kernel - 1) * size // 2))
                for size in sizes
            )

        # The published classes build so many, whatever further dilations a configuration lists.
        used = dilations[: 3 if kind == "1" else 2]
        self.kind = kind
        if kind == "1":
            self.convs1, self.convs2 = convolutions(used), convolutions((1,) * len(used))
        else:
            self.convs = convolutions(used)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "1":
            for first, second in zip(self.convs1, self.convs2, strict=True):
                x = x + second(F.leaky_relu(first(F.leaky_relu(x, SLOPE)), SLOPE))
            return x
        for convolution in self.convs:
            x = x + convolution(F.leaky_relu(x, SLOPE))
        return x


def _drawn(layer: nn.Conv1d | nn.ConvTranspose1d) -> nn.Module:
    """A layer with weights of the published spread, weight-normed."""
    nn.init.normal_(layer.weight, 0.0, _STD)
    normed: nn.Module = weight_norm(layer)
    return normed


def _assigned(layer: nn.Module, weight: torch.Tensor) -> nn.Parameter | torch.Tensor:
    """What to assign as a layer's weight: weight norm takes a tensor apart, other layers need a parameter."""
    return weight if torch.nn.utils.parametrize.is_parametrized(layer) else nn.Parameter(weight)
