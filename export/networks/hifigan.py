"""The HiFi-GAN generator, as a graph: features → waveform (Kong et al. 2020, arXiv 2010.05646)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from mkc_fast.export.checkpoints.weights import WeightReader
from mkc_fast.export.networks.layers import take_linear

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mkc_fast.export.checkpoints.configs import HifiGanConfig
    from mkc_fast.export.checkpoints.published import VoiceCheckpoint

    Convolve = Callable[["Conv", torch.Tensor], torch.Tensor]

SLOPE = 0.1
LAST_SLOPE = 0.01  # before conv_post the published model uses the library's default


class HifiGan(nn.Module):
    """Features (B, T, D) → waveforms (B, T * hop) in [-1, 1].

    The only context is that of convolutions, whose zero padding stands at the ends of the input; so there are no
    lengths, and a batch holds utterances, or windows of them, of one length (see ``reach_frames``).
    """

    def __init__(self, path: Path, checkpoint: VoiceCheckpoint) -> None:
        super().__init__()
        config, read = checkpoint.hifigan, WeightReader(path, checkpoint.hifigan_weights)
        self.hop = config.hop
        self.lin_pre = take_linear(read, "lin_pre", config.hidden_dim, config.input_dim)
        channels = config.upsample_initial_channel
        self.conv_pre = Conv(read, "conv_pre", channels, config.hidden_dim)
        self.stages = nn.ModuleList()
        averaged = 1.0
        for index in range(len(config.upsample_rates)):
            self.stages.append(Stage(read, index, config, input_scale=averaged))
            averaged = 1.0 / len(config.resblock_kernel_sizes)
        self.conv_post = Conv(read, "conv_post", 1, channels >> len(config.upsample_rates), scale=averaged)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Float32 (B, T, D) → float32 (B, T * hop)."""
        frames = features.shape[1]
        x = self.conv_pre(self.lin_pre(features).transpose(1, 2))
        for stage in self.stages:
            x = stage(x)
        waveform = torch.tanh(self.conv_post(F.leaky_relu(x, LAST_SLOPE))).squeeze(1)
        return waveform[:, : frames * self.hop] if self.overshoots() else waveform

    def overshoots(self) -> bool:
        """Kernels whose excess over the rate is odd give a sample more than the rate says."""
        return any((stage.kernel - stage.rate) % 2 for stage in self.stages)  # type: ignore[operator]


class Conv(nn.Module):
    """A convolution that keeps the length: (B, C, S) → (B, C', S)."""

    def __init__(
        self, read: WeightReader, name: str, out_channels: int, in_channels: int, kernel: int = 7, dilation: int = 1,
        scale: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        weight = read.take(f"{name}.weight", out_channels, in_channels, kernel)
        self.weight = nn.Parameter(weight * scale, requires_grad=False)
        self.bias = nn.Parameter(read.take_or_zeros(f"{name}.bias", out_channels), requires_grad=False)
        self.dilation = dilation
        self.padding = (kernel - 1) * dilation // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv1d(x, self.weight, self.bias, padding=self.padding, dilation=self.dilation)


class Stage(nn.Module):
    """An upsampling and the sum of its residual blocks: (B, C, S) → (B, C / 2, S * rate).

    The published model divides the sum by the number of blocks. LeakyReLU passes positive factors through, so that
    division is in the weights of whatever comes next (``input_scale``), and costs no pass over the samples.
    """

    def __init__(self, read: WeightReader, index: int, config: HifiGanConfig, input_scale: float) -> None:
        super().__init__()
        in_channels = config.upsample_initial_channel >> index
        channels = in_channels // 2
        self.rate, self.kernel = config.upsample_rates[index], config.upsample_kernel_sizes[index]
        weight = read.take(f"ups.{index}.weight", in_channels, channels, self.kernel)
        self.weight = nn.Parameter(weight * input_scale, requires_grad=False)
        self.bias = nn.Parameter(read.take_or_zeros(f"ups.{index}.bias", channels), requires_grad=False)
        blocks = len(config.resblock_kernel_sizes)
        self.blocks = nn.ModuleList(
            ResBlock(read, f"resblocks.{index * blocks + which}", channels, kernel, dilations, config.resblock)
            for which, (kernel, dilations) in enumerate(
                zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True)
            )
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.conv_transpose1d(
            F.leaky_relu(x, SLOPE), self.weight, self.bias, stride=self.rate, padding=(self.kernel - self.rate) // 2
        )
        total = self.blocks[0](x)
        for block in self.blocks[1:]:
            total = total + block(x)
        return total  # type: ignore[no-any-return]


class ResBlock(nn.Module):
    """Residual dilated convolutions: pairs of them in type "1", single ones in type "2": (B, C, S) → (B, C, S)."""

    def __init__(
        self, read: WeightReader, name: str, channels: int, kernel: int, dilations: tuple[int, ...], kind: str
    ) -> None:
        super().__init__()
        first, built = ("convs1", 3) if kind == "1" else ("convs", 2)
        # The published classes build so many convolutions, whatever further dilations a configuration lists.
        dilations = tuple(
            dilation
            for index, dilation in enumerate(dilations)
            if index < built or read.has(f"{name}.{first}.{index}.weight")
        )
        self.dilated = nn.ModuleList(
            Conv(read, f"{name}.{first}.{index}", channels, channels, kernel, dilation)
            for index, dilation in enumerate(dilations)
        )
        self.plain = nn.ModuleList(
            Conv(read, f"{name}.convs2.{index}", channels, channels, kernel)
            for index in range(len(dilations) if kind == "1" else 0)
        )

    def forward(
        self, x: torch.Tensor, convolve: Callable[[Conv, torch.Tensor], torch.Tensor] | None = None
    ) -> torch.Tensor:
        """``convolve`` computes a convolution in another form than its own."""
        apply = convolve or (lambda conv, y: conv(y))
        for index, dilated in enumerate(self.dilated):
            y = apply(dilated, F.leaky_relu(x, SLOPE))  # type: ignore[arg-type]
            if len(self.plain):
                y = apply(self.plain[index], F.leaky_relu(y, SLOPE))  # type: ignore[arg-type]
            x = x + y
        return x


def reach_frames(config: HifiGanConfig, first_stage: int = 0) -> int:
    """How many frames to either side can change a frame's samples: the generator's receptive field, rounded up.

    With ``first_stage``: the receptive field of the stages from that one on.
    """
    reach, per_frame = (0.0 if first_stage else 3.0), 1  # conv_pre
    for index, (rate, kernel) in enumerate(zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True)):
        if index < first_stage:
            per_frame *= rate
            continue
        reach += (kernel / rate + 1) / per_frame
        per_frame *= rate
        block = max(
            sum((size - 1) / 2 * (dilation + (1 if config.resblock == "1" else 0)) for dilation in dilations)
            for size, dilations in zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True)
        )
        reach += (block + 1) / per_frame
    return int(reach + 3 / per_frame) + 2
