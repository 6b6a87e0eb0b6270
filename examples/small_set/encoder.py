"""Trains the encoder of the small set: ``python examples/small_set/encoder.py --data DIR --out WavLM.pt``.

It has WavLM's layout. From its last layer's features, with noise added, it must tell the phone of a frame and of those
60 ms around it, and the log mel spectrum of the clean recording, while it hears the recording faster or slower,
through filters, with noise and echoes. The noise sets how much room each kind of knowledge gets: phones are to fill
more of it than the sound of a voice. Then the phones must also be told from what is left when each frame is replaced by
the nearest of the centroids of another speaker, which are kept up to date meanwhile: what the method does to features.
State lies beside the output, and the same call continues.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import scipy.signal
import soundfile
import soxr
import torch
from sizes import CONVOLUTIONS, HOP, RATE, WAVLM, WINDOW
from speech import PHONES
from torch import nn
from wavlm import WavLM

from mkc_fast.train.loop.prefetch import prefetched
from mkc_fast.train.loop.sampler import generator_of, number_of
from mkc_fast.train.loop.state import load_state, save_torch
from mkc_fast.train.vocoder.losses import LogMel

_AROUND = (-3, 0, 3)  # frames whose phones are told
# Of the features' standard deviation.
_PHONE_NOISE, _MEL_NOISE = 1.0, 0.4
_CLUSTERS, _QUANTIZED_FROM, _KEPT = 128, 400, 0.97
_FRAMES = 160
_SAMPLES = (_FRAMES - 1) * HOP + WINDOW
_LONGEST = 1.3 * _SAMPLES  # that a crop takes of a recording; speakers with less are left out


class Speech:
    """All recordings of a data directory, speaker by speaker, and the phones in them."""

    def __init__(self, folder: Path) -> None:
        names = dict(line.split() for line in (folder / "wav.scp").read_text().splitlines())
        segments: dict[str, list[tuple[float, int]]] = {name: [] for name in names}
        for line in (folder / "phones.ctm").read_text().splitlines():
            name, _, begin, duration, phone = line.split()
            segments[name].append((float(begin) + float(duration), PHONES.index(phone)))
        by_speaker: dict[str, list[str]] = {}
        for line in (folder / "utt2spk").read_text().splitlines():
            name, speaker = line.split()
            by_speaker.setdefault(speaker, []).append(name)
        self.streams = []
        for spoken in by_speaker.values():
            samples, phones = [], []
            for name in spoken:
                wave, _ = soundfile.read(folder / names[name], dtype="int16")
                samples.append(wave)
                # A phone each 5 ms.
                ends, labels = zip(*segments[name], strict=True)
                at = (np.arange(len(wave) // 80 + 1) * 80 + 40) / RATE
                index = np.minimum(np.searchsorted(ends, at), len(labels) - 1)
                phones.append(np.repeat(np.asarray(labels, np.uint8)[index], 80)[: len(wave)])
            if sum(map(len, samples)) > _LONGEST:
                self.streams.append((np.concatenate(samples), np.concatenate(phones)))

    def batch(self, random: np.random.Generator, size: int, *, change: bool) -> tuple[np.ndarray, ...]:
        """What is heard (B, S), the clean recording (B, S), phones (B, T) and speakers (B,)."""
        heard, clean, phones, speakers = [], [], [], []
        lengths = np.asarray([len(each[0]) for each in self.streams], float)
        for _ in range(size):
            speakers.append(random.choice(len(self.streams), p=lengths / lengths.sum()))
            samples, labels = self.streams[speakers[-1]]
            speed = math.exp(random.uniform(-0.17, 0.17)) if change and random.random() < 0.6 else 1.0
            taken = math.ceil(_SAMPLES * speed) + 64
            begin = int(random.integers(0, len(samples) - taken))
            wave = samples[begin : begin + taken].astype(np.float32) / 32768
            if speed != 1.0:
                wave = soxr.resample(wave, RATE * speed, RATE, quality="LQ")
            wave = wave[:_SAMPLES]
            at = begin + ((np.arange(_FRAMES) * HOP + WINDOW // 2) * speed).astype(int)
            clean.append(wave)
            phones.append(labels[at])
            heard.append(_changed(wave, random, self) if change else wave)
        return np.stack(heard), np.stack(clean), np.stack(phones), np.asarray(speakers)

    def part(self, random: np.random.Generator, count: int) -> np.ndarray:
        """Some speech of somebody."""
        samples, _ = self.streams[random.integers(len(self.streams))]
        begin = int(random.integers(0, len(samples) - count))
        return samples[begin : begin + count].astype(np.float32) / 32768


def _changed(wave: np.ndarray, random: np.random.Generator, speech: Speech) -> np.ndarray:
    """A recording as a room and a microphone may change it."""
    power = float(np.square(wave).mean()) + 1e-8
    if random.random() < 0.4:
        length = int(RATE * random.uniform(0.05, 0.4))
        echo = random.standard_normal(length) * np.exp(-np.arange(length) / length * random.uniform(4, 9))
        echo *= random.uniform(0.05, 0.5) / (np.abs(echo).max() + 1e-6) / 3
        echo[0] = 1.0
        wave = scipy.signal.fftconvolve(wave, echo)[:_SAMPLES]
    if random.random() < 0.5:
        wave = _equalized(wave, random)
    if random.random() < 0.6:
        kind = random.integers(3)
        if kind == 0:
            noise = sum(speech.part(random, _SAMPLES) for _ in range(4))
        else:
            spectrum = np.fft.rfft(random.standard_normal(_SAMPLES))
            noise = np.fft.irfft(spectrum / (np.arange(len(spectrum)) + 20.0) ** random.uniform(0, 1.2), _SAMPLES)
        level = power / (float(np.square(noise).mean()) + 1e-12) * 10 ** (-random.uniform(5, 35) / 10)
        wave = wave + noise * math.sqrt(level)
    if random.random() < 0.1:
        limit = float(np.abs(wave).max()) * random.uniform(0.3, 0.8)
        wave = np.clip(wave, -limit, limit)
    return (wave * 10 ** random.uniform(-1.0, 0.25)).astype(np.float32)


def _equalized(wave: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Another smooth response, and at times a narrow band."""
    bins = len(wave) // 2 + 1
    hertz = np.linspace(0, RATE / 2, bins)
    points = np.asarray([0, 150, 400, 1000, 2000, 3500, 5500, 8000])
    decibels = np.interp(hertz, points, random.uniform(-9, 9, len(points)))
    if random.random() < 0.4:
        low, high = random.uniform(50, 350), random.uniform(3200, 7000)
        decibels = decibels - 30 * (1 / (1 + (hertz / low) ** 6) + 1 / (1 + (high / np.maximum(hertz, 1)) ** 12))
    return np.fft.irfft(np.fft.rfft(wave) * 10 ** (decibels / 20), len(wave))


