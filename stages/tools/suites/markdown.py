"""Render the table of an evaluation as Markdown, for a page or a pull request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from stages.tools.suites.results import (
    Against,
    BenchmarkEvaluation,
    BenchmarkScores,
    Cell,
    Changed,
    Difference,
    SetAside,
    Unanswered,
)

#: Most videos without answers that are listed; the file of the evaluation has all of them.
EXAMPLES = 10


def as_markdown(result: BenchmarkEvaluation) -> str:
    """Render the result of :func:`stages.tools.suites.score.score`, with ``model``, ``unanswered``
    and ``controls_asked``."""
    return "\n".join(_lines(result)) + "\n"


def roughly_judged(result: BenchmarkScores) -> str | None:
    """Warning if open answers were judged by rule; None if a model judged, or no judge was used."""
    if not result.judge or result.judge["kind"] == "openai":
        return None
    return (
        "Judged by the rule judge, which is exact on the sentences of the generated world only: on other text it"
        " compares words, so that wrong roles and much else that is wrong can count as right. Do not report these"
        " numbers; name a model under `judge` in params.yaml (kind: openai) and score again."
    )


def _lines(result: BenchmarkEvaluation) -> Iterator[str]:
    judge = f"judge {result.judge_name}" if result.judge else "scored by rule"
    rough = roughly_judged(result)
    yield f"# {_text(result.model)} on {result.benchmark}{' (PARTIAL)' if result.partial else ''}"
    yield ""
    yield (
        f"{result.answered:,} of {result.questions:,} questions answered; {judge}; {result.confidence:.0%} intervals"
        f" over recordings; digest `{result.digest}`. Control videos: questions asked {result.controls_asked}."
    )
    if result.set_aside:
        yield ""
        yield f"Rows of the annotations rejected, neither asked nor scored: {set_aside_in_words(result)}."
    yield ""
    if rough is not None:
        yield f"**Rough.** {rough}"
        yield ""
    scorings = list(result.scores)
    measures = result.measures
    yield "| | questions |" + "".join(f" {scoring}: {measure} |" for scoring in scorings for measure in measures)
    yield "|---|--:|" + "--:|" * len(scorings) * len(measures)
    for title, table in _rows(result, scorings):
        cells = [table[scoring][measure] for scoring in scorings for measure in measures]
        yield f"| {_text(title)} | {cells[0].items:,} |" + "".join(f" {_cell(cell)} |" for cell in cells)
    if result.controls:
        yield ""
        yield "| the video's worth, paired | questions |" + "".join(
            f" {scoring}: {measure} |" for scoring in scorings for measure in measures
        )
        yield "|---|--:|" + "--:|" * len(scorings) * len(measures)
        for view, control in result.controls.items():
            gains = [control.gain[scoring][measure] for scoring in scorings for measure in measures]
            yield f"| video - {view} video | {control.questions:,} |" + "".join(
                f" {_difference(gain)} |" for gain in gains
            )
    if result.against:
        yield ""
        yield from _against(result.against, scorings, measures)
    if result.warnings:
        yield ""
        yield "Videos that look other than those that models are trained on:"
        yield ""
        yield from (f"- {_text(warning)}" for warning in result.warnings[:EXAMPLES])
        if len(result.warnings) > EXAMPLES:
            yield f"- and {len(result.warnings) - EXAMPLES:,} more; `scores.json` lists them all"
    if result.unanswered:
        yield ""
        yield "Without an answer, control videos counted too:"
        yield ""
        reasons = by_reason(result.unanswered)
        for (video, reason), count in list(reasons.items())[:EXAMPLES]:
            yield f"- {_text(video)}, {count:,} questions: {_text(reason)}"
        if len(reasons) > EXAMPLES:
            yield f"- and {len(reasons) - EXAMPLES:,} more; `scores.json` lists them all"


def _rows(result: BenchmarkScores, scorings: list[str]) -> Iterator[tuple[str, Mapping[str, Mapping[str, Cell]]]]:
    for who, table in result.baselines.items():
        yield f"({who})", table
    for view, control in result.controls.items():
        yield f"({view} video)", control.scores
    yield "**all**", {name: result.scores[name].overall for name in scorings}
    for category, values in result.scores[scorings[0]].by.items():
        for value in values:
            yield f"{category}: {value}", {name: result.scores[name].by[category][value] for name in scorings}


def _against(against: Against, scorings: list[str], measures: list[str]) -> Iterator[str]:
    yield f"| minus {_text(against.predictions)} | questions |" + "".join(
        f" {scoring}: {measure} |" for scoring in scorings for measure in measures
    )
    yield "|---|--:|" + "--:|" * len(scorings) * len(measures)
    for title, table in difference_rows(against, scorings):
        cells = [table[scoring][measure] for scoring in scorings for measure in measures]
        yield f"| {_text(title)} | {cells[0].items:,} |" + "".join(f" {_difference(cell)} |" for cell in cells)
    for scoring in scorings:
        if changed := against.differences[scoring].changed:
            yield ""
            yield f"{scoring}: {changed_in_words(changed)}"


def difference_rows(
    against: Against, scorings: list[str]
) -> Iterator[tuple[str, Mapping[str, Mapping[str, Difference]]]]:
    """Title, and scoring to measure to difference: all questions first, then each value of each
    category."""
    differences = against.differences
    yield "all", {name: differences[name].overall for name in scorings}
    for category, values in differences[scorings[0]].by.items():
        for value in values:
            yield f"{category}: {value}", {name: differences[name].by[category][value] for name in scorings}


def set_aside_in_words(result: BenchmarkScores) -> str:
    """Number of rejected annotations by reason, each with its first case, in words."""
    first: dict[str, SetAside] = {}
    for row in result.set_aside:
        first.setdefault(row.reason, row)
    counts = Counter(row.reason for row in result.set_aside)
    return "; ".join(
        f"{counts[reason]:,} {_text(reason)} (first {_text(row.item)}: {_text(row.detail)})"
        for reason, row in first.items()
    )


def changed_in_words(changed: Changed) -> str:
    return (
        f"right in these alone {changed.only_this:,}, in the others alone {changed.only_other:,}, in both"
        f" {changed.both:,}, in neither {changed.neither:,}; exact McNemar p {changed.p:.3g}"
    )


def by_reason(unanswered: Sequence[Unanswered]) -> Counter[tuple[str, str]]:
    """Count the questions without an answer by (video, reason)."""
    return Counter((row.video, row.reason) for row in unanswered)


def _cell(cell: Cell) -> str:
    return "–" if cell.mean is None else f"{cell.mean:.1f} [{cell.low:.1f}, {cell.high:.1f}]"


def _difference(cell: Difference) -> str:
    if cell.mean is None:
        return "–"
    return f"{cell.mean:+.1f} [{cell.low:+.1f}, {cell.high:+.1f}], {p_in_words(cell)}"


def p_in_words(cell: Difference) -> str:
    """The p-value, followed by the one that accounts for all categories."""
    return f"p {cell.p:.2g}" + ("" if cell.p_holm is None else f" (Holm {cell.p_holm:.2g})")


def _text(value: object) -> str:
    """Escape names from other people's files: they must not break a table or be read as HTML."""
    return str(value).replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
