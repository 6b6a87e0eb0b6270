"""Anonymizes whole corpora: plans outputs, resumes from manifests, batches by length, and sums up."""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkc_fast import ArtifactError, ListError, MkcError, OutputError, WriteError
from mkc_fast.engine.artifacts import BANK_FILE, MODEL_FILE, open_bank, read_model_info
from mkc_fast.engine.audio import FORMATS, duration_s
from mkc_fast.engine.batching import DEFAULT_WINDOW_S, default_batch_s, group_by_length
from mkc_fast.engine.devices import cuda_index
from mkc_fast.engine.files import remove_temporaries
from mkc_fast.engine.manifest import MANIFEST_FILE, Manifest
from mkc_fast.engine.providers import check_choice
from mkc_fast.engine.scheduler import Scheduler, share_out
from mkc_fast.engine.worker import Outcome, Settings, Task, WorkerConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from mkc_fast.engine.lists import Utterance
    from mkc_fast.engine.scheduler import WorkerState

_HEADERS_AT_ONCE = 64


@dataclass(frozen=True)
class Folder:
    """Utterances that go into one output folder.

    Attributes:
        path: Where the manifest is.
        utterances: To anonymize.
        outputs: Where the output of each goes, by id.
    """

    path: Path
    utterances: list[Utterance]
    outputs: dict[str, Path]


@dataclass
class Summary:
    """What a run did.

    Attributes:
        files: Utterances asked for.
        written: Of them, written by this run.
        present: Of them, written by an earlier run.
        failed: Id and error of each that failed.
        audio_s: Seconds of audio written by this run.
        wall_s: Seconds from the first worker's start to the end.
        start_up_s: Of them, until the first worker was ready.
        stage_seconds: Seconds of each stage, over all workers.
        replaced_workers: Workers that died and were replaced.
        lost_workers: Workers that died again and again while they started, and were given up.
        interrupted: Whether the run was stopped before its end.
        chosen: What the workers' graphs ran on, and why nothing faster, a line for each kind of device.
    """

    files: int = 0
    written: int = 0
    present: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    audio_s: float = 0.0
    wall_s: float = 0.0
    start_up_s: float = 0.0
    stage_seconds: Counter[str] = field(default_factory=Counter)
    replaced_workers: int = 0
    lost_workers: int = 0
    interrupted: bool = False
    chosen: list[str] = field(default_factory=list)

    @property
    def rtfx(self) -> float:
        """Seconds of audio a second of work, start-up not counted."""
        work = self.wall_s - self.start_up_s
        return self.audio_s / work if work > 0 else 0.0


@dataclass(frozen=True)
class Status:
    """How a run stands.

    Attributes:
        summary: What is done.
        remaining_s: Seconds of audio still to do, as far as headers tell.
        elapsed_s: Since the first worker was ready.
        workers: One of each.
        failure: The utterance that has just failed, and why.
        notes: What workers have just had to say, a line each.
    """

    summary: Summary
    remaining_s: float
    elapsed_s: float
    workers: list[WorkerState]
    failure: tuple[str, str] | None = None
    notes: tuple[str, ...] = ()


def plan_folder(utterances: list[Utterance], folder: Path, audio_folder: Path, settings: Settings) -> Folder:
    """Where each output goes; nothing is written.

    Raises:
        ListError: Two outputs have one name where the file system does not tell upper case from lower.
        OutputError: An output would replace its own recording, or the folder is a file.
        MkcError: The format is not known.
    """
    if settings.format not in FORMATS:
        raise MkcError(f"format is {settings.format!r}; expected one of {', '.join(FORMATS)}")
    for part in (folder, audio_folder):
        if part.exists() and not part.is_dir():
            raise OutputError(f"{part}: is there, and is no folder")
    outputs = {utterance.id: audio_folder / f"{utterance.id}.{settings.format}" for utterance in utterances}
    if _folds_case(folder):
        folded = Counter(name.casefold() for name in outputs)
        for name in outputs:
            if folded[name.casefold()] > 1:
                raise ListError(f"{name}: another id differs only in case, and would write the same file")
    for utterance in utterances:
        if utterance.command is None and _same_file(outputs[utterance.id], utterance.path):
            raise OutputError(f"{outputs[utterance.id]}: is the recording itself; choose another output folder")
    return Folder(folder, utterances, outputs)


