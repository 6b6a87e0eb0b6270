"""Recordings that are too long to be held are computed window by window, and come out as the others do."""

from __future__ import annotations

import io
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from mkc_fast import Anonymizer, AudioError, StageError, WriteError
from mkc_fast.engine.audio.read import Recording, read_utterance, read_waveform
from mkc_fast.engine.audio.waveform import to_pcm16
from mkc_fast.engine.audio.write import write_waveform, written_waveform
from mkc_fast.engine.corpus import worker as module
from mkc_fast.engine.corpus.protocol import BankDraws, Settings, Task, WorkerConfig
from mkc_fast.engine.corpus.worker import Worker
from mkc_fast.engine.datasets.dataset import Utterance
from mkc_fast.engine.options import EngineOptions
from tests.conftest import Artifacts
from tests.engine.passes.test_stages import on_host, one_value
from tests.fakes.cuda import fake_gpu

RATE = 16000
MB = 1 << 20


@pytest.fixture
def windowed(artifacts: Artifacts) -> Anonymizer:
    plain = artifacts.anonymizer
    return Anonymizer(plain.info, plain.bank, plain._sessions, plain._lookup, "cpu", EngineOptions(max_window_s=8))


@pytest.fixture
def file(tmp_path: Path, clip: np.ndarray) -> Path:
    """27 s in stereo at 22 kHz, which are three windows and more."""
    samples = np.tile(clip, 7)[: 27 * 22050]
    soundfile.write(tmp_path / "u1.flac", np.stack([samples, samples / 2], axis=1), 22050)
    return tmp_path / "u1.flac"


def recording_of(path: Path) -> Recording:
    read = read_utterance(Utterance("u1", path), RATE, 400, 5 * RATE)
    assert isinstance(read, Recording)
    return read


