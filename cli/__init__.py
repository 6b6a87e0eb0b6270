"""The ``mkc-fast`` command."""

from mkc_fast.cli.app import main

__all__ = ["main"]
