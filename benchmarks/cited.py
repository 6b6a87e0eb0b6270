"""Numbers in the docs and the results that they cite: says which disagree, or writes them anew.

python benchmarks/cited.py [--write]

A measured number in README.md or benchmarks/README.md is followed by a comment that readers do not see::

    2.7 s  →  2.7<!-- full_size_cpu.json: results.bank_build_100.seconds --> s

``* 1000`` after the path changes the unit. The number must be the result, rounded to as many digits as it is written
with; tests/test_docs_numbers.py checks that. After a benchmark has run again, ``--write`` puts the new numbers in, with
as many digits as before; read the sentences around them then.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DOCS = ("README.md", "benchmarks/README.md")
MARKER = re.compile(r"<!--\s*(?P<file>[\w/-]+\.json):\s*(?P<path>[^>*]+?)\s*(?:\*\s*(?P<factor>[\d.e-]+)\s*)?-->")
_STEP = re.compile(r"\.?([^.\[\]\"]+)|\[(\d+)\]|\.?\"([^\"]+)\"|\[([^\]]+)\]")


@dataclass(frozen=True)
class Cited:
    """A number in a text, where it begins, and what it cites."""

    text: str
    start: int
    file: str
    path: str
    factor: float

    def value(self, results: Path = RESULTS) -> float:
        """What the result says."""
        return value_at(json.loads((results / self.file).read_text()), self.path) * self.factor


def cited_numbers(text: str) -> list[Cited]:
    """Every number that a comment follows."""
    found = []
    for marker in MARKER.finditer(text):
        before = text[: marker.start()]
        number = re.search(r"\d[\d,]*(?:\.\d+)?$", before)
        if number is None:
            raise ValueError(f"no number stands right before {marker.group()}")
        factor = float(marker["factor"] or 1)
        found.append(Cited(number.group(), number.start(), marker["file"], marker["path"], factor))
    return found


def value_at(record: Any, path: str) -> float:
    """What ``a.b[0]."odd key"[n=100,stride=1]`` leads to; the last is the one item of a list with these values."""
    rest = path
    while rest:
        step = _STEP.match(rest)
        if step is None:
            raise ValueError(f"cannot follow {path!r} at {rest!r}")
        rest = rest[step.end() :]
        if step[4] is not None:
            wanted = dict(part.split("=") for part in step[4].split(","))
            (record,) = (item for item in record if all(str(item[key]) == value for key, value in wanted.items()))
        else:
            record = record[int(step[2])] if step[2] is not None else record[step[1] or step[3]]
    return float(record)


def agrees(text: str, value: float) -> bool:
    """Whether a number as written is the value, rounded to the digits that are written."""
    digits = text.replace(",", "")
    if "." in digits:
        return math.isclose(round(value, len(digits.split(".")[1])), float(digits), abs_tol=1e-12)
    # Zeros at the end may be digits or not.
    least = len(digits.strip("0")) or 1
    rounded = (float(f"{value:.{count}g}") for count in range(least, len(digits) + 1))
    return any(math.isclose(each, float(digits), abs_tol=1e-12) for each in rounded)


def disagreements(text: str, results: Path = RESULTS) -> list[str]:
    """A line for each number that is not what it cites."""
    return [
        f"{cited.text} is said, {cited.file} has {cited.value(results):g} at {cited.path}"
        for cited in cited_numbers(text)
        if not agrees(cited.text, cited.value(results))
    ]


def rewritten(text: str, results: Path = RESULTS) -> str:
    """The text with every cited number that disagrees replaced, written with as many digits."""
    for cited in reversed(cited_numbers(text)):
        value = cited.value(results)
        if not agrees(cited.text, value):
            text = text[: cited.start] + _like(cited.text, value) + text[cited.start + len(cited.text) :]
    return text


def _like(text: str, value: float) -> str:
    digits = text.replace(",", "")
    if "." in digits:
        return f"{value:,.{len(digits.split('.')[1])}f}"
    if value < 10:
        return f"{value:.1f}"
    significant = max(2, len(digits.strip("0")))
    return f"{float(f'{value:.{significant}g}'):,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the results' numbers into the docs")
    args = parser.parse_args()
    for name in DOCS:
        text = (ROOT / name).read_text()
        for line in disagreements(text):
            print(f"{name}: {line}")
        if args.write:
            (ROOT / name).write_text(rewritten(text))


if __name__ == "__main__":
    main()
