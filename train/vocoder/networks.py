"""Generator and discriminators as they are trained together: their losses, their optimizers, and one step of both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mkc_fast.train.vocoder.discriminators import Discriminators
from mkc_fast.train.vocoder.losses import (
    MATCHING_WEIGHT,
    MEL_WEIGHT,
    LogMel,
    SpectralLoss,
    adversarial_loss,
    discriminator_loss,
    matching_loss,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from mkc_fast.train.vocoder.discriminators import Maps
    from mkc_fast.train.vocoder.generator import Generator
    from mkc_fast.train.vocoder.settings import VocoderSettings

_BETAS = (0.8, 0.99)


class Networks:
    """A generator, new discriminators, and AdamW for each, on one device.

    Attributes:
        generator: As given.
        STATES: The names in ``states()``.
    """

    STATES = ("generator", "discriminators", "generator_optimizer", "discriminator_optimizer")

    def __init__(
        self, generator: Generator, settings: VocoderSettings, sample_rate: int, hop: int, device: torch.device
    ) -> None:
        self.generator = generator.to(device)
        self._settings, self._device = settings, device
        self._discriminators = Discriminators(settings.divisor, settings.scales).to(device)
        self._mel, self._spectra = LogMel(sample_rate, hop).to(device), SpectralLoss().to(device)
        self._optimizer, self._discriminator_optimizer = (
            torch.optim.AdamW(each.parameters(), settings.learning_rate, betas=_BETAS)
            for each in (self.generator, self._discriminators)
        )

    def take(
        self,
        features: torch.Tensor,
        real: torch.Tensor,
        step: int,
        rate: float,
        *,
        average: Callable[[torch.nn.Module], None] = lambda _: None,
    ) -> dict[str, torch.Tensor]:
        """One step of the discriminators, after the settings' spectral steps, and one of the generator.

        Args:
            features: (B, T, D).
            real: Recordings of them (B, T * hop).
            step: Counted from 1.
            rate: Of both optimizers.
            average: Makes the gradients of a module those of all processes.

        Returns:
            Losses by name.
        """
        with self._autocast():
            made = self.generator(features).float()
        losses = {"mel": (self._mel(real) - self._mel(made)).abs().mean()}
        loss = MEL_WEIGHT * losses["mel"]
        if self._settings.stft:
            losses["stft"] = self._spectra(real, made)
            loss = loss + self._settings.stft * losses["stft"]
        if step > self._settings.spectral_steps:
            judged = discriminator_loss(self._maps(real), self._maps(made.detach()))
            _apply(judged, self._discriminators, self._discriminator_optimizer, rate, average)
            real_maps, made_maps = self._maps(real), self._maps(made)
            adversarial, matching = adversarial_loss(made_maps), matching_loss(real_maps, made_maps)
            loss = loss + adversarial + MATCHING_WEIGHT * matching
            losses |= {"discriminators": judged, "adversarial": adversarial, "matching": matching}
        _apply(loss, self.generator, self._optimizer, rate, average)
        return losses

    def states(self) -> dict[str, dict[str, Any]]:
        """Everything that the next step depends on."""
        return {name: each.state_dict() for name, each in self._parts().items()}

    def resume(self, states: dict[str, Any]) -> None:
        """Go on from what ``states`` gave."""
        for name, each in self._parts().items():
            each.load_state_dict(states[name])

    def _maps(self, waveforms: torch.Tensor) -> Maps:
        with self._autocast():
            maps = self._discriminators(waveforms)
        return [[each.float() for each in one] for one in maps]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._settings.bf16)

    def _parts(self) -> dict[str, Any]:
        parts = (self.generator, self._discriminators, self._optimizer, self._discriminator_optimizer)
        return dict(zip(self.STATES, parts, strict=True))


def _apply(
    loss: torch.Tensor,
    module: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    rate: float,
    average: Callable[[torch.nn.Module], None],
) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    average(module)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
