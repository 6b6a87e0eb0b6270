"""Invariant 3: a frame's bank entry is a function of (seed, utterance id, frame), uniform, and of nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from mkc_fast import BankError, MkcError
from mkc_fast.engine.draws import check_entries, draw_bank_ids, draw_entries, fresh_seed


def draw(
    frames: int = 200, entries: int = 1165, mode: str = "frame", stride: int = 1, seed: object = 7, name: str = "u1"
):
    return draw_bank_ids(frames, entries, mode=mode, stride=stride, seed=seed, utterance_id=name)  # type: ignore[arg-type]


def test_draws_are_these_on_every_machine() -> None:
    # Written down once: a change here changes what every seed of every user means.
    assert draw(8, entries=6, seed=7, name="u").tolist() == [0, 2, 5, 0, 4, 2, 3, 2]


def test_a_longer_utterance_begins_like_a_shorter_one() -> None:
    np.testing.assert_array_equal(draw(500)[:123], draw(123))


@pytest.mark.parametrize("stride", [1, 2, 4, 7])
def test_stride_shares_draws(stride: int) -> None:
    np.testing.assert_array_equal(draw(100, stride=stride), draw(100)[np.arange(100) // stride])


def test_audio_mode_draws_once() -> None:
    assert len(set(draw(mode="audio").tolist())) == 1
    drawn = {int(draw(1, mode="audio", name=f"u{index}")[0]) for index in range(300)}
    assert len(drawn) > 200  # of 300 draws from 1165, 38 repeat on average


def test_seed_and_utterance_id_change_the_draws() -> None:
    assert not np.array_equal(draw(seed=7), draw(seed=8))
    assert not np.array_equal(draw(name="u1"), draw(name="u2"))
    assert not np.array_equal(draw(seed=1, name="2u"), draw(seed=12, name="u"))


def test_fresh_seeds_never_repeat() -> None:
    assert len({fresh_seed() for _ in range(100)}) == 100


def test_draws_are_uniform_and_cover_all_entries() -> None:
    counts = np.bincount(draw(200_000, entries=50), minlength=50)
    chi_squared = ((counts - 4000) ** 2 / 4000).sum()
    assert chi_squared < 94  # 49 degrees of freedom: exceeded by chance once in 10,000; the draws are fixed anyway


@pytest.mark.parametrize(
    ("mode", "stride"), [("utterance", 1), ("frame", 0), ("frame", -3), ("frame", 1.5), ("frame", True)]
)
def test_unknown_modes_and_strides_are_refused(mode: str, stride: object) -> None:
    with pytest.raises(MkcError):
        draw(mode=mode, stride=stride)  # type: ignore[arg-type]


def test_subsets_are_these_on_every_machine() -> None:
    # Written down once, as the frames' draws are.
    assert draw_entries(12, 4, 7).tolist() == [1, 5, 8, 9]


def test_a_subset_is_sorted_distinct_and_part_of_every_larger_one() -> None:
    larger: set[int] = set(range(1165))
    for size in (1165, 500, 100, 1):
        entries = draw_entries(1165, size, 7)
        assert entries.tolist() == sorted(set(entries.tolist()))
        assert len(entries) == size
        assert set(entries.tolist()) <= larger
        larger = set(entries.tolist())
    assert draw_entries(6, 100, 7).tolist() == list(range(6))


def test_every_subset_is_as_likely() -> None:
    # Of 6 entries there are 15 pairs; 6000 seeds give each 400 times on average.
    drawn = [tuple(draw_entries(6, 2, seed).tolist()) for seed in range(6000)]
    counts = np.array([drawn.count(pair) for pair in set(drawn)])
    assert len(counts) == 15
    assert ((counts - 400) ** 2 / 400).sum() < 44  # 14 degrees of freedom: 1 in 10,000; the draws are fixed anyway


def test_subsets_without_a_seed_differ() -> None:
    assert len({tuple(draw_entries(1000, 20, None).tolist()) for _ in range(50)}) == 50


def test_subset_and_draws_of_one_seed_are_independent() -> None:
    # Were both read from one stream, entry 0 would be in the subset where the first frame's number is small.
    seeds = [seed for seed in range(3000) if 0 in draw_entries(6, 2, seed)]
    firsts = sum(int(draw(1, entries=2, seed=seed, name="u")[0]) for seed in seeds)
    assert abs(firsts - len(seeds) / 2) < 4 * (len(seeds) / 4) ** 0.5  # standard deviations


@pytest.mark.parametrize("number", [0, -1, 1.5, True])
def test_sizes_below_one_are_refused(number: object) -> None:
    with pytest.raises(BankError, match="kmeans_num is"):
        draw_entries(6, number, 7)


@pytest.mark.parametrize("entries", [[], [6], [-1], [1, 1], [0.0], [[1]], "a"])
def test_entries_that_do_not_fit_the_bank_are_refused(entries: object) -> None:
    with pytest.raises(BankError, match="entries"):
        check_entries(entries, 6)  # type: ignore[arg-type]


def test_ids_with_half_a_surrogate_pair_have_draws_of_their_own() -> None:
    ids = ["\ud800", "\udfff", "\udc80", "u"]
    draws = [draw_bank_ids(8, 1000, mode="frame", stride=1, seed=1, utterance_id=each).tolist() for each in ids]
    assert len({tuple(each) for each in draws}) == len(ids)
