"""The ``mkc-fast`` command."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import NoReturn

from mkc_fast.cli import interrupts

__all__ = ["main", "program"]


def main(arguments: list[str] | None = None) -> int:
    """Run a command line and return its exit code, as docs/errors.md lists them.

    Args:
        arguments: In place of ``sys.argv[1:]``.
    """
    with interrupts.raising() as interrupt:
        return _run(sys.argv[1:] if arguments is None else arguments, interrupt)


def program() -> NoReturn:
    """Run the program and end the process: the entry point of ``mkc-fast`` and of ``python -m mkc_fast``."""
    interrupt = interrupts.install()
    code = _run(sys.argv[1:], interrupt)
    interrupt.over = True
    if code in interrupts.EXIT_CODES:
        # All is cleaned up; what would follow are seconds of PyTorch's teardown.
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def _run(arguments: list[str], interrupt: interrupts.Interrupts) -> int:
    try:
        from mkc_fast.cli.app import run  # takes a tenth of a second, in which a Ctrl-C may come, too

        code = run(arguments)
    except (interrupts.Interrupted, KeyboardInterrupt) as error:
        return interrupts.report(getattr(error, "number", signal.SIGINT))
    except BaseException:
        if interrupt.number is None:
            raise
        return interrupts.report(interrupt.number)  # what a library made of the interrupt
    return code if interrupt.number is None else interrupts.report(interrupt.number)
