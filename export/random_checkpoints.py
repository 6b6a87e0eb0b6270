"""Writes checkpoints with random weights in the published formats, for the demo, the tests and the benchmarks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from mkc_fast.export.checkpoints.configs import HIFIGAN_V1, ConformerConfig, HifiGanConfig, parse_conv_layers
from mkc_fast.export.checkpoints.joblib_writer import write_kmeans
from mkc_fast.export.checkpoints.published import VoiceCheckpoint
from mkc_fast.export.networks.hifigan import HifiGan

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from mkc_fast.export.checkpoints.weights import Weights

_T = TypeVar("_T")

_WAVLM_COMMON: Mapping[str, Any] = {
    "activation_fn": "gelu",
    "feature_grad_mult": 1.0,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "encoder_layerdrop": 0.0,
    "relative_position_embedding": True,
    "gru_rel_pos": True,
    "conv_bias": False,
}
_WAVLM_PUBLISHED: Mapping[str, Any] = {
    **_WAVLM_COMMON,
    "conv_feature_layers": "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2",
    "conv_pos": 128,
    "conv_pos_groups": 16,
    "num_buckets": 320,
    "max_distance": 800,
}
_WAVLM_SIZES: Mapping[str, Mapping[str, Any]] = {
    "small": {
        **_WAVLM_COMMON,
        "extractor_mode": "layer_norm",
        "layer_norm_first": True,
        "encoder_layers": 8,
        "encoder_embed_dim": 64,
        "encoder_ffn_embed_dim": 128,
        "encoder_attention_heads": 4,
        "conv_feature_layers": "[(32,10,5)] + [(32,3,2)] * 4 + [(32,2,2)] * 2",
        "normalize": True,
        "conv_pos": 16,
        "conv_pos_groups": 4,
        "num_buckets": 32,
        "max_distance": 80,
    },
    "base": {
        **_WAVLM_PUBLISHED,
        "extractor_mode": "default",
        "layer_norm_first": False,
        "encoder_layers": 12,
        "encoder_embed_dim": 768,
        "encoder_ffn_embed_dim": 3072,
        "encoder_attention_heads": 12,
        "normalize": False,
    },
    "large": {
        **_WAVLM_PUBLISHED,
        "extractor_mode": "layer_norm",
        "layer_norm_first": True,
        "encoder_layers": 24,
        "encoder_embed_dim": 1024,
        "encoder_ffn_embed_dim": 4096,
        "encoder_attention_heads": 16,
        "normalize": True,
    },
}


def _voice_size(dim: int, heads: int, ffn_dim: int, layers: int, channels: int) -> Mapping[str, Any]:
    return {
        "feature_dim": dim,
        "conformer_num_heads": heads,
        "dropout": 0.1,
        "ffn_dim": ffn_dim,
        "conformer_num_layers": layers,
        "kernel_size": 3,
        "hifi_config": {
            **HIFIGAN_V1,
            "upsample_initial_channel": channels,
            "hubert_dim": dim,
            "hifi_dim": channels,
            "hop_size": 320,
        },
    }


_VOICE_SIZES: Mapping[str, Mapping[str, Any]] = {
    "small": _voice_size(dim=64, heads=4, ffn_dim=128, layers=3, channels=32),
    "base": _voice_size(dim=768, heads=12, ffn_dim=3072, layers=12, channels=512),
    "large": _voice_size(dim=1024, heads=16, ffn_dim=4096, layers=12, channels=512),
}
_NUM_CLUSTERS: Mapping[str, int] = {"small": 32, "base": 1024, "large": 1024}


class _RandomWeights:
    """A state dict being drawn, name by name, from one seed."""

    def __init__(self, seed: int) -> None:
        self.tensors: Weights = {}
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, name: str, *shape: int, std: float, mean: float = 0.0) -> None:
        """Independent normal numbers."""
        self.tensors[name] = self._normal(*shape).mul_(std).add_(mean)

    def filters(self, name: str, *shape: int, gain: float, bias: bool = True, weight: str = ".weight") -> None:
        """A Linear or convolution (out, in, ...) that makes outputs of variance gain² of inputs of variance 1.

        Each filter sums to zero. What activation functions give has a positive mean, and a stack of layers that let
        it through ends in outputs that are nearly the same for every frame.
        """
        filters = self._normal(*shape)
        flat = filters.flatten(1)
        flat -= flat.mean(1, keepdim=True)
        self.tensors[name + weight] = filters.mul_(gain / math.sqrt(flat.shape[1]))
        if bias:
            self.draw(name + weight.replace("weight", "bias"), shape[0], std=0.05)

    def average(self, name: str, gain: float) -> None:
        """Replace the filters (out, in, kernel) of a convolution by ones that average over the kernel."""
        filters = self.tensors[name]
        mixed = filters.sum(2, keepdim=True)
        mixed -= mixed.mean(1, keepdim=True)
        mixed *= gain / torch.linalg.vector_norm(mixed, dim=1, keepdim=True)
        self.tensors[name] = (mixed / filters.shape[2]).expand_as(filters).contiguous()

    def norm(self, name: str, dim: int) -> None:
        """The gain and offset of a normalization."""
        self.draw(f"{name}.weight", dim, std=0.1, mean=1.0)
        self.draw(f"{name}.bias", dim, std=0.05)

    def weight_normed(self, name: str, *shape: int, axis: int, norm: float, inputs: int, outputs: int) -> None:
        """A convolution as ``weight_g`` and ``weight_v`` (Salimans and Kingma 2016).

        ``axis`` is the one along which g runs, and g is about ``norm``; ``inputs`` and ``outputs`` are the axes of the
        input and output channels.
        """
        direction = self._normal(*shape)
        if shape[inputs] > 1:
            direction -= direction.mean(inputs, keepdim=True)  # for the reason that filters() gives
        self.draw(f"{name}.bias", shape[outputs], std=0.02)
        gain_shape = [1] * len(shape)
        gain_shape[axis] = shape[axis]
        self.draw(f"{name}.weight_g", *gain_shape, std=0.05 * norm, mean=norm)
        self.tensors[f"{name}.weight_v"] = direction.mul_(0.1)

    def _normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator)


def write_wavlm(
    path: Path,
    config: Mapping[str, Any] | None = None,
    *,
    size: str = "small",
    seed: int = 0,
    averaging: bool = False,
) -> None:
    """Write a WavLM checkpoint, ``{"cfg": dict, "model": state_dict}``, with random weights.

    Speech gives features of mean 0 and variance 1, nearly, that differ from frame to frame.

    Args:
        path: The file to write.
        config: Entries of ``cfg`` that replace those of the size.
        size: "small" (64 dimensions, 8 layers), "base" or "large" (as published).
        seed: Equal seeds give equal weights.
        averaging: All convolutions of the extractor but the first average over time. Features then follow the sounds,
            as trained ones do, and not the phase of the waveform, which nothing could restore.

    Raises:
        ValueError: There is no such size.
        CheckpointError: ``conv_feature_layers`` is not a list of layers.
    """
    cfg = {**_of_size(_WAVLM_SIZES, size), **(config or {})}
    weights = _RandomWeights(seed)
    dim = cfg["encoder_embed_dim"]
    weights.draw("mask_emb", dim, std=0.3)
    channels = 1
    for index, (out_channels, kernel, _) in enumerate(parse_conv_layers(path, cfg["conv_feature_layers"])):
        name = f"feature_extractor.conv_layers.{index}"
        weights.filters(f"{name}.0", out_channels, channels, kernel, gain=1.7, bias=cfg["conv_bias"])
        if averaging and index:
            weights.average(f"{name}.0.weight", gain=1.7)
        if cfg["extractor_mode"] == "layer_norm":
            weights.norm(f"{name}.2.1", out_channels)
        elif index == 0:
            weights.norm(f"{name}.2", out_channels)
        channels = out_channels
    if channels != dim:
        weights.filters("post_extract_proj", dim, channels, gain=0.7)
    kernel, groups = cfg["conv_pos"], cfg["conv_pos_groups"]
    weights.weight_normed(
        "encoder.pos_conv.0",
        dim,
        dim // groups,
        kernel,
        axis=2,
        norm=0.5 * math.sqrt(dim / kernel),
        inputs=1,
        outputs=0,
    )
    for index in range(cfg["encoder_layers"]):
        _draw_encoder_layer(weights, index, cfg)
    weights.norm("encoder.layer_norm", dim)
    weights.norm("layer_norm", channels)
    torch.save({"cfg": cfg, "model": weights.tensors}, path)


def _draw_encoder_layer(weights: _RandomWeights, index: int, cfg: Mapping[str, Any]) -> None:
    dim, heads, ffn_dim = cfg["encoder_embed_dim"], cfg["encoder_attention_heads"], cfg["encoder_ffn_embed_dim"]
    name = f"encoder.layers.{index}"
    if cfg["gru_rel_pos"]:
        weights.draw(f"{name}.self_attn.grep_a", 1, heads, 1, 1, std=0.3, mean=1.0)
    if cfg["relative_position_embedding"] and index == 0:  # one table for all layers
        weights.draw(f"{name}.self_attn.relative_attention_bias.weight", cfg["num_buckets"], heads, std=1.0)
    weights.filters(f"{name}.self_attn.k_proj", dim, dim, gain=1.2)
    weights.filters(f"{name}.self_attn.v_proj", dim, dim, gain=1.0)
    weights.filters(f"{name}.self_attn.q_proj", dim, dim, gain=1.2)
    weights.filters(f"{name}.self_attn.out_proj", dim, dim, gain=0.4)
    if cfg["gru_rel_pos"]:
        weights.filters(f"{name}.self_attn.grep_linear", 8, dim // heads, gain=0.5)
    weights.norm(f"{name}.self_attn_layer_norm", dim)
    weights.filters(f"{name}.fc1", ffn_dim, dim, gain=1.0)
    weights.filters(f"{name}.fc2", dim, ffn_dim, gain=0.4)
    weights.norm(f"{name}.final_layer_norm", dim)


def write_voice(
    path: Path,
    config: Mapping[str, Any] | None = None,
    *,
    size: str = "small",
    seed: int = 0,
    prefix: str = "",
    bare: bool = False,
) -> None:
    """Write a conformer + vocoder checkpoint with random weights.

    Its form is ``{"epoch": int, "extra": {"model_config": dict}, "model_state_dict": state_dict}``. Restored features
    have variance 1 and waveforms a standard deviation of 0.2, nearly, for any features of variance 1.

    Args:
        path: The file to write.
        config: Entries of ``model_config`` that replace those of the size. A ``hifi_config`` that is a dict replaces
            single entries likewise (``hubert_dim`` follows ``feature_dim``); one that is a path is written as it is,
            with weights of the size.
        size: "small" (64 dimensions, 3 layers), "base" (768 dimensions, to go with a base WavLM) or "large" (as
            published).
        seed: Equal seeds give equal weights.
        prefix: Goes before every key: "module." as data-parallel training writes it.
        bare: Write the state dict alone, with the two entries of older checkpoints that inference does not use.

    Raises:
        ValueError: There is no such size.
    """
    sizes = _of_size(_VOICE_SIZES, size)
    model_config = {**sizes, **(config or {})}
    given = (config or {}).get("hifi_config", {})
    overrides = {} if isinstance(given, str) else given
    hifi = {**sizes["hifi_config"], "hubert_dim": model_config["feature_dim"], **overrides}
    hifi["hop_size"] = math.prod(hifi["upsample_rates"])
    model_config["hifi_config"] = given if isinstance(given, str) else hifi

    conformer = _RandomWeights(seed)
    for index in range(model_config["conformer_num_layers"]):
        _draw_conformer_layer(conformer, str(index), model_config)
    vocoder = _random_vocoder(path, hifi, seed + 1)
    state = {f"{prefix}conformer.conformer_layers.{name}": tensor for name, tensor in conformer.tensors.items()}
    state |= {f"{prefix}hifi.model.{name}": tensor for name, tensor in vocoder.items()}
    if bare:
        older = {"kmeans._float_tensor": torch.zeros(1), "mask_emb": torch.zeros(1024)}
        torch.save({f"{prefix}{name}": tensor for name, tensor in older.items()} | state, path)
        return
    torch.save({"epoch": 50, "extra": {"model_config": model_config}, "model_state_dict": state}, path)


def _draw_conformer_layer(weights: _RandomWeights, name: str, config: Mapping[str, Any]) -> None:
    dim, kernel = config["feature_dim"], config["kernel_size"]
    _draw_feed_forward(weights, f"{name}.ffn1.sequential", dim, config["ffn_dim"])
    weights.norm(f"{name}.self_attn_layer_norm", dim)
    weights.filters(f"{name}.self_attn", 3 * dim, dim, gain=1.2, weight=".in_proj_weight")
    weights.filters(f"{name}.self_attn.out_proj", dim, dim, gain=0.5)
    weights.norm(f"{name}.conv_module.layer_norm", dim)
    conv = f"{name}.conv_module.sequential"
    weights.filters(f"{conv}.0", 2 * dim, dim, 1, gain=1.4)
    weights.draw(f"{conv}.2.weight", dim, 1, kernel, std=1.3 / math.sqrt(kernel))
    weights.draw(f"{conv}.2.bias", dim, std=0.05)
    weights.norm(f"{conv}.3", dim)
    weights.draw(f"{conv}.3.running_mean", dim, std=0.1)
    weights.draw(f"{conv}.3.running_var", dim, std=0.25)
    weights.tensors[f"{conv}.3.running_var"].exp_()
    weights.tensors[f"{conv}.3.num_batches_tracked"] = torch.tensor(1000)
    weights.filters(f"{conv}.5", dim, dim, 1, gain=0.7)
    _draw_feed_forward(weights, f"{name}.ffn2.sequential", dim, config["ffn_dim"])
    weights.norm(f"{name}.final_layer_norm", dim)


def _draw_feed_forward(weights: _RandomWeights, name: str, dim: int, ffn_dim: int) -> None:
    weights.norm(f"{name}.0", dim)
    weights.filters(f"{name}.1", ffn_dim, dim, gain=1.2)
    weights.filters(f"{name}.4", dim, ffn_dim, gain=1.2)


def _random_vocoder(path: Path, hifi: Mapping[str, Any], seed: int) -> Weights:
    """A generator's weights, names relative to it; every stage keeps the variance of its input or doubles it."""
    weights = _RandomWeights(seed)
    channels = hifi["upsample_initial_channel"]
    weights.filters("lin_pre", hifi["hifi_dim"], hifi["hubert_dim"], gain=1.0)
    weights.weight_normed("conv_pre", channels, hifi["hifi_dim"], 7, axis=0, norm=1.0, inputs=1, outputs=0)
    stages = list(zip(hifi["upsample_rates"], hifi["upsample_kernel_sizes"], strict=True))
    for index, (rate, kernel) in enumerate(stages):
        name, half = f"ups.{index}", channels >> (index + 1)
        # A sample is the sum over all input channels and over kernel / rate of the taps.
        norm = 1.15 * math.sqrt(rate)
        weights.weight_normed(name, channels >> index, half, kernel, axis=0, norm=norm, inputs=0, outputs=1)
    blocks = list(zip(hifi["resblock_kernel_sizes"], hifi["resblock_dilation_sizes"], strict=True))
    # The published classes build so many convolutions, however many dilations are listed.
    parts, built = (("convs1", "convs2"), 3) if hifi["resblock"] == "1" else (("convs",), 2)
    for index in range(len(stages) * len(blocks)):
        width = channels >> (index // len(blocks) + 1)
        kernel, dilations = blocks[index % len(blocks)]
        for part in parts:
            norm = 1.6 if part == "convs1" else 0.8
            for number in range(min(len(dilations), built)):
                name = f"resblocks.{index}.{part}.{number}"
                weights.weight_normed(name, width, width, kernel, axis=0, norm=norm, inputs=1, outputs=0)
    weights.weight_normed("conv_post", 1, channels >> len(stages), 7, axis=0, norm=1e-3, inputs=1, outputs=0)
    weights.tensors["conv_post.weight_g"] *= 0.2 / _loudness(path, hifi, weights)
    return weights.tensors


def _loudness(path: Path, hifi: Mapping[str, Any], weights: _RandomWeights) -> float:
    """Standard deviation of what the generator makes of features of variance 1.

    The last stages have few channels, so how loud they are is as random as they are, and is measured.
    """
    no_conformer = ConformerConfig(dim=hifi["hubert_dim"], num_heads=1, ffn_dim=0, num_layers=0, kernel_size=1)
    config = HifiGanConfig(
        resblock=hifi["resblock"],
        upsample_rates=tuple(hifi["upsample_rates"]),
        upsample_kernel_sizes=tuple(hifi["upsample_kernel_sizes"]),
        upsample_initial_channel=hifi["upsample_initial_channel"],
        resblock_kernel_sizes=tuple(hifi["resblock_kernel_sizes"]),
        resblock_dilation_sizes=tuple(map(tuple, hifi["resblock_dilation_sizes"])),
        input_dim=hifi["hubert_dim"],
        hidden_dim=hifi["hifi_dim"],
        sample_rate=hifi["sampling_rate"],
    )
    features = torch.randn((1, 40, config.input_dim), generator=weights.generator)
    with torch.inference_mode():
        waveform = HifiGan(path, VoiceCheckpoint(no_conformer, {}, config, weights.tensors))(features)
    return float(f"{waveform.std().item():.2g}")  # rounded, so that the file is the same on every machine


@dataclass(frozen=True)
class Checkpoints:
    """Where the three published inputs of an export lie."""

    wavlm: Path
    ckpt: Path
    kmeans_scp: Path


def write_checkpoints(
    folder: Path,
    *,
    size: str = "small",
    num_kmeans: int = 32,
    num_clusters: int | None = None,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Checkpoints:
    """Write a WavLM, a conformer + vocoder and a list of k-means models with random weights that go together.

    Args:
        folder: Where to write; it is made if it is not there, and files of the same names in it are replaced.
        size: "small", "base" or "large", as in ``write_wavlm`` and ``write_voice``.
        num_kmeans: How many k-means models.
        num_clusters: K of each; 32 at size "small" and 1024 at the others by default.
        seed: Equal seeds give equal files.
        progress: Called with a line about each thing written.

    Returns:
        The three paths; those in ``kmeans.scp`` are relative to its folder.

    Raises:
        ValueError: There is no such size, or a count is not positive.
    """
    num_clusters = _of_size(_NUM_CLUSTERS, size) if num_clusters is None else num_clusters
    if num_kmeans < 1 or num_clusters < 1:
        raise ValueError(f"{num_kmeans} k-means models of {num_clusters} clusters cannot be written")
    say = progress or (lambda _: None)
    (folder / "kmeans").mkdir(parents=True, exist_ok=True)
    written = Checkpoints(folder / "WavLM.pt", folder / "conformer.pth", folder / "kmeans.scp")

    write_wavlm(written.wavlm, size=size, seed=seed)
    say(f"{written.wavlm}: WavLM, {_bytes_of(written.wavlm)}")
    write_voice(written.ckpt, size=size, seed=seed)
    say(f"{written.ckpt}: conformer and vocoder, {_bytes_of(written.ckpt)}")
    dim = _of_size(_WAVLM_SIZES, size)["encoder_embed_dim"]
    names = [f"spk_{index:04d}" for index in range(num_kmeans)]
    for index, name in enumerate(names):
        write_kmeans(folder / "kmeans" / f"{name}.pt", _random_centroids(num_clusters, dim, seed, index))
    written.kmeans_scp.write_text("".join(f"{name} kmeans/{name}.pt\n" for name in names), encoding="utf-8")
    each = _bytes_of(folder / "kmeans" / f"{names[0]}.pt")
    say(f"{written.kmeans_scp}: {num_kmeans} k-means models of {num_clusters} clusters, {each} each")
    return written


def _random_centroids(num_clusters: int, dim: int, seed: int, index: int) -> NDArray[np.float64]:
    """Centroids (K, D) of variance 1 around a mean of the model's own: speakers differ in both."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
    mean = torch.randn(dim, generator=generator, dtype=torch.float64)
    spread = torch.randn((num_clusters, dim), generator=generator).double()  # float32 draws take a quarter of the time
    centroids: NDArray[np.float64] = spread.mul_(0.95).add_(mean, alpha=0.3).numpy()
    return centroids


def _bytes_of(path: Path) -> str:
    size = path.stat().st_size
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


def _of_size(sizes: Mapping[str, _T], size: str) -> _T:
    if size not in sizes:
        raise ValueError(f"size {size!r} is not one of {', '.join(sizes)}")
    return sizes[size]
