"""The models that listen: what all of them have in common, and facts about them for the record."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from mkc_fast.engine.atomic_files import sha256_of
from mkc_fast.errors import MkcError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

SAMPLE_RATE = 16000
Heard = TypeVar("Heard")
Heard_co = TypeVar("Heard_co", covariant=True)


@dataclass(frozen=True)
class ModelFile:
    """A file of a model.

    Attributes:
        name: Without its folders.
        bytes: Its size.
        sha256: In hexadecimal.
    """

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ModelFacts:
    """What made a result.

    Attributes:
        name: Of the model.
        package: The package that has it, with its version; empty where a file was given.
        files: Its files.
        language: That a recognizer was set to, ``auto`` if it decides; None where there is no choice.
    """

    name: str
    package: str = ""
    files: tuple[ModelFile, ...] = ()
    language: str | None = None

    def as_record(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Model(Protocol[Heard_co]):
    """A model that a process opens once and asks about many recordings; pickled to the process unopened."""

    def facts(self) -> ModelFacts:
        """What it is; it is not opened.

        Raises:
            MkcError: A file is missing or unreadable.
        """
        ...

    def open(self) -> Callable[[NDArray[np.float32]], Heard_co]:
        """A function of a waveform (S,) at 16 kHz, which uses one thread: several processes use several cores.

        Raises:
            MkcError: It cannot be opened.
        """
        ...


@dataclass(frozen=True)
class Function(Generic[Heard]):
    """A function of the caller as a model.

    Attributes:
        function: Of a waveform (S,) at 16 kHz.
        name: For the record.
    """

    function: Callable[[NDArray[np.float32]], Heard]
    name: str

    def facts(self) -> ModelFacts:
        """Its name."""
        return ModelFacts(self.name)

    def open(self) -> Callable[[NDArray[np.float32]], Heard]:
        """The function."""
        return self.function


def packaged(module: str, *parts: str) -> Path:
    """A file in the folder of an installed package, which is not imported for that.

    Raises:
        MkcError: The package or the file is not there.
    """
    found = importlib.util.find_spec(module)
    for folder in (found.submodule_search_locations or ()) if found else ():
        path = Path(folder, *parts)
        if path.exists():
            return path
    raise MkcError(f"the installed package {module} has no {'/'.join(parts)}")


def package_version(distribution: str) -> str:
    """``name version`` of an installed package; its name alone where that is not known."""
    try:
        return f"{distribution} {importlib.metadata.version(distribution)}"
    except importlib.metadata.PackageNotFoundError:
        return distribution


def model_files(paths: Sequence[Path]) -> tuple[ModelFile, ...]:
    """The facts of files.

    Raises:
        MkcError: A file is missing or unreadable.
    """
    facts = []
    for path in paths:
        try:
            facts.append(ModelFile(path.name, path.stat().st_size, sha256_of(path)))
        except OSError as error:
            raise MkcError(f"{path}: cannot be read ({error.strerror})") from None
    return tuple(facts)
