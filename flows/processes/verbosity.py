"""How much a command says (``--quiet``, ``--verbose``): of this process, and of Prefect and DVC in it."""

from __future__ import annotations

import logging
import os
import sys
from typing import Literal

#: Ours log under their modules' names. DVC's command line sets up its own log, its library none.
_PACKAGES = ("flows", "stages", "dvc")

_level: Literal["quiet", "normal", "verbose"] = "normal"


def choose(*, verbose: bool, quiet: bool) -> None:
    """Set it, before Prefect and tqdm are imported: they read the environment. What a person set there stays."""
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
    """Whether only errors are told, and what was asked for by itself."""
    return _level == "quiet"


def is_verbose() -> bool:
    """Whether what DVC and Prefect say is told too."""
    return _level == "verbose"
