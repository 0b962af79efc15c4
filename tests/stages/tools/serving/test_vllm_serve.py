"""`vllm serve` by the command on the model card: another reader of videos, another processor and
another decoding show the model what it was trained on."""

from __future__ import annotations

import base64
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, ProcessorMixin
from transformers.video_utils import VideoMetadata

from stages.domain.core.frames import Frames
from stages.domain.core.prompts import render_prompt
from stages.lib.inference.decode import Limits, decode, greedy
from stages.lib.models.load import load_model, save_model
from stages.lib.models.processor import encode_prompts, placeholder_ids, video_metadata
from stages.lib.models.settings import end_ids
from stages.lib.video.encoder import ffmpeg_binary
from stages.lib.video.loader import load_video
from stages.tools.serving.export import CARD_FILE, card, export_version
from stages.tracking.registry.explain import explain
from stages.tracking.registry.servable import Usage, usage_of_version
from stages.tracking.registry.versions import CHAMPION
from stages.tracking.session import Session
from tests.support.projects.serving import QUESTION
from tests.support.servers.engine.real import NEEDED
from tests.support.servers.vllm import serving
from tests.support.training.tiny import COLOURS, tiny

pytestmark = NEEDED
#: For frames that are sent with their times.
TRUST = "--trust-request-mm-kwargs"
#: In single precision on a CPU; the difference of two matrix libraries.
TOLERANCE = 1e-3
QUESTIONS = (QUESTION, "What happens first?", "3 4 5")


class Told(NamedTuple):
    """Token ids of a prompt, with those of its video, and of the reply, with its end; the reply's
    log-probabilities."""

    prompt: list[int]
    reply: list[int]
    logps: list[float]


class Served(NamedTuple):
    """A model behind ``vllm serve``, what its card defined, and the same model here."""

    card: dict[str, Any]
    name: str
    usage: Usage
    net: PreTrainedModel
    processor: ProcessorMixin

    def here(self, prompt: str, frames: Frames) -> Told:
        """Tokens of a prompt and its reply by this project's own code, and log-probabilities."""
        limits = Limits(
            self.usage.max_new_tokens, tuple(end_ids(self.net, self.processor)), tuple(placeholder_ids(self.processor))
        )
        encoded = encode_prompts(self.processor, [(prompt, [frames])])
        (reply,) = decode(self.net, self.processor, encoded, greedy, limits, logps_at=1.0)
        return Told(list(encoded[0].ids), list(reply.ids), list(reply.logps))

    def there(self, prompt: str, video: str, settings: dict[str, Any]) -> Told:
        """The same by the server."""
        content = [{"type": "video_url", "video_url": {"url": video}}, {"type": "text", "text": prompt}]
        said = self.card["client"].chat.completions.create(
            model=self.name,
            messages=[{"role": "user", "content": content}],
            temperature=0,
            max_tokens=self.usage.max_new_tokens,
            logprobs=True,
            # As this project's own decoding never draws them.
            logit_bias={str(token): -100 for token in placeholder_ids(self.processor)},
            extra_body={"return_token_ids": True, **settings},
        )
        (choice,) = said.choices
        return Told(said.prompt_token_ids, choice.token_ids, [token.logprob for token in choice.logprobs.content])


def blocks(folder: Path, language: str) -> list[str]:
    """The code in the model card, in one language."""
    return re.findall(rf"```{language}\n(.*?)```", (folder / CARD_FILE).read_text(), re.DOTALL)


