"""Makes the rest of the small set: ``python examples/small_set/make.py --data DIR --wavlm F --start F --work DIR``.

From the speech (``speech.py``), the encoder (``encoder.py``) and a vocoder of spectra (``start.py``): features, a bank
with a k-means model for each speaker, a conformer, and a vocoder of what the conformer restores, at the end with
discriminators. ``--work`` holds everything, and the same call continues. ``--pack DIR`` then writes the set as it is
shipped: checkpoints of the published formats, rounded and compressed. ``--record FILE`` writes what was trained, how
long, and on what machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import lzma
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
from sizes import DIM, HOP, RATE, VOCODER
from start import SCALE, spectra

from mkc_fast.benchmarks.common import write_result
from mkc_fast.engine.artifacts import open_bank
from mkc_fast.export import export_model
from mkc_fast.export.checkpoints.joblib_writer import write_kmeans
from mkc_fast.export.checkpoints.torch_files import load_torch
from mkc_fast.export.random_checkpoints import write_voice
from mkc_fast.train import (
    ConformerSettings,
    KMeansSettings,
    VocoderSettings,
    make_features,
    train_bank,
    train_conformer,
    train_vocoder,
)
from mkc_fast.train.conformer.checkpoint import hifi_config
from mkc_fast.train.conformer.sources import CachedFeatures
from mkc_fast.train.features.cache import FeatureCache
from mkc_fast.train.loop.sampler import generator_of
from mkc_fast.train.loop.state import save_torch
from mkc_fast.train.vocoder.losses import LogMel

SEED = 1
_RIDGE = 0.03
# Their k-means models are in the bank, and the conformer has seen neither these nor what they say.
HELD_OUT = ("es_alicia", "es_marco", "kal161", "slt2")
VOCODERS = ("vocoder", "vocoder_with_discriminators")  # of what the conformer restores, in this order


def make(args: argparse.Namespace) -> Path:
    """Train everything that is not there; the checkpoint of conformer and vocoder."""
    data, wavlm, work = args.data, args.wavlm, args.work
    work.mkdir(parents=True, exist_ok=True)
    speech, record = data / "train" / "wav.scp", work / "hours.json"
    hours: dict[str, float] = json.loads(record.read_text()) if record.exists() else {}

    def timed(name: str, run: Callable[[], Any]) -> Any:
        begin = time.perf_counter()
        made = run()
        hours[name] = round(hours.get(name, 0.0) + (time.perf_counter() - begin) / 3600, 3)
        save_json(record, hours)
        print(f"{name}: {hours[name]} hours", flush=True)
        return made

    random, encoder, features, bank = (work / name for name in ("random.pth", "encoder", "features", "bank"))
    if not encoder.exists():
        write_voice(random, {"feature_dim": DIM, "conformer_num_heads": 5, "conformer_num_layers": 1})
        export_model(wavlm, random, encoder)
    if not features.exists():
        timed("features", lambda: make_features(encoder, features, audio_list=speech, device=args.device))
    if not bank.exists():
        settings = KMeansSettings(args.clusters, n_init=1)
        timed("bank", lambda: train_bank(encoder, bank, audio_list=speech, settings=settings, seed=SEED))
    begun = work / "start.pth"
    if not begun.exists():
        timed("start", lambda: fit_start(args.start, encoder, features, data / "train", begun))
    given = {"features": features, "seed": SEED, "threads": args.threads, "device": args.device}
    settings = VocoderSettings(
        segment_frames=32,
        batch=6,
        learning_rate=5e-4,
        divisor=4,
        scales=0,
        stft=10.0,
        bf16=args.bf16,
        save_every=100,
    )

    def train(name: str, model: Path, init: Path, *, steps: int, **changed: Any) -> Path:
        """Train a vocoder on the encoder's features, or on what another ``model`` restores, with changed settings."""
        out = work / f"{name}.pth"
        timed(
            name,
            lambda: train_vocoder(
                model,
                out,
                steps=steps,
                audio_list=speech,
                bank=None if model == encoder else bank,
                init=init,
                settings=dataclasses.replace(settings, **changed),
                progress=_shown(),
                **given,
            ),
        )
        return out

    heard = train("vocoder_of_features", encoder, begun, steps=args.feature_steps, spectral_steps=args.feature_steps)
    varied, voice = work / "features_of_varied_speech", work / "conformer.pth"
    if not varied.exists():
        both = vary_speed(data / "train", work / "varied", args.held_out)
        timed("features_of_varied_speech", lambda: make_features(encoder, varied, audio_list=both, device=args.device))
    (work / "held_out").write_text("".join(f"{name}\n" for name in args.held_out))
    conformer = ConformerSettings(
        num_layers=2,
        num_heads=5,
        ffn_dim=480,
        # The attention does not know places: only the convolution tells a frame's neighbours from one another.
        kernel_size=31,
        # Nothing is dropped or masked: the speech is varied instead.
        dropout=0.0,
        masked=0.0,
        batch_frames=2000,
        max_frames=250,
        learning_rate=1.5e-3,
        warmup=200,
        decay=args.conformer_steps // 2,
        bf16=args.bf16,
        valid_every=400,
        patience=0,
    )
    restored = timed(
        "conformer",
        lambda: train_conformer(
            encoder,
            bank,
            begun,
            voice,
            steps=args.conformer_steps,
            valid=str(work / "held_out"),
            settings=conformer,
            **{**given, "features": varied},
        ),
    )
    assert restored.restoration is not None
    save_json(work / "restored.json", dataclasses.asdict(restored.restoration))
    model = work / "model"
    if not model.exists():
        export_model(wavlm, voice, model)
    spectral, adversarial = VOCODERS
    spoken = train(spectral, model, heard, steps=args.vocoder_steps, spectral_steps=args.vocoder_steps)
    # The spectra get more weight, so that discriminators cost few words.
    vocoder = train(adversarial, model, spoken, steps=args.adversarial_steps, learning_rate=2e-4, stft=40.0)
    both = load_torch(voice)
    generator = load_torch(vocoder)["generator"]
    both["model_state_dict"] |= {f"hifi.model.{name}": tensor for name, tensor in generator.items()}
    save_torch(work / "voice.pth", both)
    return work / "voice.pth"


