"""The loss of the conformer: mean squared error, and how unlike two maps of features are (SSIM)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Wang et al. 2004, for values with a range of 1.
WINDOW, SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2


@dataclass(frozen=True)
class Losses:
    """Sums over the frames of a batch, each frame's value being the mean over its D dimensions.

    Attributes:
        squared: Squared errors.
        unlike: 1 - SSIM; 0 for equal maps, at most 2.
    """

    squared: torch.Tensor
    unlike: torch.Tensor

    @property
    def total(self) -> torch.Tensor:
        """What is minimized."""
        return self.squared + self.unlike


def restoration_losses(restored: torch.Tensor, original: torch.Tensor, lengths: torch.Tensor) -> Losses:
    """Compare restored with original features.

    Args:
        restored: (B, T, D) float.
        original: (B, T, D) float32.
        lengths: (B,) int64, frames of each utterance; those after it count nothing.
    """
    with torch.autocast(restored.device.type, enabled=False):
        valid = (torch.arange(restored.shape[1]) < lengths.unsqueeze(1)).to(restored.device).unsqueeze(2)
        restored, original = torch.where(valid, restored.to(original.dtype), 0.0), torch.where(valid, original, 0.0)
        squared = (restored - original).square().mean(2).sum()
        unlike = torch.where(valid, 1.0 - ssim_map(restored, original), 0.0).mean(2).sum()
        return Losses(squared, unlike)


def ssim_map(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Structural similarity of maps of features at each place: two (B, T, D) → (B, T, D).

    The window is Gaussian, 11 frames by 11 dimensions. Past the edges of a map it sees zeros, so that every frame
    counts and utterances may be shorter than the window.
    """
    times, dims = _blur(one.shape[1], one), _blur(one.shape[2], one)

    def mean(x: torch.Tensor) -> torch.Tensor:
        # A product with a banded matrix: 22 multiplications would do where it has T + D, but a matrix product is fast
        # everywhere, and the whole is a hundredth of the conformer.
        return times @ (x @ dims)

    mean_one, mean_other = mean(one), mean(other)
    # Rounding can make a variance negative where values are large.
    variance_one = (mean(one * one) - mean_one.square()).clamp(min=0)
    variance_other = (mean(other * other) - mean_other.square()).clamp(min=0)
    covariance = mean(one * other) - mean_one * mean_other
    luminance = (2 * mean_one * mean_other + C1) / (mean_one.square() + mean_other.square() + C1)
    structure = (2 * covariance + C2) / (variance_one + variance_other + C2)
    return luminance * structure


def _blur(size: int, like: torch.Tensor) -> torch.Tensor:
    """The matrix (size, size) that takes Gaussian means along an axis, with zeros past its ends."""
    offsets = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weights = torch.exp(-offsets.square() / (2 * SIGMA**2))
    weights = weights / weights.sum()
    places = torch.arange(size)
    distances = places.unsqueeze(0) - places.unsqueeze(1) + WINDOW // 2
    inside = (distances >= 0) & (distances < WINDOW)
    matrix = torch.where(inside, weights[distances.clamp(0, WINDOW - 1)], 0.0)
    return matrix.to(like.device, like.dtype)
