"""The pictures of a benchmark report: matplotlib, one function a picture, one palette for all (Okabe and Ito's)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from mkc_fast.names import ASSIGN, AUDIO, ENCODE, FP32, FRAME, RESTORE, VOCODE
from mkc_fast.pages.pictures import BLUE, GREEN, GREY, INK, ORANGE, PINK, SKY, VERMILION, picture

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OURS, BASELINE = BLUE, VERMILION
STAGES = {ENCODE: SKY, ASSIGN: ORANGE, RESTORE: GREEN, VOCODE: PINK}
STAGE_TITLES = {ENCODE: "WavLM", ASSIGN: "look-up", RESTORE: "conformer", VOCODE: "vocoder"}
_MODES = {FRAME: (OURS, "o", "-"), AUDIO: (GREEN, "s", "--")}
_ARMS = (OURS, BASELINE, GREEN, PINK, ORANGE, SKY)
_MARKERS = ("o", "s", "^", "D", "v", "P")


def draw_all(records: Mapping[str, Mapping[str, Any]]) -> dict[str, bytes]:
    """The pictures that the records have the numbers for, as PNG bytes by name."""
    painters: dict[str, tuple[str, Callable[[Figure, Any], None], float]] = {
        "comparison": ("throughput", _comparison, 2.9),
        "throughput": ("throughput", _throughput, 3.2),
        "latency": ("latency", _latency, 3.4),
        "roofline": ("latency", _roofline, 3.7),
        "startup": ("load", _start_up, 1.9),
        "loading": ("load", _loading, 3.2),
        "lookup": ("lookup", _lookup, 4.6),
    }
    drawn = {}
    for name, (bench, paint, height_in) in painters.items():
        record = records.get(bench)
        if record is None and name == "startup":
            record = records.get("latency")
        if record is None or not _has(name, record):
            continue
        drawn[name] = picture(paint, record, height_in)
    return drawn


def _has(name: str, record: Mapping[str, Any]) -> bool:
    if name == "comparison":
        return bool(record.get("comparison"))
    if name == "startup":
        return bool(record.get("start_up"))
    if name == "roofline":
        return any(case["floors"] for case in record["cases"])
    return bool(record.get("cases") or record.get("device_only"))


def _plain(value: float, _: object = None) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:g}"


def _log(axis: Any, ticks: list[float]) -> None:
    """Ticks at these numbers alone, written as numbers."""
    axis.set_ticks(ticks)
    axis.set_major_formatter(FuncFormatter(_plain))
    axis.set_minor_locator(NullLocator())


def _comparison(figure: Figure, record: Mapping[str, Any]) -> None:
    """Milliseconds of work a second of audio, by stage, the baseline above mkc-fast."""
    comparison = record["comparison"]
    axes: Axes = figure.subplots()
    rows, labels = [], []
    for mode in comparison["modes"]:
        rows += [(mode, "practice"), (mode, "ours")]
        stride = f", stride {mode['stride']}" if mode["stride"] else ""
        labels += [f"{mode['mode']} mode{stride}\nbaseline", "mkc-fast"]
    heights = [index + 0.35 * (index // 2) for index in range(len(rows))]
    longest = 0.0
    for place, (mode, arm) in zip(heights, rows, strict=True):
        left = 0.0
        for stage, color in STAGES.items():
            width = 1000 * mode["stage_seconds"][arm][stage] / comparison["audio_s"]
            axes.barh(place, width, 0.72, left, color=color, edgecolor="white", linewidth=0.8)
            left += width
        longest = max(longest, left)
        speed = mode["practice_rtfx" if arm == "practice" else "ours_rtfx"]
        text = f"RTFx {speed:g}" + (f", {mode['ratio']:g} times the baseline" if arm == "ours" else "")
        axes.text(left * 1.01, place, f" {text}", va="center", fontweight="bold" if arm == "ours" else "normal")
    axes.set_yticks(heights, labels)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.65 * longest)
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))
    axes.set_xlabel("milliseconds of work for one second of audio")
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
    handles: list[Any] = [axes.barh(0, 0, color=color) for color in STAGES.values()]
    figure.legend(handles, [STAGE_TITLES[stage] for stage in STAGES], loc="outside upper right", ncols=4)


def _throughput(figure: Figure, record: Mapping[str, Any]) -> None:
    """RTFx by batch (left) and by workers (right), with what the measured matrix products allow."""
    left, right = figure.subplots(1, 2, sharey=True)
    device, files = record["device_only"]["cases"], record["files_to_files"]["cases"]
    tallest = 0.0
    for axes, cases, key in ((left, device, "batch_s"), (right, files, "workers")):
        values = sorted({case[key] for case in cases})
        for mode, (color, marker, line) in _MODES.items():
            mine = [(values.index(case[key]), case["rtfx"]) for case in cases if case["mode"] == mode]
            if mine:
                axes.plot(*zip(*mine, strict=True), color=color, marker=marker, linestyle=line, label=f"{mode} mode")
                tallest = max(tallest, *(rtfx for _, rtfx in mine))
        shown = [
            ("one by\none" if not value else f"{value:g} s") if key == "batch_s" else f"{value:g}" for value in values
        ]
        axes.set_xticks(range(len(values)), shown)
        axes.margins(x=0.2)
        axes.grid(axis="y")
    floor = _floor_rtfx(record)
    if floor:
        for axes in (left, right):
            axes.axhline(floor, color=GREY, linestyle=":", linewidth=1.5)
        left.text(
            0.02,
            floor,
            "the published layers' arithmetic at the GEMM rate",
            color=GREY,
            # Where no curve runs.
            va="top" if tallest > 0.9 * floor else "bottom",
            transform=left.get_yaxis_transform(),
        )
    left.set_ylim(0, 1.2 * max(tallest, floor or 0) or 1)
    left.set_ylabel("RTFx (seconds of audio / second)")
    left.set_title("device only")
    left.set_xlabel("padded seconds that run at once")
    right.set_title("files to files")
    right.set_xlabel("worker processes")
    left.legend(loc="lower right")


def _floor_rtfx(record: Mapping[str, Any]) -> float | None:
    for case in record["device_only"]["cases"]:
        if case["utilization"]:
            return float(case["rtfx"] / case["utilization"])
    return None


def _latency(figure: Figure, record: Mapping[str, Any]) -> None:
    """Latency against length (left) and stage shares (right)."""
    left, right = figure.subplots(1, 2, width_ratios=[1.15, 1])
    cases = record["cases"]
    lengths = [case["length_s"] for case in cases]
    warm = {name: [case["warm_s"]["all"][name] for case in cases] for name in ("p50", "p99")}
    left.plot(lengths, warm["p50"], color=OURS, marker="o", label="warm, p50")
    left.fill_between(lengths, warm["p50"], warm["p99"], color=OURS, alpha=0.22, linewidth=0, label="to p99")
    left.plot(
        lengths,
        [case["first_s"]["all"] for case in cases],
        color=BASELINE,
        marker="x",
        linestyle="none",
        label="first call",
    )
    if all(case["floors"] for case in cases):
        floor = [sum(part["floor_s"] for part in case["floors"].values()) for case in cases]
        left.plot(lengths, floor, color=GREY, linestyle=":", label="floor")
    left.set_xscale("log")
    left.set_yscale("log")
    _log(left.xaxis, lengths)
    low, high = left.get_ylim()
    _log(
        left.yaxis,
        [
            tick
            for tick in (scale * 10.0**power for power in range(-4, 4) for scale in (1, 2, 5))
            if low <= tick <= high
        ],
    )
    left.set_xlabel("length of the utterance (s)")
    left.set_ylabel("seconds until its output")
    left.set_title("time to output")
    left.grid()
    left.legend(loc="upper left")
    below = np.zeros(len(cases))
    for stage, color in STAGES.items():
        share = np.array(
            [100 * case["warm_s"][stage]["p50"] / sum(case["warm_s"][each]["p50"] for each in STAGES) for case in cases]
        )
        right.bar(range(len(cases)), share, 0.7, below, color=color, edgecolor="white", linewidth=0.8)
        for index, part in enumerate(share):
            if part >= 6:
                right.text(index, below[index] + part / 2, f"{part:.0f}", ha="center", va="center", fontsize=8.5)
        below += share
    right.set_xticks(range(len(cases)), [f"{length:g}" for length in lengths])
    right.set_xlabel("length of the utterance (s)")
    right.set_ylabel("share of the time (%)")
    right.set_title("stages, warm")
    right.set_ylim(0, 100)
    handles: list[Any] = [right.bar(0, 0, color=color) for color in STAGES.values()]
    figure.legend(handles, [STAGE_TITLES[stage] for stage in STAGES], loc="outside lower right", ncols=4)


def _roofline(figure: Figure, record: Mapping[str, Any]) -> None:
    """Each stage under the machine's roof (left), and its time against its floor (right)."""
    left, right = figure.subplots(1, 2, width_ratios=[1.3, 1])
    ceilings = record["ceilings"]
    precision = record["target"]["precision"]
    peak = ceilings["gemm_gflops"].get(precision, ceilings["gemm_gflops"][FP32])
    points: dict[str, list[tuple[float, float, float]]] = {stage: [] for stage in STAGES}
    for case in record["cases"]:
        for stage, floor in case["floors"].items():
            seconds = case["warm_s"][stage]["p50"]
            if floor["mb"] and seconds:
                points[stage].append((1000 * floor["gflop"] / floor["mb"], floor["gflop"] / seconds, case["length_s"]))
    every = [point for part in points.values() for point in part]
    low, high = min(x for x, _, _ in every) / 2.5, max(x for x, _, _ in every) * 2.5
    x = np.geomspace(low, high, 200)
    left.plot(x, np.minimum(peak, x * ceilings["copy_gbs"]), color=INK, linewidth=2.2)
    for stage, part in points.items():
        if part:
            xs, ys, _ = zip(*part, strict=True)
            left.plot(xs, ys, color=STAGES[stage], marker="o", linewidth=1, label=STAGE_TITLES[stage])
    left.text(high, peak * 1.08, f"GEMM: {peak:,.0f} GFLOP/s", ha="right", va="bottom")
    left.text(
        0.03, 0.97, f"slope: copies,\n{ceilings['copy_gbs']:g} GB/s", transform=left.transAxes, va="top", color=GREY
    )
    left.set_xscale("log")
    left.set_yscale("log")
    left.set_ylim(min(y for _, y, _ in every) / 2, peak * 2.2)
    left.xaxis.set_major_formatter(FuncFormatter(_plain))
    left.yaxis.set_major_formatter(FuncFormatter(_plain))
    left.yaxis.set_minor_formatter(NullFormatter())
    left.xaxis.set_minor_formatter(NullFormatter())
    left.set_xlabel("operations for each byte of weights read")
    left.set_ylabel("GFLOP/s reached")
    left.legend(loc="lower right")
    left.set_title("roofline (utterances of 1, 3, 10 and 30 s)" if len(record["cases"]) == 4 else "roofline")
    left.grid()
    case = min(record["cases"], key=lambda each: abs(each["length_s"] - 10))
    for index, stage in enumerate(STAGES):
        floor = case["floors"][stage]["floor_s"]
        seconds = case["warm_s"][stage]["p50"]
        right.barh(index, seconds, 0.68, color=STAGES[stage])
        right.barh(index, floor, 0.68, color="none", edgecolor=INK, linewidth=1.3, hatch="////", alpha=0.75)
        share = f"{100 * floor / seconds:.0f} %" if seconds else ""
        right.text(max(seconds, floor), index, f"  {share}", va="center")
    right.set_yticks(range(len(STAGES)), [STAGE_TITLES[stage] for stage in STAGES])
    right.invert_yaxis()
    right.margins(x=0.2)
    right.set_xlim(left=0)
    right.tick_params(axis="y", length=0)
    right.grid(axis="x")
    right.set_xlabel(f"seconds, utterance of {case['length_s']:g} s")
    right.set_title("time (hatched: floor)")


