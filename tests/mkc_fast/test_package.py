"""What an installed package gives besides code: types that others' type checkers follow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_type_checkers_follow_the_installed_package(tmp_path: Path) -> None:
    (tmp_path / "use.py").write_text(
        "from mkc_fast import Anonymizer\n"
        "from mkc_fast.export import build_bank\n"
        "number: int = Anonymizer.load('model', 'bank').info.hop\n"
        "text: str = build_bank('kmeans.scp', 'bank')\n"
    )
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", tmp_path / "cache", "use.py"]
    said = subprocess.run([str(part) for part in command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert said.stdout.splitlines()[0].startswith("use.py:4: error: Incompatible types in assignment"), said.stdout
    assert "Found 1 error in 1 file" in said.stdout
