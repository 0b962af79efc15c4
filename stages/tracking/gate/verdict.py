"""Render the gate's verdict as Markdown, for Prefect's pages, MLflow's pages and the terminal."""

from __future__ import annotations

from stages.tracking.gate.rules import Check, Decision
from stages.tracking.registry.versions import Version


def verdict(
    candidate: Version, champion: Version | None, decision: Decision, *, new_evaluation: bool, author: str, reason: str
) -> str:
    """Render the decision as a headline, its checks as a table, and its reasons."""
    head = f"## {candidate.model} version {candidate.number}: {'champion' if decision.promote else 'refused'}"
    if champion is None:
        against = "there was no champion to compare with"
    elif new_evaluation:
        against = f"not compared with the champion, version {champion.number}, since the evaluation was said to be new"
    else:
        against = f"compared with version {champion.number}"
    rows = [_row(check) for check in decision.table]
    table = ["| what | candidate | other | rule | met |", "|---|---|---|---|---|", *rows, ""] if rows else []
    reasons = [f"- {text}" for text in decision.reasons] if not decision.promote or not rows else []
    origin = f"Made by `{candidate.stage}`, step {candidate.step}; {against}."
    author_line = f"Asked by {_plain(author)}" + (f": {_plain(reason)}" if reason else "") + "."
    return "\n".join([head, "", origin, "", author_line, "", *table, *reasons]).rstrip() + "\n"


def rollback_verdict(earlier: Version, left: Version, *, author: str, reason: str) -> str:
    """Render a rollback and its reason."""
    head = f"## {earlier.model} version {earlier.number}: champion again, instead of version {left.number}"
    return f"{head}\n\nRolled back by {_plain(author)}" + (f": {_plain(reason)}" if reason else "") + ".\n"


def _row(check: Check) -> str:
    value = "not measured" if check.candidate is None else f"{check.candidate:.4f}"
    other = "–" if check.other is None else f"{check.other:.4f}"
    return f"| {check.what} | {value} | {other} | {check.rule} | {'yes' if check.passed else '**no**'} |"


def _plain(text: str) -> str:
    """Escape text that people wrote: one line, no markup."""
    line = " ".join(text.split())
    return "".join(f"\\{sign}" if sign in "\\`*_[]<>#|!" else sign for sign in line)