def _start_up(figure: Figure, record: Mapping[str, Any]) -> None:
    """From a process's start to its first output, by part."""
    axes: Axes = figure.subplots()
    start_up = record["start_up"]
    arms = {"mkc-fast": start_up["median_s"]} if "median_s" in start_up else {
        title: start_up[name] for name, title in (("practice", "baseline"), ("ours", "mkc-fast")) if name in start_up
    }  # fmt: skip
    parts = {
        "import_s": ("imports", "#8fa3b5"),
        "load_s": ("loading", "#4f7396"),
        "first_output_s": ("first output", "#1f3b57"),
    }
    for place, (title, run) in enumerate(arms.items()):
        left = max(0.0, run["ready_s"] - sum(run[part] for part in parts))
        axes.barh(place, left, 0.7, color="#d3d9de", edgecolor="white", linewidth=0.8)
        for part, (_, color) in parts.items():
            axes.barh(place, run[part], 0.7, left, color=color, edgecolor="white", linewidth=0.8)
            left += run[part]
        axes.text(
            left,
            place,
            f"  {run['ready_s']:.3g} s",
            va="center",
            fontweight="bold" if title == "mkc-fast" else "normal",
        )
    axes.set_yticks(range(len(arms)), list(arms))
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlim(left=0)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    axes.set_xlabel("seconds from the process's start")
    handles: list[Any] = [
        axes.barh(0, 0, color=color) for color in ("#d3d9de", *(color for _, color in parts.values()))
    ]
    figure.legend(handles, ["interpreter", *(title for title, _ in parts.values())], loc="outside upper right", ncols=4)


