"""``vidbridge predict`` and ``vidbridge report``: thin doors to the verbs that load models and draw pages."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table
from rich.text import Text

from flows import champion, show


def predict(root: Path, video: Path, question: str, version: str) -> None:
    """Ask a registered model about a video; shows its thinking, its answer, and whether the reply parses."""
    from stages.predict import predict as ask

    said = ask(root, video, question, version)
    champion.warn_of_moved(root, version)
    table = Table(box=None, show_header=False, pad_edge=False)
    if said.answer is None:
        # Whatever a model says is text, never markup.
        table.add_row("reply", Text(said.text))
        table.add_row("parses", "no: it is not one think block followed by one answer block")
    else:
        table.add_row("thinking", Text(said.thinking or ""))
        table.add_row("answer", Text(said.answer))
        table.add_row("parses", "yes")
    out = show.console()
    out.print(table)
    if said.caution:
        out.print(f"note: {said.caution}", style="yellow", markup=False)


def report(root: Path, out: Path) -> None:
    """Write the page and say where it is."""
    from stages.report import build

    build(root, out)
    show.console().print(f"written: {out} (opens offline)", markup=False)
