"""The equal error rate of speaker verification: exact, by interpolation between the points of the ROC curve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Ranking:
    """Trials in the order of their scores, so that many weightings of them cost one sort.

    Attributes:
        order: Positions of the trials, (N,) int64, from the lowest score to the highest.
        ends: Of each group of trials with one score, the position in ``order`` after its last, (G,) int64.
        targets: Whether each trial, in the order it was given, is of one speaker, (N,) bool.
    """

    order: NDArray[np.int64]
    ends: NDArray[np.int64]
    targets: NDArray[np.bool_]

    def equal_error_rate(self, weights: NDArray[np.float64] | None = None) -> float | None:
        """The error rate at the threshold where as large a share of targets is rejected as of nontargets is accepted.

        Between two neighbouring thresholds both shares jump; the rate is taken where the straight line between the two
        points crosses equality. Trials of one score are accepted or rejected together, so the line between these two
        points is what chance would do with them. The rate of scores without any information is 0.5, and that of scores
        that are the wrong way round is above.

        Args:
            weights: How often each trial counts, (N,) in the order they were given; once each without them.

        Returns:
            The rate, 0 to 1; None if no target or no nontarget counts.
        """
        counts = np.ones(len(self.order)) if weights is None else weights[self.order]
        targets = self.targets[self.order]
        rejected = np.concatenate([[0.0], np.cumsum(np.where(targets, counts, 0.0))[self.ends - 1]])
        refused = np.concatenate([[0.0], np.cumsum(np.where(targets, 0.0, counts))[self.ends - 1]])
        if not rejected[-1] or not refused[-1]:
            return None
        false_rejections, false_acceptances = rejected / rejected[-1], 1 - refused / refused[-1]
        surplus = false_rejections - false_acceptances  # from -1 to 1, and never falling
        after = int(np.searchsorted(surplus, 0.0))
        before = after - 1
        share = -surplus[before] / (surplus[after] - surplus[before])
        return float(false_rejections[before] + share * (false_rejections[after] - false_rejections[before]))


def ranked(scores: NDArray[np.float64], targets: NDArray[np.bool_]) -> Ranking:
    """The ranking of trials.

    Args:
        scores: (N,), higher for the same speaker; all finite.
        targets: (N,) bool, whether a trial is of one speaker.
    """
    order = np.argsort(scores, kind="stable")
    steps = np.flatnonzero(np.diff(scores[order])) + 1
    return Ranking(order, np.append(steps, len(scores)).astype(np.int64), targets)
