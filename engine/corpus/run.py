"""Runs a corpus: opens the manifests, starts the workers, records each outcome, and sums up."""

from __future__ import annotations

import secrets
import time
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkc_fast.engine.artifacts import BANK_FILE, MODEL_FILE, check_dimensions, identity, open_bank, read_model_info
from mkc_fast.engine.audio.waveform import LOUD_PEAK
from mkc_fast.engine.corpus.failures import write_silence
from mkc_fast.engine.corpus.groups import OpenGroups
from mkc_fast.engine.corpus.manifest import Manifest
from mkc_fast.engine.corpus.outputs import check_foreign, check_recordings, remove_left_over
from mkc_fast.engine.corpus.plan import Padding, planned_batches
from mkc_fast.engine.corpus.protocol import BankDraws, Outcome, Settings, Task, WorkerConfig
from mkc_fast.engine.corpus.remote import RemoteManifest, remote_manifests
from mkc_fast.engine.corpus.scheduler import Scheduler, worker_configs
from mkc_fast.engine.corpus.status import FolderSummary, Status, Summary
from mkc_fast.engine.corpus.subset import entries_used, random_subset
from mkc_fast.engine.corpus.watchdog import DEFAULT_TIMEOUT_S
from mkc_fast.engine.devices import cuda_index, device_kind, parse_device
from mkc_fast.engine.draws import check_draw
from mkc_fast.engine.options import EngineOptions, check_choice, default_batch_s
from mkc_fast.engine.passes.shapes import whole_steps
from mkc_fast.errors import ArgumentError, DeviceError, MkcError, OutputError, StoppedError, WriteError
from mkc_fast.names import COPY_SILENCE, CPU, ON_FAILURE, STOP, UTTERANCE

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Mapping, Sequence

    from mkc_fast.engine.corpus.outputs import Folder
    from mkc_fast.engine.corpus.pool import Cluster
    from mkc_fast.engine.storage.fetching import RemoteArtifact
    from mkc_fast.names import OnFailure


@dataclass(frozen=True)
class Run:
    """A corpus run, ready to begin.

    Attributes:
        folders: What to anonymize, and where it goes.
        model: Exported model.
        bank: Bank of the folders that name none.
        settings: How recordings are anonymized.
        devices: Of which each worker gets one in turn.
        num_proc: Number of workers; default: one a device.
        options: How the engine runs on each device.
        overwrite: Start over, whatever the folders hold.
        timeout_s: Seconds that a worker may be silent beyond what its work explains; 0 is no limit.
        factory: As in ``WorkerConfig``.
        kmeans_num: Size of the random subset of the bank that frames draw from; default: the whole bank.
        allow_mixed: Admit, in one folder, outputs that are not equal to the last bit: of other providers, precisions,
            operators or versions, or batched and not batched.
        private_manifest: Keep recordings' paths out of the manifest.
        on_failure: What becomes of a recording that fails: nothing, or silence as its output.
        cluster: Machines that the workers run on; default: this one.
        least: Workers that are kept to the end; default: all.
        remote: Where the machines of a cluster fetch the model or a bank from, by its directory here, if they do.
    """

    folders: list[Folder]
    model: Path
    bank: Path
    settings: Settings
    devices: Sequence[str] = (CPU,)
    num_proc: int | None = None
    options: EngineOptions = field(default_factory=EngineOptions)
    overwrite: bool = False
    timeout_s: float = DEFAULT_TIMEOUT_S
    factory: str = "mkc_fast.engine.anonymizer:Anonymizer"
    kmeans_num: int | None = None
    allow_mixed: bool = False
    private_manifest: bool = False
    on_failure: OnFailure = STOP
    cluster: Cluster | None = None
    least: int | None = None
    remote: Mapping[Path, RemoteArtifact] = field(default_factory=dict)

    def for_workers(self, path: Path) -> Path | RemoteArtifact:
        """A model or a bank as workers are told it: those of a cluster fetch it, if it is at an address."""
        return path if self.cluster is None else self.remote.get(path, path)

    @property
    def banks(self) -> list[Path]:
        """The banks of its folders, each once."""
        return list(dict.fromkeys(self.bank_of(folder) for folder in self.folders))

    def bank_of(self, folder: Folder) -> Path:
        """The bank of a folder."""
        return self.bank if folder.bank is None else folder.bank

    @property
    def batch_s(self) -> float:
        """Padded seconds of audio that run at once."""
        given = self.options.batch_s
        if self.cluster is not None:
            return self.cluster.batch_s(self.devices, self.options)
        return min(map(default_batch_s, self.devices)) if given is None else given


