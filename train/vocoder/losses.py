"""HiFi-GAN's losses (Kong et al. 2020, section 2.4): least squares, feature matching, and mel spectrograms.

And that of spectra of several resolutions (Yamamoto et al. 2020, arXiv 1910.11480, section 2.2).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from mkc_fast.train.vocoder.discriminators import Maps

MATCHING_WEIGHT, MEL_WEIGHT = 2.0, 45.0
_BANDS, _FFT = 80, 1024
_LEAST = 1e-5
# Samples of the transform, from one to the next, and of the window, as published.
_RESOLUTIONS = ((512, 50, 240), (1024, 120, 600), (2048, 240, 1200))
# Of Slaney's mel scale: linear up to 1 kHz, 15 mel there, then logarithmic, 27 mel for a factor of 6.4.
_LINEAR_HZ, _BREAK_HZ, _BREAK_MEL, _MEL_A_FACTOR = 200 / 3, 1000.0, 15.0, 27 / math.log(6.4)


def discriminator_loss(real: Maps, made: Maps) -> torch.Tensor:
    """What discriminators minimize: judgements of 1 for recordings, and of 0 for what was made."""
    losses = [(1 - one[-1]).square().mean() + other[-1].square().mean() for one, other in zip(real, made, strict=True)]
    return torch.stack(losses).sum()


def adversarial_loss(made: Maps) -> torch.Tensor:
    """What the generator minimizes of their judgements: the distance from 1."""
    return torch.stack([(1 - each[-1]).square().mean() for each in made]).sum()


def matching_loss(real: Maps, made: Maps) -> torch.Tensor:
    """How far the layers' outputs for what was made are from those for the recording, in absolute values."""
    pairs = [pair for one, other in zip(real, made, strict=True) for pair in zip(one, other, strict=True)]
    return torch.stack([(one.detach() - other).abs().mean() for one, other in pairs]).sum()


class SpectralLoss(nn.Module):
    """Two waveforms (B, S) → spectral convergence plus log magnitude distance, as means over three resolutions."""

    def __init__(self) -> None:
        super().__init__()
        for number, (_, _, window) in enumerate(_RESOLUTIONS):
            self.register_buffer(f"window{number}", torch.hann_window(window), persistent=False)

    def forward(self, real: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
        losses = []
        for number, (size, hop, length) in enumerate(_RESOLUTIONS):
            window = getattr(self, f"window{number}")
            one, other = (
                torch.stft(each.float(), size, hop, length, window, pad_mode="constant", return_complex=True)
                for each in (real, made)
            )
            # The square root has no slope at 0.
            one, other = (
                torch.sqrt((each.real.square() + each.imag.square()).clamp(min=1e-7)) for each in (one, other)
            )
            losses.append((one - other).norm() / one.norm() + (one.log() - other.log()).abs().mean())
        return torch.stack(losses).mean()


class LogMel(nn.Module):
    """Waveforms (B, S) → logarithms of mel spectrograms (B, 80, frames), as HiFi-GAN compares them."""

    filters: torch.Tensor
    window: torch.Tensor

    def __init__(self, sample_rate: int, hop: int) -> None:
        super().__init__()
        self.hop = hop
        self.register_buffer("filters", mel_filters(sample_rate))
        self.register_buffer("window", torch.hann_window(_FFT))

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        side = (_FFT - self.hop) // 2
        padded = nn.functional.pad(waveform.float().unsqueeze(1), (side, side), "reflect").squeeze(1)
        spectrum = torch.stft(padded, _FFT, self.hop, _FFT, self.window, center=False, return_complex=True)
        magnitude = torch.sqrt(spectrum.real.square() + spectrum.imag.square() + 1e-9)
        return torch.log((self.filters @ magnitude).clamp(min=_LEAST))


def mel_filters(sample_rate: int) -> torch.Tensor:
    """Triangles of equal area on Slaney's mel scale, from 0 Hz to half the sample rate: (80, 513)."""
    highest = _mel(sample_rate / 2)
    edges = [_hertz(highest * number / (_BANDS + 1)) for number in range(_BANDS + 2)]
    bins = torch.linspace(0, sample_rate / 2, _FFT // 2 + 1, dtype=torch.float64)
    rows = []
    for low, middle, high in zip(edges, edges[1:], edges[2:], strict=False):
        rising, falling = (bins - low) / (middle - low), (high - bins) / (high - middle)
        rows.append(torch.minimum(rising, falling).clamp(min=0) * (2 / (high - low)))
    return torch.stack(rows).float()


def _mel(hertz: float) -> float:
    if hertz < _BREAK_HZ:
        return hertz / _LINEAR_HZ
    return _BREAK_MEL + math.log(hertz / _BREAK_HZ) * _MEL_A_FACTOR


def _hertz(mel: float) -> float:
    if mel < _BREAK_MEL:
        return mel * _LINEAR_HZ
    return _BREAK_HZ * math.exp((mel - _BREAK_MEL) / _MEL_A_FACTOR)
