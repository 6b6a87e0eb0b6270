"""``bench report``: results of the benchmarks → one self-contained HTML page, and its pictures as PNG files."""

from __future__ import annotations

import base64
import html
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkc_fast.benchmarks.figures import STAGE_TITLES, STAGES, draw_all
from mkc_fast.benchmarks.records import read_record
from mkc_fast.engine.atomic_files import whole_file
from mkc_fast.errors import ArtifactError, OutputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

BENCHES = ("latency", "throughput", "lookup", "load")
PAGE_FILE = "report.html"
# Rates of one run that differ by more say that something else was running.
_QUIET = 0.85


@dataclass(frozen=True)
class _Section:
    """A claim with its picture, what the picture shows, and the numbers."""

    title: str
    picture: str | None
    caption: str
    paragraphs: list[str]
    table: str = ""
    source: str = ""


def write_report(folder: Path, out: Path) -> list[Path]:
    """Write ``report.html`` and a PNG for each picture.

    Args:
        folder: Its ``*.json`` files are looked at; those that ``mkc-fast bench`` wrote count, one of each bench.
        out: Where to write.

    Returns:
        The files written, the page first.

    Raises:
        ArtifactError: There is no such result, there are two of one bench, or one is damaged.
        OutputError: ``out`` cannot be written.
    """
    records = read_records(folder)
    try:
        pictures = draw_all(records)
        page = build_page(records, pictures)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, ZeroDivisionError) as error:
        raise ArtifactError(f"{folder}: a result is damaged ({type(error).__name__}: {error})") from None
    written = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        for path, content in (
            (out / PAGE_FILE, page.encode()),
            *((out / f"{name}.png", picture) for name, picture in pictures.items()),
        ):
            with whole_file(path) as temporary:
                temporary.write_bytes(content)
            written.append(path)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror})") from None
    return written


def read_records(folder: Path) -> dict[str, dict[str, Any]]:
    """The results in a folder by bench; other JSON files are passed over."""
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: no such folder of results")
    found: dict[str, dict[str, Any]] = {}
    names: dict[str, str] = {}
    for path in sorted(folder.glob("*.json")):
        record = read_record(path)
        bench = record.get("bench")
        if bench not in BENCHES:
            continue
        if bench in found:
            raise ArtifactError(f"{folder}: {names[bench]} and {path.name} are both of bench {bench}; keep one of them")
        found[bench], names[bench] = {**record, "file": path.name}, path.name
    if not found:
        raise ArtifactError(
            f"{folder}: holds no result of 'mkc-fast bench'; write them with --out {folder}/latency.json"
        )
    return {bench: found[bench] for bench in BENCHES if bench in found}


def build_page(records: Mapping[str, Mapping[str, Any]], pictures: Mapping[str, bytes]) -> str:
    """The page as text; every picture is in it."""
    first = next(iter(records.values()))
    sections = [
        *_throughput_sections(records),
        *_latency_sections(records),
        *_load_sections(records),
        *_lookup(records),
    ]
    numbers = {name: number for number, name in enumerate((s.picture for s in sections if s.picture in pictures), 1)}
    body = "\n".join(_section(section, pictures, numbers) for section in sections)
    return _PAGE.format(
        style=_STYLE,
        lead=_lead(records),
        tiles="".join(_tile(*tile) for tile in _tiles(records)),
        machine=_machine(first),
        body=body,
        conditions=_conditions(records),
    )


def _e(value: object) -> str:
    return html.escape(str(value), quote=True)


def _number(value: float, digits: int = 3) -> str:
    """To so many significant digits, without an exponent."""
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 100 else f"{rounded:g}"


