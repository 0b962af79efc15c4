"""Put a model through a benchmark: ask all of its questions, score the replies, keep both. Not a stage of DVC; `vidbridge evaluate`
calls it.

Example: ``evaluate(root, params, order, model_engine(session, params, order, "champion", None))``.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

from stages.domain.core.digest import digest
from stages.domain.core.frames import Frames
from stages.domain.core.prompts import PromptTexts
from stages.domain.core.records import Clip, Sample
from stages.lib.judging.build import judge_of
from stages.lib.rows.jsonl import iterate_rows, write_record
from stages.lib.rows.samples import InputError
from stages.lib.video.errors import VideoError
from stages.lib.video.loader import FrameLoader
from stages.lib.video.open import frame_memory_bytes
from stages.params import Params
from stages.runtime import paths
from stages.runtime.endpoints import model_endpoint_settings
from stages.runtime.plain import one_line
from stages.tools.suites.engines.answers import Answers, open_answers
from stages.tools.suites.engines.contents import CONTENTS_FILE, Contents
from stages.tools.suites.engines.endpoint import JPEG_QUALITY, MP4_CRF, EndpointModel, Form
from stages.tools.suites.engines.models import MAX_PIXELS_PER_FRAME, choose
from stages.tools.suites.engines.questions import CONTROLS, Answer, EngineError, Load, Question, Tell, drawn, questions
from stages.tools.suites.engines.videos import Sights, protocol, sight
from stages.tools.suites.markdown import as_markdown
from stages.tools.suites.published.benchmark import Item
from stages.tools.suites.published.predictions import read_predictions
from stages.tools.suites.published.registry import BENCHMARKS
from stages.tools.suites.results import BenchmarkEvaluation, BenchmarkScores, Unanswered
from stages.tools.suites.score import read_questions, score
from stages.tracking.lineage.uri import check_server, tracking_uri
from stages.tracking.registry.versions import Version
from stages.tracking.runs.run import benchmark_run
from stages.tracking.session import Session

#: Names of videos that are told in one line.
EXAMPLES = 5
#: Asks the pending ones of the questions, and tells of the answers as they come.
Ask = Callable[[Sequence[Question], set[Question], Load, Tell], None]


@dataclass(frozen=True)
class Order:
    """What is to be done.

    Attributes:
        videos: the folder that the benchmark's videos lie in; None for this project's own samples, whose clips are those of ingest.
        out: the folder that everything is written into.
        controls: how many questions are asked with a black and with a shuffled video too; None: all of them.
        max_new_tokens: a reply is cut off after so many; None: as the model or ``params.yaml`` says.
        batch_size: of a model in this process; None: ``evaluation.batch_size``.
    """

    benchmark: str
    annotations: Path
    videos: Path | None
    out: Path
    controls: int | None
    max_new_tokens: int | None
    batch_size: int | None


@dataclass(frozen=True)
class Engine:
    """Who answers: ``identity`` is all that a reply depends on beside question and frames; ``ask`` asks."""

    name: str
    identity: Mapping[str, Any]
    prompt: PromptTexts
    version: Version | None
    ask: Ask


def model_engine(session: Session, params: Params, order: Order, which: str, revision: str | None) -> Engine:
    """A model in this process; it is loaded when the first question is asked.

    Raises:
        EngineError, TrackingError: see :func:`stages.tools.suites.engines.models.choose`.
    """
    chosen = choose(session, params, which, revision)
    most = order.max_new_tokens or chosen.max_new_tokens
    batch_size = order.batch_size or params.evaluation.batch_size

    def ask(asked: Sequence[Question], pending: set[Question], load: Load, tell: Tell) -> None:
        from stages.lib.models.load import device, use_threads
        from stages.tools.suites.engines.local import LocalModel

        use_threads()
        model, processor = chosen.load()
        model.to(device())  # type: ignore[arg-type]
        LocalModel(model, processor, most, params.seed).answer(asked, pending, load, batch_size, tell)

    identity = {
        "engine": "generate",
        "model": chosen.identity,
        "decoding": {"greedy": True, "max_new_tokens": most, "precision": chosen.precision},
    }
    return Engine(chosen.name, identity, chosen.prompt, chosen.version, ask)


def endpoint_engine(params: Params, order: Order, url: str, model: str, revision: str | None, form: Form) -> Engine:
    """A model at an endpoint. Where that is belongs to no identity.

    Args:
        revision: which weights or release the endpoint's model is; not sent.

    Raises:
        JudgeError: the address, or a variable of the environment, cannot be used.
    """
    place = model_endpoint_settings(url, os.environ)
    most = order.max_new_tokens or params.evaluation.max_new_tokens
    engine = EndpointModel(model, place, form, most, params.seed)
    quality = {"jpeg": f"JPEG, quality {JPEG_QUALITY}", "mp4": f"H.264, CRF {MP4_CRF}"}[form]
    identity = {
        "engine": "endpoint",
        "model": {"name": model, "revision": revision},
        "sent as": f"{quality}, at most {MAX_PIXELS_PER_FRAME} pixels a frame",
        "decoding": {"temperature": 0, "max_tokens": most},
    }
    return Engine(model, identity, params.prompt, None, engine.answer)


def evaluate(
    root: Path, params: Params, order: Order, engine: Engine, *, baselines: bool, against: Path | None
) -> BenchmarkEvaluation:
    """Ask what is not answered yet, then score all there is; writes replies, ``scores.json`` and ``scores.md`` into ``order.out``,
    and a run into MLflow. Returns what ``scores.json`` holds.

    Raises:
        SuiteError: the annotations, or the predictions ``against``, cannot be used (found before a question is asked).
        EngineError: the folder holds another evaluation's replies, the videos' folder is none, or no question was answered.
        JudgeError: the judge is not set up (found before a question is asked); the endpoint refuses all questions; or the judge, which
            is asked at the end, is not there. Replies are kept.
        TrackingError: MLflow's store does not answer (found before a question is asked).
    """
    check_server(tracking_uri(root))
    questions_there = read_questions(order.benchmark, order.annotations)
    items = questions_there.items
    if against is not None:
        read_predictions(against, questions_there)
    if BENCHMARKS[order.benchmark].judged:
        judge_of(params.judge)
    identity = identity_of(params, order.benchmark, items, engine)
    asked = _asked(params, order, items, engine.prompt)
    clips = _clips(root)
    sights = Sights(
        items,
        order.videos,
        _sample_loader(root, params, order.videos, clips),
        Contents(order.out / CONTENTS_FILE),
        lambda sample: _content_of_sample(sample, clips),
    )
    shown = {item.item_id: sight(item) for item in items}
    with open_answers(order.out, identity, lambda item_id: sights.content(shown[item_id])) as answers:
        if replaced := _replaced(answers, shown):
            told = ", ".join(map(one_line, sorted(replaced)[:EXAMPLES]))
            print(f"evaluate: {len(replaced)} videos hold something else than when they were asked about; asking again: {told}")
        _ask(engine, asked, sights.load, answers)
        unanswered = _listed(answers)
        wanted = {(question.view, question.item_id) for question in asked}
        controls: dict[str, dict[str, str]] = {
            view: {item_id: reply for item_id, reply in answers.replies[view].items() if (view, item_id) in wanted}
            for view in CONTROLS
        }
        if not answers.replies["video"]:
            raise EngineError(
                f"no question of {order.benchmark} was answered, so nothing was scored; the first: {unanswered[0].reason}"
            )
    scored = score(
        params,
        order.benchmark,
        order.annotations,
        paths.predictions_file(order.out),
        baselines=baselines,
        against=against,
        controls=controls,
    )
    result = BenchmarkEvaluation(
        **dict(scored),
        model=engine.name,
        identity=identity,
        unanswered=unanswered,
        replaced=replaced,
        controls_asked=_controls_asked(params, order, asked),
    )
    write_record(order.out / paths.SCORES_FILE, result)
    (order.out / paths.SCORES_TABLE_FILE).write_text(as_markdown(result), encoding="utf-8")
    _log(root, params, engine, result)
    return result


def identity_of(params: Params, benchmark: str, items: Sequence[Item[Any]], engine: Engine) -> dict[str, Any]:
    """All that a reply depends on, but for the videos themselves, whose content stands with each reply. A sample of this project says what
    is cut out of which clips."""
    render = BENCHMARKS[benchmark].prompt
    asked = [
        [
            item.item_id,
            item.row.model_dump(mode="json") if isinstance(item.row, Sample) else sight(item),
            render(item, engine.prompt),
        ]
        for item in items
    ]
    return {
        "schema_version": 2,
        "benchmark": benchmark,
        "annotations": digest({"items": [[item.item_id, item.truth, item.options] for item in items]}),
        "prompts": digest({"asked": asked}),
        "frames": sorted({protocol(item.frames) for item in items}),
        "seed": params.seed,
        **engine.identity,
    }


def _asked(params: Params, order: Order, items: Sequence[Item[Any]], texts: PromptTexts) -> list[Question]:
    render = BENCHMARKS[order.benchmark].prompt
    controlled = drawn([item.item_id for item in items], order.controls, params.seed)
    return questions([(item.item_id, sight(item), render(item, texts)) for item in items], controlled)


def _ask(engine: Engine, asked: Sequence[Question], load: Load, answers: Answers) -> None:
    pending = answers.pending(asked)
    if not pending:
        return
    with tqdm(total=len(asked), initial=len(asked) - len(pending), desc=engine.name, unit="question", mininterval=1) as bar:

        def tell(said: Sequence[Answer]) -> None:
            answers.add(said)
            bar.update(len(said))

        engine.ask(asked, pending, load, tell)


def _listed(answers: Answers) -> list[Unanswered]:
    return [
        Unanswered(id=question.item_id, view=question.view, video=question.sight, reason=reason)
        for question, reason in answers.unanswered.items()
    ]


def _controls_asked(params: Params, order: Order, asked: Sequence[Question]) -> str:
    count = sum(question.view == CONTROLS[0] for question in asked)
    return f"all {count}" if order.controls is None else f"{count}, drawn with seed {params.seed}" if count else "none"


def _replaced(answers: Answers, shown: Mapping[str, str]) -> dict[str, int]:
    """Sight to how many replies about it were dropped, since its video has been replaced."""
    return dict(Counter(shown[item_id] for ids in answers.replaced.values() for item_id in sorted(ids)))


def _clips(root: Path) -> Callable[[], Mapping[str, Clip]]:
    """This project's own clips by name, which are read when the first one is asked for."""

    @cache
    def clips() -> Mapping[str, Clip]:
        manifest = root / paths.CLIPS / paths.MANIFEST_FILE
        if not manifest.is_file():
            raise InputError(f"{manifest}: not there, and these samples are edits of its clips; type: vidbridge run synthesize")
        return {clip.clip_id: clip for clip in iterate_rows(manifest, Clip)}

    return clips


