"""What a stage makes of an utterance is checked, on every device: values that are not finite never become silence."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mkc_fast import Anonymizer, ArtifactError, StageError
from mkc_fast.engine.artifacts import CENTROIDS_FILE
from mkc_fast.engine.audio.waveform import to_pcm16
from mkc_fast.engine.corpus import worker as module
from mkc_fast.engine.corpus.protocol import BankDraws, Outcome, Settings, Task, WorkerConfig
from mkc_fast.engine.corpus.worker import Worker
from mkc_fast.engine.datasets.dataset import Utterance
from mkc_fast.engine.options import EngineOptions
from tests.conftest import Artifacts, signed
from tests.fakes.cuda import fake_gpu

Spoil = Callable[[str, np.ndarray], Any]
GRAPHS = {"wavlm": "encode", "conformer": "restore", "vocoder": "vocode"}
BAD = pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])


class Spoiled:
    """A session whose output is changed."""

    def __init__(self, graph: str, session: Any, spoil: Spoil) -> None:
        self.graph, self.session, self.spoil = graph, session, spoil

    def run(self, outputs: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        made = self.session.run(outputs, inputs)[0].copy()
        changed = self.spoil(self.graph, made)
        return [made if changed is None else changed]


def on_host(artifacts: Artifacts, spoil: Spoil) -> Anonymizer:
    """The small model on a CPU, with a graph that is spoiled."""
    plain = artifacts.anonymizer
    wrapped = {graph: Spoiled(graph, getattr(plain._sessions, graph), spoil) for graph in GRAPHS}
    sessions = dataclasses.replace(plain._sessions, **wrapped)
    return Anonymizer(plain.info, plain.bank, sessions, plain._lookup, "cpu", EngineOptions(max_window_s=8))


def on_device(artifacts: Artifacts, spoil: Spoil, monkeypatch: pytest.MonkeyPatch) -> Anonymizer:
    gpu = fake_gpu.install(monkeypatch, schedule=3)
    anonymizer = Anonymizer.load(artifacts.model, artifacts.bank, "cuda:0", max_window_s=8)
    gpu.spoil = spoil
    return anonymizer


@pytest.fixture(params=["cpu", "cuda:0"])
def load(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[Artifacts, Spoil], Anonymizer]:
    """Loads the small model on a device, with a graph that is spoiled."""
    if request.param == "cpu":
        return on_host
    return lambda artifacts, spoil: on_device(artifacts, spoil, monkeypatch)


def one_value(wanted: str, bad: float, row: int = 0) -> Spoil:
    """Makes one value of one utterance's output bad."""

    def spoil(graph: str, output: np.ndarray) -> None:
        if graph == wanted and len(output) > row:
            output[row].reshape(-1)[output[row].size // 3] = bad

    return spoil


@BAD
@pytest.mark.parametrize("graph", GRAPHS)
def test_a_stage_that_is_not_finite_fails_the_utterance(
    graph: str, bad: float, load: Callable[[Artifacts, Spoil], Anonymizer], artifacts: Artifacts, clip: np.ndarray
) -> None:
    anonymizer = load(artifacts, one_value(graph, bad))
    with pytest.raises(StageError, match=rf"utterance u1: .* not finite \(stage {GRAPHS[graph]}\)"):
        anonymizer.anonymize(clip[:20000], utterance_id="u1")


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_stage_of_a_long_recording_is_checked(
    graph: str, load: Callable[[Artifacts, Spoil], Anonymizer], artifacts: Artifacts, clip: np.ndarray
) -> None:
    anonymizer = load(artifacts, one_value(graph, np.nan))
    with pytest.raises(StageError, match=rf"stage {GRAPHS[graph]}"):
        anonymizer.anonymize(np.tile(clip, 3))


@pytest.mark.parametrize("graph", ["wavlm", "conformer"])
def test_a_batch_names_the_utterance(
    graph: str, load: Callable[[Artifacts, Spoil], Anonymizer], artifacts: Artifacts, clip: np.ndarray
) -> None:
    anonymizer = load(artifacts, one_value(graph, np.nan, row=1))
    lengths = [20000, 21000, 22000]
    # Groups run longest first.
    with pytest.raises(StageError, match=rf"utterance u21000: .*stage {GRAPHS[graph]}"):
        anonymizer.anonymize_batch(
            [clip[:length] for length in lengths], utterance_ids=[f"u{length}" for length in lengths], batch_s=99
        )


def test_what_pads_a_batch_is_not_looked_at(
    load: Callable[[Artifacts, Spoil], Anonymizer], artifacts: Artifacts, clip: np.ndarray
) -> None:
    def past_the_end(graph: str, output: np.ndarray) -> None:
        if graph in {"wavlm", "conformer"} and len(output) == 2:
            output[1, 40:] = np.nan

    anonymizer = load(artifacts, past_the_end)
    waveforms = [clip[:30000], clip[: 400 + 39 * 320]]
    for waveform, result in zip(waveforms, anonymizer.anonymize_batch(waveforms, seed=1, batch_s=99), strict=True):
        alone = artifacts.anonymizer.anonymize(waveform, seed=1)
        np.testing.assert_allclose(result.waveform, alone.waveform, atol=1e-4)


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
@pytest.mark.parametrize("length", [20000, 150000])
def test_a_bank_that_is_not_finite_is_found(
    device: str, length: int, artifacts: Artifacts, clip: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(artifacts.bank, tmp_path / "bank")
    centroids = np.load(tmp_path / "bank" / CENTROIDS_FILE, mmap_mode="r+")
    centroids[3, :, 5] = np.nan
    centroids.flush()
    signed(tmp_path / "bank")
    if device != "cpu":
        fake_gpu.install(monkeypatch)
    anonymizer = Anonymizer.load(artifacts.model, tmp_path / "bank", device, max_window_s=8)
    waveform = np.resize(clip, length)
    frames = anonymizer.info.frames(length)
    banks = np.zeros(frames, int)
    anonymizer.anonymize(waveform, bank_ids=banks)
    banks[frames // 2] = 3
    with np.errstate(all="ignore"), pytest.raises(StageError, match=r"stage (lookup|assign)"):
        anonymizer.anonymize(waveform, bank_ids=banks)


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("batch_s", [0, 99])
def test_an_output_of_another_shape_names_its_graph(
    graph: str, batch_s: float, artifacts: Artifacts, clip: np.ndarray
) -> None:
    anonymizer = on_host(artifacts, lambda name, output: output[:, :-1] if name == graph else output)
    with pytest.raises(ArtifactError, match=rf"{graph}\.onnx: gave an output of shape"):
        anonymizer.anonymize_batch([clip[:20000], clip[:21000]], batch_s=batch_s)


def test_half_precision_is_checked_after_the_cast(artifacts: Artifacts, clip: np.ndarray) -> None:
    """A value that float64 holds and float32 does not is infinite."""

    def wide(graph: str, output: np.ndarray) -> np.ndarray:
        return (
            np.where(np.arange(output.shape[-1]) == 3, 1e300, output.astype(np.float64))
            if graph == "conformer"
            else output
        )

    with pytest.raises(StageError, match="stage restore"):
        on_host(artifacts, wide).anonymize(clip)
    for stage in (artifacts.anonymizer.restore, artifacts.anonymizer.vocode):
        with pytest.raises(ValueError, match="not finite"):
            stage(np.full((3, 64), 1e300))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_never_becomes_pcm(bad: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        to_pcm16(np.array([0.0, bad], np.float32))


def test_in_a_worker_only_the_utterance_at_fault_fails(
    artifacts: Artifacts, clip: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(graph: str, output: np.ndarray) -> None:
        if graph == "conformer":
            for row in output:
                if np.abs(row[0] - marked).max() < 1e-6:
                    row[5] = np.nan

    plain = artifacts.anonymizer
    waveforms = [clip[:20000], clip[3000:23000], clip[5000:25000]]
    features = plain.encode(waveforms[1])
    banks = plain.anonymize(waveforms[1], seed=3, utterance_id="u1").bank_ids
    marked = plain.restore(plain.lookup(banks, plain.assign(features, banks)))[0]
    made = on_host(artifacts, spoil)
    monkeypatch.setattr(Anonymizer, "load", lambda *_, **__: made)
    said: list[tuple[Any, ...]] = []
    connection = SimpleNamespace(send=said.append)
    config = WorkerConfig(artifacts.model, (BankDraws(artifacts.bank),), "cpu", EngineOptions(), 1, Settings(seed=3))
    worker = Worker(connection, config)  # type: ignore[arg-type]
    (tmp_path / "out").mkdir()
    tasks = [Task(index, Utterance(f"u{index}", tmp_path / f"{index}.wav"), tmp_path / "out") for index in range(3)]
    read = [(task, waveform, 0.0) for task, waveform in zip(tasks, waveforms, strict=True)]
    for future in worker._finish(module.InFlightBatch(1, read, [], None)):
        future.result()
    outcomes = {message[2].index: message[2] for message in said if message[0] == "outcome"}
    assert [outcomes[index].error is None for index in range(3)] == [True, False, True]
    assert "utterance u1" in outcomes[1].error
    assert isinstance(outcomes[1], Outcome)
    assert [(tmp_path / "out" / f"u{index}.wav").exists() for index in range(3)] == [True, False, True]
