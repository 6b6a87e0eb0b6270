"""Commands that only decode a file are known and never run; every other command is left to who allows commands."""

from __future__ import annotations

from pathlib import Path

import pytest
import soundfile

from mkc_fast.engine.audio.read import read_waveform
from mkc_fast.engine.datasets.decoders import decoded_file
from mkc_fast.engine.datasets.kaldi import read_data_directory
from mkc_fast.engine.datasets.path_lists import read_audio_list
from mkc_fast.errors import ListError


@pytest.mark.parametrize(
    "command",
    [
        "flac -c -d -s corpora/a.flac",
        "flac -cds corpora/a.flac",
        "flac -d -c --silent corpora/a.flac",
        "flac --decode --stdout corpora/a.flac",
        "/usr/bin/flac -s -d -c corpora/a.flac",
        "sph2pipe -f wav corpora/a.flac",
        "sph2pipe -p -f rif corpora/a.flac",
        "/kaldi/tools/sph2pipe_v2.5/sph2pipe -f wav -p corpora/a.flac",
        "sox corpora/a.flac -t wav -",
        "sox -t flac corpora/a.flac -t wav -b 16 -e signed-integer -",
        "cat corpora/a.flac",
        "cat 'corpora/a.flac'",
    ],
)
def test_a_command_that_only_decodes_gives_its_file(command: str) -> None:
    assert decoded_file(command) == "corpora/a.flac"


@pytest.mark.parametrize(
    "command",
    [
        "",
        "flac",
        "flac -c a.flac",  # encodes
        "flac -d a.flac",  # writes a file
        "flac -c -d a.flac b.flac",
        "flac -c -d --skip=100 a.flac",
        "flac -c -d --channels=1 a.flac",
        "flac -c -d -s -",
        "sph2pipe -f wav -c 1 a.sph",
        "sph2pipe -f raw a.sph",
        "sph2pipe -f wav -t 1:2 a.sph",
        "sox a.wav -t wav - trim 0 1",
        "sox a.wav -r 8000 -t wav -",
        "sox a.wav -c 1 -t wav -",
        "sox a.wav b.wav -t wav -",
        "sox - -t wav -",
        "sox |rm -t wav -",
        "cat a.wav b.wav",
        "cat -n a.wav",
        "cat a.wav > b.wav",
        "cat a.wav; rm a.wav",
        "cat $(rm a.wav)",
        "cat `rm a.wav`",
        "cat $HOME/a.wav",
        "cat ~/a.wav",
        "cat *.wav",
        "cat a.wav # b",
        "cat 'a.wav",
        "PATH=/x cat a.wav",
        "wget -O - a.wav",
        "ffmpeg -i a.wav -f wav -",
        "flacx -c -d a.flac",
    ],
)
def test_any_other_command_is_not_taken_for_a_file(command: str) -> None:
    assert decoded_file(command) is None


def test_a_list_with_decoders_is_read_without_them(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")  # no program is found
    recording = speech / "jfk_16k_mono.flac"
    (tmp_path / "wav.scp").write_text(f"u1 flac -c -d -s {recording} |\nu2 {recording}\n")
    first, second = read_audio_list(tmp_path / "wav.scp")
    assert (first.path, first.command) == (second.path, None)
    assert (read_waveform(first.path, 16000) == read_waveform(second.path, 16000)).all()


def test_any_other_command_needs_to_be_allowed(tmp_path: Path) -> None:
    (tmp_path / "wav.scp").write_text("u1 sox a.wav -t wav - trim 0 1 |\n")
    for read in (
        lambda: read_audio_list(tmp_path / "wav.scp"),
        lambda: read_data_directory(tmp_path, "_mkc"),
    ):
        with pytest.raises(ListError, match=r"line 1: a command, which is run only with --allow-commands"):
            read()
    assert read_audio_list(tmp_path / "wav.scp", allow_commands=True)[0].command == "sox a.wav -t wav - trim 0 1"


def test_paths_of_a_data_directory_are_found_from_the_folders_above_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout, elsewhere = tmp_path / "checkout", tmp_path / "elsewhere"
    data = checkout / "data" / "train-clean-360"
    for folder in (data, checkout / "corpora" / "LibriSpeech", elsewhere):
        folder.mkdir(parents=True)
    soundfile.write(checkout / "corpora" / "LibriSpeech" / "a.flac", [0.0] * 1600, 16000)
    (data / "wav.scp").write_text(
        "u1 flac -c -d -s corpora/LibriSpeech/a.flac |\n"
        "u2 corpora/LibriSpeech/a.flac\n"
        "u3 corpora/LibriSpeech/none.flac\n"
    )
    monkeypatch.chdir(elsewhere)
    first, second, missing = read_data_directory(data, "_mkc").utterances
    assert first.path.samefile(checkout / "corpora" / "LibriSpeech" / "a.flac")
    assert second.path == first.path
    assert missing.path == checkout / "corpora" / "LibriSpeech" / "none.flac"
    monkeypatch.chdir(checkout)  # the working directory comes first
    assert read_data_directory(data, "_mkc").utterances[0].path == Path("corpora/LibriSpeech/a.flac")