def _content_of_sample(sample: Sample, clips: Callable[[], Mapping[str, Clip]]) -> str | None:
    known = clips()
    names = sample.timeline.clip_ids
    return digest({"clips": [known[name].sha256 for name in names]}) if all(name in known for name in names) else None


def _sample_loader(
    root: Path, params: Params, videos: Path | None, clips: Callable[[], Mapping[str, Clip]]
) -> Callable[[Sample], Frames]:
    """Loads this project's own samples; what it needs of the project is read when the first one is loaded."""

    @cache
    def loader() -> FrameLoader:
        return FrameLoader(dict(clips()), videos or root / params.ingest.source, frame_memory_bytes(), root / paths.CLIPS)

    def load(sample: Sample) -> Frames:
        try:
            return loader().load(sample)
        except KeyError as error:
            # A sample of another corpus than the one that lies here.
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


def metrics_of(result: BenchmarkScores) -> dict[str, float]:
    """Every overall number of ``scores.json`` by a name that MLflow takes."""
    found: dict[str, float] = {"answered": result.answered, "questions": result.questions}
    tables = {"": {name: each.overall for name, each in result.scores.items()}}
    tables |= {f"{who}/": table for who, table in result.baselines.items()}
    tables |= {f"{view}/": control.scores for view, control in result.controls.items()}
    for prefix, table in tables.items():
        for scoring, measures in table.items():
            for measure, cell in measures.items():
                name = f"{prefix}{scoring}/{measure}".replace(": ", "-")
                if cell.mean is not None and cell.low is not None and cell.high is not None:
                    found |= {name: cell.mean} | ({f"{name}/low": cell.low, f"{name}/high": cell.high} if not prefix else {})
    return found
