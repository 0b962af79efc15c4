"""Bounds of caches on disk, in GB, as the environment sets them."""

from __future__ import annotations

import math
import os

from stages.errors import VidbridgeError


def most_bytes_of(variable: str, default_gb: float, error: type[VidbridgeError]) -> int:
    """Read a bound in GB from an environment variable, and return it in bytes.

    Raises:
        error: it is not a number above 0.
    """
    text = os.environ.get(variable, "").strip()
    try:
        size_gb = float(text) if text else default_gb
    except ValueError:
        size_gb = math.nan
    if not 0 < size_gb < 1e9:
        raise error(variable, f"{text!r} is not a number of GB", f"set one above 0, or unset it ({default_gb:g})")
    return int(size_gb * 1e9)
