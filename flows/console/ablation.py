"""The grid of an ablation on a terminal: its progress while it runs; then its scores, and
differences paired by sample.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from flows.console import show
from stages.runtime.plain import one_line
from stages.tools.ablation.grid import Contrast, Grid
from stages.tools.ablation.table import signed

if TYPE_CHECKING:
    from prefect.logging.handlers import PrefectConsoleHandler


@contextmanager
def shown_in_place(text: Callable[[], str]) -> Iterator[None]:
    """Show ``text()`` as the last line of the terminal for this block, below the lines of the log.
    Does nothing where stderr is no terminal, or with ``--quiet``.
    """
    out = show.console(error=True)
    if not out.is_terminal or out.quiet:
        yield
        return
    with Live(get_renderable=lambda: Text(text(), "bold"), console=out, refresh_per_second=1, transient=True) as line:
        # Prefect's lines come from consoles of its own, which would write into this line.
        consoles = [handler.console for handler in _handlers()]
        for console in consoles:
            console.push_render_hook(line)
        try:
            yield
        finally:
            for console in consoles:
                console.pop_render_hook()


def _handlers() -> list[PrefectConsoleHandler]:
    from prefect.logging.handlers import PrefectConsoleHandler

    names = (None, *(name for name in logging.Logger.manager.loggerDict if name.startswith("prefect")))
    found = {id(handler): handler for name in names for handler in logging.getLogger(name).handlers}
    return [handler for handler in found.values() if isinstance(handler, PrefectConsoleHandler)]


def show_grid(out: Console, grid: Grid) -> None:
    """Print scores and differences, and what is missing of them."""
    columns = _columns(grid, out)
    out.print(_scores(grid, columns))
    out.print(_contrasts(grid, columns))
    if grid.missing:
        out.print(f"partial: {len(grid.missing)} trainings are missing; go on: vidbridge ablate", style="yellow")


def _columns(grid: Grid, console: Console) -> list[str]:
    """All columns if they fit, else those of the figure's axes."""
    return list(grid.rows[0].columns) if console.width >= show.WIDE else list(grid.axes)


def _scores(grid: Grid, columns: list[str]) -> Table:
    table = Table(
        title=f"{one_line(grid.recipe)}, {len(grid.seeds)} seeds: share of the maximum, held out; bold: trained on it"
    )
    table.add_column("trained on")
    for column in (*columns, "mean"):
        table.add_column(column.replace("_", " "), justify="right")
    for row in grid.rows:
        cells = [f"{row.columns[column].mean:.3f}" for column in columns]
        trained = [column.split("/")[0] in row.trained_on for column in columns]
        bold = [Text(cell, "bold" if own else "") for own, cell in zip(trained, cells, strict=True)]
        table.add_row(one_line(row.title), *bold, f"{sum(row.seeds) / len(row.seeds):.3f}")
    return table


def _contrasts(grid: Grid, columns: list[str]) -> Table:
    table = Table(title="differences, paired by sample [t interval over seeds]; bold: it leaves 0 out")
    table.add_column("")
    titles = {row.name: row.title for row in grid.rows} | {grid.start: grid.start}
    for column in (*columns, "mean"):
        table.add_column(column.replace("_", " "), justify="right")
    for contrast in grid.contrasts:
        cells = [_cell(contrast, column) for column in (*columns, "mean")]
        table.add_row(one_line(f"{titles[contrast.after]} - {titles[contrast.before]}"), *cells)
    return table


def _cell(contrast: Contrast, column: str) -> Text:
    gain = contrast.mean if column == "mean" else contrast.columns[column]
    interval = gain.over_seeds or gain.clips
    return Text(signed(gain), "bold" if interval.low > 0 or interval.high < 0 else "")
