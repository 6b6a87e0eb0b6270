"""Trains the vocoder of the small set on log mel spectra: ``python examples/small_set/start.py --data DIR --out FILE``.

These need no encoder, so this can run while the encoder is trained. ``make.py --start FILE`` goes on from it with the
encoder's features. The same call continues.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from encoder import Speech
from sizes import HOP, RATE, VOCODER, WINDOW

from mkc_fast.export.checkpoints.configs import HifiGanConfig
from mkc_fast.train.loop.prefetch import prefetched
from mkc_fast.train.loop.sampler import generator_of
from mkc_fast.train.loop.state import load_state, save_torch
from mkc_fast.train.vocoder.discriminators import Discriminators
from mkc_fast.train.vocoder.generator import Generator
from mkc_fast.train.vocoder.losses import (
    MATCHING_WEIGHT,
    MEL_WEIGHT,
    LogMel,
    SpectralLoss,
    adversarial_loss,
    discriminator_loss,
    matching_loss,
)

BANDS, SHIFT = 80, WINDOW // 2 - HOP // 2
MEAN, SCALE = -5.0, 2.0  # of log mel spectra, nearly


def spectra(mel: LogMel, waveform: torch.Tensor) -> torch.Tensor:
    """Waveforms (B, S) → scaled log mel spectra (B, T, 80), whose frames have the middles of the encoder's."""
    return ((mel(waveform[:, SHIFT:]) - MEAN) / SCALE).transpose(1, 2)


class Start:
    """Generator and discriminators with their optimizers."""

    def __init__(self, config: HifiGanConfig, spectral: int, steps: int) -> None:
        torch.manual_seed(0)
        self.generator, self.discriminators = Generator(config), Discriminators(4, 0)
        self.optimizers = [
            torch.optim.AdamW(each.parameters(), betas=(0.8, 0.99)) for each in (self.generator, self.discriminators)
        ]
        self.mel, self.stft, self.spectral, self.steps = LogMel(RATE, HOP), SpectralLoss(), spectral, steps
        self.step, self.seconds = 0, 0.0

    def take(self, waveform: np.ndarray, frames: int) -> dict[str, float]:
        """One step on waveforms (B, S)."""
        self.step += 1
        whole = torch.from_numpy(waveform)
        with torch.no_grad():
            features = spectra(self.mel, whole)[:, :frames]
        real = whole[:, : frames * HOP]
        rate = 1e-3 * min(1.0, self.step / 100) * 0.3 ** (self.step / self.steps)
        made = self.generator(features)
        mel = (self.mel(real) - self.mel(made)).abs().mean()
        stft = self.stft(real, made)
        loss = MEL_WEIGHT * mel + 10 * stft
        values = {"mel": mel, "stft": stft}
        if self.step > self.spectral:
            judged = discriminator_loss(self.discriminators(real), self.discriminators(made.detach()))
            self._apply(1, judged, rate / 2)
            ours = self.discriminators(made)
            matching = matching_loss(self.discriminators(real), ours)
            loss = loss + adversarial_loss(ours) + MATCHING_WEIGHT * matching
            values |= {"judged": judged, "matching": matching}
        self._apply(0, loss, rate)
        return {name: value.item() for name, value in values.items()}

    def _apply(self, number: int, loss: torch.Tensor, rate: float) -> None:
        optimizer = self.optimizers[number]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()

    def parts(self) -> list[torch.nn.Module | torch.optim.Optimizer]:
        """Everything with a state."""
        return [self.generator, self.discriminators, *self.optimizers]


def main() -> None:
    """Train, or go on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--spectral-steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = HifiGanConfig(**{**VOCODER.__dict__, "input_dim": BANDS})
    start = Start(config, args.spectral_steps, args.steps)
    work = args.out.with_name(f"{args.out.name}.training")
    work.mkdir(parents=True, exist_ok=True)
    state = load_state(work / "state.pt", ("step", "seconds", "parts"))
    if state is not None:
        start.step, start.seconds = state["step"], state["seconds"]
        for each, held in zip(start.parts(), state["parts"], strict=True):
            each.load_state_dict(held)
    speech = Speech(args.data / "train")
    count = args.frames * HOP + WINDOW
    begin, before, sums = time.perf_counter(), start.seconds, []

    def made(step: int) -> np.ndarray:
        random = generator_of("start", step)
        return np.stack([speech.part(random, count) for _ in range(args.batch)])

    for waveform in prefetched(made, iter(range(start.step + 1, args.steps + 1)), 1):
        sums.append(start.take(waveform, args.frames))
        start.seconds = before + time.perf_counter() - begin
        if start.step % 100 == 0 or start.step == args.steps:
            states = [each.state_dict() for each in start.parts()]
            save_torch(work / "state.pt", {"step": start.step, "seconds": start.seconds, "parts": states})
            line = {
                name: round(sum(each[name] for each in sums) / len(sums), 4) for name in sums[-1] if name in sums[0]
            }
            line = {"step": start.step, "hours": round(start.seconds / 3600, 3), **line}
            with (work / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            print(line, flush=True)
            sums.clear()
    save_torch(args.out, {"generator": start.generator.published(), "steps": start.step})


if __name__ == "__main__":
    main()
