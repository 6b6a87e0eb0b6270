"""Anonymizes whole corpora: plans outputs, resumes from manifests, batches by length, and sums up."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
import unicodedata
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkc_fast.engine.artifacts import BANK_FILE, MODEL_FILE, identity, open_bank, read_model_info
from mkc_fast.engine.atomic_files import remove_temporaries
from mkc_fast.engine.audio.read import duration_s
from mkc_fast.engine.audio.waveform import LOUD_PEAK
from mkc_fast.engine.audio.write import FORMATS
from mkc_fast.engine.batching import group_by_length
from mkc_fast.engine.corpus.manifest import MANIFEST_FILE, Manifest
from mkc_fast.engine.corpus.protocol import Outcome, Settings, Task, WorkerConfig
from mkc_fast.engine.corpus.scheduler import Scheduler, share_out
from mkc_fast.engine.corpus.watchdog import DEFAULT_TIMEOUT_S
from mkc_fast.engine.devices import cuda_index, device_kind
from mkc_fast.engine.draws import check_draw, check_entries, draw_entries
from mkc_fast.engine.options import EngineOptions, check_choice, default_batch_s
from mkc_fast.errors import ArtifactError, DeviceError, ListError, MkcError, OutputError, StoppedError, WriteError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from concurrent.futures import Future

    from mkc_fast.engine.corpus.scheduler import WorkerState
    from mkc_fast.engine.datasets.dataset import Utterance

logger = logging.getLogger("mkc_fast")

_HEADERS_AT_ONCE = 64
# More than cores: on a network's file system a header is a wait.
_HEADER_THREADS = 8


class Outputs(Mapping[str, Path]):
    """Where the output of each utterance goes, by id: made when it is asked for, since a million paths fill the memory.

    Attributes:
        folder: Where all of them go.
        suffix: Of their names, with its dot.
    """

    def __init__(self, utterances: Sequence[Utterance], folder: Path, suffix: str) -> None:
        self.folder = folder
        self.suffix = suffix
        self._utterances = utterances

    def __getitem__(self, utterance_id: str) -> Path:
        """The output that an utterance of this id has."""
        return self.folder / (utterance_id + self.suffix)

    def __iter__(self) -> Iterator[str]:
        return (utterance.id for utterance in self._utterances)

    def __len__(self) -> int:
        return len(self._utterances)

    def existing(self) -> Iterator[Path]:
        """Those that are there, by whatever name the file system takes for theirs."""
        try:
            # One question instead of one an utterance.
            names = set(os.listdir(self.folder))  # noqa: PTH208
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError:  # a folder that cannot be listed
            yield from (output for output in self.values() if output.exists())
            return
        if names and _folds_case(self.folder):
            folded = {_folded(name) for name in names}
            yield from (self[name] for name in self if _folded(name + self.suffix) in folded)
        elif names:
            yield from (self[name] for name in self if name + self.suffix in names)


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
    outputs: Outputs


@dataclass
class Summary:
    """What a run did.

    Attributes:
        files: Utterances asked for.
        written: Of them, written by this run.
        present: Of them, written by an earlier run.
        failed: Id and error of each that failed.
        loud: Of those written, recordings with a peak above 1, whose scale may be wrong.
        audio_s: Seconds of audio written by this run.
        wall_s: Seconds from the first worker's start to the end.
        start_up_s: Of them, until headers were read and the first worker was ready.
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
    loud: int = 0
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
        elapsed_s: Since the end of the start-up.
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
        try:
            if part.exists() and not part.is_dir():
                raise OutputError(f"{part}: is there, and is no folder")
        except OSError as error:
            raise OutputError(f"{part}: cannot be used ({error.strerror})") from None
    outputs = Outputs(utterances, audio_folder, f".{settings.format}")
    if _folds_case(folder):
        folded = Counter(_folded(name) for name in outputs)
        for name in outputs:
            if folded[_folded(name)] > 1:
                raise ListError(f"{name}: another id differs only in case, and would write the same file")
    planned = Folder(folder, utterances, outputs)
    check_recordings([planned])
    return planned


def check_recordings(folders: Sequence[Folder]) -> None:
    """Refuse to replace what is still to be read: an output of any folder that is a recording of any.

    Raises:
        OutputError: An output is one.
    """
    there = (output for folder in folders for output in folder.outputs.existing())
    replaced = {file: output for output in there if (file := _file_of(output))}
    recordings = {u.path for folder in folders if replaced for u in folder.utterances if u.command is None}
    for recording in recordings:
        file = _file_of(recording)
        if file in replaced:
            output = replaced[file]
            raise OutputError(f"{output}: is the recording {recording} itself; choose another output folder")


