"""Directories appear whole, replace nothing but their like, and leave nothing behind: ``export`` and ``bank build``."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mkc_fast import MkcError, OutputError
from mkc_fast.cli import main
from mkc_fast.engine import atomic_files as files_module
from mkc_fast.engine.artifacts import BANK_FILE, CENTROIDS_FILE, HALF_NORMS_FILE, bank_contents, open_bank
from mkc_fast.engine.atomic_files import Contents, atomic_directory
from mkc_fast.export import build_bank, export_model
from mkc_fast.export.checkpoints.joblib_writer import write_kmeans
from mkc_fast.export.random_checkpoints import Checkpoints
from tests.conftest import Artifacts

pytestmark = pytest.mark.usefixtures("no_waiting")
OURS = Contents(re.compile(r"own.*"), "own.json")


@pytest.fixture
def scp(tmp_path: Path) -> Path:
    """A list of two k-means models, in a folder of their own."""
    folder = tmp_path / "kmeans"
    folder.mkdir()
    for name in ("a", "b"):
        write_kmeans(folder / f"{name}.pt", np.random.default_rng(0).standard_normal((5, 8)))
    (folder / "kmeans.scp").write_text("a a.pt\nb b.pt\n")
    return folder / "kmeans.scp"


def seen(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with its content."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def make(path: Path, content: str = "new") -> None:
    with atomic_directory(path, replaces=OURS) as folder:
        (folder / "own.json").write_text(content)


# What appears during the work


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["folder", "file", "dangling link", "link to a folder"])
def test_what_appears_at_out_during_the_work_stays(scp: Path, tmp_path: Path, overwrite: bool, kind: str) -> None:
    out, other = tmp_path / "bank", tmp_path / "other"
    other.mkdir()

    def appear(*_: object) -> None:
        if out.is_symlink() or out.exists():
            return
        if kind == "folder":
            out.mkdir()
            (out / "thesis.tex").write_text("years of work")
        elif kind == "file":
            out.write_text("years of work")
        else:
            out.symlink_to(other if kind == "link to a folder" else "gone")

    with pytest.raises(OutputError, match=r"bank: .*(appeared|not replaced|no directory)") as error:
        build_bank(scp, out, overwrite=overwrite, progress=appear)
    assert "\n" not in str(error.value)
    assert {"folder": out.is_dir, "file": out.is_file}.get(kind, out.is_symlink)()
    assert [data for data in seen(tmp_path).values() if data == b"years of work"] == [b"years of work"] * (
        kind in {"folder", "file"}
    )
    assert {path.name for path in tmp_path.iterdir()} == {"bank", "kmeans", "other"}  # nothing is left behind


def test_a_foreign_file_that_appears_while_a_bank_is_replaced_stays(scp: Path, tmp_path: Path) -> None:
    out = tmp_path / "bank"
    build_bank(scp, out)
    before = seen(out)
    with pytest.raises(OutputError, match=r"holds other things: notes\.txt"):
        build_bank(scp, out, overwrite=True, progress=lambda *_: (out / "notes.txt").write_text("mine"))
    assert seen(out) == {**before, "notes.txt": b"mine"}


@pytest.mark.parametrize("exchange", [True, False], ids=["in one step", "in two"])
def test_a_foreign_file_of_the_last_moment_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    """It comes after the last look at the directory's own name."""
    out, check = tmp_path / "out", files_module._check_free
    make(out, "old")
    calls = []

    def late(path: Path, replaces: Contents | None) -> None:
        check(path, replaces)
        calls.append(path)
        if len(calls) == 2:
            (path / "notes.txt").write_text("mine")

    monkeypatch.setattr(files_module, "_check_free", late)
    if not exchange:
        monkeypatch.setattr(files_module, "_exchange", lambda *_: False)
    with pytest.raises(OutputError, match=r"notes\.txt"):
        make(out)
    assert seen(tmp_path) == {"out/own.json": b"old", "out/notes.txt": b"mine"}


@pytest.mark.parametrize("exchange", [True, False], ids=["in one step", "in two"])
def test_a_directory_of_its_own_files_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(files_module, "_exchange", lambda *_: False)
    make(tmp_path / "out", "old")
    (tmp_path / "out" / "own.extra").touch()
    make(tmp_path / "out")
    assert seen(tmp_path) == {"out/own.json": b"new"}


# What may be replaced

FOREIGN: dict[str, Callable[[Path], object]] = {
    "a file": lambda folder: (folder / "thesis.tex").write_text("years"),
    "a folder": lambda folder: (folder / "sub").mkdir(),
    "a folder of a name of its own": lambda folder: (folder / "own.d").mkdir(),
    "a link of a name of its own": lambda folder: (folder / "own.link").symlink_to("own.json"),
    "a pipe": lambda folder: os.mkfifo(folder / "own.pipe"),
    "a hidden file": lambda folder: (folder / ".git").write_text("gitdir"),
}