def _same_file(output: Path, recording: Path) -> bool:
    try:
        return output.samefile(recording)
    except (OSError, ValueError):  # one is not there, or cannot be: then they are two
        return False


def _folds_case(folder: Path) -> bool:
    """Whether the file system of a folder that may not be there yet takes two cases of a name for one file."""
    here = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    swapped = here.absolute().parent / here.absolute().name.swapcase()
    return swapped.name != here.absolute().name and swapped.exists() and swapped.samefile(here)


@dataclass(frozen=True)
class Run:
    """A corpus run, ready to begin: see ``run_corpus``."""

    folders: list[Folder]
    model: Path
    bank: Path
    settings: Settings
    devices: Sequence[str] = ("cpu",)
    num_proc: int | None = None
    batch_s: float | None = None
    max_window_s: float = DEFAULT_WINDOW_S
    overwrite: bool = False
    provider: str = "auto"
    precision: str = "auto"
    factory: str = "mkc_fast.engine.anonymizer:Anonymizer"


def run_corpus(
    run: Run,
    *,
    stopped: Callable[[], bool] = lambda: False,
    watch: Callable[[Status], None] = lambda _: None,
) -> Summary:
    """Anonymize all utterances that their folders' manifests do not have, over worker processes.

    Args:
        run: What to do. Of ``devices`` each worker gets one in turn; ``num_proc`` is the number of workers (default:
            one a device); ``batch_s`` the padded seconds of audio that run at once (default: 0, each alone, on a CPU,
            and 240 on a GPU).
        stopped: Asked often; once true, the run ends within seconds.
        watch: Told how the run stands, several times a second.

    Returns:
        The summary. Its ``failed`` are also in the manifests, and are tried again by the next run.

    Raises:
        ArtifactError, DeviceError: The artifacts or devices cannot be used; nothing was written.
        OutputError: A folder holds outputs of other settings or of other programs, or cannot be written, or the disk is
            full.
    """
    for device in run.devices:
        check_choice(cuda_index(device), run.provider, run.precision)
    _check_fit(run.model, run.bank)
    summary = Summary(files=sum(len(folder.utterances) for folder in run.folders))
    manifests: list[Manifest] = []
    try:
        for folder in run.folders:
            _check_foreign(folder, run)
            manifests.append(Manifest(folder.path, _shared(run), overwrite=run.overwrite))
            for path in _places(folder):
                path.mkdir(parents=True, exist_ok=True)
        _remove_temporaries(run.folders, manifests)
        tasks: list[Task] = []
        homes: list[Manifest] = []
        for folder, manifest in zip(run.folders, manifests, strict=True):
            for utterance in folder.utterances:
                if manifest.finished(utterance.id, folder.outputs[utterance.id]):
                    summary.present += 1
                else:
                    tasks.append(Task(len(tasks), utterance, folder.outputs[utterance.id]))
                    homes.append(manifest)
        # Closed here, whatever happens: the workers are gone before others may write in the folders.
        with closing(_work(run, tasks, homes, summary, stopped)) as statuses:
            for status in statuses:
                watch(status)
    except OSError as error:
        raise WriteError(f"{error.filename or 'output'}: cannot be written ({error.strerror})") from None
    finally:
        _remove_temporaries(run.folders, manifests)
        for folder, manifest in zip(run.folders, manifests, strict=False):
            manifest.close(folder.outputs.values())
    return summary


def _places(folder: Folder) -> set[Path]:
    """The directories in which a folder's files are."""
    return {folder.path, *(output.parent for output in folder.outputs.values())}


def _remove_temporaries(folders: Sequence[Folder], manifests: Sequence[Manifest]) -> None:
    """Remove what killed processes left, in folders whose manifests keep other runs away."""
    for folder, _ in zip(folders, manifests, strict=False):
        for path in _places(folder):
            remove_temporaries(path)


