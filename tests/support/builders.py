"""Small clips and rules for tests of the domain."""

from __future__ import annotations

from fractions import Fraction

from stages.domain.core.records import Clip, Event, Question, Sample, Span, Subject, Timeline
from stages.domain.core.replies import render_reply
from stages.domain.tasks import TASK_NAMES
from stages.domain.tasks.rewards import Judge, Referee, RewardRules
from stages.domain.tasks.synthesis import TaskSettings, synthesise
from stages.ingest.clips import Media
from stages.lib.judging.embedder import LexicalEmbedder
from stages.lib.judging.rule import RuleJudge

SETTINGS = TaskSettings.model_validate(
    {
        "dark_event_infer": {
            "question": "what happens in the {which}dark part ?",
            "per_clip": 2,
            "masks": 1,
            "min_dark_frames": 2,
            "min_context_frames": 1,
            "max_dark_share": 0.6,
            "events": {
                "min_s": 0,
                "max_s": 60,
                "places": ["start", "middle", "end"],
                "min_words": 1,
                "max_words": 40,
                "forbidden": [],
                "unique": True,
            },
        },
        "mix_vid_qa": {
            "per_clip": 2,
            "max_clip_s": 10,
            "min_piece_s": 1,
            "max_piece_s": 1,
            "min_piece_frames": 2,
            "one_shot": False,
            "one_recording": False,
        },
        "mcqa": {"per_clip": 1, "from_events": False},
        "qa": {"per_clip": 1, "from_events": True},
        "caption": {"per_clip": 1},
        "structured_caption": {"per_clip": 1},
    }
)


def clip(
    number: int = 0,
    colour: str = "red",
    shape: str = "bar",
    verbs: tuple[str, str] = ("rises", "grows"),
    **changes: object,
) -> Clip:
    subject = f"the {colour} {shape}"
    options = tuple(dict.fromkeys((verbs[1], verbs[0], "falls", "shrinks", "retreats", "advances")))[:4]
    values: dict[str, object] = {
        "clip_id": f"c{number}",
        "source_id": f"s{number}",
        "path": f"videos/c{number}.mp4",
        "sha256": "0" * 64,
        "split": "train",
        "frames": 16,
        "rate": Fraction(8),
        "width": 64,
        "height": 64,
        "codec": "h264",
        "label": f"{colour} {shape}",
        "caption": f"{subject} {verbs[0]} then {verbs[1]}",
        "events": (
            Event(span=Span(start=2, stop=6), caption=f"{subject} {verbs[0]}"),
            Event(span=Span(start=10, stop=14), caption=f"{subject} {verbs[1]}"),
        ),
        "subjects": (Subject(name=shape, attributes=(colour,), actions=verbs),),
        "questions": (
            Question(
                question=f"what does {subject} do first ?", options=options, answer="ABCD"[options.index(verbs[0])]
            ),
        ),
    }
    return Clip.model_validate({**values, **changes})


def media(seconds: int) -> Media:
    """Facts about a file of 25 frames a second, on which every reader is right."""
    return Media(
        sha256="0" * 64,
        codec="h264",
        width=64,
        height=64,
        rate=Fraction(25),
        frames=25 * seconds,
        duration_s=Fraction(seconds),
        starts_s=Fraction(0),
        variable_rate=False,
        hazards=(),
    )


def sample_about(timeline: Timeline, name: str = "sample", *, shown: int) -> Sample:
    """A sample about a timeline of which only the frames matter; the model sees ``shown`` of
    them."""
    return Sample(
        sample_id=name,
        task="caption",
        clip_id=timeline.clip_ids[0],
        split="train",
        timeline=timeline,
        sampled_frames=shown,
        question="what ?",
        reference="that",
    )


def referee(judge: Judge) -> Referee:
    return Referee(judge, LexicalEmbedder())


def rules(**changes: object) -> RewardRules:
    values: dict[str, object] = {
        "scoring": "hardened",
        "scale": "unit",
        "precision_weight": 0.5,
        "keyword_bonus": 0.2,
        "keyword_cap": 0.4,
        "hedge_cost": 0.2,
        "temporal_phrases": ("then", "first", "finally", "followed by"),
        "hedging_phrases": ("possibly", "might", "may"),
        "min_thinking_words": 0,
        "coverage_steps": (0.5, 1.0),
        "caption_scorer": "coverage",
        "match_threshold": 0.5,
        "embedder": {"kind": "lexical"},
    }
    return RewardRules.model_validate({**values, **changes})


JUDGE = RuleJudge(full_share=0.8, partial_share=0.4)
REFEREE = referee(JUDGE)
CLIPS = [clip(0), clip(1, "blue", "circle", ("falls", "shrinks"))]
SAMPLES: dict[str, Sample] = {
    task: next(s for _, samples, _ in synthesise(CLIPS, task, SETTINGS, 8, 7) for s in samples) for task in TASK_NAMES
}


def truth(sample: Sample) -> str:
    assert sample.trace is not None
    return render_reply(sample.trace.thinking, sample.trace.answer)