def _file_of(path: Path) -> tuple[int, int] | None:
    """What a name leads to, by whatever links; None if nothing is there, or can be."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def _folded(name: str) -> str:
    """What such file systems compare: neither case nor how accents are put together."""
    return unicodedata.normalize("NFC", name.casefold())


def _folds_case(folder: Path) -> bool:
    """Whether the file system of a folder that may not be there yet takes two cases of a name for one file."""
    here = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    swapped = here.absolute().parent / here.absolute().name.swapcase()
    return swapped.name != here.absolute().name and swapped.exists() and swapped.samefile(here)


@dataclass(frozen=True)
class Run:
    """A corpus run, ready to begin.

    Attributes:
        folders: What to anonymize, and where it goes.
        model: Exported model.
        bank: Bank.
        settings: How recordings are anonymized.
        devices: Of which each worker gets one in turn.
        num_proc: Number of workers; default: one a device.
        options: How the engine runs on each device.
        overwrite: Start over, whatever the folders hold.
        timeout_s: What a worker may be silent beyond what its work explains (0: for ever).
        factory: As in ``WorkerConfig``.
        kmeans_num: Size of the random subset of the bank that frames draw from; default: the whole bank.
        allow_mixed: Admit, in one folder, outputs that are not equal to the last bit: of other providers, precisions,
            operators or versions, or batched and not batched.
        private_manifest: Keep recordings' paths out of the manifest.
    """

    folders: list[Folder]
    model: Path
    bank: Path
    settings: Settings
    devices: Sequence[str] = ("cpu",)
    num_proc: int | None = None
    options: EngineOptions = field(default_factory=EngineOptions)
    overwrite: bool = False
    timeout_s: float = DEFAULT_TIMEOUT_S
    factory: str = "mkc_fast.engine.anonymizer:Anonymizer"
    kmeans_num: int | None = None
    allow_mixed: bool = False
    private_manifest: bool = False


def run_corpus(
    run: Run,
    *,
    stopped: Callable[[], bool] = lambda: False,
    watch: Callable[[Status], None] = lambda _: None,
) -> Summary:
    """Anonymize all utterances that their folders' manifests do not have, over worker processes.

    Args:
        run: What to do.
        stopped: Asked often; once true, the run ends within seconds.
        watch: Told how the run stands, several times a second.

    Returns:
        The summary. Its ``failed`` are also in the manifests, and are tried again by the next run.

    Raises:
        ArtifactError, DeviceError: The artifacts or devices cannot be used; nothing was written.
        OutputError: A folder holds outputs of other settings, recordings or programs, or cannot be written.
        WriteError: The disk is full, or a manifest was removed during the run; what was written is whole.
        StoppedError: Workers no longer start; what was written is whole.
    """
    check_draw(run.settings.mode, run.settings.stride, run.settings.seed)
    for device in run.devices:
        check_choice(cuda_index(device), run.options.provider, run.options.precision)
    _check_kinds(run)
    bank_entries = check_fit(run.model, run.bank)
    drawn_from = _entries_used(run.kmeans_num, bank_entries)
    check_recordings(run.folders)
    summary = Summary(files=sum(len(folder.utterances) for folder in run.folders))
    manifests: list[Manifest] = []
    try:
        for folder in run.folders:
            _check_foreign(folder, run)
            manifests.append(
                Manifest(
                    folder.path,
                    _shared(run, drawn_from),
                    overwrite=run.overwrite,
                    allow_mixed=run.allow_mixed,
                    private=run.private_manifest,
                )
            )
            manifests[-1].check_sources(folder.utterances)
        subset = None if drawn_from == bank_entries else _subset(run, manifests, bank_entries, drawn_from)
        for folder in run.folders:
            for path in _places(folder):
                path.mkdir(parents=True, exist_ok=True)
        _remove_temporaries(run.folders, manifests)
        tasks: list[Task] = []
        homes: list[Manifest] = []
        for folder, manifest in zip(run.folders, manifests, strict=True):
            for utterance in folder.utterances:
                known = utterance.id in manifest
                if known and manifest.finished(utterance.id, folder.outputs[utterance.id]):
                    summary.present += 1
                else:
                    tasks.append(Task(len(tasks), utterance, folder.outputs.folder, folder.outputs.suffix))
                    homes.append(manifest)
        for manifest in manifests:
            manifest.forget()
        # Closed here, whatever happens: the workers are gone before others may write in the folders.
        with closing(_work(run, subset, tasks, homes, summary, stopped)) as statuses:
            for status in statuses:
                watch(status)
        for manifest in manifests:
            manifest.check_there()
    except WriteError:
        raise
    except MkcError as error:
        if summary.written or summary.failed:
            hint = "" if isinstance(error, OutputError) else "; run the same command again to continue"
            raise StoppedError(f"{error}{hint}") from None
        raise
    except OSError as error:
        raise WriteError(f"{error.filename or 'output'}: cannot be written ({error.strerror})") from None
    finally:
        _remove_temporaries(run.folders, manifests)
        for folder, manifest in zip(run.folders, manifests, strict=False):
            manifest.close(folder.outputs.existing())
    return summary


def _places(folder: Folder) -> set[Path]:
    """The directories in which a folder's files are."""
    return {folder.path, folder.outputs.folder}


