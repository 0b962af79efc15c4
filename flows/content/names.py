"""Names of files that DVC cannot store: they are not UTF-8, and DVC fails on them without naming
one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from flows.errors import UsageError
from stages.runtime.plain import one_line


def unstorable_names(folder: Path) -> Iterator[UsageError]:
    """Yield an error for each name below ``folder`` that is not UTF-8."""
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            if not is_utf8(name):
                yield UsageError(
                    one_line(Path(parent, name)), "its name is not UTF-8, and DVC stores no such name", "rename it"
                )


def is_utf8(name: str) -> bool:
    """Return whether the name of a file, as Python read it, is valid UTF-8."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def has_file(folder: Path, name: str) -> bool:
    """Return whether the folder has a file or folder of this name, or one that its wildcards
    match."""
    if (folder / name).exists():
        return True
    return any(character in name for character in "*?[") and any(folder.glob(name))
