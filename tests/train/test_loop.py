"""What trainings share: a log that is cut back to the state, and inputs made in advance in their order."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from mkc_fast import CheckpointError, MkcError, OutputError
from mkc_fast.extras import missing_packages
from mkc_fast.train.loop.log import StepLog
from mkc_fast.train.loop.prefetch import prefetched
from mkc_fast.train.loop.state import load_state, save_torch


def test_the_log_loses_what_came_after_the_state(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = StepLog(path, 0)
    for step in (1, 2, 3):
        log.add(step, {"loss": 1 / step})
    log.close()
    before = path.read_text()
    path.write_text(before + '{"step": 1, "lo')  # cut off by a kill
    log = StepLog(path, 2)
    log.add(3, {"loss": 1 / 3})
    log.close()
    assert path.read_text() == before


def test_what_cannot_be_written_or_read_is_said_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        StepLog(tmp_path / "nowhere" / "log.jsonl", 0)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        save_torch(tmp_path / "file" / "state.pt", {})
    save_torch(tmp_path / "state.pt", {"step": 1})
    with pytest.raises(CheckpointError, match="lacks seed; remove its folder"):
        load_state(tmp_path / "state.pt", ("seed", "step"))
    assert load_state(tmp_path / "none.pt", ("seed",)) is None


@pytest.mark.skipif(missing_packages("tensorboard") is None, reason="TensorBoard is installed")
def test_events_without_tensorboard_are_refused_with_the_extra(tmp_path: Path) -> None:
    with pytest.raises(MkcError, match=r"TensorBoard: pip install 'mkc-fast\[tensorboard\]'"):
        StepLog(tmp_path / "log.jsonl", 0, tmp_path / "events")


def test_inputs_made_in_advance_keep_their_order() -> None:
    def make(number: int) -> int:
        time.sleep(0.02 if number % 3 == 0 else 0)
        return -number

    assert list(prefetched(make, range(20), threads=3)) == [-number for number in range(20)]


def test_an_input_that_cannot_be_made_ends_the_training() -> None:
    def make(number: int) -> int:
        if number == 4:
            raise MkcError("the fifth")
        return number

    made = []
    with pytest.raises(MkcError, match="the fifth"):
        made += list(prefetched(make, range(9), threads=2))
    taken = prefetched(make, range(9), threads=2)
    assert [next(taken) for _ in range(4)] == [0, 1, 2, 3]
