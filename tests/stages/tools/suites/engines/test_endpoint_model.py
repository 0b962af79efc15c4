"""A model behind an endpoint: a real HTTP server that checks the pictures it receives, and fails on
request."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from stages.domain.core.frames import Frames
from stages.lib.video.reader import read_frames
from stages.params import Params, SampledParams, load_params
from stages.runtime.endpoint import client
from stages.runtime.endpoint.settings import JudgeError
from stages.tools.suites.asking import endpoint_engine
from stages.tools.suites.engines.endpoint import _read, content_of
from stages.tools.suites.engines.questions import Question
from stages.tools.suites.evaluate import evaluate
from stages.tools.suites.frames import load_at
from stages.tools.suites.published.choices import strict_choice
from tests.support.suites.coloured import about_colours, order, replies

KEY = "sk-test-0123456789abcdef"
COLOURS = ("red", "green", "blue")


class Model:
    """Handler of the endpoint: names the colour of the first picture; ``status`` may refuse a
    question by its text."""

    def __init__(self) -> None:
        self.url = ""
        self.status: Callable[[str, int], int] = lambda text, times: 200
        self.behind: Callable[[str], str] = lambda text: ""
        self.asked: Counter[str] = Counter()
        self.pictures: Counter[int] = Counter()
        self.wrong: list[str] = []
        self.most_under_way = self._under_way = 0
        self._lock = threading.Lock()

    def reply(self, key: str, body: dict[str, Any]) -> tuple[int, str]:
        with self._lock:
            self._under_way += 1
            self.most_under_way = max(self.most_under_way, self._under_way)
        try:
            time.sleep(0.02)
            *parts, text = body["messages"][0]["content"]
            with self._lock:
                self.asked[text["text"]] += 1
                self.pictures[len(parts)] += 1
                status = self.status(text["text"], self.asked[text["text"]])
            if key != f"Bearer {KEY}":
                return 401, ""
            if (body["model"], body["temperature"], body["max_tokens"]) != ("eye", 0, 48):
                self.wrong.append(json.dumps({**body, "messages": []}))
            return status, colour_of(parts[0]) + self.behind(text["text"])
        finally:
            with self._lock:
                self._under_way -= 1


def colour_of(part: dict[str, Any]) -> str:
    assert part["type"] == "image_url"
    kind, _, data = part["image_url"]["url"].partition(";base64,")
    assert kind == "data:image/jpeg"
    mean = np.asarray(Image.open(BytesIO(base64.b64decode(data)))).reshape(-1, 3).mean(axis=0)
    return f"a {COLOURS[int(mean.argmax())]} bar" if mean.max() > 60 else "I see nothing."


@contextmanager
def served() -> Iterator[Model]:
    model = Model()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, said = model.reply(self.headers.get("Authorization", ""), body)
            told = json.dumps({"choices": [{"message": {"role": "assistant", "content": said}}]}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(told)))
            self.end_headers()
            self.wfile.write(told)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        model.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield model
        finally:
            server.shutdown()
            thread.join()
    assert model.wrong == []


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[Model]:
    monkeypatch.setattr(client, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setenv("VIDBRIDGE_ENDPOINT_KEY", KEY)
    monkeypatch.setenv("VIDBRIDGE_ENDPOINT_CONCURRENCY", "3")
    monkeypatch.setenv("VIDBRIDGE_ENDPOINT_RETRIES", "1")
    with served() as running:
        yield running


@pytest.fixture
def ask(root: Path, videos: Path, tmp_path: Path, model: Model) -> Callable[..., dict[str, Any]]:
    params: Params = load_params(root / "params.yaml")

    def asked(each: int, *others: str, controls: int | None = 0, **changes: Any) -> dict[str, Any]:
        annotations = about_colours(tmp_path, each, *others)
        given = order(annotations, videos, tmp_path / "out", controls=controls, batch_size=None, **changes)
        engine = endpoint_engine(params, given, model.url, "eye", "r1", "jpeg")
        return evaluate(root, params, given, engine, baselines=False, against=None)

    return asked


def test_what_does_not_come_is_asked_again_and_never_scored(
    ask: Callable[..., dict[str, Any]], model: Model, tmp_path: Path
) -> None:
    def status(text: str, times: int) -> int:
        if "colour is it ? 0" in text:
            return 503 if times == 1 else 200  # comes with the second try
        return 500 if "colour is it ? 1" in text else 400 if "colour is it ? 2" in text else 200

    model.status = status
    result = ask(4, "gone", controls=None)
    assert result.scores["strict"].overall["accuracy"].mean == 100
    assert (result.answered, result.partial) == (6, True)
    assert model.most_under_way == 3
    assert set(model.pictures) == {2}, "one a second, at least two"
    reasons = {row.id: row.reason for row in result.unanswered if row.view == "video"}
    assert reasons["red-1"] == "no answer: HTTP 500 (attempt 2 of 2)"
    assert reasons["red-2"].startswith("--endpoint: http://127.0.0.1:")
    assert "answers 400" in reasons["red-2"]
    assert reasons["gone-3"].startswith("missing-file")
    assert set(reasons) == {f"{name}-{n}" for name in COLOURS for n in (1, 2)} | {f"gone-{n}" for n in range(4)}
    assert set(replies(tmp_path / "out", "predictions_blank.jsonl").values()) == {"I see nothing."}
    assert result.controls["blank"].gain["strict"]["accuracy"].mean == 100
    assert result.identity["model"] == {"name": "eye", "revision": "r1"}
    assert KEY not in (tmp_path / "out/scores.json").read_text()
    # Answered questions are not asked again.
    before = model.asked.copy()
    model.status = lambda text, times: 200
    again = ask(4, "gone", controls=None)
    assert (again.answered, len(again.missing)) == (12, 4)
    assert {text.split(" ? ")[1][0] for text, count in (model.asked - before).items()} == {"1", "2"}


def test_sampled_replies_have_a_temperature_and_seeds_of_their_own(
    ask: Callable[..., dict[str, Any]], model: Model, tmp_path: Path
) -> None:
    result = ask(1, sampled=SampledParams(replies=3, temperature=0.7))
    assert result.answered == 3, "greedy, at temperature 0"
    sent = [json.loads(body) for body in model.wrong]
    model.wrong.clear()
    assert [body["temperature"] for body in sent] == [0.7] * 9
    seeds = {body["seed"] for body in sent}
    assert len(seeds) == 9
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert result.sampled.answered == 9
    assert result.sampled.scores["strict"]["accuracy"].pass_at[3].mean == 100
    # A later call asks for one more of each, and for nothing else.
    ask(1, sampled=SampledParams(replies=4, temperature=0.7))
    more = [json.loads(body) for body in model.wrong]
    model.wrong.clear()
    assert len(more) == 3
    assert seeds.isdisjoint(body["seed"] for body in more)


def test_an_endpoint_that_is_down_is_not_asked_everything(
    ask: Callable[..., dict[str, Any]], model: Model, tmp_path: Path
) -> None:
    model.status = lambda text, times: 200 if "? 0 " in text or "? 1 " in text else 503
    result = ask(30)
    assert result.answered == 2, "of the first video; then it is down"
    assert len(result.unanswered) == 88
    assert any("not asked, since" in row.reason for row in result.unanswered), result.unanswered
    assert sum(model.asked.values()) < 90


def test_a_key_that_is_refused_ends_it_and_rows_stay(
    ask: Callable[..., dict[str, Any]], model: Model, tmp_path: Path
) -> None:
    model.status = lambda text, times: 401 if "? 3 " in text else 200
    with pytest.raises(JudgeError, match=r"^--endpoint: .* answers 401: .* set VIDBRIDGE_ENDPOINT_KEY$"):
        ask(4)
    assert 0 < len(replies(tmp_path / "out")) < 12


def test_a_reply_without_an_end_costs_its_own_question_only(
    ask: Callable[..., dict[str, Any]], model: Model, tmp_path: Path
) -> None:
    model.behind = lambda text: " and so on" * 10_000 if "? 1 " in text else ""
    result = ask(2)
    assert (result.answered, result.partial, len(result.unanswered)) == (3, True, 3)
    assert {row.reason for row in result.unanswered} == {
        f"a reply of {n:,} characters, at most 100,000 are kept" for n in (100_000 + len(f"a {c} bar") for c in COLOURS)
    }
    model.behind = lambda text: ""
    assert ask(2).answered == 6


def test_addresses_that_are_none(root: Path, tmp_path: Path) -> None:
    given = order(tmp_path, tmp_path, tmp_path)
    for url in ("127.0.0.1:8000", "http://user:secret@host/v1", "file:///etc/passwd"):
        with pytest.raises(JudgeError, match=r"^--endpoint: not a plain http") as refused:
            endpoint_engine(load_params(root / "params.yaml"), given, url, "eye", None, "jpeg")
        assert "secret" not in str(refused.value)


def test_frames_are_sent_as_pictures_or_as_a_video_of_exactly_them(videos: Path, tmp_path: Path) -> None:
    frames = load_at(videos / "deep/green.mp4", None, 6, None)
    [part] = content_of(frames, "mp4")
    assert part["type"] == "video_url"
    file = tmp_path / "sent.mp4"
    file.write_bytes(base64.b64decode(part["video_url"]["url"].partition(";base64,")[2]))
    pixels, _ = read_frames(file, range(6))
    assert np.abs(pixels.astype(int) - frames.pixels).mean() < 3
    with pytest.raises(IndexError, match="there are 6"):
        read_frames(file, [6])
    large = Frames(np.zeros((2, 1081, 1920, 3), np.uint8), (0, 1), 2, frames.rate)
    sent = Image.open(
        BytesIO(base64.b64decode(content_of(large, "jpeg")[0]["image_url"]["url"].partition(";base64,")[2]))
    )
    assert sent.size[0] * sent.size[1] <= 196 * 28 * 28
    assert sent.size[0] / sent.size[1] == pytest.approx(1920 / 1081, rel=0.02)


@pytest.mark.parametrize(
    ("message", "reply"),
    [
        ({"content": "I count them.\n</think>\n\nB"}, "I count them.\n</think>\n\nB"),
        ({"content": "B", "reasoning_content": "I count them."}, "B"),
        ({"content": None, "reasoning_content": "It may be B"}, "<think>It may be B"),
        ({"content": None, "reasoning": "It may be B"}, "<think>It may be B"),
        ({"content": None}, None),
    ],
)
def test_thinking_that_the_endpoint_sets_apart(message: dict[str, str | None], reply: str | None) -> None:
    """A reply that ends while it thinks is a reply with an empty answer, not an unanswered
    question."""
    response = httpx.Response(200, json={"choices": [{"message": {"role": "assistant", **message}}]})
    answer = _read(Question("q", "video", "v", "Which?"), 2, response)
    assert answer.reply == reply
    assert strict_choice(answer.reply or "", ("one", "two")) == ("B" if "B" in (message["content"] or "") else None)
