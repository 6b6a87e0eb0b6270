"""The equal error rate is what its definition says, with ties and weights; its intervals are those of copied trials."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mkc_fast.evaluation.equal_error_rate import ranked
from mkc_fast.evaluation.intervals import Bootstrap

LABELLED = st.lists(st.tuples(st.integers(0, 6), st.booleans(), st.integers(0, 3)), min_size=2, max_size=40)


def by_definition(scores: list[float], targets: list[bool]) -> float:
    """All thresholds one by one; between two of them the straight line."""
    thresholds = [-np.inf, *sorted(set(scores)), np.inf]
    points = []
    for threshold in thresholds:
        rejected = [score < threshold for score in scores]
        misses = np.mean([no for no, target in zip(rejected, targets, strict=True) if target])
        alarms = np.mean([not no for no, target in zip(rejected, targets, strict=True) if not target])
        points.append((misses, alarms))
    for (misses, alarms), (more_misses, fewer_alarms) in itertools.pairwise(points):
        if misses <= alarms and more_misses >= fewer_alarms:
            before, after = misses - alarms, more_misses - fewer_alarms
            share = 0.0 if before == after else -before / (after - before)
            return float(misses + share * (more_misses - misses))
    raise AssertionError


def rate_of(scores: list[float], targets: list[bool], weights: list[float] | None = None) -> float | None:
    return ranked(np.array(scores, float), np.array(targets)).equal_error_rate(
        None if weights is None else np.array(weights, float)
    )


@given(LABELLED)
def test_the_rate_is_that_of_a_search_over_all_thresholds(trials: list[tuple[int, bool, int]]) -> None:
    scores, targets, _ = ([*column] for column in zip(*trials, strict=True))
    if all(targets) or not any(targets):
        assert rate_of(scores, targets) is None
    else:
        assert rate_of(scores, targets) == pytest.approx(by_definition(scores, targets), abs=1e-12)


@given(LABELLED)
def test_a_weighted_trial_is_as_many_copies_of_it(trials: list[tuple[int, bool, int]]) -> None:
    scores, targets, weights = ([*column] for column in zip(*trials, strict=True))
    copies = [(score, target) for score, target, weight in trials for _ in range(weight)]
    expected = rate_of(*([*column] for column in zip(*copies, strict=True))) if copies else None
    found = rate_of(scores, targets, weights)
    assert found == (expected if expected is None else pytest.approx(expected, abs=1e-12))


@pytest.mark.parametrize(
    ("scores", "targets", "expected"),
    [
        ([1, 2, 3, 4], [False, False, True, True], 0.0),
        ([1, 2, 3, 4], [True, True, False, False], 1.0),
        ([5, 5, 5, 5], [True, False, True, False], 0.5),
        ([1, 2, 3, 4], [False, True, False, True], 0.5),
    ],
)
def test_known_rates(scores: list[float], targets: list[bool], expected: float) -> None:
    assert rate_of(scores, targets) == pytest.approx(expected)


def test_scores_without_information_are_near_one_half() -> None:
    random = np.random.default_rng(0)
    rate = ranked(random.normal(size=20000), random.random(20000) < 0.3).equal_error_rate()
    assert rate == pytest.approx(0.5, abs=0.02)  # four standard deviations of the rarer kind


def test_an_interval_is_that_of_speakers_drawn_and_copied() -> None:
    random = np.random.default_rng(1)
    speakers = 5
    of_model, of_trial = (grid.ravel() for grid in np.meshgrid(np.arange(speakers), np.arange(speakers)))
    of_model, of_trial = np.tile(of_model, 3), np.tile(of_trial, 3)
    targets = of_model == of_trial
    scores = random.normal(size=len(targets)) + targets
    found = Bootstrap(50, seed=9).of_speakers(ranked(scores, targets), of_model, of_trial)
    draws, rates = np.random.default_rng(9), []
    for _ in range(50):
        drawn = draws.integers(0, speakers, speakers)
        kept = [
            (scores[trial], bool(targets[trial]))
            for first, model in enumerate(drawn)
            for second, other in enumerate(drawn)
            for trial in np.flatnonzero((of_model == model) & (of_trial == other))
            if model != other or first == second  # a speaker's two copies are no pair
        ]
        rate = rate_of([score for score, _ in kept], [target for _, target in kept])
        if rate is not None:
            rates.append(rate)
    assert found == pytest.approx(tuple(np.quantile(rates, [0.025, 0.975])))


def test_speakers_without_a_trial_are_not_drawn() -> None:
    random = np.random.default_rng(3)
    of_model, of_trial = (grid.ravel() for grid in np.meshgrid(np.arange(4), np.arange(4)))
    scores = random.normal(size=16)
    ranking = ranked(scores, of_model == of_trial)
    alone = Bootstrap(50).of_speakers(ranking, of_model, of_trial)
    assert Bootstrap(50).of_speakers(ranking, 3 * of_model + 100, 3 * of_trial + 100) == alone


def test_intervals_over_speakers_are_wider_where_speakers_differ() -> None:
    """Speakers who are always found and speakers who never are: which of them are there decides the rate."""
    speakers, each = 8, 40
    of_trial = np.repeat(np.arange(speakers), each)
    of_model = np.concatenate([of_trial, (of_trial + 1) % speakers])
    of_trial = np.concatenate([of_trial, of_trial])
    targets = of_model == of_trial
    scores = np.where(targets, np.where(of_trial % 2 == 0, 2.0, -1.0), 0.0)
    low, high = Bootstrap(300).of_speakers(ranked(scores, targets), of_model, of_trial) or (0, 0)
    assert high - low > 0.2


def test_a_seed_repeats_an_interval_whatever_was_drawn_before() -> None:
    values = np.random.default_rng(2).random(30).tolist()
    first = Bootstrap(100, seed=4)
    first.of_mean([1.0, 2.0])
    assert first.of_mean(values) == Bootstrap(100, seed=4).of_mean(values) != Bootstrap(100, seed=5).of_mean(values)


def test_a_ratio_weighs_utterances_by_their_length() -> None:
    assert Bootstrap(10).of_ratio([1, 10], [10, 100]) == pytest.approx((0.1, 0.1))
    assert Bootstrap(10).of_ratio([], []) is None
    assert Bootstrap(0).of_mean([1.0]) is None
