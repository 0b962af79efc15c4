"""Ask a registered policy about any video: its thinking, its answer, and whether the reply
parses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stages.domain.core.prompts import render_prompt
from stages.domain.core.replies import parse_reply
from stages.errors import InputError
from stages.runtime import paths

if TYPE_CHECKING:
    from stages.tracking.registry.servable import Usage
    from stages.tracking.session import Session


@dataclass(frozen=True)
class Prediction:
    """Reply of a policy. ``thinking`` and ``answer`` are None if the reply does not parse; ``text``
    is always whole."""

    text: str
    thinking: str | None
    answer: str | None
    #: Warning for the user if the policy was not trained on real videos.
    caution: str | None
    #: Warnings about the video, which is read as it is.
    warnings: tuple[str, ...] = ()


def check_video(video: Path) -> None:
    """Check a file before a model is loaded for it: its packets and its first frame.

    Raises:
        VideoError: it is not a readable video.
    """
    from stages.lib.video.probe import probe

    probe(video)


def predict(session: Session, video: Path, question: str, version: str, tell: Callable[[str], None]) -> Prediction:
    """Load a version and ask it about the video, with the settings of its training.

    ``version``: an alias or a number of the project's model, or ``models:/NAME@ALIAS``. ``tell`` is
    called with a line before each slow step.

    Raises:
        VideoError: the file is not a readable video, or the model cannot take its frames.
        TrackingError: the registry has no such version, its files are in neither cache nor remote,
            or it has no settings for requests.
    """
    check_video(video)
    tell("asking the registry")
    from stages.tracking.registry.named import find_named
    from stages.tracking.registry.servable import usage_of_version
    from stages.tracking.registry.versions import load_version

    registered = find_named(session, version)
    usage = usage_of_version(registered)
    tell(f"loading version {registered.number} of {registered.model} ({registered.stage})")
    return _ask(load_version(session.root, registered), usage, video, question)


def predict_with(folder: Path, video: Path, question: str, tell: Callable[[str], None]) -> Prediction:
    """Ask the model in a folder that `vidbridge export` wrote, without a registry.

    Raises:
        VideoError: as :func:`predict`.
        InputError: ``folder`` is not such a folder.
        TrackingError: its settings for requests are damaged.
    """
    check_video(video)
    from stages.tracking.registry.servable import parse_usage

    file = folder / paths.USAGE_FILE
    if not file.is_file():
        raise InputError(
            "--model",
            f"{str(folder)!r} has no {paths.USAGE_FILE}, which has the settings for requests",
            "name a folder that `vidbridge export` wrote",
        )
    usage = parse_usage(file.read_bytes(), str(file))
    tell(f"loading {folder}")
    return _ask(folder, usage, video, question)


def _ask(folder: Path, usage: Usage, video: Path, question: str) -> Prediction:
    from stages.lib.inference.generate import generate
    from stages.lib.inference.policy import ModelPolicy
    from stages.lib.models.load import device, load_model, use_threads
    from stages.lib.models.processor import UnfitFramesError
    from stages.lib.video.errors import VideoError
    from stages.lib.video.loader import load_video

    frames = load_video(video, usage.sampled_frames)
    use_threads()
    model, processor = load_model(folder, usage.model.precision)
    model.to(device())  # type: ignore[arg-type]
    prompt = render_prompt(question, usage.prompt, analysed=usage.analysed)
    try:
        policy = ModelPolicy(model, processor)
        text = generate(policy, [(prompt, frames)], max_new_tokens=usage.max_new_tokens, batch_size=1)[0]
    except UnfitFramesError as error:
        raise VideoError("unfit-frames", f"{video.name}: {error}") from error
    reply = parse_reply(text)
    return Prediction(text, reply and reply.thinking, reply and reply.answer, usage.caution, frames.warnings)
