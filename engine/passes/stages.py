"""The stages of the pass, and what is said where one of them gives values that are not finite or of another shape."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mkc_fast.errors import ArtifactError, StageError
from mkc_fast.names import ASSIGN, ENCODE, LOOKUP, RESTORE, VOCODE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mkc_fast.names import Graph, Stage

_CAUSES: dict[Stage, str] = {
    ENCODE: "WavLM gave features",
    ASSIGN: "the look-up gave cluster ids for features",
    LOOKUP: "the bank gave centroids",
    RESTORE: "the conformer gave features",
    VOCODE: "the vocoder gave samples",
}


class NotFiniteError(StageError):
    """What a stage gave for one utterance is not finite.

    Attributes:
        stage: Its name.
        row: Which utterance of those that ran at once.
    """

    def __init__(self, stage: Stage, row: int = 0, name: str | None = None) -> None:
        self.stage, self.row = stage, row
        where = "" if name is None else f"{name}: "
        super().__init__(
            f"{where}{_CAUSES[stage]} that are not finite (stage {stage}); the model or the bank is damaged, or the "
            "precision too low for it"
        )

    def of(self, name: str) -> NotFiniteError:
        """The same, of an utterance with a name."""
        return NotFiniteError(self.stage, self.row, name)


def check_finite(stage: Stage, values: NDArray[np.float32], row: int = 0) -> NDArray[np.float32]:
    """Pass on what a stage gave for an utterance.

    Raises:
        NotFiniteError: A value is not finite.
    """
    if not np.isfinite(values).all():
        raise NotFiniteError(stage, row)
    return values


def check_shape(graph: Graph, made: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """What a graph gave, as float32.

    Raises:
        ArtifactError: It has not the shape that this input must give.
    """
    if made.shape != shape:
        raise ArtifactError(
            f"{graph}.onnx: gave an output of shape {made.shape}, expected {shape}; export the model again"
        )
    with np.errstate(over="ignore"):  # what float32 does not hold is found where it is looked at
        return np.asarray(made, np.float32)
