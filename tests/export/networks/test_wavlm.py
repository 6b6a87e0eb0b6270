"""Our WavLM equals ``transformers.WavLMModel`` with the same random weights, in every layout that is published."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from mkc_fast.export.checkpoints.published import load_wavlm
from mkc_fast.export.networks.wavlm import WavLM, relative_buckets
from mkc_fast.export.random_checkpoints import write_wavlm

transformers = pytest.importorskip("transformers")

SMALL_CONVS = "[(32,10,5)] + [(32,3,2)] * 4 + [(32,2,2)] * 2"
LAYOUTS: dict[str, dict[str, Any]] = {
    "large": {"extractor_mode": "layer_norm", "layer_norm_first": True},
    "base": {"extractor_mode": "default", "layer_norm_first": False},
    "even position kernel, conv biases": {"conv_pos": 16, "conv_bias": True},
    "odd position kernel": {"conv_pos": 15},
    "near maximum distance": {"max_distance": 20, "num_buckets": 16},
}


def theirs(key: str) -> str:
    """The published name of a weight of ``transformers.WavLMModel``."""
    key = re.sub(r"^feature_extractor\.conv_layers\.(\d+)\.conv\.", r"feature_extractor.conv_layers.\1.0.", key)
    key = re.sub(r"^feature_projection\.layer_norm\.", "layer_norm.", key)
    key = re.sub(r"^feature_projection\.projection\.", "post_extract_proj.", key)
    key = key.replace("encoder.pos_conv_embed.conv.", "encoder.pos_conv.0.")
    key = key.replace("parametrizations.weight.original0", "weight_g").replace(
        "parametrizations.weight.original1", "weight_v"
    )
    key = key.replace(".attention.", ".self_attn.").replace("gru_rel_pos_linear", "grep_linear")
    key = key.replace("gru_rel_pos_const", "grep_a").replace("rel_attn_embed", "relative_attention_bias")
    key = re.sub(r"(layers\.\d+)\.layer_norm\.", r"\1.self_attn_layer_norm.", key)
    key = key.replace("feed_forward.intermediate_dense", "fc1").replace("feed_forward.output_dense", "fc2")
    return key.replace("masked_spec_embed", "mask_emb")


def conv_norm(key: str, mode: str) -> str:
    inner = "2.1" if mode == "layer_norm" else "2"
    return re.sub(
        r"^feature_extractor\.conv_layers\.(\d+)\.layer_norm\.", rf"feature_extractor.conv_layers.\1.{inner}.", key
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layer_6_equals_hidden_state_6_of_transformers(layout: str, tmp_path: Path) -> None:
    path = tmp_path / "wavlm.pt"
    write_wavlm(path, LAYOUTS[layout], seed=3)
    checkpoint = load_wavlm(path)
    config = checkpoint.config
    oracle = transformers.WavLMModel(
        transformers.WavLMConfig(
            hidden_size=config.dim,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            intermediate_size=config.ffn_dim,
            feat_extract_norm="layer" if config.extractor_mode == "layer_norm" else "group",
            do_stable_layer_norm=config.layer_norm_first,
            conv_dim=[channels for channels, _, _ in config.conv_layers],
            conv_kernel=[kernel for _, kernel, _ in config.conv_layers],
            conv_stride=[stride for _, _, stride in config.conv_layers],
            conv_bias=bool(LAYOUTS[layout].get("conv_bias", False)),
            num_conv_pos_embeddings=config.conv_pos,
            num_conv_pos_embedding_groups=config.conv_pos_groups,
            num_buckets=config.num_buckets,
            max_bucket_distance=config.max_distance,
        )
    ).eval()
    state = oracle.state_dict()
    for key in state:
        name = theirs(conv_norm(key, config.extractor_mode))
        if name in checkpoint.weights:
            state[key] = checkpoint.weights[name].reshape(state[key].shape)
        else:
            assert name == "mask_emb", f"{key} has no published weight {name}"
    oracle.load_state_dict(state)
    torch.manual_seed(0)
    for samples in (400, 719, 16000):
        waveform = torch.randn(1, samples) * 0.1
        with torch.inference_mode():
            expected = oracle(waveform, output_hidden_states=True).hidden_states[6]
            found = WavLM(path, checkpoint, layer=6)(waveform, torch.tensor([samples]))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


def test_buckets_are_symmetric_in_halves_and_saturate() -> None:
    buckets = relative_buckets(torch.arange(-2000, 2001), 320, 800)
    assert buckets[2000] == 0
    assert torch.equal(buckets[2001:], 160 + buckets[:2000].flip(0))
    assert buckets.max() == 319
    assert buckets[2000 + 79] == 160 + 79  # below a quarter of the buckets each distance has its own
    assert (buckets[2000 + 800 :] == 319).all()
