"""Sizes of WavLM, the conformer and the vocoder, read from the configuration in a checkpoint and checked."""

from __future__ import annotations

import ast
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mkc_fast.errors import CheckpointError
from mkc_fast.text import printable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mkc_fast.export.checkpoints.weights import Weights

# What a count or a size in a configuration may be at most: far above any published model, far below what harms.
_MAX_SIZE = 1 << 20
# Samples a frame, 320 as published, and how far apart a convolution's taps may be, 12 as published: neither is held
# against a weight's shape, so nothing else bounds what a run would cost.
_MAX_HOP = 1 << 14
_MAX_DILATION = 1 << 10


@dataclass(frozen=True)
class WavLMConfig:
    """Sizes of a WavLM model, from the ``cfg`` of its checkpoint (microsoft/unilm, WavLM)."""

    conv_layers: tuple[tuple[int, int, int], ...]  # (channels, kernel, stride) of each
    extractor_mode: str  # "layer_norm" | "default" (GroupNorm over time in the first convolution)
    layer_norm_first: bool
    num_layers: int
    dim: int
    ffn_dim: int
    num_heads: int
    conv_pos: int
    conv_pos_groups: int
    relative_positions: bool
    gated: bool
    num_buckets: int
    max_distance: int

    def check_layer(self, path: Path, layer: int) -> None:
        """Check that there is such a layer.

        Raises:
            CheckpointError: There is not.
        """
        if not 1 <= layer <= self.num_layers:
            raise CheckpointError(f"{path}: has layers 1 to {self.num_layers}, so there is no layer {layer}")

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        return math.prod(stride for _, _, stride in self.conv_layers)

    @property
    def min_samples(self) -> int:
        """Samples that the first frame needs."""
        samples = 1
        for _, kernel, stride in reversed(self.conv_layers):
            samples = (samples - 1) * stride + kernel
        return samples


@dataclass(frozen=True)
class ConformerConfig:
    """Sizes of the conformer (names as in ``torchaudio.models.Conformer``); ``num_layers`` 0 means no conformer."""

    dim: int
    num_heads: int
    ffn_dim: int
    num_layers: int
    kernel_size: int


@dataclass(frozen=True)
class HifiGanConfig:
    """Sizes of the HiFi-GAN generator (jik876/hifi-gan, with a linear layer in front as in bshall/knn-vc)."""

    resblock: str  # "1" | "2"
    upsample_rates: tuple[int, ...]
    upsample_kernel_sizes: tuple[int, ...]
    upsample_initial_channel: int
    resblock_kernel_sizes: tuple[int, ...]
    resblock_dilation_sizes: tuple[tuple[int, ...], ...]
    input_dim: int  # hubert_dim: what the linear layer takes
    hidden_dim: int  # hifi_dim: what it gives
    sample_rate: int

    @property
    def hop(self) -> int:
        """Samples that a frame becomes."""
        return math.prod(self.upsample_rates)


# The published sizes of the conformer, used where a checkpoint or a file of sizes lacks them.
CONFORMER_PUBLISHED: Mapping[str, int] = {
    "feature_dim": 1024,
    "conformer_num_heads": 16,
    "ffn_dim": 4096,
    "conformer_num_layers": 12,
    "kernel_size": 3,
}

# The published V1 values, used where a checkpoint names a configuration file that is not here.
HIFIGAN_V1: Mapping[str, Any] = {
    "resblock": "1",
    "upsample_rates": [10, 8, 2, 2],
    "upsample_kernel_sizes": [20, 16, 4, 4],
    "upsample_initial_channel": 512,
    "resblock_kernel_sizes": [3, 7, 11],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
    "hubert_dim": 1024,
    "hifi_dim": 512,
    "sampling_rate": 16000,
}


def wavlm_config(path: Path, cfg: dict[str, Any]) -> WavLMConfig:
    """Read the sizes of WavLM.

    Args:
        path: The checkpoint, for errors.
        cfg: Its ``cfg``.

    Raises:
        CheckpointError: A size is missing, or the sizes do not fit each other.
    """
    read = _ConfigReader(path, cfg)
    config = WavLMConfig(
        conv_layers=parse_conv_layers(path, read.any("conv_feature_layers")),
        extractor_mode=read.choice("extractor_mode", ("layer_norm", "default"), "default"),
        layer_norm_first=read.flag("layer_norm_first", default=False),
        num_layers=read.size("encoder_layers"),
        dim=read.size("encoder_embed_dim"),
        ffn_dim=read.size("encoder_ffn_embed_dim"),
        num_heads=read.size("encoder_attention_heads"),
        conv_pos=read.size("conv_pos", 128),
        conv_pos_groups=read.size("conv_pos_groups", 16),
        relative_positions=read.flag("relative_position_embedding", default=False),
        gated=read.flag("gru_rel_pos", default=False),
        num_buckets=read.size("num_buckets", 320),
        max_distance=read.size("max_distance", 1280),
    )
    read.choice("activation_fn", ("gelu",), "gelu")
    if config.dim % config.num_heads:
        raise CheckpointError(f"{path}: {config.dim} dimensions do not divide into {config.num_heads} heads")
    if config.relative_positions and not 0 < config.num_buckets // 4 < config.max_distance <= 100_000:
        raise CheckpointError(f"{path}: max_distance {config.max_distance} does not fit {config.num_buckets} buckets")
    if config.hop > _MAX_HOP:
        raise CheckpointError(f"{path}: conv_feature_layers take more than {_MAX_HOP} samples a frame")
    return config


