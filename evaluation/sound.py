"""Quality, pitch and duration of anonymized speech beside the original, for the record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mkc_fast.evaluation.pitch import compare
from mkc_fast.evaluation.quality import SCALES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from mkc_fast.evaluation.intervals import Bootstrap
    from mkc_fast.evaluation.listening import Heard


def measure_quality(pairs: Sequence[tuple[Heard, Heard]], bootstrap: Bootstrap) -> dict[str, Any]:
    """The mean rating of each scale, of original and of anonymized speech."""
    rated = [(one.ratings, other.ratings) for one, other in pairs if one.ratings is not None]
    both = [(one, other) for one, other in rated if other is not None]
    return {
        "utterances": len(both),
        "original": _ratings([one for one, _ in both], bootstrap),
        "anonymized": _ratings([other for _, other in both], bootstrap),
    }


def _ratings(ratings: Sequence[NDArray[np.float64]], bootstrap: Bootstrap) -> dict[str, Any]:
    return {scale: _mean([float(each[place]) for each in ratings], bootstrap) for place, scale in enumerate(SCALES)}


def measure_pitch(pairs: Sequence[tuple[Heard, Heard]], bootstrap: Bootstrap) -> dict[str, Any]:
    """How much of the course of pitch is kept, and by how much it moves: means of utterances."""
    compared = [
        compare(one.pitch, other.pitch) for one, other in pairs if one.pitch is not None and other.pitch is not None
    ]
    correlations = [each.correlation for each in compared if each.correlation is not None]
    moves = [each.semitones for each in compared if each.semitones is not None]
    return {
        "utterances": len(compared),
        "utterances_without_correlation": len(compared) - len(correlations),
        "correlation": _mean(correlations, bootstrap),
        "semitones": _mean(moves, bootstrap),
        "same_voicing": _mean([each.same_voicing for each in compared], bootstrap),
    }


def measure_duration(pairs: Sequence[tuple[Heard, Heard]], bootstrap: Bootstrap) -> dict[str, Any]:
    """The length of anonymized recordings divided by that of their originals."""
    ratios = [other.seconds / one.seconds for one, other in pairs]
    return {
        "ratio": _mean(ratios, bootstrap),
        "least": min(ratios),
        "most": max(ratios),
        "original_s": sum(one.seconds for one, _ in pairs),
        "anonymized_s": sum(other.seconds for _, other in pairs),
    }


def _mean(values: Sequence[float], bootstrap: Bootstrap) -> Mapping[str, Any]:
    return {
        "mean": sum(values) / len(values) if values else None,
        "interval": bootstrap.of_mean(values),
    }
