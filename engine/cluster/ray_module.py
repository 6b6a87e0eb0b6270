"""Imports Ray, with its usage statistics off.

Ray reports usage to its makers unless ``RAY_USAGE_STATS_ENABLED=0`` is set where a cluster's head starts. It is set
here before Ray is imported, whatever it was, so that a cluster which is started from here reports nothing. Of a cluster
that others have started, whoever started its head has decided.
"""

from __future__ import annotations

import os
from typing import Any

from mkc_fast.extras import required

VARIABLE = "RAY_USAGE_STATS_ENABLED"


def load_ray() -> Any:
    """The module ``ray``.

    Raises:
        MkcError: It is not installed; the message names the extra.
    """
    os.environ[VARIABLE] = "0"
    with required("a Ray cluster", "ray"):
        import ray
        import ray.exceptions
    return ray
