"""Table and figure of a grid, written beside its lanes; no Prefect here, so that
``vidbridge ablate --table`` answers at once.
"""

from __future__ import annotations

from pathlib import Path

from flows.ablation.lanes import ablation_folder
from flows.errors import UsageError
from flows.processes.locks import hold
from stages.lib.rows.jsonl import write_json
from stages.params import Params
from stages.runtime import paths
from stages.runtime.machine import measured
from stages.tools.ablation.figure import figure
from stages.tools.ablation.grid import Grid, read_grid
from stages.tools.ablation.results import Results
from stages.tools.ablation.table import markdown
from stages.tracking.lineage.git import git
from stages.tracking.runs.run import StageRun

#: Writing the table takes a second or two.
_TABLE_S = 60.0


def check(root: Path, params: Params) -> str:
    """Return the commit that the grid runs from.

    Raises:
        UsageError: the recipe has no grid, or code was edited and not committed, so that no clone
            would have it.
    """
    if params.ablation is None:
        raise UsageError(
            "ablation",
            f"the recipe {params.recipe} has none",
            "write one (infra/recipes/tiny.yaml has an example), or take a recipe that has: vidbridge recipe list",
        )
    if edited := git(root, "status", "--porcelain", "--", "stages", paths.CODE, paths.PIPELINE_FILE):
        first = edited.splitlines()[0].split()[-1]
        raise UsageError(
            first,
            "edited and not committed, and an ablation runs from a commit",
            "commit it, or put it aside: git stash",
        )
    return git(root, "rev-parse", "HEAD")


def publish(root: Path, params: Params, command: str, run: StageRun | None = None) -> Grid:
    """Write ``results.json``, ``table.md`` and ``figure.svg`` beside the clones, and into MLflow's
    run if there is one.

    Raises:
        InputError: no seed has run whole.
    """
    out = ablation_folder(root, params)
    # `ablate --table` may run while the grid runs.
    with hold(out / "table.lock", "ablate", "is writing this table already", wait_s=_TABLE_S):
        return _write(out, params, command, run)


def _write(out: Path, params: Params, command: str, run: StageRun | None) -> Grid:
    grid = read_grid(
        params, Results(out / "scores"), command=command, measured=measured("torch", "transformers", "trl")
    )
    write_json(out / paths.GRID_FILE, grid.model_dump(mode="json"))
    table, drawn = markdown(grid), figure(grid)
    (out / paths.GRID_TABLE_FILE).write_text(table, encoding="utf-8")
    (out / paths.GRID_FIGURE_FILE).write_text(drawn, encoding="utf-8")
    if run is not None:
        run.page(f"ablation/{paths.GRID_TABLE_FILE}", table)
        run.page(f"ablation/{paths.GRID_FIGURE_FILE}", drawn)
        run.page(f"ablation/{paths.GRID_FILE}", grid.model_dump_json(indent=1))
        run.summary({f"{row.name}/{task}": value.mean for row in grid.rows for task, value in row.columns.items()})
    return grid