def test_what_is_long_is_not_held_and_reads_alike(file: Path) -> None:
    recording, whole = recording_of(file), read_waveform(file, RATE)
    assert len(recording) == len(whole)
    assert recording.peak == np.abs(whole).max()
    samples = recording.forward()
    for begin, end in ((0, 3), (0, 100_000), (90_000, 90_001), (90_001, 300_000), (len(whole) - 9, len(whole))):
        np.testing.assert_array_equal(samples[begin:end], whole[begin:end])
    samples.finish()
    held = read_utterance(Utterance("u1", file), RATE, 400, len(whole))
    np.testing.assert_array_equal(held, whole)  # type: ignore[arg-type]


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
@pytest.mark.parametrize("pad", [False, True])
def test_streaming_equals_holding(
    device: str, pad: bool, windowed: Anonymizer, artifacts: Artifacts, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = windowed.anonymize(read_waveform(file, RATE), seed=7, utterance_id="u1", pad=pad)
    if device != "cpu":
        fake_gpu.install(monkeypatch)
        windowed = Anonymizer.load(artifacts.model, artifacts.bank, device, max_window_s=8)
    parts: list[np.ndarray] = []
    found = windowed.anonymize_recording(
        recording_of(file), lambda part: parts.append(part.copy()), seed=7, utterance_id="u1", pad=pad
    )
    np.testing.assert_array_equal(found.bank_ids, expected.bank_ids)
    np.testing.assert_array_equal(found.cluster_ids, expected.cluster_ids)
    if device == "cpu":
        np.testing.assert_array_equal(np.concatenate(parts), expected.waveform)
    np.testing.assert_allclose(np.concatenate(parts), expected.waveform, atol=1e-4)
    assert set(found.stage_seconds) == {"encode", "assign", "restore", "vocode"}


def serve(worker: Worker, said: list[Any], tasks: list[Task]) -> dict[int, Any]:
    read = module._Batch(1, tasks, [worker.readers.submit(worker._read, task) for task in tasks])
    for future in worker._finish(worker._begin(read, alone=True)):
        future.result()
    return {message[2].index: message[2] for message in said if message[0] == "outcome"}


@pytest.fixture
def make_worker(artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch) -> Callable[[Anonymizer], tuple[Worker, list]]:
    def make(anonymizer: Anonymizer) -> tuple[Worker, list]:
        said: list[Any] = []
        monkeypatch.setattr(Anonymizer, "load", lambda *_, **__: anonymizer)
        monkeypatch.setattr(module, "_MAX_IN_MEMORY_S", 5)
        config = WorkerConfig(
            artifacts.model, (BankDraws(artifacts.bank),), "cpu", EngineOptions(max_window_s=8), 1, Settings(seed=7)
        )
        return Worker(SimpleNamespace(send=said.append), config), said  # type: ignore[arg-type]

    return make


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_a_worker_writes_the_same_bytes(
    suffix: str, windowed: Anonymizer, file: Path, clip: np.ndarray, tmp_path: Path, make_worker: Callable[..., Any]
) -> None:
    soundfile.write(tmp_path / "u2.wav", clip[:40000], RATE)
    (tmp_path / "out").mkdir()
    worker, said = make_worker(windowed)
    tasks = [
        Task(index, Utterance(path.stem, path), tmp_path / "out", f".{suffix}")
        for index, path in enumerate([file, tmp_path / "u2.wav"])
    ]
    outcomes = serve(worker, said, tasks)
    for index, task in enumerate(tasks):
        waveform = read_waveform(task.utterance.path, RATE)
        expected = windowed.anonymize(waveform, seed=7, utterance_id=task.utterance.id)
        write_waveform(tmp_path / f"expected.{suffix}", expected.waveform, RATE)
        assert task.output.read_bytes() == (tmp_path / f"expected.{suffix}").read_bytes()
        assert outcomes[index].error is None
        assert outcomes[index].size_bytes == task.output.stat().st_size
        assert outcomes[index].frames == len(expected.bank_ids)
        assert outcomes[index].audio_s == pytest.approx(len(waveform) / RATE)
        assert set(outcomes[index].stage_seconds) == {"read", "encode", "assign", "restore", "vocode", "write"}


@pytest.mark.parametrize("graph", ["wavlm", "vocoder"])
def test_a_failure_in_the_middle_leaves_nothing(
    graph: str, artifacts: Artifacts, file: Path, tmp_path: Path, make_worker: Callable[..., Any]
) -> None:
    runs: list[str] = []
    spoil = one_value(graph, np.nan)

    def later(name: str, output: np.ndarray) -> None:
        runs.append(name)
        if runs.count(name) > 1 or name == "vocoder":
            spoil(name, output)

    worker, said = make_worker(on_host(artifacts, later))
    outcomes = serve(worker, said, [Task(0, Utterance("u1", file), tmp_path)])
    assert "not finite" in outcomes[0].error
    assert [path.name for path in tmp_path.iterdir()] == ["u1.flac"]


def test_a_recording_that_changes_is_refused(windowed: Anonymizer, file: Path) -> None:
    recording = recording_of(file)
    samples, rate = soundfile.read(file)
    for other in (samples[: len(samples) // 2], np.concatenate([samples, samples])):
        soundfile.write(file, other, rate)
        with pytest.raises(AudioError, match="changed while it was read"):
            windowed.anonymize_recording(recording, lambda _: None, utterance_id="u1")
    file.unlink()
    with pytest.raises(AudioError, match=r"u1\.flac"):
        windowed.anonymize_recording(recording, lambda _: None, utterance_id="u1")


def test_long_recordings_are_checked_as_others_are(tmp_path: Path) -> None:
    samples = np.zeros(20 * RATE, np.float32)
    for value, words in ((np.nan, "not finite"), (9.0, "peaks at 9")):
        samples[-5] = value
        soundfile.write(tmp_path / "a.wav", samples, RATE, "FLOAT")
        with pytest.raises(AudioError, match=rf"a\.wav: .*{words}"):
            read_utterance(Utterance("a", tmp_path / "a.wav"), RATE, 400, RATE)
    samples[-5] = 0
    soundfile.write(tmp_path / "a.wav", samples, RATE)
    (tmp_path / "a.wav").write_bytes((tmp_path / "a.wav").read_bytes()[: 15 * RATE])
    with pytest.raises(AudioError, match="truncated"):
        read_utterance(Utterance("a", tmp_path / "a.wav"), RATE, 400, RATE)


def test_an_hour_takes_the_memory_of_a_window(artifacts: Artifacts, tmp_path: Path) -> None:
    """The graphs are stand-ins, which make it quick; what NumPy, the decoder and the encoder hold is the pass's own."""
    plain = artifacts.anonymizer
    dim, hop = plain.info.dim, plain.info.hop

    def run(graph: str) -> Any:
        def stand_in(_: Any, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            (given,) = [inputs[name] for name in ("waveform", "features") if name in inputs]
            frames = plain.info.frames(given.shape[1]) if graph == "wavlm" else given.shape[1]
            return [np.zeros((1, frames * hop) if graph == "vocoder" else (1, frames, dim), np.float32)]

        return SimpleNamespace(run=stand_in)

    sessions = SimpleNamespace(buckets=None, **{graph: run(graph) for graph in ("wavlm", "conformer", "vocoder")})
    anonymizer = Anonymizer(plain.info, plain.bank, sessions, plain._lookup, "cpu", EngineOptions())  # type: ignore[arg-type]
    hour = 3600 * RATE
    with soundfile.SoundFile(tmp_path / "hour.flac", "w", RATE, 1, "PCM_16") as file:
        for _ in range(36):
            file.write(np.zeros(hour // 36, np.int16))
    tracemalloc.start()
    try:
        recording = read_utterance(Utterance("hour", tmp_path / "hour.flac"), RATE, 400, 60 * RATE)
        assert isinstance(recording, Recording)
        with written_waveform(tmp_path / "out.wav", RATE) as writer:
            result = anonymizer.anonymize_recording(recording, writer.write, utterance_id="hour")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(result.bank_ids) == plain.info.frames(hour)
    assert soundfile.info(tmp_path / "out.wav").frames == len(result.bank_ids) * hop
    # All samples are 230 MB, once in and once out. Held are a minute and some windows, and 12 bytes a frame.
    assert peak < 60 * MB


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_blocks_are_written_as_the_whole_is(suffix: str, tmp_path: Path) -> None:
    waveform = np.random.default_rng(0).uniform(-1.1, 1.1, 700_001).astype(np.float32)
    with written_waveform(tmp_path / f"a.{suffix}", RATE) as writer:
        for start in range(0, len(waveform), 99_999):
            writer.write(waveform[start : start + 99_999])
            assert not (tmp_path / f"a.{suffix}").exists()
    encoded = io.BytesIO()
    soundfile.write(encoded, to_pcm16(waveform), RATE, "PCM_16", format=suffix)
    assert (tmp_path / f"a.{suffix}").read_bytes() == encoded.getvalue()
    assert writer.size_bytes == len(encoded.getvalue())


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_a_full_disk_is_one_line(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that takes nothing, under the temporary name."""
    (tmp_path / "temporary").symlink_to("/dev/full")
    monkeypatch.setattr("mkc_fast.engine.atomic_files._temporary", lambda path, pid: tmp_path / "temporary")
    with pytest.raises(WriteError, match=rf"a\.{suffix}: cannot be written \(No space left on device\)"):
        write_waveform(tmp_path / f"a.{suffix}", np.zeros(700_000, np.float32), RATE)
    assert not list(tmp_path.iterdir())


def test_an_error_of_the_caller_leaves_nothing(tmp_path: Path) -> None:
    def fails() -> None:
        with written_waveform(tmp_path / "a.wav", RATE) as writer:
            writer.write(np.zeros(1000, np.float32))
            raise StageError

    with pytest.raises(StageError):
        fails()
    with pytest.raises(AudioError, match="not finite"):
        write_waveform(tmp_path / "a.wav", np.array([np.nan], np.float32), RATE)
    assert not list(tmp_path.iterdir())