@contextmanager
def served(folder: Path, usage: Usage, log: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """Start the card's command, and run the card's code."""
    (command,) = blocks(folder, "bash")
    program, serve, *arguments = shlex.split(command)
    assert (program, serve) == ("vllm", "serve")
    assert f"`{TRUST}`" in (folder / CARD_FILE).read_text()
    net, processor = load_model(folder, usage.model.precision)
    _, asking, sending = blocks(folder, "python")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with serving([*arguments, TRUST], folder, log, 1024) as url:
        given: dict[str, Any] = dict(
            zip(("frames", "metadata"), shown(load_video(clip, usage.sampled_frames)), strict=True)
        )
        exec(asking.replace("http://127.0.0.1:8000/v1", url).replace("clip.mp4", str(clip)) + sending, given)
        with given["client"]:
            yield Served(given, arguments[arguments.index("--served-model-name") + 1], usage, net, processor)


def make_clip(path: Path, seconds: float, *more: str, source: str = "testsrc2=size=64x48:rate=8") -> Path:
    return encoded(path, "-f", "lavfi", "-i", f"{source}:duration={seconds}", *more)


def encoded(path: Path, *arguments: str) -> Path:
    command = [ffmpeg_binary(), "-v", "error", *arguments, "-pix_fmt", "yuv420p", str(path)]
    subprocess.run(command, check=True, timeout=60)
    return path


def file_url(path: Path) -> str:
    return "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()


def shown(frames: Frames) -> tuple[torch.Tensor, VideoMetadata]:
    """Frames and metadata as the card's code takes them."""
    return torch.from_numpy(frames.pixels.copy()).permute(0, 3, 1, 2), VideoMetadata(**video_metadata(frames))


def assert_equal(case: Served, prompt: str, frames: Frames, video: str, settings: dict[str, Any]) -> None:
    here, there = case.here(prompt, frames), case.there(prompt, video, settings)
    assert there.prompt == here.prompt
    assert there.reply == here.reply
    assert np.abs(np.subtract(there.logps, here.logps)).max() < TOLERANCE


def check(case: Served, clips: list[Path], folder: Path) -> None:
    """Files, as they are, and frames that no file shows; beside them what vLLM would show by
    itself."""
    prompts = [render_prompt(question, case.usage.prompt) for question in QUESTIONS]
    for clip in clips:
        frames = load_video(clip, case.usage.sampled_frames)
        for prompt in prompts:
            assert_equal(case, prompt, frames, file_url(clip), {})
    frames = load_video(clips[0], case.usage.sampled_frames)
    pixels = frames.pixels.copy()
    pixels[2:6] = 0
    masked = Frames(pixels, frames.indices, frames.total, frames.rate)
    short = load_video(make_clip(folder / "short.mp4", 0.5), case.usage.sampled_frames)
    flat = load_video(make_clip(folder / "flat.mp4", 2, "-vf", "setsar=3/2"), case.usage.sampled_frames)
    assert (len(set(short.indices)), flat.pixels.shape[2] > 64) == (4, True)
    for other in (masked, short, flat):
        assert_equal(case, prompts[0], other, *case.card["as_frames"](*shown(other)))
    # The control: the sampling that vLLM has for Qwen2.5-VL shows four frames of two seconds.
    own = {"video": {"video_backend": "qwen2_vl", "min_frames": 4, "max_frames": 768}}
    there = case.there(prompts[0], file_url(clips[0]), {"media_io_kwargs": own})
    assert len(there.prompt) < len(case.here(prompts[0], frames).prompt)


@pytest.fixture
def clips(videos: Path, tmp_path: Path) -> list[Path]:
    """Clips of which each frame differs; the last one has just as many as are shown."""
    return [
        make_clip(tmp_path / "moving.mp4", 2),
        make_clip(tmp_path / "long.mp4", 9, source="testsrc2=size=48x64:rate=30000/1001"),
        encoded(tmp_path / "rabbit.mp4", "-i", str(videos / "rabbit.mp4"), "-vf", "scale=128:72"),
        make_clip(tmp_path / "eight.mp4", 1),
    ]


def test_an_exported_champion(
    project: Path, videos: Path, clips: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = export_version(Session(project), CHAMPION, tmp_path / "exported")
    usage, folder = usage_of_version(exported.version), exported.folder
    with served(folder, usage, tmp_path / "log", clips[0], monkeypatch) as case:
        check(case, clips, tmp_path)
        case.card["prompt"] = render_prompt(QUESTION, usage.prompt)
        for colour in COLOURS:
            said = case.card["ask"](file_url(videos / f"deep/{colour}.mp4"))
            assert said == f"<think>it is {colour}</think><answer>a {colour} bar</answer>"


def test_a_qwen3_vl(project: Path, clips: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    explanation = explain(Session(project), CHAMPION)
    usage, folder = usage_of_version(explanation.version), tmp_path / "qwen3_vl"
    save_model(*tiny("qwen3_vl"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / CARD_FILE).write_text(card(explanation, usage, config, folder))
    with served(folder, usage, tmp_path / "log", clips[0], monkeypatch) as case:
        check(case, clips, tmp_path)
