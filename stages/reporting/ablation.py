"""The ablation grid in the report, where one has been run: its figure and its table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stages.inputs import InputError
from stages.pages import in_base64

#: Where ``vidbridge ablate`` keeps a recipe's grid, below the project's folder.
FOLDER = Path(".vidbridge/ablation")


class Spread(BaseModel):
    """A mean with its interval; the grid may say more of it than the page shows."""

    model_config = ConfigDict(frozen=True)

    mean: float
    low: float
    high: float


class Variant(BaseModel):
    model_config = ConfigDict(frozen=True)

    name: str
    title: str
    tasks: dict[str, Spread]


class Grid(BaseModel):
    """What the page reads of ``results.json``. ``missing``: trainings that have not run, so that nothing partial looks whole."""

    model_config = ConfigDict(frozen=True)

    recipe: str
    command: str
    seeds: tuple[int, ...] = Field(min_length=1)
    rows: tuple[Variant, ...] = Field(min_length=1)
    missing: tuple[str, ...] = ()


def ablation(root: Path, recipe: str) -> dict[str, Any] | None:
    """The figure as an address of a picture, in which no script runs, and the grid; None where none was run.

    Raises:
        InputError: one of its two files is missing or damaged.
    """
    folder = FOLDER / recipe
    results, figure = folder / "results.json", folder / "figure.svg"
    if not (root / results).exists() and not (root / figure).exists():
        return None
    remedy = f"run vidbridge ablate, or delete {folder} to leave it out of the report"
    try:
        grid = Grid.model_validate_json((root / results).read_bytes())
        drawn = (root / figure).read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{Path(error.filename).relative_to(root)}: missing, though its grid is there; {remedy}") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(f"{results}: {field}: {first['msg']} (value {str(first['input'])[:80]!r}); {remedy}") from error
    if b"<svg" not in drawn[:4096] or not drawn.rstrip().endswith(b"</svg>"):
        raise InputError(f"{figure}: no whole SVG; {remedy}")
    tasks = list(grid.rows[0].tasks)
    if odd := next((row.name for row in grid.rows if list(row.tasks) != tasks), None):
        raise InputError(f"{results}: rows.{odd}.tasks: not the tasks of the first row ({', '.join(tasks)}); {remedy}")
    return {"grid": grid, "tasks": tasks, "figure": f"data:image/svg+xml;base64,{in_base64(drawn)}"}