def _remove_temporaries(folders: Sequence[Folder], manifests: Sequence[Manifest]) -> None:
    """Remove what killed processes left, in folders whose manifests keep other runs away."""
    for folder, manifest in zip(folders, manifests, strict=False):
        if manifest.is_there():  # else another run may have begun in the folder
            for path in _places(folder):
                remove_temporaries(path)


def _work(
    run: Run,
    subset: tuple[int, ...] | None,
    tasks: list[Task],
    homes: list[Manifest],
    summary: Summary,
    stopped: Callable[[], bool],
) -> Generator[Status, None, None]:
    """Run tasks, record each outcome in its folder's manifest and count it."""
    if not tasks:
        return
    begin = time.perf_counter()
    config = WorkerConfig(run.model, run.bank, "cpu", run.options, 1, run.settings, run.factory, entries=subset)
    scheduler = Scheduler(share_out(config, run.devices, run.num_proc)[: len(tasks)], run.timeout_s)
    budget = run.options.batch_s
    if budget is None:
        budget = min(map(default_batch_s, run.devices))
    batched = budget > 0

    def admit(ran: dict[str, object]) -> None:
        """Of a worker that is ready: may what it computes stand beside the rest?"""
        those = list(dict.fromkeys(homes))
        for manifest in those:
            manifest.check_ran({**ran, "batched": batched})
        for manifest in those:
            manifest.begin({**ran, "batched": batched}, subset if run.settings.record_draws else None)

    scheduler.admit = admit
    remaining, planned_at, started_at = 0.0, math.inf, None
    # Headers are read while the workers load the models.
    with _planned(tasks, budget, stopped) as plan, closing(scheduler.run(plan, stopped)) as outcomes:
        for outcome in outcomes:
            if planned_at == math.inf and plan.done():
                planned_at, remaining = time.perf_counter(), sum(task.audio_s for task in tasks)
            if started_at is None and plan.done():
                ready = [worker.ready_at for worker in scheduler.workers if worker.ready_at is not None]
                started_at = max(planned_at, min(ready)) if ready else None
            failure = None
            if outcome is not None:
                task = tasks[outcome.index]
                remaining -= task.audio_s
                record = _record(task, outcome)
                homes[outcome.index].append(task.utterance, record, {**outcome.ran, "batched": batched})
                failure = _count(summary, task, outcome)
                if outcome.peak > LOUD_PEAK and summary.loud == 1:
                    scheduler.notes.append(
                        f"{task.utterance.id}: peaks at {outcome.peak:.3g}, samples are expected in [-1, 1]; is its "
                        "scale right? Further such recordings are counted in the summary"
                    )
            now = time.perf_counter()
            summary.wall_s, summary.start_up_s = now - begin, (started_at or now) - begin
            summary.replaced_workers, summary.lost_workers = scheduler.replaced, scheduler.lost
            elapsed = 0.0 if started_at is None else now - started_at
            summary.chosen, notes, scheduler.notes = scheduler.chosen, tuple(scheduler.notes), []
            yield Status(summary, max(0.0, remaining), elapsed, scheduler.workers, failure, notes)
    summary.interrupted = stopped() and summary.written + len(summary.failed) < len(tasks)


@contextmanager
def _planned(tasks: list[Task], budget: float, stopped: Callable[[], bool]) -> Iterator[Future[list[list[Task]]]]:
    """Begin to read the headers of tasks, whose ``audio_s`` is put into the list, and to make batches of them."""
    left = threading.Event()

    def over() -> bool:
        return left.is_set() or stopped()

    def plan() -> list[list[Task]]:
        # In pieces: a future for each of 100,000 headers costs more than reading it.
        pieces = [tasks[start : start + _HEADERS_AT_ONCE] for start in range(0, len(tasks), _HEADERS_AT_ONCE)]
        tasks[:] = chain.from_iterable(readers.map(lambda piece: _measured(piece, over), pieces))
        # What may have any length runs alone.
        lengths = [task.audio_s or math.inf for task in tasks]
        groups = group_by_length(lengths, budget)
        groups.reverse()  # each is given up for its batch: of a million recordings both are large
        return [[tasks[index] for index in groups.pop()] for _ in range(len(groups))]

    with ThreadPoolExecutor(_HEADER_THREADS, "header") as readers, ThreadPoolExecutor(1, "plan") as planner:
        try:
            yield planner.submit(plan)
        finally:
            left.set()


