"""The docs are true: tables are those of the results, options exist, links lead somewhere, numbers are generated."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import textwrap

import click
import pytest
import typer

from mkc_fast.benchmarks.gpu.run import options as gpu_options
from mkc_fast.benchmarks.measured import (
    DOCS,
    TABLES,
    rewritten,
    shown,
    table_names,
    value_at,
    without_tables,
)
from mkc_fast.benchmarks.measured import WITHOUT_LINKS as NO_LINKS
from mkc_fast.cli import app as program
from tests.conftest import ROOT

RESULTS = ROOT / "benchmarks" / "results"

PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
GENERATED = [doc for doc in DOCS if table_names((ROOT / doc).read_text())]
_OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")
_LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)(?:#[^)]*)?\)")
# Programs whose options appear on the pages, too.
_OTHERS = frozenset(
    {
        "--nproc-per-node",
        "--write",
        "--all-files",
        "--strict",
        "--gpu-ids",
        "--force-compute",
        "--array",
        "--copy-files",
    }
)


@pytest.mark.parametrize("doc", GENERATED)
def test_tables_are_those_of_the_results(doc: str) -> None:
    text = (ROOT / doc).read_text()
    assert rewritten(text, RESULTS, links=doc not in NO_LINKS) == text, (
        "run python -m mkc_fast.benchmarks.measured --write"
    )


def test_a_changed_value_is_noticed() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    for name in table_names(text):
        begin = text.index(f"<!-- measured:begin {name} -->")
        row = text.index("\n|", text.index("| --- |", begin))
        digit = next(place for place in range(text.index("|", row + 3), len(text)) if text[place].isdigit())
        changed = text[:digit] + str((int(text[digit]) + 1) % 10) + text[digit + 1 :]
        assert rewritten(changed, RESULTS) == text, f"a value of {name} can be changed unnoticed"


def test_every_table_is_shown() -> None:
    assert {name for doc in DOCS for name in table_names((ROOT / doc).read_text())} == TABLES.keys()


@pytest.mark.parametrize("page", PAGES)
def test_speeds_are_written_by_the_generator_only(page: str) -> None:
    by_hand = without_tables((ROOT / page).read_text())
    assert not re.search(r"\d[\d.,]*\s+RTFx|RTFx\s+\d|\d\s+times as fast", by_hand)


@pytest.mark.parametrize("page", PAGES)
def test_every_option_that_is_named_exists(page: str) -> None:
    known = _options(typer.main.get_command(_commands())) | set(gpu_options()._option_string_actions) | _OTHERS
    named = set(_OPTION.findall((ROOT / page).read_text()))
    named -= set(
        _OPTION.findall(
            " ".join(re.findall(r"(?:pip|pytest|git|find|python examples/\S+) .*", (ROOT / page).read_text()))
        )
    )
    assert {option.replace("_", "-") for option in named} <= known


@pytest.mark.parametrize("page", PAGES)
def test_every_command_that_is_shown_exists_and_has_its_options(page: str) -> None:
    for line in _shown_commands((ROOT / page).read_text()):
        words, command = shlex.split(line, comments=True)[1:], typer.main.get_command(_commands())
        while (commands := getattr(command, "commands", {})) and words and not words[0].startswith("-"):
            name = words.pop(0)
            assert name in commands, line
            command = commands[name]
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        named = {word.split("=")[0].replace("_", "-") for word in words if re.match(r"--?[a-z]", word)}
        assert named <= known | {"--help"}, line


@pytest.mark.parametrize("page", PAGES)
def test_examples_that_are_shown_have_their_options(page: str) -> None:
    for example, arguments in re.findall(r"python (examples/\S+) (.*)", (ROOT / page).read_text()):
        code = (ROOT / example).read_text()
        assert all(f'add_argument("{option}"' in code for option in _OPTION.findall(arguments)), example


@pytest.mark.parametrize("page", PAGES)
def test_python_that_is_shown_compiles_and_imports_what_exists(page: str) -> None:
    for block in re.findall(r"^( *)```python\n(.*?)^ *```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL):
        for node in ast.walk(ast.parse(textwrap.dedent(block[1]))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mkc_fast"):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


@pytest.mark.parametrize("page", PAGES)
def test_links_to_headings_lead_to_one(page: str) -> None:
    for target, heading in re.findall(r"\]\((?!https?:)([^)#\s]*)#([^)]+)\)", (ROOT / page).read_text()):
        path = (ROOT / page).parent / target if target else ROOT / page
        headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
        slugs = {re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-") for text in headings}
        assert heading in slugs, f"{page} links {target}#{heading}"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page: str) -> None:
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    for target in _LINK.findall(text):
        assert (ROOT / page).parent.joinpath(target).exists(), f"{page} links {target}"


def test_the_readme_is_short_and_works_without_the_repository() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    others = [target for target in _LINK.findall(text) if not target.startswith("docs/demo/")]
    assert not others, "an index page shows it without the files that it links; only the demo's clips may lack there"


def test_the_picture_of_the_layout_has_the_order_that_is_checked() -> None:
    contract = (ROOT / "pyproject.toml").read_text().partition('"The rooms of the engine import those below them"')[2]
    layers = ast.literal_eval(contract[contract.index("[") : contract.index("]") + 1])
    checked = [[room for room in layer.split(" | ") if not room.startswith("(")] for layer in layers]
    shown_rows: dict[int, list[str]] = {}
    for y, name in re.findall(
        r'class="room" x="\d+" y="(\d+)".*?>([^<>]+)</text>', (ROOT / "docs/layout.svg").read_text()
    ):
        shown_rows.setdefault(int(y), []).append(name)
    *rooms, small = [shown_rows[y] for y in sorted(shown_rows)]
    assert rooms == checked[:-1]
    assert {name for name in small[0].split(", ") if name != "…"} <= set(checked[-1])


def test_pre_commit_runs_the_ruff_of_the_constraints() -> None:
    version = re.search(r"^ruff==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert version
    assert f"rev: v{version[1]} " in (ROOT / ".pre-commit-config.yaml").read_text()


def test_every_row_names_its_processor() -> None:
    for doc in DOCS:
        for row in re.findall(r"^\| .*\.json.*$", (ROOT / doc).read_text(), re.MULTILINE):
            assert re.search(r"\| [^|]+, \d+ cores \|", row), row


@pytest.mark.parametrize(
    ("value", "digits", "expected"),
    [
        (5.796, 3, "5.80"),
        (2284.0, 3, "2,280"),
        (0.024, 2, "0.024"),
        (457.2, 3, "457"),
        (0.9996, 2, "1.00"),
        (0, 3, "0"),
    ],
)
def test_numbers_are_shown_with_their_significant_digits(value: float, digits: int, expected: str) -> None:
    assert shown(value, digits) == expected


def test_items_are_found_by_their_values() -> None:
    record = {"cases": [{"n": 1, "stride": 1, "rate": 5}, {"n": 1, "stride": 10, "rate": 6}]}
    assert value_at(record, "cases[n=1,stride=10].rate") == 6
    with pytest.raises(ValueError, match="values to unpack"):
        value_at(record, "cases[n=1].rate")


def test_every_result_file_of_a_table_is_there() -> None:
    for table in TABLES.values():
        assert all((RESULTS / row.file).is_file() for row in table.rows)


def _commands() -> typer.Typer:
    program._add_commands()
    return program.app


def _options(command: click.Command) -> set[str]:
    found = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for sub in getattr(command, "commands", {}).values():
        found |= _options(sub)
    return found | {"--help"}


def _shown_commands(text: str) -> list[str]:
    """The commands of mkc-fast: lines of shell blocks, with the lines that continue them, and code in the text."""
    blocks = re.findall(r"^ *```(?:bash|sh|console|shell)\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    lines += re.findall(
        r"(?<!`)`(mkc-fast [^`]*)`", re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    )
    return [line[match.start() :] for line in lines if (match := re.search(r"(?<![\w/.'-])mkc-fast (?=[a-z-])", line))]


@pytest.mark.parametrize("page", ["README.md", "docs/index.md", "docs/benchmarks.md", "docs/gpu.md"])
def test_pages_that_speak_of_speed_say_that_no_gpu_was_measured(page: str) -> None:
    """Until there is a result of one; then they say what it measured."""
    if (RESULTS / "gpu.json").exists():
        pytest.skip("a GPU was measured")
    assert "not measured on a GPU" in " ".join((ROOT / page).read_text().split())
