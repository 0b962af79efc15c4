"""The grid as Markdown tables."""

from __future__ import annotations

from stages.domain.statistics.intervals import Interval
from stages.tools.ablation.grid import Grid, PolicyResult
from stages.tools.ablation.seeds import Gain


def markdown(grid: Grid) -> str:
    """Format the grid as two Markdown tables, with commit, seeds and budget."""
    columns = list(grid.rows[0].columns)
    seeds = ", ".join(map(str, grid.seeds))
    head = f"{grid.measured} Commit {format_commit(grid)}, seeds {seeds}; {_budget(grid)}. `{grid.command}`"
    lines = [head, ""]
    if grid.missing:
        lines += [f"**Partial**: {len(grid.missing)} trainings are missing ({', '.join(grid.missing[:3])} …).", ""]
    lines += [
        f"| trained on | {' | '.join(columns)} | mean | format | blank video |",
        "|---" * (len(columns) + 4) + "|",
    ]
    for row in grid.rows:
        cells = " | ".join(_bold(_cell(row.columns[column]), row, column) for column in columns)
        mean, blank = sum(row.seeds) / len(row.seeds), "" if row.blank is None else f"{row.blank:.3f}"
        lines.append(f"| {row.title} | {cells} | {mean:.3f} | {row.format:.3f} | {blank} |")
    titles = {row.name: row.title for row in grid.rows} | {grid.start: grid.start}
    lines += ["", f"| difference | {' | '.join(columns)} | mean |", "|---" * (len(columns) + 2) + "|"]
    for contrast in grid.contrasts:
        cells = " | ".join(signed(contrast.columns[column]) for column in columns)
        lines.append(f"| {titles[contrast.after]} − {titles[contrast.before]} | {cells} | {signed(contrast.mean)} |")
    return "\n".join(lines) + "\n"


def _budget(grid: Grid) -> str:
    if not grid.without_rollouts:
        return f"each variant {grid.rollouts:,} rollouts"
    titles = {row.name: row.title for row in grid.rows}
    by_sft = f"trained by SFT, without a rollout: {', '.join(titles[name] for name in grid.without_rollouts)}"
    return f"each variant trained by GRPO {grid.rollouts:,} rollouts; {by_sft}" if grid.rollouts else by_sft


def _cell(value: Interval) -> str:
    return f"{value.mean:.3f} [{value.low:.2f}, {value.high:.2f}]"


def _bold(text: str, row: PolicyResult, column: str) -> str:
    """Highlight the tasks that a variant was trained on."""
    return f"**{text}**" if column.split("/")[0] in row.trained_on else text


def signed(gain: Gain) -> str:
    """Format the mean difference and its t interval over seeds; its interval over recordings if
    seeds have no spread."""
    interval = gain.over_seeds or gain.clips
    return f"{gain.clips.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def format_commit(grid: Grid) -> str:
    """Commit as tables display it."""
    short = grid.commit if "," in grid.commit else grid.commit[:12]
    return f"{short} (with its parameters, which are others now)" if grid.other_parameters else short
