"""Sizes of the small set."""

from __future__ import annotations

from typing import Any

from mkc_fast.export.checkpoints.configs import HifiGanConfig

RATE, HOP, WINDOW, DIM = 16000, 320, 400, 160
CONVOLUTIONS = ((64, 10, 5), (96, 3, 2), *((128, 3, 2),) * 3, *((128, 2, 2),) * 2)
WAVLM: dict[str, Any] = {
    "extractor_mode": "layer_norm",
    "layer_norm_first": False,
    "encoder_layers": 6,
    "encoder_embed_dim": DIM,
    "encoder_ffn_embed_dim": 512,
    "encoder_attention_heads": 5,
    "conv_feature_layers": str(list(CONVOLUTIONS)),
    "conv_bias": False,
    "conv_pos": 64,
    "conv_pos_groups": 16,
    "relative_position_embedding": True,
    "gru_rel_pos": True,
    "num_buckets": 64,
    "max_distance": 200,
    "normalize": False,
    "activation_fn": "gelu",
}
# Most channels lie where there are few samples a second, where a step of the training costs least.
VOCODER = HifiGanConfig(
    resblock="2",
    upsample_rates=(8, 5, 8),
    upsample_kernel_sizes=(16, 10, 16),
    upsample_initial_channel=256,
    resblock_kernel_sizes=(3, 7),
    resblock_dilation_sizes=((1, 4), (1, 4)),
    input_dim=DIM,
    hidden_dim=64,
    sample_rate=RATE,
)
