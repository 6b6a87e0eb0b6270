"""Building blocks that the WavLM and conformer graphs share: weight assignment, frame masks, attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from mkc_fast.export.checkpoints.weights import WeightReader

# Added to the scores of keys that are padding: exp() of it is 0, and it still fits in half precision.
MASKED_SCORE = -30000.0


class Linear(nn.Module):
    """``x @ W + b`` with W stored as (in, out), the form of a MatMul, so that no transposition is left in the graph."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """``weight`` (out, in), as PyTorch publishes it, and ``bias`` (out,)."""
        super().__init__()
        self.weight = nn.Parameter(weight.T.contiguous(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) → (..., out)."""
        y = x @ self.weight
        return y if self.bias is None else y + self.bias


def take_linear(read: WeightReader, name: str, out_dim: int, in_dim: int, scale: float = 1.0) -> Linear:
    """The published Linear ``name``, its output multiplied by ``scale``."""
    weight = read.take(f"{name}.weight", out_dim, in_dim)
    bias = read.take(f"{name}.bias", out_dim) if read.has(f"{name}.bias") else None
    if scale != 1.0:
        weight = weight * scale
        bias = None if bias is None else bias * scale
    return Linear(weight, bias)


def take_layer_norm(read: WeightReader, name: str, dim: int) -> nn.LayerNorm:
    """The published LayerNorm ``name`` (epsilon 1e-5, as everywhere in these models)."""
    layer = nn.LayerNorm(dim, device="meta")
    layer.weight = nn.Parameter(read.take(f"{name}.weight", dim), requires_grad=False)
    layer.bias = nn.Parameter(read.take(f"{name}.bias", dim), requires_grad=False)
    return layer


def valid_frames(lengths: torch.Tensor, frames: int) -> torch.Tensor:
    """Which frames belong to each utterance: lengths (B,) in frames → bool (B, frames)."""
    return torch.arange(frames).unsqueeze(0) < lengths.unsqueeze(1)


def key_mask(valid: torch.Tensor) -> torch.Tensor:
    """What to add to attention scores so that padding is not attended to: bool (B, T) → float32 (B, 1, 1, T)."""
    return torch.where(valid, 0.0, MASKED_SCORE).unsqueeze(1).unsqueeze(1)


class SelfAttention(nn.Module):
    """Multi-head self-attention with one product for queries, keys and values; the query scale is in the weights."""

    def __init__(self, qkv: Linear, out: Linear, num_heads: int) -> None:
        super().__init__()
        self.qkv = qkv
        self.out = out
        self.num_heads = num_heads
        self.head_dim = out.weight.shape[0] // num_heads

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """X (B, T, D), bias broadcastable to (B, H, T, T) → (B, T, D)."""
        batch, frames, dim = x.shape
        query, key, value = self.qkv(x).split(dim, dim=-1)
        query = query.reshape(batch, frames, self.num_heads, self.head_dim).permute(0, 2, 1, 3)
        key = key.reshape(batch, frames, self.num_heads, self.head_dim).permute(0, 2, 3, 1)
        value = value.reshape(batch, frames, self.num_heads, self.head_dim).permute(0, 2, 1, 3)
        weights = torch.softmax(query @ key + bias, dim=-1)
        mixed = (weights @ value).permute(0, 2, 1, 3).reshape(batch, frames, dim)
        return self.out(mixed)  # type: ignore[no-any-return]
