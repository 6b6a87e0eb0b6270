"""Speech → a bank: features by the engine, a k-means model for each speaker or group of speakers."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mkc_fast.engine.artifacts import MODEL_FILE, BankInfo, TrainedEntry, identity
from mkc_fast.engine.atomic_files import atomic_file
from mkc_fast.engine.audio.read import Recording, read_utterance
from mkc_fast.engine.corpus.plan import lengths_s
from mkc_fast.engine.datasets.lines import check_name
from mkc_fast.engine.devices import cores, parse_device
from mkc_fast.engine.draws import check_seed
from mkc_fast.engine.encoder import Encoder
from mkc_fast.errors import ListError, MkcError, OutputError
from mkc_fast.export.bank import build_bank
from mkc_fast.export.checkpoints.joblib_writer import write_kmeans
from mkc_fast.extras import required
from mkc_fast.kernels.cuda.device import import_cupy, open_device
from mkc_fast.names import CPU
from mkc_fast.text import one_line, printable
from mkc_fast.train.groups import ALL, REFUSE, SPEAKER, Group, grouped, speakers_a_model, with_enough
from mkc_fast.train.kmeans import FitJob, Fitted, KMeansSettings
from mkc_fast.train.lloyd import fit_together, start_of
from mkc_fast.train.speech import NEEDED, UNUSED, read_speech
from mkc_fast.train.work_folder import work_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from os import PathLike

    from numpy.typing import NDArray

    from mkc_fast.engine.options import EngineOptions

MODELS_LIST = "kmeans.scp"
# Of a recording, kept in memory: longer ones are read window by window.
_MOST_IN_MEMORY_S = 600
# Features and models that a GPU fits at once: enough to keep it busy, and little of its memory.
_TOGETHER_BYTES, _MOST_TOGETHER = 4 << 30, 16


@dataclass(frozen=True)
class TrainedBank:
    """What was trained.

    Attributes:
        info: Of the bank.
        failed: Recordings that could not be read, and why; nothing was trained on them.
        empty: Clusters of each model that are nearest to none of its frames.
        kept: Models that an earlier, interrupted run had trained.
    """

    info: BankInfo
    failed: dict[str, str]
    empty: list[int]
    kept: int


@dataclass(frozen=True)
class Progress:
    """How far a training is.

    Attributes:
        done: Models trained.
        models: In all.
        frames_done: Frames encoded or kept from an earlier run.
        frames: In all, as far as headers tell.
    """

    done: int
    models: int
    frames_done: int
    frames: int


def train_bank(
    model: str | PathLike[str],
    out: str | PathLike[str],
    *,
    audio_list: str | PathLike[str] | None = None,
    data_dirs: Sequence[str | PathLike[str]] = (),
    utt2spk: str | PathLike[str] | None = None,
    per: str = SPEAKER,
    settings: KMeansSettings | None = None,
    few: str = REFUSE,
    min_frames: int | None = None,
    save_kmeans: str | PathLike[str] | None = None,
    seed: int | None = None,
    jobs: int | None = None,
    device: str = CPU,
    fit_device: str | None = None,
    options: EngineOptions | None = None,
    overwrite: bool = False,
    allow_commands: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> TrainedBank:
    """Train a k-means model for each speaker, or group of speakers, and make a bank of them.

    Features come from the exported model, so they are those that ``infer`` looks up. They lie on disk, beside ``out``,
    as long as their model is fitted: 4 · D bytes a frame, 50 frames a second. Each finished model is kept there, and
    the same call continues a training that was stopped. With a seed, a model depends on the seed, its name and its
    speech, not on the others or the number of jobs.

    Args:
        model: Directory made by ``export_model``.
        out: Directory of the bank.
        audio_list: List of ``path`` or ``utt-id path`` a line.
        data_dirs: Kaldi data directories, instead of it; each has its own ``utt2spk``.
        utt2spk: List of ``utt-id speaker`` a line, for ``audio_list``. Default: the file ``utt2spk`` beside it.
        per: ``speaker``: a model for each; ``group:N``: a model for each N speakers, in the order of the list; ``all``:
            one model.
        settings: Of the fits. Default: those of the published models.
        few: What becomes of a model with fewer than ``min_frames`` frames: ``refuse`` or ``merge``.
        min_frames: Default: as many as clusters, the least with which k-means works.
        save_kmeans: Folder for the models as files that the research code loads, with a list ``kmeans.scp``.
        seed: Makes the fits repeatable. Default: the operating system's entropy.
        jobs: Models that are fitted at once on a CPU; with a GPU, whose starts are. Default: one for each two cores.
        device: Of the encoder, ``cpu`` or ``cuda:<number>``.
        fit_device: Of the fits. On ``cuda:<number>`` several models are fitted at once, by Lloyd's algorithm instead of
            mini-batches. Default: that of the encoder.
        options: Of the encoder.
        overwrite: Replace ``out`` if it holds a bank and nothing else, and start over.
        allow_commands: Run the commands (lines that end in ``|``) of a list.
        progress: Called with a ``Progress`` after every recording and model.

    Raises:
        ArgumentError: Not exactly one form of input is given, or a value is not possible.
        ListError: A list is unreadable or contradictory, or a speaker has too few frames and ``few`` refuses that.
        ArtifactError: The model is missing or damaged.
        DeviceError: A device is not here, or its memory does not hold the features of a model.
        OutputError: ``out`` cannot be written, or a training with other settings was interrupted there.
        MkcError: scikit-learn is not installed, or a fit failed.
    """
    with required("training a bank", "sklearn", "joblib", "threadpoolctl"):
        import sklearn  # noqa: F401 - the fits need it, in processes of their own
    settings = settings or KMeansSettings()
    check_seed(seed)
    speakers_a_model(per)
    out_path = Path(out)
    if out_path.is_dir() and any(out_path.iterdir()) and not overwrite:
        raise OutputError(f"{out_path}: already there; --overwrite replaces it")
    utterances, speakers = read_speech(
        audio_list,
        data_dirs,
        utt2spk,
        speakers=UNUSED if per == ALL else NEEDED,
        allow_commands=allow_commands,
        otherwise=f", except with --per {ALL}",
    )
    gpu = parse_device(fit_device or device)
    if gpu is not None:
        open_device(import_cupy(), gpu)  # refuses before anything is encoded
    encoder = Encoder.load(model, device, options=options)
    frames = [encoder.info.frames(int(length * encoder.info.sample_rate)) for length in lengths_s(utterances)]
    least = settings.clusters if min_frames is None else max(min_frames, settings.clusters)
    groups = with_enough(grouped(utterances, frames, speakers, per), least, few)
    for group in groups:
        check_name(group.name, "a speaker")
    described = _described(Path(model), groups, settings, seed) | ({} if gpu is None else {"fits": "lloyd"})
    # Fits run in a folder of their own.
    work = out_path.absolute().with_name(f"{out_path.name}.training")
    with work_folder(work, described, "models of an interrupted training", overwrite=overwrite):
        training = _Training(work, groups, encoder, settings, seed, least, jobs, gpu, progress or (lambda _: None))
        training.run()
        models = work / MODELS_LIST
        models.write_text("".join(f"{group.name} {training.model(i)}\n" for i, group in enumerate(groups)))
        facts = [training.facts(index) for index in range(len(groups))]
        entries = [TrainedEntry(each["utterances"], each["frames"], each["inertia"], each["seconds"]) for each in facts]
        if save_kmeans is not None:
            _save(Path(save_kmeans), [(group.name, training.model(i)) for i, group in enumerate(groups)])
        info = build_bank(models, out_path, training=entries, overwrite=overwrite)
    shutil.rmtree(work, ignore_errors=True)
    return TrainedBank(info, training.failed, [int(each["empty"]) for each in facts], training.kept)


@dataclass(frozen=True)
class _Encoded:
    """A group whose model a GPU will fit.

    Attributes:
        index: Of the group.
        group: Who speaks.
        features: (T, D) float32, mapped.
        failed: Recordings that could not be read.
        start: (K, D) float32, being drawn.
    """

    index: int
    group: Group
    features: NDArray[np.float32]
    failed: dict[str, str]
    start: Future[NDArray[np.float32]]


class _Training:
    """Encodes one group after the other, while those before it are fitted."""

    def __init__(
        self,
        work: Path,
        groups: list[Group],
        encoder: Encoder,
        settings: KMeansSettings,
        seed: int | None,
        least: int,
        jobs: int | None,
        gpu: int | None,
        progress: Callable[[Progress], None],
    ) -> None:
        self.failed: dict[str, str] = {}
        self.kept = 0
        self._work, self._groups, self._encoder = work, groups, encoder
        self._settings, self._seed, self._least = settings, seed, least
        self._jobs = jobs or max(1, cores() // 2)
        self._threads = max(1, cores() // self._jobs)
        self._gpu, self._progress = gpu, progress
        self._done = self._frames_done = 0

    def model(self, index: int) -> Path:
        """The file of a group's model."""
        return self._work / f"{index:06d}.pt"

    def facts(self, index: int) -> dict[str, Any]:
        """What is known of a trained model."""
        found: dict[str, Any] = json.loads(self._facts_file(index).read_text())
        return found

    def run(self) -> None:
        """Train what is not there yet."""
        if self._gpu is None:
            self._run_processes()
        else:
            self._run_together(self._gpu)

    def _missing(self) -> Iterator[tuple[int, Group]]:
        """The groups whose models are not there yet."""
        for index, group in enumerate(self._groups):
            if self._facts_file(index).is_file() and self.model(index).is_file():
                self.failed.update(self.facts(index)["failed"])
                self.kept += 1
                self._advance(models=1, frames=group.frames)
            else:
                yield index, group

    def _run_together(self, gpu: int) -> None:
        """Fit several models at once on a GPU. The starts of some are drawn while the next are encoded."""
        waiting: list[_Encoded] = []
        with ThreadPoolExecutor(self._jobs, "start") as pool:
            try:
                for index, group in self._missing():
                    frames, failed = self._encode(index, group)
                    features = np.memmap(
                        self._features_file(index), np.float32, "r", shape=(frames, self._encoder.info.dim)
                    )
                    size = sum(each.features.nbytes for each in waiting) + features.nbytes
                    if waiting and (size > _TOGETHER_BYTES or len(waiting) == _MOST_TOGETHER):
                        self._fit_together(waiting, gpu)
                        waiting = []
                    start = pool.submit(start_of, features, self._settings, self._seed_of(group))
                    waiting.append(_Encoded(index, group, features, failed, start))
                if waiting:
                    self._fit_together(waiting, gpu)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _fit_together(self, encoded: Sequence[_Encoded], gpu: int) -> None:
        starts = [each.start.result() for each in encoded]
        begin = time.perf_counter()
        fits = fit_together([each.features for each in encoded], starts, self._settings, gpu)
        seconds = (time.perf_counter() - begin) / len(encoded)
        for each, made in zip(encoded, fits, strict=True):
            with atomic_file(self.model(each.index)) as temporary:
                write_kmeans(temporary, made.centroids, made.counts)
            fitted = Fitted(made.inertia, made.empty, seconds)
            self._record(each.index, each.group, len(each.features), each.failed, fitted)
            self._advance(models=1)

    def _run_processes(self) -> None:
        processes: set[subprocess.Popen[str]] = set()
        fitting: set[Future[None]] = set()
        with ThreadPoolExecutor(self._jobs, "fit") as fits:
            try:
                for index, group in self._missing():
                    # As many lie on disk as are fitted, and the one that is encoded.
                    while len(fitting) >= self._jobs:
                        fitting = self._collect(fitting)
                    frames, failed = self._encode(index, group)
                    fitting.add(fits.submit(self._fit, index, group, frames, failed, processes))
                while fitting:
                    fitting = self._collect(fitting)
            except BaseException:
                for process in list(processes):
                    process.kill()
                raise

    def _collect(self, fitting: set[Future[None]]) -> set[Future[None]]:
        done, left = wait(fitting, return_when=FIRST_COMPLETED)
        for future in done:
            future.result()
            self._advance(models=1)
        return left

    def _advance(self, *, models: int = 0, frames: int = 0) -> None:
        self._done += models
        self._frames_done += frames
        total = sum(group.frames for group in self._groups)
        self._progress(Progress(self._done, len(self._groups), min(self._frames_done, total), total))

    def _encode(self, index: int, group: Group) -> tuple[int, dict[str, str]]:
        """Write the features of a group; how many frames they are, and which recordings could not be read."""
        info, frames, failed = self._encoder.info, 0, {}
        with self._features_file(index).open("wb") as file:
            for utterance in group.utterances:
                before = frames
                try:
                    most = _MOST_IN_MEMORY_S * info.sample_rate
                    waveform = read_utterance(utterance, info.sample_rate, info.min_samples, most)
                    samples = waveform.forward() if isinstance(waveform, Recording) else waveform
                    for _, part in self._encoder.parts(samples):
                        file.write(part.tobytes())
                        frames += len(part)
                except OSError as error:
                    raise OutputError(f"{file.name}: cannot be written ({error.strerror})") from None
                except (MkcError, ValueError) as error:
                    # What was written of it stays out.
                    failed[utterance.id] = one_line(str(error), 200)
                    frames = before
                    file.seek(frames * info.dim * 4)
                    file.truncate()
                self._advance(frames=frames - before)
        self.failed.update(failed)
        if frames < self._least:
            raise ListError(
                f"{printable(group.name)}: {frames} frames could be read, {self._least} are needed"
                + (f"; the first that could not: {next(iter(failed.values()))}" if failed else "")
            )
        return frames, failed

    def _fit(
        self, index: int, group: Group, frames: int, failed: dict[str, str], processes: set[subprocess.Popen[str]]
    ) -> None:
        features, dim = self._features_file(index), self._encoder.info.dim
        job = FitJob(
            str(features), frames, dim, str(self.model(index)), self._settings, self._seed_of(group), self._threads
        )
        command = [sys.executable, "-m", "mkc_fast.train.kmeans"]
        # From its own folder: a clone's folder mkc_fast is only a part of the package.
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=self._work
        )
        processes.add(process)
        try:
            said, errors = process.communicate(json.dumps(dataclasses.asdict(job)))
        finally:
            processes.discard(process)
        if process.returncode:
            last = (errors.strip().splitlines() or ["it said nothing"])[-1]
            raise MkcError(f"{printable(group.name)}: k-means failed (exit code {process.returncode}): {last[:200]}")
        self._record(index, group, frames, failed, Fitted(**json.loads(said)))

    def _record(self, index: int, group: Group, frames: int, failed: dict[str, str], fitted: Fitted) -> None:
        """Write what is known of a model, and remove its features."""
        facts = {
            "utterances": len(group.utterances) - len(failed),
            "frames": frames,
            "failed": failed,
            **dataclasses.asdict(fitted),
        }
        with atomic_file(self._facts_file(index)) as temporary:
            temporary.write_text(json.dumps(facts))
        self._features_file(index).unlink()

    def _seed_of(self, group: Group) -> int | None:
        """The seed of one model."""
        if self._seed is None:
            return None
        return int.from_bytes(hashlib.sha256(f"{self._seed}\0{group.name}".encode()).digest()[:4], "little")

    def _features_file(self, index: int) -> Path:
        return self._work / f"{index:06d}.features"

    def _facts_file(self, index: int) -> Path:
        return self._work / f"{index:06d}.json"


def _described(model: Path, groups: Sequence[Group], settings: KMeansSettings, seed: int | None) -> dict[str, Any]:
    """What models that are kept depend on."""
    digest = hashlib.sha256()
    for group in groups:
        digest.update(f"{group.name}\0".encode())
        for utterance in group.utterances:
            file = utterance.path.absolute()
            digest.update(f"{utterance.id}\0{file}\0{utterance.begin_s}\0{utterance.end_s}\n".encode())
    return {
        "model": identity(model / MODEL_FILE),
        "speech": digest.hexdigest(),
        "kmeans": dataclasses.asdict(settings),
        "seed": seed,
    }


def _save(folder: Path, models: Sequence[tuple[str, Path]]) -> None:
    """Copy models to files by their names, with a list of them."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, path in models:
            with atomic_file(folder / f"{name}.pt") as temporary:
                shutil.copyfile(path, temporary)
        with atomic_file(folder / MODELS_LIST) as temporary:
            temporary.write_text("".join(f"{name} {name}.pt\n" for name, _ in models))
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror})") from None


__all__ = ["Progress", "TrainedBank", "train_bank"]
