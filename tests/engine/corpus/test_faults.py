"""Whatever is killed when, and whatever fills up: outputs are whole, nothing is lost, and the same command goes on."""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import soundfile

from mkc_fast import OutputError, WriteError, __version__
from mkc_fast.cli import main
from mkc_fast.engine import devices
from mkc_fast.engine.audio.waveform import to_pcm16
from mkc_fast.engine.corpus import anonymize, scheduler
from mkc_fast.engine.corpus import run as corpus
from mkc_fast.engine.corpus import watchdog as patience
from mkc_fast.engine.corpus.manifest import MANIFEST_FILE
from mkc_fast.engine.corpus.outputs import plan_folder
from mkc_fast.engine.corpus.plan import Plan
from mkc_fast.engine.corpus.protocol import Outcome, Settings
from mkc_fast.engine.corpus.status import Status
from mkc_fast.engine.datasets.dataset import Utterance
from mkc_fast.engine.datasets.path_lists import read_audio_list
from mkc_fast.engine.draws import draw_entries
from tests.conftest import ROOT, Artifacts, signed
from tests.fakes.anonymizers import DEADLY, factory

# What a slow machine may take for what takes a fraction of a second.
PATIENCE_S = 60
# The two seconds that what has begun is waited for, and what leaving takes.
AT_ONCE_S = 5
RECORDINGS = 300


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-ins' folder for notes; workers of this process and of programs that it starts find the stand-ins."""
    folder = tmp_path / "stand_ins"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("STAND_INS", str(folder))
    return folder


