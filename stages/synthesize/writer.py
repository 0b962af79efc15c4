"""Writer: a language model writes MixVidQA questions and SFT traces for synthesised samples;
doubtful ones are discarded.

Answers are cached by everything they depend on, so that a restarted run, or a corpus with one more
clip, sends only new requests. A written text depends on its own sample alone, not on the order or
the other samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal, TypeVar

from tqdm import tqdm

from stages.domain.core.records import SPLITS, Clip, Record, Reject, Sample, Split, TaskName, Trace, Verdict
from stages.domain.core.replies import parse_reply
from stages.domain.tasks import mix_vid_qa
from stages.domain.tasks.mix_vid_qa import UNWRITTEN, shown_part, with_question
from stages.lib.judging.batch import score_replies, usages_of
from stages.lib.judging.build import embedder_of, judges_of
from stages.lib.judging.endpoint import Endpoint, ModelSpec
from stages.lib.judging.prompts import Question, Rightness, ask_right
from stages.lib.rows.jsonl import iterate_rows, write_rows
from stages.params import TraceParams, WriterParams
from stages.runtime import paths
from stages.runtime.endpoint.settings import JudgeError, endpoint_settings
from stages.synthesize.question_rules import describe_clip, flaw, holds_markup, mentions_notes
from stages.synthesize.writer_prompts import (
    Tried,
    WrittenAnalysis,
    WrittenQuestion,
    WrittenTrace,
    ask_for_question,
    ask_for_trace,
    ask_to_try,
)

#: Number of samples processed together: many times the number of concurrent requests, and few
#: enough to hold in memory.
CHUNK = 512
#: Sampling temperature of verdicts and of test answers to a question.
CHECK_TEMPERATURE = 0.0
#: Table of the writer in ``params.yaml``.
TABLE = "synthesize.writer"

Key = TypeVar("Key")


class WriterUnavailableError(JudgeError):
    """The endpoint left a request unanswered, so that the samples cannot be determined."""


@dataclass
class Tally:
    """Counts of results: ``questions`` written, template, set-aside; ``traces`` kept and none, by
    task; ``refused`` proposals, by problem."""

    questions: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    traces: dict[TaskName, Counter[str]] = field(default_factory=dict)

    def __str__(self) -> str:
        """Text for people: ``questions: 30 written, 2 template; caption traces: …``."""
        groups = {
            "questions": self.questions,
            **{f"{task} traces": counts for task, counts in self.traces.items()},
            "refused": self.refused,
        }
        return "; ".join(
            f"{name}: {', '.join(f'{count:,} {outcome}' for outcome, count in sorted(counts.items()))}"
            for name, counts in groups.items()
            if counts
        )

    @property
    def table(self) -> dict[str, dict[str, object]]:
        """Table for ``summary.json``, which depends only on the answers and not on their order in
        time."""
        return {
            "questions": dict(sorted(self.questions.items())),
            "refused": dict(sorted(self.refused.items())),
            "traces": {task: dict(sorted(counts.items())) for task, counts in self.traces.items()},
        }


class Writer:
    """Endpoints of the writer: ``propose`` writes proposals at the writer's temperature, ``check``
    tests them, ``referee`` scores traces.

    Raises:
        JudgeError: the environment does not set the endpoint.
        EmbedderError: the embedder of the rewards is not available.
    """

    def __init__(self, params: WriterParams) -> None:
        self.params = params
        self.propose, self.check = endpoints_of(params)
        self.referee = (
            judges_of(params.traces.judge, embedder_of(params.traces.rewards.embedder)) if params.traces else None
        )
        self.tally = Tally()

    @property
    def usage(self) -> dict[str, float]:
        """Requests so far and their cost, for metrics."""
        judged = usages_of(self.referee) if self.referee is not None else {}
        return usage_at((self.propose, self.check), "writer") | judged


def write_samples(
    out: Path, clip_of: Callable[[str], Clip], tasks: Sequence[TaskName], writer: Writer
) -> dict[Split, list[Reject]]:
    """Rewrite ``<split>/<task>.jsonl`` below ``out`` with written texts: questions in all splits,
    traces for training.

    Returns:
        Rejects by split: mixtures without a template question for which no question could be
        written.

    Raises:
        WriterUnavailableError: the endpoint did not answer; call again, and only missing requests
            are sent.
        JudgeError: the endpoint refuses such requests.
    """
    set_aside: dict[Split, list[Reject]] = {split: [] for split in SPLITS}
    traces = writer.params.traces
    for split in SPLITS:
        for task in tasks:
            with_questions = writer.params.questions and task == mix_vid_qa.NAME
            task_traces = traces if traces is not None and split == "train" and task in traces.tasks else None
            if with_questions or task_traces:
                file = paths.samples_file(out, split, task)
                write_rows(file, _written(file, clip_of, writer, with_questions, task_traces, set_aside[split]))
    return set_aside


def _written(
    file: Path,
    clip_of: Callable[[str], Clip],
    writer: Writer,
    with_questions: bool,
    traces: TraceParams | None,
    set_aside: list[Reject],
) -> Iterator[Sample]:
    with file.open("rb") as lines:
        total = sum(1 for _ in lines)
    rows = iterate_rows(file, Sample)
    with tqdm(desc=f"write {file.parent.name}/{file.stem}", total=total, unit="sample", mininterval=1) as bar:
        while chunk := list(islice(rows, CHUNK)):
            results = write_questions(chunk, clip_of, writer) if with_questions else chunk
            set_aside += [row for row in results if isinstance(row, Reject)]
            samples = [row for row in results if isinstance(row, Sample)]
            yield from write_traces(samples, clip_of, writer, traces) if traces else samples
            bar.update(len(chunk))


def write_questions(samples: Sequence[Sample], clip_of: Callable[[str], Clip], writer: Writer) -> list[Sample | Reject]:
    """Write a question for each MixVidQA sample that only its own clip answers; a sample is
    unchanged if all ``tries`` fail.

    A question is kept if it breaks no rule, and if answers to it are judged wrong from the question
    alone, wrong from the description of the other clip, and right from the description of the
    visible part of its own clip.

    Raises:
        WriterUnavailableError, JudgeError: see :func:`write_samples`.
    """
    descriptions = [_descriptions(sample, clip_of) for sample in samples]
    kept: dict[int, Sample] = {}
    for draw in range(writer.params.tries):
        waiting = [n for n in range(len(samples)) if n not in kept]
        proposals = answers_of(writer.propose, {n: ask_for_question(*descriptions[n], draw) for n in waiting})
        candidates: dict[int, Sample] = {}
        for n, proposal in proposals.items():
            if not isinstance(proposal, WrittenQuestion):
                writer.tally.refused["unreadable"] += 1
                continue
            question, answer = " ".join(proposal.question.split()), " ".join(proposal.answer.split())
            if (problem := flaw(question, answer)) is not None:
                writer.tally.refused[problem] += 1
            else:
                candidates[n] = with_question(samples[n], clip_of(samples[n].clip_id), question, answer)
        verdicts = _verdicts(candidates, descriptions, writer)
        for n, candidate in candidates.items():
            if (problem := _unfit(*(verdicts.get((n, source)) for source in _SOURCES))) is not None:
                writer.tally.refused[problem] += 1
            else:
                kept[n] = candidate
    results: list[Sample | Reject] = []
    for n, sample in enumerate(samples):
        row = kept.get(n, sample)
        if row.question != UNWRITTEN:
            writer.tally.questions["written" if n in kept else "template"] += 1
            results.append(row)
        else:
            writer.tally.questions["set-aside"] += 1
            detail = (
                f"with {_other(sample)}: none of {writer.params.tries} written questions will do, and no template fits"
                " the clip"
            )
            results.append(Reject(item=sample.clip_id, reason="question-not-written", detail=detail))
    return results


#: Description from which a test answer is written: none, that of the other clip, that of the own
#: clip.
_Source = Literal["blind", "other", "own"]
_SOURCES: tuple[_Source, ...] = ("blind", "other", "own")


def _verdicts(
    candidates: Mapping[int, Sample], descriptions: Sequence[tuple[str, str]], writer: Writer
) -> dict[tuple[int, _Source], Record]:
    """Test each candidate's question: verdicts on an answer from each source, for the answers that
    are readable."""
    texts: dict[tuple[int, _Source], str] = {}
    for n in candidates:
        own, other = descriptions[n]
        texts |= {(n, "blind"): "", (n, "other"): other, (n, "own"): own}
    answers = answers_of(
        writer.check, {key: ask_to_try(candidates[key[0]].question, text) for key, text in texts.items()}
    )
    readable = {key: answer.answer for key, answer in answers.items() if isinstance(answer, Tried)}
    return answers_of(writer.check, {key: ask_right(candidates[key[0]], answer) for key, answer in readable.items()})


def _unfit(blind: Record | None, other: Record | None, own: Record | None) -> str | None:
    """Return the problem of a question, given the verdicts on answers to it; None if it has
    none."""
    if not (isinstance(blind, Rightness) and isinstance(other, Rightness) and isinstance(own, Rightness)):
        return "unreadable"
    if blind.right:
        return "answered-blind"
    if other.right:
        return "answered-by-other"
    return None if own.right else "not-answered-by-own"


def write_traces(
    samples: Sequence[Sample], clip_of: Callable[[str], Clip], writer: Writer, traces: TraceParams
) -> list[Sample]:
    """Replace the trace of each sample by the first of ``tries`` written replies that earns
    ``least`` of the reward, or by none.

    Raises:
        WriterUnavailableError, JudgeError: see :func:`write_samples`.
    """
    assert writer.referee is not None
    if not samples:
        return []
    referee, judge = writer.referee, writer.referee.of(samples[0].task).judge
    descriptions = [_descriptions(sample, clip_of) for sample in samples]
    kept: dict[int, Trace] = {}
    for draw in range(writer.params.tries):
        # For a clip without a description, a writer could only guess.
        waiting = [n for n in range(len(samples)) if n not in kept and descriptions[n][0]]
        proposals = answers_of(writer.propose, {n: ask_for_trace(samples[n], *descriptions[n], draw) for n in waiting})
        replies = {}
        for n, proposal in proposals.items():
            if (problem := _unusable(proposal, descriptions[n][0])) is not None:
                writer.tally.refused[problem] += 1
            elif isinstance(proposal, WrittenTrace | WrittenAnalysis):
                replies[n] = proposal.reply
        before = judge.usage.get("unavailable", 0)
        scores = score_replies([samples[n] for n in replies], list(replies.values()), referee, traces.rewards)
        _check_answered(
            judge.usage.get("unavailable", 0) - before, len(replies), judge.last_error, "VIDBRIDGE_JUDGE_URL"
        )
        for n, score in zip(replies, scores, strict=True):
            reply = parse_reply(score.reply)
            if score.value is None or score.value < traces.least or reply is None:
                writer.tally.refused["reward-too-small" if score.value is not None else "unreadable"] += 1
            else:
                kept[n] = Trace(thinking=reply.thinking, answer=reply.answer)
    for n, sample in enumerate(samples):
        writer.tally.traces.setdefault(sample.task, Counter())["kept" if n in kept else "none"] += 1
    return [sample.model_copy(update={"trace": kept.get(n)}) for n, sample in enumerate(samples)]


def _unusable(proposal: Record, description: str) -> str | None:
    """Return the problem that excludes a proposed reply whatever its reward; None if it has
    none."""
    if (
        not isinstance(proposal, WrittenTrace | WrittenAnalysis)
        or not proposal.thinking.strip()
        or not proposal.spoken.strip()
    ):
        return "unreadable"
    if holds_markup(proposal.thinking) or holds_markup(proposal.spoken):
        return "holds-markup"
    return "mentions-notes" if mentions_notes(proposal.thinking, description) else None


def _descriptions(sample: Sample, clip_of: Callable[[str], Clip]) -> tuple[str, str]:
    """Describe the visible part of the sample's clip, and the clip that it is mixed with (empty if
    there is none)."""
    clip = clip_of(sample.clip_id)
    if len(sample.timeline.clip_ids) == 1:
        return describe_clip(clip, sample.timeline.dark), ""
    return describe_clip(shown_part(clip, sample.timeline)), describe_clip(clip_of(_other(sample)))


def _other(sample: Sample) -> str:
    return next(clip_id for clip_id in sample.timeline.clip_ids if clip_id != sample.clip_id)


def endpoints_of(params: WriterParams) -> tuple[Endpoint, Endpoint]:
    """Build the endpoints of the writer's model: for proposals, and for checks of them.

    Raises:
        JudgeError: the environment does not set the endpoint.
    """
    settings, model = endpoint_settings(role="WRITER"), (params.model, params.revision)
    propose, check = (
        Endpoint(ModelSpec(TABLE, *model, temperature, params.max_tokens, params.seed), settings)
        for temperature in (params.temperature, CHECK_TEMPERATURE)
    )
    return propose, check


def usage_at(endpoints: Iterable[Endpoint], prefix: str) -> dict[str, float]:
    """Requests to these endpoints so far and their cost, as metrics."""
    total = sum((endpoint.usage for endpoint in endpoints), Counter[str]())
    return {f"{prefix}/{name}": float(count) for name, count in sorted(total.items())}


def answers_of(endpoint: Endpoint, questions: Mapping[Key, Question]) -> dict[Key, Record]:
    """Send all questions at once, and return the answer to each; a verdict ``invalid`` if it was
    not readable.

    Raises:
        WriterUnavailableError: a question got no answer.
    """
    answers = endpoint.ask(questions.values())
    missing = sum(isinstance(answer, Verdict) and answer.outcome == "unavailable" for answer in answers.values())
    _check_answered(missing, len(answers), endpoint.last_error, endpoint.where)
    return {key: answers[question] for key, question in questions.items()}


def _check_answered(missing: int, total: int, last_error: str, setting: str) -> None:
    if missing:
        raise WriterUnavailableError(
            TABLE,
            f"{missing} of {total} questions got no answer",
            f"last error: {last_error}. Check the endpoint at"
            f" {setting} and run again: received answers are kept, and only the rest is asked",
        )
