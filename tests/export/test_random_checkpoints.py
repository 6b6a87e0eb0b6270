"""Random checkpoints have the published form, load with the project's own loaders, and are lively at every stage."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mkc_fast import CheckpointError
from mkc_fast.export.checkpoints.joblib_writer import write_kmeans
from mkc_fast.export.checkpoints.published import load_voice, load_wavlm
from mkc_fast.export.networks.conformer import Conformer
from mkc_fast.export.networks.hifigan import HifiGan
from mkc_fast.export.networks.wavlm import WavLM
from mkc_fast.export.random_checkpoints import write_checkpoints, write_voice, write_wavlm
from tests.conftest import GOLDEN, needs_numpy_2

LAYER = 6  # the one whose output the published models cluster

# Overrides that stand for what is published beside the large model, and for what a configuration may hold.
WAVLM_CONFIGS: dict[str, dict[str, Any]] = {
    "large-like": {},
    "base-like": {"extractor_mode": "default", "layer_norm_first": False, "normalize": False},
    "odd position kernel": {"conv_pos": 15},
    "convolution biases": {"conv_bias": True},
    "no gate": {"gru_rel_pos": False},
    "no relative positions": {"gru_rel_pos": False, "relative_position_embedding": False},
    "no projection": {"encoder_embed_dim": 32},
}
VOICE_CONFIGS: dict[str, dict[str, Any]] = {
    "resblock 1": {},
    "resblock 2": {"hifi_config": {"resblock": "2"}},
    "resblock 2 as in V3": {"hifi_config": {"resblock": "2", "resblock_dilation_sizes": [[1, 2], [2, 6], [3, 12]]}},
    "other rates": {"hifi_config": {"upsample_rates": [5, 4, 4, 4], "upsample_kernel_sizes": [11, 8, 8, 8]}},
    "wider": {"feature_dim": 128, "kernel_size": 31},
}


def shapes(state: dict[str, torch.Tensor]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}


def load(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def noise(samples: int = 16000) -> torch.Tensor:
    return 0.1 * torch.randn((1, samples), generator=torch.Generator().manual_seed(1))


def features_of(path: Path) -> torch.Tensor:
    waveform = noise()
    with torch.inference_mode():
        features: torch.Tensor = WavLM(path, load_wavlm(path), LAYER).eval()(
            waveform, torch.tensor([waveform.shape[1]])
        )
    return features[0]


def voice_of(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Restored features (T, D) and waveform (S,) of noise."""
    checkpoint = load_voice(path)
    quantized = torch.randn((1, 50, checkpoint.conformer.dim), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        restored = Conformer(path, checkpoint).eval()(quantized, torch.tensor([quantized.shape[1]]))
        waveform = HifiGan(path, checkpoint).eval()(restored)
    return restored[0], waveform[0]


def assert_lively(features: torch.Tensor) -> None:
    assert torch.isfinite(features).all()
    assert 0.7 < features.std() < 1.5  # of order 1
    between_frames = (features - features.mean(0)).std()
    assert between_frames > 0.3 * features.std()  # frames differ: not one vector for every input


def assert_audible(waveform: torch.Tensor) -> None:
    assert torch.isfinite(waveform).all()
    assert 0.1 < waveform.std() < 0.4
    assert (waveform.abs() > 0.95).float().mean() < 1e-3  # tanh is not saturated


def test_wavlm_has_the_published_keys_in_the_published_order(tmp_path: Path) -> None:
    golden = load(GOLDEN / "WavLM.pt")
    write_wavlm(tmp_path / "WavLM.pt", golden["cfg"])
    written = load(tmp_path / "WavLM.pt")
    assert written["cfg"] == golden["cfg"]
    assert shapes(written["model"]) == shapes(golden["model"])
    assert list(written["model"]) == list(golden["model"])


def test_voice_has_the_published_keys_in_the_published_order(tmp_path: Path) -> None:
    golden = load(GOLDEN / "conformer.pth")
    write_voice(tmp_path / "conformer.pth", golden["extra"]["model_config"])
    written = load(tmp_path / "conformer.pth")
    assert written.keys() == golden.keys()
    assert written["extra"] == golden["extra"]
    assert shapes(written["model_state_dict"]) == shapes(golden["model_state_dict"])
    assert list(written["model_state_dict"]) == list(golden["model_state_dict"])


def test_small_is_the_size_of_the_reference_checkpoints(tmp_path: Path) -> None:
    write_wavlm(tmp_path / "WavLM.pt", {"encoder_layers": 7})
    write_voice(tmp_path / "conformer.pth")
    assert load(tmp_path / "WavLM.pt")["cfg"] == load(GOLDEN / "WavLM.pt")["cfg"]
    assert load(tmp_path / "conformer.pth")["extra"] == load(GOLDEN / "conformer.pth")["extra"]


@pytest.mark.parametrize("name", WAVLM_CONFIGS)
def test_wavlm_is_lively(tmp_path: Path, name: str) -> None:
    write_wavlm(tmp_path / "WavLM.pt", WAVLM_CONFIGS[name])
    assert_lively(features_of(tmp_path / "WavLM.pt"))


@pytest.mark.parametrize("name", VOICE_CONFIGS)
def test_voice_is_lively_and_audible(tmp_path: Path, name: str) -> None:
    write_voice(tmp_path / "conformer.pth", VOICE_CONFIGS[name])
    restored, waveform = voice_of(tmp_path / "conformer.pth")
    assert_lively(restored)
    assert_audible(waveform)
    assert len(waveform) == 320 * len(restored)


@pytest.mark.parametrize("seed", range(4))
def test_liveliness_does_not_depend_on_the_seed(tmp_path: Path, seed: int) -> None:
    write_wavlm(tmp_path / "WavLM.pt", seed=seed)
    write_voice(tmp_path / "conformer.pth", seed=seed)
    assert_lively(features_of(tmp_path / "WavLM.pt"))
    restored, waveform = voice_of(tmp_path / "conformer.pth")
    assert_lively(restored)
    assert_audible(waveform)


def test_default_extractor_normalizes_in_its_first_layer_alone(tmp_path: Path) -> None:
    write_wavlm(tmp_path / "WavLM.pt", {"extractor_mode": "default"})
    keys = [key for key in load(tmp_path / "WavLM.pt")["model"] if key.startswith("feature_extractor.")]
    convolutions = [f"feature_extractor.conv_layers.{index}.0.weight" for index in range(7)]
    norm = [f"feature_extractor.conv_layers.0.2.{part}" for part in ("weight", "bias")]
    assert keys == [convolutions[0], *norm, *convolutions[1:]]


def test_a_prefix_goes_before_every_key_and_changes_nothing_else(tmp_path: Path) -> None:
    write_voice(tmp_path / "plain.pth")
    write_voice(tmp_path / "parallel.pth", prefix="module.")
    assert all(key.startswith("module.") for key in load(tmp_path / "parallel.pth")["model_state_dict"])
    for plain, parallel in zip(voice_of(tmp_path / "plain.pth"), voice_of(tmp_path / "parallel.pth"), strict=True):
        assert torch.equal(plain, parallel)


def test_a_vocoder_configuration_may_be_a_path(tmp_path: Path) -> None:
    write_voice(tmp_path / "conformer.pth", {"hifi_config": "/nowhere/config.json"})
    assert load(tmp_path / "conformer.pth")["extra"]["model_config"]["hifi_config"] == "/nowhere/config.json"


def test_layers_that_are_no_list_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="conv_feature_layers"):
        write_wavlm(tmp_path / "WavLM.pt", {"conv_feature_layers": "print()"})


