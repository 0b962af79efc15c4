"""A language model writes MixVidQA questions and SFT traces for the samples that synthesis has made; what is doubtful is not kept.

Answers are cached by all they depend on, so a run that was ended, or a corpus with another clip, asks only what is new. What is written
depends on its own sample alone: neither order nor company changes it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal, TypeVar

from tqdm import tqdm

from stages.domain.core.records import SPLITS, Clip, Record, Reject, Sample, Split, TaskName, Trace, Verdict
from stages.domain.core.replies import parse_reply
from stages.domain.tasks import mix_vid_qa
from stages.domain.tasks.mix_vid_qa import UNWRITTEN, shown_part, with_question
from stages.domain.tasks.rewards import Referee
from stages.lib.judging.batch import score_replies, usage_of
from stages.lib.judging.build import embedder_of, judge_of
from stages.lib.judging.endpoint import Endpoint, Speaker
from stages.lib.judging.prompts import Question, Rightness, ask_right
from stages.lib.rows.jsonl import iterate_rows, write_rows
from stages.params import TraceParams, WriterParams
from stages.runtime import paths
from stages.runtime.endpoints import JudgeError, endpoint_settings
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

#: Samples that are worked on at once: many times what is asked at once, and few enough to hold.
CHUNK = 512
#: A verdict, or an answer that tries a question, is no draw.
CHECK_TEMPERATURE = 0.0
#: Where the writer stands in ``params.yaml``.
TABLE = "synthesize.writer"

Key = TypeVar("Key")


class WriterUnavailableError(JudgeError):
    """The endpoint left something unanswered, so nobody knows what the samples would be."""


@dataclass
class Tally:
    """``questions``: written, template, set-aside; ``traces``: by task, kept and none; ``refused``: proposals by what was wrong."""

    questions: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    traces: dict[TaskName, Counter[str]] = field(default_factory=dict)

    def __str__(self) -> str:
        """For a person: ``questions: 30 written, 2 template; caption traces: …``."""
        groups = {
            "questions": self.questions,
            **{f"{task} traces": counts for task, counts in self.traces.items()},
            "refused": self.refused,
        }
        return "; ".join(
            f"{name}: {', '.join(f'{count:,} {what}' for what, count in sorted(counts.items()))}"
            for name, counts in groups.items()
            if counts
        )

    @property
    def table(self) -> dict[str, dict[str, object]]:
        """As it stands in ``summary.json``: the same for the same answers, whenever they came."""
        return {
            "questions": dict(sorted(self.questions.items())),
            "refused": dict(sorted(self.refused.items())),
            "traces": {task: dict(sorted(counts.items())) for task, counts in self.traces.items()},
        }


class Writer:
    """``propose`` asks for something new, at the writer's temperature; ``check`` tries it; ``referee`` scores traces.

    Raises:
        JudgeError: the environment does not say where the endpoint is.
        EmbedderError: the rewards' embedder cannot be had.
    """

    def __init__(self, params: WriterParams) -> None:
        where, who = endpoint_settings(role="WRITER"), (params.model, params.revision)
        self.params = params
        self.propose = Endpoint(Speaker(TABLE, *who, params.temperature, params.max_tokens, params.seed), where)
        self.check = Endpoint(Speaker(TABLE, *who, CHECK_TEMPERATURE, params.max_tokens, params.seed), where)
        self.referee = (
            Referee(judge_of(params.traces.judge), embedder_of(params.traces.rewards.embedder)) if params.traces else None
        )
        self.tally = Tally()

    @property
    def usage(self) -> dict[str, float]:
        """What has been asked so far and what that cost, for metrics."""
        total = self.propose.usage + self.check.usage
        judged = usage_of(self.referee.judge) if self.referee is not None else {}
        return {f"writer/{name}": float(count) for name, count in sorted(total.items())} | judged


def write_samples(
    out: Path, clip_of: Callable[[str], Clip], tasks: Sequence[TaskName], writer: Writer
) -> dict[Split, list[Reject]]:
    """Rewrite ``<split>/<task>.jsonl`` below ``out`` where there is something to write: questions in all splits, traces for training.

    Returns:
        By split, what could not be made after all: mixtures that no template asks about and nobody wrote a question for.

    Raises:
        WriterUnavailableError: the endpoint did not answer; call again, and only what is missing is asked.
        JudgeError: the endpoint refuses such questions.
    """
    set_aside: dict[Split, list[Reject]] = {split: [] for split in SPLITS}
    traces = writer.params.traces
    for split in SPLITS:
        for task in tasks:
            asks = writer.params.questions and task == mix_vid_qa.NAME
            thinks = traces if traces is not None and split == "train" and task in traces.tasks else None
            if asks or thinks:
                file = paths.samples_file(out, split, task)
                write_rows(file, _written(file, clip_of, writer, asks, thinks, set_aside[split]))
    return set_aside


def _written(
    file: Path, clip_of: Callable[[str], Clip], writer: Writer, asks: bool, thinks: TraceParams | None, set_aside: list[Reject]
) -> Iterator[Sample]:
    with file.open("rb") as lines:
        total = sum(1 for _ in lines)
    rows = iterate_rows(file, Sample)
    with tqdm(desc=f"write {file.parent.name}/{file.stem}", total=total, unit="sample", mininterval=1) as bar:
        while chunk := list(islice(rows, CHUNK)):
            done = write_questions(chunk, clip_of, writer) if asks else chunk
            set_aside += [row for row in done if isinstance(row, Reject)]
            samples = [row for row in done if isinstance(row, Sample)]
            yield from write_traces(samples, clip_of, writer, thinks) if thinks else samples
            bar.update(len(chunk))


def write_questions(samples: Sequence[Sample], clip_of: Callable[[str], Clip], writer: Writer) -> list[Sample | Reject]:
    """Each MixVidQA sample with a written question that only its own clip answers; as it was where none of ``tries`` will do.

    A question is kept when no rule speaks against it, and answers to it are judged wrong from the question alone, wrong from what is
    known of the other clip, and right from what is shown of its own.

    Raises:
        WriterUnavailableError, JudgeError: see :func:`write_samples`.
    """
    seen = [_seen(sample, clip_of) for sample in samples]
    kept: dict[int, Sample] = {}
    for draw in range(writer.params.tries):
        waiting = [n for n in range(len(samples)) if n not in kept]
        proposals = _asked(writer.propose, {n: ask_for_question(*seen[n], draw) for n in waiting})
        candidates: dict[int, Sample] = {}
        for n, said in proposals.items():
            if not isinstance(said, WrittenQuestion):
                writer.tally.refused["unreadable"] += 1
                continue
            question, answer = " ".join(said.question.split()), " ".join(said.answer.split())
            if (wrong := flaw(question, answer)) is not None:
                writer.tally.refused[wrong] += 1
            else:
                candidates[n] = with_question(samples[n], clip_of(samples[n].clip_id), question, answer)
        verdicts = _tried(candidates, seen, writer)
        for n, candidate in candidates.items():
            if (wrong := _unfit(*(verdicts.get((n, source)) for source in _SOURCES))) is not None:
                writer.tally.refused[wrong] += 1
            else:
                kept[n] = candidate
    done: list[Sample | Reject] = []
    for n, sample in enumerate(samples):
        row = kept.get(n, sample)
        if row.question != UNWRITTEN:
            writer.tally.questions["written" if n in kept else "template"] += 1
            done.append(row)
        else:
            writer.tally.questions["set-aside"] += 1
            detail = (
                f"with {_other(sample)}: none of {writer.params.tries} written questions will do, and no template fits the clip"
            )
            done.append(Reject(item=sample.clip_id, reason="question-not-written", detail=detail))
    return done


#: From what a question is tried: nothing, the other clip, its own.
_Source = Literal["blind", "other", "own"]
_SOURCES: tuple[_Source, ...] = ("blind", "other", "own")


def _tried(candidates: Mapping[int, Sample], seen: Sequence[tuple[str, str]], writer: Writer) -> dict[tuple[int, _Source], Record]:
    """What is judged of an answer to each candidate's question from each source, where an answer could be read."""
    known: dict[tuple[int, _Source], str] = {}
    for n in candidates:
        own, other = seen[n]
        known |= {(n, "blind"): "", (n, "other"): other, (n, "own"): own}
    answers = _asked(writer.check, {key: ask_to_try(candidates[key[0]].question, text) for key, text in known.items()})
    read = {key: said.answer for key, said in answers.items() if isinstance(said, Tried)}
    return _asked(writer.check, {key: ask_right(candidates[key[0]], answer) for key, answer in read.items()})