@pytest.mark.parametrize("put", FOREIGN.values(), ids=FOREIGN)
def test_what_holds_anything_else_is_not_replaced(tmp_path: Path, put: Callable[[Path], object]) -> None:
    make(tmp_path / "out", "old")
    put(tmp_path / "out")
    before = sorted(path.name for path in (tmp_path / "out").iterdir())
    with pytest.raises(OutputError, match="not replaced, since it holds other things"):
        make(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == before
    assert (tmp_path / "out" / "own.json").read_text() == "old"


def test_files_of_such_names_without_the_json_are_somebody_elses(scp: Path, tmp_path: Path) -> None:
    np.save(tmp_path / CENTROIDS_FILE, np.ones(3))
    out = tmp_path / "mine"
    out.mkdir()
    (tmp_path / CENTROIDS_FILE).rename(out / CENTROIDS_FILE)
    with pytest.raises(OutputError, match=r"holds files but no bank\.json"):
        build_bank(scp, out, overwrite=True)
    assert [path.name for path in out.iterdir()] == [CENTROIDS_FILE]


def test_the_refusal_names_the_first_few(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for name in ("c", "b\n\x1b[31m", "a", "d", "e"):
        (tmp_path / "out" / name).touch()
    with pytest.raises(OutputError) as error:
        make(tmp_path / "out")
    assert str(error.value).endswith("holds other things: a, b\\n\\x1b[31m, c and 2 more; choose another directory")


def test_the_folder_of_the_sources_is_never_replaced(scp: Path, tmp_path: Path) -> None:
    build_bank(scp, tmp_path / "bank")
    # A list and models among a bank's files, under names that a bank's file may have.
    for name in (CENTROIDS_FILE, HALF_NORMS_FILE, BANK_FILE):
        (scp.parent / name).write_bytes((tmp_path / "bank" / name).read_bytes())
    sources = bank_contents(scp, scp.parent / "a.pt")
    before = seen(tmp_path)
    (tmp_path / "link").symlink_to("kmeans")
    for out in (scp.parent, tmp_path, tmp_path / "link", scp.parent / ".." / "kmeans"):
        with (
            pytest.raises(OutputError, match=r"which this is made from|that this is made from"),
            atomic_directory(out, replaces=sources),
        ):
            pytest.fail("the work began")
        with pytest.raises(OutputError):
            build_bank(scp, out, overwrite=True)
    (tmp_path / "link").unlink()
    assert seen(tmp_path) == before


def test_a_source_that_is_a_link_keeps_both_folders(tmp_path: Path) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "own.json").touch()
    (tmp_path / "there" / "own.pt").touch()
    (tmp_path / "here" / "own.scp").symlink_to("../there/own.pt")
    contents = Contents(re.compile(r"own.*"), "own.json", (tmp_path / "here" / "own.scp",))
    for name in ("here", "there"):
        with pytest.raises(OutputError, match="made from"), atomic_directory(tmp_path / name, replaces=contents):
            pytest.fail("the work began")


@pytest.mark.parametrize("replaces", [None, OURS], ids=["without", "with --overwrite"])
def test_the_working_and_the_home_directory_are_never_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaces: Contents | None
) -> None:
    work, home = tmp_path / "a" / "work", tmp_path / "b" / "home"
    for folder in (work, home):
        folder.mkdir(parents=True)
    monkeypatch.chdir(work)
    monkeypatch.setenv("HOME", str(home))
    for out in (Path(), Path(".."), work, work.parent, home, home.parent, tmp_path):
        with (
            pytest.raises(OutputError, match=r"is the (working|home) directory, or holds it"),
            atomic_directory(out, replaces=replaces),
        ):
            pytest.fail("the work began")
    assert work.is_dir()
    assert home.is_dir()


