"""Reports, decisions and explanations as tables for a terminal; the data stay plain values.

Strings are text, never markup: they are printed on :func:`flows.console.show.console`. Texts from
tags and commits go through :func:`~stages.runtime.plain.one_line`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text

from stages.domain.statistics.paired import Comparison
from stages.runtime.plain import one_line, plain, redacted
from stages.tracking.gate.promote import Promotion
from stages.tracking.lineage.uri import display_uri
from stages.tracking.registry.compare import VersionPair
from stages.tracking.registry.explain import Explanation
from stages.tracking.registry.ledger import Entry
from stages.tracking.registry.register import RegisterReport
from stages.tracking.runs.run import TAG, flat

_ACTIONS = {"promote": "promoted", "refuse": "refused", "rollback": "rolled back to"}


def register_table(report: RegisterReport) -> RenderableType:
    """Table of the versions that `register` made."""
    table = _table(f"Registered in {report.model}", "version", "stage", "step", "aliases", "mean score")
    for version in report.created:
        scores = version.scores
        aliases = ", ".join(version.aliases) + (
            "" if version.number != report.candidate or version.aliases else "candidate"
        )
        table.add_row(
            str(version.number),
            one_line(version.stage),
            str(version.step),
            one_line(aliases),
            f"{scores.mean:.3f}" if scores else "–",
        )
    pushed = "no remote" if report.pushed is None else f"{report.pushed} objects pushed"
    line = f"{len(report.created)} new, {report.kept} kept, {len(report.updated)} updated, {pushed}"
    if report.unsent:
        line += f", {report.unsent} late entries of earlier runs sent"
    notes = [Text(f"not registered: {one_line(text)}", style="yellow") for text in report.skipped]
    notes += [Text(f"warning: {one_line(text)}", style="yellow") for text in report.warnings]
    return Group(*([table] if report.created else []), Text(line), *notes)


def promotion_table(promotion: Promotion) -> RenderableType:
    """Table of the gate's decision, a line for each rule."""
    champion = f"champion {promotion.champion.number}" if promotion.champion else "no champion"
    table = _table(f"Version {promotion.candidate.number} against {champion}", "what", "candidate", "other", "rule", "")
    for check in promotion.decision.table:
        other = "–" if check.other is None else f"{check.other:.3f}"
        found = "–" if check.candidate is None else f"{check.candidate:.3f}"
        table.add_row(
            one_line(check.what),
            found,
            other,
            one_line(check.rule),
            "met" if check.passed else Text("not met", style="red"),
        )
    verdict = (
        Text(f"version {promotion.candidate.number} is champion", style="green")
        if promotion.moved
        else Text("refused", style="red")
    )
    reasons = () if promotion.moved else promotion.decision.reasons
    return Group(
        *([table] if promotion.decision.table else []), verdict, *(Text(f"  {one_line(reason)}") for reason in reasons)
    )


def history_table(entries: Sequence[Entry]) -> RenderableType:
    """Table of every decision of the gate, oldest first."""
    table = _table("Decisions", "when (UTC)", "what", "version", "champion before", "mean", "who", "why")
    for entry in entries:
        decided = entry.decided
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(decided.at_ms / 1000))
        mean = "–" if decided.mean is None else f"{decided.mean:.3f}"
        previous = "–" if decided.previous is None else str(decided.previous)
        why = [decided.reason] if decided.reason else []
        why += decided.reasons
        if entry.moves and not entry.standing and not entry.proven:
            what = Text("not counted", style="yellow")
            why.append(
                "nobody who may change the model has signed it, or another move of 0.1 came first: it moved nothing"
            )
        elif entry.abandoned:
            what = Text("abandoned", style="yellow")
            why.append(
                "its version was deleted, given up or objected to before the move was finished: it moved nothing"
            )
        elif entry.moves and not entry.standing:
            what = Text("overtaken", style="yellow")
            why.append("another move came first, so this one moved nothing")
        elif entry.moves and not entry.done:
            what = Text(f"{one_line(decided.action)} (unfinished)", style="yellow")
            why.append("interrupted: the next vidbridge promote or rollback completes it")
        else:
            what = Text(_ACTIONS[decided.action])
        who, reasons = one_line(decided.author), one_line("; ".join(why))
        table.add_row(when, what, str(decided.version), previous, mean, who, reasons)
    return table


