"""Trains a conformer: from speech, a bank and a vocoder to a checkpoint that ``export`` takes."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mkc_fast.engine.artifacts import BANK_FILE, Bank, check_dimensions, identity, open_bank, read_model_info
from mkc_fast.engine.atomic_files import sha256_of
from mkc_fast.engine.draws import check_seed
from mkc_fast.engine.encoder import Encoder
from mkc_fast.errors import ArgumentError, CheckpointError, ListError, StageError
from mkc_fast.export.checkpoints.configs import ConformerConfig
from mkc_fast.kernels import make_lookup
from mkc_fast.names import CPU
from mkc_fast.text import printable
from mkc_fast.train.conformer.batches import Batch, Quantizer, make_batch
from mkc_fast.train.conformer.checkpoint import load_conformer, load_vocoder, write_voice
from mkc_fast.train.conformer.loss import Losses, restoration_losses
from mkc_fast.train.conformer.module import Conformer
from mkc_fast.train.conformer.settings import ConformerSettings
from mkc_fast.train.conformer.sources import CachedFeatures, EncodedSpeech, Source, held_out_speakers
from mkc_fast.train.features.cache import FeatureCache, encoder_facts
from mkc_fast.train.loop.log import StepLog
from mkc_fast.train.loop.prefetch import prefetched
from mkc_fast.train.loop.processes import Processes, own_device
from mkc_fast.train.loop.sampler import Piece, Place, Sampler, StepPlan, batched, number_of
from mkc_fast.train.loop.start import folder_beside, shared_seed, started, use_threads
from mkc_fast.train.loop.state import STATE_FILE, load_state, save_torch
from mkc_fast.train.speech import IF_THERE, NEEDED, read_speech

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from os import PathLike

    from mkc_fast.engine.options import EngineOptions
    from mkc_fast.export.checkpoints.published import VoiceCheckpoint

LOG_FILE = "log.jsonl"
_BEST_FILE = "best.pt"
_BEGIN_BATCHES = 4  # whose features say where the output begins
_STATE = ("seed", "step", "epoch", "batch", "model", "optimizer", "best_loss", "best_step", "looks", "ended")


@dataclass(frozen=True)
class Progress:
    """How far a training is.

    Attributes:
        step: Steps done.
        steps: In all.
        loss: Of the last step, a frame.
    """

    step: int
    steps: int
    loss: float


@dataclass(frozen=True)
class Restoration:
    """What a conformer does to held-out speech, as means over its frames and dimensions.

    Attributes:
        loss: ``restored`` plus ``unlike``.
        restored: Squared error of restored features.
        quantized: Squared error of the centroids, the conformer's input.
        unlike: 1 - SSIM of restored and original features.
    """

    loss: float
    restored: float
    quantized: float
    unlike: float


@dataclass(frozen=True)
class TrainedConformer:
    """What was trained.

    Attributes:
        step: Of the weights that were written.
        steps: That were done.
        held_out: Speakers that were held out.
        held_out_entries: Entries of the bank that were held out with them.
        restoration: On the held-out speakers, of the weights that were written; None where none were held out.
    """

    step: int
    steps: int
    held_out: list[str]
    held_out_entries: list[str]
    restoration: Restoration | None


def train_conformer(
    model: str | PathLike[str],
    bank: str | PathLike[str],
    vocoder: str | PathLike[str],
    out: str | PathLike[str],
    *,
    steps: int,
    features: str | PathLike[str] | None = None,
    audio_list: str | PathLike[str] | None = None,
    data_dirs: Sequence[str | PathLike[str]] = (),
    utt2spk: str | PathLike[str] | None = None,
    valid: str | None = None,
    init: str | PathLike[str] | None = None,
    settings: ConformerSettings | None = None,
    hifi_config: str | PathLike[str] | None = None,
    seed: int | None = None,
    device: str = CPU,
    threads: int | None = None,
    options: EngineOptions | None = None,
    tensorboard: str | PathLike[str] | None = None,
    overwrite: bool = False,
    allow_commands: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> TrainedConformer:
    """Train a conformer that restores centroids of any entry of a bank to features.

    State and log lie in the folder ``<out>.training``. The same call continues a training that was stopped, with the
    same steps as if it had not been: on a CPU with equal bits, where the number of threads is the same. With more
    ``steps`` it goes on with one that is finished. ``torchrun`` starts it on several GPUs.

    Args:
        model: Directory made by ``export_model``; its encoder gives the features.
        bank: Directory of a bank. Entries that are named like held-out speakers are held out, too.
        vocoder: Checkpoint whose vocoder is written beside the conformer.
        out: The checkpoint to write, in the published format.
        steps: Of the optimizer, in all.
        features: A cache of features, instead of speech.
        audio_list: List of ``path`` or ``utt-id path`` a line.
        data_dirs: Kaldi data directories, instead of it.
        utt2spk: List of ``utt-id speaker`` a line, for ``audio_list``. Default: the file ``utt2spk`` beside it.
        valid: Speakers that are held out: a share (``"0.05"``) or the path of a list. Default: none, and no early stop.
        init: Checkpoint whose conformer is trained further. Its sizes are taken, whatever ``settings`` has.
        settings: Sizes and training. Default: the published sizes.
        hifi_config: JSON file of the vocoder's sizes, if the checkpoint lacks them.
        seed: Makes the training repeatable. Default: the operating system's entropy.
        device: Of the training and of the encoder: ``cpu`` or ``cuda:<number>``.
        threads: Of PyTorch's operators on a CPU, and of the look-up. Default: one a core. Small networks are fastest
            with one.
        options: Of the encoder.
        tensorboard: Folder for TensorBoard's events.
        overwrite: Replace ``out``, and start over.
        allow_commands: Run the commands (lines that end in ``|``) of a list.
        progress: Called after every step, in the first process.

    Raises:
        ArgumentError: A value is not possible.
        ArtifactError: Model, bank or cache are missing, damaged, or do not fit together.
        CheckpointError: The vocoder's checkpoint or ``init`` does not fit.
        ListError: A list is unreadable, or speakers that are needed are not known.
        AudioError: A recording cannot be read.
        DeviceError: The device is not here.
        OutputError: ``out`` cannot be written, or a training with other settings was interrupted there.
        StageError: The loss is not finite.
    """
    settings = settings or ConformerSettings()
    check_seed(seed)
    use_threads(threads)
    if steps < 1:
        raise ArgumentError(f"steps is {steps}; expected at least 1")
    out_path, model_path, bank_path = Path(out), Path(model), Path(bank)
    work = folder_beside(out_path, overwrite=overwrite)
    info = read_model_info(model_path)
    opened = open_bank(bank_path)
    check_dimensions(bank_path, opened, str(model_path), info)
    begun = None if init is None else load_conformer(Path(init), info)
    if begun is not None:
        sizes = dataclasses.asdict(begun.conformer)
        del sizes["dim"]
        settings = dataclasses.replace(settings, **sizes)
    if info.dim % settings.num_heads:
        raise ArgumentError(f"{settings.num_heads} heads do not divide {info.dim} dimensions")
    voice = load_vocoder(Path(vocoder), None if hifi_config is None else Path(hifi_config), info)
    source: Source
    if features is not None:
        if audio_list is not None or data_dirs:
            raise ArgumentError("give features, or speech, not both")
        cache = FeatureCache.open(Path(features), model_path)
        source = CachedFeatures(cache)
    else:
        wanted = IF_THERE if valid is None else NEEDED
        utterances, speakers = read_speech(
            audio_list, data_dirs, utt2spk, speakers=wanted, allow_commands=allow_commands
        )
        source = EncodedSpeech(Encoder.load(model, own_device(device), options=options), utterances, speakers)
    described = {
        "encoder": encoder_facts(info).digest,
        "bank": identity(bank_path / BANK_FILE),
        "vocoder": sha256_of(Path(vocoder)),
        "speech": _digest(source),
        "settings": _lasting(settings, steps),
        "seed": seed,
        "valid": valid,
    }
    if init is not None:
        described["init"] = sha256_of(Path(init))
    with started(device, work, described, overwrite=overwrite) as processes:
        training = _Training(
            work, source, opened, voice, begun, settings, steps, seed, valid, processes, threads,
            progress or (lambda _: None),
        )  # fmt: skip
        training.run(None if tensorboard is None else Path(tensorboard))
        return training.write(out_path)


def _lasting(settings: ConformerSettings, steps: int) -> dict[str, Any]:
    """What the steps depend on: not how often the state is saved, and only with a decay on how many there are."""
    lasting = dataclasses.asdict(settings)
    del lasting["save_every"]
    return lasting | ({"steps": steps} if settings.decay else {})


class _Training:
    """A training, from where its folder says that it is."""

    def __init__(
        self,
        work: Path,
        source: Source,
        bank: Bank,
        vocoder: VoiceCheckpoint,
        begun: VoiceCheckpoint | None,
        settings: ConformerSettings,
        steps: int,
        seed: int | None,
        valid: str | None,
        processes: Processes,
        threads: int | None,
        progress: Callable[[Progress], None],
    ) -> None:
        self._work, self._source, self._bank, self._vocoder = work, source, bank, vocoder
        self._settings, self._steps, self._processes, self._progress = settings, steps, processes, progress
        before = load_state(work / STATE_FILE, _STATE)
        self._seed = shared_seed(processes, seed, before)
        self._held_out = set[str]() if valid is None else held_out_speakers(valid, source, self._seed)
        self._entries, self._held_out_entries = _split(bank, self._held_out)
        self._sampler = Sampler(
            source.frames, _utterances(source, self._held_out), settings.batch_frames, settings.max_frames, self._seed
        )
        self._sizes = ConformerConfig(
            source.dim, settings.num_heads, settings.ffn_dim, settings.num_layers, settings.kernel_size
        )
        torch.manual_seed(number_of(self._seed, "weights"))
        self._module = Conformer(self._sizes, settings.dropout)
        if before is None and begun is not None:
            self._module.take(Path("checkpoint"), begun.conformer_weights)
        elif before is None:
            self._module.begin_at(self._some_features())
        self._module.to(processes.device)
        self._optimizer = torch.optim.AdamW(
            _parameter_groups(self._module, settings.weight_decay), settings.learning_rate
        )
        self._step, self._place, self._looks, self._ended = 0, Place(), 0, False
        self._best_loss, self._best_step = math.inf, 0
        if before is not None:
            self._continue(before)
        self._wrapped = processes.wrapped(self._module)
        self._lookup = make_lookup(bank.centroids, bank.half_norms, bank.info.num_clusters, threads=threads)

    def run(self, tensorboard: Path | None) -> None:
        """Train up to the last step, or until held-out speakers are restored no better."""
        log = StepLog(self._work / LOG_FILE, self._step, tensorboard) if self._processes.first else None
        quantizer = self._quantizer(self._entries, self._settings.masked, self._seed)

        def make(planned: tuple[int, StepPlan]) -> tuple[int, StepPlan, list[Batch]]:
            step, plan = planned
            own = plan.batches[self._processes.rank :: self._processes.count]
            return step, plan, [self._pinned(make_batch(self._source, quantizer, pieces)) for pieces in own]

        try:
            for step, plan, batches in prefetched(make, self._plans(), self._source.threads):
                values = self._take(step, plan, batches)
                self._step, self._place = step, plan.after
                if log is not None:
                    log.add(step, values)
                last = step == self._steps
                if self._held_out and (last or step % self._settings.valid_every == 0):
                    seen = self._look()
                    if log is not None:
                        log.add(step, {f"valid_{name}": value for name, value in dataclasses.asdict(seen).items()})
                    self._judge(seen)
                if self._processes.first and (last or self._ended or step % self._settings.save_every == 0):
                    self._save()
                if self._processes.first:
                    self._progress(Progress(step, self._steps, values["loss"]))
                if self._ended:
                    break
        finally:
            if log is not None:
                log.close()

    def write(self, out: Path) -> TrainedConformer:
        """Write the best weights or, without held-out speakers, the last."""
        step = self._step
        if self._held_out:
            self._processes.shared("")  # the first process has written them
            best = load_state(self._work / _BEST_FILE, ("model", "step"))
            if best is None:
                raise CheckpointError(f"{self._work / _BEST_FILE}: not there; remove the folder, and train again")
            self._module.load_state_dict(best["model"])
            step = int(best["step"])
        restoration = self._look() if self._held_out else None
        if self._processes.first:
            weights = self._module.state_dict()
            write_voice(out, self._sizes, self._settings.dropout, weights, self._vocoder, step)
        names = [self._bank.info.names[index] for index in self._held_out_entries]
        return TrainedConformer(step, self._step, sorted(self._held_out), names, restoration)

    def _some_features(self) -> torch.Tensor:
        """The features of the first batches, (n, D)."""
        pieces = [piece for batch in self._sampler.step(Place(), _BEGIN_BATCHES).batches for piece in batch]
        read = [self._source.read(piece.index, piece.begin, piece.begin + piece.frames) for piece in pieces]
        return torch.from_numpy(np.concatenate(read))

    def _plans(self) -> Iterator[tuple[int, StepPlan]]:
        place, count = self._place, self._settings.accumulate * self._processes.count
        for step in range(self._step + 1, (0 if self._ended else self._steps) + 1):
            plan = self._sampler.step(place, count)
            place = plan.after
            yield step, plan

    def _take(self, step: int, plan: StepPlan, batches: Sequence[Batch]) -> dict[str, float]:
        """One step of the optimizer; what the log says of it."""
        settings, processes = self._settings, self._processes
        self._module.train()
        self._optimizer.zero_grad(set_to_none=True)
        sums = torch.zeros(2, dtype=torch.float64, device=processes.device)
        for number, batch in enumerate(batches):
            # Which dropouts a batch sees depends on the step alone, not on what ran before.
            torch.manual_seed(number_of(self._seed, "dropout", step, processes.rank + number * processes.count))
            alone = processes.count == 1 or number == len(batches) - 1
            with contextlib.nullcontext() if alone else self._wrapped.no_sync():  # type: ignore[operator]
                losses = self._losses(self._wrapped, batch)
                # Every frame of the step counts alike. Processes average their gradients, so their count is here.
                (losses.total * (processes.count / plan.frames)).backward()  # type: ignore[no-untyped-call]
            sums += torch.stack((losses.squared.detach(), losses.unlike.detach()))
        norm = float(torch.nn.utils.clip_grad_norm_(self._module.parameters(), settings.clip))
        squared, unlike = (processes.summed(sums) / plan.frames).tolist()
        if not math.isfinite(squared + unlike + norm):
            raise StageError(
                f"step {step}: the loss is not finite; a lower learning rate, a longer warm-up or float32 may help"
            )
        rate = settings.rate(step, self._steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        values = {"loss": squared + unlike, "squared": squared, "unlike": unlike, "norm": norm, "rate": rate}
        return values | {"frames": plan.frames}

    def _losses(self, module: torch.nn.Module, batch: Batch) -> Losses:
        device = self._processes.device
        quantized, original = (x.to(device, non_blocking=True) for x in (batch.quantized, batch.original))
        with torch.autocast(device.type, torch.bfloat16, enabled=self._settings.bf16):
            restored = module(quantized, batch.lengths)
        return restoration_losses(restored, original, batch.lengths)

    @torch.no_grad()
    def _look(self) -> Restoration:
        """What the present weights do to the held-out speakers."""
        processes, source = self._processes, self._source
        processes.equalize(self._module)
        self._module.eval()
        most = self._settings.batch_frames
        pieces = [
            Piece(index, 0, min(source.frames[index], most), 0)
            for index, speaker in enumerate(source.speakers)
            if speaker in self._held_out
        ]
        batches = batched(sorted(pieces, key=lambda piece: piece.frames), most)
        entries = self._held_out_entries if len(self._held_out_entries) else self._entries
        quantizer = self._quantizer(entries, 0.0, f"{self._seed} held out")
        sums = torch.zeros(4, dtype=torch.float64, device=processes.device)
        own = batches[processes.rank :: processes.count]
        for batch in prefetched(lambda each: make_batch(source, quantizer, each), own, source.threads):
            losses = self._losses(self._module, batch)
            quantized = (batch.quantized - batch.original).square().mean(2).sum().to(processes.device)
            frames = batch.lengths.sum().to(processes.device)
            sums += torch.stack((losses.squared, losses.unlike, quantized, frames.to(quantized.dtype)))
        squared, unlike, quantized, frames = processes.summed(sums).tolist()
        return Restoration((squared + unlike) / frames, squared / frames, quantized / frames, unlike / frames)

    def _judge(self, seen: Restoration) -> None:
        """Keep the weights if they are the best; end the training if none were for long."""
        if seen.loss < self._best_loss:
            self._best_loss, self._best_step, self._looks = seen.loss, self._step, 0
            if self._processes.first:
                save_torch(self._work / _BEST_FILE, {"model": self._module.state_dict(), "step": self._step})
            return
        self._looks += 1
        self._ended = bool(self._settings.patience) and self._looks >= self._settings.patience

    def _save(self) -> None:
        state = {
            "seed": self._seed,
            "step": self._step,
            "epoch": self._place.epoch,
            "batch": self._place.batch,
            "model": self._module.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "best_loss": self._best_loss,
            "best_step": self._best_step,
            "looks": self._looks,
            "ended": self._ended,
        }
        save_torch(self._work / STATE_FILE, state)

    def _continue(self, state: dict[str, Any]) -> None:
        self._module.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._step, self._place = int(state["step"]), Place(int(state["epoch"]), int(state["batch"]))
        self._best_loss, self._best_step = float(state["best_loss"]), int(state["best_step"])
        self._looks, self._ended = int(state["looks"]), bool(state["ended"])

    def _quantizer(self, entries: Sequence[int], masked: float, seed: str) -> Quantizer:
        settings = self._settings
        return Quantizer(self._lookup, np.array(entries, np.int64), settings.mode, settings.stride, masked, seed)

    def _pinned(self, batch: Batch) -> Batch:
        if self._processes.device.type != "cuda":
            return batch
        return Batch(batch.quantized.pin_memory(), batch.original.pin_memory(), batch.lengths)


def _split(bank: Bank, held_out: set[str]) -> tuple[list[int], list[int]]:
    """Entries of the bank that are drawn from in training, and those of held-out speakers."""
    held = [index for index, name in enumerate(bank.info.names) if name in held_out]
    drawn = [index for index, name in enumerate(bank.info.names) if name not in held_out]
    if not drawn:
        raise ListError("all entries of the bank are those of held-out speakers, and none is left to train with")
    return drawn, held


def _utterances(source: Source, held_out: set[str]) -> list[int]:
    """Utterances to train on; BatchNorm cannot count a single frame."""
    chosen = [
        index
        for index, (speaker, frames) in enumerate(zip(source.speakers, source.frames, strict=True))
        if speaker not in held_out and frames > 1
    ]
    if not chosen:
        raise ListError("no utterance is left to train on")
    if held_out and None in source.speakers:
        lacking = source.ids[list(source.speakers).index(None)]
        raise ListError(f"the utterance '{printable(lacking)}' has no speaker, and may be of one that is held out")
    return chosen


def _parameter_groups(module: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; biases and what scales do not."""
    parameters = list(module.parameters())
    return [
        {"params": [each for each in parameters if each.ndim > 1], "weight_decay": weight_decay},
        {"params": [each for each in parameters if each.ndim <= 1], "weight_decay": 0.0},
    ]


def _digest(source: Source) -> str:
    digest = hashlib.sha256()
    for name, speaker, frames in zip(source.ids, source.speakers, source.frames, strict=True):
        digest.update(f"{name}\0{speaker}\0{frames}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
