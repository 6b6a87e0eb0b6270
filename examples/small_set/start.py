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
from mkc_fast.train.vocoder.generator import Generator
from mkc_fast.train.vocoder.losses import LogMel
from mkc_fast.train.vocoder.networks import Networks
from mkc_fast.train.vocoder.settings import VocoderSettings

BANDS, SHIFT = 80, WINDOW // 2 - HOP // 2
MEAN, SCALE = -5.0, 2.0  # of log mel spectra, nearly


def spectra(mel: LogMel, waveform: torch.Tensor) -> torch.Tensor:
    """Waveforms (B, S) → scaled log mel spectra (B, T, 80), whose frames have the middles of the encoder's."""
    return ((mel(waveform[:, SHIFT:]) - MEAN) / SCALE).transpose(1, 2)


def main() -> None:
    """Train, or go on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=11000)
    parser.add_argument("--spectral-steps", type=int, default=11000)
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16: faster where the processor has it")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu or cuda:0 (default: cpu)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    settings = VocoderSettings(
        segment_frames=args.frames,
        divisor=4,
        scales=0,
        stft=10.0,
        spectral_steps=args.spectral_steps,
        bf16=args.bf16,
    )
    torch.manual_seed(0)
    generator = Generator(HifiGanConfig(**{**VOCODER.__dict__, "input_dim": BANDS}))
    networks, mel = Networks(generator, settings, RATE, HOP, args.device), LogMel(RATE, HOP).to(args.device)
    work = args.out.with_name(f"{args.out.name}.training")
    work.mkdir(parents=True, exist_ok=True)
    state, done, before = load_state(work / "state.pt", ("step", "seconds", *Networks.STATES)), 0, 0.0
    if state is not None:
        done, before = state["step"], state["seconds"]
        networks.resume(state)
    speech = Speech(args.data / "train")
    count = args.frames * HOP + WINDOW
    begin, sums = time.perf_counter(), []

    def made(step: int) -> tuple[int, torch.Tensor]:
        random = generator_of("start", step)
        return step, torch.from_numpy(np.stack([speech.part(random, count) for _ in range(args.batch)]))

    for step, cpu_waveform in prefetched(made, iter(range(done + 1, args.steps + 1)), 1):
        waveform = cpu_waveform.to(args.device)
        with torch.no_grad():
            features = spectra(mel, waveform)[:, : args.frames]
        rate = 1e-3 * min(1.0, step / 100) * 0.3 ** (step / args.steps)
        losses = networks.take(features, waveform[:, : args.frames * HOP], step, rate)
        sums.append({name: value.item() for name, value in losses.items()})
        if step % 100 == 0 or step == args.steps:
            seconds = before + time.perf_counter() - begin
            save_torch(work / "state.pt", {"step": step, "seconds": seconds, **networks.states()})
            line = {
                name: round(sum(each[name] for each in sums) / len(sums), 4) for name in sums[-1] if name in sums[0]
            }
            line = {"step": step, "hours": round(seconds / 3600, 3), **line}
            with (work / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            print(line, flush=True)
            sums.clear()
    save_torch(args.out, {"generator": generator.published(), "steps": args.steps})


if __name__ == "__main__":
    main()
