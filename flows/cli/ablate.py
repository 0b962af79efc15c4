"""``vidbridge ablate``: run the grid of a recipe (:mod:`flows.ablation`), print the table and the
figure's path.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli import app
from stages.runtime import paths

if TYPE_CHECKING:
    from stages.tools.ablation.grid import Grid

_COMMAND = "vidbridge recipe use {recipe} && vidbridge ablate"
_FILES = (paths.GRID_FILE, paths.GRID_TABLE_FILE, paths.GRID_FIGURE_FILE)


def ablate(
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Trainings at a time; default: as cores and memory allow (a pretrained model: 1)."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to copy the table, the plot and their data to.")] = None,
    table: Annotated[bool, typer.Option("--table", help="Run nothing; print the results so far.")] = False,
) -> None:
    """Run the grid of `ablation` in params.yaml, all seeds of it.

    Prints one table and writes one figure, both with intervals.

    Data, base and start are made once a seed. A training that fails does not stop the others; its
    log is named at the end, and the exit status is 1. Ctrl-C ends all of them; the next call goes
    on where it stopped. Example: vidbridge ablate --jobs 2
    """
    folder = app.as_typed(out)
    with app.resumable_with("vidbridge ablate"):
        run_grid(app.root(), jobs, folder, table_only=table)


def run_grid(root: Path, jobs: int | None, out: Path | None, *, table_only: bool) -> None:
    """Run what is missing, ``jobs`` trainings at a time (None: as many as the machine takes), then
    show the grid.

    Raises:
        UsageError: the recipe has no grid, or code is not committed.
        FlowError: a training failed; what was done stays done.
        InputError: nothing has run whole.
    """
    from flows.ablation.lanes import ablation_folder
    from flows.console import show
    from flows.console.ablation import show_grid
    from flows.processes.locks import only_run
    from stages.params import load_params
    from stages.tools.ablation.grid import NothingRunError

    params = load_params(root / paths.PARAMS_FILE)
    if table_only:
        from flows.ablation.results import check, publish

        check(root, params)
        try:
            grid = publish(root, params, _COMMAND.format(recipe=params.recipe))
        except NothingRunError as error:
            show.say(str(error))
            return
    else:
        with only_run(root):
            # Again, now that nobody else changes them.
            params = load_params(root / paths.PARAMS_FILE)
            grid = _flow(root, jobs, _COMMAND.format(recipe=params.recipe))
    folder = ablation_folder(root, params)
    show_grid(show.console(), grid)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        for name in _FILES:
            shutil.copyfile(folder / name, out / name)
        folder = out
    show.say(f"written: {', '.join(str(folder / name) for name in _FILES)}")


def _flow(root: Path, jobs: int | None, command: str) -> Grid:
    from flows.errors import FlowError
    from flows.processes import prefect_server
    from flows.repro import preflight
    from stages.params import load_params
    from stages.tools.ablation.grid import Grid

    preflight.check_prefect()
    with prefect_server.starting(root) as starting:
        from prefect import tags

        from flows.ablation.flow import ablation
        from flows.ablation.results import check
        from flows.processes.lost import process_tags

        params = load_params(root / paths.PARAMS_FILE)
        check(root, params)  # before anyone waits for the server
        with prefect_server.connected(starting), tags(*process_tags()):
            state: Any = ablation(root, jobs, command, return_state=True)
            if state.is_cancelled():
                raise KeyboardInterrupt
            result = state.result(raise_on_failure=False)
    if isinstance(result, Grid):
        return result
    if isinstance(result, BaseException):
        raise result
    raise FlowError("ablate", f"ended as {state.name}: {state.message}", "see the lines above; type: vidbridge ablate")