def _loading(figure: Figure, record: Mapping[str, Any]) -> None:
    """Seconds and memory until a bank is ready, by its entries; hollow where extrapolated."""
    left, right = figure.subplots(1, 2)
    cases = record["cases"]
    for name, title, color, marker in (
        ("practice", "baseline: unpickling", BASELINE, "s"),
        ("ours", "mkc-fast", OURS, "o"),
    ):
        for axes, value in ((left, "ready_s"), (right, "pss_mb")):
            known = [(index, case[name]) for index, case in enumerate(cases) if case.get(name, {}).get(value)]
            if not known:
                continue
            axes.plot([index for index, _ in known], [one[value] for _, one in known], color=color, label=title)
            for index, one in known:
                face = "white" if "extrapolated" in one else color
                axes.plot(index, one[value], marker, color=color, markerfacecolor=face, markersize=7)
                axes.annotate(
                    _rounded(one[value]),
                    (index, one[value]),
                    (0, 7),
                    textcoords="offset points",
                    ha="center",
                    fontsize=8.5,
                )
    for axes, title in ((left, "seconds until ready"), (right, "memory of a process (MB, PSS)")):
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.set_ylim(low / 1.5, high * 2)
        powers = range(int(np.floor(np.log10(low / 1.5))), int(np.ceil(np.log10(high * 2))) + 1)
        _log(axes.yaxis, [10.0**power for power in powers if low / 1.5 <= 10.0**power <= high * 2])
        axes.set_xticks(range(len(cases)), [f"{case['entries']:,}" for case in cases])
        axes.margins(x=0.15)
        axes.set_xlabel("bank entries")
        axes.set_title(title)
        axes.grid(axis="y")
        axes.tick_params(axis="x", length=0)
    handles, titles = left.get_legend_handles_labels()
    figure.legend(handles, titles, loc="outside lower center", ncols=2)