def run_corpus(
    run: Run,
    *,
    stopped: Callable[[], bool] = lambda: False,
    watch: Callable[[Status], None] = lambda _: None,
    begun: Callable[[Collection[Path]], None] = lambda _: None,
) -> Summary:
    """Anonymize all utterances that their folders' manifests do not have, over worker processes.

    Args:
        run: What to do.
        stopped: Called often; once it returns true, the run ends within seconds.
        watch: Called with the state of the run several times a second.
        begun: Called once, before the first output is written, with the folders that get outputs.

    Returns:
        The summary. Its ``failed`` are also in the manifests, and are retried by the next run.

    Raises:
        ArtifactError, DeviceError: The artifacts or devices cannot be used; nothing was written.
        OutputError: A folder holds outputs of other settings, recordings or programs, or cannot be written.
        WriteError: The disk is full, or a manifest was removed during the run; what was written is complete.
        StoppedError: Workers no longer start; what was written is complete.
    """
    check_draw(run.settings.mode, run.settings.stride, run.settings.seed)
    for device in run.devices:
        # A cluster's devices are not here; its workers say what they have.
        index = cuda_index(device) if run.cluster is None else parse_device(device)
        check_choice(index, run.options.provider, run.options.precision)
    if run.cluster is None:
        _check_kinds(run)
    if run.on_failure not in ON_FAILURE:
        raise ArgumentError(f"on_failure is {run.on_failure!r}; expected one of {', '.join(ON_FAILURE)}")
    run = _with_secret(run)
    sizes = {bank: check_fit(run.model, bank) for bank in run.banks}
    used = {bank: entries_used(run.kmeans_num, size) for bank, size in sizes.items()}
    for folder in run.folders:
        bank = run.bank_of(folder)
        if folder.shard is not None and run.settings.seed is None:
            _check_unshared(folder, all_entries=used[bank] == sizes[bank])
    check_recordings(run.folders)
    summary = Summary(files=sum(len(folder.utterances) for folder in run.folders))
    for folder in run.folders:
        each = FolderSummary(folder.shown, len(folder.utterances))
        summary.folders[folder.outputs.folder] = each
    manifests: list[Manifest] = []
    groups = OpenGroups()
    uploads = remote_manifests(run.folders)
    try:
        for upload in uploads:
            if run.overwrite:
                upload.forget()
            else:
                upload.fetch()
        for folder in run.folders:
            manifest = _open_manifest(run, folder, used[run.bank_of(folder)])
            manifests.append(manifest)
        banks = [_draws_of(run, bank, sizes[bank], used[bank], manifests) for bank in run.banks]
        for folder in run.folders:
            for path in folder.directories:
                path.mkdir(parents=True, exist_ok=True)
        remove_left_over(run.folders, manifests)
        tasks, task_manifests = _tasks(run, manifests, groups, summary)
        # Closed here, whatever happens: the workers are gone before another run may write in the folders.
        work = _work(run, banks, tasks, task_manifests, groups, summary, stopped, begun, uploads)
        with closing(groups), closing(work) as statuses:
            groups.begin()
            for status in statuses:
                groups.advance()
                for upload in uploads:
                    upload.advance()
                watch(status)
            groups.advance(wait=not stopped())
        for upload in uploads:
            upload.finish()
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
        remove_left_over(run.folders, manifests)
        for folder, manifest in zip(run.folders, manifests, strict=False):
            manifest.close(folder.existing() if folder.remote is None else ())
        for upload in uploads:
            upload.close()
    return summary


def _open_manifest(run: Run, folder: Folder, num_used: int) -> Manifest:
    if not run.overwrite:
        check_foreign(folder)
    manifest = Manifest(
        folder.path,
        _shared_settings(run, folder, num_used),
        overwrite=run.overwrite,
        allow_mixed=run.allow_mixed,
        private=run.private_manifest,
        salt=folder.salt,
        shown=folder.shown if folder.remote is not None else None,
    )
    try:
        manifest.check_sources(folder.utterances)
        if manifest.continues and folder.level != UTTERANCE and run.settings.seed is None:
            raise OutputError(
                f"{folder.path}: its utterances share draws that were made without a seed and were not recorded, so "
                "this run cannot continue it; --overwrite, or start with --seed"
            )
    except BaseException:
        manifest.close(folder.existing() if folder.remote is None else ())
        raise
    return manifest


