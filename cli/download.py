"""``mkc-fast download``: the published files → a folder, with their digests recorded."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mkc_fast.cli import interrupts, panels
from mkc_fast.cli.show import console, errors
from mkc_fast.errors import ArgumentError, DownloadError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mkc_fast.export.downloads.table import Published

_SECONDS_BETWEEN_LINES = 10.0


def add(app: typer.Typer) -> None:
    """Add the command."""
    app.command("download")(download)


def download(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="wavlm, conformer, kmeans.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.", rich_help_panel=panels.OUTPUT)],
    accept_terms: Annotated[
        bool,
        typer.Option(
            "--accept-terms", help="You have read the files' terms and accept them.", rich_help_panel=panels.INPUT
        ),
    ] = False,
    url: Annotated[
        str | None, typer.Option(help="Another address of the file (https).", rich_help_panel=panels.INPUT)
    ] = None,
    from_: Annotated[
        Path | None,
        typer.Option("--from", help="The file, downloaded by other means.", rich_help_panel=panels.INPUT),
    ] = None,
    sha256: Annotated[
        str | None, typer.Option(help="Digest that the file must have.", rich_help_panel=panels.INPUT)
    ] = None,
) -> None:
    """Download published files, check and record them; run the same command again to continue.

    They belong to their owners. Their terms are shown and must be accepted.
    """
    from mkc_fast.export.downloads.fetch import fetch, needs_terms
    from mkc_fast.export.downloads.table import published

    if len(names) > 1 and (url is not None or from_ is not None or sha256 is not None):
        raise ArgumentError("--url, --from and --sha256 are of one file; name one")
    if url is not None and from_ is not None:
        raise ArgumentError("give --url or --from, not both")
    files = [published(name, url) for name in dict.fromkeys(names)]
    unaccepted = [file for file in files if needs_terms(file, out)]
    if unaccepted:
        _show_terms(unaccepted)
        if not accept_terms:
            _ask()
    for file in files:
        with _transferring(file.title) as (progress, step):
            got = fetch(file, out, accept_terms=True, sha256=sha256, source=from_, progress=progress, step=step)
        was = ", already there, as recorded" if got.was_there else ""
        console.print(f"{got.path}: {file.title}, {got.bytes / 1e6:.1f} MB{was}", soft_wrap=True)
        console.print(f"  SHA-256 {got.sha256}", soft_wrap=True)
        for path in got.lists:
            console.print(f"  {path}", soft_wrap=True)


def _show_terms(files: list[Published]) -> None:
    for file in files:
        errors.print(f"{file.title}", soft_wrap=True)
        errors.print(f"  owner    {file.owner}", soft_wrap=True)
        errors.print(f"  terms    {file.terms}", soft_wrap=True)
        errors.print(f"  see      {file.page}", soft_wrap=True)
        errors.print(f"  address  {file.address}", soft_wrap=True)


def _ask() -> None:
    """Ask once, on a terminal.

    Raises:
        DownloadError: The terms are not accepted, or nobody can be asked.
    """
    if not sys.stdin.isatty():
        raise DownloadError("nothing was downloaded: read the terms, and give --accept-terms if you accept them")
    if not typer.confirm("Have you read these terms, and do you accept them?", default=False, err=True):
        raise DownloadError("nothing was downloaded: the terms were not accepted")


@contextmanager
def _transferring(title: str) -> Iterator[tuple[Callable[[int, int | None], None], Callable[[str], None]]]:
    """Yield functions that show the bytes downloaded and the step after it: a bar on a terminal, else lines."""
    if not errors.is_terminal:
        said = time.perf_counter()

        def say(done: int, total: int | None) -> None:
            nonlocal said
            interrupts.check()
            now = time.perf_counter()
            if done == total or now - said >= _SECONDS_BETWEEN_LINES:
                of = "" if total is None else f" of {total / 1e6:.1f}"
                print(f"{title}: {done / 1e6:.1f}{of} MB", file=sys.stderr, flush=True)
                said = now

        def tell(text: str) -> None:
            interrupts.check()
            print(text, file=sys.stderr, flush=True)

        yield say, tell
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(24), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    )  # fmt: skip
    with Progress(*columns, console=errors) as bar:
        task = bar.add_task(title, total=None)

        def move(done: int, total: int | None) -> None:
            interrupts.check()
            bar.update(task, completed=done, total=total)

        def show(text: str) -> None:
            interrupts.check()
            bar.update(task, description=text)

        yield move, show
