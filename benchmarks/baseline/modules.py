"""The published networks as eager PyTorch modules, as people run them today: the baseline of the benchmarks.

Nothing here is made for a graph, and nothing is made slow: attention is PyTorch's own fused one wherever the baseline
calls it, there are no masks for padding that a lone utterance does not have, and weight norm is folded when the
weights are loaded (the scripts remove it from the vocoder and leave it in one convolution of WavLM).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from mkc_fast.errors import CheckpointError
from mkc_fast.export.checkpoints.weights import WeightReader
from mkc_fast.export.networks.wavlm import relative_buckets

if TYPE_CHECKING:
    from pathlib import Path

    from mkc_fast.export.checkpoints.configs import ConformerConfig, HifiGanConfig, WavLMConfig
    from mkc_fast.export.checkpoints.published import VoiceCheckpoint, WavLMCheckpoint

_SLOPE = 0.1


def _parameter(value: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=False)


def _linear(read: WeightReader, name: str, out_dim: int, in_dim: int) -> nn.Linear:
    layer = nn.Linear(in_dim, out_dim, bias=read.has(f"{name}.bias"), device="meta")
    layer.weight = _parameter(read.take(f"{name}.weight", out_dim, in_dim))
    if read.has(f"{name}.bias"):
        layer.bias = _parameter(read.take(f"{name}.bias", out_dim))
    return layer


def _conv(
    read: WeightReader, name: str, out_channels: int, in_channels: int, kernel: int, *, stride: int = 1,
    padding: int = 0, dilation: int = 1, groups: int = 1,
) -> nn.Conv1d:  # fmt: skip
    has_bias = read.has(f"{name}.bias")
    layer = nn.Conv1d(
        in_channels, out_channels, kernel, stride, padding, dilation, groups, bias=has_bias, device="meta"
    )
    layer.weight = _parameter(read.take(f"{name}.weight", out_channels, in_channels // groups, kernel))
    if has_bias:
        layer.bias = _parameter(read.take(f"{name}.bias", out_channels))
    return layer


def _affine(read: WeightReader, name: str, layer: nn.LayerNorm | nn.GroupNorm, dim: int) -> None:
    layer.weight = _parameter(read.take(f"{name}.weight", dim))
    layer.bias = _parameter(read.take(f"{name}.bias", dim))


def _layer_norm(read: WeightReader, name: str, dim: int) -> nn.LayerNorm:
    layer = nn.LayerNorm(dim, device="meta")
    _affine(read, name, layer, dim)
    return layer


class EagerWavLM(nn.Module):
    """WavLM with all its layers; the forward pass ends after one of them (Chen et al. 2022, arXiv 2110.13900)."""

    def __init__(self, path: Path, checkpoint: WavLMCheckpoint) -> None:
        super().__init__()
        config, read = checkpoint.config, WeightReader(path, checkpoint.weights)
        channels = (1, *(count for count, _, _ in config.conv_layers))
        self.config = config
        self.convs = nn.ModuleList(
            EagerConvLayer(read, index, channels[index], config) for index in range(len(config.conv_layers))
        )
        self.feature_norm = _layer_norm(read, "layer_norm", channels[-1])
        self.projection: nn.Module = (
            _linear(read, "post_extract_proj", config.dim, channels[-1])
            if read.has("post_extract_proj.weight")
            else nn.Identity()
        )
        self.position = _conv(
            read,
            "encoder.pos_conv.0",
            config.dim,
            config.dim,
            config.conv_pos,
            padding=config.conv_pos // 2,
            groups=config.conv_pos_groups,
        )
        self.encoder_norm = _layer_norm(read, "encoder.layer_norm", config.dim)
        self.relative = nn.Embedding(config.num_buckets, config.num_heads, device="meta")
        if config.relative_positions:
            name = "encoder.layers.0.self_attn.relative_attention_bias.weight"
            self.relative.weight = _parameter(read.take(name, config.num_buckets, config.num_heads))
        self.layers = nn.ModuleList(EagerEncoderLayer(read, index, config) for index in range(config.num_layers))

    def forward(self, waveform: torch.Tensor, layer: int) -> torch.Tensor:
        """Float32 (1, S) → the output of transformer layer ``layer`` (from 1), (1, T, D)."""
        x = waveform.unsqueeze(1)
        for conv in self.convs:
            x = conv(x)
        x = self.projection(self.feature_norm(x.transpose(1, 2)))
        position = self.position(x.transpose(1, 2))
        if self.config.conv_pos % 2 == 0:
            position = position[:, :, :-1]
        x = x + F.gelu(position).transpose(1, 2)
        if not self.config.layer_norm_first:
            x = self.encoder_norm(x)
        x = x.transpose(0, 1)  # time first, as the published encoder has it
        bias = self._position_bias(x.shape[0], x.device) if self.config.relative_positions else None
        for module in self.layers[:layer]:
            x = module(x, bias)
        features: torch.Tensor = x.transpose(0, 1)
        return features

    def _position_bias(self, frames: int, device: torch.device) -> torch.Tensor:
        """The bucketed bias, (H, T, T), once an utterance."""
        positions = torch.arange(frames)
        distances = positions.unsqueeze(0) - positions.unsqueeze(1)
        buckets = relative_buckets(distances, self.config.num_buckets, self.config.max_distance)
        return self.relative(buckets.to(device)).permute(2, 0, 1)  # type: ignore[no-any-return]


class EagerConvLayer(nn.Module):
    """A convolution of the feature extractor with its normalization and GELU: (1, C, S) → (1, C', S')."""

    def __init__(self, read: WeightReader, index: int, in_channels: int, config: WavLMConfig) -> None:
        super().__init__()
        channels, kernel, stride = config.conv_layers[index]
        name = f"feature_extractor.conv_layers.{index}"
        self.conv = _conv(read, f"{name}.0", channels, in_channels, kernel, stride=stride)
        self.norm = _layer_norm(read, f"{name}.2.1", channels) if config.extractor_mode == "layer_norm" else None
        self.group_norm: nn.GroupNorm | None = None
        if config.extractor_mode == "default" and index == 0:
            self.group_norm = nn.GroupNorm(channels, channels, device="meta")
            _affine(read, f"{name}.2", self.group_norm, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        if self.group_norm is not None:
            x = self.group_norm(x)
        return F.gelu(x)


class EagerEncoderLayer(nn.Module):
    """One transformer layer: (T, 1, D), bias (H, T, T) → (T, 1, D)."""

    def __init__(self, read: WeightReader, index: int, config: WavLMConfig) -> None:
        super().__init__()
        name, dim = f"encoder.layers.{index}", config.dim
        self.norm_first = config.layer_norm_first
        self.attention = GatedAttention(read, f"{name}.self_attn", config)
        self.attention_norm = _layer_norm(read, f"{name}.self_attn_layer_norm", dim)
        self.fc1 = _linear(read, f"{name}.fc1", config.ffn_dim, dim)
        self.fc2 = _linear(read, f"{name}.fc2", dim, config.ffn_dim)
        self.final_norm = _layer_norm(read, f"{name}.final_layer_norm", dim)

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if self.norm_first:
            x = x + self.attention(self.attention_norm(x), bias)
            return x + self.fc2(F.gelu(self.fc1(self.final_norm(x))))  # type: ignore[no-any-return]
        x = self.attention_norm(x + self.attention(x, bias))
        return self.final_norm(x + self.fc2(F.gelu(self.fc1(x))))  # type: ignore[no-any-return]


class GatedAttention(nn.Module):
    """Self-attention whose relative-position bias each query gates (section 3.1), by PyTorch's own function."""

    def __init__(self, read: WeightReader, name: str, config: WavLMConfig) -> None:
        super().__init__()
        dim, heads = config.dim, config.num_heads
        self.num_heads, self.head_dim = heads, dim // heads
        self.q, self.k, self.v = (_linear(read, f"{name}.{part}_proj", dim, dim) for part in "qkv")
        self.out = _linear(read, f"{name}.out_proj", dim, dim)
        biased = read.has(f"{name}.q_proj.bias")
        self.in_bias = _parameter(torch.cat((self.q.bias, self.k.bias, self.v.bias))) if biased else None
        self.gate: nn.Linear | None = None
        if config.gated and config.relative_positions:
            self.gate = _linear(read, f"{name}.grep_linear", 8, self.head_dim)
            self.gate_scale = _parameter(read.take(f"{name}.grep_a", 1, heads, 1, 1))

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        frames, _, dim = x.shape
        if bias is not None and self.gate is not None:
            per_head = x.reshape(frames, self.num_heads, self.head_dim).transpose(0, 1)
            gates = torch.sigmoid(self.gate(per_head).reshape(self.num_heads, frames, 2, 4).sum(-1))
            gate_a, gate_b = gates.chunk(2, dim=-1)
            bias = (gate_a * (gate_b * self.gate_scale.reshape(-1, 1, 1) - 1.0) + 2.0) * bias
        mixed, _ = F.multi_head_attention_forward(
            x,
            x,
            x,
            dim,
            self.num_heads,
            None,
            self.in_bias,
            None,
            None,
            False,
            0.0,
            self.out.weight,
            self.out.bias,
            training=False,
            need_weights=False,
            attn_mask=bias,
            use_separate_proj_weight=True,
            q_proj_weight=self.q.weight,
            k_proj_weight=self.k.weight,
            v_proj_weight=self.v.weight,
        )
        return mixed


