"""Invariant 2: a batch gives each utterance what it gets alone, up to the last sample, and really is one batch."""

from __future__ import annotations

import numpy as np
import pytest

from mkc_fast.engine.batching import group_by_length
from tests.conftest import Artifacts


def test_groups_keep_to_the_budget_longest_first() -> None:
    lengths = [3.0, 10.0, 1.0, 9.5, 2.5, 40.0, 1.0]
    groups = group_by_length(lengths, 20.0)
    assert groups[0] == [5]  # beyond the budget: alone
    assert sorted(index for group in groups for index in group) == list(range(7))
    for group in groups[1:]:
        assert max(lengths[index] for index in group) * len(group) <= 20.0
    firsts = [lengths[group[0]] for group in groups]
    assert firsts == sorted(firsts, reverse=True)


def test_no_budget_runs_each_alone() -> None:
    assert group_by_length([1.0, 2.0, 0.0], 0.0) == [[1], [0], [2]]


def test_equal_lengths_keep_their_order() -> None:
    assert group_by_length([1.0] * 5, 3.0) == [[0, 1, 2], [3, 4]]


@pytest.mark.parametrize("batch_s", [2.0, 12.0, 1000.0])
def test_mixed_lengths_equal_each_alone_to_the_last_sample(
    batch_s: float, artifacts: Artifacts, clip: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    anonymizer = artifacts.anonymizer
    sizes = [400, 719, 720, 9000, 16000, 16001, 33333, len(clip)]
    waveforms = [clip[:size] for size in sizes] + [np.tile(clip, 3)]  # 16 s: more than one window of the vocoder
    names = [f"u{index}" for index in range(len(waveforms))]
    batches: list[int] = []
    run_batch = anonymizer._host_pass._run_batch
    monkeypatch.setattr(anonymizer._host_pass, "_run_batch", lambda u: (batches.append(len(u)), run_batch(u))[1])
    found = anonymizer.anonymize_batch(waveforms, seed=3, utterance_ids=names, batch_s=batch_s)
    assert batches, "nothing ran as a batch"
    assert batch_s < 1000 or batches == [9]
    for name, waveform, result in zip(names, waveforms, found, strict=True):
        alone = anonymizer.anonymize(waveform, seed=3, utterance_id=name)
        np.testing.assert_array_equal(result.bank_ids, alone.bank_ids)
        np.testing.assert_array_equal(result.cluster_ids, alone.cluster_ids)
        assert result.waveform.shape == alone.waveform.shape
        np.testing.assert_allclose(result.waveform, alone.waveform, atol=1e-4, rtol=0)
        assert set(result.stage_seconds) == {"encode", "assign", "restore", "vocode"}
