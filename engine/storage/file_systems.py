"""Opens the file system of an address with fsspec, and turns whatever it raises into one line.

fsspec itself reads settings: files in ``~/.config/fsspec`` (``$FSSPEC_CONFIG_DIR``) and variables ``FSSPEC_…``. The
packages of protocols find credentials on their own, as their makers' tools do. Nothing of this is set here.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mkc_fast.engine.storage.addresses import shown, without_secrets
from mkc_fast.errors import MkcError
from mkc_fast.extras import required
from mkc_fast.text import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator

# Where an object appears whole or not at all, and is replaced at once. Elsewhere a file is written under another name.
OBJECT_STORES = frozenset(
    ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oci", "oss", "tos", "tosfs", "hf", "memory")
)


@contextmanager
def in_one_line(url: str, kind: type[MkcError], doing: str = "cannot be read") -> Iterator[None]:
    """Run a block that works at an address; what goes wrong there becomes an error of this kind.

    Raises:
        MkcError: Of the kind given, with the address and the reason, and no secrets.
    """
    try:
        yield
    except MkcError:
        raise
    except FileNotFoundError:
        raise kind(f"{shown(url)}: no such object, or no such bucket") from None
    except PermissionError as error:
        raise kind(f"{shown(url)}: access was refused ({_reason(error)})") from None
    # Packages of protocols have errors of their own, few of which are OSError.
    except Exception as error:
        raise kind(f"{shown(url)}: {doing} ({_reason(error)})") from None


def file_system(url: str) -> tuple[Any, str]:
    """The file system of an address, one for each in a process, and the name that it has there.

    Raises:
        MkcError: fsspec or the package of the protocol is not installed, or the protocol is unknown.
    """
    protocol = url.partition("://")[0].lower()
    with required(f"{shown(url)}: {protocol}://", "fsspec"):
        from fsspec.core import url_to_fs
    try:
        found, name = url_to_fs(f"{protocol}{url[len(protocol) :]}")
    except ImportError as error:
        raise MkcError(
            f"{shown(url)}: {protocol}:// needs another package ({_reason(error)}), in every environment that reads it"
        ) from None
    except ValueError as error:
        raise MkcError(f"{shown(url)}: the protocol {protocol}:// cannot be used ({_reason(error)})") from None
    return found, str(name)


def _reason(error: Exception) -> str:
    text = one_line(without_secrets(str(error)), 160)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
