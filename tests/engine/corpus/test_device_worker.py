"""A worker keeps one batch on the GPU while it begins the next, blames the oldest, and dies with its device."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from mkc_fast.engine.corpus import worker as module
from mkc_fast.engine.corpus.protocol import (
    AHEAD,
    AHEAD_ON_GPU,
    EXIT_LOST_DEVICE,
    BankDraws,
    Settings,
    Task,
    WorkerConfig,
)
from mkc_fast.engine.corpus.scheduler import worker_configs
from mkc_fast.engine.corpus.worker import Worker
from mkc_fast.engine.datasets.dataset import Utterance
from mkc_fast.engine.devices import cores
from mkc_fast.engine.options import EngineOptions
from tests.conftest import Artifacts
from tests.fakes.cuda import fake_gpu
from tests.fakes.cuda.fake_gpu import FakeGpu


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """A machine with a GPU."""
    return fake_gpu.install(monkeypatch, schedule=1)


@pytest.fixture
def tasks(tmp_path: Path, clip: np.ndarray) -> list[Task]:
    """Recordings of 1 to 3 s."""
    made = []
    for index in range(6):
        path = tmp_path / f"r{index}.wav"
        soundfile.write(path, clip[: 16000 + 6000 * index], 16000, subtype="FLOAT")
        made.append(Task(index, Utterance(f"r{index}", path), tmp_path / "out"))
    (tmp_path / "out").mkdir()
    return made


def config(artifacts: Artifacts) -> WorkerConfig:
    return WorkerConfig(artifacts.model, (BankDraws(artifacts.bank),), "cuda:0", EngineOptions(), 1, Settings(seed=3))


def serve(worker: Worker, ours, batches: list[list[Task]], lengths: tuple[int, ...] = ()) -> list[tuple]:
    """What a worker says of batches that it is given all at once."""
    for number, batch in enumerate(batches):
        ours.send((number + 1, batch, lengths))
    ours.send(None)

    def run() -> None:
        with contextlib.suppress(SystemExit):
            worker.run()

    thread = threading.Thread(target=run)
    thread.start()
    said = []
    while thread.is_alive() or ours.poll():
        if ours.poll(0.1):
            said.append(ours.recv())
    thread.join()
    return said


def test_batches_overlap_and_come_out_right(
    gpu: FakeGpu, artifacts: Artifacts, tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = Pipe()
    worker = Worker(theirs, config(artifacts))
    events: list[str] = []
    submit = worker.anonymizer.submit_batch

    def submit_batch(*args, **options):
        pending = submit(*args, **options)
        events.append("submit")
        result = pending.result
        return SimpleNamespace(done=pending.done, result=lambda: (events.append("result"), result())[1])

    monkeypatch.setattr(worker.anonymizer, "submit_batch", submit_batch)
    # All are read before the first is begun, so that each next one is there when it is asked for.
    monkeypatch.setattr(worker, "_next", _waiting_for_all(worker, worker._next, 4))
    said = serve(worker, ours, [tasks[:2], tasks[2:4], tasks[4:]])
    assert events == ["submit", "submit", "result", "submit", "result", "result"]
    assert said[0][0] == "ready"
    assert said[0][2] == "CUDA, fp32, on a stand-in"
    outcomes = {content[1].index: content[1] for kind, *content in said if kind == "outcome"}
    assert [outcomes[index].error for index in range(6)] == [None] * 6
    assert [content[0] for kind, *content in said if kind == "start"] == [1, 2, 3]
    for task in tasks:
        waveform, _ = soundfile.read(task.output, dtype="float32")
        alone = artifacts.anonymizer.anonymize(
            soundfile.read(task.utterance.path, dtype="float32")[0], seed=3, utterance_id=task.utterance.id
        )
        np.testing.assert_allclose(waveform, alone.waveform, atol=1e-4, rtol=0)


def test_the_sessions_for_a_runs_lengths_are_opened_before_its_first_batch(
    monkeypatch: pytest.MonkeyPatch, cuda_artifacts: Artifacts, tasks: list[Task]
) -> None:
    gpu = fake_gpu.install(monkeypatch, schedule=1, fused=True)
    ours, theirs = Pipe()
    how = replace(config(cuda_artifacts), options=EngineOptions(batch_s=6, max_window_s=8))
    worker = Worker(theirs, how)
    prepare, prepared = worker.anonymizer.use_lengths, []

    def use_lengths(lengths: tuple[int, ...]) -> None:
        prepare(lengths)
        prepared.append((lengths, len(gpu.shaped)))

    monkeypatch.setattr(worker.anonymizer, "use_lengths", use_lengths)
    said = serve(worker, ours, [tasks[3:], tasks[:3]], (104, 160, 400))
    assert prepared == [((104, 160, 400), len(gpu.shaped))], "not once, or a batch opened another session"
    assert [content[1].error for kind, *content in said if kind == "outcome"] == [None] * 6


def _waiting_for_all(worker: Worker, following, count: int):
    def wait_first(*, waiting: bool):
        while not worker._ended and worker.incoming.qsize() < count and not hasattr(worker, "all_there"):
            pass
        worker.all_there = True
        return following(waiting=waiting)

    return wait_first


def test_too_little_memory_is_a_note_and_every_utterance_comes(
    gpu: FakeGpu, artifacts: Artifacts, tasks: list[Task]
) -> None:
    ours, theirs = Pipe()
    worker = Worker(theirs, config(artifacts))
    gpu.failures = [RuntimeError("Failed to allocate memory for requested buffer of size 1")]
    said = serve(worker, ours, [tasks])
    assert [content[1].error for kind, *content in said if kind == "outcome"] == [None] * 6
    (note,) = [content[0] for kind, *content in said if kind == "note"]
    assert "too little memory for 6 utterances" in note


def test_a_worker_dies_with_its_device(
    gpu: FakeGpu, artifacts: Artifacts, tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = Pipe()
    worker = Worker(theirs, config(artifacts))
    left: list[int] = []

    def leave(code: int) -> None:
        left.append(code)
        raise SystemExit

    def fails() -> None:
        raise gpu.cupy.cuda.runtime.CUDARuntimeError("cudaErrorIllegalAddress")

    monkeypatch.setattr(module.os, "_exit", leave)
    monkeypatch.setattr(worker.anonymizer._device_pass._context.compute, "synchronize", fails)
    gpu.failures = [RuntimeError("CUDA failure 700: an illegal memory access was encountered")]
    said = serve(worker, ours, [tasks[:1]])
    assert left == [EXIT_LOST_DEVICE]
    assert not [kind for kind, *_ in said if kind == "outcome"], "the recording was blamed"
    assert any("lost" in content[0] for kind, *content in said if kind == "note")


def test_workers_on_a_cpu_share_its_blas_threads_and_nothing_else(artifacts: Artifacts) -> None:
    """Their graphs have all cores, whose threads sleep; BLAS threads wait awake, and would take the cores from them."""
    for count in (1, 2, 64):
        shares = worker_configs(config(artifacts), ["cpu"], count)
        assert [share.options.threads for share in shares] == [cores()] * count
        assert [share.blas_threads for share in shares] == [max(1, cores() // count)] * count
    assert worker_configs(config(artifacts), ["cuda:0"], 2)[0].blas_threads is None


def test_a_gpu_is_sent_one_batch_more(artifacts: Artifacts) -> None:
    there = worker_configs(config(artifacts), ["cuda:0", "cpu"], None)
    assert [each.ahead for each in there] == [AHEAD_ON_GPU, AHEAD]
