"""Accepts the command lines of the research scripts: underscores in option names, several values per option."""

from __future__ import annotations

import re

# Options that take every value up to the next option.
_LISTS = frozenset({"--gpus", "--data-dir", "--set", "--bank-user", "--bank-attacker", "--role-of", "--level-of"})
# Of this command only: others take one.
_LISTS_OF_INFER = frozenset({"--device", "--kmeans-path", "--ckpt-path", "--config", "--input"})
# Names of devices, after the first of which files and folders may follow.
_DEVICES = frozenset({"--gpus", "--device"})
_DEVICE = re.compile(r"cpu|cuda(:.*)?|\d+", re.IGNORECASE)


def normalized(arguments: list[str]) -> list[str]:
    """``--audio_scp x --gpus a b`` as ``--audio-scp x --gpus a --gpus b``; everything after ``--`` is left alone."""
    result: list[str] = []
    collecting: str | None = None
    lists = _LISTS | (_LISTS_OF_INFER if arguments[:1] in (["infer"], ["merge"]) else frozenset())
    for index, argument in enumerate(arguments):
        if argument == "--":
            return result + arguments[index:]
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            name = name.replace("_", "-")
            collecting = name if name in lists and not equals else None
            if collecting is None:
                result.append(name + equals + value)
            elif index + 1 == len(arguments) or arguments[index + 1].startswith("-"):
                result.append(name)  # without a value: the parser says so
        elif collecting is not None and not argument.startswith("-"):
            if collecting in _DEVICES and result[-2:-1] == [collecting] and not _DEVICE.fullmatch(argument):
                collecting = None  # a file or folder
                result.append(argument)
            else:
                result += [collecting, argument]
        else:
            collecting = None
            result.append(argument)
    return result
