"""WavLM up to one transformer layer, as a graph: waveform → features (Chen et al. 2022, arXiv 2110.13900)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from mkc_fast.errors import CheckpointError
from mkc_fast.export.checkpoints.weights import WeightReader
from mkc_fast.export.networks.layers import Linear, SelfAttention, key_mask, take_layer_norm, take_linear

if TYPE_CHECKING:
    from pathlib import Path

    from mkc_fast.export.checkpoints.configs import WavLMConfig
    from mkc_fast.export.checkpoints.published import WavLMCheckpoint


class WavLM(nn.Module):
    """Waveforms (B, S) with lengths (B,) in samples → the output of transformer layer ``layer``, (B, T, D).

    Frames past an utterance's end hold values of no meaning, and no frame before it depends on them.
    """

    def __init__(self, path: Path, checkpoint: WavLMCheckpoint, layer: int) -> None:
        super().__init__()
        config, read = checkpoint.config, WeightReader(path, checkpoint.weights)
        config.check_layer(path, layer)
        self.config = config
        in_channels = (1, *(channels for channels, _, _ in config.conv_layers))
        self.convs = nn.ModuleList(
            ConvLayer(read, index, in_channels[index], config) for index in range(len(config.conv_layers))
        )
        self.feature_norm = take_layer_norm(read, "layer_norm", in_channels[-1])
        projected = read.has("post_extract_proj.weight")
        if not projected and in_channels[-1] != config.dim:
            raise CheckpointError(
                f"{path}: lacks post_extract_proj, and {in_channels[-1]} channels are not {config.dim}"
            )
        self.projection = (
            take_linear(read, "post_extract_proj", config.dim, in_channels[-1]) if projected else nn.Identity()
        )
        self.position = PositionConv(read, config)
        # Before the layers where they normalize after themselves; with layer_norm_first it would come after the last.
        self.input_norm = (
            nn.Identity() if config.layer_norm_first else take_layer_norm(read, "encoder.layer_norm", config.dim)
        )
        self.bias = RelativeBias(read, config) if config.relative_positions else None
        self.layers = nn.ModuleList(EncoderLayer(read, index, config) for index in range(layer))

    def forward(self, waveform: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Float32 (B, S), int64 (B,) → float32 (B, T, D)."""
        x = waveform.unsqueeze(1)
        for conv in self.convs:
            x = conv(x, lengths)
        x = self.projection(self.feature_norm(x.transpose(1, 2)))
        valid = covered(lengths, x.shape[1], self.config.hop, self.config.min_samples)
        # The position convolution sees past the end, where a lone utterance has zeros.
        x = x * valid.unsqueeze(-1).to(x.dtype)
        x = self.input_norm(x + self.position(x))
        positions = None if self.bias is None else self.bias(x.shape[1])
        mask = key_mask(valid)
        for layer in self.layers:
            x = layer(x, positions, mask)
        return x  # type: ignore[no-any-return]


def covered(lengths: torch.Tensor, frames: int, stride: int, window: int) -> torch.Tensor:
    """Which of these frames, each a window of samples, lie inside each utterance: lengths (B,) → bool (B, frames).

    By multiplication: a division would go through float32, which counts exactly only to 17 minutes of samples.
    """
    return (torch.arange(frames) * stride + window).unsqueeze(0) <= lengths.unsqueeze(1)


class ConvLayer(nn.Module):
    """A convolution of the feature extractor with its normalization and GELU: (B, C, S) → (B, C', S')."""

    def __init__(self, read: WeightReader, index: int, in_channels: int, config: WavLMConfig) -> None:
        super().__init__()
        channels, kernel, stride = config.conv_layers[index]
        name = f"feature_extractor.conv_layers.{index}"
        self.weight = nn.Parameter(read.take(f"{name}.0.weight", channels, in_channels, kernel), requires_grad=False)
        bias = read.take(f"{name}.0.bias", channels) if read.has(f"{name}.0.bias") else None
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.stride = stride
        self.norm = take_layer_norm(read, f"{name}.2.1", channels) if config.extractor_mode == "layer_norm" else None
        self.time_norm = (
            TimeNorm(read, f"{name}.2", channels) if config.extractor_mode == "default" and index == 0 else None
        )

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        x = F.conv1d(x, self.weight, self.bias, stride=self.stride)
        if self.norm is not None:
            x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        if self.time_norm is not None:
            x = self.time_norm(x, covered(lengths, x.shape[2], self.stride, self.weight.shape[2]))
        return F.gelu(x)