def parse_conv_layers(path: Path, text: object) -> tuple[tuple[int, int, int], ...]:
    """Parse ``[(512,10,5)] + [(512,3,2)] * 4`` (or the list itself) without evaluating it."""
    layers: object = text
    if isinstance(text, str):
        try:
            if len(text) > 1000:
                raise ValueError("too long")
            layers = _literal(ast.parse(text.strip(), mode="eval").body)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            raise CheckpointError(
                f"{path}: conv_feature_layers is not a list of (channels, kernel, stride): {shown(text)}"
            ) from None
    if not isinstance(layers, (list, tuple)) or not 1 <= len(layers) <= 32:
        raise CheckpointError(f"{path}: conv_feature_layers is not a list of 1 to 32 layers: {shown(text)}")
    parsed: list[tuple[int, int, int]] = []
    for layer in layers:
        if not (
            isinstance(layer, (list, tuple))
            and len(layer) == 3
            and all(type(n) is int and 0 < n <= _MAX_SIZE for n in layer)
        ):
            raise CheckpointError(f"{path}: conv_feature_layers holds {shown(layer)}, not (channels, kernel, stride)")
        parsed.append((layer[0], layer[1], layer[2]))
    return tuple(parsed)


def _literal(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=int(value)):
            return value
        case ast.Tuple(elts=items):
            return tuple(_literal(item) for item in items)
        case ast.List(elts=items):
            return [_literal(item) for item in items]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            first, second = _literal(left), _literal(right)
            if isinstance(first, list) and isinstance(second, list):
                return first + second
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            first, second = _literal(left), _literal(right)
            items, times = (first, second) if isinstance(first, list) else (second, first)
            if isinstance(items, list) and type(times) is int and 0 <= times <= 32 and times * len(items) <= 32:
                return items * times
    raise ValueError("not a list of layers")


def conformer_config(path: Path, model_config: dict[str, Any], weights: Weights) -> ConformerConfig:
    """Read the sizes of the conformer and check them against the names of its weights.

    Args:
        path: The checkpoint, for errors.
        model_config: Its ``extra.model_config``.
        weights: The conformer's, under names that begin with the number of the layer.

    Raises:
        CheckpointError: A size is missing, or does not fit the others or the weights.
    """
    read = _ConfigReader(path, model_config)
    config = ConformerConfig(
        dim=read.size("feature_dim", CONFORMER_PUBLISHED["feature_dim"]),
        num_heads=read.size("conformer_num_heads", CONFORMER_PUBLISHED["conformer_num_heads"]),
        ffn_dim=read.size("ffn_dim", CONFORMER_PUBLISHED["ffn_dim"]),
        num_layers=read.size("conformer_num_layers", CONFORMER_PUBLISHED["conformer_num_layers"]),
        kernel_size=read.size("kernel_size", CONFORMER_PUBLISHED["kernel_size"]),
    )
    if config.dim % config.num_heads:
        raise CheckpointError(f"{path}: {config.dim} dimensions do not divide into {config.num_heads} heads")
    if config.kernel_size % 2 == 0:
        raise CheckpointError(f"{path}: kernel_size {config.kernel_size} is even; a conformer's is odd")
    found = _num_layers(weights)
    if found != config.num_layers:
        raise CheckpointError(
            f"{path}: model_config says {config.num_layers} conformer layers, the weights have {found}"
        )
    return config


def check_conformer_sizes(path: Path, sizes: Mapping[str, Any], said: str, weights: Weights) -> None:
    """Check sizes that came from elsewhere against the shapes of a bare state dict's weights, all of them at once.

    The number of heads has no trace in the shapes.

    Args:
        path: The checkpoint, for errors.
        sizes: Under the names of ``CONFORMER_PUBLISHED``; those that are missing are as published.
        said: Where the sizes are from, for errors.
        weights: The conformer's, under names that begin with the number of the layer.

    Raises:
        CheckpointError: A size is not that of the weights.
    """
    found = {"conformer_num_layers": _num_layers(weights)}
    for key, name, axis in (
        ("feature_dim", "0.self_attn_layer_norm.weight", 0),
        ("ffn_dim", "0.ffn1.sequential.1.weight", 0),
        ("kernel_size", "0.conv_module.sequential.2.weight", -1),
    ):
        if name in weights and weights[name].ndim:
            found[key] = weights[name].shape[axis]
    expected = {**CONFORMER_PUBLISHED, **sizes}
    wrong = [
        f"{key} {found[key]}, not {shown(expected[key])}"
        for key in CONFORMER_PUBLISHED
        if key in found and found[key] != expected[key]
    ]
    if wrong:
        raise CheckpointError(
            f"{path}: the weights have {'; '.join(wrong)} ({said}): give a YAML file of its sizes with --config"
        )


