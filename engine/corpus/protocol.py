"""What the scheduler and its worker processes exchange: settings, tasks and outcomes, and how a worker starts and ends.

A message is a tuple, sent over a socket with pickle. From the scheduler come a ``WorkerConfig``, once; then
``(batch number, [Task, …])``, and None at the end. A worker sends a tuple that begins with its kind:

| kind | content | meaning |
| --- | --- | --- |
| ``load note`` | text | a warning while the models load |
| ``ready`` | seconds, text, dict | seconds of loading; what the graphs run on; what decides the last bits |
| ``start`` | batch number | the batch is computed from now on |
| ``note`` | text | a warning |
| ``outcome`` | batch number, ``Outcome`` | a task of the batch is finished or failed |
| ``fatal`` | name of an error, text | the run cannot go on |
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mkc_fast.names import FRAME, WAV

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mkc_fast.engine.datasets.dataset import Utterance
    from mkc_fast.engine.options import EngineOptions
    from mkc_fast.engine.storage.addresses import Address, Place
    from mkc_fast.engine.storage.fetching import RemoteArtifact
    from mkc_fast.names import AudioFormat, Mode

# Batches that a worker is sent before it has reported the first: one is computed, one is decoded.
AHEAD = 2
# On a GPU one more waits behind the one that is computed.
AHEAD_ON_GPU = 3
# The exit code of a worker that has lost its device; nothing else uses it.
EXIT_LOST_DEVICE = 71


@dataclass(frozen=True)
class Settings:
    """How recordings are anonymized, as in ``Anonymizer.anonymize``.

    Attributes:
        mode: ``audio`` or ``frame``.
        stride: Frames that share a draw.
        seed: Of the draws; None draws from the system's entropy.
        format: Of the outputs, ``wav`` or ``flac``.
        record_draws: Report the bank entry of each frame, for the manifest.
        pad: Fill each output's end with silence, up to the length of its recording.
        secret: Seed of the run's draws where ``seed`` is None and utterances share draws. It comes from the system's
            entropy and is never written anywhere.
    """

    mode: Mode = FRAME
    stride: int = 1
    seed: int | None = None
    format: AudioFormat = WAV
    record_draws: bool = False
    pad: bool = False
    secret: int | None = None

    @property
    def draw_seed(self) -> int | None:
        """The seed that workers draw with; None draws each utterance from the system's entropy."""
        return self.secret if self.seed is None else self.seed


@dataclass(slots=True, eq=False)
class Task:
    """An utterance to anonymize and where it goes.

    Attributes:
        index: Its number in the run.
        utterance: The recording.
        folder: Where its anonymized form goes.
        suffix: Of the output's name, which begins with the utterance's id.
        audio_s: Seconds of it, as far as its header tells; 0 if not known.
        bank: Number of its bank in ``WorkerConfig.banks``.
        part: Which part of the run it is in. Parts are computed one after another: outputs that become one file
            together are in one part, so that few of them are kept apart at a time.
    """

    index: int
    utterance: Utterance
    folder: Path
    suffix: str = ".wav"
    audio_s: float = 0.0
    bank: int = 0
    part: int = 0

    def __reduce__(self) -> tuple[type[Task], tuple[object, ...]]:
        """Pickled as its values, which takes a fifth of the time that a class with slots takes by itself."""
        return Task, (self.index, self.utterance, self.folder, self.suffix, self.audio_s, self.bank, self.part)

    @property
    def output(self) -> Path:
        """Where its anonymized form goes."""
        return self.folder / (self.utterance.id + self.suffix)


@dataclass
class Outcome:
    """What became of a task: written, or an error of one line; and what the worker runs, which the scheduler adds."""

    index: int
    error: str | None = None
    audio_s: float = 0.0
    frames: int = 0
    size_bytes: int = 0
    stage_seconds: dict[str, float] = field(default_factory=dict)
    bank_ids: list[int] | None = None
    ran: dict[str, object] = field(default_factory=dict)
    peak: float = 0.0  # of the recording's samples


@dataclass(frozen=True)
class BankDraws:
    """A bank, and what frames draw from.

    Attributes:
        path: The bank: a directory, or one at an address that each machine fetches.
        entries: Those of its entries that frames draw from; None draws from all.
    """

    path: Path | RemoteArtifact
    entries: tuple[int, ...] | None = None


@dataclass(frozen=True)
class WorkerConfig:
    """What a worker needs to start.

    Attributes:
        model: Exported model: a directory, or one at an address that each machine fetches.
        banks: The banks, one of which each task names.
        device: ``cpu`` or ``cuda:<number>``.
        options: How the engine runs, with the threads of this worker.
        host_threads: Threads that decode, and as many that write.
        settings: How recordings are anonymized.
        factory: ``module:attribute`` whose ``load`` makes the anonymizer; tests and benchmarks put others there.
        ahead: Batches that it is sent before it has reported the first.
        blas_threads: Of NumPy's products in the look-up; None leaves it to their library.
        written_to: The address that outputs are written to in place of a folder, by the folder of their tasks.
    """

    model: Path | RemoteArtifact
    banks: tuple[BankDraws, ...]
    device: str
    options: EngineOptions
    host_threads: int
    settings: Settings
    factory: str = "mkc_fast.engine.anonymizer:Anonymizer"
    ahead: int = AHEAD
    blas_threads: int | None = None
    written_to: Mapping[Path, Address] = field(default_factory=dict)

    def place_of(self, task: Task) -> Place:
        """Where the output of a task is written: a file, or an object at an address."""
        address = self.written_to.get(task.folder) if self.written_to else None
        return task.output if address is None else address / (task.utterance.id + task.suffix)
