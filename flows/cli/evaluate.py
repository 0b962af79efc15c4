"""``vidbridge evaluate`` and ``vidbridge score``: public benchmarks, their scores for a person and
as files.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli import app
from flows.errors import UsageError

if TYPE_CHECKING:
    from stages.params import Params
    from stages.tools.suites.asking import Engine, EvaluationRequest
    from stages.tracking.session import Session

#: Forms in which an endpoint can receive a video.
_FORMS = ("jpeg", "mp4")
#: Benchmarks whose questions are samples of a project.
_OWN = ("dark-event-infer-test", "mix-vid-qa-test")
#: Displayed videos without answers; the folder lists all of them.
_EXAMPLES = 5


def evaluate(
    benchmark: app.BenchmarkOption,
    annotations: app.AnnotationsOption,
    out: Annotated[Path, typer.Option(help="Folder for replies, scores and table; pass the same one to resume.")],
    videos: Annotated[
        Path | None, typer.Option(help="Folder with its videos, at any depth; own benchmarks use ingest.source.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="models:/NAME@champion, models:/NAME/3, champion, a version's number, a Hugging Face folder, or a hub"
            " id with --revision."
        ),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(help="Commit of a hub id; for an endpoint, the weights it serves (recorded with the scores)."),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            help="OpenAI-compatible address such as http://127.0.0.1:8000/v1; its key: VIDBRIDGE_ENDPOINT_KEY."
        ),
    ] = None,
    endpoint_model: Annotated[str | None, typer.Option(help="Model name at the endpoint.")] = None,
    endpoint_video: Annotated[
        str,
        typer.Option(
            help="How frames are sent: jpeg (image_url, one a frame) or mp4 (video_url, exactly these frames)."
        ),
    ] = "jpeg",
    engine: Annotated[
        str | None,
        typer.Option(
            help="What decodes the replies of --model: hf (this process), vllm (started here; make vllm builds it), or"
            " an engine's address; default: VIDBRIDGE_ROLLOUT_ENGINE, else hf."
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Questions per batch; default: evaluation.batch_size.")
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Maximum reply length; default: the model's own, else evaluation.max_new_tokens."),
    ] = None,
    controls: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of questions, drawn by seed, to repeat with a black and a shuffled video; default: all."
        ),
    ] = None,
    no_controls: Annotated[
        bool, typer.Option("--no-controls", help="Repeat no question with a black or a shuffled video.")
    ] = False,
    sampled: Annotated[
        int | None,
        typer.Option(min=2, help="Number of replies to sample to each question beside the greedy one: mean, pass@k."),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0.01, help="Temperature of sampled replies; default: 1.0.")
    ] = None,
    baselines: Annotated[
        bool, typer.Option(help="Score random, constant and empty replies too; costs judge calls.")
    ] = True,
    against: Annotated[Path | None, typer.Option(help="Predictions to compare with, question by question.")] = None,
) -> None:
    """Evaluate a model on a benchmark.

    Every question is sent, replies are scored as by `vidbridge score`, and all is logged to MLflow.

    Frames and prompts are the benchmark's; a video is decoded once, and goes through the vision
    tower once, for all questions about it. Every reply is stored as it arrives: after Ctrl-C or
    kill -9 the same call resumes. Videos that are missing or unreadable are listed, and the result
    is then marked partial. Scores of the same model on black and on shuffled videos are reported
    beside it.

    Example: vidbridge evaluate --model champion --benchmark dream-1k --annotations ~/DREAM-1K/json
    --videos ~/DREAM-1K --out dream

    With --sampled, several replies to each question are drawn beside the greedy one, each with a
    seed of its own, and their mean and pass@k stand below the greedy scores. A later call may ask
    for more of them.

    Example: vidbridge evaluate --endpoint http://127.0.0.1:8000/v1 --endpoint-model my-model
    --benchmark video-mme --annotations ~/Video-MME --videos ~/Video-MME/data --out mme --controls
    200
    """
    from stages.params import SampledParams
    from stages.tools.suites.asking import EvaluationRequest

    if no_controls and controls is not None:
        raise UsageError("--controls, --no-controls", "contradict each other", "set one of them")
    if sampled is None and temperature is not None:
        raise UsageError("--temperature", "means nothing without --sampled", "leave it out, or set a number of replies")
    order = EvaluationRequest(
        benchmark=benchmark,
        annotations=_annotations_at(annotations, benchmark),
        videos=app.as_typed(videos),
        out=out.expanduser().resolve(),
        controls=0 if no_controls else controls,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        sampled=SampledParams(replies=sampled, temperature=temperature or 1.0) if sampled is not None else None,
    )
    _evaluate(
        app.reader(),
        order,
        model=model,
        revision=revision,
        endpoint=endpoint,
        endpoint_model=endpoint_model,
        form=endpoint_video,
        engine=engine,
        baselines=baselines,
        against=app.as_typed(against),
    )


def score(
    benchmark: app.BenchmarkOption,
    annotations: app.AnnotationsOption,
    predictions: Annotated[Path, typer.Option(help="JSON Lines, one question each, in the form described above.")],
    out: Annotated[Path | None, typer.Option(help="JSON file for all results.")] = None,
    baselines: Annotated[
        bool, typer.Option(help="Score random, constant and empty replies too; costs judge calls.")
    ] = True,
    against: Annotated[
        Path | None, typer.Option(help="Second file of predictions to compare with, question by question.")
    ] = None,
) -> None:
    """Score stored predictions on a benchmark, without a model.

    Two readings: `strict`, and `compat` as public harnesses print it.

    A prediction is {"id": "001-1", "reply": "what the model wrote, reasoning and all"}, one a line;
    other keys are ignored. The id is Video-MME's question_id; action_antonym/0 (file and row) for
    MVBench; DREAM-1K's idx as text; camera/VIDEO for VDC; CaReBench's video; sample_id for our own
    benchmarks. Judged benchmarks use `judge` of params.yaml.

    Example: vidbridge score --benchmark video-mme --annotations ~/Video-MME --predictions
    replies.jsonl --out scores.json
    """
    # Before the project's folder becomes the working directory.
    annotation_path, prediction_path = _annotations_at(annotations, benchmark), predictions.expanduser().resolve()
    result_path, baseline_path = app.as_typed(out), app.as_typed(against)
    from flows.processes.environment import project_or_none

    _score(
        project_or_none(),
        benchmark,
        annotation_path,
        prediction_path,
        result_path,
        baselines=baselines,
        against=baseline_path,
    )


def _evaluate(
    session: Session,
    order: EvaluationRequest,
    *,
    model: str | None,
    revision: str | None,
    endpoint: str | None,
    endpoint_model: str | None,
    form: str,
    engine: str | None,
    baselines: bool,
    against: Path | None,
) -> None:
    """Evaluate, score and print; writes all results into the request's folder.

    Raises:
        UsageError: what was asked for makes no sense.
    """
    from flows.cli.outside import WAYS
    from flows.console import show
    from flows.console.benchmarks import show_result
    from flows.params_file.recipes import default_params
    from stages.runtime import paths
    from stages.runtime.plain import one_line
    from stages.tools.suites import evaluate as benchmarking
    from stages.tools.suites.markdown import by_reason

    _check_benchmark(order.benchmark)
    _check_flags(order, model, endpoint, endpoint_model, form, engine)
    if session.project is None and order.benchmark in _OWN:
        raise UsageError(
            "--benchmark",
            f"{order.benchmark} asks about edits of a project's own clips, and {Path.cwd()} is not inside one",
            f"{WAYS.partition(', or')[0]}",
        )
    params = session.params if session.project is not None else default_params()
    answering = _answering(session, params, order, model, revision, endpoint, endpoint_model, form, engine)
    out = show.console()
    out.print(one_line(f"{order.benchmark}: {answering.name}"), soft_wrap=True)
    result = benchmarking.evaluate(session.root, params, order, answering, baselines=baselines, against=against)
    show_result(out, result)
    if unanswered := result.unanswered:
        reasons = by_reason(unanswered)
        summary = f"{len(unanswered):,} questions (control videos counted) were not answered; the next call asks again"
        out.print(summary, style="yellow")
        for (video, reason), count in list(reasons.items())[:_EXAMPLES]:
            out.print(f"  {one_line(video)}, {count:,} questions: {one_line(reason)}", soft_wrap=True)
        if len(reasons) > _EXAMPLES:
            out.print(
                f"  … and {len(reasons) - _EXAMPLES:,} more, all in {order.out / 'unanswered.jsonl'}", soft_wrap=True
            )
    names = (paths.SCORES_TABLE_FILE, paths.SCORES_FILE, paths.PREDICTIONS_FILE)
    show.say(f"written: {', '.join(names)} in {order.out}")


def _check_flags(
    order: EvaluationRequest,
    model: str | None,
    endpoint: str | None,
    endpoint_model: str | None,
    form: str,
    engine: str | None,
) -> None:
    if (model is None) == (endpoint is None):
        raise UsageError(
            "--model, --endpoint",
            "exactly one is needed",
            "set a model that runs here, or the address of one that answers elsewhere",
        )
    if endpoint is not None and endpoint_model is None:
        raise UsageError("--endpoint-model", "not given", "name the model as the endpoint does")
    if endpoint is None and endpoint_model is not None:
        raise UsageError("--endpoint-model", "means nothing without --endpoint", "leave it out, or set the address")
    if endpoint is not None and order.batch_size is not None:
        raise UsageError(
            "--batch-size", "is of a model that runs here", "an endpoint's is VIDBRIDGE_ENDPOINT_CONCURRENCY"
        )
    if endpoint is not None and engine is not None:
        raise UsageError("--engine", "is of a model that is loaded here", "leave it out, or set --model")
    if form not in _FORMS:
        raise UsageError(
            "--endpoint-video", f"{form!r} is unknown", "give jpeg (a picture a frame) or mp4 (one short video)"
        )
    if endpoint is None and form != _FORMS[0]:
        raise UsageError("--endpoint-video", "means nothing without --endpoint", "leave it out, or set the address")
    if order.out.exists() and not order.out.is_dir():
        raise UsageError("--out", f"{str(order.out)!r} is not a folder", "name one, it is created if missing")
    if order.videos is None and order.benchmark not in _OWN:
        raise UsageError("--videos", "not given", f"name the folder that holds the videos of {order.benchmark}")


def _answering(
    session: Session,
    params: Params,
    order: EvaluationRequest,
    model: str | None,
    revision: str | None,
    endpoint: str | None,
    endpoint_model: str | None,
    form: str,
    engine: str | None,
) -> Engine:
    from flows.console import champion
    from stages.errors import InputError
    from stages.lib.engine.process import VARIABLE, chosen_engine
    from stages.tools.suites import asking

    if model is not None:
        try:
            drawn_by = chosen_engine(os.environ if engine is None else {VARIABLE: engine})
        except InputError as error:
            field = VARIABLE if engine is None else "--engine"
            raise UsageError(field, error.problem, error.remedy) from error
        champion.warn_of_moved(session, model)
        return asking.model_engine(session, params, order, model, revision, drawn_by)
    assert endpoint is not None
    assert endpoint_model is not None
    return asking.endpoint_engine(params, order, endpoint, endpoint_model, revision, "mp4" if form == "mp4" else "jpeg")


def _score(
    root: Path | None,
    benchmark: str,
    annotations: Path,
    predictions: Path,
    out: Path | None,
    *,
    baselines: bool,
    against: Path | None,
) -> None:
    """Score, print the table, and write all results into ``out``."""
    from flows.console import show
    from flows.console.benchmarks import show_result
    from flows.params_file.recipes import params_or_default
    from stages.lib.rows.jsonl import write_record
    from stages.tools.suites.score import score as scored

    _check_benchmark(benchmark)
    if out is not None and not out.parent.is_dir():
        raise UsageError("--out", f"{str(out.parent)!r} is not a folder", "create it, or name a file in another one")
    if out is not None and out in (annotations, predictions, against):
        raise UsageError("--out", f"{str(out)!r} is what is to be scored", "name another file")
    result = scored(params_or_default(root), benchmark, annotations, predictions, baselines=baselines, against=against)
    if out is not None:
        write_record(out, result)
    show_result(show.console(), result)
    if out is not None:
        show.say(f"written: {out}")


def _annotations_at(place: str, benchmark: str) -> Path:
    """Annotations of a benchmark: a path of this machine, or a download from the hub.

    Raises:
        UsageError: the benchmark does not exist.
        AnnotationError: the hub does not serve them.
    """
    from stages.tools.suites.published.hub import SCHEME, download_annotations
    from stages.tools.suites.published.registry import BENCHMARKS

    _check_benchmark(benchmark)
    return (
        download_annotations(place, BENCHMARKS[benchmark].files)
        if place.startswith(SCHEME)
        else Path(place).expanduser().resolve()
    )


def _check_benchmark(name: str) -> None:
    """Reject a name that is not a benchmark's.

    Raises:
        UsageError: the benchmark does not exist.
    """
    from stages.tools.suites.published.registry import BENCHMARKS

    if name not in BENCHMARKS:
        raise UsageError(
            "--benchmark",
            f"{name!r} is unknown",
            f"choose among {', '.join(BENCHMARKS)}; on a project's own tasks, policies are scored by the stage evaluate"
            " (evaluation.of in params.yaml)",
        )
