"""``vidbridge evaluate``: a model put through a benchmark, its scores for a person and as files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flows.cli import champion, score
from flows.cli.outside import WAYS
from flows.console import show
from flows.errors import UsageError
from flows.recipes import default_params
from stages.params import Params
from stages.runtime import paths
from stages.runtime.plain import one_line
from stages.tracking.session import Session

if TYPE_CHECKING:
    from stages.tools.suites.evaluate import Engine, Order

#: How an endpoint may be sent a video.
FORMS = ("jpeg", "mp4")
#: Benchmarks whose questions are samples of a project.
OWN = ("dark-event-infer-test", "mix-vid-qa-test")
#: Videos without answers that are shown; all of them stand in the folder.
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

    score.check_benchmark(order.benchmark)
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
    score.show_result(out, result)
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
