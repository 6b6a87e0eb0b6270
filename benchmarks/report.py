"""``bench report``: results of the benchmarks → one self-contained HTML page, and its pictures as PNG files."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mkc_fast.benchmarks.figures import STAGE_TITLES, STAGES, draw_all
from mkc_fast.benchmarks.records import read_record
from mkc_fast.engine.atomic_files import atomic_file
from mkc_fast.errors import ArtifactError, OutputError
from mkc_fast.names import FP32, VOCODER
from mkc_fast.pages.content import Paragraph, Table, templates

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

BENCHES = ("latency", "throughput", "lookup", "load")
PAGE_FILE, _TABLE = "report.html", "table.html"
# Rates of one run that differ by more say that something else was running.
_QUIET = 0.85


@dataclass(frozen=True)
class Section:
    """A claim with its picture, what the picture shows, and the numbers."""

    title: str
    picture: str
    caption: str
    paragraphs: list[str | Paragraph]
    table: Table
    source: str
    notes: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Lead:
    """What mkc-fast is, and its result: a sentence whose middle is bold."""

    text: str
    before: str = ""
    strong: str = ""
    after: str = ""


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
            with atomic_file(path) as temporary:
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
    shown = (section.picture for section in sections if section.picture in pictures)
    return (
        templates("mkc_fast.benchmarks")
        .get_template(PAGE_FILE)
        .render(
            lead=_lead(records),
            tiles=_tiles(records),
            machine=_machine(first),
            sections=sections,
            pictures={name: base64.b64encode(picture).decode() for name, picture in pictures.items()},
            numbers={name: number for number, name in enumerate(shown, 1)},
            conditions=_conditions(records),
            versions=_versions(first),
        )
    )


def table_html(table: Table) -> str:
    """A table of the page alone."""
    return str(templates("mkc_fast.benchmarks").get_template(_TABLE).module.table(table))  # type: ignore[attr-defined]


def _number(value: float, digits: int = 3) -> str:
    """To so many significant digits, without an exponent."""
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 100 else f"{rounded:g}"


def _lead(records: Mapping[str, Mapping[str, Any]]) -> Lead:
    """What mkc-fast is, and the result in two sentences."""
    text = (
        "mkc-fast anonymizes speech: WavLM features, the nearest centroid of each 20 ms frame in one of many k-means "
        "models, a conformer, and a HiFi-GAN vocoder. RTFx is seconds of audio for one second of work: more is faster."
    )
    comparison = (records.get("throughput") or {}).get("comparison")
    if not comparison:
        return Lead(text)
    strong = " and ".join(
        f"{_number(mode['ratio'])} times as fast in {mode['mode']} mode "
        f"({_number(mode['ours_rtfx'])} against {_number(mode['practice_rtfx'])} times real time)"
        for mode in comparison["modes"]
    )
    same = comparison["same_cluster_ids"]
    ids = "" if same is None else f", with the same cluster ids in {100 * same:.6g} % of frames"
    before = "Compared with the baseline (PyTorch and scikit-learn, one file at a time) it is"
    return Lead(text, before, strong, f", on the same machine, threads, recordings and draws{ids}.")


def _tiles(records: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """A few numbers to see first, each with what it is."""
    tiles: list[tuple[str, str]] = []
    throughput, latency, load = (records.get(name) for name in ("throughput", "latency", "load"))
    if throughput:
        comparison = throughput.get("comparison")
        tiles += [
            (f"{_number(mode['ratio'])} times", f"as fast as the baseline, {mode['mode']} mode")
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


def _machine(record: Mapping[str, Any]) -> str:
    machine, target = record["machine"], record["target"]
    parts = [machine["cpu"], f"{machine['cores']} cores", f"{machine['memory_gib']} GiB of memory"]
    if machine["gpu"]:
        parts.append(machine["gpu"])
    parts.append(
        f"{target['weights']} weights, D {target['dim']}, {target['entries']} bank entries of {target['clusters']}"
    )
    return "; ".join(str(part) for part in parts)


# What keeps a pass from its floor, or carries it past.
_REMAINS = "What remains is convolutions of few channels in the vocoder, and passes over memory between the products."
_WINOGRAD = (
    "More than 100 % is possible, because Winograd's method halves the multiplications of the vocoder's residual "
    "blocks. Linear layers have no such method."
)


def _halved(record: Mapping[str, Any]) -> bool:
    """Whether the vocoder ran on the native operators."""
    used = str(record["target"].get("operators", ""))
    return used.startswith("native operators") and ("in " not in used or VOCODER in used)


def _why(record: Mapping[str, Any]) -> list[Paragraph]:
    """Why it is not faster: the arithmetic, and how much of it the machine can do in a second."""
    shares = [(case["utilization"], case["rtfx"]) for case in record["device_only"]["cases"] if case["utilization"]]
    if not shares:
        return [Paragraph("The arithmetic of models of these sizes is not counted: there is no floor to compare with.")]
    share, rtfx = max(shares)
    ceilings = record["ceilings"]
    precision = record["target"]["precision"]
    rate = ceilings["gemm_gflops"].get(precision, ceilings["gemm_gflops"][FP32])
    text = (
        f"A second of audio takes {rate * share / rtfx:.3g} billion operations, and large "
        f"matrix products reach {_number(rate)} GFLOP/s here in the same run. What computes the layers as they are "
        f"written, in this precision, cannot pass {rtfx / share:.3g} times real time on this machine; the best run "
        f"reaches {100 * share:.0f} % of that. {_WINOGRAD if _halved(record) else _REMAINS}"
    )
    paragraphs = [Paragraph(text, "Why not faster?")]
    seen = ceilings.get("gemm_spread", [rate])
    if min(seen) < _QUIET * max(seen):
        text = (
            f"The same products reached between {_number(min(seen))} and {_number(max(seen))} GFLOP/s during the run. "
            "Times here are longer than on a quiet machine; ratios of runs that took turns mean more."
        )
        paragraphs.append(Paragraph(text, "The machine was not quiet."))
    return paragraphs


def _throughput_sections(records: Mapping[str, Mapping[str, Any]]) -> list[Section]:
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
        text: list[str | Paragraph] = [
            (
                "The baseline is eager PyTorch in float32, one utterance at a time: WavLM with all its layers in "
                "memory and its pass stopped at the sixth, PyTorch's fused attention, weight norm removed, every "
                "k-means model unpickled, and scikit-learn's predict in float64 once for each draw (in frame mode with "
                "stride 1, once for each frame). Both get the same recordings, draws and number of threads, and take "
                "turns utterance by utterance, so that a busy moment of the machine slows both."
            ),
            (
                "Largest difference of a sample between the two, where all cluster ids agree: "
                f"{comparison['largest_difference']:.2g}."
            ),
        ]
        rounds = f"{comparison['rounds']} round{'s' * (comparison['rounds'] > 1)}"
        sections.append(
            Section(
                "Compared with the baseline",
                "comparison",
                f"Work for one second of audio by stage; {comparison['utterances']} utterances, "
                f"{comparison['audio_s']:g} s of audio, {rounds}, {comparison['threads']} threads.",
                text,
                Table(
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
        Section(
            "Corpora",
            "throughput",
            f"RTFx on a corpus with LibriSpeech's lengths (1 to 35 s, mean 12.6 s): {device['utterances']} utterances, "
            f"{device['audio_s']:g} s, device only, and {files['utterances']}, {files['audio_s']:g} s, files to files.",
            [
                (
                    "Device only: arrays in memory to arrays in memory, in one process. Files to files: what mkc-fast "
                    "infer does, with decoding and writing, without the seconds that worker processes take to start."
                ),
                *_why(record),
            ],
            Table(("how", "mode", "RTFx", "of the GEMM rate"), speeds, left=2),
            _source(record),
        )
    )
    return sections


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"


def _latency_sections(records: Mapping[str, Mapping[str, Any]]) -> list[Section]:
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
        Section(
            "Latency",
            "latency",
            f"One utterance from host memory to host memory, {record['mode']} mode: warm runs, first calls after "
            "loading, and how the time divides.",
            ["p95 and p99 mean little where there were few runs; the last column says how many."],
            Table(("length", "first call", "p50", "p95", "p99", "RTFx", "runs"), rows),
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
            Section(
                "Stages against their floors",
                "roofline",
                "Left: what each stage reaches, below what the machine can do; longer utterances are to the right. "
                f"Right: the time of each stage for {case['length_s']:g} s, and its floor.",
                [_about_floors(record)],
                Table(
                    ("stage", "GFLOP", "MB of weights", "floor", "bound by", "measured (p50)", "floor / measured"), rows
                ),
                _source(record),
            )
        )
    return sections


def _about_floors(record: Mapping[str, Any]) -> str:
    exception = "The vocoder can: Winograd's method takes half of the multiplications. " if _halved(record) else ""
    return (
        "A stage's floor is the larger of two times, both measured on this machine in the same run: its arithmetic, as "
        "the published layers have it, at the rate of large matrix products; and reading its weights and centroids "
        "once. Activations are left out, so what computes the layers as they are written does not go below it. "
        f"{exception}For short utterances, which are to the left, reading weights takes the time: batches help there, "
        "and long utterances need none."
    )


def _seconds(value: float) -> str:
    return f"{_number(value)} s" if value >= 1 else f"{_number(1000 * value)} ms"


def _load_sections(records: Mapping[str, Mapping[str, Any]]) -> list[Section]:
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
            Section(
                "Start-up",
                "startup",
                "From the start of a fresh process to the first output of 10 s of audio; files are in the page cache.",
                [f"Both open models and {record['target']['entries']} k-means models, then run once."]
                if "baseline" in runs
                else [],
                Table(
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
            Section(
                "Banks",
                "loading",
                "Until a bank is ready and 499 frames have been looked up, in a fresh process. Hollow: extrapolated.",
                [
                    (
                        "mkc-fast maps one file of all centroids in float32: what is not used is not read, and "
                        "processes share what is. The baseline unpickles every model, in float64, in every process."
                    ),
                ],
                Table(("entries", "", "ready", "memory (PSS)", "two processes"), rows, left=2),
                _source(load),
                notes=_notes(load),
            )
        )
    return sections


def _lookup(records: Mapping[str, Mapping[str, Any]]) -> list[Section]:
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
    text: list[str | Paragraph] = [
        (
            "A frame reads its whole bank entry once (4 MB at K = 1,024, D = 1,024) if no other frame of the call "
            "shares it. Where frames are many and entries few, matrix products take the time; where each frame has an "
            "entry of its own, reading memory does, and no program is faster than that."
        ),
        (
            f"Ids agree between all of them for {100 * least:.6g} % of frames in the worst case. mkc-fast also bounds "
            "the rounding error of its products and decides near ties in float64, which the others do not."
        ),
    ]
    text += [f"Not here: {name} ({why})." for name, why in record["missing"].items()]
    return [
        Section(
            "Look-up",
            "lookup",
            "Frames a second by frames in a call (T), bank entries (N) and frames that share a draw (stride).",
            text,
            Table(("N", "T", "stride", *(f"{name}, frames/s" for name in names)), rows, left=0),
            _source(record),
            notes=_notes(record),
            folded=True,
        )
    ]


def _notes(record: Mapping[str, Any]) -> str:
    return f"{'; '.join(record['notes'])}."


def _source(record: Mapping[str, Any]) -> str:
    return f"{record['file']}: {record['command']}; {record['commit']}, {record['date']}"


def _conditions(records: Mapping[str, Mapping[str, Any]]) -> Table:
    rows: list[tuple[object, ...]] = []
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
    return Table(("bench", "ran as", "on", "commit", "date", "command", "left out"), rows, left=7)


def _versions(record: Mapping[str, Any]) -> str:
    named = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    return f"{record['system']}; Python {record['python']}; {named}."


def _ran_as(target: Mapping[str, Any]) -> str:
    parts = [target["device"], target["provider"], target["precision"], target.get("operators")]
    return ", ".join([*(part for part in parts if part), f"{target['threads']} threads"])