def comparison_table(asked: VersionPair, found: Comparison, confidence: float) -> RenderableType:
    """Table of the differences between two versions, task by task, on the same samples."""
    title = f"Version {asked.after.number} against {asked.before.number}, sample by sample (evaluation {asked.digest})"
    columns = (
        "task",
        str(asked.before.number),
        str(asked.after.number),
        "difference",
        f"{confidence:.0%}",
        "p",
        "p (Holm)",
        "won",
        "lost",
        "tied",
    )
    table = _table(title, *columns)
    for name, row in [*found.tasks.items(), ("mean", found.mean)]:
        interval = Text(f"[{row.low:+.3f}, {row.high:+.3f}]", style="bold" if row.low > 0 or row.high < 0 else "")
        p_values = (f"{row.p_value:.2g}", "" if row.p_holm is None else f"{row.p_holm:.2g}")
        counts = (str(row.won), str(row.lost), str(row.tied))
        table.add_row(
            one_line(name), f"{row.before:.3f}", f"{row.after:.3f}", f"{row.mean:+.3f}", interval, *p_values, *counts
        )
    notes = [
        Text(
            "p: how often chance alone gives a difference like this, with recordings as units; Holm: raised, since all"
            " tasks are looked at"
        )
    ]
    if found.unpaired:
        notes.append(
            Text(f"{found.unpaired} samples have a score from one of them only and do not count", style="yellow")
        )
    return Group(table, *notes)


def explanation_table(explanation: Explanation) -> RenderableType:
    """Everything about a version on one page."""
    version = explanation.version
    aliases = f" ({', '.join(version.aliases)})" if version.aliases else ""
    facts = _table(f"{version.model} version {version.number}{aliases}", "", "")
    facts.show_header = False
    final = " (final)" if version.final else ""
    facts.add_row("made by", one_line(f"{version.stage}, step {version.step}{final}, recipe {version.recipe}"))
    facts.add_row("source", display_uri(explanation.source))
    facts.add_row("dvc.lock in commit", explanation.commit or Text("none: the gate will refuse it", style="yellow"))
    facts.add_row("code at commit", one_line(explanation.git_commit or "unknown"))
    facts.add_row("parameters", one_line(f"digest {explanation.params_digest}"))
    for path, value in explanation.data.items():
        facts.add_row(one_line(f"data {path}"), one_line(value))
    for ancestor in explanation.ancestors:
        number = f", version {ancestor.version}" if ancestor.version else ""
        facts.add_row("from", one_line(f"{ancestor.stage}{number}, out {ancestor.out}"))
    facts.add_row("run", one_line(explanation.run or "unknown here"))
    if explanation.alias_fault:
        facts.add_row("champion?", Text(explanation.alias_fault, style="yellow"))
    if version.freed:
        facts.add_row("weights", Text(one_line(version.freed), style="yellow"))
    if explanation.objection:
        facts.add_row("removed videos", Text(one_line(explanation.objection), style="yellow"))
    if author := version.tags.get(f"{TAG}promoted_by"):
        facts.add_row("made champion by", one_line(author))
        facts.add_row("because", one_line(version.tags.get(f"{TAG}reason", "") or "no reason given"))
    for production in explanation.copies:
        facts.add_row("copied to", one_line(production))
    parts: list[RenderableType] = [facts, _params_table(explanation)]
    if explanation.scores:
        parts.append(_scores_table(explanation))
    if version.verdict:
        # A link of Markdown would hide where it leads, and carry it in an escape sequence.
        parts.append(Markdown(plain(version.verdict), hyperlinks=False))
    return Group(*parts)


def _params_table(explanation: Explanation) -> Table:
    table = _table("Parameters of the stage", "name", "value")
    for values in explanation.params.values():
        for name, value in flat(values).items():
            table.add_row(one_line(name), one_line(redacted(value)))
    return table


def _scores_table(explanation: Explanation) -> Table:
    scores = explanation.scores
    assert scores is not None
    table = _table(
        one_line(f"Scores on {scores.split} (evaluation {scores.digest})"),
        "task",
        "mean",
        "95%",
        "format",
        "blank video",
        "shuffled video",
        "samples",
    )
    for name, task in scores.tasks.items():
        controls = ["–" if value is None else f"{value:.3f}" for value in (task.blank, task.shuffled)]
        interval = f"[{task.low:.3f}, {task.high:.3f}]"
        table.add_row(
            one_line(name), f"{task.mean:.3f}", Text(interval), f"{task.format:.3f}", *controls, str(task.samples)
        )
    table.add_row("mean", f"{scores.mean:.3f}", "", f"{scores.format:.3f}", "", "", str(scores.samples))
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=Text(one_line(title)), box=box.SIMPLE, title_justify="left")
    for column in columns:
        # Author and reason may be long words; cut off they say nothing.
        table.add_column(column, overflow="fold")
    return table