@pytest.fixture
def stand_in(stand_ins: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Has commands run in this process use a stand-in for the anonymizer."""
    run = corpus.Run
    return lambda name: monkeypatch.setattr(anonymize, "Run", functools.partial(run, factory=factory(name)))


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory, clip: np.ndarray) -> Path:
    """A list of 300 recordings of 0.3 to 1.5 s."""
    folder = tmp_path_factory.mktemp("recordings")
    rng = np.random.default_rng(0)
    return write_recordings(folder, clip, [int(rng.uniform(0.3, 1.5) * 16000) for _ in range(RECORDINGS)])


@pytest.fixture
def few(tmp_path: Path, clip: np.ndarray) -> Path:
    """A list of 24 recordings of about a second; number 11 is the deadly one."""
    lengths = [16000 + 100 * number for number in range(24)]
    return write_recordings(tmp_path, clip, [*lengths[:11], DEADLY, *lengths[12:]])


@dataclass(frozen=True)
class Ended:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def summary(self) -> dict:
        """What ``--json`` prints."""
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line that tells of an error."""
        (line,) = errors_in(self.err)
        return line


@dataclass(frozen=True)
class Bench:
    """Runs the command on the few recordings, in this process and with a stand-in for the anonymizer."""

    artifacts: Artifacts
    few: Path
    out: Path
    use: Callable[[str], None]
    capfd: pytest.CaptureFixture[str]

    def infer(self, stand_in: str, *more: str) -> Ended:
        """Run it; its summary is printed as JSON."""
        self.use(stand_in)
        self.capfd.readouterr()
        code = main(command(self.artifacts, self.few, self.out, "--json", *more))
        shown = self.capfd.readouterr()
        return Ended(code, shown.out, shown.err)


@pytest.fixture
def bench(
    artifacts: Artifacts,
    few: Path,
    tmp_path: Path,
    stand_in: Callable[[str], None],
    capfd: pytest.CaptureFixture[str],
) -> Bench:
    """The few recordings and an output folder that is not there yet."""
    return Bench(artifacts, few, tmp_path / "out", stand_in, capfd)


@pytest.fixture(scope="module")
def undisturbed(artifacts: Artifacts, recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run that nobody disturbs writes of the 300 recordings."""
    out = tmp_path_factory.mktemp("undisturbed")
    assert main(command(artifacts, recordings, out)) == 0
    assert len(list(out.glob("*.wav"))) == RECORDINGS
    return out


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB (40 MB would hold all 300 outputs, and take ten times as long to fill)."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if shutil.which("mount") is None or mount(disk, "size=4m"):
        pytest.skip("file systems can be mounted only by root")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def write_recordings(folder: Path, clip: np.ndarray, lengths: list[int]) -> Path:
    (folder / "audio").mkdir()
    rng = np.random.default_rng(1)
    for number, length in enumerate(lengths):
        begin = rng.integers(0, len(clip) - length)
        soundfile.write(folder / "audio" / f"u{number:03}.wav", clip[begin : begin + length], 16000)
    scp = folder / "audio.scp"
    scp.write_text("".join(f"{folder}/audio/u{number:03}.wav\n" for number in range(len(lengths))))
    return scp


def command(artifacts: Artifacts, scp: Path, out: Path, *more: str) -> list[str]:
    return [
        "infer", "--model", str(artifacts.model), "--bank", str(artifacts.bank), "--audio-scp", str(scp),
        "--output-dir", str(out), "--seed", "7", "--gpus", "cpu", "--num-proc", "2", *more,
    ]  # fmt: skip


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the program, as a terminal does: in a process group of its own."""
    started: list[subprocess.Popen[str]] = []

    def start(arguments: list[str], stand_in: str | None = None) -> subprocess.Popen[str]:
        change = f"c.Run = partial(c.Run, factory={factory(stand_in)!r}); " if stand_in else ""
        program = (
            "import sys; from functools import partial; import mkc_fast.engine.corpus.anonymize as c; "
            f"from mkc_fast.cli import main; {change}sys.exit(main())"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def mount(disk: Path, options: str) -> int:
    mounting = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk]
    return subprocess.run(mounting, check=False, capture_output=True).returncode


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait for something to come of a run; one that ended will not bring it."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


def recorded(out: Path) -> int:
    """How many outcomes the manifest has."""
    manifest = out / MANIFEST_FILE
    return max(0, manifest.read_bytes().count(b"\n") - 1) if manifest.exists() else 0


def records(out: Path) -> dict[str, dict]:
    lines = [json.loads(line) for line in (out / MANIFEST_FILE).read_text().splitlines()]
    assert [line.get("type") for line in lines].count("run") == 1
    return {line["id"]: line for line in lines if "id" in line}


def temporaries(out: Path) -> list[Path]:
    return [path for path in out.iterdir() if path.suffix == ".tmp"]


def outputs(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.wav"))}


def samples(path: Path) -> np.ndarray:
    return soundfile.read(path, dtype="int16")[0].astype(int)


def assert_whole(out: Path) -> None:
    """Every file under a final name is audio to its last sample, and nothing else is there."""
    assert not temporaries(out)
    for path in out.glob("*.wav"):
        assert len(samples(path)) == (path.stat().st_size - 44) // 2 > 0


def assert_complete(out: Path, ids: set[str]) -> None:
    assert_whole(out)
    assert {path.stem for path in out.glob("*.wav")} == ids
    found = records(out)
    assert set(found) == ids
    for name, record in found.items():
        assert "error" not in record
        assert record["bytes"] == (out / f"{name}.wav").stat().st_size


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children()


def assert_gone(workers: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(workers, timeout=AT_ONCE_S)
    assert not alive


def ids_of(scp: Path) -> set[str]:
    return {Path(line).stem for line in scp.read_text().split()}


def errors_in(text: str) -> list[str]:
    """Lines of an error stream that tell of errors; a traceback would be one."""
    return [line for line in text.splitlines() if line.startswith(("error:", "failed:", "Traceback"))]


@pytest.mark.parametrize("batch_seconds", ["0", "20"])
def test_ten_killed_workers_and_a_killed_run_change_nothing(
    batch_seconds: str, artifacts: Artifacts, recordings: Path, undisturbed: Path, tmp_path: Path, start: Callable
) -> None:
    out, rng = tmp_path / "out", random.Random(batch_seconds)
    arguments = command(artifacts, recordings, out, "--batch-seconds", batch_seconds)
    process = start(arguments)
    for _ in range(10):
        # Something has been finished since the last kill: the run goes on.
        enough = recorded(out) + 4
        wait_until(lambda enough=enough: recorded(out) >= enough, process)
        rng.choice(workers_of(process)).kill()
    left = workers_of(process)
    process.kill()
    process.wait()
    assert 0 < recorded(out) < RECORDINGS
    assert_gone(left)
    again = start(arguments)
    _, errors = again.communicate(timeout=PATIENCE_S)
    assert (again.returncode, errors_in(errors)) == (0, [])
    assert_complete(out, ids_of(recordings))
    if batch_seconds == "0":
        assert outputs(out) == outputs(undisturbed)
    else:
        # The others in a batch decide how sums are split, so the last bit of a float; rounded, one step of 16 bits.
        for path in out.glob("*.wav"):
            assert np.abs(samples(path) - samples(undisturbed / path.name)).max() <= 1


def test_a_full_disk_ends_the_run_and_room_lets_it_go_on(
    artifacts: Artifacts, recordings: Path, undisturbed: Path, small_disk: Path, start: Callable
) -> None:
    out = small_disk / "out"
    process = start(command(artifacts, recordings, out))
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 3
    (line,) = errors_in(errors)
    assert "No space left" in line
    assert 0 < len(list(out.glob("*.wav"))) < RECORDINGS
    assert_whole(out)
    assert mount(small_disk, "remount,size=40m") == 0
    again = start(command(artifacts, recordings, out))
    assert again.wait(timeout=PATIENCE_S) == 0
    assert_complete(out, ids_of(recordings))
    assert outputs(out) == outputs(undisturbed)


def test_a_disk_full_for_the_last_recording_ends_the_run_too(bench: Bench, small_disk: Path) -> None:
    # One recording: no other comes after it on which its worker could notice.
    bench.few.write_text(bench.few.read_text().splitlines()[0])
    bench = replace(bench, out=small_disk / "out")
    bench.out.mkdir()
    filler = small_disk / "filler"
    with filler.open("wb") as file:
        file.truncate(0)
        os.posix_fallocate(file.fileno(), 0, (4 << 20) - 16384)  # leaves room for the manifest
    ended = bench.infer("Echo")
    assert ended.code == 3
    assert "No space left" in ended.error
    assert not list(bench.out.iterdir())
    filler.unlink()
    assert bench.infer("Echo").code == 0
    assert_complete(bench.out, ids_of(bench.few))


@pytest.mark.parametrize("batch_seconds", ["0", "10"])
@pytest.mark.parametrize("deadly", ["DiesOfOne", "DiesReadingOne"])
def test_the_one_recording_that_kills_workers_is_found(deadly: str, batch_seconds: str, bench: Bench) -> None:
    ended = bench.infer(deadly, "--batch-seconds", batch_seconds)
    assert ended.code == 1
    assert ended.error.startswith("failed: u011: ")
    assert "3 workers died of it" in ended.error
    assert [failure["id"] for failure in ended.summary["failed"]] == ["u011"]
    assert ended.summary["written"] == 23
    # Once beside another, then halved from ten at most (four times), then three times alone.
    assert ended.summary["replaced_workers"] <= 8
    assert_whole(bench.out)
    assert {path.stem for path in bench.out.glob("*.wav")} == ids_of(bench.few) - {"u011"}
    # It is tried again, and the others are not.
    ended = bench.infer("Echo", "--batch-seconds", batch_seconds)
    assert (ended.code, ended.summary["written"], ended.summary["present"]) == (0, 1, 23)
    assert_complete(bench.out, ids_of(bench.few))


@pytest.mark.parametrize(("hanging", "batch_seconds"), [("HangsOnOne", "3"), ("HangsReadingOne", "0")])
def test_the_one_recording_on_which_workers_hang_is_found(
    hanging: str, batch_seconds: str, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "_DEATHS_OF_ONE", 2)
    monkeypatch.setattr(patience, "_LOADING", PATIENCE_S)
    ended = bench.infer(hanging, "--batch-seconds", batch_seconds, "--timeout-seconds", "1")
    assert ended.code == 1
    assert ended.error.startswith("failed: u011: ")
    assert "2 workers died of it (hung: killed after " in ended.error
    assert ended.summary["written"] == 23
    assert ended.summary["replaced_workers"] >= 2
    assert_whole(bench.out)
    assert not psutil.Process().children()


def test_a_worker_that_hangs_while_it_loads_is_replaced(bench: Bench) -> None:
    ended = bench.infer("HangsLoadingOnce", "--timeout-seconds", "1", "--num-proc", "1")
    assert (ended.code, ended.summary["written"]) == (0, 24)
    assert ended.summary["replaced_workers"] >= 1
    assert_complete(bench.out, ids_of(bench.few))


def test_workers_that_are_stopped_are_not_taken_for_hung(
    artifacts: Artifacts, few: Path, tmp_path: Path, stand_ins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "_SLACK", 0)  # nothing is added to the timeout for what is measured
    monkeypatch.setattr(patience, "_LOADING", PATIENCE_S)
    stopped: list[int] = []
    timers: list[threading.Timer] = []

    def stop(status: Status) -> None:
        if not stopped and status.summary.written > 4:
            stopped.extend(worker.pid for worker in status.workers if worker.outstanding)
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)
                timers.append(threading.Timer(4, os.kill, [pid, signal.SIGCONT]))
                timers[-1].start()

    out = tmp_path / "out"
    folder = plan_folder(read_audio_list(few), out, out, Settings(seed=7))
    run = corpus.Run([folder], artifacts.model, artifacts.bank, Settings(seed=7), num_proc=2)
    # Half of four seconds would be too long for one who works.
    summary = corpus.run_corpus(replace(run, timeout_s=2, factory=factory("Slow")), watch=stop)
    for timer in timers:
        timer.join()
    assert stopped
    assert (summary.written, summary.replaced_workers) == (24, 0)


def test_workers_that_no_longer_start_stop_the_run_and_the_same_command_goes_on(bench: Bench) -> None:
    ended = bench.infer("StartsOnce", "--num-proc", "1")
    assert ended.code == 3
    assert ended.error == (
        "error: a worker cannot start: RuntimeError: the device is gone; run the same command again to continue"
    )
    assert 0 < len(outputs(bench.out)) < 24
    assert_whole(bench.out)
    assert bench.infer("Echo").code == 0
    assert_complete(bench.out, ids_of(bench.few))


@pytest.mark.parametrize("batch_seconds", ["0", "10"])
def test_the_one_recording_that_fails_does_not_take_its_batch_with_it(batch_seconds: str, bench: Bench) -> None:
    ended = bench.infer("FailsOfOne", "--batch-seconds", batch_seconds)
    assert ended.code == 1
    assert ended.error.endswith("u011.wav: ValueError: a line of its own")
    assert len(outputs(bench.out)) == 23


@pytest.mark.parametrize(
    ("number", "to_group", "code"),
    [(signal.SIGINT, False, 130), (signal.SIGTERM, False, 143), (signal.SIGINT, True, 130)],
    ids=["SIGINT", "SIGTERM", "SIGINT from a terminal"],
)
def test_a_signal_ends_the_run_and_the_same_command_goes_on(
    number: int,
    to_group: bool,
    code: int,
    artifacts: Artifacts,
    few: Path,
    tmp_path: Path,
    start: Callable,
    stand_in: Callable[[str], None],
) -> None:
    out = tmp_path / "out"
    process = start(command(artifacts, few, out), "Slow")
    wait_until(lambda: recorded(out) > 2, process)
    workers = workers_of(process)
    begin = time.monotonic()
    (os.killpg if to_group else os.kill)(process.pid, number)
    shown, errors = process.communicate(timeout=PATIENCE_S)
    assert time.monotonic() - begin < AT_ONCE_S
    assert (process.returncode, errors_in(errors)) == (code, [])
    assert "interrupted; run the same command again" in shown
    assert len(workers) == 2
    assert not any(worker.is_running() for worker in workers)
    assert_whole(out)
    done = recorded(out)
    assert 2 < done < 24
    # A worker may be ended between a file's renaming and its report; the file is whole, and is done again.
    assert done <= len(list(out.glob("*.wav"))) <= done + len(workers)
    stand_in("Echo")
    assert main(command(artifacts, few, out)) == 0
    assert_complete(out, ids_of(few))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["SIGINT from a terminal", "SIGKILL"])
def test_workers_leave_with_the_run_even_while_they_load(
    number: int, artifacts: Artifacts, few: Path, tmp_path: Path, start: Callable, stand_ins: Path
) -> None:
    process = start(command(artifacts, few, tmp_path / "out"), "SlowToLoad")
    wait_until((stand_ins / "loading").exists, process)
    workers = workers_of(process)
    assert workers
    begin = time.monotonic()
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert_gone(workers)
    assert time.monotonic() - begin < AT_ONCE_S
    assert "Traceback" not in errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_commands_end_with_the_run(
    number: int, artifacts: Artifacts, tmp_path: Path, start: Callable, stand_ins: Path
) -> None:
    scp = tmp_path / "commands.scp"
    scp.write_text("c0 sleep 1000 |\nc1 sleep 1000 |\n")
    process = start(command(artifacts, scp, tmp_path / "out", "--allow-commands"), "Echo")

    def all_of_it() -> list[psutil.Process]:
        return psutil.Process(process.pid).children(recursive=True)

    wait_until(lambda: any(child.name() == "sleep" for child in all_of_it()), process)
    begun = all_of_it()
    os.kill(process.pid, number)
    process.communicate(timeout=PATIENCE_S)
    assert_gone(begun)


def test_a_signal_before_the_first_worker_ends_the_run(
    artifacts: Artifacts, few: Path, tmp_path: Path, stand_ins: Path
) -> None:
    asked: list[bool] = []
    folder = plan_folder([Utterance("u", few)], tmp_path / "out", tmp_path / "out", Settings())
    run = corpus.Run([folder], artifacts.model, artifacts.bank, Settings(), factory=factory("SlowToLoad"))
    summary = corpus.run_corpus(run, stopped=lambda: not asked.append(True))
    assert (summary.interrupted, summary.written, summary.failed) == (True, 0, [])
    assert not (stand_ins / "loading").exists()


def test_a_folder_whose_run_goes_on_is_refused(
    artifacts: Artifacts,
    few: Path,
    tmp_path: Path,
    start: Callable,
    stand_in: Callable[[str], None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    process = start(command(artifacts, few, out), "HangsAfterOne")
    wait_until(lambda: recorded(out) > 0, process)
    for more in ([], ["--overwrite"]):
        assert main(command(artifacts, few, out, *more)) == 2
        (line,) = errors_in(capfd.readouterr().err)
        assert line == f"error: {out}: another run is writing there"
    workers = workers_of(process)
    process.kill()
    assert_gone(workers)
    stand_in("Echo")
    assert main(command(artifacts, few, out)) == 0
    assert_complete(out, ids_of(few))


def test_outputs_depend_on_the_seed_and_not_on_workers_or_batches(
    artifacts: Artifacts, recordings: Path, tmp_path: Path
) -> None:
    few = tmp_path / "few.scp"
    few.write_text("".join(recordings.read_text().splitlines(keepends=True)[:30]))
    runs = {"one": ["--num-proc", "1"], "two": [], "three": ["--num-proc", "3"]}
    runs |= {f"batches of {s} s": ["--batch-seconds", s] for s in ("5", "60")}
    for name, more in runs.items():
        assert main(command(artifacts, few, tmp_path / name, "--record-draws", *more)) == 0
    expected, draws = outputs(tmp_path / "one"), records(tmp_path / "one")
    assert len(expected) == 30
    for name in runs:
        found = records(tmp_path / name)
        assert {key: record["bank_ids"] for key, record in found.items()} == {
            key: record["bank_ids"] for key, record in draws.items()
        }
        if "batches" in name:
            for path in (tmp_path / name).glob("*.wav"):
                assert np.abs(samples(path) - samples(tmp_path / "one" / path.name)).max() <= 1
        else:
            assert outputs(tmp_path / name) == expected
    # The files hold no cluster ids; what the workers call does.
    ids = sorted(draws)
    waveforms = [soundfile.read(recordings.parent / "audio" / f"{name}.wav", dtype="float32")[0] for name in ids]
    by_budget = {
        batch_s: artifacts.anonymizer.anonymize_batch(waveforms, seed=7, utterance_ids=ids, batch_s=batch_s)
        for batch_s in (0.0, 5.0, 60.0)
    }
    for results in by_budget.values():
        for name, result, alone in zip(ids, results, by_budget[0.0], strict=True):
            assert result.bank_ids.tolist() == draws[name]["bank_ids"]
            np.testing.assert_array_equal(result.cluster_ids, alone.cluster_ids)
            np.testing.assert_allclose(result.waveform, alone.waveform, atol=1e-4, rtol=0)
            assert np.abs(to_pcm16(result.waveform).astype(int) - samples(tmp_path / "one" / f"{name}.wav")).max() <= 1


def test_a_finished_run_is_not_done_again(
    artifacts: Artifacts,
    few: Path,
    tmp_path: Path,
    stand_in: Callable[[str], None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    audio = few.parent / "audio"
    whole = (audio / "u003.wav").read_bytes()
    (audio / "u003.wav").write_bytes(whole[:100])

    def run(*more: str) -> tuple[int, dict, set[str]]:
        before = {path.stem: path.stat().st_mtime_ns for path in out.glob("*.wav")}
        code = main(command(artifacts, few, out, "--json", *more))
        after = {path.stem: path.stat().st_mtime_ns for path in out.glob("*.wav")}
        return code, json.loads(capfd.readouterr().out), {name for name in after if after[name] != before.get(name)}

    stand_in("Echo")
    code, summary, changed = run()
    assert (code, summary["written"], len(changed)) == (1, 23, 23)
    # What failed is tried again, and fails again.
    code, summary, changed = run()
    assert (code, summary["written"], summary["present"], changed) == (1, 0, 23, set())
    assert "u003.wav: " in summary["failed"][0]["error"]
    assert "error" in records(out)["u003"]
    # Mended, it is done; so is what was removed or cut off meanwhile.
    (audio / "u003.wav").write_bytes(whole)
    (out / "u005.wav").unlink()
    (out / "u006.wav").write_bytes((out / "u006.wav").read_bytes()[:-1])
    code, summary, changed = run()
    assert (code, changed) == (0, {"u003", "u005", "u006"})
    assert_complete(out, ids_of(few))
    # Now there is nothing to do, so no worker is started at all.
    stand_in("DiesLoading")
    code, summary, changed = run()
    assert (code, summary["written"], summary["present"], changed) == (0, 0, 24, set())
    stand_in("Echo")
    code, summary, changed = run("--overwrite", "--stride", "3")
    assert (code, changed) == (0, ids_of(few))
    assert_complete(out, ids_of(few))


def test_a_run_of_other_settings_is_refused_and_told_both(
    artifacts: Artifacts,
    few: Path,
    tmp_path: Path,
    stand_in: Callable[[str], None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    stand_in("Echo")
    out = tmp_path / "out"
    assert main(command(artifacts, few, out)) == 0
    for artifact, info in (("model", "model.json"), ("bank", "bank.json")):
        shutil.copytree(getattr(artifacts, artifact), tmp_path / artifact)
        said = json.loads((tmp_path / artifact / info).read_text())["sources"]
        other = {**said, "ckpt": "0" * 64} if isinstance(said, dict) else ["0" * 64, *said[1:]]
        signed(tmp_path / artifact, sources=other)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    capfd.readouterr()
    header = json.loads(before[MANIFEST_FILE].splitlines()[0])
    changes = {
        "format": ("flac", "format wav, this run has flac"),
        "kmeans-num": ("3", "kmeans_num 8, this run has 3"),
        "mode": ("audio", "mode frame, this run has audio"),
        "stride": ("2", "stride 1, this run has 2"),
        "max-window-seconds": ("20", "max_window_s 40.0, this run has 20.0"),
        "seed": ("8", "another seed"),
        "model": (str(tmp_path / "model"), f"model {header['model']}, this run has "),
        "bank": (str(tmp_path / "bank"), f"bank {header['bank']}, this run has "),
    }
    for option, (value, words) in changes.items():
        assert main(command(artifacts, few, out, f"--{option}", value)) == 2
        (line,) = errors_in(capfd.readouterr().err)
        assert words in line
        assert "--overwrite" in line
    # A digest of the seed, never the seed; and without one, "none".
    assert header["seed"] not in {"7", 7}
    assert main([part for part in command(artifacts, few, out) if part not in {"--seed", "7"}]) == 2
    assert "a seed, this run has none" in errors_in(capfd.readouterr().err)[0]
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize("change", ["finished", "failed"])
def test_another_recording_under_a_known_id_is_refused_and_told_both(change: str, bench: Bench) -> None:
    bench.infer("FailsOfOne")
    text = bench.few.read_text()
    known, other = ("u003", "u004") if change == "finished" else ("u011", "u012")
    audio = bench.few.parent / "audio"
    bench.few.write_text(text.replace(f"{audio}/{known}.wav", f"{known} {audio}/{other}.wav"))
    before = {path.name: path.read_bytes() for path in bench.out.iterdir()}
    ended = bench.infer("Echo")
    assert ended.code == 2
    assert f"{known} was made of {audio}/{known}.wav, this run has {audio}/{other}.wav" in ended.error
    assert {path.name: path.read_bytes() for path in bench.out.iterdir()} == before
    bench.few.write_text(text)
    assert bench.infer("Echo").code == 0


def test_outputs_of_something_else_are_refused_before_any_is_written(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPERATORS", "native")
    assert bench.infer("TellsWhatItRuns").code == 0
    (bench.out / "u005.wav").unlink()
    before = {path.name: path.read_bytes() for path in bench.out.iterdir()}
    monkeypatch.setenv("OPERATORS", "other")
    ended = bench.infer("TellsWhatItRuns")
    assert ended.code == 2
    assert "made with operators native; this run has operators other, which is not equal to the" in ended.error
    # Nor is batched what runs alone; and what is finished needs no worker that could tell.
    assert "batched False; this run has" in bench.infer("TellsWhatItRuns", "--batch-seconds", "20").error
    assert {path.name: path.read_bytes() for path in bench.out.iterdir()} == before
    assert bench.infer("TellsWhatItRuns", "--allow-mixed").code == 0
    header, *lines = [json.loads(line) for line in (bench.out / MANIFEST_FILE).read_text().splitlines()]
    assert header["ran"]["operators"] == "native"
    assert header["ran"]["package"] == __version__
    assert [line["ran"]["operators"] for line in lines if line.get("type") == "ran"] == ["other"]
    assert [(line["id"], line["ran"]) for line in lines if "id" in line and "ran" in line] == [("u005", 1)]
    monkeypatch.setenv("OPERATORS", "a third")
    assert bench.infer("TellsWhatItRuns").summary["present"] == 24


def test_workers_of_one_run_have_to_compute_the_same(bench: Bench, stand_ins: Path) -> None:
    ended = bench.infer("RunsSomethingElse")
    assert ended.code in {2, 3}  # whether the first had written by then
    assert "operators" in ended.error
    assert_whole(bench.out)
    (stand_ins / "told").unlink()
    ended = bench.infer("RunsSomethingElse", "--allow-mixed", "--overwrite")
    assert (ended.code, ended.summary["written"]) == (0, 24)


def test_devices_of_several_kinds_are_refused_before_any_works(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, stand_ins: Path
) -> None:
    monkeypatch.setattr(devices, "driver", lambda: SimpleNamespace(gpus=[SimpleNamespace(name="H100")]))
    ended = bench.infer("Echo", "--gpus", "cuda:0")
    assert ended.code == 2
    assert "devices cpu, cuda:0 (H100) do not compute the same to the last bit" in ended.error
    assert not bench.out.exists()
    assert bench.infer("Echo", "--gpus", "cuda:0", "--allow-mixed").code == 0


@pytest.mark.parametrize("instead", [None, "another's"])
def test_a_manifest_that_is_removed_during_the_run_ends_it_with_3(
    instead: str | None, artifacts: Artifacts, few: Path, tmp_path: Path, stand_ins: Path
) -> None:
    out = tmp_path / "out"
    folder = plan_folder(read_audio_list(few), out, out, Settings(seed=7))
    run = corpus.Run([folder], artifacts.model, artifacts.bank, Settings(seed=7), factory=factory("Echo"))

    def remove(status: Status) -> None:
        if status.summary.written >= 24 and (out / MANIFEST_FILE).exists():  # nothing comes after that
            (out / MANIFEST_FILE).unlink()
            if instead is not None:
                (out / MANIFEST_FILE).write_text(instead)

    with pytest.raises(WriteError, match="removed or replaced during the run"):
        corpus.run_corpus(run, watch=remove)
    assert [path.read_text() for path in out.glob(MANIFEST_FILE)] == ([] if instead is None else [instead])


def test_a_manifest_that_is_removed_stops_the_command_with_3(
    artifacts: Artifacts, few: Path, tmp_path: Path, start: Callable, stand_ins: Path
) -> None:
    out = tmp_path / "out"
    process = start(command(artifacts, few, out), "Slow")
    wait_until(lambda: recorded(out) > 2, process)
    (out / MANIFEST_FILE).unlink()
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 3
    (line,) = errors_in(errors)
    assert "manifest.jsonl: removed or replaced during the run" in line
    assert_whole(out)
    assert len(outputs(out)) < 24


def test_all_workers_and_continued_runs_draw_from_one_subset(bench: Bench) -> None:
    seeded = bench.infer("TakesEntries", "--kmeans-num", "3", "--record-draws", "--batch-seconds", "5")
    assert seeded.code == 0
    subset = draw_entries(8, 3, 7).tolist()
    assert {tuple(record["bank_ids"]) for record in records(bench.out).values()} == {tuple(subset)}
    header = json.loads((bench.out / MANIFEST_FILE).read_text().splitlines()[0])
    assert (header["kmeans_num"], header["entries"]) == (3, subset)
    # What the draws are from helps an attacker: the size alone is there if draws are not recorded.
    assert bench.infer("TakesEntries", "--kmeans-num", "3", "--overwrite").code == 0
    header = json.loads((bench.out / MANIFEST_FILE).read_text().splitlines()[0])
    assert (header["kmeans_num"], "entries" in header) == (3, False)


def test_without_a_seed_a_recorded_subset_is_kept_and_another_is_said(
    artifacts: Artifacts, few: Path, tmp_path: Path, stand_ins: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = []
    for record_draws in (True, False):
        out = tmp_path / f"{record_draws}"
        settings = Settings(record_draws=record_draws)
        folder = plan_folder(read_audio_list(few), out, out, settings)
        run = corpus.Run(
            [folder],
            artifacts.model,
            artifacts.bank,
            settings,
            factory=factory("TakesEntries"),
            kmeans_num=3,
        )
        corpus.run_corpus(run)
        assert not caplog.messages
        for _ in range(6):
            (out / "u003.wav").unlink()
            corpus.run_corpus(run)
            found += [tuple(records(out)["u003"]["bank_ids"])] if record_draws else []
    assert len(set(found)) == 1
    assert len(caplog.messages) == 6
    assert "draws from another random subset of 3 k-means models" in caplog.messages[0]
    # Two folders with draws from different subsets are not continued as one; nor is a damaged subset drawn from.
    out = tmp_path / "True"
    header, *rest = (out / MANIFEST_FILE).read_text().splitlines()
    for entries in ([0, 9, 1], [0, 1], "x", {"a": 1}, [0, 0, 1], [[0]]):
        lines = [json.dumps({**json.loads(header), "entries": entries}), *rest]
        (out / MANIFEST_FILE).write_text("\n".join(lines) + "\n")
        settings = Settings(record_draws=True)
        folder = plan_folder(read_audio_list(few), out, out, settings)
        run = corpus.Run([folder], artifacts.model, artifacts.bank, settings, kmeans_num=3)
        with pytest.raises(OutputError, match="damaged"):
            corpus.run_corpus(run)


@pytest.mark.parametrize("foreign", ["u004.wav", MANIFEST_FILE])
@pytest.mark.parametrize("content", [b"somebody's", b"\xff\xfe\0", b'{"a": 1}\n', b"{}"])
def test_other_programs_files_are_left_alone(
    foreign: str, content: bytes, artifacts: Artifacts, few: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / foreign).write_bytes(content)
    assert main(command(artifacts, few, out)) == 2
    (line,) = errors_in(capfd.readouterr().err)
    assert f"{out / foreign}: " in line
    assert [(path.name, path.read_bytes()) for path in out.iterdir()] == [(foreign, content)]


@pytest.mark.parametrize("torn", ['{"type": "r', '{"type": "run", "version": 1, "mo', ""])
def test_a_manifest_cut_off_in_its_first_line_begins_anew(torn: str, bench: Bench) -> None:
    bench.out.mkdir()
    (bench.out / MANIFEST_FILE).write_text(torn)
    assert bench.infer("Echo").code == 0
    assert_complete(bench.out, ids_of(bench.few))


def test_a_manifest_cut_off_inside_a_character_is_continued(bench: Bench) -> None:
    lines = enumerate(bench.few.read_text().splitlines())
    bench.few.write_text("".join(f"ü{number} {path}\n" for number, path in lines))
    assert bench.infer("Echo").code == 0
    manifest = bench.out / MANIFEST_FILE
    manifest.write_bytes(manifest.read_bytes()[: manifest.read_bytes().rindex("ü".encode()) + 1])
    assert bench.infer("Echo").code == 0
    found = [line for line in manifest.read_bytes().split(b"\n") if line]
    assert sum(b'"file"' in line and line.endswith(b"}") for line in found) >= 24


def test_what_killed_runs_left_is_removed_in_data_directories_too(
    artifacts: Artifacts, few: Path, tmp_path: Path, stand_in: Callable[[str], None]
) -> None:
    stand_in("Echo")
    data, wav = tmp_path / "data", tmp_path / "data_mkc" / "wav"
    data.mkdir()
    wav.mkdir(parents=True)
    lines = [f"{Path(path).stem} {path}\n" for path in few.read_text().split()]
    (data / "wav.scp").write_text("".join(lines))
    (wav / ".u004.wav.4711.mkc-fast.tmp").write_bytes(b"RIFF")
    (wav.parent / ".wav.scp.4711.mkc-fast.tmp").write_bytes(b"u0")
    users = {wav / ".mine.tmp", wav / ".mine.7.tmp", wav / ".u004.wav.7.tmp", wav.parent / ".mine.7.tmp"}
    for path in users:
        path.write_text("no name of ours")
    arguments = command(artifacts, few, tmp_path / "unused", "--data-dir", str(data))
    for option in ("--audio-scp", "--output-dir"):
        place = arguments.index(option)
        del arguments[place : place + 2]
    assert main(arguments) == 0
    assert {*temporaries(wav), *temporaries(wav.parent)} == users
    assert len(list(wav.glob("*.wav"))) == 24


@pytest.mark.parametrize(
    ("reluctant", "words"),
    [
        ("DiesLoading", "workers die while they load the models (killed, perhaps because memory ran out)"),
        ("ExitsLoading", "workers die while they load the models (exit code 7)"),
        ("FailsLoading", "a worker cannot start: RuntimeError: a library is missing"),
        ("Missing", "a worker cannot start: AttributeError: "),
    ],
)
def test_workers_that_cannot_start_end_the_run_with_one_line(reluctant: str, words: str, bench: Bench) -> None:
    ended = bench.infer(reluctant)
    assert ended.code == 2
    assert words in ended.error
    assert len(ended.err.splitlines()) == 2  # what is going to be done, and the error
    assert not psutil.Process().children()


def test_workers_that_start_go_on_without_those_that_do_not(bench: Bench) -> None:
    ended = bench.infer("OnlyOneLoads")
    summary = ended.summary
    assert (ended.code, summary["written"], summary["replaced_workers"], summary["lost_workers"]) == (0, 24, 4, 1)
    assert_complete(bench.out, ids_of(bench.few))


def test_workers_that_die_of_everything_end_the_run(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "_DEATHS_WITHOUT_OUTCOME", 4)  # twenty, in earnest
    ended = bench.infer("DiesOfAll")
    assert ended.code == 2
    assert "4 workers died, and nothing came of any recording" in ended.error
    assert not psutil.Process().children()


def test_the_last_words_of_a_worker_are_heard(bench: Bench) -> None:
    ended = bench.infer("DiesOnceItHasReported")
    assert (ended.code, ended.summary["written"], ended.summary["replaced_workers"]) == (0, 24, 1)
    assert recorded(bench.out) == 24  # each once: nothing that was reported was done again
    assert_complete(bench.out, ids_of(bench.few))


def test_a_run_that_ends_before_its_first_report_can_go_on(bench: Bench) -> None:
    assert bench.infer("FailsLoading").code == 2
    assert not list(bench.out.iterdir())  # nothing was written, so nothing is there
    ended = bench.infer("FailsOnceItHasWritten")
    assert (ended.code, ended.error) == (3, "error: no more")
    assert outputs(bench.out)
    assert not records(bench.out)
    assert bench.infer("Echo").code == 0  # these outputs are its own, not another program's
    assert_complete(bench.out, ids_of(bench.few))


def test_reports_longer_than_a_socket_holds_come_through(bench: Bench) -> None:
    bench.few.write_text("".join(bench.few.read_text().splitlines(keepends=True)[:6]))
    assert bench.infer("SaysMuch", "--record-draws").code == 0
    assert records(bench.out)["u003"]["bank_ids"] == list(range(200_000))
    assert_complete(bench.out, ids_of(bench.few))


def test_recordings_of_unknown_length_run_alone(
    artifacts: Artifacts, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[list[str]] = []

    class Recorder:
        def __init__(self, configs: object, timeout_s: float) -> None:
            self.workers, self.replaced, self.lost = [], 0, 0

        def run(self, plan: Future[Plan], stopped: object) -> Iterator[Outcome]:
            batches.extend([task.utterance.id for task in batch] for batch in plan.result().batches)
            yield from ()

    monkeypatch.setattr(corpus, "Scheduler", Recorder)
    lines = few.read_text().splitlines()[:6]
    few.write_text("".join(f"c{number} cat {path} && true |\n" for number, path in enumerate(lines)) + "\n".join(lines))
    arguments = command(artifacts, few, tmp_path / "out", "--batch-seconds", "60", "--allow-commands")
    assert main(arguments) == 0
    assert batches[:6] == [[f"c{number}"] for number in range(6)]
    assert len(batches[6]) == 6
