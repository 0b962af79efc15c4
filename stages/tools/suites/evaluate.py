"""Evaluate a model on a benchmark: ask all of its questions, score the replies, store both. Not a
stage of DVC; `vidbridge evaluate` calls it.

Example: ``evaluate(root, params, request, model_engine(session, params, request, "champion",
None))``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

from stages.domain.core.digest import digest
from stages.domain.core.frames import Frames
from stages.domain.core.prompts import PromptTexts
from stages.domain.core.records import Clip, Sample
from stages.errors import InputError
from stages.lib.judging.build import judge_of
from stages.lib.rows.jsonl import iterate_rows, write_record
from stages.lib.video.errors import VideoError
from stages.lib.video.loader import FrameLoader
from stages.lib.video.open import frame_memory_bytes
from stages.params import Params, SampledParams, judge_for
from stages.runtime import paths
from stages.runtime.plain import one_line
from stages.runtime.sources.videos import open_videos
from stages.tools.suites.asking import Engine, EvaluationRequest
from stages.tools.suites.engines.answers import Answers, open_answers
from stages.tools.suites.engines.contents import CONTENTS_FILE, Contents
from stages.tools.suites.engines.questions import (
    CONTROLS,
    Answer,
    EngineError,
    Load,
    Question,
    drawn,
    questions,
)
from stages.tools.suites.engines.videos import VideoLoader, protocol, video_key_of
from stages.tools.suites.markdown import as_markdown
from stages.tools.suites.published.benchmark import Item
from stages.tools.suites.published.predictions import read_predictions
from stages.tools.suites.published.registry import BENCHMARKS
from stages.tools.suites.results import BenchmarkEvaluation, Unanswered, metrics_of
from stages.tools.suites.score import Sampled, read_questions, score
from stages.tracking.lineage.uri import check_server, tracking_uri
from stages.tracking.runs.run import benchmark_run

#: Most names of videos in one line of output.
EXAMPLES = 5


def evaluate(
    root: Path, params: Params, request: EvaluationRequest, engine: Engine, *, baselines: bool, against: Path | None
) -> BenchmarkEvaluation:
    """Ask the open questions, then score all replies.

    Writes replies, ``scores.json`` and ``scores.md`` into ``request.out``, and a run into MLflow.
    Returns the content of ``scores.json``.

    Raises:
        SuiteError: the annotations, or the predictions ``against``, cannot be used (raised before a
            question is asked).
        EngineError: the folder holds another evaluation's replies, the videos' folder does not
            exist, or no question was answered.
        JudgeError: the judge is not set up (raised before a question is asked); the endpoint
            refuses all questions; or the judge, which is used at the end, is unavailable. Replies
            are kept.
        TrackingError: MLflow's store does not answer (raised before a question is asked).
    """
    check_server(tracking_uri(root))
    questions_there = read_questions(request.benchmark, request.annotations)
    items = questions_there.items
    if against is not None:
        read_predictions(against, questions_there)
    if (benchmark := BENCHMARKS[request.benchmark]).judged:
        place = judge_for(benchmark.task, params.judge)
        judge_of(place.params, place)
    identity = identity_of(params, request.benchmark, items, engine)
    if request.sampled is not None:
        # Not their number, so that a later call may ask for more.
        identity["sampled"] = {"temperature": request.sampled.temperature}
    questions = _questions(params, request, items, engine.prompt)
    clips = _clips(root)
    loader = VideoLoader(
        items,
        request.videos,
        _sample_loader(root, params, request.videos, clips),
        Contents(request.out / CONTENTS_FILE),
        lambda sample: _content_of_sample(sample, clips),
    )
    video_keys = {item.item_id: video_key_of(item) for item in items}
    with open_answers(
        request.out, identity, lambda item_id: loader.content(video_keys[item_id]), request.sampled is not None
    ) as answers:
        if replaced := _replaced(answers, video_keys):
            names = ", ".join(map(one_line, sorted(replaced)[:EXAMPLES]))
            print(
                f"evaluate: {len(replaced)} videos hold something else than when they were asked about; asking again:"
                f" {names}"
            )
        _ask(engine, questions, loader.load, answers)
        warnings = [warning for _, each in sorted(loader.warnings.items()) for warning in each]
        for warning in warnings[:EXAMPLES]:
            print(f"evaluate: {one_line(warning)}")
        unanswered = _listed(answers)
        question_keys = {(question.view, question.item_id) for question in questions}
        controls: dict[str, dict[str, str]] = {
            view: {
                item_id: reply for item_id, reply in answers.replies[view].items() if (view, item_id) in question_keys
            }
            for view in CONTROLS
        }
        sampled = _sampled(request.sampled, items, answers)
        if not answers.replies["video"]:
            raise EngineError(
                request.benchmark,
                "no question was answered, so nothing was scored",
                f"the first: {unanswered[0].reason}",
            )
    scored = score(
        params,
        request.benchmark,
        request.annotations,
        paths.predictions_file(request.out),
        baselines=baselines,
        against=against,
        controls=controls,
        sampled=sampled,
    )
    result = BenchmarkEvaluation(
        **dict(scored),
        model=engine.name,
        identity=identity,
        unanswered=unanswered,
        replaced=replaced,
        warnings=warnings,
        controls_asked=_control_count(params, request, questions),
    )
    write_record(request.out / paths.SCORES_FILE, result)
    (request.out / paths.SCORES_TABLE_FILE).write_text(as_markdown(result), encoding="utf-8")
    _log(root, params, engine, result)
    return result


def identity_of(params: Params, benchmark: str, items: Sequence[Item[Any]], engine: Engine) -> dict[str, Any]:
    """Everything a reply depends on, except the videos' content, which is stored with each reply.

    A sample of this project records which parts of which clips it uses.
    """
    render = BENCHMARKS[benchmark].prompt
    rows = [
        [
            item.item_id,
            item.row.model_dump(mode="json", exclude={"recordings"})
            if isinstance(item.row, Sample)
            else video_key_of(item),
            render(item, engine.prompt),
        ]
        for item in items
    ]
    return {
        "schema_version": 2,
        "benchmark": benchmark,
        "annotations": digest({"items": [[item.item_id, item.truth, item.options] for item in items]}),
        "prompts": digest({"asked": rows}),
        "frames": sorted({protocol(item.frames) for item in items}),
        "seed": params.seed,
        **engine.identity,
    }


def _questions(
    params: Params, request: EvaluationRequest, items: Sequence[Item[Any]], texts: PromptTexts
) -> list[Question]:
    render = BENCHMARKS[request.benchmark].prompt
    controlled = drawn([item.item_id for item in items], request.controls, params.seed)
    count = request.sampled.replies if request.sampled is not None else 0
    return questions([(item.item_id, video_key_of(item), render(item, texts)) for item in items], controlled, count)


def _sampled(settings: SampledParams | None, items: Sequence[Item[Any]], answers: Answers) -> Sampled | None:
    if settings is None:
        return None
    numbered = [
        {item.item_id: answers.sampled[key] for item in items if (key := (item.item_id, number)) in answers.sampled}
        for number in range(settings.replies)
    ]
    return Sampled(numbered, settings.temperature)


def _ask(engine: Engine, questions: Sequence[Question], load: Load, answers: Answers) -> None:
    pending = answers.pending(questions)
    if not pending:
        return
    with tqdm(
        total=len(questions), initial=len(questions) - len(pending), desc=engine.name, unit="question", mininterval=1
    ) as bar:

        def on_answers(replies: Sequence[Answer]) -> None:
            answers.add(replies)
            bar.update(len(replies))

        engine.ask(questions, pending, load, on_answers)


def _listed(answers: Answers) -> list[Unanswered]:
    return [
        Unanswered(id=question.item_id, view=question.kind, video=question.video_key, reason=reason)
        for question, reason in answers.unanswered.items()
    ]


def _control_count(params: Params, request: EvaluationRequest, questions: Sequence[Question]) -> str:
    count = sum(question.view == CONTROLS[0] for question in questions)
    return (
        f"all {count}" if request.controls is None else f"{count}, drawn with seed {params.seed}" if count else "none"
    )


def _replaced(answers: Answers, video_keys: Mapping[str, str]) -> dict[str, int]:
    """Map a video key to the number of replies that were dropped, since its video has been
    replaced."""
    return dict(Counter(video_keys[item_id] for ids in answers.replaced.values() for item_id in sorted(ids)))


def _clips(root: Path) -> Callable[[], Mapping[str, Clip]]:
    """This project's own clips by name, read on first use."""

    @cache
    def clips() -> Mapping[str, Clip]:
        manifest = root / paths.CLIPS / paths.MANIFEST_FILE
        if not manifest.is_file():
            raise InputError(
                str(manifest), "not there, and these samples are edits of its clips", "type: vidbridge run synthesize"
            )
        return {clip.clip_id: clip for clip in iterate_rows(manifest, Clip)}

    return clips


