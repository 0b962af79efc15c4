"""Digest of values: one number for a table of parameters, and the seed of what is drawn by it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel


def digest(value: BaseModel | Mapping[str, Any]) -> str:
    """SHA-256 of a value's canonical JSON, the first 16 hex digits: equal digests, equal parameters."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]
