"""Runs a dataset as ``anonymize_corpus`` does, with an anonymizer that gives back what it is given."""

from __future__ import annotations

from mkc_fast.engine.corpus.anonymize import plan_corpus
from mkc_fast.engine.corpus.protocol import Settings
from mkc_fast.engine.corpus.run import Run, run_corpus
from mkc_fast.engine.corpus.status import Summary
from mkc_fast.engine.datasets.dataset import Dataset
from mkc_fast.engine.datasets.shards import Shard
from mkc_fast.engine.options import EngineOptions
from mkc_fast.names import AudioFormat
from tests.conftest import Artifacts
from tests.fakes.anonymizers import factory


def echoed(
    dataset: Dataset,
    artifacts: Artifacts,
    audio_format: AudioFormat = "wav",
    stand_in: str = "Echo",
    shard: Shard | None = None,
) -> Summary:
    """Write a dataset's outputs, which are its recordings at 16 kHz."""
    corpus = plan_corpus([dataset], audio_format=audio_format, shard=shard)
    run = Run(
        corpus.folders,
        artifacts.model,
        artifacts.bank,
        Settings(seed=1, format=audio_format),
        options=EngineOptions(batch_s=0),
        factory=factory(stand_in),
    )
    summary = run_corpus(run, begun=corpus.unfinish)
    corpus.finish(summary, run.model, run.bank)
    return summary
