"""Verbosity of a command (``--quiet``, ``--verbose``): of this process, and of Prefect and DVC in
it.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Literal

#: Ours log under their modules' names. DVC's command line sets up its own log, its library none.
_PACKAGES = ("flows", "stages", "dvc")

_level: Literal["quiet", "normal", "verbose"] = "normal"


def choose(*, verbose: bool, quiet: bool) -> None:
    """Set the verbosity, before Prefect and tqdm are imported, since they read the environment.
    Variables that the user set stay.
    """
    global _level
    _level = "verbose" if verbose else "quiet" if quiet else "normal"
    if quiet:
        os.environ.setdefault("PREFECT_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("TQDM_DISABLE", "1")
    if verbose:
        os.environ.setdefault("PREFECT_LOGGING_LEVEL", "DEBUG")
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s", "%H:%M:%S"))
        for package in _PACKAGES:
            logger = logging.getLogger(package)
            logger.setLevel(logging.DEBUG)
            logger.addHandler(handler)


def is_quiet() -> bool:
    """Return whether only errors and explicitly requested output are printed."""
    return _level == "quiet"


def is_verbose() -> bool:
    """Return whether the output of DVC and Prefect is printed too."""
    return _level == "verbose"