def test_an_unknown_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="small, base, large"):
        write_checkpoints(tmp_path, size="huge")


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_kmeans_opens_with_joblib_and_predicts(tmp_path: Path, dtype: type[np.floating[Any]]) -> None:
    joblib = pytest.importorskip("joblib")
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(3)
    centroids = rng.standard_normal((17, 5)).astype(dtype)
    write_kmeans(tmp_path / "spk.pt", centroids)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Trying to unpickle", UserWarning)  # the version it says is not today's
        model = joblib.load(tmp_path / "spk.pt")
        mapped = joblib.load(tmp_path / "spk.pt", mmap_mode="r")
    assert model.cluster_centers_.dtype == dtype
    np.testing.assert_array_equal(model.cluster_centers_, centroids)
    np.testing.assert_array_equal(mapped.cluster_centers_, centroids)
    assert mapped.cluster_centers_.offset % 16 == 0  # aligned, as joblib aligns it
    order = rng.permutation(17)
    near = (centroids[order] + 1e-3 * rng.standard_normal((17, 5))).astype(dtype)
    np.testing.assert_array_equal(model.predict(near), order)


@needs_numpy_2
def test_kmeans_has_the_attributes_of_a_fitted_one(tmp_path: Path) -> None:
    joblib = pytest.importorskip("joblib")
    pytest.importorskip("sklearn")
    write_kmeans(tmp_path / "spk.pt", np.zeros((3, 2)))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Trying to unpickle", UserWarning)
        written, golden = joblib.load(tmp_path / "spk.pt"), joblib.load(GOLDEN / "kmeans" / "spk_0.pt")
    assert type(written) is type(golden)
    # What a fit leaves of its data and its random state, and predict does without.
    assert vars(golden).keys() - vars(written).keys() == {"labels_", "inertia_", "_random_state"}
    assert vars(written).keys() <= vars(golden).keys()


@pytest.mark.parametrize("centroids", [np.zeros(3), np.zeros((3, 2), np.int64)])
def test_centroids_that_are_no_float_matrix_are_refused(tmp_path: Path, centroids: Any) -> None:
    with pytest.raises(ValueError, match="centroids must be"):
        write_kmeans(tmp_path / "spk.pt", centroids)
    assert not (tmp_path / "spk.pt").exists()


def test_checkpoints_go_together_and_follow_the_seed(tmp_path: Path) -> None:
    joblib = pytest.importorskip("joblib")
    pytest.importorskip("sklearn")
    lines: list[str] = []
    first, again, other = (
        write_checkpoints(tmp_path / name, num_kmeans=3, num_clusters=7, seed=seed, progress=lines.append)
        for name, seed in (("first", 5), ("again", 5), ("other", 6))
    )
    assert len(lines) == 9  # three things each
    assert first.kmeans_scp.read_text() == "".join(f"spk_000{n} kmeans/spk_000{n}.pt\n" for n in range(3))
    models = []
    for line in first.kmeans_scp.read_text().splitlines():
        relative = line.split()[1]
        same, different = (paths.kmeans_scp.parent / relative for paths in (again, other))
        path = first.kmeans_scp.parent / relative
        assert path.read_bytes() == same.read_bytes() != different.read_bytes()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Trying to unpickle", UserWarning)
            models.append(joblib.load(path).cluster_centers_)
    features = features_of(first.wavlm)
    assert models[0].shape == (7, features.shape[1])
    assert models[0].dtype == np.float64
    assert not np.allclose(models[0], models[1])
    assert load_voice(first.ckpt).conformer.dim == features.shape[1]
    for one, two in ((first.wavlm, again.wavlm), (first.ckpt, again.ckpt)):
        state, same_state = load(one), load(two)
        key = "model" if "model" in state else "model_state_dict"
        assert all(torch.equal(tensor, same_state[key][name]) for name, tensor in state[key].items())
