"""Reports, decisions and explanations as tables for a terminal; the data stay plain values."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from stages.tracking.explain import Explanation
from stages.tracking.gate import Event, Promotion
from stages.tracking.registry import RegisterReport
from stages.tracking.runs import flat


def register_table(report: RegisterReport) -> RenderableType:
    """What `register` did."""
    table = _table(f"Registered in {report.model}", "version", "stage", "step", "aliases", "mean score")
    for version in report.created:
        scores = version.scores
        aliases = ", ".join(version.aliases) + ("" if version.number != report.candidate or version.aliases else "candidate")
        table.add_row(str(version.number), version.stage, str(version.step), aliases, f"{scores.mean:.3f}" if scores else "–")
    pushed = "no remote" if report.pushed is None else f"{report.pushed} objects pushed"
    line = f"{len(report.created)} new, {report.kept} kept, {len(report.updated)} updated, {pushed}"
    if report.unsent:
        line += f", {report.unsent} late entries of earlier runs sent"
    notes = [Text(f"not registered: {text}", style="yellow") for text in report.skipped]
    notes += [Text(f"warning: {text}", style="yellow") for text in report.warnings]
    return Group(*([table] if report.created else []), Text(line), *notes)


def promotion_table(promotion: Promotion) -> RenderableType:
    """The gate's answer, a line for each rule."""
    champion = f"champion {promotion.champion.number}" if promotion.champion else "no champion"
    table = _table(f"Version {promotion.candidate.number} against {champion}", "what", "candidate", "other", "rule", "")
    for check in promotion.decision.table:
        other = "–" if check.other is None else f"{check.other:.3f}"
        table.add_row(
            check.what, f"{check.candidate:.3f}", other, check.rule, "met" if check.passed else Text("not met", style="red")
        )
    verdict = (
        Text(f"version {promotion.candidate.number} is champion", style="green")
        if promotion.moved
        else Text("refused", style="red")
    )
    shown = () if promotion.moved else promotion.decision.reasons
    return Group(*([table] if promotion.decision.table else []), verdict, *(Text(f"  {reason}") for reason in shown))


def history_table(events: Sequence[Event]) -> RenderableType:
    """Every move of the champion, oldest first."""
    table = _table("Champions", "when (UTC)", "what", "version", "before", "mean", "who", "why")
    for event in events:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(event.at_ms / 1000))
        mean = "–" if event.mean is None else f"{event.mean:.3f}"
        previous = "–" if event.previous is None else str(event.previous)
        table.add_row(when, event.action, str(event.version), previous, mean, Text(event.author), Text(event.reason))
    return table


def explanation_table(explanation: Explanation) -> RenderableType:
    """Everything about a version on one page."""
    version = explanation.version
    aliases = f" ({', '.join(version.aliases)})" if version.aliases else ""
    facts = _table(f"{version.model} version {version.number}{aliases}", "", "")
    facts.show_header = False
    facts.add_row("made by", f"{version.stage}, step {version.step}{' (final)' if version.final else ''}, recipe {version.recipe}")
    facts.add_row("source", explanation.source)
    facts.add_row("dvc.lock in commit", explanation.commit or Text("none: the gate will refuse it", style="yellow"))
    facts.add_row("code at commit", explanation.git_commit or "unknown")
    facts.add_row("parameters", f"digest {explanation.params_digest}")
    for path, value in explanation.data.items():
        facts.add_row(f"data {path}", value)
    for ancestor in explanation.ancestors:
        number = f", version {ancestor.version}" if ancestor.version else ""
        facts.add_row("from", f"{ancestor.stage}{number}, out {ancestor.out}")
    facts.add_row("run", explanation.run or "unknown here")
    parts: list[RenderableType] = [facts, _params_table(explanation)]
    if explanation.scores:
        parts.append(_scores_table(explanation))
    return Group(*parts)


def _params_table(explanation: Explanation) -> Table:
    table = _table("Parameters of the stage", "name", "value")
    for values in explanation.params.values():
        for name, value in flat(values).items():
            table.add_row(name, Text(value))
    return table


def _scores_table(explanation: Explanation) -> Table:
    scores = explanation.scores
    assert scores is not None
    table = _table(
        f"Scores on {scores.split} (evaluation {scores.digest})", "task", "mean", "95%", "format", "blank video", "samples"
    )
    for name, task in scores.tasks.items():
        blank = "–" if task.blank is None else f"{task.blank:.3f}"
        interval = f"[{task.low:.3f}, {task.high:.3f}]"
        table.add_row(name, f"{task.mean:.3f}", Text(interval), f"{task.format:.3f}", blank, str(task.samples))
    table.add_row("mean", f"{scores.mean:.3f}", "", f"{scores.format:.3f}", "", str(scores.samples))
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=Text(title), box=box.SIMPLE, title_justify="left")
    for column in columns:
        table.add_column(column)
    return table