def _rounded(value: float) -> str:
    return f"{value:.2g}" if value < 100 else f"{value:,.0f}"


def _lookup(figure: Figure, record: Mapping[str, Any]) -> None:
    """Frames a second by frames, a panel for each stride and number of entries."""
    cases = record["cases"]
    counts = sorted({case["entries"] for case in cases})
    strides = sorted({case["stride"] for case in cases})
    names = list(dict.fromkeys(name for case in cases for name in case["frames_a_second"]))
    grid = figure.subplots(len(strides), len(counts), sharex=True, sharey=True, squeeze=False)
    for row, stride in enumerate(strides):
        for column, count in enumerate(counts):
            axes: Axes = grid[row, column]
            mine = [case for case in cases if case["entries"] == count and case["stride"] == stride]
            for index, name in enumerate(names):
                line = [
                    (case["frames"], case["frames_a_second"][name]) for case in mine if name in case["frames_a_second"]
                ]
                if line:
                    color, marker = _ARMS[index % len(_ARMS)], _MARKERS[index % len(_MARKERS)]
                    axes.plot(*zip(*line, strict=True), color=color, marker=marker, label=name)
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.grid()
            axes.set_title(f"N {count:,}, stride {stride}")
            if row == len(strides) - 1:
                axes.set_xlabel("frames T")
            if column == 0:
                axes.set_ylabel("frames a second")
    _log(grid[0, 0].xaxis, sorted({float(case["frames"]) for case in cases}))
    grid[0, 0].yaxis.set_major_formatter(FuncFormatter(_plain))
    grid[0, 0].yaxis.set_minor_locator(NullLocator())
    by_name = {}
    for axes in grid.flat:
        by_name.update(dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True)))
    figure.legend(list(by_name.values()), list(by_name), loc="outside lower center", ncols=min(4, len(by_name)))
