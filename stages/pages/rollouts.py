"""Pages of rollouts for people: video, prompt, thinking, answer, verdict and reward, on a page that
opens offline.

Replies come from a model in training and may contain anything: templates escape them, and the page
sends nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from stages.domain.core.frames import Frames
from stages.domain.core.replies import parse_reply
from stages.domain.rl.rollouts import Rollout, RolloutGroup
from stages.pages.render import fill_page, film_strip


def rollout_page(stage: str, step: int, groups: Sequence[RolloutGroup], frames: Iterable[Frames]) -> str:
    """Render the page of a step's groups, such as MLflow keeps for each checkpoint. ``frames``:
    frames of each group's video."""
    styles = ("palette.css", "rollouts_page.css", "rollouts.css")
    return fill_page("rollouts.html.j2", styles=styles, stage=stage, step=step, groups=group_views(groups, frames))


def group_views(groups: Sequence[RolloutGroup], frames: Iterable[Frames]) -> list[dict[str, Any]]:
    """Content of ``rollout_group.html.j2`` for each group. Equal rollouts are listed once with
    their count, largest advantage first."""
    return [
        {
            "task": group.task,
            "sample_id": group.sample_id,
            "strip": film_strip(seen.pixels),
            "frames": len(seen.pixels),
            "prompt": group.prompt,
            "reference": group.reference,
            "size": len(group.rollouts),
            "teaches": any(rollout.advantage for rollout in group.rollouts),
            "not_judged": sum(rollout.score.value is None for rollout in group.rollouts),
            "replies": [_reply(rollout, count) for rollout, count in _distinct(group)],
        }
        for group, seen in zip(groups, frames, strict=True)
    ]


def _distinct(group: RolloutGroup) -> list[tuple[Rollout, int]]:
    counts = Counter(rollout.model_dump_json() for rollout in group.rollouts)
    rollouts = [(Rollout.model_validate_json(text), count) for text, count in counts.items()]
    return sorted(rollouts, key=lambda row: -row[0].advantage)


def _reply(rollout: Rollout, count: int) -> dict[str, Any]:
    score, parts = rollout.score, parse_reply(rollout.score.reply)
    return {
        "count": count,
        "advantage": rollout.advantage,
        "written": rollout.written is not None,
        "paid": rollout.paid,
        "thinking": parts.thinking if parts else None,
        "answer": parts.answer if parts else None,
        "text": score.reply,
        "value": score.value,
        "reason": score.reason,
        "parts": score.parts,
    }
