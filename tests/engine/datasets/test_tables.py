"""Datasets of Hugging Face in local files come back as Parquet, with every column but the recordings as it was."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from mkc_fast import ListError, MkcError, anonymize_corpus
from mkc_fast.engine.audio.read import duration_s, read_utterance
from mkc_fast.engine.corpus.anonymize import open_corpus, plan_corpus
from mkc_fast.engine.datasets import tables
from mkc_fast.engine.datasets.shards import Shard
from mkc_fast.engine.datasets.tables import Columns, Table, read_table
from tests.conftest import Artifacts
from tests.engine.datasets.running import echoed

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
parquet = pytest.importorskip("pyarrow.parquet")

FEATURES = {
    "audio": {"sampling_rate": 44100, "_type": "Audio"},
    "text": {"dtype": "string", "_type": "Value"},
    "speaker_id": {"dtype": "int64", "_type": "Value"},
    "words": {"feature": {"dtype": "string", "_type": "Value"}, "_type": "Sequence"},
}


@pytest.fixture(scope="module")
def sounds(speech: Path) -> list[bytes]:
    """Seven recordings: of both channels, of two rates, as FLAC, WAV and Ogg."""
    samples, rate = soundfile.read(speech / "jfk_44k_stereo.flac", dtype="float32")
    made = []
    for number in range(7):
        file = io.BytesIO()
        piece = samples[9000 * number : 9000 * number + 20_000 + 500 * number]
        piece = piece if number % 2 else piece[:, 0]
        soundfile.write(file, piece, rate if number % 3 else 16_000, format=("FLAC", "WAV", "OGG")[number % 3])
        made.append(file.getvalue())
    return made


def table(sounds: list[bytes], **changes: Any) -> Any:
    """Rows as ``datasets`` stores them."""
    count = len(sounds)
    columns = {
        "text": [f"line {number}" for number in range(count)],
        "audio": [{"bytes": sound, "path": f"original_{number}.flac"} for number, sound in enumerate(sounds)],
        "speaker_id": [number % 2 for number in range(count)],
        "words": [["a", "b"][: number % 3] for number in range(count)],
        **changes,
    }
    schema = pa.schema(
        [
            ("text", pa.string()),
            ("audio", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("speaker_id", pa.int64()),
            ("words", pa.list_(pa.string())),
        ],
        metadata={"huggingface": json.dumps({"info": {"features": FEATURES}})},
    )
    return pa.table(columns, schema)


def as_parquet(folder: Path, sounds: list[bytes]) -> Path:
    """Two files of two row groups, compressed, as on the hub."""
    for number, (begin, end) in enumerate(((0, 4), (4, 7))):
        (folder / "data").mkdir(parents=True, exist_ok=True)
        path = folder / "data" / f"train-{number:05d}-of-00002.parquet"
        parquet.write_table(table(sounds).slice(begin, end - begin), path, row_group_size=2)
    return folder


def as_arrow(folder: Path, sounds: list[bytes]) -> Path:
    """What ``DatasetDict.save_to_disk`` writes."""
    split = folder / "train"
    split.mkdir(parents=True)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["train"]}))
    files = []
    for number, (begin, end) in enumerate(((0, 4), (4, 7))):
        files.append({"filename": f"data-{number:05d}-of-00002.arrow"})
        rows = table(sounds).slice(begin, end - begin)
        with (
            pa.OSFile(str(split / files[-1]["filename"]), "wb") as file,
            pa.ipc.new_stream(file, rows.schema) as stream,
        ):
            stream.write_table(rows, max_chunksize=3)
    (split / "state.json").write_text(json.dumps({"_data_files": files, "_indices_files": None}))
    (split / "cache-0123.arrow").write_bytes(b"not a part of the dataset")
    return folder


WRITERS = pytest.mark.parametrize("write", [as_parquet, as_arrow])
Write = Callable[[Path, list[bytes]], Path]


def read_all(folder: Path) -> list[dict[str, Any]]:
    files = sorted(path for path in folder.rglob("*.parquet") if ".mkc-fast" not in path.parts)
    return [row for path in files for row in parquet.read_table(path).to_pylist()]


def decoded(content: bytes) -> np.ndarray:
    return soundfile.read(io.BytesIO(content), dtype="float32")[0]


@WRITERS
def test_rows_keep_everything_but_their_recordings(
    write: Write, sounds: list[bytes], artifacts: Artifacts, tmp_path: Path
) -> None:
    dataset = read_table([write(tmp_path / "in", sounds)], tmp_path / "out", Columns())
    assert echoed(dataset, artifacts, "flac").written == 7
    made, before = read_all(tmp_path / "out"), table(sounds).to_pylist()
    assert [{**row, "audio": None} for row in made] == [{**row, "audio": None} for row in before]
    for row, utterance in zip(made, dataset.utterances, strict=True):
        assert row["audio"]["path"].endswith(".flac")
        np.testing.assert_allclose(decoded(row["audio"]["bytes"]), read_utterance(utterance, 16000, 1), atol=1 / 32767)
    schema = parquet.read_schema(next((tmp_path / "out").rglob("*.parquet")))
    assert schema.names == ["text", "audio", "speaker_id", "words"]
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert features == {**FEATURES, "audio": {"sampling_rate": 16000, "_type": "Audio"}}
    assert not [path for path in dataset.audio_dir.rglob("*") if path.is_file()]
    again = echoed(read_table([tmp_path / "in"], tmp_path / "out", Columns()), artifacts, "flac")
    assert (again.written, again.present) == (0, 7)


@WRITERS
def test_rows_are_the_recordings_that_were_put_in(write: Write, sounds: list[bytes], tmp_path: Path) -> None:
    dataset = read_table([write(tmp_path / "in", sounds)], tmp_path / "out", Columns())
    for utterance, sound in zip(dataset.utterances, sounds, strict=True):
        samples, rate = soundfile.read(io.BytesIO(sound), dtype="float32", always_2d=True)
        np.testing.assert_allclose(read_utterance(utterance, rate, 1), samples.mean(1), atol=1e-7)
        assert duration_s(utterance) == pytest.approx(len(samples) / rate)


def test_a_killed_run_leaves_whole_files_and_goes_on(
    sounds: list[bytes], artifacts: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = as_parquet(tmp_path / "in", sounds)
    complete, done = Table.complete, []

    def killed(self: Table, group: int, outputs: Any) -> None:
        if done:
            raise KeyboardInterrupt
        done.append(group)
        complete(self, group, outputs)

    with monkeypatch.context() as patch:
        patch.setattr(Table, "complete", killed)
        with pytest.raises(KeyboardInterrupt):
            echoed(read_table([folder], tmp_path / "out", Columns()), artifacts)
    assert len(read_all(tmp_path / "out")) in {3, 4}
    assert echoed(read_table([folder], tmp_path / "out", Columns()), artifacts).failed == []
    assert [row["text"] for row in read_all(tmp_path / "out")] == [f"line {number}" for number in range(7)]


def test_a_row_that_cannot_be_read_keeps_its_file_from_being_written(
    sounds: list[bytes], artifacts: Artifacts, tmp_path: Path
) -> None:
    broken = [*sounds[:5], b"no audio", sounds[6]]
    summary = echoed(read_table([as_parquet(tmp_path / "in", broken)], tmp_path / "out", Columns()), artifacts)
    ((name, reason),) = summary.failed
    assert name == "data/train-00001-of-00002/000001"
    assert "train-00001-of-00002.parquet: data/train-00001-of-00002/000001: not readable as audio" in reason
    assert len(read_all(tmp_path / "out")) == 4


@WRITERS
def test_rows_without_bytes_are_the_files_that_they_name(write: Write, sounds: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "a.wav").write_bytes(sounds[1])
    mixed = table(
        sounds[:2], audio=[{"bytes": None, "path": str(tmp_path / "a.wav")}, {"bytes": sounds[0], "path": None}]
    )
    path = tmp_path / "in" / ("a.parquet" if write is as_parquet else "a.arrow")
    if write is as_parquet:
        parquet.write_table(mixed, path)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, mixed.schema) as stream:
            stream.write_table(mixed)
    first, second = read_table([path], tmp_path / "out", Columns()).utterances
    assert first.file == str(tmp_path / "a.wav")
    assert len(read_utterance(first, 44100, 1)) == 20_500
    assert len(read_utterance(second, 16000, 1)) == 20_000


def test_addresses_are_refused(sounds: list[bytes], tmp_path: Path) -> None:
    for address in ("https://example.org/a.wav", "zip://a.wav::https://example.org/a.zip"):
        row = table(sounds[:1], audio=[{"bytes": None, "path": address}])
        parquet.write_table(row, tmp_path / "a.parquet")
        with pytest.raises(ListError, match="is an address; only local files are read"):
            read_table([tmp_path / "a.parquet"], tmp_path / "out", Columns())


def test_binary_columns_by_name_are_recordings_too(sounds: list[bytes], artifacts: Artifacts, tmp_path: Path) -> None:
    parquet.write_table(pa.table({"flac": sounds}), tmp_path / "a.parquet")
    dataset = read_table([tmp_path / "a.parquet"], tmp_path / "out", Columns(audio="flac"))
    echoed(dataset, artifacts)
    made = parquet.read_table(tmp_path / "out" / "a.parquet")
    assert made.schema.types == [pa.binary()]
    for value, utterance in zip(made.column(0), dataset.utterances, strict=True):
        np.testing.assert_allclose(decoded(value.as_py()), read_utterance(utterance, 16000, 1), atol=1 / 32767)


def test_ids_and_speakers_are_those_of_their_columns(sounds: list[bytes], tmp_path: Path) -> None:
    folder = as_parquet(tmp_path / "in", sounds)
    dataset = read_table([folder], tmp_path / "out", Columns(id="text"), by_speaker=True)
    assert [each.id for each in dataset.utterances] == [f"line {number}" for number in range(7)]
    draws = [each.draw_id for each in dataset.utterances]
    assert draws[0] == draws[2] != draws[1]
    with pytest.raises(ListError, match="row 2: the id '0' is there twice"):
        read_table([folder], tmp_path / "out", Columns(id="speaker_id"))
    with pytest.raises(ListError, match="has no column name; it has text, audio, speaker_id, words"):
        read_table([folder], tmp_path / "out", Columns(id="name"))


def test_parts_are_whole_files(sounds: list[bytes], artifacts: Artifacts, tmp_path: Path) -> None:
    dataset = read_table([as_parquet(tmp_path / "in", sounds)], tmp_path / "out", Columns())
    second = dataset.part(Shard(2, 2))
    echoed(second, artifacts)
    assert [path.name for path in second.out.rglob("*.parquet")] == ["train-00001-of-00002.parquet"]
    assert [each.id for each in second.utterances] == [each.id for each in dataset.utterances[4:]]


def refusing(tmp_path: Path, made: Any, reason: str, columns: Columns | None = None) -> None:
    parquet.write_table(made, tmp_path / "a.parquet")
    with pytest.raises(ListError, match=reason) as caught:
        read_table([tmp_path / "a.parquet"], tmp_path / "out", columns or Columns())
    assert "a.parquet" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_dataset_of_recordings_is_one_line(sounds: list[bytes], tmp_path: Path) -> None:
    refusing(tmp_path, pa.table({"text": ["a"]}), "has no column audio; it has text")
    refusing(tmp_path, pa.table({"audio": ["a.wav"]}), "the column audio is string; expected bytes")
    two = {"huggingface": json.dumps({"info": {"features": {"a": {"_type": "Audio"}, "b": {"_type": "Audio"}}}})}
    both = pa.table({"a": [b""], "b": [b""]}).replace_schema_metadata(two)
    refusing(tmp_path, both, "the column b has audio, too, which would stay as it is", Columns(audio="a"))
    refusing(tmp_path, table([]), "holds no rows")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no table PAR1")
    with pytest.raises(ListError, match=r"a\.parquet: cannot be read"):
        read_table([tmp_path / "a.parquet"], tmp_path / "out", Columns())
    with pytest.raises(ListError, match="no such file"):
        read_table([tmp_path / "missing.parquet"], tmp_path / "out", Columns())


def test_a_state_that_leads_out_of_its_folder_is_refused(sounds: list[bytes], tmp_path: Path) -> None:
    folder = as_arrow(tmp_path / "in", sounds)
    state = folder / "train" / "state.json"
    state.write_text(json.dumps({"_data_files": [{"filename": "../../secret.arrow"}]}))
    with pytest.raises(ListError, match="cannot name an output file"):
        read_table([folder], tmp_path / "out", Columns())
    state.write_text(json.dumps({"_data_files": [], "_indices_files": [{"filename": "indices.arrow"}]}))
    with pytest.raises(ListError, match="flatten_indices"):
        read_table([folder], tmp_path / "out", Columns())


def test_row_groups_are_read_once_while_memory_holds_them(
    sounds: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = read_table([as_parquet(tmp_path / "in", sounds)], tmp_path / "out", Columns())
    read: list[int] = []
    once = parquet.ParquetFile.read_row_group

    def noted(self: Any, group: int, **options: Any) -> Any:
        read.append(group)
        return once(self, group, **options)

    monkeypatch.setattr(parquet.ParquetFile, "read_row_group", noted)
    for utterance in [*dataset.utterances, *reversed(dataset.utterances)]:
        read_utterance(utterance, 16000, 1)
    assert read == [0, 1, 0, 1]


def test_without_pyarrow_one_line_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MkcError, match=r"needs pyarrow: pip install 'mkc-fast\[parquet\]'"):
        read_table([tmp_path], tmp_path / "out", Columns())


def test_nothing_that_could_ask_the_hub_is_imported(sounds: list[bytes], tmp_path: Path) -> None:
    folder = as_parquet(tmp_path / "in", sounds)
    code = (
        "import sys; from pathlib import Path; from mkc_fast.engine.datasets.tables import Columns, read_table; "
        f"read_table([Path({str(folder)!r})], Path('out'), Columns()); "
        "sys.exit(any(name in sys.modules for name in ('datasets', 'huggingface_hub', 'torch', 'requests', 'httpx')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@WRITERS
def test_the_corpus_is_recognized(write: Write, sounds: list[bytes], tmp_path: Path) -> None:
    corpus = open_corpus(input=write(tmp_path / "in", sounds), out=tmp_path / "out")
    assert isinstance(corpus.datasets[0], Table)


def python(code: str, folder: Path) -> str:
    """What a program prints that uses ``datasets``, without the hub."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **offline, "HF_HOME": str(folder / "hf")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_datasets_reads_what_is_written(sounds: list[bytes], artifacts: Artifacts, tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="datasets is not installed")
    code = f"""
from datasets import Audio, Dataset, DatasetDict
import pyarrow.parquet as parquet, glob
rows = parquet.read_table({str(as_parquet(tmp_path / "in", sounds))!r}).to_pylist()
dataset = Dataset.from_list(rows).cast_column("audio", Audio(decode=False))
DatasetDict(train=dataset, test=dataset.select(range(2))).save_to_disk({str(tmp_path / "saved")!r})
dataset.to_parquet({str(tmp_path / "one.parquet")!r})
"""
    python(code, tmp_path)
    for name in ("saved", "one.parquet"):
        corpus = open_corpus(input=tmp_path / name, out=tmp_path / f"out-{name}", audio_format="flac")
        summary = anonymize_corpus(artifacts.model, artifacts.bank, corpus=corpus, seed=1)
        assert summary.failed == []
        code = f"""
from datasets import Audio, load_dataset
loaded = load_dataset({str(tmp_path / f"out-{name}")!r})
for split in loaded.values():
    assert split.features["audio"].__class__ is Audio, split.features
    assert split.column_names == ["text", "audio", "speaker_id", "words"], split.column_names
    for row in split.cast_column("audio", Audio(decode=False)):
        assert row["audio"]["bytes"][:4] == b"fLaC"
print({{name: len(split) for name, split in loaded.items()}})
"""
        assert python(code, tmp_path).strip() == ("{'train': 7, 'test': 2}" if name == "saved" else "{'train': 7}")


def test_the_form_changes_no_sample(sounds: list[bytes], artifacts: Artifacts, tmp_path: Path) -> None:
    dataset = read_table([as_parquet(tmp_path / "in", sounds)], tmp_path / "out", Columns(id="text"))
    anonymize_corpus(artifacts.model, artifacts.bank, corpus=plan_corpus([dataset]), seed=3)
    waveform = read_utterance(dataset.utterances[0], 16000, 1)
    alone = artifacts.anonymizer.anonymize(waveform, mode="frame", stride=1, seed=3, utterance_id="line 0")
    made = read_all(tmp_path / "out")[0]["audio"]["bytes"]
    np.testing.assert_allclose(decoded(made), alone.waveform, atol=1 / 32767)
    assert tables.AUDIO_COLUMN == "audio"
