"""``mkc-fast bank``: ``build`` (k-means models → ``bank/``), ``info`` (what a bank holds), and ``train``."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mkc_fast.cli import bank_train, panels
from mkc_fast.cli.show import console, counted, counting, shown_warnings
from mkc_fast.text import printable

if TYPE_CHECKING:
    from mkc_fast.engine.artifacts import Bank

bank_app = typer.Typer(
    no_args_is_help=True, help="Build a bank of k-means models, train one on speech, or show what one holds."
)


def add(app: typer.Typer) -> None:
    """Add the commands."""
    bank_app.command("train")(bank_train.train)
    app.add_typer(bank_app, name="bank")


@bank_app.command("build")
def build(
    kmeans_scp: Annotated[
        Path,
        typer.Option(help="List of k-means models (scikit-learn), 'name path' a line.", rich_help_panel=panels.INPUT),
    ],
    out: Annotated[Path, typer.Option(help="Directory to write.", rich_help_panel=panels.OUTPUT)],
    kmeans_num: Annotated[
        int | None, typer.Option(help="Take a random subset of this size.", min=1, rich_help_panel=panels.INPUT)
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Seed of that subset; without a seed the subset cannot be repeated.", rich_help_panel=panels.INPUT
        ),
    ] = None,
    half: Annotated[
        bool,
        typer.Option(
            "--half",
            help="Add a copy in float16, half the bytes for a CPU to read: 1.5 times the disk, the same cluster ids.",
            rich_help_panel=panels.OUTPUT,
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the directory.", rich_help_panel=panels.OUTPUT)
    ] = False,
) -> None:
    """Combine k-means models into one bank, without executing anything in their files."""
    from mkc_fast.export import build_bank

    begin = time.perf_counter()
    with shown_warnings(), counting("k-means models") as progress:
        made = build_bank(kmeans_scp, out, kmeans_num, seed, overwrite=overwrite, half=half, progress=progress)
    console.print(f"{out}: {counted(len(made.names), 'model')} in {time.perf_counter() - begin:.1f} s", soft_wrap=True)


@bank_app.command("info")
def info(
    bank: Annotated[Path, typer.Argument(help="Directory made by 'bank build'.")],
    every: Annotated[
        bool,
        typer.Option(
            "--all", help="List models without unused or duplicate clusters, too.", rich_help_panel=panels.OUTPUT
        ),
    ] = False,
    json_: Annotated[
        bool, typer.Option("--json", help="Print all of it as JSON.", rich_help_panel=panels.OUTPUT)
    ] = False,
) -> None:
    """Show the size of a bank and the unused or duplicate clusters of each model."""
    from rich.table import Table

    from mkc_fast.engine.artifacts import open_bank

    opened = open_bank(bank)
    entries, _, dim = opened.centroids.shape
    said = opened.info
    if json_:
        print(json.dumps(_as_json(opened), indent=1))
        return
    sizes = sorted(set(said.num_clusters))
    console.print(f"models        N = {entries}")
    console.print(f"clusters      K = {sizes[0]}" + (f" to {sizes[-1]}" if len(sizes) > 1 else ""))
    console.print(f"dimensions    D = {dim}")
    copy = "" if opened.half is None else ", with a copy in float16"
    size = sum(facts.bytes for facts in said.files.values())
    console.print(f"size          {size / 1e6:.1f} MB{copy}")
    unused, duplicates = (sum(map(len, lists)) for lists in (said.unused, said.duplicates))
    console.print(f"unused        {unused} clusters without training frames")
    console.print(f"duplicates    {duplicates} clusters equal to one of a lower id, never chosen")
    rows = list(zip(said.names, said.num_clusters, said.unused, said.duplicates, strict=True))
    shown = [row for row in rows if every or row[2] or row[3]]
    if not shown:
        return
    table = Table("model", "K", "unused", "duplicates", box=None)
    for name, k, none, same in shown:
        table.add_row(printable(name), str(k), _ids(none), _ids(same))
    console.print(table)


def _as_json(bank: Bank) -> dict[str, object]:
    """The bank's sizes, and of each entry its name, K, source and clusters that are never chosen."""
    entries, clusters, dim = bank.centroids.shape
    said = bank.info
    rows = zip(said.names, said.num_clusters, said.sources, said.unused, said.duplicates, strict=True)
    names = ("name", "clusters", "source_sha256", "unused", "duplicates")
    return {
        "format_version": said.format_version,
        "entries": entries,
        "clusters": clusters,
        "dim": dim,
        "bytes": sum(facts.bytes for facts in said.files.values()),
        "files": {name: dataclasses.asdict(facts) for name, facts in said.files.items()},
        "models": [
            dict(zip(names, row, strict=True))
            | ({"training": dataclasses.asdict(said.training[index])} if said.training else {})
            for index, row in enumerate(rows)
        ],
    }


def _ids(ids: list[int]) -> str:
    shown = ", ".join(map(str, ids[:8])) + (", …" if len(ids) > 8 else "")
    return f"{len(ids)}: {shown}" if ids else "0"