class TimeNorm(nn.Module):
    """GroupNorm with a group a channel, over what belongs to each utterance: (B, C, S), bool (B, S) → (B, C, S)."""

    def __init__(self, read: WeightReader, name: str, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(read.take(f"{name}.weight", channels).unsqueeze(-1), requires_grad=False)
        self.bias = nn.Parameter(read.take(f"{name}.bias", channels).unsqueeze(-1), requires_grad=False)

    def forward(self, x: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        keep = valid.unsqueeze(1).to(x.dtype)
        count = keep.sum(dim=2, keepdim=True)
        mean = (x * keep).sum(dim=2, keepdim=True) / count
        centered = (x - mean) * keep
        variance = (centered * centered).sum(dim=2, keepdim=True) / count
        return centered * torch.rsqrt(variance + 1e-5) * self.weight + self.bias


class PositionConv(nn.Module):
    """The convolutional position embedding: (B, T, D) → (B, T, D)."""

    def __init__(self, read: WeightReader, config: WavLMConfig) -> None:
        super().__init__()
        dim, kernel, groups = config.dim, config.conv_pos, config.conv_pos_groups
        if dim % groups:
            raise CheckpointError(f"{read.path}: {dim} dimensions do not divide into {groups} position groups")
        weight = read.take("encoder.pos_conv.0.weight", dim, dim // groups, kernel)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(read.take_or_zeros("encoder.pos_conv.0.bias", dim), requires_grad=False)
        self.groups = groups
        # An even kernel gives one output too many, and the last one is dropped: the same as one zero less at the end.
        self.pad = (kernel // 2, kernel // 2 - (1 if kernel % 2 == 0 else 0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.pad(x.transpose(1, 2), self.pad)
        return F.gelu(F.conv1d(x, self.weight, self.bias, groups=self.groups)).transpose(1, 2)


class RelativeBias(nn.Module):
    """The bucketed relative-position bias of all layers: a number of frames T → (H, T, T)."""

    def __init__(self, read: WeightReader, config: WavLMConfig) -> None:
        super().__init__()
        name = "encoder.layers.0.self_attn.relative_attention_bias.weight"
        embedding = read.take(name, config.num_buckets, config.num_heads)
        # Past max_distance all share the last bucket, so a table over -reach..reach holds every case. The logarithm
        # is taken here, once, by the library that trained the model: another one's rounding would move a boundary.
        self.reach = config.max_distance
        distances = torch.arange(-self.reach, self.reach + 1)
        buckets = relative_buckets(distances, config.num_buckets, config.max_distance)
        self.table = nn.Parameter(embedding[buckets].T.contiguous(), requires_grad=False)  # (H, 2 * reach + 1)

    def forward(self, frames: int) -> torch.Tensor:
        positions = torch.arange(frames)
        distances = positions.unsqueeze(0) - positions.unsqueeze(1)  # key - query
        index = distances.clamp(-self.reach, self.reach) + self.reach
        return self.table.index_select(1, index.reshape(-1)).reshape(-1, frames, frames)


def relative_buckets(distances: torch.Tensor, num_buckets: int, max_distance: int) -> torch.Tensor:
    """Buckets of key - query distances: exact when near, logarithmic when far, a half for each sign (as in T5)."""
    half = num_buckets // 2
    exact = half // 2
    away = distances.abs()
    log_ratio = torch.log(away.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    far = (exact + (log_ratio * (half - exact)).long()).clamp(max=half - 1)
    return (distances > 0).long() * half + torch.where(away < exact, away, far)


class EncoderLayer(nn.Module):
    """One transformer layer, normalizing before or after its parts: (B, T, D) → (B, T, D)."""

    def __init__(self, read: WeightReader, index: int, config: WavLMConfig) -> None:
        super().__init__()
        name = f"encoder.layers.{index}"
        dim = config.dim
        self.norm_first = config.layer_norm_first
        self.attention = take_attention(read, f"{name}.self_attn", config)
        self.attention_norm = take_layer_norm(read, f"{name}.self_attn_layer_norm", dim)
        self.gate = (
            PositionGate(read, f"{name}.self_attn", config) if config.gated and config.relative_positions else None
        )
        self.fc1 = take_linear(read, f"{name}.fc1", config.ffn_dim, dim)
        self.fc2 = take_linear(read, f"{name}.fc2", dim, config.ffn_dim)
        self.final_norm = take_layer_norm(read, f"{name}.final_layer_norm", dim)

    def forward(self, x: torch.Tensor, positions: torch.Tensor | None, mask: torch.Tensor) -> torch.Tensor:
        if self.norm_first:
            x = x + self._attend(self.attention_norm(x), positions, mask)
            return x + self.fc2(F.gelu(self.fc1(self.final_norm(x))))  # type: ignore[no-any-return]
        x = self.attention_norm(x + self._attend(x, positions, mask))
        return self.final_norm(x + self.fc2(F.gelu(self.fc1(x))))  # type: ignore[no-any-return]

    def _attend(self, x: torch.Tensor, positions: torch.Tensor | None, mask: torch.Tensor) -> torch.Tensor:
        bias = mask
        if positions is not None:
            bias = (positions if self.gate is None else self.gate(x) * positions) + mask
        return self.attention(x, bias)  # type: ignore[no-any-return]


class PositionGate(nn.Module):
    """What weight a query gives to relative positions (the gate of WavLM, section 3.1): (B, T, D) → (B, H, T, 1)."""

    def __init__(self, read: WeightReader, name: str, config: WavLMConfig) -> None:
        super().__init__()
        heads, head_dim = config.num_heads, config.dim // config.num_heads
        self.num_heads, self.head_dim = heads, head_dim
        # The published layer gives 8 numbers a head and sums them in two fours; sums of rows do it in one step.
        weight = read.take(f"{name}.grep_linear.weight", 8, head_dim).reshape(2, 4, head_dim).sum(dim=1)
        bias = read.take_or_zeros(f"{name}.grep_linear.bias", 8).reshape(2, 4).sum(dim=1)
        self.linear = Linear(weight, bias)
        self.scale = nn.Parameter(read.take(f"{name}.grep_a", 1, heads, 1, 1), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        per_head = x.reshape(x.shape[0], x.shape[1], self.num_heads, self.head_dim)
        both: torch.Tensor = torch.sigmoid(self.linear(per_head)).permute(0, 2, 1, 3)
        return both[..., :1] * (both[..., 1:] * self.scale - 1.0) + 2.0


def take_attention(read: WeightReader, name: str, config: WavLMConfig) -> SelfAttention:
    """The published q_proj, k_proj and v_proj as one Linear, queries scaled by 1/√head_dim."""
    dim = config.dim
    scale = (dim // config.num_heads) ** -0.5
    parts = [take_linear(read, f"{name}.{part}_proj", dim, dim, scale if part == "q" else 1.0) for part in "qkv"]
    weight = torch.cat([part.weight.detach().T for part in parts])
    biases = [torch.zeros(dim) if part.bias is None else part.bias.detach() for part in parts]
    bias = None if all(part.bias is None for part in parts) else torch.cat(biases)
    return SelfAttention(Linear(weight, bias), take_linear(read, f"{name}.out_proj", dim, dim), config.num_heads)
