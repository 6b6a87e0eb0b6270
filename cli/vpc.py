"""``mkc-fast vpc``: the commands for the VoicePrivacy Challenge and its toolkits."""

from __future__ import annotations

import typer

from mkc_fast.cli import vpc_check, vpc_install, vpc_run

vpc_app = typer.Typer(no_args_is_help=True, help="Anonymize the VoicePrivacy Challenge's sets, also in its toolkits.")


def add(app: typer.Typer) -> None:
    """Add the commands; each module of the group adds its own."""
    vpc_install.add(vpc_app)
    vpc_check.add(vpc_app)
    vpc_run.add(vpc_app)
    app.add_typer(vpc_app, name="vpc")
