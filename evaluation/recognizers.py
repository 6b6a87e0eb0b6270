"""Speech recognizers: a waveform → words. Their models are in a package or a folder; none is downloaded."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mkc_fast.errors import MkcError
from mkc_fast.evaluation.models import ModelFacts, model_files, package_version
from mkc_fast.extras import required
from mkc_fast.text import one_line, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

_ACOUSTIC, _LANGUAGE, _DICTIONARY = "en-us/en-us", "en-us/en-us.lm.bin", "en-us/cmudict-en-us.dict"
# A text that zlib makes smaller than by this repeats itself: in noise a model of Whisper may say one thing over and
# over. It is Whisper's own bound for a failed part; hundreds of such words would decide the rate of a whole corpus.
_REPEATING = 2.4
_OFFLINE = "HF_HUB_OFFLINE"
_WHISPER_NEEDS = ("model.bin", "config.json", "tokenizer.json")
_PREPROCESSOR = "preprocessor_config.json"
_CONVERTER = f"ct2-transformers-converter --copy_files tokenizer.json {_PREPROCESSOR}"


@dataclass(frozen=True)
class PocketSphinx:
    """The model of US English that the package pocketsphinx holds."""

    def facts(self) -> ModelFacts:
        """The package and the files of its model."""
        folder = self._folder()
        acoustic = sorted(path for path in (folder / _ACOUSTIC).iterdir() if path.is_file())
        files = model_files([*acoustic, folder / _LANGUAGE, folder / _DICTIONARY])
        return ModelFacts("en-us of PocketSphinx", package_version("pocketsphinx"), files)

    def open(self) -> Callable[[NDArray[np.float32]], str]:
        """Load the model."""
        with required("the recognizer", "pocketsphinx"):
            import pocketsphinx
        folder = self._folder()
        decoder = pocketsphinx.Decoder(
            hmm=str(folder / _ACOUSTIC),
            lm=str(folder / _LANGUAGE),
            dict=str(folder / _DICTIONARY),
            logfn=os.devnull,
            loglevel="FATAL",
        )

        def recognize(waveform: NDArray[np.float32]) -> str:
            samples = np.round(np.clip(waveform, -1, 1) * 32767).astype("<i2")
            # What it has adapted to in other recordings would make the result depend on their order; with the whole
            # utterance at once, it is adapted to this one from the start.
            decoder.reinit_feat()
            decoder.start_utt()
            decoder.process_raw(samples.tobytes(), no_search=False, full_utt=True)
            decoder.end_utt()
            found = decoder.hyp()
            return "" if found is None else str(found.hypstr)

        return recognize

    @staticmethod
    def _folder() -> Path:
        with required("the recognizer", "pocketsphinx"):
            import pocketsphinx
        return Path(pocketsphinx.get_model_path())


@contextmanager
def _offline() -> Iterator[None]:
    """A second lock on the door: Hugging Face's client reads the variable when it is imported."""
    before = os.environ.get(_OFFLINE)
    os.environ[_OFFLINE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_OFFLINE]
        else:
            os.environ[_OFFLINE] = before


@dataclass(frozen=True)
class Whisper:
    """A model of Whisper in CTranslate2's format, for the package faster-whisper.

    Attributes:
        folder: With ``model.bin``, ``config.json`` and ``tokenizer.json``; without the last, the package would download
            it.
        language: Two letters; without it the model decides, recording by recording.
    """

    folder: Path
    language: str | None = "en"

    def facts(self) -> ModelFacts:
        """The package and the files."""
        self._check()
        files = model_files(sorted(path for path in self.folder.iterdir() if path.is_file()))
        return ModelFacts(self.folder.name, package_version("faster-whisper"), files, self.language or "auto")

    def open(self) -> Callable[[NDArray[np.float32]], str]:
        """Load the model on the CPU.

        Raises:
            MkcError: A file is missing, the model cannot be opened, or has not this language or these mel bands.
        """
        self._check()
        with required("the recognizer", "faster_whisper"), _offline():
            import faster_whisper
        try:
            # In float32, whatever the files have, so that results do not depend on what the processor is fast at.
            model = faster_whisper.WhisperModel(
                str(self.folder), device="cpu", compute_type="float32", cpu_threads=1, local_files_only=True
            )
        except Exception as error:  # CTranslate2 raises RuntimeError, its tokenizer plain Exceptions
            raise MkcError(f"{self.folder}: not a model of Whisper ({one_line(str(error), 200)})") from None
        self._check_language(model)
        bands, expected = len(model.feature_extractor.mel_filters), model.model.n_mels
        if bands != expected:
            raise MkcError(
                f"{self.folder}: the model hears {expected} mel bands, but its {_PREPROCESSOR}, or the default without "
                f"one, makes {bands}; copy the file of this model into the folder, as {_CONVERTER} does"
            )

        def recognize(waveform: NDArray[np.float32]) -> str:
            # At one temperature, so that nothing is drawn; and no recording's text depends on another part's errors.
            segments, _ = model.transcribe(
                waveform, language=self.language, beam_size=5, temperature=0.0, condition_on_previous_text=False
            )
            return " ".join(each.text.strip() for each in segments if each.compression_ratio <= _REPEATING)

        return recognize

    def _check(self) -> None:
        for name in _WHISPER_NEEDS:
            if not (self.folder / name).is_file():
                raise MkcError(
                    f"{self.folder}: has no {name}; expected a folder with {', '.join(_WHISPER_NEEDS)}, as "
                    f"{_CONVERTER} writes it; nothing is downloaded"
                )

    def _check_language(self, model: Any) -> None:
        """Refuse a language that the model does not have: the package has more than the older models."""
        if self.language is None:
            return
        known = [each for each in model.supported_languages if model.hf_tokenizer.token_to_id(f"<|{each}|>")]
        if len(model.supported_languages) == 1:
            known = list(model.supported_languages)
        if self.language not in known:
            raise MkcError(
                f"{self.folder}: the model has no language '{printable(self.language)}'; --language is 'auto' or one "
                f"of {', '.join(known)}"
            )
