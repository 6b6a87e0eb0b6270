"""``mkc-fast demo``: the whole path, from checkpoints to speech, on any machine and offline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mkc_fast.cli import panels
from mkc_fast.cli.export import load_exporter
from mkc_fast.errors import MkcError, OutputError


def add(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo")(demo)


def demo(
    random: Annotated[
        bool,
        typer.Option(
            "--random",
            help="Random weights in the published formats, which make noise, instead of the small set.",
            rich_help_panel=panels.INPUT,
        ),
    ] = False,
    size: Annotated[
        str,
        typer.Option(
            help="Of random weights: small, or large: the published sizes (6 GB of disk).", rich_help_panel=panels.INPUT
        ),
    ] = "small",
    out: Annotated[Path, typer.Option(help="Directory to make.", rich_help_panel=panels.OUTPUT)] = Path(
        "mkc-fast-demo"
    ),
    train: Annotated[
        bool,
        typer.Option(
            "--train",
            help="Train on synthetic speakers instead: a bank and a conformer, for an encoder of random weights.",
            rich_help_panel=panels.RUN,
        ),
    ] = False,
) -> None:
    """Run everything once, on a small set of models that is shipped: export, bank, both modes, a page to listen."""
    if size not in {"small", "large"}:
        raise MkcError(f"size is {size!r}; expected small or large")
    if train and (random or size != "small"):
        raise MkcError("--train trains a small set of its own; leave --random and --size large out")
    load_exporter()
    if out.exists() and not (out / ".mkc-fast-demo").exists() and any(out.iterdir()):
        raise OutputError(f"{out}: holds something else; choose another directory with --out")
    out.mkdir(parents=True, exist_ok=True)
    (out / ".mkc-fast-demo").touch()
    if train:
        from mkc_fast.cli.demo_train import run_training

        run_training(out)
    elif random or size == "large":
        from mkc_fast.cli.demo_random import run_random

        run_random(out, size)
    else:
        from mkc_fast.cli.demo_voices import run_voices

        run_voices(out)
