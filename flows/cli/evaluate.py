"""``vidbridge evaluate`` and ``vidbridge score``: a model, or a file of predictions, put through a benchmark; its scores for a person and as
files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.cli import champion
from flows.cli.outside import WAYS
from flows.console import show
from flows.errors import UsageError
from flows.recipes import default_params, params_or_default
from stages.lib.rows.jsonl import write_record
from stages.params import Params
from stages.runtime import paths
from stages.runtime.plain import one_line
from stages.tracking.session import Session

if TYPE_CHECKING:
    from stages.tools.suites.evaluate import Engine, Order
    from stages.tools.suites.results import Against, BenchmarkScores, Cell, Difference

#: How an endpoint may be sent a video.
FORMS = ("jpeg", "mp4")
#: Benchmarks whose questions are samples of a project.
OWN = ("dark-event-infer-test", "mix-vid-qa-test")
#: Videos without answers, and ids that are missing or empty, that are shown; all of them stand in the files.
EXAMPLES = 5


def evaluate(
    session: Session,
    order: Order,
    *,
    model: str | None,
    revision: str | None,
    endpoint: str | None,
    endpoint_model: str | None,
    form: str,
    baselines: bool,
    against: Path | None,
) -> None:
    """Ask, score, show; all of it is written into the order's folder.

    Raises:
        UsageError: what was asked for makes no sense.
    """
    from stages.tools.suites import evaluate as benchmarking
    from stages.tools.suites.markdown import by_reason

    check_benchmark(order.benchmark)
    _check_flags(order, model, endpoint, endpoint_model, form)
    if session.project is None and order.benchmark in OWN:
        raise UsageError(
            f"--benchmark: {order.benchmark} asks about edits of a project's own clips, and {Path.cwd()} is not inside one;"
            f" {WAYS.partition(', or')[0]}"
        )
    params = session.params if session.project is not None else default_params()
    engine = _engine(session, params, order, model, revision, endpoint, endpoint_model, form)
    out = show.console()
    out.print(one_line(f"{order.benchmark}: {engine.name}"), soft_wrap=True)
    result = benchmarking.evaluate(session.root, params, order, engine, baselines=baselines, against=against)
    show_result(out, result)
    if unanswered := result.unanswered:
        reasons = by_reason(unanswered)
        told = f"{len(unanswered):,} questions (control videos counted) were not answered; the next call asks again"
        out.print(told, style="yellow")
        for (video, reason), count in list(reasons.items())[:EXAMPLES]:
            out.print(f"  {one_line(video)}, {count:,} questions: {one_line(reason)}", soft_wrap=True)
        if len(reasons) > EXAMPLES:
            out.print(f"  … and {len(reasons) - EXAMPLES:,} more, all in {order.out / 'unanswered.jsonl'}", soft_wrap=True)
    names = (paths.SCORES_TABLE_FILE, paths.SCORES_FILE, paths.PREDICTIONS_FILE)
    show.say(f"written: {', '.join(names)} in {order.out}")


def _check_flags(order: Order, model: str | None, endpoint: str | None, endpoint_model: str | None, form: str) -> None:
    if (model is None) == (endpoint is None):
        raise UsageError(
            "--model, --endpoint: give one of them: a model that runs here, or the address of one that answers elsewhere"
        )
    if endpoint is not None and endpoint_model is None:
        raise UsageError("--endpoint-model: not given; name the model as the endpoint does")
    if endpoint is None and endpoint_model is not None:
        raise UsageError("--endpoint-model: means nothing without --endpoint; leave it out, or give the address")
    if endpoint is not None and order.batch_size is not None:
        raise UsageError("--batch-size: is of a model that runs here; an endpoint's is VIDBRIDGE_ENDPOINT_CONCURRENCY")
    if form not in FORMS:
        raise UsageError(f"--endpoint-video: {form!r} is unknown; give jpeg (a picture a frame) or mp4 (one short video)")
    if endpoint is None and form != FORMS[0]:
        raise UsageError("--endpoint-video: means nothing without --endpoint; leave it out, or give the address")
    if order.out.exists() and not order.out.is_dir():
        raise UsageError(f"--out: {str(order.out)!r} is no folder; name one, which is made where there is none")
    if order.videos is None and order.benchmark not in OWN:
        raise UsageError(f"--videos: not given; name the folder that holds the videos of {order.benchmark}")


def _engine(
    session: Session,
    params: Params,
    order: Order,
    model: str | None,
    revision: str | None,
    endpoint: str | None,
    endpoint_model: str | None,
    form: str,
) -> Engine:
    from stages.tools.suites import evaluate as benchmarking

    if model is not None:
        champion.warn_of_moved(session, model)
        return benchmarking.model_engine(session, params, order, model, revision)
    assert endpoint is not None
    assert endpoint_model is not None
    return benchmarking.endpoint_engine(params, order, endpoint, endpoint_model, revision, "mp4" if form == "mp4" else "jpeg")


def score(
    root: Path | None,
    benchmark: str,
    annotations: Path,
    predictions: Path,
    out: Path | None,
    *,
    baselines: bool,
    against: Path | None,
) -> None:
    """Score, show the table, and write all of it into ``out``."""
    from stages.tools.suites.score import score as scored

    check_benchmark(benchmark)
    if out is not None and not out.parent.is_dir():
        raise UsageError(f"--out: {str(out.parent)!r} is no folder; make it, or name a file in another one")
    if out is not None and out in (annotations, predictions, against):
        raise UsageError(f"--out: {str(out)!r} is what is to be scored; name another file")
    result = scored(params_or_default(root), benchmark, annotations, predictions, baselines=baselines, against=against)
    if out is not None:
        write_record(out, result)
    show_result(show.console(), result)
    if out is not None:
        show.say(f"written: {out}")


def annotations_at(place: str, benchmark: str) -> Path:
    """The annotations of a benchmark: a path of this machine, or what is fetched from the hub.

    Raises:
        UsageError: there is no such benchmark.
        AnnotationError: the hub does not give them.
    """
    from stages.tools.suites.published.hub import SCHEME, fetched
    from stages.tools.suites.published.registry import BENCHMARKS

    check_benchmark(benchmark)
    return fetched(place, BENCHMARKS[benchmark].files) if place.startswith(SCHEME) else Path(place).expanduser().resolve()


def check_benchmark(name: str) -> None:
    """Raises:
    UsageError: there is no such benchmark.
    """
    from stages.tools.suites.published.registry import BENCHMARKS

    if name not in BENCHMARKS:
        raise UsageError(f"--benchmark: {name!r} is unknown; choose among {', '.join(BENCHMARKS)}")


def show_result(console: Console, result: BenchmarkScores) -> None:
    """The table of scores with its baselines, what a comparison found, what is missing, and what the judge cost."""
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
        told = one_line(set_aside_in_words(result))
        console.print(
            Text.assemble(("set aside of the annotations, neither asked nor scored", "yellow"), f": {told}"), soft_wrap=True
        )
    for ids, why in (
        (result.missing, "questions have no prediction"),
        (result.empty, "replies are empty: wrong under strict"),
        (result.not_scored, "replies are to questions that were set aside"),
    ):
        if ids:
            more = f" … and {len(ids) - EXAMPLES:,} more" if len(ids) > EXAMPLES else ""
            told = ", ".join(map(one_line, ids[:EXAMPLES]))
            console.print(Text.assemble((f"{len(ids):,} {why}", "yellow"), f": {told}{more}"), soft_wrap=True)
    if result.usage:
        console.print(", ".join(f"{name} {count:,.0f}" for name, count in result.usage.items()), soft_wrap=True)


def _show_scores(console: Console, result: BenchmarkScores) -> None:
    judge = f"judge {one_line(result.judge_name)}" if result.judge_name else "scored by rule"
    console.print(
        f"{one_line(result.benchmark)}: {result.answered:,} of {result.questions:,} questions answered;"
        f" {result.confidence:.0%} intervals over videos; {judge}"
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
    """Differences to another file of predictions; bold where chance alone is ruled out (of a category, among all of them)."""
    from stages.tools.suites.markdown import changed_in_words, difference_rows

    scorings = list(against.differences)
    measures = list(against.differences[scorings[0]].overall)
    table = Table(
        title=f"minus {one_line(against.predictions)}, question by question ({against.shared:,} shared; p: two-sided, Holm: raised"
        " for all categories)"
    )
    table.add_column("")
    table.add_column("questions", justify="right")
    for scoring in scorings:
        for measure in measures:
            table.add_column(f"{scoring}\n{measure}", justify="right")
    for title, found in difference_rows(against, scorings):
        cells = [found[scoring][measure] for scoring in scorings for measure in measures]
        told = [_difference(cell, 1 - confidence) for cell in cells]
        table.add_row(one_line(title), f"{cells[0].items:,}", *told, end_section=title == "all")
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