def _check_unshared(folder: Folder, *, all_entries: bool) -> None:
    """Refuse draws that all shards share if there is no seed: each shard would draw its own."""
    if folder.level == UTTERANCE and all_entries:
        return
    what = "a random subset of the bank" if folder.level == UTTERANCE else f"the draws of the level {folder.level}"
    raise ArgumentError(f"{folder.path}: all shards share {what}, so they need the same seed; give one")


def _with_secret(run: Run) -> Run:
    """The run with a secret seed, where utterances share draws and there is no seed."""
    shared = any(folder.level != UTTERANCE for folder in run.folders)
    if run.settings.seed is not None or not shared:
        return run
    return replace(run, settings=replace(run.settings, secret=secrets.randbits(256)))


def _draws_of(run: Run, bank: Path, size: int, num_used: int, manifests: Sequence[Manifest]) -> BankDraws:
    """A bank, and the random subset of its entries that frames draw from: one for all its folders."""
    if num_used == size:
        return BankDraws(bank)
    of_bank = [manifest for folder, manifest in zip(run.folders, manifests, strict=True) if run.bank_of(folder) == bank]
    return BankDraws(bank, random_subset(run.settings.seed, of_bank, size, num_used))


def _tasks(
    run: Run, manifests: Sequence[Manifest], groups: OpenGroups, summary: Summary
) -> tuple[list[Task], list[Manifest]]:
    """The tasks that are still to do and the manifest of each; the others are counted as present."""
    tasks: list[Task] = []
    task_manifests: list[Manifest] = []
    banks = run.banks
    for folder, manifest in zip(run.folders, manifests, strict=True):
        bank, outputs = banks.index(run.bank_of(folder)), folder.outputs
        group_state = groups.add(folder, manifest)
        for position, utterance in enumerate(folder.utterances):
            known = utterance.id in manifest
            grouped, part = group_state(position)
            if grouped or (known and manifest.finished(utterance.id, outputs.suffix, outputs.size_of)):
                summary.present += 1
                summary.folders[outputs.folder].present += 1
            else:
                tasks.append(Task(len(tasks), utterance, outputs.folder, outputs.suffix, bank=bank, part=part))
                task_manifests.append(manifest)
                groups.expect(folder, position, tasks[-1].index)
        outputs.forget()
    for manifest in manifests:
        manifest.forget()
    return tasks, task_manifests


def _work(
    run: Run,
    banks: Sequence[BankDraws],
    tasks: list[Task],
    task_manifests: list[Manifest],
    groups: OpenGroups,
    summary: Summary,
    stopped: Callable[[], bool],
    begun: Callable[[Collection[Path]], None],
    uploads: Sequence[RemoteManifest],
) -> Generator[Status, None, None]:
    """Run tasks, record each outcome in its folder's manifest and count it."""
    if not tasks:
        return
    begin = time.perf_counter()
    told = tuple(replace(each, path=run.for_workers(path)) for each, path in zip(banks, run.banks, strict=True))
    remote = {folder.outputs.folder: folder.outputs.remote for folder in run.folders}
    config = WorkerConfig(
        run.for_workers(run.model),
        told,
        CPU,
        run.options,
        1,
        run.settings,
        run.factory,
        written_to={folder: address for folder, address in remote.items() if address is not None},
    )
    scheduler = _scheduler(run, config, len(tasks))
    batched = run.batch_s > 0
    info = read_model_info(run.model)
    admitted = False
    folders = {task.folder for task in tasks}
    used_manifests = {manifest: banks[task.bank] for manifest, task in zip(task_manifests, tasks, strict=True)}

    def admit(ran: dict[str, object]) -> None:
        """Check that the outputs of a worker that is ready may stand beside the others, and record what it runs."""
        nonlocal admitted
        for manifest in used_manifests:
            manifest.check_ran({**ran, "batched": batched})
        if not admitted:
            begun(folders)
            admitted = True
        for manifest, bank in used_manifests.items():
            manifest.begin({**ran, "batched": batched}, bank.entries if run.settings.record_draws else None)
        for upload in uploads:  # before the first output, so that another machine knows whose outputs are there
            upload.finish()

    scheduler.admit = admit
    remaining_s = 0.0
    planned_at: float | None = None
    started_at: float | None = None
    padding = None
    if batched and CPU not in run.devices and run.options.tuning.buckets is None:
        padding = Padding(info, whole_steps(info.whole_frames(run.options.max_window_s)))
    # Headers are read while the workers load the models.
    with (
        planned_batches(tasks, run.batch_s, stopped, padding) as plan,
        closing(scheduler.run(plan, stopped)) as outcomes,
    ):
        for outcome in outcomes:
            if planned_at is None and plan.done():
                planned_at, remaining_s = time.perf_counter(), sum(task.audio_s for task in tasks)
            if started_at is None and planned_at is not None:
                ready = [worker.ready_at for worker in scheduler.workers if worker.ready_at is not None]
                started_at = max(planned_at, min(ready)) if ready else None
            failure = None
            if outcome is None:  # all that has come is recorded
                for manifest in used_manifests:
                    manifest.flush()
            else:
                task = tasks[outcome.index]
                remaining_s -= task.audio_s
                record = _record(task, outcome)
                if outcome.error is not None and run.on_failure == COPY_SILENCE:
                    write_silence(task, config.place_of(task), info, pad=run.settings.pad)
                    record["silence"] = True
                    summary.count_silence(task)
                task_manifests[outcome.index].append(task.utterance, record, {**outcome.ran, "batched": batched})
                failure = summary.count(task, outcome)
                if outcome.error is None or run.on_failure == COPY_SILENCE:
                    groups.written(task.index)
                if outcome.peak > LOUD_PEAK and summary.loud == 1:
                    scheduler.notes.append(
                        f"{task.utterance.id}: peaks at {outcome.peak:.3g}, samples are expected in [-1, 1]; is its "
                        "scale right? Further such recordings are counted in the summary"
                    )
            now = time.perf_counter()
            summary.wall_s, summary.start_up_s = now - begin, (started_at or now) - begin
            summary.replaced_workers, summary.lost_workers = scheduler.replaced, scheduler.lost
            elapsed_s = 0.0 if started_at is None else now - started_at
            summary.chosen, notes, scheduler.notes = scheduler.chosen, tuple(scheduler.notes), []
            retrying = len(scheduler.retrying)
            yield Status(summary, max(0.0, remaining_s), elapsed_s, scheduler.workers, failure, notes, retrying)
    summary.interrupted = stopped() and summary.written + len(summary.failed) < len(tasks)


