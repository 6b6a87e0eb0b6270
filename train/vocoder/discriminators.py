"""HiFi-GAN's discriminators (Kong et al. 2020, section 2.3): by period and by scale."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

_SLOPE = 0.1
PERIODS = (2, 3, 5, 7, 11)
SCALES = 3
# Channels, kernel, stride and groups of each convolution of a scale's discriminator.
_BY_SCALE = (
    (128, 15, 1, 1),
    (128, 41, 2, 4),
    (256, 41, 2, 16),
    (512, 41, 4, 16),
    (1024, 41, 4, 16),
    (1024, 41, 1, 16),
    (1024, 5, 1, 1),
)
# Channels and stride of each convolution of a period's; kernels are 5.
_BY_PERIOD = ((32, 3), (128, 3), (512, 3), (1024, 3), (1024, 1))

# Of each discriminator the outputs of all its layers; the last is its judgement.
Maps = list[list[torch.Tensor]]


class Discriminators(nn.Module):
    """Waveforms (B, S) → the layers' outputs of all eight discriminators.

    Args:
        divisor: All channels are divided by it; 1 is as published.
        scales: How many look at scales; 3 as published.
    """

    def __init__(self, divisor: int = 1, scales: int = SCALES) -> None:
        super().__init__()
        self.periods = nn.ModuleList(PeriodDiscriminator(period, divisor) for period in PERIODS)
        self.scales = nn.ModuleList(ScaleDiscriminator(divisor, first=not scale) for scale in range(scales))

    def forward(self, waveform: torch.Tensor) -> Maps:
        x = waveform.unsqueeze(1)
        maps = [discriminator(x) for discriminator in self.periods]
        for number, discriminator in enumerate(self.scales):
            x = F.avg_pool1d(x, 4, 2, padding=2) if number else x
            maps.append(discriminator(x))
        return maps


class PeriodDiscriminator(nn.Module):
    """Looks at every p-th sample: (B, 1, S) → outputs of its layers."""

    def __init__(self, period: int, divisor: int) -> None:
        super().__init__()
        self.period = period
        channels, layers = 1, []
        for wide, stride in _BY_PERIOD:
            width = max(1, wide // divisor)
            layers.append(weight_norm(nn.Conv2d(channels, width, (5, 1), (stride, 1), padding=(2, 0))))
            channels = width
        self.layers = nn.ModuleList(layers)
        self.last = weight_norm(nn.Conv2d(channels, 1, (3, 1), padding=(1, 0)))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        if lacking := -x.shape[2] % self.period:
            x = F.pad(x, (0, lacking), "reflect")
        x = x.reshape(x.shape[0], 1, -1, self.period)
        return _outputs(x, self.layers, self.last)


class ScaleDiscriminator(nn.Module):
    """Looks at consecutive samples: (B, 1, S) → outputs of its layers; the first scale has spectral norm."""

    def __init__(self, divisor: int, *, first: bool) -> None:
        super().__init__()
        norm = spectral_norm if first else weight_norm
        channels, layers = 1, []
        for wide, kernel, stride, groups in _BY_SCALE:
            width = max(1, wide // divisor)
            shared = math.gcd(groups, channels, width)
            layers.append(norm(nn.Conv1d(channels, width, kernel, stride, kernel // 2, groups=shared)))
            channels = width
        self.layers = nn.ModuleList(layers)
        self.last = norm(nn.Conv1d(channels, 1, 3, padding=1))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return _outputs(x, self.layers, self.last)


def _outputs(x: torch.Tensor, layers: nn.ModuleList, last: nn.Module) -> list[torch.Tensor]:
    outputs = []
    for layer in layers:
        x = F.leaky_relu(layer(x), _SLOPE)
        outputs.append(x)
    return [*outputs, last(x)]
