"""Imports Ray, with its usage statistics off.

Ray reports usage to its makers unless ``RAY_USAGE_STATS_ENABLED=0`` is set where a cluster's head starts. Even then the
head of a cluster that ``ray start`` has started reports, once, that it reports nothing. So the address of the reports
is set to one of this machine, too. Both are set here before Ray is imported, whatever they were, for what is started
from here. Of a cluster that others have started, whoever started its head has decided.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

from mkc_fast.extras import required

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SILENCE = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9"}
# A head asks, by name and number, addresses at which clouds describe a machine. Through this proxy it reaches none.
_NOWHERE = {"http_proxy": "http://127.0.0.1:9", "no_proxy": ""}


def load_ray() -> Any:
    """The module ``ray``.

    Raises:
        MkcError: It is not installed; the message names the extra.
    """
    os.environ.update(SILENCE)
    with required("a Ray cluster", "ray"):
        import ray
        import ray.exceptions
    return ray


def forget_token() -> None:
    """Make Ray look again at where its token comes from, and whether one is asked for: it keeps both in the process.

    Else the second cluster of a process would be shown the token of the first.
    """
    with contextlib.suppress(ImportError, AttributeError):  # inner names, which another version may not have
        from ray._raylet import AuthenticationTokenLoader, Config

        Config.initialize("")  # first, so that no thread of an earlier connection asks for a token that is gone
        AuthenticationTokenLoader.instance().reset_cache()


@contextlib.contextmanager
def asking_no_cloud() -> Iterator[dict[str, str | None]]:
    """A cluster that is started in this block does not ask which cloud it is in.

    Yields:
        What its workers should set their environment to, since they inherit what keeps the head from asking.
    """
    before = {name: os.environ.get(name) for name in _NOWHERE}
    os.environ.update(_NOWHERE)
    try:
        yield before
    finally:
        set_variables(before)


def set_variables(variables: Mapping[str, str | None]) -> None:
    """Set variables of the environment; None removes one."""
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
