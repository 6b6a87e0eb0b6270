"""Writes a trained conformer with a vocoder as a checkpoint of the published format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mkc_fast.errors import CheckpointError
from mkc_fast.export.checkpoints.published import VoiceCheckpoint, load_voice
from mkc_fast.train.loop.state import save_torch

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

    from mkc_fast.engine.artifacts import ModelInfo
    from mkc_fast.export.checkpoints.configs import ConformerConfig, HifiGanConfig


def load_vocoder(path: Path, sizes_file: Path | None, info: ModelInfo) -> VoiceCheckpoint:
    """Read the vocoder of a checkpoint, which may have a conformer, too.

    Raises:
        CheckpointError: It is missing or damaged, or takes other features than the model gives.
    """
    loaded = load_voice(path, sizes_file)
    config = loaded.hifigan
    found, expected = (config.input_dim, config.hop, config.sample_rate), (info.dim, info.hop, info.sample_rate)
    for name, one, other in zip(("dimensions", "samples a frame", "Hz"), found, expected, strict=True):
        if one != other:
            raise CheckpointError(f"{path}: a vocoder of {one} {name}, but the model has {other}")
    return loaded


def load_conformer(path: Path, info: ModelInfo) -> VoiceCheckpoint:
    """Read the conformer of a checkpoint.

    Raises:
        CheckpointError: It is missing or damaged, has no conformer, or one of other features than the model gives.
    """
    loaded = load_voice(path)
    if not loaded.conformer.num_layers:
        raise CheckpointError(f"{path}: holds no conformer")
    if loaded.conformer.dim != info.dim:
        raise CheckpointError(f"{path}: a conformer of {loaded.conformer.dim} dimensions, but the model has {info.dim}")
    return loaded


def write_voice(
    path: Path,
    sizes: ConformerConfig,
    dropout: float,
    conformer: Mapping[str, torch.Tensor],
    vocoder: VoiceCheckpoint,
    step: int,
) -> None:
    """Write a conformer + vocoder checkpoint.

    Args:
        path: The file.
        sizes: Of the conformer.
        dropout: That it was trained with.
        conformer: Its state dict.
        vocoder: Whose vocoder is taken.
        step: That it was trained for.

    Raises:
        OutputError: It cannot be written.
    """
    model_config = {
        "feature_dim": sizes.dim,
        "conformer_num_heads": sizes.num_heads,
        "ffn_dim": sizes.ffn_dim,
        "conformer_num_layers": sizes.num_layers,
        "kernel_size": sizes.kernel_size,
        "dropout": dropout,
        "hifi_config": hifi_config(vocoder.hifigan),
    }
    state = {f"conformer.{name}": tensor.cpu() for name, tensor in conformer.items()}
    state |= {f"hifi.model.{name}": tensor for name, tensor in vocoder.hifigan_weights.items()}
    save_torch(path, {"step": step, "extra": {"model_config": model_config}, "model_state_dict": state})


def hifi_config(config: HifiGanConfig) -> dict[str, Any]:
    """A vocoder's sizes under their published names."""
    return {
        "resblock": config.resblock,
        "upsample_rates": list(config.upsample_rates),
        "upsample_kernel_sizes": list(config.upsample_kernel_sizes),
        "upsample_initial_channel": config.upsample_initial_channel,
        "resblock_kernel_sizes": list(config.resblock_kernel_sizes),
        "resblock_dilation_sizes": [list(dilations) for dilations in config.resblock_dilation_sizes],
        "hubert_dim": config.input_dim,
        "hifi_dim": config.hidden_dim,
        "sampling_rate": config.sample_rate,
        "hop_size": config.hop,
    }
