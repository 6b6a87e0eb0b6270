"""Shows the progress of a corpus run, live on a terminal, otherwise a line from time to time; and its summary."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from collections import deque
from typing import TYPE_CHECKING

from mkc_fast.cli.show import console, counted, errors
from mkc_fast.text import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import RenderableType
    from rich.live import Live

    from mkc_fast.engine.corpus.outputs import Folder
    from mkc_fast.engine.corpus.status import Status, Summary

_SECONDS_BETWEEN_LINES = 30.0
_SECONDS_OF_NOW = 30.0


class Watch:
    """Called with each status of a run; ``print_summary`` prints the summary of a run that has come to its end."""

    def __init__(self, live: Live | None, *, quiet: bool, as_json: bool, where: Sequence[Folder]) -> None:
        self.live = live
        self.quiet = quiet
        self.as_json = as_json
        self.where = where
        self.recent: deque[tuple[float, float]] = deque()
        self.printed_at = time.perf_counter()
        self.drawn_at = 0.0
        self.chosen_shown = 0  # lines
        self.summary: Summary | None = None  # once the run has come to its end

    def __call__(self, status: Status) -> None:
        """Show failures at once, the rest from time to time."""
        if status.done:
            self.summary = status.summary
            return
        if status.failure is not None:
            name, why = status.failure
            errors.print(one_line(f"failed: {name}: {why}"), soft_wrap=True)
        for note in status.notes:
            errors.print(one_line(f"note: {note}"), soft_wrap=True)
        while not self.quiet and len(status.summary.chosen) > self.chosen_shown:
            errors.print(one_line(status.summary.chosen[self.chosen_shown]), soft_wrap=True)
            self.chosen_shown += 1
        now = time.perf_counter()
        if now - self.drawn_at < 0.2 and status.failure is None:
            return
        self.drawn_at = now
        self.recent.append((now, status.summary.audio_s))
        while now - self.recent[0][0] > _SECONDS_OF_NOW:
            self.recent.popleft()
        if self.live is not None:
            self.live.update(self._table(status))
        elif not self.quiet and now - self.printed_at >= _SECONDS_BETWEEN_LINES:
            self.printed_at = now
            print(self._line(status), file=sys.stderr, flush=True)

    def end(self) -> None:
        """End the live display, so that other text can be printed."""
        if self.live is not None:
            self.live.stop()

    def print_summary(self) -> None:
        """Print the summary on the standard output, if the run has come to its end."""
        summary = self.summary
        if summary is None:
            return
        self.end()
        if self.as_json:
            print(json.dumps(as_dict(summary)))
        elif not self.quiet:
            _show(summary, self.where)

    def _rtfx_now(self) -> float:
        (first, audio), (last, later) = self.recent[0], self.recent[-1]
        return (later - audio) / (last - first) if last > first else 0.0

    def _line(self, status: Status) -> str:
        summary = status.summary
        done = summary.present + summary.written + len(summary.failed)
        return (
            f"[{status.elapsed_s:7.0f} s] {done} of {summary.files}, {_failures(status)}, "
            f"{summary.audio_s:.0f} s of audio, RTFx {self._rtfx_now():.1f} now, {summary.rtfx:.1f} overall, "
            f"{_time(_left(status))} left{''.join(f', {loss}' for loss in _worker_losses(summary))}"
        )

    def _table(self, status: Status) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        # Two lines, so that the largest corpora fit a terminal of 80 columns.
        summary = status.summary
        done = summary.present + summary.written + len(summary.failed)
        head = Table.grid(padding=(0, 2))
        head.add_row(
            ProgressBar(total=max(1, summary.files), completed=done, width=20),
            f"{done:,} of {summary.files:,}",
            _failures(status),
            f"{_time(_left(status))} left",
        )
        speed = Text(
            f"{summary.audio_s:,.0f} s of audio  RTFx {self._rtfx_now():,.1f} now, {summary.rtfx:,.1f} overall",
            no_wrap=True,
            overflow="ellipsis",
        )
        rows = Table.grid(padding=(0, 2))
        for number, worker in enumerate(status.workers):
            alive = time.perf_counter() - worker.ready_at if worker.ready_at is not None else 0.0
            load = (
                "loading models"
                if worker.ready_at is None
                else f"{min(1.0, worker.busy_s / max(alive, 1e-9)):4.0%} busy"
            )
            rows.add_row(f"worker {number}", worker.device, f"pid {worker.pid}", load)
        return Group(head, speed, rows, *_worker_losses(summary))


def _failures(status: Status) -> str:
    """How many recordings failed, and how many of those are still to be tried again."""
    again = f", {status.retrying:,} to try again" if status.retrying else ""
    return f"{len(status.summary.failed):,} failed{again}"


def _left(status: Status) -> float | None:
    return status.remaining_s / status.summary.rtfx if status.summary.rtfx else None


def _worker_losses(summary: Summary) -> list[str]:
    """How many workers were replaced or lost, a line each; none if there were none."""
    replaced, lost = summary.replaced_workers, summary.lost_workers
    return [
        *([f"{replaced} worker{'s' * (replaced > 1)} died and replaced"] if replaced else []),
        *([f"{lost} worker{'s' * (lost > 1)} lost (no longer starting)"] if lost else []),
    ]


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def as_dict(summary: Summary) -> dict[str, object]:
    """A summary as it stands in ``--json``: seconds, counts, RTFx, and the failures."""
    fields = dataclasses.asdict(summary)
    fields["folders"] = [dataclasses.asdict(folder) for folder in summary.folders.values()]
    fields["incomplete"] = summary.incomplete
    fields["failed"] = [{"id": name, "error": why} for name, why in summary.failed]
    fields["stage_seconds"] = {stage: round(seconds, 3) for stage, seconds in summary.stage_seconds.items()}
    fields["rtfx"] = round(summary.rtfx, 3)
    return fields


def _shown(folder: Folder) -> str:
    """Where outputs are."""
    if folder.remote is not None:
        return folder.shown
    return str(folder.outputs.folder if folder.groups is None else folder.out)


def _show(summary: Summary, where: Sequence[Folder]) -> None:
    folders = ", ".join(_shown(folder) for folder in where)
    earlier = f", {summary.present} were there already" if summary.present else ""
    failed = f", {len(summary.failed)} failed" if summary.failed else ""
    ended = " (interrupted; run the same command again to continue)" if summary.interrupted else ""
    console.print(
        f"{summary.written} of {counted(summary.files, 'recording')} written to {folders}{earlier}{failed}{ended}",
        soft_wrap=True,
    )
    if summary.silenced:
        console.print(f"{counted(summary.silenced, 'recording')} that failed: silence was written in their place")
    for folder in where:
        if folder.out is not None and folder.out != folder.path and folder.shown in summary.incomplete:
            lacks = "no list of its outputs (wav.scp or JSONL)" if folder.groups is None else "not all of its shards"
            console.print(
                f"{folder.shown} is not complete and has {lacks}, since recordings of it failed: run the command "
                "again once they can be read, or with --on-failure copy-silence",
                soft_wrap=True,
            )
    if summary.loud:
        console.print(f"{summary.loud} with a peak above 1: is their scale right?")
    for loss in _worker_losses(summary):
        console.print(loss)
    if not summary.written:
        return
    work = summary.wall_s - summary.start_up_s
    console.print(f"audio         {summary.audio_s:.1f} s")
    console.print(f"work          {work:.2f} s after {summary.start_up_s:.2f} s of start-up")
    console.print(f"RTFx          {summary.rtfx:.2f} (seconds of audio / seconds of work)")
    total = sum(summary.stage_seconds.values()) or 1.0
    for stage, seconds in summary.stage_seconds.items():
        console.print(f"  {stage:<12}{seconds:.2f} s, {100 * seconds / total:.0f} %")


@contextlib.contextmanager
def watching(*, quiet: bool, as_json: bool, where: Sequence[Folder]) -> Iterator[Watch]:
    """Yield the display of a run."""
    if quiet or not errors.is_terminal:
        yield Watch(None, quiet=quiet, as_json=as_json, where=where)
        return
    from rich.live import Live

    with Live(console=errors, refresh_per_second=5, transient=True) as live:
        yield Watch(live, quiet=quiet, as_json=as_json, where=where)
