"""The grid as a figure: what each training changed."""

from __future__ import annotations

import io

from stages.domain.tasks import task_of
from stages.tools.ablation.grid import Grid
from stages.tools.ablation.seeds import Gain

_MARKERS = ("o", "s", "D", "^", "v", "P")
_COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e")


def figure(grid: Grid) -> str:
    """Draw the grid as an SVG: the change from each variant's training, answering to the right,
    describing upwards.

    Changes and not scores: seeds differ more from each other than variants of one seed do. The bars
    are t intervals over seeds.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    x, y = grid.axes
    titles = {row.name: row.title for row in grid.rows}
    # Text stays text: it can be read, searched and scaled.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": grid.commit, "font.family": "sans-serif"}):
        drawing = Figure(figsize=(8.8, 5.4), layout="constrained")
        axis = drawing.subplots()
        axis.axvline(0, color="#888888", linewidth=0.9)
        axis.axhline(0, color="#888888", linewidth=0.9)
        changes = [contrast for contrast in grid.contrasts if contrast.before == grid.start]
        for change, (colour, marker) in zip(changes, _looks(len(changes)), strict=True):
            (over_x, bar_x), (over_y, bar_y) = (_point(change.columns[column]) for column in (x, y))
            axis.errorbar(
                over_x,
                over_y,
                xerr=bar_x,
                yerr=bar_y,
                fmt=marker,
                markersize=8,
                capsize=2,
                linewidth=1,
                alpha=0.9,
                color=colour,
                label=titles[change.after],
            )
        axis.set_xlabel(f"{_axis(x)}: change from the start")
        axis.set_ylabel(f"{_axis(y)}: change from the start")
        axis.set_title(f"{grid.recipe}, {len(grid.seeds)} seeds: what each training changed", fontsize=11)
        axis.grid(alpha=0.2)
        axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), title="trained on")
        buffer = io.StringIO()
        drawing.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _point(gain: Gain) -> tuple[float, list[list[float]]]:
    interval = gain.over_seeds or gain.clips
    return interval.mean, [[interval.mean - interval.low], [interval.high - interval.mean]]


def _axis(name: str) -> str:
    """Title of a task, or of a part of its score, in a figure."""
    task, _, part = name.partition("/")
    titles = {part.name: part.title for part in task_of(task).parts}
    return (titles.get(part) or name) if part else task_of(task).title


def _looks(count: int) -> list[tuple[str, str]]:
    """Colours and markers for this many points; no two alike."""
    return [(_COLOURS[n % len(_COLOURS)], _MARKERS[n // len(_COLOURS) + n % 3]) for n in range(count)]