def _content_of_sample(sample: Sample, clips: Callable[[], Mapping[str, Clip]]) -> str | None:
    clips_by_id = clips()
    names = sample.timeline.clip_ids
    return (
        digest({"clips": [clips_by_id[name].sha256 for name in names]})
        if all(name in clips_by_id for name in names)
        else None
    )


def _sample_loader(
    root: Path, params: Params, videos: Path | None, clips: Callable[[], Mapping[str, Clip]]
) -> Callable[[Sample], Frames]:
    """Build the loader of this project's own samples; the project's files are read on first use."""

    @cache
    def loader() -> FrameLoader:
        return FrameLoader(
            dict(clips()), videos or open_videos(params.ingest.roots, root), frame_memory_bytes(), root / paths.CLIPS
        )

    def load(sample: Sample) -> Frames:
        try:
            return loader().load(sample)
        except KeyError as error:
            # A sample of another corpus than the present one.
            raise VideoError("missing-clip", str(error.args[0])) from error

    return load


def _log(root: Path, params: Params, engine: Engine, result: BenchmarkEvaluation) -> None:
    tags = {
        "benchmark": result.benchmark,
        "digest": result.digest,
        "judge": result.judge_name or "rule of the benchmark",
        "model": engine.name,
        "partial": str(result.partial).lower(),
    }
    if engine.version is not None:
        tags["model_version"] = f"{engine.version.model}/{engine.version.number}"
    with benchmark_run(params, f"{result.benchmark} {engine.name}", tags, result.identity, root) as run:
        run.summary(metrics_of(result))
