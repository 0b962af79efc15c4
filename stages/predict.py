"""Ask a registered policy about any video: its thinking, its answer, and whether the reply parses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

from stages.domain.prompts import render_prompt
from stages.domain.records import TASK_NAMES, TaskName
from stages.domain.replies import parse_reply
from stages.params import PretrainedModelParams, load_params


@dataclass(frozen=True)
class Prediction:
    """What a policy said. ``thinking`` and ``answer`` are None when the reply does not parse; ``text`` is always whole."""

    text: str
    thinking: str | None
    answer: str | None
    #: Said to the user when the policy cannot be expected to know what it is looking at.
    caution: str | None


def predict(root: Path, video: Path, question: str, version: str, task: str = "caption") -> Prediction:
    """Load ``models:/<registered model>@<alias>`` or a version number, show it the video, and return what it says.

    Raises:
        FileNotFoundError: no such video.
        ValueError: no such task.
        VideoError: the file is no readable video.
        TrackingError: the registry has no such version, or its files are in neither cache nor remote.
    """
    if not video.is_file():
        raise FileNotFoundError(f"{video}: no such video")
    if task not in get_args(TaskName):
        raise ValueError(f"task: {task!r} is unknown; one of {', '.join(TASK_NAMES)}")
    from stages.learning.factory import device, load_model, use_threads
    from stages.learning.generate import generate
    from stages.tracking.gate import load_checkpoint
    from stages.video.edits import load_video

    params = load_params(root / "params.yaml")
    frames = load_video(video, params.synthesize.sampled_frames)
    use_threads()
    model, processor = load_model(load_checkpoint(root, version), params.model.precision)
    model.to(device())  # type: ignore[arg-type]
    prompt = render_prompt(question, cast("TaskName", task), params.prompt)
    text = generate(model, processor, [(prompt, frames)], max_new_tokens=params.evaluation.max_new_tokens, batch_size=1)[0]
    reply = parse_reply(text)
    generated = params.ingest.source == "data/corpus" and not isinstance(params.model, PretrainedModelParams)
    caution = "this model was trained on generated shapes only; on any other video its words mean nothing" if generated else None
    return Prediction(text, reply and reply.thinking, reply and reply.answer, caution)
