"""Keeps ONNX Runtime from reporting home: its official builds do so by default, from release 1.29 on.

Left alone, it writes a device id and a database of events into the user's cache folder and sends them to Microsoft: the
path of the program, names of model files, run times, error texts. ``ORT_DISABLE_TELEMETRY=1`` stops all of it, but only
if it is set before ONNX Runtime is imported, which reads it once. So importing ``mkc_fast`` sets it, and processes that
are started from here inherit it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings

VARIABLE = "ORT_DISABLE_TELEMETRY"
_MEANS_YES = frozenset({"1", "true", "yes", "on", "y"})
_FIRST_RELEASE = (1, 29)


def switch_off() -> None:
    """Set ``ORT_DISABLE_TELEMETRY=1``, whatever it was; quiet an ONNX Runtime that was imported before, and warn.

    An ONNX Runtime that was imported before has already read its environment; only its later events can be stopped.
    """
    asked = os.environ.get(VARIABLE, "").strip().lower() in _MEANS_YES
    os.environ[VARIABLE] = "1"
    loaded = sys.modules.get("onnxruntime")
    if loaded is None:
        return
    quiet(loaded)
    if not asked and _reports(str(getattr(loaded, "__version__", ""))):
        warnings.warn(
            f"onnxruntime was imported before mkc_fast, so its telemetry had begun; import mkc_fast first, or set "
            f"{VARIABLE}=1 for the whole program",
            stacklevel=3,
        )


def quiet(runtime: object) -> None:
    """Stop the events of an imported ``onnxruntime`` module, where it has them."""
    disable = getattr(runtime, "disable_telemetry_events", None)
    if disable is not None:
        with contextlib.suppress(RuntimeError):  # the variable does the work; this is a second lock on the same door
            disable()


def _reports(version: str) -> bool:
    """Whether official builds of a release have telemetry on Linux and macOS; an unreadable version counts as one."""
    try:
        return tuple(int(part) for part in version.split(".")[:2]) >= _FIRST_RELEASE
    except ValueError:
        return True
