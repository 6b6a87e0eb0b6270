"""A conformer is trained: exactly resumable, on one process or several, and into the published format."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mkc_fast import Anonymizer, ArgumentError, ArtifactError, CheckpointError, ListError, MkcError, OutputError
from mkc_fast.cli import main
from mkc_fast.engine.artifacts import open_bank
from mkc_fast.export import build_bank
from mkc_fast.export.checkpoints.configs import ConformerConfig
from mkc_fast.export.checkpoints.published import load_voice
from mkc_fast.export.random_checkpoints import Checkpoints, write_voice
from mkc_fast.train.bank import train_bank
from mkc_fast.train.conformer.batches import Quantizer
from mkc_fast.train.conformer.checkpoint import hifi_config
from mkc_fast.train.conformer.module import Conformer
from mkc_fast.train.conformer.settings import ConformerSettings
from mkc_fast.train.conformer.sources import CachedFeatures
from mkc_fast.train.conformer.train import train_conformer
from mkc_fast.train.features.cache import FeatureCache
from mkc_fast.train.features.make import make_features
from mkc_fast.train.kmeans import KMeansSettings
from mkc_fast.train.loop.sampler import Place, Sampler
from mkc_fast.train.restoration import measure_restoration
from tests.conftest import Artifacts, MakeOnce
from tests.train.conftest import SPEAKERS, Synthetic, make_synthetic

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = ConformerSettings(
    num_layers=2, num_heads=4, ffn_dim=32, batch_frames=400, max_frames=100, warmup=4, learning_rate=1e-3, valid_every=4
)
OPTIONS = ["--layers", 2, "--heads", 4, "--ffn-dim", 32, "--batch-frames", 400, "--max-frames", 100]
OPTIONS += ["--warmup", 4, "--learning-rate", 1e-3, "--valid-every", 4, "--threads", 1, "--seed", 1]


def log_of(out: Path) -> str:
    return (out.with_name(f"{out.name}.training") / "log.jsonl").read_text()


def losses_of(out: Path) -> list[float]:
    lines = map(json.loads, log_of(out).splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def test_a_killed_training_continues_with_equal_bits(
    artifacts: Artifacts, checkpoints: Checkpoints, synthetic: Synthetic, tmp_path: Path
) -> None:
    arguments = ["train", "conformer", "--model", artifacts.model, "--bank", synthetic.bank]
    arguments += [
        "--vocoder",
        checkpoints.ckpt,
        "--features",
        synthetic.cache,
        "--steps",
        40,
        "--valid",
        0.25,
        *OPTIONS,
    ]
    arguments += ["--save-every", 3]
    whole, out = tmp_path / "whole.pth", tmp_path / "killed.pth"
    assert main([*map(str, arguments), "--out", str(whole)]) == 0
    command = [sys.executable, "-c", "from mkc_fast.cli import main; main()", *map(str, arguments), "--out", str(out)]
    log = tmp_path / "killed.pth.training" / "log.jsonl"
    kills = 0
    for lines in (6, 17):
        process = subprocess.Popen(command, start_new_session=True, cwd=tmp_path)
        while not log.is_file() or log.read_text().count("\n") < lines:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        assert not out.exists()
    assert kills == 2
    assert main([*map(str, arguments), "--out", str(out)]) == 0
    assert log_of(out) == log_of(whole)
    ours, theirs = (torch.load(path, weights_only=True)["model_state_dict"] for path in (out, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_exported_graph_is_the_trained_module(
    artifacts: Artifacts, checkpoints: Checkpoints, synthetic: Synthetic, tmp_path: Path
) -> None:
    out = tmp_path / "conformer.pth"
    train_conformer(
        artifacts.model,
        synthetic.bank,
        checkpoints.ckpt,
        out,
        steps=10,
        features=synthetic.cache,
        settings=SMALL,
        seed=1,
    )
    loaded, before = load_voice(out), load_voice(checkpoints.ckpt)
    assert loaded.hifigan == before.hifigan
    for name, weight in before.hifigan_weights.items():
        assert torch.equal(loaded.hifigan_weights[name], weight), name
    arguments = ["export", "--wavlm-ckpt", checkpoints.wavlm, "--ckpt", out, "--out", tmp_path / "model"]
    assert main([*map(str, arguments)]) == 0
    module = Conformer(loaded.conformer)
    module.conformer_layers.load_state_dict(loaded.conformer_weights)
    module.eval()
    features = np.random.default_rng(1).normal(size=(83, 64)).astype(np.float32)
    with Anonymizer.load(tmp_path / "model", synthetic.bank) as anonymizer, torch.no_grad():
        expected = module(torch.from_numpy(features)[None], torch.tensor([83]))[0].numpy()
        np.testing.assert_allclose(anonymizer.restore(features), expected, atol=1e-4)
    assert np.abs(expected - features).max() > 0.1


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_many_models_beat_one_on_speakers_and_models_never_seen(
    artifacts: Artifacts, checkpoints: Checkpoints, make_once: MakeOnce, tmp_path: Path, seed: int
) -> None:
    """The held-out speakers are looked at once, at the end, so nothing is chosen by them."""
    made = make_synthetic(tmp_path / "data", artifacts.model, seed)
    held = made.speakers[-6:]
    (tmp_path / "held").write_text("".join(f"{name}\n" for name in held))
    lines = (tmp_path / "data" / "kmeans.scp").read_text().splitlines(True)
    (tmp_path / "data" / "one.scp").write_text(lines[0] + "".join(lines[-6:]))
    build_bank(tmp_path / "data" / "one.scp", tmp_path / "one")
    settings = ConformerSettings(
        num_layers=2,
        num_heads=4,
        ffn_dim=128,
        batch_frames=1000,
        max_frames=120,
        learning_rate=2e-3,
        warmup=20,
        decay=50,
        valid_every=150,
    )
    restorations = []
    for name, bank in (("many", made.bank), ("one", tmp_path / "one")):
        trained = train_conformer(
            artifacts.model,
            bank,
            checkpoints.ckpt,
            tmp_path / f"{name}.pth",
            steps=150,
            features=made.cache,
            valid=str(tmp_path / "held"),
            settings=settings,
            seed=seed,
            threads=1,
        )
        assert trained.held_out == trained.held_out_entries == held
        restorations.append(trained.restoration)
    many, one = restorations
    assert many.quantized == one.quantized
    assert many.restored <= 0.8 * many.quantized
    assert many.restored < one.restored


def test_speech_and_its_cache_train_alike(
    artifacts: Artifacts, checkpoints: Checkpoints, speech: Path, tmp_path: Path
) -> None:
    train_bank(
        artifacts.model, tmp_path / "bank", audio_list=speech, settings=KMeansSettings(clusters=8, n_init=1), seed=1
    )
    make_features(artifacts.model, tmp_path / "cache", audio_list=speech)
    inputs = {"of-cache": {"features": tmp_path / "cache"}, "of-speech": {"audio_list": speech}}
    for name, given in inputs.items():
        made = train_conformer(
            artifacts.model,
            tmp_path / "bank",
            checkpoints.ckpt,
            tmp_path / name,
            steps=5,
            valid="0.3",
            settings=replace(SMALL, mode="frame", stride=7),
            seed=1,
            **given,
        )
        assert len(made.held_out) == 1
        assert made.held_out == made.held_out_entries
        assert set(made.held_out) < set(SPEAKERS)
    assert log_of(tmp_path / "of-cache") == log_of(tmp_path / "of-speech")


def test_two_processes_take_the_steps_of_one_that_accumulates(
    artifacts: Artifacts, checkpoints: Checkpoints, synthetic: Synthetic, tmp_path: Path
) -> None:
    arguments = ["train", "conformer", "--model", artifacts.model, "--bank", synthetic.bank]
    arguments += ["--vocoder", checkpoints.ckpt, "--features", synthetic.cache, "--steps", 6, "--valid", 0.25, *OPTIONS]
    alone, both = tmp_path / "alone.pth", tmp_path / "both.pth"
    assert main([*map(str, arguments), "--out", str(alone), "--accumulate", "2"]) == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "mkc_fast", *map(str, arguments), "--out", str(both)]
    ended = subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert ended.returncode == 0, ended.stderr
    np.testing.assert_allclose(losses_of(both), losses_of(alone), rtol=1e-4)
    assert both.is_file()


def test_a_loss_that_falls_no_more_ends_the_training_and_the_best_weights_are_written(
    artifacts: Artifacts, checkpoints: Checkpoints, synthetic: Synthetic, tmp_path: Path
) -> None:
    settings = replace(SMALL, valid_every=2, patience=3, learning_rate=0.5, warmup=1)  # so high that it diverges
    out = tmp_path / "conformer.pth"
    given = {"features": synthetic.cache, "valid": "0.25", "settings": settings, "seed": 1}
    made = train_conformer(artifacts.model, synthetic.bank, checkpoints.ckpt, out, steps=200, **given)
    looks = [json.loads(line) for line in log_of(out).splitlines() if "valid_loss" in line]
    best = min(looks, key=lambda look: look["valid_loss"])
    assert made.steps < 200
    assert made.step == best["step"] == made.steps - 2 * 3
    assert made.restoration is not None
    assert made.restoration.loss == best["valid_loss"]
    again = train_conformer(artifacts.model, synthetic.bank, checkpoints.ckpt, out, steps=300, **given)
    assert again == made  # what ended early has ended


def test_more_steps_go_on_with_a_finished_training(
    artifacts: Artifacts, checkpoints: Checkpoints, synthetic: Synthetic, tmp_path: Path
) -> None:
    given = {"features": synthetic.cache, "settings": SMALL, "seed": 1}
    places = artifacts.model, synthetic.bank, checkpoints.ckpt
    train_conformer(*places, tmp_path / "parts", steps=3, **given)
    train_conformer(*places, tmp_path / "parts", steps=7, **given)
    train_conformer(*places, tmp_path / "whole", steps=7, **given)
    assert log_of(tmp_path / "parts") == log_of(tmp_path / "whole")


def test_the_output_begins_at_the_mean_and_spread_of_the_features(
    artifacts: Artifacts, checkpoints: Checkpoints, synthetic: Synthetic, tmp_path: Path
) -> None:
    out, slow = tmp_path / "conformer.pth", replace(SMALL, learning_rate=1e-12)
    places = artifacts.model, synthetic.bank, checkpoints.ckpt
    train_conformer(*places, out, steps=1, features=synthetic.cache, settings=slow, seed=1)
    cache = CachedFeatures(FeatureCache.open(synthetic.cache, artifacts.model))
    features = np.concatenate([cache.read(index, 0, frames) for index, frames in enumerate(cache.frames)])
    weights = load_voice(out).conformer_weights
    gains, begins = (weights[f"1.final_layer_norm.{name}"].numpy() for name in ("weight", "bias"))
    np.testing.assert_allclose(gains, features.std(0), rtol=0.3)
    np.testing.assert_allclose(begins, features.mean(0), atol=0.5 * features.std(0).max())
    assert np.corrcoef(begins, features.mean(0))[0, 1] > 0.9

    wide = torch.randn(500, 64) * torch.logspace(-1, 2, 64) + torch.linspace(-9, 9, 64)
    module = Conformer(ConformerConfig(64, 4, 32, 2, 3))
    module.begin_at(wide)
    last = module.conformer_layers[-1].final_layer_norm
    torch.testing.assert_close(last.weight, wide.std(0, correction=0), rtol=0, atol=0)
    torch.testing.assert_close(last.bias, wide.mean(0), rtol=0, atol=0)
    with torch.no_grad():
        begun = module(torch.randn(1, 2000, 64), torch.tensor([2000]))[0]
    torch.testing.assert_close(begun.std(0) / wide.std(0), torch.ones(64), rtol=0, atol=0.3)
    # The layers before it have biases of their own.
    torch.testing.assert_close((begun.mean(0) - wide.mean(0)) / wide.std(0), torch.zeros(64), rtol=0, atol=1.0)


def test_the_conformer_of_a_checkpoint_is_trained_further(
    artifacts: Artifacts, checkpoints: Checkpoints, synthetic: Synthetic, tmp_path: Path
) -> None:
    given = {"features": synthetic.cache, "seed": 1}
    places = artifacts.model, synthetic.bank, checkpoints.ckpt
    first, further, alone = (tmp_path / f"{name}.pth" for name in ("first", "further", "alone"))
    train_conformer(*places, first, steps=12, settings=SMALL, **given)
    slow = replace(SMALL, num_layers=5, num_heads=2, ffn_dim=8, learning_rate=1e-12)
    train_conformer(*places, further, steps=1, init=first, settings=slow, **given)
    before, after = load_voice(first), load_voice(further)
    assert after.conformer == before.conformer  # whatever sizes the settings have
    for name, weight in before.conformer_weights.items():
        if "running" not in name and "batches" not in name:
            torch.testing.assert_close(after.conformer_weights[name], weight, rtol=0, atol=1e-6, msg=name)
    torch.save({"generator": before.hifigan_weights, "hifi_config": hifi_config(before.hifigan)}, alone)
    for wrong, said in ((alone, "holds no conformer"), (tmp_path / "wide.pth", "a conformer of 32 dimensions")):
        write_voice(tmp_path / "wide.pth", {"feature_dim": 32})
        with pytest.raises(CheckpointError, match=said):
            train_conformer(*places, tmp_path / "out.pth", steps=1, init=wrong, **given)
    train_conformer(*places, tmp_path / "fresh.pth", steps=1, settings=SMALL, **given)
    with pytest.raises(OutputError, match="init"):
        train_conformer(*places, tmp_path / "fresh.pth", steps=2, init=first, settings=SMALL, **given)


def test_bfloat16_trains_nearly_alike(
    artifacts: Artifacts, checkpoints: Checkpoints, synthetic: Synthetic, tmp_path: Path
) -> None:
    for name, bf16 in (("full", False), ("half", True)):
        train_conformer(
            artifacts.model,
            synthetic.bank,
            checkpoints.ckpt,
            tmp_path / name,
            steps=8,
            features=synthetic.cache,
            settings=replace(SMALL, bf16=bf16),
            seed=1,
        )
    full, half = losses_of(tmp_path / "full"), losses_of(tmp_path / "half")
    assert full != half
    np.testing.assert_allclose(half, full, rtol=0.02)  # bfloat16 has 8 bits


def test_every_utterance_is_taken_once_an_epoch_in_batches_within_the_budget() -> None:
    frames = np.random.default_rng(1).integers(2, 900, 300).tolist()
    chosen = list(range(0, 300, 2))
    sampler = Sampler(frames, chosen, 2000, 500, "seed")
    for epoch in (0, 1):
        batches = sampler.epoch(epoch)
        assert sorted(piece.index for batch in batches for piece in batch) == chosen
        for batch in batches:
            assert max(piece.frames for piece in batch) * len(batch) <= 2000
            assert all(0 <= piece.begin <= frames[piece.index] - piece.frames for piece in batch)
            assert all(piece.frames == min(500, frames[piece.index]) for piece in batch)
        padded = sum(max(piece.frames for piece in batch) * len(batch) for batch in batches)
        assert padded < 1.25 * sum(piece.frames for batch in batches for piece in batch)
    place, taken = Place(), []
    for _ in range(100):
        plan = sampler.step(place, 3)
        place = plan.after
        taken += plan.batches
    assert taken == [batch for epoch in range(12) for batch in sampler.epoch(epoch)][:300]


def test_a_tenth_of_the_frames_is_masked_before_quantization(artifacts: Artifacts) -> None:
    lookup = artifacts.anonymizer._lookup
    features = np.random.default_rng(1).normal(size=(205, 64)).astype(np.float32)
    quantizers = [Quantizer(lookup, np.array([2, 5]), "audio", 1, masked, "seed") for masked in (0.0, 0.1)]
    plain, masked = (quantizer.quantize(features, "0\0u") for quantizer in quantizers)
    changed = (plain != masked).any(1)
    assert 15 <= changed.sum() <= 20  # of 20 masked frames a few may have the centroid nearest to zero already
    assert len(np.unique(masked[changed], axis=0)) == 1
    drawn = {tuple(quantizers[0].quantize(features, f"{epoch}\0u")[0]) for epoch in range(8)}
    assert len(drawn) == 2


def test_what_does_not_fit_is_refused_in_a_line(
    artifacts: Artifacts, checkpoints: Checkpoints, synthetic: Synthetic, tmp_path: Path
) -> None:
    given = {"features": synthetic.cache, "settings": SMALL, "seed": 1, "steps": 2}
    places = artifacts.model, synthetic.bank, checkpoints.ckpt
    out = tmp_path / "conformer.pth"
    (tmp_path / "nobody").write_text("nobody\n")
    wide = tmp_path / "wide.pth"
    write_voice(wide, {"feature_dim": 32})
    for changed, error, said in (
        ({"settings": replace(SMALL, num_heads=5)}, ArgumentError, "5 heads do not divide 64"),
        ({"audio_list": "wav.scp"}, ArgumentError, "give features, or speech, not both"),
        ({"valid": "1.5"}, ListError, "a share of the speakers between 0 and 1"),
        ({"valid": "0.99"}, ListError, "all speakers would be held out"),
        ({"valid": str(tmp_path / "nobody")}, ListError, "none of its speakers"),
        ({"features": tmp_path}, ArtifactError, "no cache of features"),
        ({"steps": 0}, ArgumentError, "steps is 0"),
        ({"threads": 0}, ArgumentError, "threads is 0"),
        ({"device": "cuda:7"}, MkcError, "cuda:7"),
    ):
        with pytest.raises(error, match=said):
            train_conformer(*places, out, **{**given, **changed})
    with pytest.raises(CheckpointError, match="a vocoder of 32 dimensions, but the model has 64"):
        train_conformer(artifacts.model, synthetic.bank, wide, out, **given)
    assert not out.exists()
    train_conformer(*places, out, **given)
    with pytest.raises(OutputError, match="the state of a training with another settings, seed; --overwrite"):
        train_conformer(*places, out, **{**given, "settings": replace(SMALL, ffn_dim=16), "seed": 2})
    made = train_conformer(*places, out, **{**given, "settings": replace(SMALL, ffn_dim=16)}, overwrite=True)
    assert made.steps == 2
    other = tmp_path / "other.pth"
    other.write_bytes(b"mine")
    with pytest.raises(OutputError, match="already there; --overwrite replaces it"):
        train_conformer(*places, other, **given)
    for wrong in ({"masked": 1.0}, {"kernel_size": 4}, {"max_frames": 9000}, {"mode": "word"}, {"learning_rate": 0}):
        with pytest.raises(ArgumentError):
            ConformerSettings(**wrong)


def test_errors_of_speakers_are_those_of_the_definition(
    artifacts: Artifacts, synthetic: Synthetic, tmp_path: Path
) -> None:
    with Anonymizer.load(artifacts.model, synthetic.bank) as anonymizer:
        found = measure_restoration(anonymizer, synthetic.cache, ["spk01", "spk05", "spk06"])
        assert list(found) == ["spk01", "spk05", "spk06"]
        cache = FeatureCache.open(synthetic.cache)
        originals = np.concatenate([cache.read(i) for i, entry in enumerate(cache.entries) if entry.speaker == "spk05"])
        errors = []
        for other in (1, 6):
            centroids = open_bank(synthetic.bank).centroids[other]
            distances = ((originals[:, None] - centroids[None]) ** 2).sum(2)
            errors.append(((originals - centroids[distances.argmin(1)]) ** 2).mean())
        assert found["spk05"].quantized == pytest.approx(np.mean(errors), rel=1e-5)
        assert found["spk05"].frames == 2 * len(originals)
        assert found["spk05"].less == 1 - found["spk05"].restored / found["spk05"].quantized
        with pytest.raises(ListError, match="the bank has no entry spk77"):
            measure_restoration(anonymizer, synthetic.cache, ["spk77", "spk01"])


def test_the_learning_rate_grows_and_falls() -> None:
    settings = ConformerSettings(learning_rate=1.0, warmup=4, decay=5)
    rates = [settings.rate(step, 20) for step in range(1, 21)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:15] == [1.0] * 11
    assert rates[15:] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
    assert math.isclose(ConformerSettings(warmup=0).rate(1, 2), 2e-4)
