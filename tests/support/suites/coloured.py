"""Annotations about the coloured videos, and orders to be put through them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stages.tools.suites.asking import EvaluationRequest
from tests.support.projects.serving import QUESTION
from tests.support.suites.annotations import dream, lines, video_mme
from tests.support.training.tiny import COLOURS

OPTIONS = [f"{letter}. a {colour} bar" for letter, colour in zip("ABC", COLOURS, strict=True)] + ["D. none of them"]


def about_colours(folder: Path, each: int, *others: str) -> Path:
    """Video-MME's rows: `each` questions about each of the three videos, and as many about these
    others."""
    names = (*COLOURS, *others)
    rows = [
        video_mme(
            question_id=f"{name}-{number}",
            videoID=name,
            question=f"{QUESTION} {number}",
            options=OPTIONS,
            answer="ABCD"[min(place, 3)],
            duration=("short", "long")[number % 2],
        )
        # Not together: an engine has to bring them together.
        for number in range(each)
        for place, name in enumerate(names)
    ]
    return lines(folder / "videomme.jsonl", rows)


def captions(folder: Path) -> Path:
    """DREAM-1K's rows about the three videos."""
    rows = [
        dream(
            idx=number,
            video_file=f"video/{colour}.mp4",
            description=f"the {colour} bar rises",
            events=[f"the {colour} bar rises"],
        )
        for number, colour in enumerate(COLOURS)
    ]
    return lines(folder / "metadata.json", rows)


def order(annotations: Path, videos: Path, out: Path, **changes: Any) -> EvaluationRequest:
    given = {"controls": None, "max_new_tokens": None, "batch_size": 5, "benchmark": "video-mme", **changes}
    return EvaluationRequest(annotations=annotations, videos=videos, out=out, **given)


def replies(folder: Path, file: str = "predictions.jsonl") -> dict[str, str]:
    """As they stand on disk, none twice."""
    rows = [json.loads(line) for line in (folder / file).read_text().splitlines()]
    found = {row["id"]: row["reply"] for row in rows}
    assert len(found) == len(rows)
    return found
