"""The conformer as it is trained (Gulati et al. 2020, arXiv 2005.08100).

Parameters have the names of ``torchaudio.models.Conformer``, so that its state dict is that of published checkpoints.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from mkc_fast.export.checkpoints.weights import WeightReader

if TYPE_CHECKING:
    from pathlib import Path

    from mkc_fast.export.checkpoints.configs import ConformerConfig
    from mkc_fast.export.checkpoints.weights import Weights


class Conformer(nn.Module):
    """Quantized features (B, T, D) with lengths (B,) in frames → restored features (B, T, D).

    Frames past an utterance's end change nothing before it, and BatchNorm counts none of them.
    """

    def __init__(self, config: ConformerConfig, dropout: float = 0.1) -> None:
        super().__init__()
        self.conformer_layers = nn.ModuleList(ConformerLayer(config, dropout) for _ in range(config.num_layers))

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Float32 (B, T, D), int64 (B,) on the CPU → (B, T, D)."""
        padding = Padding.of(lengths, features)
        x = features
        for layer in self.conformer_layers:
            x = layer(x, padding)
        return x

    def begin_at(self, features: torch.Tensor) -> None:
        """Let the output have about the mean and spread of features (n, D) from the first step on.

        The last LayerNorm sets both. AdamW moves a gain by about its rate a step, so a gain of 1 takes long to reach
        the spread of a wide dimension.
        """
        last = self.conformer_layers[-1]
        assert isinstance(last, ConformerLayer)
        norm = last.final_layer_norm
        with torch.no_grad():
            norm.weight.copy_(features.std(0, correction=0))
            norm.bias.copy_(features.mean(0))

    def take(self, path: Path, weights: Weights) -> None:
        """Take the weights of a checkpoint, under the names that they have below ``conformer_layers``.

        Raises:
            CheckpointError: One is missing or has another shape.
        """
        read = WeightReader(path, weights)
        with torch.no_grad():
            for name, tensor in self.conformer_layers.state_dict().items():
                if tensor.is_floating_point():  # and not BatchNorm's number of steps, on which nothing depends
                    tensor.copy_(read.take(name, *tensor.shape))


class Padding:
    """Which frames of a padded batch belong to utterances.

    Attributes:
        keys: (B, 1, 1, T) bool, True where a frame may be attended to; None where there is no padding.
        keep: (B, 1, T) float, 0 on padding; None likewise.
        rows: Of (B * T,) frames those of utterances, (n,) int64; None likewise.
    """

    def __init__(self, keys: torch.Tensor | None, keep: torch.Tensor | None, rows: torch.Tensor | None) -> None:
        self.keys, self.keep, self.rows = keys, keep, rows

    @classmethod
    def of(cls, lengths: torch.Tensor, features: torch.Tensor) -> Padding:
        """For a batch (B, T, D) of these lengths, on its device."""
        frames, device = features.shape[1], features.device
        if int(lengths.min()) == frames:
            return cls(None, None, None)
        # On the CPU, so that a GPU is not waited for.
        valid = torch.arange(frames) < lengths.unsqueeze(1)
        rows = valid.flatten().nonzero().squeeze(1).to(device)
        valid = valid.to(device)
        return cls(valid[:, None, None], valid[:, None].to(features.dtype), rows)


class ConformerLayer(nn.Module):
    """Half feed-forward, attention, convolution, half feed-forward, LayerNorm: (B, T, D) → (B, T, D)."""

    def __init__(self, config: ConformerConfig, dropout: float) -> None:
        super().__init__()
        self.ffn1 = FeedForward(config, dropout)
        self.self_attn_layer_norm = nn.LayerNorm(config.dim)
        self.self_attn = SelfAttention(config, dropout)
        self.self_attn_dropout = nn.Dropout(dropout)
        self.conv_module = ConvModule(config, dropout)
        self.ffn2 = FeedForward(config, dropout)
        self.final_layer_norm = nn.LayerNorm(config.dim)

    def forward(self, x: torch.Tensor, padding: Padding) -> torch.Tensor:
        x = x + 0.5 * self.ffn1(x)
        x = x + self.self_attn_dropout(self.self_attn(self.self_attn_layer_norm(x), padding.keys))
        x = x + self.conv_module(x, padding)
        x = x + 0.5 * self.ffn2(x)
        return self.final_layer_norm(x)  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """LayerNorm, Linear, SiLU, Dropout, Linear, Dropout: (B, T, D) → (B, T, D)."""

    def __init__(self, config: ConformerConfig, dropout: float) -> None:
        super().__init__()
        self.sequential = nn.Sequential(
            nn.LayerNorm(config.dim),
            nn.Linear(config.dim, config.ffn_dim),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Linear(config.ffn_dim, config.dim),
            nn.Dropout(dropout),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.sequential(x)  # type: ignore[no-any-return]


class SelfAttention(nn.Module):
    """Multi-head attention with the parameters of ``torch.nn.MultiheadAttention``: (B, T, D) → (B, T, D)."""

    def __init__(self, config: ConformerConfig, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = config.num_heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * config.dim, config.dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * config.dim))
        self.out_proj = nn.Linear(config.dim, config.dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: torch.Tensor, keys: torch.Tensor | None) -> torch.Tensor:
        batch, frames, dim = x.shape
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        query, key, value = qkv.reshape(batch, frames, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        dropped = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=keys, dropout_p=dropped)
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, frames, dim))  # type: ignore[no-any-return]


class ConvModule(nn.Module):
    """LayerNorm, pointwise convolution, GLU, depthwise convolution, BatchNorm, SiLU, pointwise convolution, Dropout."""

    def __init__(self, config: ConformerConfig, dropout: float) -> None:
        super().__init__()
        dim, kernel = config.dim, config.kernel_size
        self.layer_norm = nn.LayerNorm(dim)
        self.sequential = nn.Sequential(
            nn.Conv1d(dim, 2 * dim, 1),
            nn.GLU(dim=1),
            nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=dim),
            nn.BatchNorm1d(dim),
            nn.SiLU(),
            nn.Conv1d(dim, dim, 1),
            nn.Dropout(dropout),
        )

    def forward(self, x: torch.Tensor, padding: Padding) -> torch.Tensor:
        expand, gate, depthwise, norm, activation, reduce, dropout = self.sequential
        x = gate(expand(self.layer_norm(x).transpose(1, 2)))
        if padding.keep is not None:
            # The convolution of a lone utterance sees zeros past its end.
            x = x * padding.keep.to(x.dtype)
        x = _normalized(depthwise(x), norm, padding.rows)
        return dropout(reduce(activation(x))).transpose(1, 2)  # type: ignore[no-any-return]


def _normalized(x: torch.Tensor, norm: nn.Module, rows: torch.Tensor | None) -> torch.Tensor:
    """BatchNorm over the frames of utterances alone: (B, D, T) → (B, D, T)."""
    if rows is None:
        return norm(x)  # type: ignore[no-any-return]
    batch, dim, frames = x.shape
    every = x.transpose(1, 2).reshape(batch * frames, dim)
    normed = norm(every.index_select(0, rows))
    placed = torch.zeros_like(every, dtype=normed.dtype).index_copy(0, rows, normed)
    return placed.reshape(batch, frames, dim).transpose(1, 2)
