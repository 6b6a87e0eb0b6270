"""A vocoder is trained: its generator and losses are those of their definitions, and its output is a checkpoint."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mkc_fast import ArgumentError, CheckpointError, ListError, OutputError
from mkc_fast.cli import main
from mkc_fast.export.checkpoints.configs import ConformerConfig, HifiGanConfig
from mkc_fast.export.checkpoints.published import VoiceCheckpoint, load_voice
from mkc_fast.export.networks.hifigan import HifiGan
from mkc_fast.export.random_checkpoints import Checkpoints, write_voice
from mkc_fast.train import make_features
from mkc_fast.train.vocoder.discriminators import Discriminators
from mkc_fast.train.vocoder.generator import Generator
from mkc_fast.train.vocoder.losses import (
    LogMel,
    SpectralLoss,
    adversarial_loss,
    discriminator_loss,
    matching_loss,
    mel_filters,
)
from mkc_fast.train.vocoder.settings import VocoderSettings
from mkc_fast.train.vocoder.train import train_vocoder
from tests.conftest import Artifacts

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = VocoderSettings(segment_frames=8, batch=2, divisor=32, learning_rate=1e-3)


def small(kind: str) -> HifiGanConfig:
    return HifiGanConfig(kind, (4, 2), (8, 5), 8, (3, 5), ((1, 3, 5), (1, 2, 4)), 6, 10, 16000)


def plain_generator(config: HifiGanConfig, weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The generator written out, with weight norm as Salimans and Kingma define it: (B, T, D) → (B, T * hop)."""

    def weight(name: str) -> torch.Tensor:
        direction = weights[f"{name}.weight_v"]
        norm = direction.flatten(1).norm(dim=1).reshape(-1, 1, 1)
        return weights[f"{name}.weight_g"] * direction / norm

    def conv(name: str, x: torch.Tensor, dilation: int = 1) -> torch.Tensor:
        kernel = weight(name)
        padding = (kernel.shape[2] - 1) * dilation // 2
        return F.conv1d(x, kernel, weights[f"{name}.bias"], padding=padding, dilation=dilation)

    frames = x.shape[1]
    x = conv("conv_pre", (x @ weights["lin_pre.weight"].T + weights["lin_pre.bias"]).transpose(1, 2))
    for stage, (rate, kernel) in enumerate(zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True)):
        x = torch.where(x > 0, x, 0.1 * x)
        name = f"ups.{stage}"
        x = F.conv_transpose1d(x, weight(name), weights[f"{name}.bias"], rate, (kernel - rate) // 2)
        total = torch.zeros_like(x)
        for number, dilations in enumerate(config.resblock_dilation_sizes):
            y, name = x, f"resblocks.{stage * 2 + number}"
            for index, dilation in enumerate(dilations[: 3 if config.resblock == "1" else 2]):
                z = torch.where(y > 0, y, 0.1 * y)
                if config.resblock == "1":
                    z = conv(f"{name}.convs1.{index}", z, dilation)
                    z = conv(f"{name}.convs2.{index}", torch.where(z > 0, z, 0.1 * z))
                else:
                    z = conv(f"{name}.convs.{index}", z, dilation)
                y = y + z
            total = total + y
        x = total / 2
    return torch.tanh(conv("conv_post", torch.where(x > 0, x, 0.01 * x)))[:, 0, : frames * config.hop]


@pytest.mark.parametrize("kind", ["1", "2"])
def test_values_and_gradients_of_the_generator_are_those_of_the_plain_definition(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = small(kind)
    generator = Generator(config).double()
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(2, 9, 6, dtype=torch.float64)
    ours = generator(x)
    toward = torch.randn_like(ours)
    (ours * toward).sum().backward()
    weights = {name: value.clone().requires_grad_() for name, value in generator.published().items()}
    plain = plain_generator(config, weights, x)
    (plain * toward).sum().backward()
    torch.testing.assert_close(ours, plain)
    gradients = dict(zip(generator.published(), (each.grad for each in generator.parameters()), strict=True))
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, weights[name].grad, msg=name)
    none = ConformerConfig(6, 1, 0, 0, 1)
    exported = HifiGan(tmp_path, VoiceCheckpoint(none, {}, config, generator.float().published()))
    torch.testing.assert_close(exported(x.float()), plain.float().detach(), rtol=1e-4, atol=1e-5)


def test_a_generator_takes_published_weights(checkpoints: Checkpoints) -> None:
    voice = load_voice(checkpoints.ckpt)
    generator = Generator(voice.hifigan)
    generator.take(checkpoints.ckpt, voice.hifigan_weights)
    x = torch.randn(1, 7, 64)
    with torch.no_grad():
        torch.testing.assert_close(generator(x), HifiGan(checkpoints.ckpt, voice)(x), rtol=1e-4, atol=1e-5)
    assert generator.published().keys() == voice.hifigan_weights.keys()


def test_the_losses_are_those_of_their_definitions() -> None:
    torch.manual_seed(2)
    real, made = ([[torch.randn(2, 3, 5), torch.randn(2, 4)] for _ in range(3)] for _ in range(2))
    expected = sum(((1 - r[1]) ** 2).mean() + (m[1] ** 2).mean() for r, m in zip(real, made, strict=True))
    torch.testing.assert_close(discriminator_loss(real, made), expected)
    torch.testing.assert_close(adversarial_loss(made), sum(((m[1] - 1) ** 2).mean() for m in made))
    matched = sum((r[i] - m[i]).abs().mean() for r, m in zip(real, made, strict=True) for i in range(2))
    torch.testing.assert_close(matching_loss(real, made), matched)


def test_the_loss_of_spectra_is_that_of_its_definition() -> None:
    random = np.random.default_rng(5)
    real, made = random.standard_normal((2, 1, 5000))
    expected = []
    for size, hop, length in ((512, 50, 240), (1024, 120, 600), (2048, 240, 1200)):
        window = np.zeros(size)
        window[(size - length) // 2 :][:length] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)
        maps = []
        for waveform in (real[0], made[0]):
            padded = np.pad(waveform, size // 2)
            frames = np.stack([padded[i : i + size] for i in range(0, len(padded) - size + 1, hop)])
            maps.append(np.maximum(np.abs(np.fft.rfft(frames * window)), 1e-7**0.5))
        one, other = maps
        convergence = np.linalg.norm(one - other) / np.linalg.norm(one)
        expected.append(convergence + np.abs(np.log(one) - np.log(other)).mean())
    loss = SpectralLoss()(torch.from_numpy(real).float(), torch.from_numpy(made).float())
    assert loss.item() == pytest.approx(np.mean(expected), rel=1e-4)
    silence = torch.zeros(1, 4000, requires_grad=True)
    SpectralLoss()(torch.randn(1, 4000), silence).backward()
    assert torch.isfinite(silence.grad).all()


def test_discriminators_have_the_published_parameters() -> None:
    assert sum(value.numel() for name, value in Discriminators().named_parameters()) == pytest.approx(70.7e6, rel=0.01)
    maps = Discriminators(32)(torch.randn(2, 2560))
    assert [len(each) for each in maps] == [6] * 5 + [8] * 3
    assert [len(each) for each in Discriminators(32, 1)(torch.randn(2, 2560))] == [6] * 5 + [8]


def test_a_tone_is_in_its_mel_band() -> None:
    filters = mel_filters(16000)
    assert filters.shape == (80, 513)
    assert (filters >= 0).all()
    hertz = torch.arange(513) * 16000 / 1024
    for tone in (300.0, 1000.0, 4000.0):
        waveform = torch.sin(2 * math.pi * tone * torch.arange(16000) / 16000)
        spectrum = LogMel(16000, 320)(waveform[None])[0]
        assert spectrum.shape == (80, 50)
        loudest = int(spectrum.mean(1).argmax())
        middle = float((filters[loudest] * hertz).sum() / filters[loudest].sum())
        assert abs(middle - tone) < 0.06 * tone + 30  # a band is so wide there


def test_training_brings_spectra_nearer_and_continues_exactly(
    artifacts: Artifacts, checkpoints: Checkpoints, speech: Path, tmp_path: Path
) -> None:
    make_features(artifacts.model, tmp_path / "features", audio_list=speech)
    given = {"audio_list": speech, "features": tmp_path / "features", "init": checkpoints.ckpt, "settings": SMALL}
    train_vocoder(artifacts.model, tmp_path / "parts", steps=17, seed=1, **given)
    made = train_vocoder(artifacts.model, tmp_path / "parts", steps=40, seed=1, **given)
    train_vocoder(artifacts.model, tmp_path / "whole", steps=40, seed=1, **given)
    logs = [(tmp_path / f"{name}.training" / "log.jsonl").read_text() for name in ("parts", "whole")]
    assert logs[0] == logs[1]
    mels = [json.loads(line)["mel"] for line in logs[0].splitlines()]
    assert np.mean(mels[-5:]) < 0.8 * np.mean(mels[:5])
    assert made.mel == mels[-1]
    again = train_vocoder(artifacts.model, tmp_path / "parts", steps=40, seed=1, **given)
    assert again == made
    alone = load_voice(tmp_path / "parts")
    assert alone.conformer.num_layers == 0
    assert alone.hifigan == load_voice(checkpoints.ckpt).hifigan


def test_the_first_steps_need_no_discriminators(
    artifacts: Artifacts, checkpoints: Checkpoints, speech: Path, tmp_path: Path
) -> None:
    given = {"audio_list": speech, "init": checkpoints.ckpt, "seed": 1, "steps": 4}
    settings = dataclasses.replace(SMALL, stft=1.0, spectral_steps=2)
    train_vocoder(artifacts.model, tmp_path / "vocoder.pth", settings=settings, **given)
    log = (tmp_path / "vocoder.pth.training" / "log.jsonl").read_text().splitlines()
    spectra, judges = {"mel", "stft"}, {"discriminators", "adversarial", "matching"}
    seen = [json.loads(line).keys() & (spectra | judges) for line in log]
    assert seen == [spectra, spectra, spectra | judges, spectra | judges]


def test_bfloat16_trains_nearly_alike(
    artifacts: Artifacts, checkpoints: Checkpoints, speech: Path, tmp_path: Path
) -> None:
    given = {"audio_list": speech, "init": checkpoints.ckpt, "seed": 1, "steps": 4}
    lines = []
    for name, bf16 in (("full", False), ("half", True)):
        settings = dataclasses.replace(SMALL, stft=1.0, bf16=bf16)
        train_vocoder(artifacts.model, tmp_path / name, settings=settings, **given)
        log = (tmp_path / f"{name}.training" / "log.jsonl").read_text().splitlines()
        lines.append([json.loads(line) for line in log])
    for full, half in zip(*lines, strict=True):
        assert full != half
        for loss in ("mel", "stft", "discriminators", "adversarial"):
            assert half[loss] == pytest.approx(full[loss], rel=0.05), loss  # bfloat16 has 8 bits


def test_a_vocoder_is_trained_on_restored_features(
    artifacts: Artifacts, checkpoints: Checkpoints, speech: Path, tmp_path: Path
) -> None:
    arguments = ["train", "vocoder", "--model", artifacts.model, "--audio-scp", speech, "--bank", artifacts.bank]
    arguments += ["--init", checkpoints.ckpt, "--steps", 1, "--segment-frames", 4, "--batch", 1, "--seed", 1]
    assert main([*map(str, arguments), "--out", str(tmp_path / "vocoder.pth"), "--threads", "1"]) == 0
    assert load_voice(tmp_path / "vocoder.pth").hifigan.input_dim == 64


def test_what_does_not_fit_a_vocoder_is_refused_in_a_line(
    artifacts: Artifacts, checkpoints: Checkpoints, speech: Path, tmp_path: Path
) -> None:
    out, wide = tmp_path / "vocoder.pth", tmp_path / "wide.pth"
    write_voice(wide, {"feature_dim": 32})
    given = {"audio_list": speech, "init": checkpoints.ckpt, "settings": SMALL, "steps": 1}
    for changed, error, said in (
        ({"steps": 0}, ArgumentError, "steps is 0"),
        ({"init": wide}, CheckpointError, "a vocoder of 32 dimensions"),
        ({"init": None, "sizes": small("1")}, ArgumentError, "takes 6 dimensions and 8 samples a frame"),
        ({"sizes": small("1")}, ArgumentError, "give init, or sizes"),
        ({"settings": VocoderSettings(segment_frames=900)}, ListError, "shorter than 900 frames"),
    ):
        with pytest.raises(error, match=said):
            train_vocoder(artifacts.model, out, **{**given, **changed})
    out.write_bytes(b"mine")
    with pytest.raises(OutputError, match="already there"):
        train_vocoder(artifacts.model, out, **given)
    for wrong in (
        {"segment_frames": 3},
        {"batch": 0},
        {"learning_rate": 0},
        {"decay": 0},
        {"stft": -1},
        {"spectral_steps": -1},
    ):
        with pytest.raises(ArgumentError):
            VocoderSettings(**wrong)
