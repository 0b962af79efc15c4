"""The command `vidbridge ablate`: run the grid (:mod:`flows.ablation`), show the table, say where the figure is."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows import preflight
from flows.console import show
from flows.errors import FlowError
from flows.processes import prefect_server
from flows.processes.locks import only_run
from stages.params import load_params
from stages.runtime import paths
from stages.runtime.plain import one_line
from stages.tools.ablation.grid import Contrast, Grid, NothingRunError, signed

COMMAND = "vidbridge recipe use {recipe} && vidbridge ablate"
FILES = (paths.GRID_FILE, paths.GRID_TABLE_FILE, paths.GRID_FIGURE_FILE)


def ablate(root: Path, jobs: int | None, out: Path | None, *, table_only: bool) -> None:
    """Run what is missing, ``jobs`` seeds at a time (None: as many as the machine takes), then show the grid.

    Raises:
        UsageError: the recipe has no grid, or code is not committed.
        FlowError: a training failed; what was done stays done.
        InputError: nothing has run whole.
    """
    params = load_params(root / paths.PARAMS_FILE)
    command = COMMAND.format(recipe=params.recipe)
    if table_only:
        from flows.ablation import check, place, publish

        check(root, params)
        try:
            grid = publish(root, params, command)
        except NothingRunError as error:
            show.say(str(error))
            return
    else:
        with only_run(root):
            # Again, now that nobody else changes them.
            params = load_params(root / paths.PARAMS_FILE)
            grid = _flow(root, jobs, COMMAND.format(recipe=params.recipe))
        from flows.ablation import place
    console, folder = show.console(), place(root, params)
    columns = _columns(grid, console)
    console.print(_scores(grid, columns))
    console.print(_contrasts(grid, columns))
    if grid.missing:
        console.print(f"partial: {len(grid.missing)} trainings are missing; go on: vidbridge ablate", style="yellow")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            shutil.copyfile(folder / name, out / name)
        folder = out
    show.say(f"written: {', '.join(str(folder / name) for name in FILES)}")


def _flow(root: Path, jobs: int | None, command: str) -> Grid:
    preflight.check_prefect()
    with prefect_server.starting(root) as starting:
        from prefect import tags

        from flows.ablation import ablation, check, default_jobs
        from flows.processes.lost import process_tags

        params = load_params(root / paths.PARAMS_FILE)
        check(root, params)  # before anyone waits for the server
        with prefect_server.connected(starting), tags(*process_tags()):
            state: Any = ablation(root, jobs or default_jobs(params), command, return_state=True)
            if state.is_cancelled():
                raise KeyboardInterrupt
            result = state.result(raise_on_failure=False)
    if isinstance(result, Grid):
        return result
    if isinstance(result, BaseException):
        raise result
    raise FlowError(f"ablate: ended as {state.name}: {state.message}")


def _columns(grid: Grid, console: Console) -> list[str]:
    """All columns where there is room for them, else what the figure's axes are."""
    return list(grid.rows[0].columns) if console.width >= show.WIDE else list(grid.axes)


def _scores(grid: Grid, columns: list[str]) -> Table:
    table = Table(title=f"{one_line(grid.recipe)}, {len(grid.seeds)} seeds: share of the maximum, held out; bold: trained on it")
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