class Heads(nn.Module):
    """What the features are asked: phones of frames around, and the log mel spectrum."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.phones = nn.Linear(dim, len(_AROUND) * len(PHONES))
        self.mel = nn.Sequential(nn.Linear(dim, 256), nn.GELU(), nn.Linear(256, 80))

    def forward(self, features: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        noise = noise * features.detach().std()
        return self.told(features + _PHONE_NOISE * noise), self.mel(features + _MEL_NOISE * noise)

    def told(self, features: torch.Tensor) -> torch.Tensor:
        """Features (B, T, D) → phones (B, T, around, phones), as logits."""
        return self.phones(features).unflatten(-1, (len(_AROUND), -1))


class Centroids(nn.Module):
    """Centroids of each speaker, as moving averages of what is nearest to them."""

    def __init__(self, speakers: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("places", torch.randn(speakers, _CLUSTERS, dim))
        self.register_buffer("counts", torch.zeros(speakers, _CLUSTERS))

    def nearest(self, features: torch.Tensor, speaker: int) -> torch.Tensor:
        """Ids (T,) of the nearest centroids of a speaker to features (T, D)."""
        places = self.places[speaker]
        return (features @ places.T - 0.5 * places.square().sum(1)).argmax(1)

    def update(self, features: torch.Tensor, speaker: int) -> None:
        """Move the centroids of a speaker towards features (T, D) of hers."""
        ids = self.nearest(features, speaker)
        counts = torch.bincount(ids, minlength=_CLUSTERS).float()
        sums = torch.zeros_like(self.places[speaker]).index_add_(0, ids, features)
        before, places = self.counts[speaker], self.places[speaker]
        after = _KEPT * before + (1 - _KEPT) * counts
        moved = (_KEPT * before[:, None] * places + (1 - _KEPT) * sums) / after.clamp(min=1e-9)[:, None]
        self.places[speaker] = torch.where(counts[:, None] > 0, moved, places)
        # Those that nothing is near to any more begin anew, at a frame.
        unused = after < 0.02 * counts.mean()
        chosen = torch.arange(int(unused.sum()), device=features.device) * 7 % len(features)
        self.places[speaker, unused] = features[chosen]
        self.counts[speaker] = torch.where(unused, counts.mean() * (1 - _KEPT), after)

    def quantized(self, features: torch.Tensor, speakers: np.ndarray) -> torch.Tensor:
        """Features (B, T, D), each recording with the centroids of another speaker; gradients pass through."""
        others = [(int(speaker) * 5 + 7 + row) % len(self.places) for row, speaker in enumerate(speakers)]
        found = torch.stack(
            [
                self.places[other][self.nearest(rows, other)]
                for rows, other in zip(features.detach(), others, strict=True)
            ]
        )
        return features + (found - features).detach()


class Training:
    """Encoder and heads with their optimizer."""

    def __init__(self, steps: int, rate: float, speakers: int, *, bf16: bool, device: torch.device) -> None:
        torch.manual_seed(0)
        self.encoder, self.heads = WavLM({**WAVLM, "conv_layers": CONVOLUTIONS}), Heads(WAVLM["encoder_embed_dim"])
        self.centroids = Centroids(speakers, WAVLM["encoder_embed_dim"])
        self.modules = nn.ModuleDict({"encoder": self.encoder, "heads": self.heads, "centroids": self.centroids})
        self.modules.to(device)
        decayed = [each for each in self.modules.parameters() if each.ndim > 1]
        others = [each for each in self.modules.parameters() if each.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}], betas=(0.9, 0.98)
        )
        self.mel, self.steps, self.rate = LogMel(RATE, HOP).to(device), steps, rate
        self.bf16, self.device = bf16, device
        self.step, self.seconds = 0, 0.0
        self.compiled = torch.compile(self.encoder) if bf16 else self.encoder

    def losses(self, batch: tuple[np.ndarray, ...], seed: int) -> dict[str, torch.Tensor]:
        """Cross entropy of phones, mean absolute error of mel spectra, in nats, and the share of phones told right."""
        heard, clean, phones = (torch.from_numpy(np.ascontiguousarray(each)).to(self.device) for each in batch[:3])
        with torch.no_grad():
            # The middle of a frame of the mel spectrum is that of a frame of features: 200 samples after its begin.
            shift = WINDOW // 2 - HOP // 2
            mel = self.mel(clean[:, shift:])[..., :_FRAMES].transpose(1, 2)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            features = (self.compiled if torch.is_grad_enabled() else self.encoder)(heard)
        features = features.float()
        noise = torch.randn(features.shape, generator=torch.Generator().manual_seed(seed)).to(self.device)
        logits, predicted = self.heads(features, noise)
        edge = max(_AROUND)
        inside = slice(edge, _FRAMES - edge)
        wanted = torch.stack([phones[:, edge + each : _FRAMES - edge + each] for each in _AROUND], -1).long()

        def entropy(told: torch.Tensor) -> torch.Tensor:
            return nn.functional.cross_entropy(told[:, inside].flatten(0, 2), wanted.flatten())

        def right(told: torch.Tensor) -> torch.Tensor:
            return (told[:, inside, 1].argmax(-1) == wanted[..., 1]).float().mean()

        frames = min(mel.shape[1], _FRAMES)
        found = {
            "phones": entropy(logits),
            "mel": (mel[:, :frames] - predicted[:, :frames]).abs().mean(),
            "right": right(logits),
        }
        if torch.is_grad_enabled():
            with torch.no_grad():
                for rows, speaker in zip(features.detach(), batch[3], strict=True):
                    self.centroids.update(rows, int(speaker))
        if self.step > _QUANTIZED_FROM:
            told = self.heads.told(self.centroids.quantized(features, batch[3]))
            found |= {"quantized": entropy(told), "quantized_right": right(told)}
        return found

    def take(self, batch: tuple[np.ndarray, ...]) -> dict[str, float]:
        """One step."""
        self.step += 1
        part = self.step / self.steps
        rate = self.rate * min(1.0, self.step / 400) * (1.0 if part < 0.3 else max(0.02, (1 - part) / 0.7))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        losses = self.losses(batch, number_of("noise", self.step))
        self.optimizer.zero_grad(set_to_none=True)
        sum(losses[name] for name in ("phones", "mel", "quantized") if name in losses).backward()
        nn.utils.clip_grad_norm_(self.modules.parameters(), 5.0)
        self.optimizer.step()
        return {name: value.item() for name, value in losses.items()}

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "modules": self.modules.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.step, self.seconds = state["step"], state["seconds"]
        self.modules.load_state_dict(state["modules"])
        self.optimizer.load_state_dict(state["optimizer"])


def main() -> None:
    """Train, or go on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--bf16", action="store_true", help="compiled, in bfloat16: faster where the processor has it")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu or cuda:0 (default: cpu)")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch; with other work beside, 1 is fastest")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    speech, valid = Speech(args.data / "train"), Speech(args.data / "valid")
    training = Training(args.steps, args.rate, len(speech.streams), bf16=args.bf16, device=args.device)
    work = args.out.with_name(f"{args.out.name}.training")
    state = load_state(work / "state.pt", ("step", "seconds", "modules", "optimizer"))
    if state is not None:
        training.resume(state)
    seen = valid.batch(generator_of("valid"), 2 * args.batch, change=False)
    begin, before, sums = time.perf_counter(), training.seconds, []

    def made(step: int) -> tuple[np.ndarray, ...]:
        return speech.batch(generator_of("batch", step), args.batch, change=True)

    work.mkdir(parents=True, exist_ok=True)
    for batch in prefetched(made, iter(range(training.step + 1, args.steps + 1)), 1):
        sums.append(training.take(batch))
        training.seconds = before + time.perf_counter() - begin
        if training.step % 200 == 0 or training.step == args.steps:
            save_torch(work / "state.pt", training.state())
            training.modules.eval()
            with torch.no_grad():
                held_out = training.losses(seen, 0)
            training.modules.train()
            line = {name: round(sum(each[name] for each in sums) / len(sums), 4) for name in sums[0]}
            line |= {f"valid_{name}": round(value.item(), 4) for name, value in held_out.items()}
            line = {"step": training.step, "hours": round(training.seconds / 3600, 3), **line}
            with (work / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            print(line, flush=True)
            sums.clear()
    save_torch(args.out, {"cfg": WAVLM, "model": training.encoder.published()})


if __name__ == "__main__":
    main()
