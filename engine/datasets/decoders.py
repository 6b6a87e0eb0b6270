"""Commands of a ``wav.scp`` that only decode a file (``flac -c -d -s PATH |``): the file is read, nothing is run."""

from __future__ import annotations

import re
import shlex

# What makes a shell do more than run one program on plain words: lists, redirections, expansions, patterns, comments.
_SHELL = re.compile(r"[;&|<>()$`*?\[\]{}~#!\n]")
_FLAC_SHORT = frozenset("cdsf")  # to standard output, decode, silent, force
_FLAC_LONG = {"--stdout": "c", "--decode": "d", "--silent": "s", "--totally-silent": "s", "--force": "f"}
# Options of sph2pipe that name its output's format; -p turns compressed samples into PCM, as reading does.
_SPH_FORMATS = frozenset({"wav", "rif", "sph"})
_SOX_FORMATS = frozenset({"wav", "wavpcm", "flac", "sph", "nist", "aiff", "aif", "au", "ogg"})
_SOX_ENCODINGS = frozenset({"signed-integer", "signed", "floating-point", "float"})


def decoded_file(command: str) -> str | None:
    """The file that a command decodes, if that is all it does.

    Known are ``flac -c -d PATH``, ``sph2pipe -f wav PATH``, ``sox PATH -t wav -`` and ``cat PATH``, with options that
    do not change the speech, and programs named by a path. A command that selects channels, cuts, resamples or does
    anything else is not one of them.

    Args:
        command: A line of a ``wav.scp`` without its id and its final bar.

    Returns:
        The path as it is in the command, without quotes; None for any other command.
    """
    if _SHELL.search(command):
        return None
    try:
        words = shlex.split(command)
    except ValueError:  # a quote that does not end
        return None
    if len(words) < 2 or "=" in words[0]:
        return None
    reader = _READERS.get(words[0].rpartition("/")[2])
    path = None if reader is None else reader(words[1:])
    return None if path in {None, "", "-"} else path


def _flac(words: list[str]) -> str | None:
    given: set[str] = set()
    paths = []
    for word in words:
        if word in _FLAC_LONG:
            given.add(_FLAC_LONG[word])
        elif re.fullmatch(r"-[a-z]+", word) and _FLAC_SHORT.issuperset(word[1:]):
            given.update(word[1:])
        elif word.startswith("-"):
            return None
        else:
            paths.append(word)
    return paths[0] if len(paths) == 1 and {"c", "d"} <= given else None


def _sph2pipe(words: list[str]) -> str | None:
    paths, left = [], iter(words)
    for word in left:
        if word == "-f":
            if next(left, "") not in _SPH_FORMATS:
                return None
        elif word != "-p":
            if word.startswith("-"):
                return None
            paths.append(word)
    return paths[0] if len(paths) == 1 else None


def _sox(words: list[str]) -> str | None:
    paths, left = [], iter(words)
    for word in left:
        if word == "-t":
            if next(left, "") not in _SOX_FORMATS:
                return None
        elif word == "-b":
            if next(left, "") not in {"16", "24", "32"}:
                return None
        elif word == "-e":
            if next(left, "") not in _SOX_ENCODINGS:
                return None
        elif word == "-" or not word.startswith("-"):
            paths.append(word)
        elif not re.fullmatch(r"-(V[0-6]|q|S|D|-no-dither)", word):
            return None
    # Past the output are effects.
    return paths[0] if len(paths) == 2 and paths[1] == "-" else None


def _cat(words: list[str]) -> str | None:
    return words[0] if len(words) == 1 and not words[0].startswith("-") else None


_READERS = {"flac": _flac, "sph2pipe": _sph2pipe, "sox": _sox, "cat": _cat}
