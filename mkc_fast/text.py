"""Makes text from files, libraries and other programs fit for a terminal and a log: no control characters, not long."""

from __future__ import annotations

import re

MAX_QUOTED = 80  # characters of what a message quotes
MAX_MESSAGE = 1000  # of a whole message: a path may have 4096 bytes
_LINE_BREAK = re.compile(r"\s*[\t\n\v\f\r\x85\u2028\u2029]\s*")


def printable(text: str, limit: int = MAX_QUOTED) -> str:
    r"""Text from an untrusted source as a message may quote it.

    Control, format (also those that turn the direction of writing), surrogate, private and unassigned characters and
    separators other than the space are escaped as in Python (``\x1b``, ``\u202e``). What is printable stays as it is,
    so that text that went through here can go through again.

    Args:
        text: Any text, of any length; only its beginning is looked at.
        limit: Characters at most; what is longer ends in ``...``.
    """
    shown = _escaped(text[: limit + 1])
    return shown if len(shown) <= limit else f"{shown[: limit - 3]}..."


def one_line(text: str, limit: int = MAX_MESSAGE) -> str:
    """A whole message as one printable line: line breaks become spaces, other such characters are escaped.

    Args:
        text: The message.
        limit: Characters at most; what is longer loses its middle, since a message begins with where and ends with why.
    """
    if len(text) > 4 * limit:
        text = f"{text[: 2 * limit]}...{text[-2 * limit :]}"
    shown = _escaped(_LINE_BREAK.sub(" ", text.strip()))
    if len(shown) <= limit:
        return shown
    tail = limit // 3
    return f"{shown[: limit - tail - 5]} ... {shown[-tail:]}"


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