def _unfit(blind: Record | None, other: Record | None, own: Record | None) -> str | None:
    """What is wrong with a question, given the verdicts on answers to it; None when nothing is."""
    if not (isinstance(blind, Rightness) and isinstance(other, Rightness) and isinstance(own, Rightness)):
        return "unreadable"
    if blind.right:
        return "answered-blind"
    if other.right:
        return "answered-by-other"
    return None if own.right else "not-answered-by-own"


def write_traces(samples: Sequence[Sample], clip_of: Callable[[str], Clip], writer: Writer, traces: TraceParams) -> list[Sample]:
    """Each sample with the first of ``tries`` written replies that earns ``least`` of the reward; without a trace where none does.

    Raises:
        WriterUnavailableError, JudgeError: see :func:`write_samples`.
    """
    assert writer.referee is not None
    referee, judge = writer.referee, writer.referee.judge
    seen = [_seen(sample, clip_of) for sample in samples]
    kept: dict[int, Trace] = {}
    for draw in range(writer.params.tries):
        # Of a clip whose annotation tells nothing, a writer could only guess.
        waiting = [n for n in range(len(samples)) if n not in kept and seen[n][0]]
        proposals = _asked(writer.propose, {n: ask_for_trace(samples[n], *seen[n], draw) for n in waiting})
        replies = {}
        for n, said in proposals.items():
            if (wrong := _unusable(said, seen[n][0])) is not None:
                writer.tally.refused[wrong] += 1
            elif isinstance(said, WrittenTrace | WrittenAnalysis):
                replies[n] = said.reply
        before = judge.usage.get("unavailable", 0)
        scores = score_replies([samples[n] for n in replies], list(replies.values()), referee, traces.rewards)
        _check_answered(judge.usage.get("unavailable", 0) - before, len(replies), judge.last_error, "VIDBRIDGE_JUDGE_URL")
        for n, score in zip(replies, scores, strict=True):
            reply = parse_reply(score.reply)
            if score.value is None or score.value < traces.least or reply is None:
                writer.tally.refused["reward-too-small" if score.value is not None else "unreadable"] += 1
            else:
                kept[n] = Trace(thinking=reply.thinking, answer=reply.answer)
    for n, sample in enumerate(samples):
        writer.tally.traces.setdefault(sample.task, Counter())["kept" if n in kept else "none"] += 1
    return [sample.model_copy(update={"trace": kept.get(n)}) for n, sample in enumerate(samples)]