def _lead(records: Mapping[str, Mapping[str, Any]]) -> str:
    """What mkc-fast is, and the result in two sentences."""
    text = (
        "mkc-fast anonymizes speech: WavLM features, the nearest centroid of each 20 ms frame in one of many k-means "
        "models, a conformer, and a HiFi-GAN vocoder. RTFx is seconds of audio for one second of work: more is faster."
    )
    comparison = (records.get("throughput") or {}).get("comparison")
    if comparison:
        parts = [
            f"{_number(mode['ratio'])} times as fast in {_e(mode['mode'])} mode "
            f"({_number(mode['ours_rtfx'])} against {_number(mode['practice_rtfx'])} times real time)"
            for mode in comparison["modes"]
        ]
        text += (
            f" Beside the baseline (PyTorch and scikit-learn, one file at a time) it is "
            f"<b>{' and '.join(parts)}</b>,"
            " on the same machine, threads, recordings and draws"
        )
        text += (
            f", with the same cluster ids in {100 * comparison['same_cluster_ids']:.6g} % of frames."
            if comparison["same_cluster_ids"] is not None
            else "."
        )
    return text


def _tiles(records: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """A few numbers to see first, each with what it is."""
    tiles: list[tuple[str, str]] = []
    throughput, latency, load = (records.get(name) for name in ("throughput", "latency", "load"))
    if throughput:
        comparison = throughput.get("comparison")
        tiles += [
            (f"{_number(mode['ratio'])} times", f"as fast as the baseline, {_e(mode['mode'])} mode")
            for mode in (comparison["modes"] if comparison else [])
        ]
        shares = [case["utilization"] for case in throughput["device_only"]["cases"] if case["utilization"]]
        if shares:
            tiles.append((f"{100 * max(shares):.0f} %", "of the rate of matrix products, at best"))
    if latency:
        case = min(latency["cases"], key=lambda each: abs(each["length_s"] - 10))
        tiles.append(
            (f"{_number(case['warm_s']['all']['p50'])} s", f"for one utterance of {case['length_s']:g} s (p50)")
        )
        if latency["start_up"]:
            tiles.append(
                (f"{_number(latency['start_up']['median_s']['ready_s'])} s", "from a process's start to its first 10 s")
            )
    if load and load["cases"]:
        last = load["cases"][-1]
        if "ours" in last:
            against = f", {_number(last['practice']['ready_s'])} s unpickling" if "practice" in last else ""
            tiles.append(
                (f"{_number(last['ours']['ready_s'])} s", f"until {last['entries']:,} models are ready{against}")
            )
    return tiles


def _tile(value: str, what: str) -> str:
    return f"<li><b>{value}</b><span>{what}</span></li>"


def _machine(record: Mapping[str, Any]) -> str:
    machine, target = record["machine"], record["target"]
    parts = [machine["cpu"], f"{machine['cores']} cores", f"{machine['memory_gib']} GiB of memory"]
    if machine["gpu"]:
        parts.append(machine["gpu"])
    parts.append(
        f"{target['weights']} weights, D {target['dim']}, {target['entries']} bank entries of {target['clusters']}"
    )
    return _e("; ".join(str(part) for part in parts))


def _table(head: Sequence[str], rows: Iterable[Sequence[object]], left: int = 1) -> str:
    def cell(tag: str, index: int, value: object) -> str:
        return f"<{tag}{'' if index < left else ' class=n'}>{_e(value)}</{tag}>"

    body = [[str(value) for value in row] for row in rows]
    # A column that nothing stands in is left out: the rate of matrix products, say, for models that are not counted.
    shown = [index for index in range(len(head)) if any(row[index] for row in body)]
    top = "".join(cell("th", index, value) for index, value in enumerate(head) if index in shown)
    lines = "".join(f"<tr>{''.join(cell('td', index, row[index]) for index in shown)}</tr>" for row in body)
    return f"<div class=scroll><table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>"


def _section(section: _Section, pictures: Mapping[str, bytes], numbers: Mapping[str | None, int]) -> str:
    picture = ""
    if section.picture is not None and section.picture in pictures:
        data = base64.b64encode(pictures[section.picture]).decode()
        picture = (
            f'<figure><div class=scroll><img alt="{_e(section.caption)}" src="data:image/png;base64,{data}"></div>'
            f"<figcaption><b>Figure {numbers[section.picture]}.</b> {_e(section.caption)}</figcaption></figure>"
        )
    text = "".join(f"<p>{paragraph}</p>" for paragraph in section.paragraphs)
    source = f"<p class=source>From {_e(section.source)}.</p>" if section.source else ""
    return f"<section><h2>{_e(section.title)}</h2>{picture}{text}{section.table}{source}</section>"


# What keeps a pass from its floor, or carries it past.
_REMAINS = "What remains is convolutions of few channels in the vocoder, and passes over memory between the products."
_WINOGRAD = (
    "More than all of it is possible, since the vocoder's residual blocks take half of their multiplications by "
    "Winograd's method. Linear layers cannot be had for less."
)


def _halved(record: Mapping[str, Any]) -> bool:
    """Whether the vocoder ran on the native operators."""
    used = str(record["target"].get("operators", ""))
    return used.startswith("native operators") and ("in " not in used or "vocoder" in used)


def _why(record: Mapping[str, Any]) -> str:
    """Why it is not faster: the arithmetic, and what the machine does of it."""
    shares = [(case["utilization"], case["rtfx"]) for case in record["device_only"]["cases"] if case["utilization"]]
    if not shares:
        return "The arithmetic of models of these sizes is not counted, so there is no floor to compare with."
    share, rtfx = max(shares)
    ceilings = record["ceilings"]
    precision = record["target"]["precision"]
    rate = ceilings["gemm_gflops"].get(precision, ceilings["gemm_gflops"]["fp32"])
    text = (
        f"<b>Why not faster?</b> A second of audio takes {rate * share / rtfx:.3g} billion operations, and large "
        f"matrix products reach {_number(rate)} GFLOP/s here in the same run. What computes the layers as they are "
        f"written, in this precision, cannot pass {rtfx / share:.3g} times real time on this machine; the best run "
        f"reaches {100 * share:.0f} % of that. {_WINOGRAD if _halved(record) else _REMAINS}"
    )
    seen = ceilings.get("gemm_spread", [rate])
    if min(seen) < _QUIET * max(seen):
        text += (
            f" <b>The machine was not quiet</b>: the same products reached between {_number(min(seen))} and "
            f"{_number(max(seen))} GFLOP/s during the run, so times here are longer than they need be; ratios of runs "
            "that took turns mean more."
        )
    return text


def _throughput_sections(records: Mapping[str, Mapping[str, Any]]) -> list[_Section]:
    record = records.get("throughput")
    if record is None:
        return []
    sections = []
    comparison = record.get("comparison")
    if comparison:
        rows = [
            (
                f"{mode['mode']}" + (f", stride {mode['stride']}" if mode["stride"] else ""),
                _number(mode["ours_rtfx"]),
                _number(mode["practice_rtfx"]),
                _number(mode["ratio"]),
                (
                    f"{_number(mode['ratio_by_utterance']['quartile_1'])} to "
                    f"{_number(mode['ratio_by_utterance']['quartile_3'])}"
                ),
                ", ".join(_number(each) for each in mode["ratio_by_round"]),
            )
            for mode in comparison["modes"]
        ]
        text = [
            (
                "The baseline is eager PyTorch in float32, one utterance at a time: WavLM with all its layers in "
                "memory and "
                "its pass stopped at the sixth, PyTorch's fused attention, weight norm removed, every k-means "
                "model unpickled, "
                "and scikit-learn's <code>predict</code> in float64 once for each draw, in frame mode with stride "
                "1 once for "
                "each frame. Both arms get the same recordings, draws and number of threads, and take turns "
                "utterance by "
                "utterance, so that a busy moment of the machine meets both."
            ),
            (
                f"Largest difference of a sample between the two, where all cluster ids agree: "
                f"{comparison['largest_difference']:.2g}."
            ),
        ]
        rounds = f"{comparison['rounds']} round{'s' * (comparison['rounds'] > 1)}"
        sections.append(
            _Section(
                "Beside the baseline",
                "comparison",
                f"Work for one second of audio by stage; {comparison['utterances']} utterances, "
                f"{comparison['audio_s']:g} s of audio, {rounds}, {comparison['threads']} "
                f"threads.",
                text,
                _table(
                    (
                        "mode",
                        "mkc-fast RTFx",
                        "baseline RTFx",
                        "ratio",
                        "ratio by utterance, quartiles",
                        "ratio by round",
                    ),
                    rows,
                ),
                _source(record),
            )
        )
    device, files = record["device_only"], record["files_to_files"]
    speeds: list[tuple[object, ...]] = []
    for case in device["cases"]:
        how = f"batches of {case['batch_s']:g} s" if case["batch_s"] else "one by one"
        speeds.append((f"device only, {how}", case["mode"], _number(case["rtfx"]), _share(case["utilization"])))
    for case in files["cases"]:
        how = f"{case['workers']} worker{'s' * (case['workers'] > 1)}"
        speeds.append((f"files to files, {how}", case["mode"], _number(case["rtfx"]), _share(case["utilization"])))
    sections.append(
        _Section(
            "Corpora",
            "throughput",
            f"RTFx on a corpus with LibriSpeech's lengths (1 to 35 s, mean 12.6 s): {device['utterances']} utterances, "
            f"{device['audio_s']:g} s, device only, and {files['utterances']}, {files['audio_s']:g} s, files to files.",
            [
                (
                    "Device only: arrays in memory to arrays in memory, in one process. Files to files: what "
                    "<code>mkc-fast infer</code> does, decoding and writing included, without the seconds that worker "
                    "processes take to start."
                ),
                _why(record),
            ],
            _table(("how", "mode", "RTFx", "of the GEMM rate"), speeds, left=2),
            _source(record),
        )
    )
    return sections


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"


def _latency_sections(records: Mapping[str, Mapping[str, Any]]) -> list[_Section]:
    record = records.get("latency")
    if record is None:
        return []
    rows = []
    for case in record["cases"]:
        total = case["warm_s"]["all"]
        rows.append(
            (
                f"{case['length_s']:g} s",
                *(_seconds(value) for value in (case["first_s"]["all"], total["p50"], total["p95"], total["p99"])),
                _number(case["rtfx_p50"]),
                total["runs"],
            )
        )
    sections = [
        _Section(
            "Latency",
            "latency",
            f"One utterance from host memory to host memory, {record['mode']} mode: warm runs, first calls after "
            "loading, and how the time divides.",
            ["p95 and p99 mean little where there were few runs; the last column says how many."],
            _table(("length", "first call", "p50", "p95", "p99", "RTFx", "runs"), rows),
            _source(record),
        )
    ]
    if any(case["floors"] for case in record["cases"]):
        case = min(record["cases"], key=lambda each: abs(each["length_s"] - 10))
        rows = []
        for stage in STAGES:
            floor, seconds = case["floors"][stage], case["warm_s"][stage]["p50"]
            rows.append(
                (
                    STAGE_TITLES[stage],
                    f"{floor['gflop']:g}",
                    f"{floor['mb']:,g}",
                    _seconds(floor["floor_s"]),
                    floor["bound_by"],
                    _seconds(seconds),
                    f"{100 * floor['floor_s'] / seconds:.0f} %",
                )
            )
        sections.append(
            _Section(
                "Stages against their floors",
                "roofline",
                "Left: what each stage reaches under what the machine can do, longer utterances to the right. "
                "Right: the "
                f"time of each stage for {case['length_s']:g} s, and its floor.",
                [
                    (
                        "A stage's floor is the larger of two times, both measured on this machine in the same "
                        "run: its "
                        "arithmetic, as the published layers have it, at the rate of large matrix products, and "
                        "reading its weights and centroids once. Activations are left out, so what computes the layers "
                        "as they are written does not go below it. "
                        + (
                            "The vocoder may: by Winograd's method it takes half the multiplications. "
                            * _halved(record)
                        )
                        + "Short utterances move left, where "
                        "reading "
                        "weights is what takes the time: batches would help there, and long utterances need none."
                    ),
                ],
                _table(
                    ("stage", "GFLOP", "MB of weights", "floor", "bound by", "measured (p50)", "floor / measured"), rows
                ),
                _source(record),
            )
        )
    return sections


def _seconds(value: float) -> str:
    return f"{_number(value)} s" if value >= 1 else f"{_number(1000 * value)} ms"


def _load_sections(records: Mapping[str, Mapping[str, Any]]) -> list[_Section]:
    sections = []
    load, latency = records.get("load"), records.get("latency")
    record = load or latency
    if record and record.get("start_up"):
        start_up = record["start_up"]
        runs = {"mkc-fast": start_up["median_s"]} if "median_s" in start_up else {
            title: start_up[name]
            for name, title in (("practice", "baseline"), ("ours", "mkc-fast"))
            if name in start_up
        }  # fmt: skip
        names = ("import_s", "load_s", "first_output_s", "ready_s")
        sections.append(
            _Section(
                "Start-up",
                "startup",
                "From the start of a fresh process to the first output of 10 s of audio; files are in the page cache.",
                [f"Both open models and {record['target']['entries']} k-means models, then run once."]
                if "baseline" in runs
                else [],
                _table(
                    ("", "imports", "loading", "first output", "in all"),
                    [(title, *(_seconds(run[name]) for name in names)) for title, run in runs.items()],
                ),
                _source(record),
            )
        )
    if load:
        rows = []
        for case in load["cases"]:
            for name, title in (("ours", "mkc-fast"), ("practice", "baseline")):
                one, two = case.get(name), case.get(f"{name}_two_processes", {})
                if one:
                    mark = " (extrapolated)" if "extrapolated" in one else ""
                    both = f"{two['pss_mb_in_all']:,.0f} MB" if two.get("pss_mb_in_all") else ""
                    both += " (extrapolated)" if both and "extrapolated" in two else ""
                    memory = f"{one['pss_mb']:,.0f} MB{mark}" if one.get("pss_mb") else ""
                    rows.append((f"{case['entries']:,}", title, f"{_number(one['ready_s'])} s{mark}", memory, both))
        sections.append(
            _Section(
                "Banks",
                "loading",
                "Until a bank is ready and 499 frames have been looked up, in a fresh process. Hollow: extrapolated.",
                [
                    (
                        "mkc-fast maps one file of all centroids in float32, so that what is not used is not read, and "
                        "processes share what is; the baseline unpickles every model, float64, in every process."
                    ),
                    _notes(load),
                ],
                _table(("entries", "", "ready", "memory (PSS)", "two processes"), rows, left=2),
                _source(load),
            )
        )
    return sections


def _lookup(records: Mapping[str, Mapping[str, Any]]) -> list[_Section]:
    record = records.get("lookup")
    if record is None:
        return []
    names = list(dict.fromkeys(name for case in record["cases"] for name in case["frames_a_second"]))
    rows = [
        (
            f"{case['entries']:,}",
            f"{case['frames']:,}",
            case["stride"],
            *(f"{case['frames_a_second'][name]:,.0f}" if name in case["frames_a_second"] else "" for name in names),
        )
        for case in record["cases"]
    ]
    least = min((share for case in record["cases"] for share in case["same_ids"].values()), default=1.0)
    text = [
        (
            "A frame reads its whole bank entry once (4 MB at K = 1,024, D = 1,024) if no other frame of the call "
            "shares it. "
            "Where frames are many and entries few, matrix products take the time; where each frame has an entry "
            "of its own, "
            "reading memory does, and no program is faster than that."
        ),
        (
            f"Ids agree between all of them for {100 * least:.6g} % of frames in the worst case. mkc-fast also "
            f"bounds the "
            "rounding error of its products and decides near ties in float64, which the others do not."
        ),
    ]
    text += [f"Not here: {_e(name)} ({_e(why)})." for name, why in record["missing"].items()]
    text.append(_notes(record))
    return [
        _Section(
            "Look-up",
            "lookup",
            "Frames a second by frames in a call (T), bank entries (N) and frames that share a draw (stride).",
            text,
            "<details><summary>All numbers</summary>"
            + _table(("N", "T", "stride", *(f"{name}, frames/s" for name in names)), rows, left=0)
            + "</details>",
            _source(record),
        )
    ]


def _notes(record: Mapping[str, Any]) -> str:
    return f"<small>{_e('; '.join(record['notes']))}.</small>"


def _source(record: Mapping[str, Any]) -> str:
    return f"{record['file']}: {record['command']}; {record['commit']}, {record['date']}"


def _conditions(records: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for bench, record in records.items():
        machine, target = record["machine"], record["target"]
        rows.append(
            (
                bench,
                _ran_as(target),
                machine["cpu"] if target["device"] == "cpu" else machine["gpu"],
                record["commit"],
                record["date"],
                record["command"],
                "; ".join(record["cut"]) or "nothing",
            )
        )
    versions = next(iter(records.values()))
    named = ", ".join(f"{name} {number}" for name, number in versions["versions"].items())
    table = _table(("bench", "ran as", "on", "commit", "date", "command", "left out"), rows, left=7)
    return f"{table}<p>{_e(versions['system'])}; Python {_e(versions['python'])}; {_e(named)}.</p>"


def _ran_as(target: Mapping[str, Any]) -> str:
    parts = [target["device"], target["provider"], target["precision"], target.get("operators")]
    return ", ".join([*(part for part in parts if part), f"{target['threads']} threads"])


_STYLE = """
:root{color-scheme:light;--ink:#1c2733;--grey:#5c6670;--rule:#d7dce1;--accent:#0072B2}
*{box-sizing:border-box}
body{margin:0 auto;padding:2.2rem 1.2rem 4rem;max-width:60rem;color:var(--ink);background:#fff;
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 .3rem}
h2{font-size:1.2rem;margin:2.6rem 0 .6rem;padding-top:1.1rem;border-top:1px solid var(--rule)}
p{margin:.6rem 0}.machine,.source,figcaption{color:var(--grey);font-size:.9rem}
.lead{font-size:1.05rem}
ul.tiles{list-style:none;display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.7rem;padding:0;
margin:1.4rem 0}
ul.tiles li{border:1px solid var(--rule);border-radius:.4rem;padding:.7rem .8rem}
ul.tiles b{display:block;font-size:1.5rem;line-height:1.2;color:var(--accent);white-space:nowrap}
ul.tiles span{font-size:.85rem;color:var(--grey);line-height:1.35;display:block;margin-top:.2rem}
figure{margin:.6rem 0 1rem}
.scroll{overflow-x:auto}
img{display:block;width:100%;min-width:34rem;max-width:54rem;height:auto}
figcaption{margin-top:.4rem}
table{border-collapse:collapse;font-size:.88rem;margin:.8rem 0;font-variant-numeric:tabular-nums}
th,td{padding:.28rem .9rem .28rem 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--rule)}
th{font-weight:600;border-bottom:1.5px solid var(--ink)}
.n{text-align:right}td.n{white-space:nowrap}
code{font-size:.92em}small{color:var(--grey);font-size:.88rem}summary{cursor:pointer;color:var(--accent)}
@media print{body{max-width:none}.scroll{overflow:visible}section{break-inside:avoid}}
"""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>mkc-fast: benchmark report</title><style>{style}</style></head><body>
<h1>mkc-fast: how fast, on what, and why not faster</h1>
<p class=machine>{machine}</p>
<p class=lead>{lead}</p>
<ul class=tiles>{tiles}</ul>
{body}
<section><h2>Conditions</h2>{conditions}</section>
</body></html>
"""
