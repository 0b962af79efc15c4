"""The page of the files that stages leave for each other, from ``dvc.yaml`` and the types of their
rows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel

from generators.fields import fields_of
from generators.markdown import code, definition, joined, prose
from generators.parameters import own_docstring
from stages.domain.core.prompts import PromptTexts
from stages.domain.core.records import (
    Checkpoint,
    Clip,
    Event,
    Excerpt,
    OpenQuestion,
    Question,
    Reject,
    Sample,
    Score,
    Segment,
    Span,
    Subject,
    Timeline,
    Trace,
)
from stages.domain.core.timeline import SamplingRate
from stages.domain.rl.difficulty import Rolled
from stages.domain.rl.rollouts import Rollout, RolloutGroup
from stages.params.types import Table
from stages.tracking.registry.servable import Usage

INTRODUCTION = """\
# Files between stages

Generated from `dvc.yaml` and from the types of the rows. Each stage writes one folder, its *out*, which DVC keeps by
the hash of its content. No clock, host, absolute path or run id stands in an out: equal inputs give equal bytes.

Files that end in `.jsonl` hold one JSON object a line. Every row type is frozen, refuses unknown keys, and has a schema
version where it stands in a file by itself. Keys whose value is null are left out. Frames are integers, ranges are half
open, and rates are exact (`"30000/1001"`).
"""


class Content(NamedTuple):
    """One file of an out. ``row``: the type of its rows, or of the whole document."""

    name: str
    about: str
    row: type[BaseModel] | None = None


_TRAINED = (
    Content(
        "final/", "the trained policy as a Hugging Face folder (safetensors): the last checkpoint, or the best one"
    ),
    Content("checkpoint-STEP/", "the others, at each `save_steps`"),
    Content("checkpoints.jsonl", "one row a checkpoint", Checkpoint),
    Content("history.jsonl", "finite metrics of each logged step, and of measurements while training; no times"),
    Content("summary.json", "steps, parameters trained; of a watched row the checkpoint that was kept"),
)
#: Out to its files. Every out of ``dvc.yaml`` has to be here.
OUTS: dict[str, tuple[Content, ...]] = {
    "data/corpus": (
        Content("videos/", "the generated clips, H.264"),
        Content("annotations.jsonl", "their annotations, in the format that your own videos use"),
    ),
    "data/clips": (
        Content("manifest.jsonl", "one row for each clip that was accepted: a video, or a part of one", Clip),
        Content("rejects.jsonl", "one row for everything that was rejected", Reject),
        Content("summary.json", "counts"),
        Content("card.md", "the data card, for people"),
        Content("normalised/", "files that `ingest.normalise` encoded again"),
    ),
    "data/samples": (
        Content("SPLIT/TASK.jsonl", "the samples of one task and split", Sample),
        Content("rejects.jsonl", "clips that gave no sample of a task, with reasons", Reject),
        Content("summary.json", "counts, and what words alone tell"),
        Content("sheets/TASK.png", "contact sheets, for people"),
    ),
    "models/base": (
        Content("final/", "the policy that training starts from, as a Hugging Face folder"),
        Content("checkpoints.jsonl", "one row", Checkpoint),
    ),
    "models/${key}": (
        *_TRAINED,
        Content("rollouts.jsonl", "GRPO rows: rollouts of a few prompts before each checkpoint", RolloutGroup),
    ),
    "data/difficulty/${key}": (
        Content("train/TASK.jsonl", "the samples that were kept", Sample),
        Content("rollouts.jsonl", "how often each sample was answered rightly", Rolled),
        Content("summary.json", "counts by task"),
        Content("histogram.png", "difficulty by task, for people"),
    ),
    "scores/baselines": (Content("scores.json", "scores of random and constant replies, by task"),),
    "scores/${item}": (
        Content("scores.json", "by task: mean, interval, format, and the controls on black and shuffled video"),
        Content("predictions.jsonl", "one row a held-out sample", Score),
        Content("predictions_blank.jsonl", "the same on black video", Score),
        Content("predictions_shuffled.jsonl", "the same with the frames in another order", Score),
        Content("predictions_sampled.jsonl", "sampled replies, those to a sample together; only if asked for", Score),
        Content("history.jsonl", "copied from the model's folder, so that the summary depends on small folders only"),
    ),
    "reports/plots": (Content("scores.csv", "policy, task, mean, low, high"), Content("*.csv", "curves of training")),
    "reports/metrics.json": (Content("metrics.json", "what `dvc metrics show` and `dvc metrics diff` print"),),
}
#: Rows that stand inside other rows, and what lies beside a version's weights.
INSIDE: tuple[type[BaseModel], ...] = (
    Span,
    Event,
    Excerpt,
    Subject,
    Question,
    OpenQuestion,
    Timeline,
    Segment,
    Trace,
    Rollout,
    Usage,
    PromptTexts,
    SamplingRate,
)


def page(root: Path) -> str:
    """The whole page: a heading for each out, then one for each type of row."""
    lines = [INTRODUCTION]
    for out, writers in outs(root).items():
        lines += [f"## {_plain(out)}", "", f"Written by {' and '.join(map(code, writers))}.", ""]
        for content in OUTS[out]:
            about = (
                f"{content.about}; rows: [{content.row.__name__}](#{content.row.__name__.lower()})"
                if content.row
                else content.about
            )
            lines += [f"- {code(content.name)}: {about}"]
        lines += [""]
    rows = dict.fromkeys(content.row for contents in OUTS.values() for content in contents if content.row)
    lines += ["## Types of rows", ""]
    for row in (*rows, *INSIDE):
        lines += described(row)
    return joined(lines)


def outs(root: Path) -> dict[str, list[str]]:
    """Out to the stages that write it, in the order of ``dvc.yaml``.

    Raises:
        ValueError: an out is not described here.
    """
    stages: dict[str, Any] = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    found: dict[str, list[str]] = {}
    for name, stage in stages.items():
        body = stage.get("do", stage)
        for out in (*body.get("outs", ()), *body.get("metrics", ())):
            each = "" if "foreach" not in stage else "@POLICY" if "item" in out else "@ROW"
            found.setdefault(out, []).append(f"{name}{each}")
    if missing := sorted(set(found) - set(OUTS)):
        raise ValueError(f"docs/generators/files.py: OUTS: {missing[0]!r} of dvc.yaml is not described; add its files")
    return found


def described(row: type[BaseModel]) -> Iterator[str]:
    """The lines of one type: its docstring and its fields."""
    yield from (f"### {row.__name__}", "", prose(own_docstring(row)), "")
    for field in fields_of(row):
        optional = "" if field.required else " · optional"
        kind = re.sub(r"\btables?\b", linked(field.models[0], field.name), field.kind) if field.models else field.kind
        yield from definition(f"{code(field.name)} · {kind}{optional}", [prose(field.remark)] if field.remark else [""])


def linked(model: type[BaseModel], field: str) -> str:
    """Link to the type on this page, or to the key of ``params.yaml`` that the field copies."""
    if issubclass(model, Table):
        return f"[table of params.yaml](params.md#{field})"
    return f"[{model.__name__}](#{model.__name__.lower()})"


def _plain(out: str) -> str:
    return re.sub(r"\$\{(key|item)\}", lambda match: "ROW" if match[1] == "key" else "POLICY", out)
