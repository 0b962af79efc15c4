"""Rows that stand for a missing annotation, such as the sentence "None" at [0, 1]."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.domain.core.records import folded

#: Sentences that say nothing.
_NOTHING = frozenset(("none", "null", "nan", "n/a", "na", "nothing", "no annotation", "placeholder", "-"))


def is_placeholder(event: Mapping[str, Any]) -> bool:
    """True if an event says nothing, within the first second of its video."""
    return folded(str(event["caption"])) in _NOTHING and event["start"] == 0 and event["end"] <= 1
