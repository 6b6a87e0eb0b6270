"""Reads the published checkpoints: WavLM, and conformer with vocoder, each with sizes and weights that fit."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mkc_fast.errors import CheckpointError
from mkc_fast.export.checkpoints.configs import (
    HIFIGAN_V1,
    ConformerConfig,
    HifiGanConfig,
    WavLMConfig,
    check_conformer_sizes,
    conformer_config,
    hifigan_config,
    shown,
    wavlm_config,
)
from mkc_fast.export.checkpoints.sizes_file import read_sizes
from mkc_fast.export.checkpoints.torch_files import first_line, is_file, load_torch
from mkc_fast.export.checkpoints.weights import Weights, named_weights, under

_KEY = re.compile(r"(module\.){0,4}(conformer\.conformer_layers|hifi\.model)\.")


@dataclass(frozen=True)
class WavLMCheckpoint:
    """A WavLM checkpoint: its configuration and its weights under their published names."""

    config: WavLMConfig
    weights: Weights


@dataclass(frozen=True)
class VoiceCheckpoint:
    """A conformer + vocoder checkpoint, each part's weights under names relative to that part."""

    conformer: ConformerConfig
    conformer_weights: Weights
    hifigan: HifiGanConfig
    hifigan_weights: Weights


def load_wavlm(path: Path) -> WavLMCheckpoint:
    """Load a WavLM checkpoint, ``{"cfg": dict, "model": state_dict}``.

    Raises:
        CheckpointError: It is missing, damaged, hostile or inconsistent.
    """
    loaded = load_torch(path)
    cfg, model = loaded.get("cfg"), loaded.get("model")
    if not isinstance(cfg, dict) or not isinstance(model, dict):
        keys = ", ".join(map(shown, list(loaded)[:8]))
        raise CheckpointError(f"{path}: not a WavLM checkpoint: expected keys cfg and model, found {keys}")
    weights = named_weights(path, model)
    return WavLMCheckpoint(wavlm_config(path, cfg), weights)


def load_voice(path: Path, hifi_config: Path | None = None, config: Path | None = None) -> VoiceCheckpoint:
    """Load a conformer + vocoder checkpoint, or a vocoder alone (``{"generator": state_dict}``, then no conformer).

    A conformer + vocoder checkpoint holds its sizes, or it is the state dict itself. The sizes of that are those of
    ``config`` or, where it has none, the published ones. They are checked against the weights' shapes.

    Args:
        path: The checkpoint.
        hifi_config: A JSON file with the vocoder's sizes; it is used instead of those in the checkpoint.
        config: A YAML file with the conformer's sizes (``read_sizes``), for a checkpoint that has none.

    Raises:
        CheckpointError: A file is missing, damaged, hostile or inconsistent, or ``config`` is given and the checkpoint
            has sizes of its own.
    """
    sizes = read_sizes(config) if config is not None else None
    loaded = load_torch(path)
    given = _read_json(hifi_config) if hifi_config is not None else None
    if "model_state_dict" not in loaded and isinstance(loaded.get("generator"), dict):
        if config is not None:
            raise CheckpointError(f"{path}: a vocoder alone, so there is no conformer whose sizes --config could give")
        hifigan_weights = named_weights(path, loaded["generator"])
        own = loaded.get("hifi_config")
        hifigan = hifigan_config(path, given or (own if isinstance(own, dict) else HIFIGAN_V1), hifigan_weights)
        none = ConformerConfig(dim=hifigan.input_dim, num_heads=1, ffn_dim=0, num_layers=0, kernel_size=1)
        return VoiceCheckpoint(none, {}, hifigan, hifigan_weights)

    extra, state = loaded.get("extra"), loaded.get("model_state_dict")
    model_config = extra.get("model_config") if isinstance(extra, dict) else None
    bare = state is None and _is_voice(loaded)
    if isinstance(model_config, dict) and sizes is not None:
        raise CheckpointError(f"{path}: has sizes of its own, so --config has no use: leave it out")
    if not isinstance(model_config, dict) and (bare or sizes is not None):
        model_config = sizes or {}
    state = loaded if bare else state
    if not isinstance(model_config, dict) or not isinstance(state, dict):
        keys = ", ".join(map(shown, list(loaded)[:8]))
        raise CheckpointError(
            f"{path}: not a conformer checkpoint: expected keys extra.model_config and model_state_dict, or a state "
            f"dict, found {keys}"
        )
    weights = named_weights(path, state)
    conformer_weights = under(weights, "conformer.conformer_layers.")
    if bare or sizes is not None:
        said = "the published size" if config is None else f"as {config} or the published sizes have it"
        check_conformer_sizes(path, model_config, said, conformer_weights)
    hifigan_weights = under(weights, "hifi.model.")
    if not hifigan_weights:
        raise CheckpointError(f"{path}: holds no vocoder: no key starts with hifi.model.")
    conformer = conformer_config(path, model_config, conformer_weights)
    own = model_config.get("hifi_config")
    if given is None and isinstance(own, str):
        # A path on the machine where it was trained. Only a plain JSON file is ever read from it.
        candidates = [Path(own), path.parent / own, path.parent / Path(own).name]
        existing = next((candidate for candidate in candidates if is_file(candidate)), None)
        own = _read_json(existing) if existing else None
    source = given or (own if isinstance(own, dict) else HIFIGAN_V1)
    hifigan = hifigan_config(path, source, hifigan_weights)
    if hifigan.input_dim != conformer.dim:
        raise CheckpointError(
            f"{path}: the vocoder takes {hifigan.input_dim} dimensions, the conformer gives {conformer.dim}"
        )
    return VoiceCheckpoint(conformer, conformer_weights, hifigan, hifigan_weights)


def _is_voice(loaded: dict[Any, Any]) -> bool:
    """Whether a checkpoint is a state dict of conformer and vocoder, without anything around it."""
    return any(isinstance(key, str) and _KEY.match(key) for key in loaded)


def _read_json(path: Path) -> dict[str, Any]:
    if not is_file(path):
        raise CheckpointError(f"{path}: no such configuration file")
    try:
        if path.stat().st_size > 1 << 20:
            raise ValueError("larger than 1 MB")
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a readable JSON configuration ({first_line(error)})") from None
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(loaded).__name__}")
    return loaded
