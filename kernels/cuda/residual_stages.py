"""The residual blocks of a vocoder that is cut into stages: their weights, and the files that hold a cut vocoder."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mkc_fast.errors import ArtifactError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

WEIGHTS_FILE = "vocoder.residual.fp16.npz"


def stage_file(number: int) -> str:
    """The graph before the blocks of this number, or after the last ones."""
    return f"vocoder.stage{number}.cuda.fp16.onnx"


@dataclass(frozen=True)
class ResidualPair:
    """A pair of convolutions.

    Attributes:
        weights: (2, width, width, kernel size) float16.
        biases: (2, width) float32.
        dilation: Of the first.
    """

    weights: NDArray[np.float16]
    biases: NDArray[np.float32]
    dilation: int


@dataclass(frozen=True)
class ResidualBlocks:
    """The blocks of one stage, whose sum is its output.

    Attributes:
        frames: Of the stage, a feature of the vocoder's.
        blocks: The pairs of each.
    """

    frames: int
    blocks: list[list[ResidualPair]]

    @property
    def width(self) -> int:
        """Channels."""
        return int(self.blocks[0][0].weights.shape[1])


@dataclass(frozen=True)
class StagedBlocks:
    """The blocks of all stages that are cut out.

    Attributes:
        stages: In their order.
    """

    stages: list[ResidualBlocks]

    def write(self, folder: Path) -> None:
        """Write ``WEIGHTS_FILE``."""
        arrays: dict[str, NDArray[np.generic]] = {}
        for number, stage in enumerate(self.stages):
            arrays[f"{number}.frames"] = np.array(stage.frames)
            for block, pairs in enumerate(stage.blocks):
                for index, pair in enumerate(pairs):
                    name = f"{number}.{block}.{index}"
                    arrays[f"{name}.weights"], arrays[f"{name}.biases"] = pair.weights, pair.biases
                    arrays[f"{name}.dilation"] = np.array(pair.dilation)
        np.savez(folder / WEIGHTS_FILE, **arrays)  # type: ignore[arg-type]

    @classmethod
    def read(cls, folder: Path) -> StagedBlocks:
        """Read ``WEIGHTS_FILE``.

        Raises:
            ArtifactError: It is missing or damaged.
        """
        path = folder / WEIGHTS_FILE
        try:
            with np.load(path, allow_pickle=False) as arrays:
                stages: list[ResidualBlocks] = []
                while (key := f"{len(stages)}.frames") in arrays:
                    blocks: list[list[ResidualPair]] = []
                    while f"{len(stages)}.{len(blocks)}.0.weights" in arrays:
                        pairs: list[ResidualPair] = []
                        while (name := f"{len(stages)}.{len(blocks)}.{len(pairs)}") + ".weights" in arrays:
                            weights, biases = arrays[f"{name}.weights"], arrays[f"{name}.biases"]
                            pairs.append(ResidualPair(weights, biases, int(arrays[f"{name}.dilation"])))
                        blocks.append(pairs)
                    stages.append(ResidualBlocks(int(arrays[key]), blocks))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise ArtifactError(
                f"{path}: not the weights of residual blocks ({' '.join(str(error).split())[:120]})"
            ) from None
        return cls(stages)
