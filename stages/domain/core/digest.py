"""Digest of parameter values, also used as the seed of random draws."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel


def digest(value: BaseModel | Mapping[str, Any]) -> str:
    """First 16 hex digits of the SHA-256 of a value's canonical JSON; equal parameters give equal
    digests."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]
