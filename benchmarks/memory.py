"""Memory of processes and of the machine, as psutil reads it; peaks from /proc, since psutil has none on Linux."""

from __future__ import annotations

from pathlib import Path

from mkc_fast.extras import required

with required("measuring memory", "psutil"):
    import psutil


def memory_mb(pid: int) -> dict[str, float]:
    """Memory of a living process in MB: ``rss_mb``, ``pss_mb`` and ``peak_rss_mb``, as far as the system tells them.

    PSS counts a page that n processes share as 1 / n of it.
    """
    try:
        found = psutil.Process(pid).memory_full_info()
    except psutil.Error:
        return {}
    pss, peak = getattr(found, "pss", None), peak_mb(pid)
    return {
        "rss_mb": found.rss / 1e6,
        **({} if pss is None else {"pss_mb": pss / 1e6}),
        **({} if peak is None else {"peak_rss_mb": peak}),
    }


def peak_mb(pid: int) -> float | None:
    """The largest resident size that a living process has had, in MB; None where there is no /proc."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM:")), None)


def available_bytes() -> int:
    """Memory of the machine that is free, or can be freed at once."""
    return int(psutil.virtual_memory().available)
