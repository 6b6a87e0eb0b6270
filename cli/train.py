"""``mkc-fast train``: networks from speech."""

from __future__ import annotations

import typer

from mkc_fast.cli import train_conformer, train_vocoder

train_app = typer.Typer(no_args_is_help=True, help="Train the networks; 'bank train' trains the k-means models.")


def add(app: typer.Typer) -> None:
    """Add the commands."""
    train_app.command("conformer")(train_conformer.conformer)
    train_app.command("vocoder")(train_vocoder.vocoder)
    app.add_typer(train_app, name="train")