def _work(
    run: Run, tasks: list[Task], homes: list[Manifest], summary: Summary, stopped: Callable[[], bool]
) -> Generator[Status, None, None]:
    """Run tasks, record each outcome in its folder's manifest and count it."""
    if not tasks:
        return
    begin = time.perf_counter()
    # In pieces: a future for each of 100,000 headers costs more than reading it.
    pieces = [tasks[start : start + _HEADERS_AT_ONCE] for start in range(0, len(tasks), _HEADERS_AT_ONCE)]
    with ThreadPoolExecutor(8) as pool:
        durations = list(chain.from_iterable(pool.map(lambda piece: _durations(piece, stopped), pieces)))
    remaining = sum(durations)
    budget = run.batch_s
    if budget is None:
        budget = min(map(default_batch_s, run.devices))
    # What may have any length runs alone.
    lengths = [duration or math.inf for duration in durations]
    batches = [[tasks[index] for index in group] for group in group_by_length(lengths, budget)]
    config = WorkerConfig(run.model, run.bank, "cpu", None, 1, run.max_window_s, run.settings)
    config = replace(config, provider=run.provider, precision=run.precision, factory=run.factory)
    scheduler = Scheduler(share_out(config, run.devices, run.num_proc))
    ready: float | None = None
    with closing(scheduler.run(batches, stopped)) as outcomes:
        for outcome in outcomes:
            if ready is None:
                ready = min((w.ready_at for w in scheduler.workers if w.ready_at is not None), default=None)
            failure = None
            if outcome is not None:
                task = tasks[outcome.index]
                remaining -= durations[outcome.index]
                homes[outcome.index].append(task.utterance.id, _record(task, outcome))
                failure = _count(summary, task, outcome)
            now = time.perf_counter()
            summary.wall_s, summary.start_up_s = now - begin, (ready or now) - begin
            summary.replaced_workers, summary.lost_workers = scheduler.replaced, scheduler.lost
            elapsed = 0.0 if ready is None else now - ready
            summary.chosen, notes, scheduler.notes = scheduler.chosen, tuple(scheduler.notes), []
            yield Status(summary, max(0.0, remaining), elapsed, scheduler.workers, failure, notes)
    summary.interrupted = stopped() and summary.written + len(summary.failed) < len(tasks)


def _durations(tasks: Sequence[Task], stopped: Callable[[], bool]) -> list[float]:
    return [0.0 if stopped() else duration_s(task.utterance) for task in tasks]


def _count(summary: Summary, task: Task, outcome: Outcome) -> tuple[str, str] | None:
    if outcome.error is not None:
        summary.failed.append((task.utterance.id, outcome.error))
        return summary.failed[-1]
    summary.written += 1
    summary.audio_s += outcome.audio_s
    summary.stage_seconds.update(outcome.stage_seconds)
    return None


def _record(task: Task, outcome: Outcome) -> dict[str, Any]:
    record: dict[str, Any] = {"source": str(task.utterance.path)}
    if outcome.error is not None:
        return {**record, "error": outcome.error}
    record.update(
        file=task.output.name, bytes=outcome.size_bytes, seconds=round(outcome.audio_s, 4), frames=outcome.frames
    )
    if outcome.bank_ids is not None:
        record["bank_ids"] = outcome.bank_ids
    return record


def _shared(run: Run) -> dict[str, object]:
    """What all outputs of a folder share."""
    return {
        "model": _digest(run.model / MODEL_FILE),
        "bank": _digest(run.bank / BANK_FILE),
        "mode": run.settings.mode,
        "stride": run.settings.stride,
        "seed": run.settings.seed,
        "max_window_s": run.max_window_s,
        "precision": run.precision,
    }


def _digest(path: Path) -> str:
    """What tells one artifact from another: its JSON names the SHA-256 of every source."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _check_fit(model: Path, bank: Path) -> None:
    info, opened = read_model_info(model), open_bank(bank)
    if opened.info.dim != info.dim:
        raise ArtifactError(f"{bank}: has {opened.info.dim} dimensions, {model} has {info.dim}")


def _check_foreign(folder: Folder, run: Run) -> None:
    """Refuse to replace files that no run of ours has written."""
    if run.overwrite or (folder.path / MANIFEST_FILE).exists():
        return
    for output in folder.outputs.values():
        if output.exists():
            raise OutputError(
                f"{output}: there already, from no run recorded here; choose another folder, or --overwrite"
            )
