"""Scores of a public benchmark as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from stages.runtime.plain import one_line

if TYPE_CHECKING:
    from stages.tools.suites.results import Against, BenchmarkScores, Cell, Difference

#: Ids that are listed of those that are missing or empty; all of them stand in the file.
EXAMPLES = 5


def show_result(console: Console, result: BenchmarkScores) -> None:
    """Print the table of scores with its baselines, the comparison, what is missing, and the
    judge's cost.
    """
    from stages.tools.suites.markdown import roughly_judged, set_aside_in_words

    _show_scores(console, result)
    if (rough := roughly_judged(result)) is not None:
        console.print(Text.assemble(("rough:", "bold yellow"), f" {one_line(rough)}"), soft_wrap=True)
    if result.against:
        _show_against(console, result.against, result.confidence)
    unjudged = max(found.unjudged for each in result.scores.values() for found in each.overall.values())
    if unjudged:
        console.print(f"{unjudged:,} replies have no verdict and are in no mean", style="yellow")
    if result.set_aside:
        listed = one_line(set_aside_in_words(result))
        console.print(
            Text.assemble(("rows of the annotations rejected, neither asked nor scored", "yellow"), f": {listed}"),
            soft_wrap=True,
        )
    for ids, why in (
        (result.missing, "questions have no prediction"),
        (result.empty, "replies are empty: wrong under strict"),
        (result.not_scored, "replies are to questions that were rejected"),
    ):
        if ids:
            more = f" … and {len(ids) - EXAMPLES:,} more" if len(ids) > EXAMPLES else ""
            listed = ", ".join(map(one_line, ids[:EXAMPLES]))
            console.print(Text.assemble((f"{len(ids):,} {why}", "yellow"), f": {listed}{more}"), soft_wrap=True)
    if result.usage:
        console.print(", ".join(f"{name} {count:,.0f}" for name, count in result.usage.items()), soft_wrap=True)


def _show_scores(console: Console, result: BenchmarkScores) -> None:
    judge = f"judge {one_line(result.judge_name)}" if result.judge_name else "scored by rule"
    console.print(
        f"{one_line(result.benchmark)}: {result.answered:,} of {result.questions:,} questions answered;"
        f" {result.confidence:.0%} intervals over recordings; {judge}"
    )
    for name, rule in result.scorings.items():
        console.print(f"  {name}: {one_line(rule)}")
    scorings = list(result.scores)
    measures = result.measures
    table = Table(title="PARTIAL: some questions have no prediction" if result.partial else None)
    table.add_column("")
    table.add_column("questions", justify="right")
    for scoring in scorings:
        for measure in measures:
            table.add_column(f"{scoring}\n{measure}", justify="right")

    def add(title: str, found: Mapping[str, Mapping[str, Cell]], end: bool = False) -> None:
        row = [found[scoring][measure] for scoring in scorings for measure in measures]
        table.add_row(one_line(title), f"{row[0].items:,}", *map(_cell, row), end_section=end)

    above = {f"({who})": found for who, found in result.baselines.items()}
    above |= {f"({view} video)": control.scores for view, control in result.controls.items()}
    for who, found in above.items():
        add(who, found, end=who == list(above)[-1])
    add("all", {name: each.overall for name, each in result.scores.items()}, end=True)
    for category, values in result.scores[scorings[0]].by.items():
        for value in values:
            last = value == list(values)[-1]
            add(f"{category}: {value}", {name: result.scores[name].by[category][value] for name in scorings}, end=last)
    console.print(table)


def _show_against(console: Console, against: Against, confidence: float) -> None:
    """Print differences to another file of predictions; bold where chance alone is ruled out (of a
    category, among all of them).
    """
    from stages.tools.suites.markdown import changed_in_words, difference_rows

    scorings = list(against.differences)
    measures = list(against.differences[scorings[0]].overall)
    table = Table(
        title=f"minus {one_line(against.predictions)}, question by question ({against.shared:,} shared; p: two-sided,"
        " Holm: raised for all categories)"
    )
    table.add_column("")
    table.add_column("questions", justify="right")
    for scoring in scorings:
        for measure in measures:
            table.add_column(f"{scoring}\n{measure}", justify="right")
    for title, found in difference_rows(against, scorings):
        cells = [found[scoring][measure] for scoring in scorings for measure in measures]
        texts = [_difference(cell, 1 - confidence) for cell in cells]
        table.add_row(one_line(title), f"{cells[0].items:,}", *texts, end_section=title == "all")
    console.print(table)
    for scoring in scorings:
        if changed := against.differences[scoring].changed:
            console.print(f"  {scoring}: {changed_in_words(changed)}", soft_wrap=True)


def _difference(found: Difference, alpha: float) -> Text:
    from stages.tools.suites.markdown import p_in_words

    if found.mean is None or found.p is None:
        return Text("–")
    text = f"{found.mean:+.1f} [{found.low:+.1f}, {found.high:+.1f}], {p_in_words(found)}"
    return Text(text, "bold" if (found.p_holm or found.p) <= alpha else "")


def _cell(found: Cell) -> str:
    if found.mean is None:
        return "–"
    return f"{found.mean:.1f} [{found.low:.1f}, {found.high:.1f}]"