def _unusable(said: Record, seen: str) -> str | None:
    """Why a proposed reply cannot be taught, whatever it earns; None when it can."""
    if not isinstance(said, WrittenTrace | WrittenAnalysis) or not said.thinking.strip() or not said.spoken.strip():
        return "unreadable"
    if holds_markup(said.thinking) or holds_markup(said.spoken):
        return "holds-markup"
    return "mentions-notes" if mentions_notes(said.thinking, seen) else None


def _seen(sample: Sample, clip_of: Callable[[str], Clip]) -> tuple[str, str]:
    """What the annotation tells of what the sample shows: of the clip that is asked about, and of the one it is mixed with."""
    clip = clip_of(sample.clip_id)
    if len(sample.timeline.clip_ids) == 1:
        return describe_clip(clip, sample.timeline.dark), ""
    return describe_clip(shown_part(clip, sample.timeline)), describe_clip(clip_of(_other(sample)))


def _other(sample: Sample) -> str:
    return next(clip_id for clip_id in sample.timeline.clip_ids if clip_id != sample.clip_id)


def _asked(endpoint: Endpoint, questions: Mapping[Key, Question]) -> dict[Key, Record]:
    """What came for each question, all asked at once; a verdict ``invalid`` where it could not be read.

    Raises:
        WriterUnavailableError: one got no answer.
    """
    answers = endpoint.ask(questions.values())
    missing = sum(isinstance(said, Verdict) and said.outcome == "unavailable" for said in answers.values())
    _check_answered(missing, len(answers), endpoint.last_error, endpoint.where)
    return {key: answers[question] for key, question in questions.items()}


def _check_answered(missing: int, asked: int, last_error: str, where: str) -> None:
    if missing:
        raise WriterUnavailableError(
            f"{TABLE}: {missing} of {asked} questions got no answer; last error: {last_error}. See to the endpoint at"
            f" {where} and run again: answers that came are kept, and only the rest is asked"
        )
