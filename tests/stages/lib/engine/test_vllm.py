"""The real rollout engine on this machine, beside this project's own decoding: another
implementation of the same models, of the other's parents."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pytest
import torch
from transformers import PreTrainedModel, ProcessorMixin

from stages.domain.core.frames import Frames
from stages.lib.engine import wire
from stages.lib.engine.client import Asked, EngineClient
from stages.lib.engine.errors import EngineLost, RequestRefused, WeightsError
from stages.lib.engine.process import EngineProcess, EngineSettings, engine_python
from stages.lib.engine.questions import asked
from stages.lib.engine.weights import WeightsFolder
from stages.lib.engine.wire import Draw, Reply, Sampling
from stages.lib.inference.decode import Limits, decode, greedy
from stages.lib.models.load import load_model, save_model
from stages.lib.models.processor import EncodedPrompt, encode_prompts, placeholder_ids
from stages.lib.models.settings import end_ids
from tests.support.checkout import IN_CHECKOUT, ROOT
from tests.support.processes.ended import assert_ended
from tests.support.servers.engine.real import ENVIRON, NEEDED
from tests.support.servers.engine.without_reset import LEFT_OUT
from tests.support.training.tiny import FAMILIES, frames, tiny

pytestmark = NEEDED

SETTINGS = EngineSettings("float32", 1024, videos=2, kv_cache_gb=0.25, video_gb=0.1)
#: In single precision on a CPU; the difference of two matrix libraries.
TOLERANCE = 1e-4
#: An odd number of frames, another shape, two videos in a prompt; and a video so long that time's
#: positions pass height's, and that its prompt fills a block of the prefix cache (128 tokens on a
#: CPU).
SHOWN: list[tuple[str, list[Frames]]] = [
    ("What colour is number 1?", [frames(1)]),
    ("What?", [frames(2, 7, (64, 32))]),
    ("And what colour is it?", [frames(3, 24, (64, 64))]),
    ("Which colour?", [frames(4, 6), frames(5, 4, (48, 64))]),
    ("What colour is number 2?", [frames(1)]),
]
GROUP, TEMPERATURE = 4, 0.7


class Case(NamedTuple):
    engine: EngineProcess
    folder: Path
    net: PreTrainedModel
    processor: ProcessorMixin

    @property
    def client(self) -> EngineClient:
        return self.engine.client

    def questions(self) -> list[Asked]:
        prompts = encode_prompts(self.processor, SHOWN)
        return [asked(self.processor, text, shown, p.ids) for (text, shown), p in zip(SHOWN, prompts, strict=True)]

    def sampling(self, **changes: Any) -> Sampling:
        ends = tuple(end_ids(self.net, self.processor))
        return replace(
            Sampling(12, ends, TEMPERATURE, 3, tuple(placeholder_ids(self.processor)), logps=True), **changes
        )


class Forced:
    """Draws the tokens of replies that exist."""

    def __init__(self, replies: Sequence[Sequence[int]]) -> None:
        self._left = [list(reply) for reply in replies]

    def __call__(self, logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        return torch.tensor([self._left[row].pop(0) if self._left[row] else 0 for row in rows])


def limits_of(sampling: Sampling) -> Limits:
    return Limits(sampling.max_tokens, sampling.ends, sampling.suppressed, sampling.min_tokens)


def own_logps(
    net: PreTrainedModel,
    processor: ProcessorMixin,
    prompts: Sequence[EncodedPrompt],
    replies: Sequence[Reply],
    sampling: Sampling,
) -> list[list[float]]:
    """Log-probabilities of the engine's tokens by this project's decoding."""
    forced = decode(
        net,
        processor,
        prompts,
        Forced([reply.ids for reply in replies]),
        limits_of(sampling),
        logps_at=sampling.temperature,
    )
    return [own.logps[: len(reply.ids)] for own, reply in zip(forced, replies, strict=True)]


def furthest(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> float:
    return max(float(np.abs(np.subtract(x, y)).max()) for x, y in zip(a, b, strict=True))


@contextmanager
def started(folder: Path, family: str, **options: Any) -> Iterator[Case]:
    net, processor = tiny(family)
    save_model(net, processor, folder)
    net, processor = load_model(folder, "fp32")
    environ = {**os.environ, **ENVIRON, **options.pop("environ", {})}
    with EngineProcess.start(folder, SETTINGS, environ=environ, **options) as engine:
        yield Case(engine, folder, net, processor)


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    with started(tmp_path_factory.mktemp("vllm") / "model", request.param) as case:
        yield case


def test_greedy_replies_are_equal(case: Case) -> None:
    sampling = case.sampling()
    # The client compares the prompts' ids.
    replies = case.client.generate(case.questions(), [Draw(n) for n in range(len(SHOWN))], sampling)
    own = decode(
        case.net, case.processor, encode_prompts(case.processor, SHOWN), greedy, limits_of(sampling), logps_at=1.0
    )
    assert [reply.ids for reply in replies] == [reply.ids for reply in own]
    assert furthest([reply.logps for reply in replies], [reply.logps for reply in own]) < TOLERANCE


def test_drawn_tokens_have_the_log_probabilities_of_this_projects_model(case: Case) -> None:
    draws = [Draw(n, f"7/{n}/{g}") for n in range(len(SHOWN)) for g in range(GROUP)]
    # Tokens that would be drawn often are not, exactly.
    common = case.client.generate(case.questions(), draws, case.sampling())
    suppressed = (*case.sampling().suppressed, *{token for reply in common for token in reply.ids[:1]})
    sampling = case.sampling(suppressed=suppressed)
    replies = case.client.generate(case.questions(), draws, sampling)
    assert not {token for reply in replies for token in reply.ids} & set(suppressed)
    prompts = encode_prompts(case.processor, SHOWN)
    own = own_logps(case.net, case.processor, [prompts[draw.question] for draw in draws], replies, sampling)
    assert furthest([reply.logps for reply in replies], own) < TOLERANCE
    assert len({tuple(reply.ids) for reply in replies}) > len(SHOWN) * (GROUP - 1)
    assert case.client.generate(case.questions(), draws, sampling) == replies, "a seed repeats its reply"
    for reply in replies:
        assert sampling.min_tokens < len(reply.ids) or reply.finish == "length"
        assert (reply.ids[-1] in sampling.ends) == (reply.finish == "end")
        assert not set(reply.ids[:-1]) & set(sampling.ends)


def test_what_it_cannot_do_is_refused_and_it_goes_on(case: Case, tmp_path: Path) -> None:
    question = case.questions()[:1]
    too_long = case.sampling(max_tokens=5000, ends=(), min_tokens=0)
    for sampling, said in (
        (too_long, "longer than its --max-model-len"),
        (case.sampling(temperature=9.0), "temperature"),
    ):
        with pytest.raises(RequestRefused, match=said):
            case.client.generate(question, [Draw(0, "s")], sampling)
    with pytest.raises(RequestRefused):
        case.client.generate([replace(question[0], prompt_ids=[1, 2, 3])], [Draw(0)], case.sampling())
    (tmp_path / "w").mkdir()
    with pytest.raises(WeightsError):
        case.client.load_weights(tmp_path / "w", "w")
    case.client.generate(question, [Draw(0, "s")], case.sampling())


def trained(case: Case, folder: WeightsFolder) -> tuple[PreTrainedModel, wire.Manifest, Path]:
    """The model after its vision tower was trained, and the folder of its weights."""
    net, _ = load_model(case.folder, "fp32")
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in net.base_model.visual.parameters():
            weight.add_(torch.randn_like(weight) * weight.std().nan_to_num() * 0.5)
    published = folder.publish("trained", net.save_pretrained, 1 << 20)
    return net, wire.read_manifest(published.folder), published.folder


def difference_after_training(case: Case, tmp_path: Path) -> float:
    """Furthest log-probability from the trained model's, in replies about videos that were asked
    about before the vision tower was trained."""
    sampling, draws = case.sampling(), [Draw(n, f"7/{n}") for n in range(len(SHOWN))]
    prompts = encode_prompts(case.processor, SHOWN)
    before = case.client.generate(case.questions(), draws, sampling)
    assert (
        furthest([r.logps for r in before], own_logps(case.net, case.processor, prompts, before, sampling)) < TOLERANCE
    )
    with WeightsFolder(tmp_path / "w", case.folder) as folder:
        net, manifest, at = trained(case, folder)
        moved = furthest([r.logps for r in before], own_logps(net, case.processor, prompts, before, sampling))
        assert moved > 100 * TOLERANCE, "the tower matters"
        case.client.load_weights(at, manifest.name)
        after = case.client.generate(case.questions(), draws, sampling, weights=manifest.name)
        return furthest([r.logps for r in after], own_logps(net, case.processor, prompts, after, sampling))


def test_a_trained_tower_is_seen_in_videos_that_were_asked_about_before(case: Case, tmp_path: Path) -> None:
    assert difference_after_training(case, tmp_path) < TOLERANCE
    # And back: the engine ends with the weights that it began with.
    with WeightsFolder(tmp_path / "back", case.folder) as folder:
        back = folder.publish("back", case.net.save_pretrained, 1 << 20)
        case.client.load_weights(back.folder, back.name)
    test_greedy_replies_are_equal(case)


def test_new_weights_of_every_part_draw(case: Case, tmp_path: Path) -> None:
    net, _ = load_model(case.folder, "fp32")
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(torch.randn_like(weight) * 0.02)
    sampling, draws = case.sampling(), [Draw(n, f"7/{n}") for n in range(len(SHOWN))]
    prompts = encode_prompts(case.processor, SHOWN)
    with WeightsFolder(tmp_path / "w", case.folder) as folder:
        moved = folder.publish("moved", net.save_pretrained, 1 << 20)
        case.client.load_weights(moved.folder, moved.name)
        after = case.client.generate(case.questions(), draws, sampling, weights=moved.name)
        back = folder.publish("back", case.net.save_pretrained, 1 << 20)
        case.client.load_weights(back.folder, back.name)
    drawn = [reply.logps for reply in after]
    assert furthest(drawn, own_logps(net, case.processor, prompts, after, sampling)) < TOLERANCE
    assert furthest(drawn, own_logps(case.net, case.processor, prompts, after, sampling)) > 100 * TOLERANCE


def test_without_a_reset_of_the_prefix_cache_old_keys_and_values_draw(tmp_path: Path) -> None:
    with _without("reset_prefix_cache", tmp_path / "model") as case:
        assert difference_after_training(case, tmp_path) > 10 * TOLERANCE


def test_without_a_reset_of_the_encoder_cache_the_engine_ends(tmp_path: Path) -> None:
    with (
        _without("reset_encoder_cache", tmp_path / "model") as case,
        pytest.raises(EngineLost, match="vLLM ended"),
    ):
        difference_after_training(case, tmp_path)
    # Without that of the multimodal cache nothing changes (2.9e-6): it holds processed pixels.


def _without(reset: str, folder: Path) -> AbstractContextManager[Case]:
    command = (str(engine_python(ENVIRON)), str(ROOT / "tests/support/servers/engine/without_reset.py"))
    return started(folder, "qwen2_5_vl", command=command, environ={LEFT_OUT: reset})


def test_it_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    net, processor = tiny("qwen2_5_vl")
    save_model(net, processor, tmp_path / "model")
    script = (
        "import time\n"
        "from pathlib import Path\n"
        "from stages.lib.engine.process import EngineProcess, EngineSettings\n"
        f"engine = EngineProcess.start(Path({str(tmp_path / 'model')!r}),"
        " EngineSettings('float32', 512, kv_cache_gb=0.25))\n"
        "print(engine.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, env={**IN_CHECKOUT, **ENVIRON}, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        server = psutil.Process(int(parent.stdout.readline()))
        pids = [server.pid, *(process.pid for process in server.children(recursive=True))]
        assert len(pids) > 1, "vLLM has processes of its own"
        parent.kill()
    assert_ended(*pids)


def test_a_server_that_is_killed_leaves_nothing(tmp_path: Path) -> None:
    with started(tmp_path / "model", "qwen2_5_vl") as case:
        server = psutil.Process(case.engine.pid)
        pids = [server.pid, *(process.pid for process in server.children(recursive=True))]
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(EngineLost):
            case.client.generate(case.questions()[:1], [Draw(0)], case.sampling())
    assert_ended(*pids)
