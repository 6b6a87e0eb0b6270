"""``bench load``: time and memory until n bank entries are ready, in one process and in two, against unpickling."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mkc_fast.benchmarks.child import read_through
from mkc_fast.benchmarks.latency import start_up_arguments
from mkc_fast.benchmarks.memory import available_bytes
from mkc_fast.benchmarks.ready import run_ready
from mkc_fast.benchmarks.records import context, short
from mkc_fast.benchmarks.setup import missing_for_baseline
from mkc_fast.benchmarks.timing import Budget
from mkc_fast.engine.artifacts import BANK_FILE, CENTROIDS_FILE, HALF_NORMS_FILE, BankInfo, open_bank, write_info
from mkc_fast.names import FRAME

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from mkc_fast.benchmarks.setup import Checkpoints
    from mkc_fast.benchmarks.target import Target

ENTRIES = (100, 1000, 1165)
# Frames of a 10 s utterance, looked up once to count a bank as ready: pages are read by then, or not at all.
_FRAMES = 499
_MEMORY_SHARE = 0.6
_START_UP_SHARE = 0.35
_MEMORY_LIMIT_BYTES = 12e9


def bench_load(
    target: Target,
    speech: NDArray[np.float32],
    *,
    checkpoints: Checkpoints | None = None,
    entries: Sequence[int] = ENTRIES,
    budget_s: float = 240.0,
    repeats: int = 3,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Time and memory to be ready, ours and the baseline's.

    Args:
        target: Its bank gives the entries; more than it has are made by repeating them, in a file of full size.
        speech: (S,) float32 at the model's rate.
        checkpoints: What the baseline loads; its k-means models repeat where more are asked for. Without them, or
            without what the baseline needs, ours alone.
        entries: Numbers of entries.
        budget_s: Seconds to measure for, about.
        repeats: Processes started for each number; the median counts.
        progress: Called with a line as each part begins.

    Returns:
        The record: ``cases`` by number of entries, each with ``ours``, ``practice`` and two processes at once, and
        ``start_up``. What was extrapolated says ``extrapolated``; what was left out is in ``cut``.
    """
    record = context()
    budget = Budget(budget_s)
    missing = missing_for_baseline()
    kmeans = checkpoints.checked_kmeans() if checkpoints is not None and missing is None else []
    if missing is not None:
        checkpoints = None
        budget.cut.append(f"the baseline: it needs {missing}")
    progress("start-up of a whole pass")
    start_up = _start_up(target, speech, checkpoints, kmeans, budget, repeats)
    cases: list[dict[str, Any]] = []
    for count in entries:
        progress(f"{count} entries")
        case: dict[str, Any] = {"entries": count}
        with tempfile.TemporaryDirectory(dir=target.bank.parent) as folder:
            bank = _bank_of(target.bank, count, Path(folder), budget)
            if bank is not None:
                read_through(bank.iterdir())
                arguments = {"what": "bank", "bank": str(bank), "frames": _FRAMES}
                case["ours"] = _ready(arguments, repeats)
                case["ours_two_processes"] = _two(arguments)
        if kmeans:
            case.update(_baseline(kmeans, count, cases, budget, repeats))
        cases.append(case)
    return {
        "bench": "load",
        **record,
        "target": target.described(),
        "budget_s": budget_s,
        "frames_looked_up": _FRAMES,
        "start_up": start_up,
        "measuring_s": short(budget.spent),
        "cut": budget.cut,
        "notes": [
            "ready: imports done, entries open or unpickled, 499 frames looked up, each in an entry of its own draw",
            "all files are in the page cache: disks and networks are not measured",
            f"{len(kmeans)} different pickles; more are read by reading these again" if kmeans else "no pickles given",
        ],
        "cases": cases,
    }


def _bank_of(source: Path, count: int, folder: Path, budget: Budget) -> Path | None:
    """A bank of so many entries: those of ``source``, repeated; None if the disk has no room."""
    bank = open_bank(source)
    _, clusters, dim = bank.centroids.shape
    if count == len(bank):
        return source
    size = count * clusters * dim * 4
    if shutil.disk_usage(folder).free < 1.2 * size:
        budget.cut.append(f"ours with {count} entries: no room on the disk for {size / 1e9:.1f} GB")
        return None
    if not budget.allows(size / 4e8, f"ours with {count} entries"):
        return None
    made = folder / "bank"
    made.mkdir()
    which = np.arange(count) % len(bank)
    centroids = np.lib.format.open_memmap(made / CENTROIDS_FILE, "w+", np.float32, (count, clusters, dim))
    for entry, original in enumerate(which):
        centroids[entry] = bank.centroids[original]
    centroids.flush()
    del centroids
    np.save(made / HALF_NORMS_FILE, bank.half_norms[which])
    info = bank.info
    write_info(
        made,
        BankInfo(
            [f"spk{entry}" for entry in range(count)],
            [info.num_clusters[entry] for entry in which],
            [info.sources[entry] for entry in which],
            [info.unused[entry] for entry in which],
            [info.duplicates[entry] for entry in which],
            dim,
        ),
    )
    assert (made / BANK_FILE).exists()
    return made