def vary_speed(data: Path, out: Path, held_out: Sequence[str]) -> Path:
    """Copy each recording slower or faster, which gives more voices; returns the list of recordings and copies.

    Nothing of the speakers in ``held_out`` is copied. A copy belongs to a speaker of its own.
    """
    paths, speakers = (
        dict(line.split() for line in (data / name).read_text().splitlines()) for name in ("wav.scp", "utt2spk")
    )
    (out / "wav").mkdir(parents=True, exist_ok=True)
    lines = [(name, (data / path).resolve(), speakers[name]) for name, path in paths.items()]
    random = generator_of(SEED, "speeds")
    for index, (name, path, speaker) in enumerate(lines[:]):
        kind, slowest, fastest = ("slow", 0.84, 0.93) if index % 2 else ("fast", 1.08, 1.19)
        if speaker not in held_out:
            speed = random.uniform(slowest, fastest)
            waveform, _ = soundfile.read(path, dtype="float32")
            changed = soxr.resample(waveform, RATE * speed, RATE, quality="MQ")
            copy = (out / "wav" / f"{name}_{kind}.flac").resolve()
            soundfile.write(copy, changed.clip(-1, 1), RATE, subtype="PCM_16")
            lines.append((copy.stem, copy, f"{speaker}_{kind}"))
    lines.sort()
    (out / "utt2spk").write_text("".join(f"{name} {speaker}\n" for name, _, speaker in lines))
    (out / "wav.scp").write_text("".join(f"{name} {path}\n" for name, path, _ in lines))
    return out / "wav.scp"


