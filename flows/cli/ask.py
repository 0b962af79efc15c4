"""``vidbridge predict`` and ``vidbridge report``: thin doors to the verbs that load models and draw pages."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from flows.cli import champion
from flows.cli.outside import reader
from flows.console import show
from flows.errors import UsageError
from stages.runtime.plain import plain
from stages.runtime.project import ProjectError


def predict(video: Path, question: str, version: str, model: Path | None) -> None:
    """Ask a registered model, or an exported folder, about a video; shows its thinking, its answer, and whether the reply parses.

    Raises:
        UsageError: there is no such video, or no registry that could be asked.
        VideoError: the file is no video.
    """
    if not video.is_file():
        raise UsageError(f"video: {str(video)!r} is no file; give the path of one")
    from stages.tools.serving import predict as asking

    if model is not None:
        said = asking.predict_with(model, video, question, _tell)
    else:
        try:
            session = reader()
        except (UsageError, ProjectError) as error:
            asking.look(video)
            raise UsageError(f"{error}; or name a folder that `vidbridge export` wrote: --model FOLDER") from error
        said = asking.predict(session, video, question, version, _tell)
        champion.warn_of_moved(session, version)
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


def _tell(what: str) -> None:
    show.say(f"{what} …", error=True)


def report(root: Path, out: Path) -> None:
    """Write the page and say where it is."""
    from stages.tools.report.page import build

    build(root, out)
    show.say(f"written: {out} (opens offline)")
