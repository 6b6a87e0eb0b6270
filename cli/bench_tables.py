"""The tables that ``mkc-fast bench`` prints."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from mkc_fast.benchmarks.records import short
from mkc_fast.cli.show import console, counted


def _table(*columns: str, left: int = 1) -> Table:
    table = Table(*columns, box=None, pad_edge=False)
    for column in table.columns[left:]:
        column.justify = "right"
    return table


def _show(table: Table) -> None:
    # A column without any value is left out: the share of the GEMM rate, for example, of models whose arithmetic is not
    # known.
    table.columns = [column for column in table.columns if any(column.cells)]
    console.print(table)
    console.print()


def heading(record: dict[str, Any]) -> None:
    """What ran, and on what."""
    target, machine = record["target"], record["machine"]
    where = machine["gpu"] if target["device"] != "cpu" else f"{machine['cpu']}, {machine['cores']} cores"
    operators = target.get("operators", "")
    console.print(
        f"{record['bench']}: {target['weights']} weights, D {target['dim']}, {target['entries']} bank entries; "
        f"{target['device']}, {target['precision']}, {target['threads'] or 'default'} threads; "
        f"{operators + '; ' if operators else ''}{where}; "
        f"{record['commit']}, {record['date']}",
        soft_wrap=True,
    )
    rates = record.get("ceilings")
    if rates:
        products = ", ".join(f"{name} {rate:,.0f}" for name, rate in rates["gemm_gflops"].items())
        console.print(f"ceilings: products {products} GFLOP/s; copy {rates['copy_gbs']:g} GB/s", soft_wrap=True)
    console.print()


def latency_table(record: dict[str, Any]) -> None:
    """Milliseconds by length and stage."""
    heading(record)
    stages = list(record["cases"][0]["warm_s"])
    table = _table("utterance", "", *stages, "RTFx", "runs", left=2)
    for case in record["cases"]:
        rows = {"first call": case["first_s"]}
        rows |= {name: {stage: case["warm_s"][stage][name] for stage in stages} for name in ("p50", "p95", "p99")}
        for index, (name, row) in enumerate(rows.items()):
            table.add_row(
                f"{case['length_s']:g} s" if index == 0 else "",
                name,
                *(_milliseconds(row[stage]) for stage in stages),
                f"{short(case['length_s'] / row['all']):g}",
                str(case["warm_s"]["all"]["runs"]) if name == "p50" else "",
            )
    _show(table)
    start_up = record["start_up"]
    if start_up:
        parts = start_up["median_s"]
        console.print(
            f"start-up: {parts['ready_s']:g} s from a process's start to its first output of "
            f"{start_up['length_s']:g} s (imports {parts['import_s']:g}, loading {parts['load_s']:g}, first output "
            f"{parts['first_output_s']:g}); median of {len(start_up['runs'])}",
            soft_wrap=True,
        )


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.0f} ms" if seconds >= 0.01 else f"{1000 * seconds:.2f} ms"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


def throughput_table(record: dict[str, Any]) -> None:
    """RTFx of each way to run, and the ratio to the baseline."""
    heading(record)
    device, through = record["device_only"], record["files_to_files"]
    table = _table("mode", "how", "RTFx", "of GEMM rate", left=2)
    for case in device["cases"]:
        how = f"batches of {case['batch_s']:g} s" if case["batch_s"] else "one by one"
        table.add_row(case["mode"], f"device only, {how}", f"{case['rtfx']:g}", _percent(case["utilization"]))
    for case in through["cases"]:
        how = f"files to files, {case['workers']} worker{'s' * (case['workers'] > 1)}"
        table.add_row(case["mode"], how, f"{case['rtfx']:g}", _percent(case["utilization"]))
    _show(table)
    console.print(
        f"device only: {device['utterances']} utterances, {device['audio_s']:g} s; "
        f"files to files: {through['utterances']}, {through['audio_s']:g} s",
        soft_wrap=True,
    )
    comparison = record.get("comparison")
    if comparison:
        console.print()
        table = _table("mode", "mkc-fast RTFx", "baseline RTFx", "ratio", "by utterance (quartiles)", "by round")
        for row in comparison["modes"]:
            each = row["ratio_by_utterance"]
            table.add_row(
                row["mode"],
                f"{row['ours_rtfx']:g}",
                f"{row['practice_rtfx']:g}",
                f"{row['ratio']:g}",
                f"{each['median']:g} ({each['quartile_1']:g} to {each['quartile_3']:g})",
                " ".join(f"{ratio:g}" for ratio in row["ratio_by_round"]),
            )
        _show(table)
        rounds = counted(comparison["rounds"], "round")
        console.print(
            f"{comparison['utterances']} utterances, {comparison['audio_s']:g} s, {rounds}; "
            f"cluster ids the same for {100 * comparison['same_cluster_ids']:g} % of frames; largest difference of a "
            f"sample where all are: {comparison['largest_difference']:g}",
            soft_wrap=True,
        )


def lookup_table(record: dict[str, Any]) -> None:
    """Frames a second by back end."""
    heading(record)
    names = list(dict.fromkeys(name for case in record["cases"] for name in case["frames_a_second"]))
    table = _table("N", "T", "stride", *(f"{name}\nframes/s" for name in names), left=0)
    for case in record["cases"]:
        rates = case["frames_a_second"]
        table.add_row(
            str(case["entries"]),
            str(case["frames"]),
            str(case["stride"]),
            *(f"{rates[name]:,.0f}" if name in rates else "" for name in names),
        )
    _show(table)
    for name, why in record["missing"].items():
        console.print(f"not here: {name}: {why}", soft_wrap=True)


def load_table(record: dict[str, Any]) -> None:
    """Seconds and memory until a bank is ready."""
    heading(record)
    table = _table("entries", "who", "ready", "memory (PSS)", "of two processes", left=2)
    marked = False
    for case in record["cases"]:
        for who, name in (("mkc-fast", "ours"), ("baseline", "practice")):
            if name not in case:
                continue
            one, two = case[name], case.get(f"{name}_two_processes", {})
            ready = f"{one['ready_s']:.2f} s"
            memory = f"{one['pss_mb']:,.0f} MB" if "pss_mb" in one else ""
            both = f"{two['pss_mb_in_all']:,.0f} MB" if two.get("pss_mb_in_all") else ""
            table.add_row(str(case["entries"]), who, _marked(ready, one), _marked(memory, one), _marked(both, two))
            marked |= "extrapolated" in one or (bool(both) and "extrapolated" in two)
    _show(table)
    if marked:
        console.print("* extrapolated\n")
    for name, run in record["start_up"].items():
        peak = f", {run['peak_rss_mb']:,.0f} MB at the most" if "peak_rss_mb" in run else ""
        who = "mkc-fast" if name == "ours" else "baseline"
        console.print(f"start-up to the first output of 10 s, {who}: {run['ready_s']:g} s{peak}", soft_wrap=True)


def tensorrt_table(record: dict[str, Any]) -> None:
    """What each part found, in one line."""
    heading(record)
    table = _table("part", "seconds", "found", left=3)
    for name, part in record["parts"].items():
        table.add_row(name, f"{part['part_s']:g}", _found(part))
    _show(table)


def _found(part: dict[str, Any]) -> str:
    """What a part of ``bench tensorrt`` comes to."""
    if "failed" in part:
        return f"failed: {part['failed']}"
    if "passes" in part:
        ties = part["near_ties"]
        verdict = "passes" if part["passes"] else "does not pass"
        return (
            f"{verdict}; {ties['ids_that_differ']} of {ties['frames']} ids differ, {ties['not_explained']} by a fault"
        )
    if "rtfx" in part:
        return f"RTFx {part['rtfx']:g}"
    return f"p50 {part['p50_ms']:g} ms, p99 {part['p99_ms']:g} ms" if "p50_ms" in part else str(part.get("chosen", ""))


# By the result's "bench".
def precision_table(record: dict[str, Any]) -> None:
    """Each precision beside float32: time, cluster ids, and waveforms from the same cluster ids."""
    heading(record)
    table = _table("precision", "times as fast", "ids, frame", "ids, audio", "SNR", "of the vocoder", "log-spectral")
    for name, found in record["precisions"].items():
        snr, ids = found["waveform_snr"], found["cluster_ids"]
        table.add_row(
            name,
            f"{found['times']['fp32_divided_by_it']['all']:.2f}",
            *(f"{ids[mode]['agreement']:.2%}" for mode in ("frame", "audio")),
            f"{snr['conformer and vocoder, from the same cluster ids, frame mode']['snr_db']:.1f} dB",
            f"{snr['vocoder alone, from the same restored features']['snr_db']:.1f} dB",
            f"{found['log_spectral_distance_db']['frame']:.2f} dB",
        )
    _show(table)
    stages = ("encode", "restore", "vocode")
    table = _table(
        "precision", "features", "restored", "waveform", *stages, *(f"{stage}\nof ceiling" for stage in stages)
    )
    for name, found in record["precisions"].items():
        shares = found["share_of_ceiling"]
        table.add_row(
            name,
            *(f"{stage['relative_rms_error']:.1e}" for stage in found["stages"].values()),
            *(f"{found['times']['fp32_divided_by_it'][stage]:.2f}" for stage in stages),
            *(f"{shares[stage]:.0%}" if stage in shares else "" for stage in stages),
        )
    console.print("relative RMS error of each stage given the same input; times as fast as in float32, by stage")
    _show(table)
    beside = record.get("beside_the_baseline")
    if beside:
        table = _table("baseline ÷ it, by round", *beside)
        for name in next(iter(beside.values()))["baseline_divided_by_it"]:
            rounds = [", ".join(f"{x:.2f}" for x in part["baseline_divided_by_it"][name]) for part in beside.values()]
            table.add_row(name, *rounds)
        _show(table)


TABLES = {
    "latency": latency_table,
    "precision": precision_table,
    "throughput": throughput_table,
    "lookup": lookup_table,
    "load": load_table,
    "tensorrt": tensorrt_table,
}


def _marked(text: str, found: dict[str, Any]) -> str:
    """The text, with an asterisk if it was not measured."""
    return f"{text} *" if text and "extrapolated" in found else text