def _scheduler(run: Run, config: WorkerConfig, num_tasks: int) -> Scheduler:
    """Gives the run's batches to processes of this machine, or to the cluster's workers."""
    if run.cluster is None:
        return Scheduler(worker_configs(config, run.devices, run.num_proc)[:num_tasks], run.timeout_s)
    configs = run.cluster.configs(config, run.devices, run.num_proc)[:num_tasks]
    # A copy of an utterance has the same draws only if there is a seed, and recorded draws must be the output's.
    copies = run.settings.draw_seed is not None or not run.settings.record_draws
    return Scheduler(configs, run.timeout_s, run.cluster.pool, least=run.least, copies=copies)


def _record(task: Task, outcome: Outcome) -> dict[str, Any]:
    """The line of the manifest about an outcome."""
    if outcome.error is not None:
        return {"error": outcome.error}
    record: dict[str, Any] = {
        "file": task.utterance.id + task.suffix,
        "bytes": outcome.size_bytes,
        "seconds": round(outcome.audio_s, 4),
        "frames": outcome.frames,
    }
    if outcome.bank_ids is not None:
        record["bank_ids"] = outcome.bank_ids
    return record


def _shared_settings(run: Run, folder: Folder, num_used: int) -> dict[str, object]:
    """The settings that all outputs of a folder share."""
    return {
        "model": identity(run.model / MODEL_FILE),
        "bank": identity(run.bank_of(folder) / BANK_FILE),
        "mode": run.settings.mode,
        "stride": run.settings.stride,
        "level": folder.level,
        **({} if folder.shard is None else {"shard": [folder.shard.number, folder.shard.count]}),
        "seed": run.settings.seed,
        "kmeans_num": num_used,
        "format": run.settings.format,
        "pad": run.settings.pad,
        "max_window_s": run.options.max_window_s,
    }


def check_fit(model: Path, bank: Path) -> int:
    """Check that a model and a bank can be read and fit each other; returns how many entries the bank has.

    Raises:
        ArtifactError: They cannot, or do not.
    """
    info, opened = read_model_info(model), open_bank(bank)
    check_dimensions(bank, opened, str(model), info)
    return len(opened.info.names)


def _check_kinds(run: Run) -> None:
    """Refuse devices of several kinds before any of them works: their results differ in the last bit."""
    kinds = [device_kind(device) for device in run.devices]
    if len(set(kinds)) > 1 and not run.allow_mixed:
        pairs = zip(run.devices, kinds, strict=True)
        named = ", ".join(device if kind == device else f"{device} ({kind})" for device, kind in pairs)
        raise DeviceError(
            f"devices {named} do not compute the same to the last bit; choose of one kind, or --allow-mixed"
        )
