"""Makes the rest of the small set: ``python examples/small_set/make.py --data DIR --wavlm WavLM.pt --work DIR``.

From the speech (``speech.py``) and the encoder (``encoder.py``): features, a bank with a k-means model for each speaker,
a vocoder, a conformer, and the vocoder once more, on what the conformer restores. ``--work`` holds everything, and the
same call continues. ``--pack DIR`` then writes the set as it is shipped: checkpoints of the published formats whose
weights are float16.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mkc_fast.engine.artifacts import open_bank
from mkc_fast.export import export_model
from mkc_fast.export.checkpoints.configs import HifiGanConfig
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

SEED = 1
DIM = 160
# Their k-means models are in the bank, and the conformer has seen neither these nor what they say.
HELD_OUT = ("es_alicia", "es_marco", "kal161", "slt2")
VOCODER = HifiGanConfig(
    resblock="1",
    upsample_rates=(10, 8, 2, 2),
    upsample_kernel_sizes=(20, 16, 4, 4),
    upsample_initial_channel=128,
    resblock_kernel_sizes=(3, 7, 11),
    resblock_dilation_sizes=((1, 3, 5), (1, 3, 5), (1, 3, 5)),
    input_dim=DIM,
    hidden_dim=128,
    sample_rate=16000,
)


def make(data: Path, wavlm: Path, work: Path, steps: dict[str, int], clusters: int, threads: int) -> Path:
    """Train everything that is not there; the checkpoint of conformer and vocoder."""
    work.mkdir(parents=True, exist_ok=True)
    speech = data / "train" / "wav.scp"
    hours: dict[str, float] = {}
    record = work / "hours.json"
    if record.exists():
        hours = json.loads(record.read_text())

    def timed(name: str, out: Path, run: Callable[[], Any]) -> Any:
        begin = time.perf_counter()
        made = run()
        hours[name] = round(hours.get(name, 0.0) + (time.perf_counter() - begin) / 3600, 3)
        record.write_text(json.dumps(hours))
        print(f"{name}: {hours[name]} hours, {out}", flush=True)
        return made

    random, encoder, features, bank = (work / name for name in ("random.pth", "encoder", "features", "bank"))
    if not encoder.exists():
        write_voice(random, {"feature_dim": DIM, "conformer_num_heads": 5, "conformer_num_layers": 1})
        export_model(wavlm, random, encoder)
    if not features.exists():
        timed("features", features, lambda: make_features(encoder, features, audio_list=speech))
    if not bank.exists():
        settings = KMeansSettings(clusters, n_init=5)
        timed("bank", bank, lambda: train_bank(encoder, bank, audio_list=speech, settings=settings, seed=SEED))
    first = work / "vocoder.pth"
    plain = VocoderSettings(
        segment_frames=25,
        batch=16,
        learning_rate=5e-4,
        decay=0.9995,
        divisor=4,
        stft=10.0,
        spectral_steps=steps["spectral"],
    )
    shown = _shown()
    timed("vocoder", first, lambda: train_vocoder(
        encoder, first, steps=steps["vocoder"], audio_list=speech, features=features, sizes=VOCODER, settings=plain,
        seed=SEED, threads=threads, progress=shown,
    ))  # fmt: skip
    voice = work / "conformer.pth"
    (work / "held_out").write_text("".join(f"{name}\n" for name in HELD_OUT))
    conformer = ConformerSettings(
        num_layers=2, num_heads=5, ffn_dim=480, batch_frames=4000, max_frames=250, learning_rate=1.5e-3, warmup=200,
        decay=steps["conformer"] // 2, valid_every=200, patience=0,
    )  # fmt: skip
    restored = timed("conformer", voice, lambda: train_conformer(
        encoder, bank, first, voice, steps=steps["conformer"], features=features, valid=str(work / "held_out"),
        settings=conformer, seed=SEED, threads=threads,
    ))  # fmt: skip
    print(restored.restoration, flush=True)
    model = work / "model"
    if not model.exists():
        export_model(wavlm, voice, model)
    last = work / "vocoder2.pth"
    timed("vocoder on restored features", last, lambda: train_vocoder(
        model, last, steps=steps["restored"], audio_list=speech, features=features, bank=bank, init=first,
        settings=VocoderSettings(segment_frames=25, batch=16, learning_rate=3e-4, decay=0.9995, divisor=4, stft=10.0),
        seed=SEED, threads=threads, progress=shown,
    ))  # fmt: skip
    both = load_torch(voice)
    generator = load_torch(last)["generator"]
    both["model_state_dict"] |= {f"hifi.model.{name}": tensor for name, tensor in generator.items()}
    torch.save(both, work / "voice.pth")
    return work / "voice.pth"


def pack(wavlm: Path, voice: Path, bank: Path, out: Path) -> None:
    """Write the set: weights in float16, and a file for each k-means model."""
    out.mkdir(parents=True, exist_ok=True)
    encoder, content = load_torch(wavlm), load_torch(voice)
    torch.save({"cfg": encoder["cfg"], "model": _halves(encoder["model"])}, out / "wavlm.pt")
    state = _halves(content["model_state_dict"])
    torch.save({"extra": content["extra"], "model_state_dict": state}, out / "conformer_vocoder.pt")
    (out / "kmeans").mkdir(exist_ok=True)
    opened, lines = open_bank(bank), []
    for name, centroids in zip(opened.info.names, opened.centroids, strict=True):
        write_kmeans(out / "kmeans" / f"{name}.pt", centroids.astype("float16"))
        lines.append(f"{name} kmeans/{name}.pt\n")
    (out / "kmeans.scp").write_text("".join(lines))


def _halves(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: each.half() if each.is_floating_point() else each for name, each in state.items()}


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
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--pack", type=Path)
    parser.add_argument("--clusters", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    for name, count in (("spectral", 2000), ("vocoder", 4000), ("conformer", 4000), ("restored", 4000)):
        parser.add_argument(f"--{name}-steps", type=int, default=count)
    args = parser.parse_args()
    steps = {name: getattr(args, f"{name}_steps") for name in ("spectral", "vocoder", "conformer", "restored")}
    voice = make(args.data, args.wavlm, args.work, steps, args.clusters, args.threads)
    if args.pack:
        pack(args.wavlm, voice, args.work / "bank", args.pack)


if __name__ == "__main__":
    main()
