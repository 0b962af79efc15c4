"""The ablation grid in the report, if one has been run: its figure and its table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stages.domain.statistics.intervals import Interval
from stages.errors import InputError
from stages.pages.render import in_base64
from stages.runtime import paths
from stages.tools.ablation.grid import Grid
from stages.tools.ablation.seeds import Gain
from stages.tools.ablation.table import format_commit
from stages.tools.report.scores import cell


def ablation(root: Path, recipe: str) -> dict[str, Any] | None:
    """Read the grid, and its figure as a data URL of a picture, in which no script runs; None if no
    grid was run.

    Raises:
        InputError: one of its two files is missing or damaged.
    """
    folder = paths.ABLATIONS / recipe
    results, figure = folder / paths.GRID_FILE, folder / paths.GRID_FIGURE_FILE
    if not (root / results).exists() and not (root / figure).exists():
        return None
    remedy = f"run vidbridge ablate, or delete {folder} to leave it out of the report"
    try:
        grid = Grid.model_validate_json((root / results).read_bytes())
        drawn = (root / figure).read_bytes()
    except FileNotFoundError as error:
        raise InputError(
            f"{Path(error.filename).relative_to(root)}", "missing, though its grid is there", f"{remedy}"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(
            str(results), f"{field}: {first['msg']} (value {str(first['input'])[:80]!r})", f"{remedy}"
        ) from error
    if b"<svg" not in drawn[:4096] or not drawn.rstrip().endswith(b"</svg>"):
        raise InputError(str(figure), "no whole SVG", remedy)
    columns = list(grid.rows[0].columns)
    return {
        "grid": grid,
        "commit": format_commit(grid),
        "columns": columns,
        "figure": f"data:image/svg+xml;base64,{in_base64(drawn)}",
        "contrasts": _contrasts(grid, columns),
    }


def _contrasts(grid: Grid, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of contrasts with their intervals over seeds (over recordings if seeds have no spread),
    all drawn on one scale."""
    titles = {row.name: row.title for row in grid.rows}
    contrasts = [(c, [_spread(c.mean), *(_spread(c.columns[name]) for name in columns)]) for c in grid.contrasts]
    widest = max((abs(end) for _, spreads in contrasts for s in spreads for end in (s.low, s.high)), default=0) or 1.0
    return [
        {
            "name": f"{titles[c.after]} − {titles[c.before]}",
            "cells": [cell(spread, (-widest, widest)) for spread in spreads],
        }
        for c, spreads in contrasts
    ]


def _spread(gain: Gain) -> Interval:
    interval = gain.over_seeds or gain.clips
    return Interval(mean=gain.clips.mean, low=interval.low, high=interval.high)
