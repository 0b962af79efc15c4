"""``vidbridge doctor``: the state of this machine, for a person or a program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from flows.cli import app

if TYPE_CHECKING:
    from flows.project.diagnosis.finding import Finding

_COLOURS = {"ok": "green", "warn": "yellow", "missing": "red"}


def doctor(as_json: app.JsonOption = False) -> None:
    """Check this machine and project, and print remedies.

    Also lists the results that an upgrade from 0.1 leaves out of date. Example: vidbridge doctor
    """
    from dataclasses import asdict

    from flows.console import show
    from flows.processes.environment import project_or_none
    from flows.project.diagnosis.findings import findings

    found = findings(project_or_none())
    missing = [one.what for one in found if one.state == "missing"]
    if as_json:
        show.document({"ready": not missing, "findings": [asdict(one) for one in found]})
    else:
        _print(found, missing)
    if missing:
        raise typer.Exit(app.FAILURE)


def _print(found: Sequence[Finding], missing: Sequence[str]) -> None:
    from rich.table import Table
    from rich.text import Text

    from flows.console import show
    from stages.runtime.plain import one_line, plain, redacted

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column()
    table.add_column(overflow="fold")
    for one in found:
        text = one_line(redacted(one.found)) + (f"\n→ {plain(redacted(one.todo))}" if one.todo else "")
        table.add_row(one.what, Text(one.state, _COLOURS[one.state]), text)
    out = show.console()
    out.print(table)
    out.print(f"missing: {', '.join(missing)}" if missing else "ready; type: vidbridge run")
