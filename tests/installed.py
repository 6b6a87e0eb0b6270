"""Imports the installed package before the clone's own folder ``mkc_fast``, which is only a part of it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_PATH = list(sys.path)
sys.path[:] = [place for place in _PATH if Path(place or ".").resolve() != _ROOT]
try:
    importlib.import_module("mkc_fast")
finally:
    sys.path[:] = _PATH
