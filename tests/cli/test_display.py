"""What the commands show: help in groups, tables without empty columns, a live display that fits 80 columns."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import mkc_fast
import mkc_fast.export
from mkc_fast.benchmarks.report import Table, table_html
from mkc_fast.cli import bench_tables, main, panels
from mkc_fast.cli.show import counting
from mkc_fast.cli.watch import Watch
from mkc_fast.engine.corpus.status import Status, Summary

GROUPS = {value for name, value in vars(panels).items() if name.isupper()}


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("export", [panels.INPUT, panels.OUTPUT, panels.DEVICES]),
        ("infer", [panels.INPUT, panels.OUTPUT, panels.DRAWS, panels.ARTIFACTS, panels.DEVICES, panels.RUN]),
        ("bank build", [panels.INPUT, panels.OUTPUT]),
        ("bank info", [panels.OUTPUT]),
        (
            "bank train",
            [panels.ARTIFACTS, panels.OUTPUT, panels.INPUT, panels.RUN, panels.DEVICES],
        ),
        ("demo", [panels.INPUT, panels.OUTPUT, panels.RUN]),
        ("features", [panels.ARTIFACTS, panels.OUTPUT, panels.INPUT, panels.DEVICES, panels.RUN]),
        (
            "train conformer",
            [
                panels.ARTIFACTS,
                panels.OUTPUT,
                panels.RUN,
                panels.INPUT,
                panels.DRAWS,
                panels.ADVANCED,
                panels.DEVICES,
            ],
        ),
        (
            "train vocoder",
            [panels.ARTIFACTS, panels.OUTPUT, panels.RUN, panels.INPUT, panels.DRAWS, panels.DEVICES],
        ),
        ("doctor", [panels.DEVICES, panels.ARTIFACTS, panels.OUTPUT]),
        ("bench latency", [panels.ARTIFACTS, panels.DRAWS, panels.INPUT, panels.RUN, panels.DEVICES, panels.OUTPUT]),
        ("bench load", [panels.ARTIFACTS, panels.INPUT, panels.RUN, panels.DEVICES, panels.OUTPUT]),
    ],
)
def test_help_shows_options_in_groups(command: str, expected: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--help"]) == 0
    text = capsys.readouterr().out
    titles = re.findall(r"^╭─ ([\w ]+?) ─", text, re.MULTILINE)
    assert [title for title in titles if title in GROUPS] == expected
    rest = text.split("╭─ Options ─")[1].split("╰")[0]
    assert set(re.findall(r"--[a-z]\w+", rest)) == {"--help"}  # every other one is in a group


def test_dir_shows_the_public_names() -> None:
    assert dir(mkc_fast) == sorted(mkc_fast.__all__)
    assert {"Anonymizer", "Result", "MkcError"} <= set(dir(mkc_fast))
    assert {"build_bank", "export_model"} <= set(dir(mkc_fast.export))
    for module in (mkc_fast, mkc_fast.export):
        assert all(hasattr(module, name) for name in dir(module))


def _shown(width: int, drawn: Any) -> list[str]:
    console = Console(width=width, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(drawn)
    return capture.get().rstrip("\n").split("\n")


class _Worker:
    def __init__(self, pid: int, ready: bool) -> None:
        self.pid, self.device = pid, "cuda:0"
        self.ready_at, self.busy_s = (0.0, 1e9) if ready else (None, 0.0)


def test_the_live_display_of_the_largest_corpus_fits_80_columns() -> None:
    # LibriSpeech's largest part, hundreds of hours from its end, on two workers that once died.
    summary = Summary(files=104_014, written=99_999, failed=[("u", "why")] * 4_014, audio_s=1_308_960.0,
                      wall_s=400.0, start_up_s=300.0, replaced_workers=12, lost_workers=1)  # fmt: skip
    watch = Watch(None, quiet=False, as_json=False, where=[])
    watch.recent.extend([(0.0, 0.0), (30.0, 1_308_960.0)])
    workers: list[Any] = [_Worker(4_194_304, ready=True), _Worker(4_194_303, ready=False)]
    status = Status(summary, remaining_s=999 * 3600.0 * summary.rtfx, elapsed_s=100.0, workers=workers)
    lines = _shown(80, watch._table(status))
    assert max(map(len, lines)) <= 80
    assert len(lines) == 2 + len(workers) + 2  # nothing is wrapped
    head, speed, first, second, *troubles = lines
    assert "104,013 of 104,014  4,014 failed  999:00:00 left" in head
    assert speed.strip() == "1,308,960 s of audio  RTFx 43,632.0 now, 13,089.6 overall"
    assert first.split() == ["worker", "0", "cuda:0", "pid", "4194304", "100%", "busy"]
    assert second.strip().endswith("pid 4194303  loading models")
    assert [line.strip() for line in troubles] == [
        "12 workers died and replaced", "1 worker lost (no longer starting)",
    ]  # fmt: skip


def test_counting_fits_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = io.StringIO()
    monkeypatch.setattr(
        "mkc_fast.cli.show.errors", Console(width=80, force_terminal=True, color_system=None, file=drawn)
    )
    with counting("k-means models") as move:
        move(1_000, 1_165)
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in re.split(r"[\r\n]", drawn.getvalue())]
    assert max(map(len, lines)) <= 80
    assert any(re.search(r"k-means models .* 1000/1165 \d:\d\d:\d\d \S+", line) for line in lines)


def _load_record(**extrapolated: str) -> dict[str, Any]:
    one = {"ready_s": 1.5, "pss_mb": 20.0}
    baseline = {**one, **extrapolated}
    return {
        "bench": "load",
        "target": {"device": "cpu", "weights": "random", "dim": 64, "entries": 8, "precision": "auto", "threads": 2},
        "machine": {"cpu": "CPU", "cores": 2, "gpu": None},
        "commit": "0", "date": "2026-01-01",
        "cases": [{"entries": 8, "ours": one, "ours_two_processes": {"pss_mb_in_all": 30.0}, "practice": baseline}],
        "start_up": {"ours": {"ready_s": 0.5}},
    }  # fmt: skip


def test_an_asterisk_is_explained_where_one_is(capsys: pytest.CaptureFixture[str]) -> None:
    bench_tables.load_table(_load_record())
    assert "*" not in capsys.readouterr().out
    bench_tables.load_table(_load_record(extrapolated="twice what 4 entries took"))
    text = capsys.readouterr().out
    assert "1.50 s *" in text
    assert text.count("* extrapolated") == 1
    assert "0 MB" not in text.split("start-up")[1]  # unknown is not nothing


def test_a_column_that_nothing_stands_in_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    record = _load_record()
    bench_tables.load_table(record)
    assert "of two processes" in capsys.readouterr().out
    del record["cases"][0]["ours_two_processes"]
    bench_tables.load_table(record)
    assert "of two processes" not in capsys.readouterr().out
    page = table_html(Table(("how", "mode", "RTFx", "of the GEMM rate"), [("one by one", "frame", 44.5, "")], left=2))
    assert "GEMM" not in page
    assert "<td class=n>44.5</td></tr>" in page


# --- completion -------------------------------------------------------------------------------------------------------


@pytest.fixture
def program() -> str:
    found = shutil.which("mkc-fast", path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip("the program is not installed beside this interpreter")
    return found


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["mkc-fast", "ben"], ["bench"]),
        (["mkc-fast", "bench", "thr"], ["throughput"]),
        (["mkc-fast", "export", "--wavlm"], ["--wavlm-ckpt"]),
        (["mkc-fast", "bench", "latency", "--mode", ""], ["audio", "frame"]),
    ],
)
def test_completion_works_in_bash_and_writes_nothing(
    words: list[str], expected: list[str], program: str, tmp_path: Path
) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not here")
    typed = " ".join(f"'{word}'" for word in words)
    script = (
        'eval "$(mkc-fast --show-completion)"; complete -p mkc-fast >/dev/null || exit 1; '
        f"COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; _mkc_fast_completion mkc-fast; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    path = os.pathsep.join([str(Path(program).parent), os.environ["PATH"]])
    ended = subprocess.run(
        [bash, "--norc", "-c", script], env={**os.environ, "PATH": path, "HOME": str(tmp_path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert sorted(ended.stdout.split()) == expected
    assert list(tmp_path.iterdir()) == []