def _measured(tasks: Sequence[Task], over: Callable[[], bool]) -> list[Task]:
    return [
        task
        if over()
        else Task(task.index, task.utterance, task.folder, task.suffix, audio_s=duration_s(task.utterance))
        for task in tasks
    ]


def _count(summary: Summary, task: Task, outcome: Outcome) -> tuple[str, str] | None:
    if outcome.error is not None:
        summary.failed.append((task.utterance.id, outcome.error))
        return summary.failed[-1]
    summary.written += 1
    summary.loud += outcome.peak > LOUD_PEAK
    summary.audio_s += outcome.audio_s
    summary.stage_seconds.update(outcome.stage_seconds)
    return None


def _record(task: Task, outcome: Outcome) -> dict[str, Any]:
    if outcome.error is not None:
        return {"error": outcome.error}
    record: dict[str, Any] = {
        "file": task.output.name,
        "bytes": outcome.size_bytes,
        "seconds": round(outcome.audio_s, 4),
        "frames": outcome.frames,
    }
    if outcome.bank_ids is not None:
        record["bank_ids"] = outcome.bank_ids
    return record


def _shared(run: Run, drawn_from: int) -> dict[str, object]:
    """What all outputs of a folder share."""
    return {
        "model": identity(run.model / MODEL_FILE),
        "bank": identity(run.bank / BANK_FILE),
        "mode": run.settings.mode,
        "stride": run.settings.stride,
        "seed": run.settings.seed,
        "kmeans_num": drawn_from,
        "format": run.settings.format,
        "pad": run.settings.pad,
        "max_window_s": run.options.max_window_s,
    }


def check_fit(model: Path, bank: Path) -> int:
    """Check that a model and a bank are there and fit each other, and say how many entries the bank has.

    Raises:
        ArtifactError: They are not, or do not.
    """
    info, opened = read_model_info(model), open_bank(bank)
    if opened.info.dim != info.dim:
        raise ArtifactError(f"{bank}: has {opened.info.dim} dimensions, {model} has {info.dim}")
    return len(opened.info.names)


def _check_kinds(run: Run) -> None:
    """Refuse devices of several kinds, which do not compute the same to the last bit, before any of them works."""
    kinds = [device_kind(device) for device in run.devices]
    if len(set(kinds)) > 1 and not run.allow_mixed:
        named = zip(run.devices, kinds, strict=True)
        told = ", ".join(device if kind == device else f"{device} ({kind})" for device, kind in named)
        raise DeviceError(
            f"devices {told} do not compute the same to the last bit; choose of one kind, or --allow-mixed"
        )


def _entries_used(kmeans_num: int | None, there: int) -> int:
    """How many bank entries frames draw from; asked for more than there are, all."""
    if kmeans_num is None:
        return there
    if kmeans_num > there:
        logger.warning("kmeans_num is %d, the bank has %d k-means models: all of them are used", kmeans_num, there)
    return len(draw_entries(there, kmeans_num, 0))


def _subset(run: Run, manifests: Sequence[Manifest], there: int, drawn_from: int) -> tuple[int, ...]:
    """The bank entries that frames draw from: one subset for all folders and workers.

    Raises:
        OutputError: Folders have recorded draws from different subsets, or what is no subset.
    """
    seed = run.settings.seed
    if seed is not None:
        return tuple(draw_entries(there, drawn_from, seed).tolist())
    recorded: dict[tuple[int, ...], Manifest] = {}
    for manifest in manifests:
        if manifest.entries is None:
            continue
        try:
            entries = tuple(check_entries(manifest.entries, there).tolist())  # type: ignore[arg-type]
        except (MkcError, ValueError):
            entries = ()
        if len(entries) != drawn_from:
            raise OutputError(f"{manifest.path}: damaged; choose another folder, or --overwrite")
        recorded.setdefault(entries, manifest)
    if len(recorded) > 1:
        first, second = list(recorded.values())[:2]
        raise OutputError(
            f"{second.folder}: its draws are from another random subset than those in {first.folder}; "
            "continue them one by one"
        )
    if not recorded and any(manifest.continues for manifest in manifests):
        logger.warning(
            "without a seed and without recorded draws, this run draws from another random subset of %d k-means models "
            "than the run that it continues",
            drawn_from,
        )
    return next(iter(recorded), None) or tuple(draw_entries(there, drawn_from, None).tolist())


def _check_foreign(folder: Folder, run: Run) -> None:
    """Refuse to replace files that no run of ours has written."""
    if run.overwrite or (folder.path / MANIFEST_FILE).exists():
        return
    for output in folder.outputs.existing():
        raise OutputError(f"{output}: there already, from no run recorded here; choose another folder, or --overwrite")
