"""``mkc-fast doctor``: what this machine would run a model with, and how to repair what does not work."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mkc_fast.cli import panels
from mkc_fast.cli.show import console
from mkc_fast.errors import MkcError
from mkc_fast.text import one_line

if TYPE_CHECKING:
    from mkc_fast.engine.doctor import Report

EXIT_BROKEN = 1  # inference would not work
EXIT_DAMAGED = 2  # with --verify: an artifact is not as it was made


def add(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor")(doctor)


def doctor(
    directories: Annotated[list[Path] | None, typer.Argument(help="With --verify: models and banks.")] = None,
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
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Compare every file of the models and banks given with its digest.",
            rich_help_panel=panels.ARTIFACTS,
        ),
    ] = False,
    json_: Annotated[
        bool, typer.Option("--json", help="Print the report as JSON.", rich_help_panel=panels.OUTPUT)
    ] = False,
) -> int:
    """Show whether inference works here, with what, and what to install where it does not."""
    from mkc_fast.engine.doctor import examine

    if directories and not verify:
        raise MkcError(f"{directories[0]}: directories are given with --verify; else give --model and --bank")
    verified = None
    if verify:
        verified = _verified([*(directories or []), *(path for path in (model, bank) if path is not None)])
        broken = not all(found["ok"] for found in verified)
        if broken or (model is None and bank is None):
            if json_:
                print(json.dumps({"verified": verified}, indent=1))
            else:
                _show_verified(verified)
            return EXIT_DAMAGED if broken else 0
    report = examine(device, model, bank)
    if json_:
        facts = _as_json(dataclasses.asdict(report))
        print(json.dumps(facts if verified is None else {"verified": verified, **facts}, indent=1))
    else:
        _show_verified(verified or [])
        _show(report)
    return 0 if report.ok else EXIT_BROKEN


def _as_json(value: Any) -> Any:
    """The report with the keys of the first release, where ``repair`` is ``mend``."""
    if isinstance(value, dict):
        return {"mend" if key == "repair" else key: _as_json(part) for key, part in value.items()}
    return [_as_json(part) for part in value] if isinstance(value, (list, tuple)) else value


def _verified(directories: list[Path]) -> list[dict[str, str | bool]]:
    """Of each artifact whether every file is as it was made, and what was found."""
    from mkc_fast.engine.cache_folder import default_cache
    from mkc_fast.engine.digests import verify_whole

    if not directories:
        raise MkcError("--verify: give the directories of models and banks")
    found: list[dict[str, str | bool]] = []
    for directory in directories:
        try:
            text, ok = f"{directory}: {verify_whole(directory, default_cache())}", True
        except MkcError as error:
            text, ok = str(error), False
        found.append({"path": str(directory), "ok": ok, "found": text})
    return found


def _show_verified(verified: list[dict[str, str | bool]]) -> None:
    for each in verified:
        console.print(one_line(str(each["found"])), soft_wrap=True)


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
    for topic, repair in [(f.topic, f.repair) for f in report.findings] + [
        (v.provider, v.repair) for v in report.verdicts
    ]:
        if repair:
            commands.setdefault(repair, []).append(topic)
    if commands:
        console.print("\nhow to repair it")
    for repair, topics in commands.items():
        console.print(f"  {', '.join(topics)}: {repair}", soft_wrap=True)
    console.print(f"\ninference {'works' if report.ok else 'does not work'} on {report.device}", soft_wrap=True)
