"""What a run reports: how it stands while it goes on, and what it did."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mkc_fast.engine.audio.waveform import LOUD_PEAK
from mkc_fast.names import TIMED_STAGES

if TYPE_CHECKING:
    from pathlib import Path

    from mkc_fast.engine.corpus.protocol import Outcome, Task
    from mkc_fast.engine.corpus.scheduler import WorkerState


@dataclass
class FolderSummary:
    """What a run did in one output folder.

    Attributes:
        out: The output folder, or the anonymized data directory.
        files: Utterances asked for.
        written: Of them, written by this run.
        present: Of them, written by an earlier run.
        failed: Of them, failed.
        silenced: Of those that failed, the ones that got silence as their output.
        audio_s: Seconds of audio written by this run.
        stage_s: Seconds of computation, added up over all workers; reading and writing are not counted.
    """

    out: str
    files: int = 0
    written: int = 0
    present: int = 0
    failed: int = 0
    silenced: int = 0
    audio_s: float = 0.0
    stage_s: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether every utterance has an output."""
        return self.present + self.written + self.silenced == self.files


@dataclass
class Summary:
    """What a run did.

    Attributes:
        files: Utterances asked for.
        written: Of them, written by this run.
        present: Of them, written by an earlier run.
        failed: Id and error of each that failed.
        silenced: Of those that failed, the ones that got silence as their output.
        folders: The same for each output folder, by the folder of its recordings.
        loud: Of those written, recordings with a peak above 1, whose scale may be wrong.
        audio_s: Seconds of audio written by this run.
        wall_s: Seconds from the first worker's start to the end.
        start_up_s: Of them, until headers were read and the first worker was ready.
        stage_seconds: Seconds of each stage, over all workers.
        replaced_workers: Workers that died and were replaced.
        lost_workers: Workers that died several times in a row while they started, and were not replaced again.
        interrupted: Whether the run was stopped before its end.
        chosen: What the workers' graphs ran on, and why on nothing faster, a line for each kind of device.
    """

    files: int = 0
    written: int = 0
    present: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    silenced: int = 0
    folders: dict[Path, FolderSummary] = field(default_factory=dict)
    loud: int = 0
    audio_s: float = 0.0
    wall_s: float = 0.0
    start_up_s: float = 0.0
    stage_seconds: dict[str, float] = field(default_factory=dict)
    replaced_workers: int = 0
    lost_workers: int = 0
    interrupted: bool = False
    chosen: list[str] = field(default_factory=list)

    def count(self, task: Task, outcome: Outcome) -> tuple[str, str] | None:
        """Count an outcome; returns id and error if it failed."""
        folder = self.folders[task.folder]
        if outcome.error is not None:
            folder.failed += 1
            self.failed.append((task.utterance.id, outcome.error))
            return self.failed[-1]
        self.written += 1
        folder.written += 1
        folder.audio_s += outcome.audio_s
        self.loud += outcome.peak > LOUD_PEAK
        self.audio_s += outcome.audio_s
        for stage, seconds in outcome.stage_seconds.items():
            self.stage_seconds[stage] = self.stage_seconds.get(stage, 0.0) + seconds
            if stage in TIMED_STAGES:
                folder.stage_s += seconds
        return None

    def count_silence(self, task: Task) -> None:
        """Count silence that was written for a task that failed."""
        self.silenced += 1
        self.folders[task.folder].silenced += 1

    @property
    def incomplete(self) -> list[str]:
        """Folders in which recordings failed and got no output."""
        return [folder.out for folder in self.folders.values() if folder.failed > folder.silenced]

    @property
    def rtfx(self) -> float:
        """Seconds of audio a second of work, start-up not counted."""
        work = self.wall_s - self.start_up_s
        return self.audio_s / work if work > 0 else 0.0


@dataclass(frozen=True)
class Status:
    """The state of a run.

    Attributes:
        summary: What is done.
        remaining_s: Seconds of audio still to do, as far as headers tell.
        elapsed_s: Since the end of the start-up.
        workers: The workers at work.
        failure: The utterance that has just failed, and why.
        notes: New notes and warnings of the workers, a line each.
        retrying: Recordings that failed once and are still to be tried again.
        done: Whether this is the last one, after the last output.
    """

    summary: Summary
    remaining_s: float
    elapsed_s: float
    workers: list[WorkerState]
    failure: tuple[str, str] | None = None
    notes: tuple[str, ...] = ()
    retrying: int = 0
    done: bool = False