class EagerConformer(nn.Module):
    """The conformer, layer by layer as in ``torchaudio.models.Conformer``: (1, T, D) → (1, T, D)."""

    def __init__(self, path: Path, checkpoint: VoiceCheckpoint) -> None:
        super().__init__()
        read = WeightReader(path, checkpoint.conformer_weights)
        self.layers = nn.ModuleList(
            EagerConformerLayer(read, str(index), checkpoint.conformer)
            for index in range(checkpoint.conformer.num_layers)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.transpose(0, 1)
        for layer in self.layers:
            x = layer(x)
        return x.transpose(0, 1)


class EagerConformerLayer(nn.Module):
    """Half feed-forward, attention, convolution, half feed-forward, LayerNorm: (T, 1, D) → (T, 1, D)."""

    def __init__(self, read: WeightReader, name: str, config: ConformerConfig) -> None:
        super().__init__()
        dim, heads = config.dim, config.num_heads
        self.ffn1 = _feed_forward(read, f"{name}.ffn1.sequential", config)
        self.attention_norm = _layer_norm(read, f"{name}.self_attn_layer_norm", dim)
        self.attention = nn.MultiheadAttention(dim, heads, device="meta")
        self.attention.in_proj_weight = _parameter(read.take(f"{name}.self_attn.in_proj_weight", 3 * dim, dim))
        self.attention.in_proj_bias = _parameter(read.take_or_zeros(f"{name}.self_attn.in_proj_bias", 3 * dim))
        projection = self.attention.out_proj
        projection.weight = _parameter(read.take(f"{name}.self_attn.out_proj.weight", dim, dim))
        projection.bias = _parameter(read.take_or_zeros(f"{name}.self_attn.out_proj.bias", dim))
        self.conv_norm = _layer_norm(read, f"{name}.conv_module.layer_norm", dim)
        self.convolution = _convolution_module(read, f"{name}.conv_module.sequential", config)
        self.ffn2 = _feed_forward(read, f"{name}.ffn2.sequential", config)
        self.final_norm = _layer_norm(read, f"{name}.final_layer_norm", dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.ffn1(x) * 0.5 + x
        normed = self.attention_norm(x)
        x = self.attention(normed, normed, normed, need_weights=False)[0] + x
        x = self.convolution(self.conv_norm(x).permute(1, 2, 0)).permute(2, 0, 1) + x
        x = self.ffn2(x) * 0.5 + x
        return self.final_norm(x)  # type: ignore[no-any-return]


def _feed_forward(read: WeightReader, name: str, config: ConformerConfig) -> nn.Sequential:
    """LayerNorm, Linear, SiLU, Linear."""
    return nn.Sequential(
        _layer_norm(read, f"{name}.0", config.dim),
        _linear(read, f"{name}.1", config.ffn_dim, config.dim),
        nn.SiLU(),
        _linear(read, f"{name}.4", config.dim, config.ffn_dim),
    )


def _convolution_module(read: WeightReader, name: str, config: ConformerConfig) -> nn.Sequential:
    """Pointwise convolution, GLU, depthwise convolution, BatchNorm, SiLU, pointwise: (1, D, T) → (1, D, T)."""
    dim, kernel = config.dim, config.kernel_size
    norm = nn.BatchNorm1d(dim, device="meta")
    norm.weight = _parameter(read.take(f"{name}.3.weight", dim))
    norm.bias = _parameter(read.take(f"{name}.3.bias", dim))
    norm.running_mean = read.take(f"{name}.3.running_mean", dim)
    norm.running_var = read.take(f"{name}.3.running_var", dim)
    norm.num_batches_tracked = None
    return nn.Sequential(
        _conv(read, f"{name}.0", 2 * dim, dim, 1),
        nn.GLU(dim=1),
        _conv(read, f"{name}.2", dim, dim, kernel, padding=kernel // 2, groups=dim),
        norm,
        nn.SiLU(),
        _conv(read, f"{name}.5", dim, dim, 1),
    )


class EagerHifiGan(nn.Module):
    """The HiFi-GAN generator with its linear layer in front, weight norm removed: (1, T, D) → (1, T * hop)."""

    def __init__(self, path: Path, checkpoint: VoiceCheckpoint) -> None:
        super().__init__()
        config, read = checkpoint.hifigan, WeightReader(path, checkpoint.hifigan_weights)
        self.hop, self.num_blocks = config.hop, len(config.resblock_kernel_sizes)
        channels = config.upsample_initial_channel
        self.lin_pre = _linear(read, "lin_pre", config.hidden_dim, config.input_dim)
        self.conv_pre = _conv(read, "conv_pre", channels, config.hidden_dim, 7, padding=3)
        self.ups, self.blocks = nn.ModuleList(), nn.ModuleList()
        sizes = zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True)
        for index, (rate, kernel) in enumerate(sizes):
            width = channels >> (index + 1)
            self.ups.append(_upsampling(read, f"ups.{index}", 2 * width, width, kernel, rate))
            for which in range(self.num_blocks):
                name = f"resblocks.{index * self.num_blocks + which}"
                self.blocks.append(EagerResBlock(read, name, width, which, config))
        self.conv_post = _conv(read, "conv_post", 1, channels >> len(config.upsample_rates), 7, padding=3)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        x = self.conv_pre(self.lin_pre(features).permute(0, 2, 1))
        for index, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, _SLOPE))
            blocks = self.blocks[index * self.num_blocks : (index + 1) * self.num_blocks]
            total = blocks[0](x)
            for block in blocks[1:]:
                total = total + block(x)
            x = total / self.num_blocks
        waveform = torch.tanh(self.conv_post(F.leaky_relu(x)))
        return waveform.squeeze(1)[:, : features.shape[1] * self.hop]


