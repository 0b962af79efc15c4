"""The checkout that is tested: its committed files are there for tests, what was run in it is
not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

#: Environment of a process elsewhere that imports what is tested.
IN_CHECKOUT = {**os.environ, "PYTHONPATH": str(ROOT)}
#: Where runs, reports, benchmarks and the documentation put what they make (``.gitignore`` lists
#: the same places).
RESULTS = (
    "data",
    "models",
    "scores",
    "reports",
    "report",
    "report.html",
    "data.html",
    "site",
    "mlruns",
    ".vidbridge",
    ".env",
    "dvc.lock",
)
_PLACES = tuple(str(ROOT / name) for name in RESULTS)
_READS = frozenset({"open", "os.listdir", "os.scandir", "sqlite3.connect"})


def refuse_results(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: opening or listing a result of the checkout is an error, whoever does it in
    this process.

    Raises:
        PermissionError: the path lies in one of :data:`RESULTS`.
    """
    if event not in _READS or not isinstance(arguments[0], str | bytes | os.PathLike):
        return
    path = str(Path(os.fsdecode(arguments[0])).absolute())
    for place in _PLACES:
        if path == place or path.startswith(place + os.sep):
            raise PermissionError(f"{path}: a test reads what was run in the checkout; give it files of its own")