def _baseline(
    kmeans: Sequence[Path], count: int, before: Sequence[dict[str, Any]], budget: Budget, repeats: int
) -> dict[str, Any]:
    """Unpickling so many models: measured, or extrapolated from the largest number measured, and marked so."""
    arguments = {"what": "kmeans", "kmeans": [str(kmeans[i % len(kmeans)]) for i in range(count)], "frames": _FRAMES}
    size = sum(kmeans[i % len(kmeans)].stat().st_size for i in range(count))
    fits = size < min(_MEMORY_LIMIT_BYTES, _MEMORY_SHARE * available_bytes())
    measured = [case for case in before if "practice" in case and not case["practice"].get("extrapolated")]
    rate = measured[-1]["practice"]["ready_s"] / measured[-1]["entries"] if measured else 0.02
    if fits and budget.allows(1.5 * rate * count, f"the baseline with {count} entries"):
        times = max(1, min(repeats, int(budget.left / 3 / max(rate * count, 0.1))))
        found = {"practice": _ready(arguments, times)}
        if 2 * size < min(_MEMORY_LIMIT_BYTES, _MEMORY_SHARE * available_bytes()):
            found["practice_two_processes"] = _two(arguments)
        else:
            one = found["practice"]
            found["practice_two_processes"] = {
                "extrapolated": "twice one process: nothing is shared",
                "pss_mb_in_all": short(2 * one["pss_mb"]) if one.get("pss_mb") else None,
            }
        return found
    if not fits:
        budget.cut.append(f"the baseline with {count} entries: {size / 1e9:.1f} GB do not fit in memory")
    if not measured:
        return {}
    last = measured[-1]
    factor = count / last["entries"]
    scaled = {
        name: short(value * factor) for name, value in last["practice"].items() if isinstance(value, float) and value
    }
    return {"practice": {**scaled, "extrapolated": f"{factor:.3g} times what {last['entries']} entries took"}}


def _ready(arguments: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Medians over processes, one at a time."""
    runs = [run_ready(arguments)[0] for _ in range(repeats)]
    names = [name for name, value in runs[0].items() if isinstance(value, float)]
    return {**{name: short(float(np.median([run[name] for run in runs]))) for name in names}, "runs": repeats}


def _two(arguments: dict[str, Any]) -> dict[str, Any]:
    """Memory of two processes that are ready at once."""
    reports = run_ready(arguments, arguments)
    sizes = [report.get("pss_mb") for report in reports]
    return {"pss_mb_in_all": short(sum(size for size in sizes if size)) if all(sizes) else None}


def _start_up(
    target: Target,
    speech: NDArray[np.float32],
    checkpoints: Checkpoints | None,
    kmeans: Sequence[Path],
    budget: Budget,
    repeats: int,
) -> dict[str, Any]:
    """From the start of a process to the first output of 10 s, in turn: ours, the baseline, ours, the baseline."""
    found: dict[str, list[dict[str, Any]]] = {"ours": []}
    with tempfile.TemporaryDirectory() as folder:
        ours = start_up_arguments(target, speech, FRAME, Path(folder))
        arms = {"ours": ours}
        if checkpoints is not None:
            files = vars(checkpoints)
            arms["practice"] = {**ours, **{name: str(path) for name, path in files.items()}, "what": "baseline"}
            found["practice"] = []
            read_through([*files.values(), *kmeans])
        read_through([*target.model.iterdir(), *target.bank.iterdir()])
        begin = time.perf_counter()
        for count in range(repeats):
            if count and (time.perf_counter() - begin) * (count + 1) / count > _START_UP_SHARE * budget.seconds:
                budget.cut.append(f"start-up: {count} of {repeats} rounds, no time for more")
                break
            for name, arguments in arms.items():
                found[name] += run_ready(arguments)
    parts = ("import_s", "load_s", "first_output_s", "ready_s", "pss_mb", "peak_rss_mb")
    return {
        name: {
            **{part: short(float(np.median([run[part] for run in runs]))) for part in parts if part in runs[0]},
            "runs": len(runs),
        }
        for name, runs in found.items()
    }