def _upsampling(
    read: WeightReader, name: str, in_channels: int, out_channels: int, kernel: int, rate: int
) -> nn.ConvTranspose1d:
    layer = nn.ConvTranspose1d(in_channels, out_channels, kernel, rate, padding=(kernel - rate) // 2, device="meta")
    layer.weight = _parameter(read.take(f"{name}.weight", in_channels, out_channels, kernel))
    layer.bias = _parameter(read.take_or_zeros(f"{name}.bias", out_channels))
    return layer


class EagerResBlock(nn.Module):
    """Residual dilated convolutions: pairs of them in type "1", single ones in type "2": (1, C, S) → (1, C, S)."""

    def __init__(self, read: WeightReader, name: str, channels: int, which: int, config: HifiGanConfig) -> None:
        super().__init__()
        kernel, dilations = config.resblock_kernel_sizes[which], config.resblock_dilation_sizes[which]
        first, built = ("convs1", 3) if config.resblock == "1" else ("convs", 2)
        self.dilated, self.plain = nn.ModuleList(), nn.ModuleList()
        for index, dilation in enumerate(dilations[:built]):
            padding = (kernel - 1) * dilation // 2
            conv = f"{name}.{first}.{index}"
            self.dilated.append(_conv(read, conv, channels, channels, kernel, padding=padding, dilation=dilation))
            if config.resblock == "1":
                other = f"{name}.convs2.{index}"
                self.plain.append(_conv(read, other, channels, channels, kernel, padding=kernel // 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for index, dilated in enumerate(self.dilated):
            y = dilated(F.leaky_relu(x, _SLOPE))
            if len(self.plain):
                y = self.plain[index](F.leaky_relu(y, _SLOPE))
            x = x + y
        return x


def check_sizes(path: Path, wavlm: WavLMConfig, voice: VoiceCheckpoint, layer: int) -> None:
    """Refuse checkpoints that do not go together.

    Raises:
        CheckpointError: WavLM has no such layer, or its features are not what the conformer takes.
    """
    if not 1 <= layer <= wavlm.num_layers:
        raise CheckpointError(f"{path}: has layers 1 to {wavlm.num_layers}, so there is no layer {layer}")
    if wavlm.dim != voice.conformer.dim or wavlm.hop != voice.hifigan.hop:
        raise CheckpointError(f"{path}: its features are not what the conformer and vocoder take")
