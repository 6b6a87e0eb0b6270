"""What 16 bits do to the conformer and the vocoder: bfloat16 beside whole numbers in blocks, rounded in PyTorch.

python -m mkc_fast.benchmarks.sixteen_bits CONFORMER [--frames 60] [--weights random]

CONFORMER is a checkpoint of conformer and vocoder. The inputs and weights of each linear layer and convolution are
rounded, all else is float32. Writes results/sixteen_bits.json. It says nothing about speed.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from mkc_fast.benchmarks.common import result_parser, write_result
from mkc_fast.export.checkpoints.published import load_voice
from mkc_fast.export.graphs.packing import BLOCK, MOST
from mkc_fast.export.networks.conformer import Conformer
from mkc_fast.export.networks.hifigan import Conv, HifiGan
from mkc_fast.export.networks.layers import Linear

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Rounding = Callable[[torch.Tensor, int], torch.Tensor]

_SEED = 0


def bfloat16(x: torch.Tensor, _axis: int) -> torch.Tensor:
    """Each value rounded by itself."""
    return x.to(torch.bfloat16).to(x.dtype)


def int16(x: torch.Tensor, axis: int) -> torch.Tensor:
    """Blocks along an axis, each rounded to whole numbers of its largest magnitude."""
    parts = []
    for part in torch.split(x, BLOCK, axis):
        unit = part.abs().amax(axis, keepdim=True) / MOST[16]
        parts.append(torch.round(part / unit.clamp(min=1e-30)) * unit)
    return torch.cat(parts, axis)


@contextlib.contextmanager
def _rounded(rounding: Rounding) -> Iterator[None]:
    """Layers whose inputs and weights are rounded."""
    linear, convolve, transposed = Linear.forward, Conv.forward, F.conv_transpose1d

    def of_linear(self: Linear, x: torch.Tensor) -> torch.Tensor:
        y = rounding(x, -1) @ rounding(self.weight, 0)
        return y if self.bias is None else y + self.bias

    def of_convolution(self: Conv, x: torch.Tensor) -> torch.Tensor:
        weight = rounding(self.weight, 1)
        return F.conv1d(rounding(x, 1), weight, self.bias, padding=self.padding, dilation=self.dilation)

    def of_transposed(x: torch.Tensor, weight: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
        return transposed(rounding(x, 1), rounding(weight, 0), *rest, **named)

    Linear.forward, Conv.forward, F.conv_transpose1d = of_linear, of_convolution, of_transposed  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        Linear.forward, Conv.forward, F.conv_transpose1d = linear, convolve, transposed  # type: ignore[method-assign]


def _snr(expected: torch.Tensor, found: torch.Tensor) -> float:
    exact = expected.double()
    return round(float(10 * torch.log10(exact.square().mean() / (exact - found).square().mean())), 1)


def main() -> None:
    parser = result_parser(__doc__, "sixteen_bits")
    parser.add_argument("checkpoint", type=Path, metavar="CONFORMER")
    parser.add_argument("--frames", type=int, default=60, help="of random features, normally distributed")
    parser.add_argument("--weights", default="random", help="what the weights are, for the record (default: random)")
    args = parser.parse_args()
    torch.manual_seed(_SEED)
    voice = load_voice(args.checkpoint)
    conformer, vocoder = Conformer(args.checkpoint, voice), HifiGan(args.checkpoint, voice)
    features, lengths = torch.randn(1, args.frames, voice.conformer.dim), torch.tensor([args.frames])
    found = {}
    with torch.no_grad():
        restored = conformer(features, lengths)
        waveform = vocoder(restored)
        for name, rounding in (("bfloat16", bfloat16), ("int16", int16)):
            with _rounded(rounding):
                near = conformer(features, lengths)
                found[name] = {
                    "restored_snr_db": _snr(restored, near),
                    "waveform_snr_db": {
                        "vocoder alone": _snr(waveform, vocoder(restored)),
                        "both": _snr(waveform, vocoder(near)),
                    },
                }
            print(name, found[name])
    note = "inputs and weights of linear layers and convolutions rounded, sums and all else in float32"
    write_result(args.out, {"note": note, "weights": args.weights, "frames": args.frames, "roundings": found})


if __name__ == "__main__":
    main()
