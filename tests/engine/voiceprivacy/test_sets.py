"""The sets of the challenges: their number, their roles, and names that are not theirs."""

from __future__ import annotations

from pathlib import Path

import pytest

from mkc_fast.engine.voiceprivacy.checkout import recognize
from mkc_fast.engine.voiceprivacy.sets import is_set, known_sets, role_of
from mkc_fast.errors import MkcError


def test_2024_has_the_sets_of_its_configs() -> None:
    assert sorted(known_sets(2024, 1)) == [
        "IEMOCAP_dev", "IEMOCAP_test", "libri_dev_enrolls", "libri_dev_trials_f", "libri_dev_trials_m",
        "libri_test_enrolls", "libri_test_trials_f", "libri_test_trials_m", "train-clean-360",
    ]  # fmt: skip


def test_2026_has_mixed_trials_and_thirty_sets_in_track_2() -> None:
    assert sorted(known_sets(2026, 1)) == [
        "IEMOCAP_dev", "IEMOCAP_test", "libri_dev_enrolls", "libri_dev_trials_mixed",
        "libri_test_enrolls", "libri_test_trials_mixed", "train-clean-360",
    ]  # fmt: skip
    sets = known_sets(2026, 2)
    assert len(sets) == len(set(sets)) == 30  # the folders that the README of 2026 lists
    assert {"cn_test_trials_mixed", "ja_dev_enrolls", "emodata_track2_test", "train_spanish"} <= set(sets)


def test_a_year_or_track_that_is_unknown_is_refused() -> None:
    with pytest.raises(MkcError, match="2024 track 2 is not known; expected one of 2024 track 1, 2026 track 1"):
        known_sets(2024, 2)


@pytest.mark.parametrize("name", ["libri_dev_enrolls", "de_test_enrolls", "train-clean-360", "train_french"])
def test_the_attacker_anonymizes_enrollments_and_training_sets(name: str) -> None:
    assert role_of(name) == "attacker"


@pytest.mark.parametrize("name", ["libri_test_trials_f", "en_dev_trials_mixed", "IEMOCAP_dev", "emodata_track2_dev"])
def test_the_users_anonymize_the_other_sets(name: str) -> None:
    assert role_of(name) == "user"


@pytest.mark.parametrize("name", ["libri_dev_enrolls_mcadams", "libri_dev", "train", "vctk_dev_enrolls", ""])
def test_only_exact_names_are_sets(name: str) -> None:
    assert not is_set(name)
    assert role_of(name) is None


def toolkit(root: Path, *tracks: str, runner: str = "") -> Path:
    for folder in ("anonymization/pipelines", "configs", "utils", *(f"configs/{track}" for track in tracks)):
        (root / folder).mkdir(parents=True)
    (root / "run_anonymization.py").write_text(runner)
    return root


def test_checkouts_are_recognized_by_their_configs(tmp_path: Path) -> None:
    older, newer = toolkit(tmp_path / "a"), toolkit(tmp_path / "b", "track1", "track2")
    half = toolkit(tmp_path / "c", "track2")
    assert (recognize(older).year, recognize(older).tracks) == (2024, (1,))
    assert (recognize(newer).year, recognize(newer).tracks) == (2026, (1, 2))
    assert (recognize(half).year, recognize(half).tracks) == (2026, (2,))
    assert recognize(older).config(1, "anon_x.yaml") == "configs/anon_x.yaml"
    assert recognize(newer).config(2, "anon_x.yaml") == "configs/track2/anon_x.yaml"


def test_a_folder_that_is_no_checkout_is_refused_with_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    with pytest.raises(
        MkcError, match=r"no checkout .* has no run_anonymization.py, anonymization/pipelines; expected"
    ):
        recognize(tmp_path)
    with pytest.raises(MkcError, match="no checkout"):
        recognize(tmp_path / "nothing")


def test_a_toolkit_without_the_pipeline_is_refused(tmp_path: Path) -> None:
    other = toolkit(tmp_path / "a", runner="from anonymization.pipelines.sttts_pipeline import STTTSPipeline\n")
    with pytest.raises(MkcError, match="knows no pipeline 'template'"):
        recognize(other)


def test_2026_without_its_configs_is_not_taken_for_2024(tmp_path: Path) -> None:
    (toolkit(tmp_path / "a") / "02_run_track1.sh").touch()
    with pytest.raises(MkcError, match="without configs/track1"):
        recognize(tmp_path / "a")