def test_overwrite_refuses_in_one_line_and_replaces_its_like(
    scp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bank"
    command = ["bank", "build", "--kmeans-scp", str(scp), "--out", str(out)]
    assert main(command) == 0
    assert main(command) == 2
    assert main([*command, "--overwrite"]) == 0
    (out / "thesis.tex").write_text("years of work")
    capsys.readouterr()
    assert main([*command, "--overwrite"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "thesis.tex" in line
    assert open_bank(out).info.names == ["a", "b"]


def test_a_bank_does_not_replace_a_model(artifacts: Artifacts, scp: Path) -> None:
    before = sorted(path.name for path in artifacts.model.iterdir())
    with pytest.raises(OutputError, match="holds other things"):
        build_bank(scp, artifacts.model, overwrite=True)
    assert sorted(path.name for path in artifacts.model.iterdir()) == before


def test_export_does_not_replace_the_folder_of_its_checkpoints(checkpoints: Checkpoints) -> None:
    before = seen(checkpoints.wavlm.parent)
    with pytest.raises(OutputError, match="made from"):
        export_model(checkpoints.wavlm, checkpoints.ckpt, checkpoints.wavlm.parent, overwrite=True)
    assert seen(checkpoints.wavlm.parent) == before


# Links


def test_a_link_is_followed_and_stays(scp: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "bank").symlink_to("disk")
    for overwrite in (False, True):
        build_bank(scp, tmp_path / "bank", overwrite=overwrite)
        assert (tmp_path / "bank").is_symlink()
        assert not (tmp_path / "disk").is_symlink()
        assert open_bank(tmp_path / "disk").info.names == ["a", "b"]
    assert {path.name for path in tmp_path.iterdir()} == {"bank", "disk", "kmeans"}


@pytest.mark.parametrize("target", ["gone", "bank", "gone/deeper"], ids=["nothing", "itself", "nothing, deeper"])
def test_a_link_to_nothing_is_refused(scp: Path, tmp_path: Path, target: str) -> None:
    (tmp_path / "bank").symlink_to(target)
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="is a link to nothing"):
            build_bank(scp, tmp_path / "bank", overwrite=overwrite)
    assert {path.name for path in tmp_path.iterdir()} == {"bank", "kmeans"}


@pytest.mark.parametrize("name", ["x" * 300, "file/bank", "\0"])
def test_a_name_that_cannot_be_is_refused(scp: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    for overwrite in (False, True):
        with pytest.raises(MkcError):
            build_bank(scp, tmp_path / name, overwrite=overwrite)


# What the dead leave

SCRIPT = """
import os, signal, sys, time
from mkc_fast.export import build_bank
def kill(*_):
    if sys.argv[3] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    print("at work", flush=True)
    sys.stdin.readline()
build_bank(sys.argv[1], sys.argv[2], progress=kill)
"""


def begun(scp: Path, out: Path, how: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, str(scp), str(out), how]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_what_a_killed_build_left_goes_with_the_next_one(scp: Path, tmp_path: Path) -> None:
    with begun(scp, tmp_path / "bank", "die") as process:
        assert process.wait() == -signal.SIGKILL
    (left,) = hidden(tmp_path)
    assert re.fullmatch(r"\.bank\..*\.tmp", left)
    build_bank(scp, tmp_path / "another")
    assert {path.name for path in tmp_path.iterdir()} == {"kmeans", "another"}


def test_what_a_killed_export_left_goes_with_the_next_one(checkpoints: Checkpoints, scp: Path, tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from mkc_fast.export import export_model;"
        "export_model(*sys.argv[1:4], progress=lambda _: os.kill(os.getpid(), signal.SIGKILL))"
    )
    command = [sys.executable, "-c", script, str(checkpoints.wavlm), str(checkpoints.ckpt), str(tmp_path / "model")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert len(hidden(tmp_path)) == 1
    build_bank(scp, tmp_path / "bank")
    assert not hidden(tmp_path)


def test_what_a_living_build_makes_is_left_alone(scp: Path, tmp_path: Path) -> None:
    with begun(scp, tmp_path / "bank", "live") as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "at work\n"
        before = hidden(tmp_path)
        build_bank(scp, tmp_path / "another")
        assert len(before) == 1
        assert hidden(tmp_path) == before
        process.stdin.write("\n\n")
        process.stdin.flush()
        assert process.wait() == 0
    assert open_bank(tmp_path / "bank").info.names == open_bank(tmp_path / "another").info.names
    assert not hidden(tmp_path)


def test_a_thread_of_this_process_is_alive_too(scp: Path, tmp_path: Path) -> None:
    at_work, go_on = threading.Event(), threading.Event()

    def pause(*_: object) -> None:
        at_work.set()
        go_on.wait()

    thread = threading.Thread(target=lambda: build_bank(scp, tmp_path / "bank", progress=pause))
    thread.start()
    at_work.wait()
    build_bank(scp, tmp_path / "another")
    go_on.set()
    thread.join()
    assert open_bank(tmp_path / "bank").info.names == ["a", "b"]


def test_hidden_folders_of_others_are_left_alone(scp: Path, tmp_path: Path) -> None:
    for name in (".bank.abcdefgh.tmp", ".bank", ".x.mkc-fast-dir.tmp.d"):
        (tmp_path / name).mkdir()
    build_bank(scp, tmp_path / "bank")
    assert sorted(hidden(tmp_path)) == [".bank", ".bank.abcdefgh.tmp", ".x.mkc-fast-dir.tmp.d"]


def test_the_only_copy_is_not_removed(tmp_path: Path) -> None:
    """A process was killed between the two renames of a system that cannot do both at once."""
    old = tmp_path / ".out.abcdefgh.mkc-fast-dir.old"
    old.mkdir()
    (old / "own.json").write_text("old")
    make(tmp_path / "other")
    assert old.is_dir()
    make(tmp_path / "out")
    make(tmp_path / "other")
    assert not old.exists()