def fit_start(start: Path, encoder: Path, features: Path, data: Path, out: Path) -> None:
    """Let a vocoder of spectra take features, by the linear map that tells spectra from them best."""
    generator = dict(load_torch(start)["generator"])
    cache = CachedFeatures(FeatureCache.open(features, encoder))
    paths = dict(line.split() for line in (data / "wav.scp").read_text().splitlines())
    mel, pairs = LogMel(RATE, HOP), []
    for index in range(0, len(cache.ids), max(1, len(cache.ids) // 400)):
        waveform, _ = soundfile.read(data / paths[cache.ids[index]], dtype="float32")
        told = spectra(mel, torch.from_numpy(waveform)[None])[0].numpy()
        seen = cache.read(index, 0, cache.frames[index])
        frames = min(len(told), len(seen))
        pairs.append((np.pad(seen[:frames], ((0, 0), (0, 1)), constant_values=1.0), told[:frames]))
    seen, told = (np.concatenate(each) for each in zip(*pairs, strict=True))
    # Features are normalized and so lie near a plane. Restored features do not, and without the ridge the map would be
    # steep across it.
    ridge = _RIDGE * len(seen) * np.eye(seen.shape[1])
    ridge[-1, -1] = 0.0
    fitted = np.linalg.solve(seen.T @ seen + ridge, seen.T @ told)
    print(f"spectra from features: error {np.abs(seen @ fitted - told).mean() * SCALE:.2f} nats", flush=True)
    weight, bias = (generator[f"lin_pre.{name}"].double().numpy() for name in ("weight", "bias"))
    generator["lin_pre.weight"] = torch.from_numpy(weight @ fitted[:-1].T).float()
    generator["lin_pre.bias"] = torch.from_numpy(bias + weight @ fitted[-1]).float()
    save_torch(out, {"generator": generator, "hifi_config": hifi_config(VOCODER)})


def pack(wavlm: Path, voice: Path, bank: Path, out: Path) -> None:
    """Write the set: weights and centroids rounded and compressed, and a file for each k-means model."""
    out.mkdir(parents=True, exist_ok=True)
    encoder, content = load_torch(wavlm), load_torch(voice)
    _save(out / "wavlm.pt.xz", {"cfg": encoder["cfg"], "model": _rounded(encoder["model"])})
    state = _rounded(content["model_state_dict"])
    _save(out / "conformer_vocoder.pt.xz", {"extra": content["extra"], "model_state_dict": state})
    (out / "kmeans").mkdir(exist_ok=True)
    opened, lines = open_bank(bank), []
    # Rounded to a third of the spread, the centroids take a seventh of the space. That adds less to the error of
    # quantization than a twentieth of it.
    step = 0.3 * opened.centroids.std()
    for name, centroids in zip(opened.info.names, opened.centroids, strict=True):
        path = out / "kmeans" / f"{name}.pt"
        write_kmeans(path, (np.round(centroids / step) * step).astype("float32"))
        path.write_bytes(lzma.compress(path.read_bytes(), preset=9))  # as joblib compresses
        lines.append(f"{name} kmeans/{name}.pt\n")
    (out / "kmeans.scp").write_text("".join(lines))


def record_training(args: argparse.Namespace, out: Path) -> None:
    """Write the hours of each step, what came of it, and the logs of encoder and vocoder: the curves over time."""
    steps = [(name, args.work / f"{name}.pth") for name in ("conformer", *VOCODERS)]
    logs = {
        name: [json.loads(line) for line in Path(f"{path}.training", "log.jsonl").read_text().splitlines()]
        for name, path in (("encoder", args.wavlm), ("start", args.start), *steps)
    }
    looks = [line for line in logs.pop("conformer") if "valid_restored" in line]
    vocoders = {name: logs.pop(name) for name in VOCODERS}
    restored = json.loads((args.work / "restored.json").read_text())
    cache = FeatureCache.open(args.work / "features", args.work / "encoder")
    hours = {name: lines[-1]["hours"] for name, lines in logs.items()}
    write_result(
        out,
        {
            "hours": {**json.loads((args.work / "hours.json").read_text()), **hours},
            "phones_right": logs["encoder"][-1]["valid_right"],
            "phones_right_of_another_speakers_centroids": logs["encoder"][-1].get("valid_quantized_right"),
            "frames": sum(CachedFeatures(cache).frames),
            "models": len(open_bank(args.work / "bank").info.names),
            "held_out_speakers": list(args.held_out),
            "restored": restored,
            "error_less": 1 - restored["restored"] / restored["quantized"],
            "steps": {
                "encoder": logs["encoder"][-1]["step"],
                "conformer": args.conformer_steps,
                "start": logs["start"][-1]["step"],
                "vocoder_of_features": args.feature_steps,
                "vocoder": args.vocoder_steps,
                "vocoder_with_discriminators": args.adversarial_steps,
            },
            "curves": {
                **logs,
                "conformer": looks,
                **{name: lines[:: max(1, len(lines) // 40)] for name, lines in vocoders.items()},
            },
        },
    )


def save_json(path: Path, content: object) -> None:
    """Write a file of JSON."""
    path.write_text(json.dumps(content, indent=1) + "\n")


def _rounded(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """In float16, with the significant bits of bfloat16."""
    return {name: each.bfloat16().half() if each.is_floating_point() else each for name, each in state.items()}


def _save(path: Path, content: dict[str, Any]) -> None:
    """Write what ``torch.save`` writes, compressed by ``xz`` for numbers of two bytes."""
    file = io.BytesIO()
    torch.save(content, file)
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 2, "lp": 1, "pb": 1}]
    path.write_bytes(lzma.compress(file.getvalue(), filters=filters))


def _shown() -> Callable[[int, int], None]:
    begin = time.perf_counter()

    def show(step: int, steps: int) -> None:
        if step % 100 == 0:
            print(f"step {step} of {steps}, {time.perf_counter() - begin:.0f} s", flush=True)

    return show


def main() -> None:
    """Make it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--wavlm", type=Path, required=True)
    parser.add_argument("--start", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--pack", type=Path)
    parser.add_argument("--record", type=Path)
    parser.add_argument("--clusters", type=int, default=1024)
    parser.add_argument("--held-out", nargs="+", default=HELD_OUT, help="speakers that the conformer does not see")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16: faster where the processor has it")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu or cuda:0 (default: cpu)")
    # About as many as the shipped set took, in more rounds.
    for name, count in (("conformer", 25000), ("feature", 7000), ("vocoder", 9000), ("adversarial", 1500)):
        parser.add_argument(f"--{name}-steps", type=int, default=count)
    args = parser.parse_args()
    voice = make(args)
    if args.pack:
        pack(args.wavlm, voice, args.work / "bank", args.pack)
    if args.record:
        record_training(args, args.record)


if __name__ == "__main__":
    main()
