"""``mkc-fast doctor``: what this machine would run a model with, and what mends what does not work."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mkc_fast.cli import panels
from mkc_fast.cli.show import console

if TYPE_CHECKING:
    from mkc_fast.engine.diagnosis import Report

EXIT_BROKEN = 1  # inference would not work


def add(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor")(doctor)


def doctor(
    device: Annotated[
        str | None,
        typer.Option(
            help="cpu or cuda:<number> (default: the first GPU, else the CPU).", rich_help_panel=panels.DEVICES
        ),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Exported model to check.", rich_help_panel=panels.ARTIFACTS)
    ] = None,
    bank: Annotated[
        Path | None, typer.Option(help="Bank to check; with --model, both are run.", rich_help_panel=panels.ARTIFACTS)
    ] = None,
    json_: Annotated[
        bool, typer.Option("--json", help="Print the report as JSON.", rich_help_panel=panels.OUTPUT)
    ] = False,
) -> int:
    """Show whether inference works here, with what, and what to install where it does not."""
    from mkc_fast.engine.diagnosis import examine

    report = examine(device, model, bank)
    if json_:
        print(json.dumps(dataclasses.asdict(report), indent=1))
    else:
        _show(report)
    return 0 if report.ok else EXIT_BROKEN


def _show(report: Report) -> None:
    from rich.table import Table

    facts = Table("", "", "found", box=None, pad_edge=False, show_header=False)
    for finding in report.findings:
        facts.add_row(finding.topic, "" if finding.status == "ok" else finding.status.upper(), finding.found)
    console.print(facts)
    console.print()
    providers = Table("provider", "used", "why", box=None, pad_edge=False)
    for verdict in report.verdicts:
        providers.add_row(verdict.provider, "yes" if verdict.used else "no", verdict.reason)
    console.print(providers)
    commands: dict[str, list[str]] = {}
    for topic, mend in [(f.topic, f.mend) for f in report.findings] + [(v.provider, v.mend) for v in report.verdicts]:
        if mend:
            commands.setdefault(mend, []).append(topic)
    if commands:
        console.print("\nwhat would mend it")
    for mend, topics in commands.items():
        console.print(f"  {', '.join(topics)}: {mend}", soft_wrap=True)
    console.print(f"\ninference {'works' if report.ok else 'does not work'} on {report.device}", soft_wrap=True)
