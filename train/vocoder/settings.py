"""How a vocoder is trained."""

from __future__ import annotations

from dataclasses import dataclass

from mkc_fast.errors import ArgumentError


@dataclass(frozen=True)
class VocoderSettings:
    """Of the training; the optimizer's values are as published for HiFi-GAN.

    Attributes:
        segment_frames: Of the parts of recordings that are taken; at least 4, since spectra need 1,024 samples.
        batch: Parts of a step, of each process.
        learning_rate: Of AdamW, for generator and discriminators.
        decay: Factor of the rate, an epoch.
        divisor: Channels of the discriminators are divided by it; 1 is as published.
        scales: Discriminators that look at scales; 3 as published. They take most of the time on a CPU, and without
            them five still look at periods.
        stft: Weight of the loss of spectra of three resolutions; 0, as published for HiFi-GAN: it is not computed.
        spectral_steps: First steps, without discriminators and so faster.
        bf16: Compute in bfloat16 what autocast takes for safe; weights and losses stay float32.
        save_every: Steps after which the state is saved.
    """

    segment_frames: int = 25
    batch: int = 16
    learning_rate: float = 2e-4
    decay: float = 0.999
    divisor: int = 1
    scales: int = 3
    stft: float = 0.0
    spectral_steps: int = 0
    bf16: bool = False
    save_every: int = 1000

    def __post_init__(self) -> None:
        for name, least in (("segment_frames", 4), ("batch", 1), ("divisor", 1), ("save_every", 1)):
            if getattr(self, name) < least:
                raise ArgumentError(f"{name} is {getattr(self, name)}; expected at least {least}")
        for name in ("scales", "spectral_steps"):
            if getattr(self, name) < 0:
                raise ArgumentError(f"{name} is {getattr(self, name)}; expected 0 or more")
        if not 0 <= self.stft < float("inf"):
            raise ArgumentError(f"stft is {self.stft}; expected 0 or more")
        if not 0 < self.learning_rate < float("inf"):
            raise ArgumentError(f"learning_rate is {self.learning_rate}; expected more than 0")
        if not 0 < self.decay <= 1:
            raise ArgumentError(f"decay is {self.decay}; expected more than 0, at most 1")
