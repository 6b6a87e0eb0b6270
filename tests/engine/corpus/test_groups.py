"""Outputs that become files together do so during the run, whole or not at all, and a killed run goes on with them."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mkc_fast import ListError
from mkc_fast.engine.audio.read import duration_s, read_utterance, read_waveform
from mkc_fast.engine.corpus.outputs import plan_folder
from mkc_fast.engine.corpus.protocol import Settings
from mkc_fast.engine.corpus.run import Run, run_corpus
from mkc_fast.engine.corpus.status import Summary
from mkc_fast.engine.datasets.dataset import Utterance
from mkc_fast.engine.datasets.lines import check_id
from tests.conftest import Artifacts
from tests.fakes.anonymizers import factory


@dataclass
class Joined:
    """Groups of two outputs, each of which becomes a file with both, one after the other."""

    utterances: Sequence[Utterance]
    out: Path
    killed: int | None = None

    def __len__(self) -> int:
        return len(self.utterances) // 2

    def of(self, position: int) -> int:
        return position // 2

    def name(self, group: int) -> str:
        return f"pair{group}"

    def files(self, group: int) -> Sequence[Path]:
        return [self.out / f"pair{group}.bin"]

    def complete(self, group: int, outputs: Mapping[str, Path]) -> None:
        if group == self.killed:
            raise KeyboardInterrupt
        names = [utterance.id for utterance in self.utterances[2 * group : 2 * group + 2]]
        self.files(group)[0].write_bytes(b"".join(outputs[name].read_bytes() for name in names))

    def clean(self, group: int) -> None:
        shutil.rmtree(self.out / "staged" / f"pair{group}", ignore_errors=True)


@pytest.fixture
def run(artifacts: Artifacts, tmp_path: Path, clip: np.ndarray) -> Run:
    """Eight recordings whose outputs become four files."""
    utterances = []
    for number in range(8):
        path = tmp_path / f"r{number}.wav"
        soundfile.write(path, clip[: 4000 + 400 * number], 16000)
        utterances.append(Utterance(f"pair{number // 2}/u{number}", path))
    out, settings = tmp_path / "out", Settings(seed=1)
    groups = Joined(utterances, out)
    folder = plan_folder(utterances, out / ".record", out / "staged", settings, out, groups)
    return Run([folder], artifacts.model, artifacts.bank, settings, factory=factory("Echo"))


def files(run: Run) -> dict[str, bytes]:
    out = run.folders[0].out
    assert out is not None
    found = {str(path.relative_to(out)): path for path in sorted(out.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith(".record")}


def test_groups_are_completed_and_their_outputs_removed(run: Run) -> None:
    summary = run_corpus(run)
    assert (summary.written, summary.present) == (8, 0)
    assert list(files(run)) == [f"pair{number}.bin" for number in range(4)]
    again = run_corpus(run)
    assert (again.written, again.present) == (0, 8)


def test_a_group_is_complete_while_others_are_computed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mkc_fast.engine.corpus.groups._IN_A_PART", 2)
    seen = set()

    def watch(status: object) -> None:
        seen.add(sum(path.suffix == ".bin" for path in (run.folders[0].out or Path()).iterdir()))

    run_corpus(replace(run, factory=factory("Slow")), watch=watch)
    assert seen & {1, 2, 3}, "all were completed at once"


def test_a_run_that_is_killed_while_a_group_is_written_goes_on(run: Run) -> None:
    groups = run.folders[0].groups
    assert isinstance(groups, Joined)
    groups.killed = 1
    with pytest.raises(KeyboardInterrupt):
        run_corpus(run)
    assert "pair1.bin" not in files(run)
    groups.killed = None
    assert run_corpus(run).failed == []
    assert list(files(run)) == [f"pair{number}.bin" for number in range(4)]


def test_a_group_whose_file_is_gone_or_another_is_made_again(run: Run) -> None:
    run_corpus(run)
    whole = files(run)
    groups = run.folders[0].groups
    assert groups is not None
    groups.files(2)[0].unlink()
    groups.files(3)[0].write_bytes(b"another")
    summary = run_corpus(run)
    assert (summary.written, summary.present) == (4, 4)
    assert files(run) == whole


def test_a_group_with_a_recording_that_failed_waits_for_it(run: Run, tmp_path: Path) -> None:
    sound = (tmp_path / "r5.wav").read_bytes()
    (tmp_path / "r5.wav").write_bytes(b"no audio")
    summary: Summary = run_corpus(run)
    assert [name for name, _ in summary.failed] == ["pair2/u5"]
    made = files(run)
    assert set(made) == {"pair0.bin", "pair1.bin", "pair3.bin", "staged/pair2/u4.wav"}
    (tmp_path / "r5.wav").write_bytes(sound)
    summary = run_corpus(run)
    assert (summary.written, summary.present) == (1, 7)
    assert list(files(run)) == [f"pair{number}.bin" for number in range(4)]


@pytest.mark.parametrize("name", ["/a", "a//b", "a/", "../a", "a/../b", "./a", "", "a\\b", "a\nb", "x/.mkc-fast/y",
                                  "a" * 201, "/".join(["abcdefgh"] * 300), "a\0b", "a\x1b[2J"])  # fmt: skip
def test_ids_that_lead_out_of_the_folder_are_refused(name: str) -> None:
    with pytest.raises(ListError, match="cannot name an output file"):
        check_id(name, "list")


@pytest.mark.parametrize("name", ["a", "a/b/c", "Ünïcode/日本語", "a b/c d", "a/..b", "10\u202fAM", "x/\udcff"])
def test_ids_may_hold_folders(name: str) -> None:
    check_id(name, "list")


def test_an_output_and_a_folder_of_one_name_are_refused(tmp_path: Path) -> None:
    utterances = [Utterance("a", "x.flac"), Utterance("a.wav/b", "y.flac")]
    with pytest.raises(ListError, match=r"a\.wav: is the output of one recording and the folder of another"):
        plan_folder(utterances, tmp_path, tmp_path, Settings())


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg", "mp3"])
def test_a_member_of_an_archive_is_read_in_its_place(ending: str, clip: np.ndarray, tmp_path: Path) -> None:
    alone, archive = tmp_path / f"a.{ending}", tmp_path / "a.tar"
    soundfile.write(alone, clip, 16000)
    with tarfile.open(archive, "w") as tar:
        tar.add(tmp_path / f"a.{ending}", "first")
        tar.add(tmp_path / f"a.{ending}", "second")
    with tarfile.open(archive) as tar:
        member = tar.getmember("second")
    utterance = Utterance("second", archive, span=(member.offset_data, member.size))
    np.testing.assert_array_equal(read_utterance(utterance, 16000, 400), read_waveform(alone, 16000))
    assert duration_s(utterance) == duration_s(Utterance("a", alone))
    cut = replace(utterance, span=(member.offset_data, member.size // 2))
    if ending != "mp3":
        with pytest.raises(Exception, match=r"a\.tar: second: (truncated|not readable)"):
            read_utterance(cut, 16000, 400)
