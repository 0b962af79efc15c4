"""Annotation files of every benchmark in small, in the field names of the public records that their
modules cite, with texts of our own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.domain.tasks.synthesis import synthesise
from stages.params import load_params
from tests.support.builders import SETTINGS, clip
from tests.support.checkout import ROOT

PARAMS = load_params(ROOT / "infra/recipes/tiny.yaml")


def video_mme(**changes: Any) -> dict[str, Any]:
    """lmms-lab/Video-MME at ead1408."""
    return {
        "video_id": "001",
        "duration": "short",
        "domain": "Knowledge",
        "sub_category": "Technology",
        "url": "https://www.youtube.com/watch?v=a",
        "videoID": "a",
        "question_id": "001-1",
        "task_type": "Counting Problem",
        "question": "What is on the table?",
        "options": ["A. Apples.", "B. Candles.", "C. Berries.", "D. Three kinds of fruit."],
        "answer": "B",
        **changes,
    }


def mvbench(**changes: Any) -> dict[str, Any]:
    """OpenGVLab/MVBench, json/action_antonym.json, as lmms_eval/tasks/mvbench/utils.py at 75571cf
    reads it."""
    return {
        "video": "86604.mp4",
        "question": "What happens?",
        "candidates": ["it falls", "it rises", "not sure"],
        "answer": "it rises",
        **changes,
    }


def dream(**changes: Any) -> dict[str, Any]:
    """omni-research/DREAM-1K at 99da78d, json/metadata.json."""
    return {
        "idx": 1,
        "video_file": "video/1.mp4",
        "source": "movie",
        "duration": 5.09,
        "description": "the red bar rises then grows",
        "events": ["the red bar rises", "the red bar grows"],
        "n_subjects": 1,
        "n_shots": 1,
        "n_events": 2,
        **changes,
    }


def tarsier(idx: int, reference: str, events: Sequence[str]) -> dict[str, Any]:
    """bytedance/tarsier at 63de87a, data/annotations/DREAM-1k.jsonl."""
    asked = [
        {"reference": None, "text": None, "type": "video", "video": {"video_file": "<placeholder>"}},
        {"reference": None, "text": "Describe it.", "type": "text", "video": None},
    ]
    told = [{"reference": reference, "text": "", "type": "text", "video": None}]
    return {
        "messages": [{"content": asked, "role": "user"}, {"content": told, "role": "assistant"}],
        "dataset": "DREAM/movie",
        "task": "video/caption",
        "idx": idx,
        "extra_info": {
            "duration": 5.09,
            "events": list(events),
            "n_events": len(events),
            "n_shots": 1,
            "n_subjects": 1,
        },
        "vid": idx,
    }


def carebench(**changes: Any) -> dict[str, Any]:
    """MCG-NJU/CaReBench, json/metadata.json, as tasks/captioning.py at f67d9aa reads it."""
    return {
        "video": "v.mp4",
        "caption": "the red bar rises",
        "events": ["the red bar rises"],
        "objects": ["red bar"],
        **changes,
    }


#: wchai/Video-Detailed-Caption at dc19e7e, VDCScore_qa/camera.jsonl.
VDC = {"v1": [{"question": "What moves?", "answer": "the red bar"}, {"question": "How?", "answer": "it rises"}]}
#: The public harness's form of it (lmms-eval at 75571cf).
VDC_HARNESS = {"video_name": "v1", "caption": "the red bar rises", "qa_list": VDC["v1"]}


def samples(task: str) -> list[dict[str, Any]]:
    """This project's own."""
    clips = [clip(0, split="test"), clip(1, "blue", "circle", ("falls", "shrinks"), split="test")]
    made = [sample for _, rows, _ in synthesise(clips, task, SETTINGS, 8, 7) for sample in rows]  # type: ignore[arg-type]
    return [sample.model_dump(mode="json", exclude_none=True) for sample in made]


def lines(file: Path, rows: Sequence[Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def predicted(folder: Path, replies: Mapping[str, str]) -> Path:
    return lines(folder / "predictions.jsonl", [{"id": item_id, "reply": reply} for item_id, reply in replies.items()])
