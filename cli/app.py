"""Puts the commands together and turns errors into one line and an exit code."""

from __future__ import annotations

import os
import sys

import typer

from mkc_fast import __version__
from mkc_fast.cli.arguments import normalized
from mkc_fast.errors import MkcError, StoppedError, WriteError
from mkc_fast.text import one_line

EXIT_BROKEN_PIPE = 1
EXIT_REFUSED = 2  # bad arguments, checkpoints or lists: nothing was written
EXIT_STOPPED = 3  # a full disk, an output that cannot be written, no worker left: what was written is whole

app = typer.Typer(
    name="mkc-fast",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Fast, exact multi-k-means voice anonymization.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"mkc-fast {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", "-V", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    pass


def _add_commands() -> None:
    if app.registered_commands:
        return  # by an earlier call in the same process
    # Each module imports what it runs only when it runs, so that --help stays fast.
    from mkc_fast.cli import bank, bench, demo, doctor, download, evaluate, export, features, infer, merge, train, vpc

    download.add(app)
    export.add(app)
    bank.add(app)
    features.add(app)
    train.add(app)
    infer.add(app)
    merge.add(app)
    vpc.add(app)
    evaluate.add(app)
    demo.add(app)
    doctor.add(app)
    bench.add(app)
    vpc.add(app)


def run(arguments: list[str]) -> int:
    """Run a command line and return its exit code.

    Raises:
        KeyboardInterrupt: The user asked for an end where Typer asked the user something.
    """
    _open_closed_streams()
    _add_commands()
    try:
        code = app(args=normalized(arguments), standalone_mode=False, prog_name="mkc-fast")
    except (WriteError, StoppedError) as error:
        _refuse(str(error))
        return EXIT_STOPPED
    except MkcError as error:
        return _refuse(str(error))
    except BrokenPipeError:
        sys.stderr.close()
        return EXIT_BROKEN_PIPE
    except Exception as error:
        # Typer's own errors (unknown option, missing value) have this method; anything else is a bug and keeps its
        # traceback.
        message = getattr(error, "format_message", None)
        if message is None:
            if type(error).__name__ == "Abort":
                raise KeyboardInterrupt from None
            raise
        return _refuse(message()) if message() else EXIT_REFUSED
    return code if isinstance(code, int) else 0


def _open_closed_streams() -> None:
    """Open what the caller closed (``>&-``) on nothing: files opened later would else take the streams' places."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            setattr(sys, name, os.fdopen(number, "r" if name == "stdin" else "w", encoding="utf-8"))


def _refuse(message: str) -> int:
    print(f"error: {one_line(message)}", file=sys.stderr)
    return EXIT_REFUSED
