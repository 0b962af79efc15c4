"""Ask a registered policy about any video: its thinking, its answer, and whether the reply parses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stages.domain.prompts import render_prompt
from stages.domain.replies import parse_reply
from stages.params import load_params


@dataclass(frozen=True)
class Prediction:
    """What a policy said. ``thinking`` and ``answer`` are None when the reply does not parse; ``text`` is always whole."""

    text: str
    thinking: str | None
    answer: str | None
    #: Said to the user when the policy cannot be expected to know what it is looking at.
    caution: str | None


def predict(root: Path, video: Path, question: str, version: str) -> Prediction:
    """Load ``models:/<registered model>@<alias>`` or a version number, show it the video as it was trained to be shown one, and return
    what it says.

    Raises:
        FileNotFoundError: no such video.
        VideoError: the file is no readable video, or its frames are none that the model takes.
        TrackingError: the registry has no such version, its files are in neither cache nor remote, or it does not say how it is asked.
    """
    if not video.is_file():
        raise FileNotFoundError(f"{video}: no such video")
    from stages.learning.factory import device, load_model, use_threads
    from stages.learning.generate import generate
    from stages.learning.processor import UnfitFramesError
    from stages.tracking.servable import usage_of_version
    from stages.tracking.store import open_client
    from stages.tracking.versions import find_version, load_version
    from stages.video.edits import load_video
    from stages.video.errors import VideoError

    found = find_version(open_client(root), load_params(root / "params.yaml").gate.registered_model, version)
    usage = usage_of_version(found)
    frames = load_video(video, usage.sampled_frames)
    use_threads()
    model, processor = load_model(load_version(root, found), usage.model.precision)
    model.to(device())  # type: ignore[arg-type]
    prompt = render_prompt(question, usage.default_task, usage.prompt)
    try:
        text = generate(model, processor, [(prompt, frames)], max_new_tokens=usage.max_new_tokens, batch_size=1)[0]
    except UnfitFramesError as error:
        raise VideoError("unfit-frames", f"{video.name}: {error}") from error
    reply = parse_reply(text)
    return Prediction(text, reply and reply.thinking, reply and reply.answer, usage.caution)
