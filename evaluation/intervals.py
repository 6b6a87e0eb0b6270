"""Bootstrap intervals: of equal error rates over speakers, of error rates and means over utterances; seeded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from mkc_fast.evaluation.equal_error_rate import Ranking

LEVEL = 0.95


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made: percentiles of so many resamples.

    Attributes:
        resamples: How many; 0 makes no intervals.
        seed: Of the random numbers; every interval begins with it, so that none depends on which others are made.
    """

    resamples: int = 1000
    seed: int = 0

    def of_speakers(
        self, ranking: Ranking, of_model: NDArray[np.int64], of_trial: NDArray[np.int64]
    ) -> tuple[float, float] | None:
        """The interval of an equal error rate over speakers.

        A resample draws as many speakers as the trials have, with replacement. A nontarget trial counts as often as
        the pairs of its two speakers are drawn, a target trial as often as its speaker is. Trials are not drawn by
        themselves: those of one speaker depend on each other, and intervals from them would be too narrow.

        Args:
            ranking: The trials.
            of_model: The speaker of each trial's model, (N,), as a number; numbers without a trial are not drawn.
            of_trial: The speaker of each trial's utterance, (N,).

        Returns:
            The bounds; None where no resample has targets and nontargets.
        """
        numbers, places = np.unique(np.concatenate([of_model, of_trial]), return_inverse=True)
        speakers, (of_model, of_trial) = len(numbers), np.split(places.reshape(-1), 2)
        same = of_model == of_trial
        rates = []
        for drawn in self._draws(speakers):
            counts = np.bincount(drawn, minlength=speakers).astype(np.float64)
            weights = counts[of_model] * np.where(same, 1.0, counts[of_trial])
            rate = ranking.equal_error_rate(weights)
            if rate is not None:
                rates.append(rate)
        return _bounds(rates)

    def of_ratio(self, parts: Sequence[float], wholes: Sequence[float]) -> tuple[float, float] | None:
        """The interval, over utterances, of the sum of the parts divided by the sum of the wholes; None without any."""
        part, whole = np.asarray(parts, np.float64), np.asarray(wholes, np.float64)
        if not len(part):
            return None
        sums = [(part[drawn].sum(), whole[drawn].sum()) for drawn in self._draws(len(part))]
        return _bounds([over / under for over, under in sums if under])

    def of_mean(self, values: Sequence[float]) -> tuple[float, float] | None:
        """The interval, over utterances, of a mean; None without any."""
        return self.of_ratio(values, np.ones(len(values)).tolist())

    def _draws(self, count: int) -> Iterator[NDArray[np.int64]]:
        random = np.random.default_rng(self.seed)
        for _ in range(self.resamples):
            yield random.integers(0, count, count)


def _bounds(values: Sequence[float]) -> tuple[float, float] | None:
    if not values:
        return None
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
