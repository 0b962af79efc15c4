"""Output on the terminal: the plan, the scores, paths of results, the next commands."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderableType, RenderHook, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from flows.console.results import CONTROLS
from flows.processes import verbosity
from flows.processes.environment import defaults
from flows.repro.steps import Plan, held
from stages.lib.evaluation.results import TRIVIAL
from stages.runtime import paths
from stages.runtime.plain import fit, known_secrets, one_line, plain, redacted
from stages.tracking.lineage.uri import display_uri
from stages.tracking.runs.history import Cost

if TYPE_CHECKING:
    from flows.costs.estimate import RunCost

#: Columns of a terminal in which the score table has room for intervals.
WIDE = 120

_COLOURS = {"will run": "yellow", "restore": "cyan", "fetch": "blue", "up to date": "green"}


class _Fitted:
    """A renderable whose text is made fit for a terminal: styles are ours, the text may be
    anyone's.
    """

    def __init__(self, inner: ConsoleRenderable) -> None:
        self._inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        secrets = known_secrets()
        for text, style, control in console.render(self._inner, options):
            yield Segment(text if control else plain(redacted(text, secrets)), style, control)


class _Fit(RenderHook):
    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Fitted(one) for one in renderables]


def _console(
    file: TextIO | None = None, *, error: bool = False, width: int | None = None, quiet: bool = False
) -> Console:
    """Console on which a string is text: "[red]", ":dog:.mp4" and ESC mean nothing in it. Styled
    text is a ``Text``.
    """
    made = Console(
        file=file, stderr=error, width=width, soft_wrap=error, markup=False, emoji=False, highlight=False, quiet=quiet
    )
    made.push_render_hook(_Fit())
    return made


def console(error: bool = False) -> Console:
    """Console of the terminal. If the output is not a terminal (a pipe, a file), tables are
    :data:`WIDE`, unless ``COLUMNS`` sets another width.
    """
    stream = sys.stderr if error else sys.stdout
    wide = not stream.isatty() and not os.environ.get("COLUMNS", "").isdigit()
    return _console(error=error, width=WIDE if wide else None, quiet=verbosity.is_quiet())


def say(text: object, *, error: bool = False, end: str = "\n") -> None:
    """Print a text verbatim, one line or several, parts of which anyone may have written: without
    secrets, control characters written out.

    ``--quiet`` leaves it out.
    """
    if not verbosity.is_quiet():
        write(text, error=error, end=end)


def write(text: object, *, error: bool = False, end: str = "\n") -> None:
    """Print output that was requested explicitly, such as a recipe's text: ``--quiet`` does not
    leave it out.
    """
    print(fit(text), end=end, file=sys.stderr if error else sys.stdout)


def document(value: object) -> None:
    """Print one JSON document on stdout, without secrets; in ASCII, so that nothing in it acts on a
    terminal.
    """
    print(json.dumps(_plain_value(value, known_secrets()), indent=2))


def _plain_value(value: object, secrets: Sequence[str]) -> object:
    if isinstance(value, Mapping):
        return {redacted(key, secrets): _plain_value(part, secrets) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain_value(part, secrets) for part in value]
    if isinstance(value, str):
        return redacted(value, secrets)
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no such number
    return value


def as_text(table: RenderableType, width: int = 120) -> str:
    """Plain lines of a table, for logs and artefacts."""
    out = _console(StringIO(), width=width)
    with out.capture() as captured:
        out.print(table)
    return captured.get().strip("\n")


def show_plan(out: Console, plan: Plan) -> None:
    """Print every stage of the plan, its action, and the reason."""
    table = Table(title=None, box=None, pad_edge=False)
    table.add_column("stage")
    table.add_column("state", no_wrap=True)
    table.add_column("why")
    for step in plan.steps:
        colour = _COLOURS[step.state]
        table.add_row(one_line(step.name), Text(step.state, colour), "\n".join(map(one_line, step.why)))
    out.print(table)
    for note in plan.notes:
        out.print(f"note: {one_line(note)}", style="yellow", soft_wrap=True)
    if plan.empty:
        out.print(f"everything that {plan.target} needs is up to date: nothing to do", style="green")
    else:
        counted = [f"{len(plan.to_run)} to run"]
        if plan.to_fetch:
            files, megabytes = held(plan.to_fetch)
            counted.append(f"{len(plan.to_fetch)} to fetch from the remote ({files:,} files, {megabytes:,.1f} MB)")
        if plan.to_restore:
            counted.append(f"{len(plan.to_restore)} to restore from the cache")
        ready = len(plan.steps) - len(plan.to_run) - len(plan.to_fetch) - len(plan.to_restore)
        out.print(", ".join([*counted, f"{ready} up to date"]))
    if plan.left:
        files, megabytes = held(plan.left)
        names = ", ".join(path for step in plan.left for path in step.outs)
        out.print(
            f"left in the remote: {names} ({files:,} files, {megabytes:,.1f} MB); nothing that runs needs them, dvc"
            " pull PATH brings one",
            soft_wrap=True,
        )


def show_cost(out: Console, cost: RunCost) -> None:
    """Print the cost of the stages that will run, and the basis of each figure."""
    if not cost.stages:
        return
    if not cost.calls() and not any(cost.total(what) for what in ("hours", "gpu_hours", "disk_gb", "money")):
        out.print(
            f"what it will cost is not known ({one_line(cost.note or cost.stages[0].why)}); rates can be declared in"
            " .vidbridge/rates.yaml (see docs/guides/housekeeping.md)"
        )
        return
    money = any(one.money is not None for one in cost.stages)
    table = Table(title="what it will cost", title_justify="left", box=None, pad_edge=False)
    for name in ("stage", "time", "GPU h", "GB", "questions", *([cost.currency or "money"] if money else []), "from"):
        table.add_column(name, justify="left" if name in ("stage", "from") else "right")
    for one in cost.stages:
        questions = "\n".join(
            f"{_count(call.at_most, about=call.about)} {call.who.replace('_', '-')}"
            + ("" if call.measured is None else f" (it was {call.measured:,})")
            for call in one.calls
        )
        paid = [_figure(one.money)] if money else []
        basis = Text(
            f"{one.basis}: {one_line(one.why)}" if one.basis else f"unknown: {one_line(one.why)}",
            "" if one.basis else "yellow",
        )
        table.add_row(
            one_line(one.stage), _time(one.hours), _figure(one.gpu_hours), _figure(one.disk_gb), questions, *paid, basis
        )
    table.add_section()
    sums = [_sum(cost.total("hours"), _time)]
    sums += [_sum(cost.total("gpu_hours"), _figure), _sum(cost.total("disk_gb"), _figure)]
    questions = "\n".join(
        f"{'' if whole else '? + '}{_count(count, about=about)} {who.replace('_', '-')}"
        for who, (count, whole, about) in cost.calls().items()
    )
    table.add_row("together", *sums, questions, *([_sum(cost.total("money"), _figure)] if money else []), "")
    out.print(table)
    if cost.note:
        out.print(Text(one_line(cost.note), style="yellow"))
    if cost.unknown:
        out.print(
            "a sum behind ≥ lacks what is unknown; rates can be declared in .vidbridge/rates.yaml (see"
            " docs/guides/housekeeping.md)"
        )


def _count(count: int | None, *, about: bool) -> str:
    if count is None:
        return "?"
    return f"{'about' if about else '≤'} {count:,}"


def _time(hours: float | None) -> str:
    from flows.costs.estimate import in_words

    return "?" if hours is None else in_words(hours)


def _figure(value: float | None) -> str:
    return "?" if value is None else "< 0.01" if 0 < value < 0.01 else f"{value:,.2f}"


def _sum(total: tuple[float, bool] | None, as_text: Callable[[float], str]) -> str:
    if total is None:
        return "?"
    value, whole = total
    return as_text(value) if whole else f"≥ {as_text(value)}"


def show_scores(
    out: Console,
    scores: Mapping[str, Mapping[str, float | None]],
    intervals: Mapping[tuple[str, str], tuple[float, float]] | None,
    confidence: float,
) -> None:
    """Print held-out scores in [0, 1]; the best policy of each column is bold, baselines stand
    above the line. A small table after it lists each policy's scores without its video, and with
    its frames out of order.

    ``intervals``: (policy, task) to the ends of its interval at ``confidence``, shown behind the
    mean.
    """
    if not scores:
        return
    columns = [name for name in dict.fromkeys(name for row in scores.values() for name in row) if name not in CONTROLS]
    best = {name: max((row.get(name) or 0.0) for row in scores.values()) for name in columns}
    if out.width < WIDE:
        intervals = None
    title = "held-out scores: share of the maximum" + (
        f", and its {confidence:.0%} interval over recordings" if intervals else ""
    )
    table = Table(title=title)
    table.add_column("policy")
    for name in columns:
        table.add_column(one_line(name).replace("_", " "), justify="right")
    policies = list(scores)
    for position, policy in enumerate(policies):
        row = scores[policy]
        cells = []
        for name in columns:
            value = row.get(name)
            text = "" if value is None else f"{value:.3f}"
            if intervals and (policy, name) in intervals:
                low, high = intervals[policy, name]
                text += f" {low:.2f}–{high:.2f}".replace("0.", ".")
            cells.append(Text(text, "bold" if value is not None and value == best[name] else ""))
        last_baseline = policy in TRIVIAL and (position + 1 == len(policies) or policies[position + 1] not in TRIVIAL)
        table.add_row(one_line(policy), *cells, end_section=last_baseline)
    out.print(table)
    _show_controls(out, scores)


def _show_controls(out: Console, scores: Mapping[str, Mapping[str, float | None]]) -> None:
    """Print the controls apart from the scores, since higher is not better here."""
    controlled = {policy: row for policy, row in scores.items() if any(row.get(name) is not None for name in CONTROLS)}
    if not controlled:
        return
    table = Table(title="what is earned without looking, and without the order of the frames: mean over tasks")
    for name in ("policy", "its video", *CONTROLS):
        table.add_column(name, justify="left" if name == "policy" else "right")
    for policy, row in controlled.items():
        values = [row.get(name) for name in ("mean", *CONTROLS)]
        table.add_row(one_line(policy), *("" if value is None else f"{value:.3f}" for value in values))
    out.print(table)


def show_gains(out: Console, gains: Mapping[str, Mapping[str, tuple[float, float, float]]], confidence: float) -> None:
    """Print the gain of each stage over the one it started from, on the same samples; bold where
    the interval leaves 0 out.
    """
    if not gains:
        return
    table = Table(title=f"gained, sample by sample [{confidence:.0%} interval]")
    table.add_column("")
    for name in gains:
        table.add_column(one_line(name), justify="right")
    for row in dict.fromkeys(name for gain in gains.values() for name in gain):
        cells = []
        for gain in gains.values():
            mean, low, high = gain.get(row, (math.nan,) * 3)
            text = "" if math.isnan(mean) else f"{mean:+.3f} [{low:+.2f}, {high:+.2f}]"
            cells.append(Text(text, "bold" if low > 0 or high < 0 else ""))
        table.add_row(one_line(row).replace("_", " "), *cells, end_section=row == "mean")
    out.print(table)


def show_costs(out: Console, costs: Mapping[str, Cost], stages: Sequence[str]) -> None:
    """Print the cost of each of these stages when it last ran: its share of the run's time and
    memory.
    """
    if not any(stage in costs for stage in stages):
        return
    table = Table(title="what each stage cost")
    for name in ("stage", "seconds", "CPU seconds", "peak GB"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for stage in stages:
        if stage in costs:
            cost = costs[stage]
            table.add_row(one_line(stage), f"{cost.wall_s:.0f}", f"{cost.cpu_s:.0f}", f"{cost.peak_gb:.1f}")
    out.print(table)


def show_where(out: Console, root: Path, *, scored: bool, promote: bool = True) -> None:
    """Print paths of the results, and the next commands: of a run that ended with scores, or with
    data only. ``promote``: there may be a candidate that is not the champion yet.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", defaults(root)["MLFLOW_TRACKING_URI"])
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("metrics and plots" if scored else "data", str(paths.REPORTS if scored else paths.SAMPLES))
    table.add_row("runs and versions", display_uri(uri))
    table.add_row("see them", "vidbridge ui")
    out.print(table)
    if scored:
        commands = ("vidbridge promote", "vidbridge report", "vidbridge explain candidate")
        show_next(
            out, *(commands if promote else ("vidbridge report", "vidbridge explain champion", "vidbridge serve"))
        )
    else:
        show_next(out, "vidbridge data browse", "vidbridge data export samples --limit 100", "vidbridge run")


def show_next(out: Console, *commands: str) -> None:
    """Print the next commands, a line each, so that they can be copied."""
    out.print("next:")
    for command in commands:
        out.print(f"  {one_line(command)}", soft_wrap=True)
