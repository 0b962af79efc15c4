"""The protocol of a rollout engine over a real socket: what is sent, what is refused, and how it is
said."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from stages.lib.engine import wire
from stages.lib.engine.client import Asked, EngineClient
from stages.lib.engine.errors import (
    EngineError,
    EngineLost,
    EngineMemory,
    EngineMismatch,
    KeyRefused,
    PromptMismatch,
    RequestRefused,
    StaleWeights,
    WeightsError,
)
from stages.lib.engine.questions import asked
from stages.lib.engine.wire import Draw, Question, Reply, Sampling, Video, WireError
from stages.lib.engine_server.app import OutOfMemory, Refused
from stages.lib.inference.decode import Limits, SeededDraws, decode, greedy
from stages.lib.models.load import load_model, save_model
from stages.lib.models.processor import encode_prompts, placeholder_ids
from stages.lib.models.settings import end_ids
from tests.support.servers.engine.stand_in import HfEngine, Served, served
from tests.support.training.tiny import frames, tiny

SHOWN = [("What?", [frames(1)]), ("Where?", [frames(2, 6)]), ("Which one?", [frames(1), frames(3, 5, (64, 32))])]
VIDEO = Video(np.zeros((2, 4, 4, 3), np.uint8), {"fps": 2.0})


def save_tiny(family: str, folder: Path) -> Path:
    model, processor = tiny(family)
    save_model(model, processor, folder)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("qwen2_5_vl", tmp_path_factory.mktemp("engine") / "model")


class Scripted:
    """An engine that does as it is told, and remembers what it was asked."""

    versions: ClassVar[dict[str, str]] = {}
    model, device = "m", "none"

    def __init__(self, raised: Exception | None = None) -> None:
        self.raised = raised
        self.loaded: list[Path] = []
        self.shown: list[Sequence[Video]] = []
        self.entered = threading.Event()
        self.release: threading.Event | None = None
        self.cancelled = threading.Event()

    async def generate(
        self, question: Question, videos: Sequence[Video], seeds: Sequence[str | None], sampling: Sampling
    ) -> tuple[list[int], list[Reply]]:
        self.entered.set()
        self.shown.append(videos)
        if self.raised is not None:
            raise self.raised
        try:
            while self.release is not None and not self.release.is_set():
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return list(question.prompt_ids), [Reply([len(self.loaded)], [], "end") for _ in seeds]

    async def load_weights(self, folder: Path) -> None:
        if self.raised is not None:
            raise self.raised
        self.loaded.append(folder)


@pytest.fixture
def scripted() -> Iterator[tuple[Scripted, Served]]:
    engine = Scripted()
    with served(engine, weights="w0", video_bytes=20_000) as at:
        yield engine, at


def weights_in(folder: Path, name: str, size: int = 3) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(b"x" * size)
    wire.Manifest(name, {"model.safetensors": size}).write(folder)
    return folder


ASKED = Asked((7, 8), (VIDEO,))
SAMPLING = Sampling(4, (0,))


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_replies_are_those_of_this_projects_own_decoding(family: str, tmp_path: Path) -> None:
    saved = save_tiny(family, tmp_path / "model")
    net, processor = load_model(saved, "fp32")
    prompts = encode_prompts(processor, SHOWN)
    ends, never = tuple(end_ids(net, processor)), tuple(placeholder_ids(processor))
    questions = [asked(processor, text, shown, p.ids) for (text, shown), p in zip(SHOWN, prompts, strict=True)]
    numbers = [2, 0, 0, 1, 2]
    seeds = [f"7/{n}" for n in range(len(numbers))]
    limits = Limits(6, ends, never, 2)
    drawn = decode(
        net,
        processor,
        [prompts[n] for n in numbers],
        SeededDraws(seeds, 0.7, net.device),
        limits,
        logps_at=0.7,
    )
    best = decode(net, processor, prompts, greedy, limits)
    with served(HfEngine(saved)) as at, at.client() as client:
        sampling = Sampling(6, ends, 0.7, 2, never, logps=True)
        replies = client.generate(questions, [Draw(n, seed) for n, seed in zip(numbers, seeds, strict=True)], sampling)
        assert [reply.ids for reply in replies] == [reply.ids for reply in drawn]
        for reply, own in zip(replies, drawn, strict=True):
            np.testing.assert_allclose(reply.logps, own.logps, atol=1e-5)
            assert reply.finish == ("end" if own.ids[-1] in ends else "length")
        # One video occurs twice.
        assert client.health().held_videos == 3
        greedily = client.generate(questions, [Draw(n) for n in range(3)], replace(sampling, logps=False))
        assert [reply.ids for reply in greedily] == [reply.ids for reply in best]
        assert not any(reply.logps for reply in greedily)


def test_other_prompt_ids_are_an_error_that_names_the_place(saved: Path) -> None:
    _, processor = load_model(saved, "fp32")
    (prompt,) = encode_prompts(processor, SHOWN[:1])
    wrong = [*prompt.ids[:5], prompt.ids[5] + 1, *prompt.ids[6:]]
    with served(HfEngine(saved)) as at, at.client() as client:
        with pytest.raises(PromptMismatch, match=r"part at token 5"):
            client.generate([asked(processor, *SHOWN[0], wrong)], [Draw(0)], SAMPLING)
        with pytest.raises(PromptMismatch, match=f"part at token {len(prompt.ids)}"):
            client.generate([asked(processor, *SHOWN[0], [*prompt.ids, 1])], [Draw(0)], SAMPLING)
        with pytest.raises(RequestRefused, match="the model reads 4096"):
            client.generate([asked(processor, *SHOWN[0])], [Draw(0)], replace(SAMPLING, max_tokens=4096))


def test_loaded_weights_draw_and_others_are_refused(saved: Path, tmp_path: Path) -> None:
    other, processor = tiny("qwen2_5_vl", seed=1)
    save_model(other, processor, tmp_path / "w1")
    wire.Manifest("w1", {"model.safetensors": (tmp_path / "w1/model.safetensors").stat().st_size}).write(
        tmp_path / "w1"
    )
    question = asked(processor, *SHOWN[0])
    sampling = replace(SAMPLING, logps=True)
    with served(HfEngine(saved), weights="w0") as at, at.client() as client:
        (before,) = client.generate([question], [Draw(0)], sampling, weights="w0")
        with pytest.raises(StaleWeights, match=r"it holds the weights 'w0', and 'w1' should draw"):
            client.generate([question], [Draw(0)], sampling, weights="w1")
        assert client.load_weights(tmp_path / "w1", "w1").weights == "w1"
        (after,) = client.generate([question], [Draw(0)], sampling, weights="w1")
    assert before.logps != after.logps


def test_videos_are_sent_once_and_again_when_they_were_pushed_out(scripted: tuple[Scripted, Served]) -> None:
    engine, at = scripted
    big = [Video(np.full((1, 50, 50, 3), n, np.uint8), {"n": n}) for n in range(4)]
    with at.client() as client:
        sent: list[str] = []
        client._http.event_hooks["request"] = [lambda request: sent.append(request.method)]
        for video in (big[0], big[0], big[1]):
            client.generate([Asked((1,), (video,))], [Draw(0, "s")] * 3, SAMPLING)
        assert sent.count("PUT") == 2
        client.generate([Asked((1,), (big[2],))], [Draw(0)], SAMPLING)
        assert client.health().held_videos == 2, "three of them are more than the limit"
        client.generate([Asked((1,), (big[0], big[2]))], [Draw(0)], SAMPLING)
        np.testing.assert_array_equal(engine.shown[-1][0].pixels, big[0].pixels)
        assert engine.shown[-1][0].metadata == {"n": 0}
        with pytest.raises(EngineMemory, match="cannot hold the videos of one request"):
            client.generate([Asked((1,), big)], [Draw(0)], SAMPLING)
        with pytest.raises(EngineMemory, match="22,500 bytes"):
            client.generate([Asked((1,), (Video(np.zeros((3, 50, 50, 3), np.uint8), {}),))], [Draw(0)], SAMPLING)


def test_weights_wait_for_replies_in_progress_and_later_replies_for_them(
    scripted: tuple[Scripted, Served], tmp_path: Path
) -> None:
    engine, at = scripted
    engine.release = threading.Event()
    folder = weights_in(tmp_path / "w1", "w1")
    with at.client() as client:
        found: dict[str, Any] = {}

        def ask(name: str) -> None:
            found[name] = client.generate([ASKED], [Draw(0)], SAMPLING)[0].ids

        first = threading.Thread(target=ask, args=["first"])
        first.start()
        assert engine.entered.wait(10)
        load = threading.Thread(target=lambda: found.update(load=client.load_weights(folder, "w1")))
        load.start()
        load.join(0.2)
        later = threading.Thread(target=ask, args=["later"])
        later.start()
        later.join(0.2)
        assert not found
        engine.release.set()
        for thread in (first, load, later):
            thread.join(10)
    assert found["first"] == [0]
    assert found["later"] == [1]
    assert found["load"].weights == "w1"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(b"xx"), "has 2 bytes of 3: it is half-written"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no bytes of 3"),
        (lambda folder: (folder / wire.MANIFEST).unlink(), "holds no weights.json"),
        (lambda folder: (folder / wire.MANIFEST).write_text('{"name": "w1", "fi'), "cannot be read"),
        (lambda folder: weights_in(folder, "w7"), "holds the weights 'w7', not 'w1'"),
    ],
    ids=["half a file", "no file", "no manifest", "half a manifest", "others"],
)
def test_incomplete_weights_are_not_loaded(
    scripted: tuple[Scripted, Served], tmp_path: Path, change: Any, said: str
) -> None:
    engine, at = scripted
    change(weights_in(tmp_path / "w1", "w1"))
    with at.client() as client:
        with pytest.raises(WeightsError, match=said):
            client.load_weights(tmp_path / "w1", "w1")
        assert not engine.loaded
        assert client.health().weights == "w0"
        # The old ones still draw.
        client.generate([ASKED], [Draw(0)], SAMPLING, weights="w0")


def test_weights_that_failed_to_load_draw_nothing(scripted: tuple[Scripted, Served], tmp_path: Path) -> None:
    engine, at = scripted
    engine.raised = OutOfMemory("no room for the weights")
    with at.client() as client:
        with pytest.raises(EngineMemory, match="no room for the weights"):
            client.load_weights(weights_in(tmp_path / "w1", "w1"), "w1")
        engine.raised = None
        for name in ("w0", "w1"):
            with pytest.raises(StaleWeights, match="it holds the weights ''"):
                client.generate([ASKED], [Draw(0)], SAMPLING, weights=name)
        client.load_weights(tmp_path / "w1", "w1")
        client.generate([ASKED], [Draw(0)], SAMPLING, weights="w1")


@pytest.mark.parametrize(
    ("raised", "kind"),
    [(Refused("too long: 5000 > 4096"), RequestRefused), (OutOfMemory("CUDA out of memory"), EngineMemory)],
)
def test_what_the_engine_raises_reaches_the_client(raised: Exception, kind: type[EngineError]) -> None:
    with served(Scripted(raised)) as at, at.client() as client:
        for _ in range(2):
            with pytest.raises(kind, match=str(raised)):
                client.generate([ASKED], [Draw(0)], SAMPLING)


def test_a_key_is_asked_for() -> None:
    with served(Scripted(), key="secret", tcp=True) as at:
        with at.client(key="secret") as client:
            client.generate([ASKED], [Draw(0)], SAMPLING)
        for key in ("other", "secret2", None, "sécret"[:1]):
            with at.client(key=key) as client:
                for call in (client.health, lambda c=client: c.generate([ASKED], [Draw(0)], SAMPLING)):
                    with pytest.raises(KeyRefused, match="VIDBRIDGE_ENGINE_KEY") as caught:
                        call()
                    assert "secret" not in str(caught.value)


def test_other_protocols_and_other_servers_are_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(Scripted(), tcp=True) as at:
        with at.client() as client:
            client._http.headers[wire.HEADER] = "0"
            with pytest.raises(EngineMismatch, match="speaks protocol 1, the client 0"):
                client.health()
        monkeypatch.setattr(Scripted, "versions", {"vllm": "0.31.7"})
        with at.client() as client, pytest.raises(EngineMismatch, match=r"runs vLLM 0.31.7"):
            client.health()
        monkeypatch.setattr(wire, "PROTOCOL", 2)
        with at.client() as client:
            client._http.headers[wire.HEADER] = "1"
            with pytest.raises(EngineMismatch, match="speaks protocol 2, the client 1"):
                client.health()
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as other:
        threading.Thread(target=other.handle_request, daemon=True).start()
        address = f"http://127.0.0.1:{other.server_port}"
        with EngineClient(address) as client, pytest.raises(EngineMismatch, match="is not a rollout engine"):
            client.health()


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/generate", b"{}"),
        ("POST", "/generate", b'{"questions": [], "draws": [{"question": 0, "seed": null}]}'),
        ("POST", "/weights", b"[]"),
        ("PUT", "/videos/abc", b""),
        ("PUT", "/videos/abc", b"\0\0\0\2{}123"),
        ("PUT", f"/videos/{'0' * 64}", VIDEO.body),
        ("PUT", f"/videos/{VIDEO.digest}", VIDEO.body[:-1]),
    ],
)
def test_malformed_messages_are_refused(method: str, path: str, body: bytes) -> None:
    with served(Scripted()) as at, at.client() as client, pytest.raises(RequestRefused):
        client._send(method, path, body)


def test_a_client_that_leaves_is_not_worked_for(scripted: tuple[Scripted, Served], tmp_path: Path) -> None:
    engine, at = scripted
    engine.release = threading.Event()
    with at.client(timeout_s=0.3) as client, pytest.raises(EngineLost, match=r"no answer to /generate within 0.3 s"):
        client.generate([ASKED], [Draw(0)], SAMPLING)
    assert engine.cancelled.wait(10)
    with at.client() as client:
        client.load_weights(weights_in(tmp_path / "w1", "w1"), "w1")


# httpcore does not close a Unix socket that it could not connect.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_engine_that_is_not_there(tmp_path: Path) -> None:
    for address in (f"unix:{tmp_path / 'none'}", "http://127.0.0.1:9"):
        with EngineClient(address) as client, pytest.raises(EngineLost, match="no engine answers there"):
            client.health()


def test_messages_survive_the_way() -> None:
    request = wire.Request(
        (Question((1, 2), ("a",)), Question((3,), ())),
        (Draw(1, "s"), Draw(0)),
        Sampling(3, (1, 2), 0.7, 1, (4,), logps=True),
        "w",
    )
    assert wire.Request.decode(request.encode()) == request
    answer = wire.Answer([[1], [2, 3]], [Reply([1], [-0.1 / 3], "length")])
    assert wire.Answer.decode(answer.encode()) == answer
    pixels = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)[::-1]
    video = Video(pixels, {"fps": 1 / 3, "frames_indices": [0, 4]})
    read = Video.from_body(video.body)
    np.testing.assert_array_equal(read.pixels, pixels)
    assert (read.metadata, read.digest) == (video.metadata, video.digest)
    assert Video(pixels, {"fps": 0.5, "frames_indices": [0, 4]}).digest != video.digest, "the clock is part of it"
    with pytest.raises(WireError, match="question 2 of 2"):
        wire.Request.decode(replace(request, draws=(Draw(2),)).encode())
