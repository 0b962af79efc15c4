"""``vidbridge predict`` and ``vidbridge report``: thin doors to the verbs that load models and draw pages."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from flows import show
from stages.plain import plain


def predict(root: Path, video: Path, question: str, version: str) -> None:
    """Ask a registered model about a video; shows its thinking, its answer, and whether the reply parses."""
    from stages.predict import predict as ask

    said = ask(root, video, question, version)
    table = Table(box=None, show_header=False, pad_edge=False)
    if said.answer is None:
        table.add_row("reply", plain(said.text))
        table.add_row("parses", "no: it is not one think block followed by one answer block")
    else:
        table.add_row("thinking", plain(said.thinking or ""))
        table.add_row("answer", plain(said.answer))
        table.add_row("parses", "yes")
    out = show.console()
    out.print(table)
    if said.caution:
        out.print(f"note: {said.caution}", style="yellow")


def report(root: Path, out: Path) -> None:
    """Write the page and say where it is."""
    from stages.report import build

    build(root, out)
    show.say(f"written: {out} (opens offline)")
