"""WavLM as it is trained (Chen et al. 2022, arXiv 2110.13900), with the parameters' names of published checkpoints."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mkc_fast.export.networks.wavlm import relative_buckets


class WavLM(nn.Module):
    """Waveforms (B, S) of one length → the last layer's output (B, T, D).

    Each convolution is followed by LayerNorm over its channels, and each part of a transformer layer, too.
    """

    def __init__(self, cfg: dict[str, Any]) -> None:
        super().__init__()
        dim, kernel, groups = cfg["encoder_embed_dim"], cfg["conv_pos"], cfg["conv_pos_groups"]
        layers, channels = [], 1
        for width, size, stride in cfg["conv_layers"]:
            layers.append(_Convolution(channels, width, size, stride))
            channels = width
        self.feature_extractor = nn.ModuleDict({"conv_layers": nn.ModuleList(layers)})
        self.layer_norm = nn.LayerNorm(channels)
        self.post_extract_proj = nn.Linear(channels, dim)
        self.encoder = _Encoder(cfg, dim, kernel, groups)

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        x = waveform.unsqueeze(1)
        for layer in self.feature_extractor["conv_layers"]:
            x = layer(x)
        return self.encoder(self.post_extract_proj(self.layer_norm(x.transpose(1, 2))))

    def published(self) -> dict[str, torch.Tensor]:
        """Its weights under their published names."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self.state_dict().items()}


class _Convolution(nn.Sequential):
    """A convolution without bias, LayerNorm over its channels, and GELU; names as published: 0 and 2.1."""

    def __init__(self, channels: int, width: int, size: int, stride: int) -> None:
        convolution = nn.Conv1d(channels, width, size, stride, bias=False)
        nn.init.kaiming_normal_(convolution.weight)
        super().__init__(convolution, nn.Identity(), nn.Sequential(nn.Identity(), nn.LayerNorm(width)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(self[2][1](self[0](x).transpose(1, 2)).transpose(1, 2))


class _Encoder(nn.Module):
    def __init__(self, cfg: dict[str, Any], dim: int, kernel: int, groups: int) -> None:
        super().__init__()
        position = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=groups)
        nn.init.normal_(position.weight, 0, math.sqrt(4 / (kernel * dim)))
        nn.init.zeros_(position.bias)
        self.pos_conv = nn.Sequential(position)
        self.layer_norm = nn.LayerNorm(dim)
        self.layers = nn.ModuleList(_Layer(cfg, dim, first=not index) for index in range(cfg["encoder_layers"]))
        self.buckets, self.distance = cfg["num_buckets"], cfg["max_distance"]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        positions = self.pos_conv(x.transpose(1, 2))[:, :, : x.shape[1]].transpose(1, 2)
        x = self.layer_norm(x + F.gelu(positions))
        places = torch.arange(x.shape[1], device=x.device)
        buckets = relative_buckets(places.unsqueeze(0) - places.unsqueeze(1), self.buckets, self.distance)
        bias = self.layers[0].self_attn.relative_attention_bias(buckets).permute(2, 0, 1)
        for layer in self.layers:
            x = layer(x, bias)
        return x


class _Layer(nn.Module):
    def __init__(self, cfg: dict[str, Any], dim: int, *, first: bool) -> None:
        super().__init__()
        self.self_attn = _Attention(dim, cfg["encoder_attention_heads"], cfg["num_buckets"] if first else None)
        self.self_attn_layer_norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, cfg["encoder_ffn_embed_dim"])
        self.fc2 = nn.Linear(cfg["encoder_ffn_embed_dim"], dim)
        self.final_layer_norm = nn.LayerNorm(dim)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        x = self.self_attn_layer_norm(x + self.self_attn(x, bias))
        return self.final_layer_norm(x + self.fc2(F.gelu(self.fc1(x))))


class _Attention(nn.Module):
    """Attention with gated relative positions (section 3.1)."""

    def __init__(self, dim: int, heads: int, buckets: int | None) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(dim, dim) for _ in range(4))
        self.grep_linear = nn.Linear(dim // heads, 8)
        self.grep_a = nn.Parameter(torch.ones(1, heads, 1, 1))
        if buckets is not None:
            self.relative_attention_bias = nn.Embedding(buckets, heads)
            nn.init.normal_(self.relative_attention_bias.weight, 0, 0.1)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        batch, frames, dim = x.shape
        split = x.view(batch, frames, self.heads, -1).transpose(1, 2)
        gates = torch.sigmoid(self.grep_linear(split).view(batch, self.heads, frames, 2, 4).sum(-1))
        gate = gates[..., :1] * (gates[..., 1:] * self.grep_a - 1.0) + 2.0
        query, key, value = (
            each(x).view(batch, frames, self.heads, -1).transpose(1, 2)
            for each in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=gate * bias)
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, frames, dim))
