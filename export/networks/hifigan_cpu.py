"""The HiFi-GAN generator as a graph for a CPU: the same sums, in a form that ONNX Runtime's fast convolutions take."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from mkc_fast.export.networks.hifigan import LAST_SLOPE, SLOPE, Conv, HifiGan, Stage, reach_frames

if TYPE_CHECKING:
    from mkc_fast.export.checkpoints.configs import HifiGanConfig

# Stages from this one on work on pieces. The first has the most channels, enough of them for a few threads.
FIRST_PIECED = 1


class CpuHifiGan(nn.Module):
    """Features (B, T, D) → waveforms (B, T * hop) in [-1, 1], as ``HifiGan``.

    ONNX Runtime has its fast direct convolutions for two dimensions only, so time is the width of images one sample
    high. It gives a thread some rows of some 64 output channels of one image, which leaves all threads but one idle
    where an image has one row and 64 channels; so the later stages work on several pieces of each sequence as on images
    of their own. Pieces overlap by what the remaining stages can see, so nothing depends on how they are cut.
    """

    def __init__(self, generator: HifiGan) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, features: torch.Tensor, pieces: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """Float32 (B, T, D) → float32 (B, T * hop).

        Args:
            features: What the vocoder takes.
            pieces: (n, w) int64, the frames of each piece, consecutive and overlapping.
            kept: (T,) int64, where in the pieces, laid end to end, each frame is taken from.
        """
        batch, count, width = features.shape[0], pieces.shape[0], pieces.shape[1]
        whole = self.generator
        x = _convolve(whole.conv_pre, whole.lin_pre(features).transpose(1, 2).unsqueeze(2))
        for index, stage in enumerate(whole.stages):
            if index == FIRST_PIECED:
                channels, per_frame = x.shape[1], self._per_frame(index)
                # Whole frames at a time: copies of a few samples each would take longer.
                x = x.reshape(batch, channels, features.shape[1], per_frame).index_select(2, pieces.reshape(-1))
                x = x.reshape(batch, channels, count, width * per_frame).transpose(1, 2)
                x = x.reshape(batch * count, channels, 1, width * per_frame)
            x = _upsample_and_blocks(stage, x)  # type: ignore[arg-type]
        waveform = torch.tanh(_convolve(whole.conv_post, F.leaky_relu(x, LAST_SLOPE)))
        frames = waveform.reshape(batch, count * width, whole.hop)
        return frames.index_select(1, kept).reshape(batch, features.shape[1] * whole.hop)

    def _per_frame(self, stage: int) -> int:
        """Samples of a frame at the input of a stage."""
        return math.prod(before.rate for before in list(self.generator.stages)[:stage])  # type: ignore[misc]


def fits(generator: HifiGan) -> bool:
    """Whether the generator has stages to cut into pieces, and every one of them gives whole frames."""
    return len(generator.stages) > FIRST_PIECED and not generator.overshoots()


def piece_reach(config: HifiGanConfig) -> int:
    """How many frames to either side the stages on pieces can see."""
    return reach_frames(config, FIRST_PIECED)


def _convolve(conv: Conv, x: torch.Tensor) -> torch.Tensor:
    return F.conv2d(x, conv.weight.unsqueeze(2), conv.bias, padding=(0, conv.padding), dilation=(1, conv.dilation))


def _upsample_and_blocks(stage: Stage, x: torch.Tensor) -> torch.Tensor:
    padding = (stage.kernel - stage.rate) // 2
    x = F.conv_transpose2d(
        F.leaky_relu(x, SLOPE), stage.weight.unsqueeze(2), stage.bias, stride=(1, stage.rate), padding=(0, padding)
    )
    total = stage.blocks[0](x, _convolve)
    for block in stage.blocks[1:]:
        total = total + block(x, _convolve)
    return total  # type: ignore[no-any-return]
