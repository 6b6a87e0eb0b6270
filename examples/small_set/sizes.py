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
VOCODER = HifiGanConfig(
    resblock="1",
    upsample_rates=(10, 8, 2, 2),
    upsample_kernel_sizes=(20, 16, 4, 4),
    upsample_initial_channel=128,
    resblock_kernel_sizes=(3, 7, 11),
    resblock_dilation_sizes=((1, 3, 5), (1, 3, 5), (1, 3, 5)),
    input_dim=DIM,
    hidden_dim=128,
    sample_rate=RATE,
)
