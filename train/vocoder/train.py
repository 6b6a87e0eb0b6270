"""Trains a vocoder: from speech and its features to a checkpoint that ``export`` and ``train conformer`` take."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mkc_fast.engine.anonymizer import Anonymizer
from mkc_fast.engine.artifacts import BANK_FILE, MODEL_FILE, identity, read_model_info
from mkc_fast.engine.atomic_files import sha256_of
from mkc_fast.engine.draws import check_seed
from mkc_fast.engine.encoder import Encoder
from mkc_fast.errors import ArgumentError, ListError, StageError
from mkc_fast.export.checkpoints.configs import HIFIGAN_V1, HifiGanConfig
from mkc_fast.names import CPU
from mkc_fast.train.conformer.checkpoint import hifi_config, load_vocoder
from mkc_fast.train.conformer.sources import CachedFeatures, EncodedSpeech, Source
from mkc_fast.train.features.cache import FeatureCache, encoder_facts
from mkc_fast.train.loop.log import StepLog
from mkc_fast.train.loop.prefetch import prefetched
from mkc_fast.train.loop.processes import Processes, own_device
from mkc_fast.train.loop.sampler import Place, Sampler, StepPlan, number_of
from mkc_fast.train.loop.start import folder_beside, shared_seed, started, use_threads
from mkc_fast.train.loop.state import STATE_FILE, load_state, save_torch
from mkc_fast.train.speech import UNUSED, read_speech
from mkc_fast.train.vocoder.generator import Generator
from mkc_fast.train.vocoder.networks import Networks
from mkc_fast.train.vocoder.segments import SegmentReader, Segments
from mkc_fast.train.vocoder.settings import VocoderSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from os import PathLike

    from mkc_fast.engine.artifacts import ModelInfo
    from mkc_fast.engine.options import EngineOptions
    from mkc_fast.export.checkpoints.published import VoiceCheckpoint

LOG_FILE = "log.jsonl"
_STATE = ("seed", "step", "epoch", "batch", *Networks.STATES)


@dataclass(frozen=True)
class TrainedVocoder:
    """What was trained.

    Attributes:
        steps: That were done.
        mel: Mean absolute difference of log mel spectrograms in the last step.
    """

    steps: int
    mel: float


def train_vocoder(
    model: str | PathLike[str],
    out: str | PathLike[str],
    *,
    steps: int,
    audio_list: str | PathLike[str] | None = None,
    data_dirs: Sequence[str | PathLike[str]] = (),
    features: str | PathLike[str] | None = None,
    bank: str | PathLike[str] | None = None,
    init: str | PathLike[str] | None = None,
    settings: VocoderSettings | None = None,
    sizes: HifiGanConfig | None = None,
    seed: int | None = None,
    device: str = CPU,
    threads: int | None = None,
    options: EngineOptions | None = None,
    tensorboard: str | PathLike[str] | None = None,
    overwrite: bool = False,
    allow_commands: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> TrainedVocoder:
    """Train HiFi-GAN's generator, with its discriminators and losses, to make speech of its features.

    State and log lie in the folder ``<out>.training``, and the same call continues, as in ``train_conformer``.

    Args:
        model: Directory made by ``export_model``; its encoder gives the features and, with ``bank``, its conformer
            restores them.
        out: The checkpoint to write: a vocoder alone.
        steps: Of both optimizers, in all.
        audio_list: List of ``path`` or ``utt-id path`` a line.
        data_dirs: Kaldi data directories, instead of it.
        features: A cache of features of these recordings, so that they are not encoded.
        bank: Directory of a bank: the vocoder is then trained on restored features.
        init: Checkpoint whose vocoder is trained further. The discriminators start anew.
        settings: Of the training.
        sizes: Of a new generator. Default: those published (V1), for the model's D.
        seed: Makes the training repeatable. Default: the operating system's entropy.
        device: ``cpu`` or ``cuda:<number>``.
        threads: Of PyTorch's operators on a CPU. Default: one a core.
        options: Of the encoder.
        tensorboard: Folder for TensorBoard's events.
        overwrite: Replace ``out``, and start over.
        allow_commands: Run the commands (lines that end in ``|``) of a list.
        progress: Called with steps done and steps in all, in the first process.

    Raises:
        ArgumentError: A value is not possible.
        ArtifactError: Model, bank or cache are missing, damaged, or do not fit together.
        CheckpointError: ``init`` does not fit.
        ListError: A list is unreadable, or all recordings are too short.
        AudioError: A recording cannot be read.
        DeviceError: The device is not here.
        OutputError: ``out`` cannot be written, or a training with other settings was interrupted there.
        StageError: A loss is not finite.
    """
    settings = settings or VocoderSettings()
    check_seed(seed)
    if steps < 1:
        raise ArgumentError(f"steps is {steps}; expected at least 1")
    use_threads(threads)
    out_path, model_path = Path(out), Path(model)
    work = folder_beside(out_path, overwrite=overwrite)
    info = read_model_info(model_path)
    voice = None if init is None else load_vocoder(Path(init), None, info)
    if voice is not None and sizes is not None:
        raise ArgumentError("give init, or sizes, not both")
    config = voice.hifigan if voice is not None else sizes or _published(info)
    if (config.input_dim, config.hop, config.sample_rate) != (info.dim, info.hop, info.sample_rate):
        raise ArgumentError(
            f"the vocoder takes {config.input_dim} dimensions and {config.hop} samples a frame at {config.sample_rate} "
            f"Hz; the model has {info.dim}, {info.hop} and {info.sample_rate}"
        )
    utterances, _ = read_speech(audio_list, data_dirs, None, speakers=UNUSED, allow_commands=allow_commands)
    source: Source
    if features is None:
        source = EncodedSpeech(Encoder.load(model_path, own_device(device), options=options), utterances, {})
    else:
        source = CachedFeatures(FeatureCache.open(Path(features), model_path))
    described = {
        "model": encoder_facts(info).digest if bank is None else identity(model_path / MODEL_FILE),
        "bank": None if bank is None else identity(Path(bank) / BANK_FILE),
        "init": None if init is None else sha256_of(Path(init)),
        "sizes": hifi_config(config),
        "speech": hashlib.sha256(
            "\n".join(map(repr, zip(source.ids, source.frames, strict=True))).encode()
        ).hexdigest(),
        "settings": {name: value for name, value in dataclasses.asdict(settings).items() if name != "save_every"},
        "seed": seed,
    }
    with contextlib.ExitStack() as held:
        anonymizer = (
            None if bank is None else held.enter_context(Anonymizer.load(model_path, bank, device=own_device(device)))
        )
        processes = held.enter_context(started(device, work, described, overwrite=overwrite))
        before = load_state(work / STATE_FILE, _STATE)
        text = shared_seed(processes, seed, before)
        reader = SegmentReader(info, source, utterances, anonymizer, text)
        training = _Training(work, source, reader, info, config, voice, settings, text, processes, before)
        log = held.enter_context(contextlib.closing(training.log(tensorboard))) if processes.first else None
        mel = training.run(steps, log, progress or (lambda *_: None))
        if processes.first:
            content = {"generator": training.generator.published(), "hifi_config": hifi_config(config)}
            save_torch(out_path, {**content, "steps": training.step})
    return TrainedVocoder(training.step, mel)


def _published(info: ModelInfo) -> HifiGanConfig:
    v1 = HIFIGAN_V1
    return HifiGanConfig(
        resblock=v1["resblock"],
        upsample_rates=tuple(v1["upsample_rates"]),
        upsample_kernel_sizes=tuple(v1["upsample_kernel_sizes"]),
        upsample_initial_channel=v1["upsample_initial_channel"],
        resblock_kernel_sizes=tuple(v1["resblock_kernel_sizes"]),
        resblock_dilation_sizes=tuple(map(tuple, v1["resblock_dilation_sizes"])),
        input_dim=info.dim,
        hidden_dim=v1["hifi_dim"],
        sample_rate=v1["sampling_rate"],
    )


class _Training:
    """A training, from where its state says that it is."""

    def __init__(
        self,
        work: Path,
        source: Source,
        reader: SegmentReader,
        info: ModelInfo,
        config: HifiGanConfig,
        voice: VoiceCheckpoint | None,
        settings: VocoderSettings,
        seed: str,
        processes: Processes,
        before: dict[str, Any] | None,
    ) -> None:
        self._work, self._source, self._reader, self._settings = work, source, reader, settings
        self._seed, self._processes = seed, processes
        size = settings.segment_frames
        chosen = [index for index in reader.indices if source.frames[index] >= size]
        if not chosen:
            raise ListError(f"all recordings are shorter than {size} frames")
        self._sampler = Sampler(source.frames, chosen, size * settings.batch, size, seed)
        torch.manual_seed(number_of(seed, "weights"))
        generator = Generator(config)
        if voice is not None:
            generator.take(Path("checkpoint"), voice.hifigan_weights)
        self._networks = Networks(generator, settings, info.sample_rate, info.hop, processes.device)
        self.generator = self._networks.generator
        self.step, self._place, self._last_mel = 0, Place(), math.nan
        if before is not None:
            self._networks.resume(before)
            self.step, self._place = int(before["step"]), Place(int(before["epoch"]), int(before["batch"]))
            self._last_mel = float(before.get("mel", math.nan))

    def log(self, tensorboard: str | PathLike[str] | None) -> StepLog:
        """The log, from the present step on."""
        return StepLog(self._work / LOG_FILE, self.step, None if tensorboard is None else Path(tensorboard))

    def run(self, steps: int, log: StepLog | None, progress: Callable[[int, int], None]) -> float:
        """Train up to a step; the last difference of mel spectrograms."""

        def make(planned: tuple[int, int, StepPlan]) -> tuple[int, int, StepPlan, Segments]:
            step, epoch, plan = planned
            return step, epoch, plan, self._reader.batch(plan.batches[self._processes.rank])

        for step, epoch, plan, segments in prefetched(make, self._plans(steps), self._source.threads):
            values = self._take(step, epoch, segments)
            self.step, self._place, self._last_mel = step, plan.after, values["mel"]
            if log is not None:
                log.add(step, values)
            if self._processes.first and (step == steps or step % self._settings.save_every == 0):
                self._save()
            if self._processes.first:
                progress(step, steps)
        return self._last_mel

    def _plans(self, steps: int) -> Iterator[tuple[int, int, StepPlan]]:
        place = self._place
        for step in range(self.step + 1, steps + 1):
            plan = self._sampler.step(place, self._processes.count)
            yield step, place.epoch, plan
            place = plan.after

    def _take(self, step: int, epoch: int, segments: Segments) -> dict[str, float]:
        """One step of the discriminators, and one of the generator."""
        device = self._processes.device
        features, real = segments.features.to(device), segments.waveform.to(device)
        rate = self._settings.learning_rate * self._settings.decay**epoch
        losses = self._networks.take(features, real, step, rate, average=self._processes.average_gradients)
        sums = self._processes.summed(torch.stack(list(losses.values())).detach()) / self._processes.count
        values = dict(zip(losses, sums.tolist(), strict=True))
        if not all(map(math.isfinite, values.values())):
            raise StageError(f"step {step}: a loss is not finite; a lower learning rate may help")
        return values | {"rate": rate}

    def _save(self) -> None:
        place = {"seed": self._seed, "step": self.step, "epoch": self._place.epoch, "batch": self._place.batch}
        save_torch(self._work / STATE_FILE, {**place, **self._networks.states(), "mel": self._last_mel})
