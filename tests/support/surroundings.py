"""What surrounds a project in tests: an environment that names no other one, and stores that
strangers write to."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest


def forget(patch: pytest.MonkeyPatch, *prefixes: str) -> None:
    """Take every variable that begins with one of these out of the environment."""
    for name in list(os.environ):
        if name.startswith(prefixes):
            patch.delenv(name)


def put(store: Path, content: bytes, suffix: str = "") -> str:
    """An object in a cache or a remote of DVC's, under its own hash, as anybody who may write there
    can make it."""
    name = hashlib.md5(content).hexdigest() + suffix
    path = store / "files/md5" / name[:2] / name[2:]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return name


#: What stands in the file of the fixture ``outside``.
KEPT = "what was there before"


def assert_untouched(outside: Path) -> None:
    """The file is as it was, and nothing lies beside it."""
    assert {path.name: path.read_text() for path in outside.parent.iterdir()} == {outside.name: KEPT}
