"""The conformer that restores centroids to features, as a graph (Gulati et al. 2020, arXiv 2005.08100)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from mkc_fast.export.checkpoints.weights import WeightReader
from mkc_fast.export.networks.layers import Linear, SelfAttention, key_mask, take_layer_norm, take_linear, valid_frames

if TYPE_CHECKING:
    from pathlib import Path

    from mkc_fast.export.checkpoints.configs import ConformerConfig
    from mkc_fast.export.checkpoints.published import VoiceCheckpoint

_BATCH_NORM_EPSILON = 1e-5


class Conformer(nn.Module):
    """Quantized features (B, T, D) with lengths (B,) in frames → restored features (B, T, D).

    Layers as in ``torchaudio.models.Conformer`` with BatchNorm and attention before convolution. Frames past an
    utterance's end hold values of no meaning, and no frame before it depends on them.
    """

    def __init__(self, path: Path, checkpoint: VoiceCheckpoint) -> None:
        super().__init__()
        read = WeightReader(path, checkpoint.conformer_weights)
        self.layers = nn.ModuleList(
            ConformerLayer(read, str(index), checkpoint.conformer) for index in range(checkpoint.conformer.num_layers)
        )

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Float32 (B, T, D), int64 (B,) → float32 (B, T, D)."""
        valid = valid_frames(lengths, features.shape[1])
        mask, keep = key_mask(valid), valid.unsqueeze(-1).to(features.dtype)
        x = features
        for layer in self.layers:
            x = layer(x, mask, keep)
        return x


class ConformerLayer(nn.Module):
    """Half feed-forward, attention, convolution, half feed-forward, LayerNorm: (B, T, D) → (B, T, D)."""

    def __init__(self, read: WeightReader, name: str, config: ConformerConfig) -> None:
        super().__init__()
        dim = config.dim
        self.ffn1 = FeedForward(read, f"{name}.ffn1.sequential", config)
        self.attention_norm = take_layer_norm(read, f"{name}.self_attn_layer_norm", dim)
        self.attention = take_attention(read, f"{name}.self_attn", config)
        self.convolution = ConvModule(read, f"{name}.conv_module", config)
        self.ffn2 = FeedForward(read, f"{name}.ffn2.sequential", config)
        self.final_norm = take_layer_norm(read, f"{name}.final_layer_norm", dim)

    def forward(self, x: torch.Tensor, mask: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        x = x + self.ffn1(x)
        x = x + self.attention(self.attention_norm(x), mask)
        x = x + self.convolution(x, keep)
        x = x + self.ffn2(x)
        return self.final_norm(x)  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """LayerNorm, Linear, SiLU, Linear; the factor one half is in the second Linear: (B, T, D) → (B, T, D)."""

    def __init__(self, read: WeightReader, name: str, config: ConformerConfig) -> None:
        super().__init__()
        self.norm = take_layer_norm(read, f"{name}.0", config.dim)
        self.fc1 = take_linear(read, f"{name}.1", config.ffn_dim, config.dim)
        self.fc2 = take_linear(read, f"{name}.4", config.dim, config.ffn_dim, scale=0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.silu(self.fc1(self.norm(x))))  # type: ignore[no-any-return]


class ConvModule(nn.Module):
    """LayerNorm, pointwise Linear with GLU, depthwise convolution with its BatchNorm folded in, SiLU, Linear."""

    def __init__(self, read: WeightReader, name: str, config: ConformerConfig) -> None:
        super().__init__()
        dim, kernel = config.dim, config.kernel_size
        self.norm = take_layer_norm(read, f"{name}.layer_norm", dim)
        self.expand = _pointwise(read, f"{name}.sequential.0", 2 * dim, dim)
        self.reduce = _pointwise(read, f"{name}.sequential.5", dim, dim)
        depthwise = read.take(f"{name}.sequential.2.weight", dim, 1, kernel).double()
        bias = read.take_or_zeros(f"{name}.sequential.2.bias", dim).double()
        gain, offset, mean, variance = (
            read.take(f"{name}.sequential.3.{part}", dim).double()
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        factor = gain * torch.rsqrt(variance + _BATCH_NORM_EPSILON)
        self.weight = nn.Parameter((depthwise * factor.reshape(-1, 1, 1)).float(), requires_grad=False)
        self.bias = nn.Parameter(((bias - mean) * factor + offset).float(), requires_grad=False)

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """``keep`` (B, T, 1) is 0 on padding: a lone utterance's convolution sees zeros past its end."""
        x = F.glu(self.expand(self.norm(x)), dim=-1) * keep
        x = F.conv1d(
            x.transpose(1, 2), self.weight, self.bias, padding=self.weight.shape[2] // 2, groups=self.weight.shape[0]
        )
        return self.reduce(F.silu(x).transpose(1, 2))  # type: ignore[no-any-return]


def _pointwise(read: WeightReader, name: str, out_dim: int, in_dim: int) -> Linear:
    """A convolution of kernel 1 as the Linear that it is."""
    weight = read.take(f"{name}.weight", out_dim, in_dim, 1).squeeze(-1)
    return Linear(weight, read.take_or_zeros(f"{name}.bias", out_dim))


def take_attention(read: WeightReader, name: str, config: ConformerConfig) -> SelfAttention:
    """The published ``in_proj`` of ``torch.nn.MultiheadAttention``, queries scaled by 1/√head_dim."""
    dim = config.dim
    weight = read.take(f"{name}.in_proj_weight", 3 * dim, dim)
    bias = read.take_or_zeros(f"{name}.in_proj_bias", 3 * dim)
    scale = (dim // config.num_heads) ** -0.5
    weight[:dim] *= scale
    bias[:dim] *= scale
    return SelfAttention(Linear(weight, bias), take_linear(read, f"{name}.out_proj", dim, dim), config.num_heads)