def _num_layers(weights: Weights) -> int:
    indices = [key.split(".")[0] for key in weights]
    return 1 + max((int(index) for index in indices if index.isdecimal() and len(index) < 8), default=-1)


def hifigan_config(path: Path, source: Mapping[str, Any], weights: Weights) -> HifiGanConfig:
    """Read the vocoder's sizes and check them against its weights' shapes."""
    read = _ConfigReader(path, dict(source))
    lin_pre = weights.get("lin_pre.weight")
    if lin_pre is None or lin_pre.ndim != 2:
        raise CheckpointError(f"{path}: the vocoder has no lin_pre.weight of two dimensions")
    config = HifiGanConfig(
        resblock=read.choice("resblock", ("1", "2"), "1"),
        upsample_rates=read.sizes("upsample_rates"),
        upsample_kernel_sizes=read.sizes("upsample_kernel_sizes"),
        upsample_initial_channel=read.size("upsample_initial_channel"),
        resblock_kernel_sizes=read.sizes("resblock_kernel_sizes"),
        resblock_dilation_sizes=read.nested_sizes("resblock_dilation_sizes"),
        input_dim=read.size("hubert_dim", lin_pre.shape[1]),
        hidden_dim=read.size("hifi_dim", lin_pre.shape[0]),
        sample_rate=read.size("sampling_rate", 16000),
    )
    if len(config.upsample_rates) != len(config.upsample_kernel_sizes):
        raise CheckpointError(f"{path}: upsample_rates and upsample_kernel_sizes differ in length")
    if len(config.resblock_kernel_sizes) != len(config.resblock_dilation_sizes):
        raise CheckpointError(f"{path}: resblock_kernel_sizes and resblock_dilation_sizes differ in length")
    for rate, kernel in zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True):
        if kernel < rate:
            raise CheckpointError(f"{path}: upsampling kernel {kernel} is shorter than its rate {rate}")
    for kernel, dilations in zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True):
        if max(dilations) > _MAX_DILATION:
            raise CheckpointError(f"{path}: a residual dilation is {max(dilations)}, more than {_MAX_DILATION}")
        if any((kernel - 1) * dilation % 2 for dilation in (*dilations, 1 if config.resblock == "1" else 2)):
            raise CheckpointError(f"{path}: residual kernel {kernel} with dilations {dilations} changes the length")
    if config.hop > _MAX_HOP:
        raise CheckpointError(f"{path}: upsample_rates make more than {_MAX_HOP} samples a frame")
    if config.upsample_initial_channel >> len(config.upsample_rates) < 1:
        raise CheckpointError(
            f"{path}: {config.upsample_initial_channel} channels cannot be halved for every upsampling"
        )
    return config


class _ConfigReader:
    """Reads typed values out of a configuration dict that may hold anything."""

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.path = path
        self.config = config

    def any(self, key: str, default: object = None) -> Any:
        value = self.config.get(key, default)
        if value is None:
            raise CheckpointError(f"{self.path}: the configuration lacks {key}")
        return value

    def size(self, key: str, default: int | None = None) -> int:
        return self._positive(key, self.any(key, default))

    def sizes(self, key: str) -> tuple[int, ...]:
        return self._list(key, self.any(key))

    def nested_sizes(self, key: str) -> tuple[tuple[int, ...], ...]:
        value = self.any(key)
        if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= 64:
            raise CheckpointError(f"{self.path}: {key} is not a list of lists: {shown(value)}")
        return tuple(self._list(key, item) for item in value)

    def flag(self, key: str, *, default: bool) -> bool:
        value = self.any(key, default)
        if not isinstance(value, int) or value not in (0, 1):
            raise CheckpointError(f"{self.path}: {key} is {shown(value)}, not true or false")
        return bool(value)

    def choice(self, key: str, choices: tuple[str, ...], default: str) -> str:
        value = self.any(key, default)
        text = value if isinstance(value, str) else shown(value)  # resblock may be 1 or "1"
        if text not in choices:
            raise CheckpointError(f"{self.path}: {key} is {shown(value)}, not one of {', '.join(choices)}")
        return text

    def _list(self, key: str, value: object) -> tuple[int, ...]:
        if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= 64:
            raise CheckpointError(f"{self.path}: {key} is not a list of sizes: {shown(value)}")
        return tuple(self._positive(key, item) for item in value)

    def _positive(self, key: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _MAX_SIZE:
            raise CheckpointError(f"{self.path}: {key} is {shown(value)}, not a positive size")
        return value


def shown(value: object) -> str:
    """A value from a checkpoint for an error: one short line, whatever it is (some would take years to format)."""
    if isinstance(value, str):
        return f"'{printable(value, 60)}'"
    if isinstance(value, int) and value.bit_length() > 64:
        return "a huge number"
    return repr(value) if value is None or isinstance(value, (bool, int, float)) else f"a {type(value).__name__}"
