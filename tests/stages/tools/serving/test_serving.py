"""The champion behind MLflow's own loader."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stages.domain.core.frames import Frames
from stages.lib.inference.generate import generate
from stages.lib.inference.policy import Policy
from stages.lib.video.loader import load_video
from stages.params import load_params
from stages.runtime.workers import IsolatedWorker
from stages.tools.serving.refusal import Refused
from stages.tools.serving.requests import parse_rows
from stages.tools.serving.server import Refusal, batches
from tests.support.checkout import ROOT
from tests.support.projects.serving import (
    CLIP,
    QUESTION,
    RED,
    ROW,
    Running,
    ask,
    hungry_on_blue,
    refuses_in_time,
    running,
)


def test_it_answers_about_a_file_and_about_bytes_alike(champion: Any, videos: Path) -> None:
    sent = {
        colour: base64.b64encode((videos / f"deep/{colour}.mp4").read_bytes()).decode() for colour in ("red", "blue")
    }
    by_path, by_link, by_bytes, other, another = ask(
        champion,
        ROW,
        {"question": QUESTION, "video": "inner.mp4"},
        {"question": QUESTION, "video_base64": sent["red"]},
        {"question": QUESTION, "video_base64": sent["blue"]},
        {"question": QUESTION, "video": "deep/green.mp4"},
    )
    assert by_path == by_link == by_bytes == RED
    assert (other["answer"], another["thinking"]) == ("a blue bar", "it is green")


def test_it_is_asked_as_it_was_trained(
    champion: Any, project: Path, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames and prompts follow the parameters at the version's registration, not the present
    params.yaml."""
    asked: list[tuple[str, Any]] = []

    def listening(policy: Policy, items: Any, **settings: Any) -> list[str]:
        asked.extend(items)
        return generate(policy, items, **settings)

    monkeypatch.setattr("stages.lib.inference.generate.generate", listening)
    ask(
        champion,
        ROW,
        ROW | {"options": ["red", "blue"], "task": "mcqa"},
        ROW | {"task": "structured_caption"},
    )
    params = load_params(ROOT / "params.yaml")
    assert [prompt for prompt, _ in asked] == [
        f"{QUESTION}\n{params.prompt.instruction}",
        f"{QUESTION} red A blue B\n{params.prompt.instruction}",
        f"{QUESTION}\n{params.prompt.structured_instruction}",
    ]
    expected = load_video(videos / "deep/red.mp4", params.synthesize.sampled_frames)
    assert all(frames.indices == expected.indices and (frames.pixels == expected.pixels).all() for _, frames in asked)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"video": "../private.mp4"}, "may not leave the server's folder"),
        ({"video": "deep/../../private.mp4"}, "may not leave the server's folder"),
        ({"video": str(CLIP)}, "may not leave the server's folder"),
        ({"video": "link.mp4"}, "not a link that leads out"),
        ({"video": "out/private.mp4"}, "not a link that leads out"),
        ({"video": "nowhere.mp4"}, "'nowhere.mp4' is not a file in the server's folder"),
        ({"video": "deep"}, "is not a file in the server's folder"),
        ({"video": "x" * 5000}, "is not a file in the server's folder"),
        ({"video": "a\0b"}, "may not leave the server's folder"),
        ({"video": "text.mp4"}, "video: .*text.mp4.*send a video that ffmpeg can read"),
        ({"video_base64": "%%%"}, "video_base64: .*standard base64"),
        ({"video_base64": "AAAA"}, "video_base64: .*send a video that ffmpeg can read"),
        ({"video_base64": "A" * (4 << 20)}, "video_base64: 3.0 MB, 2 MB are allowed"),
        ({}, "none given; send one of them"),
        ({"video": "deep/red.mp4", "video_base64": "AAAA"}, "both given; send one of them"),
        ({"video": "deep/red.mp4", "question": ""}, "row 0: question"),
        ({"video": "deep/red.mp4", "question": "?" * 9000}, "row 0: question"),
        ({"video": "deep/red.mp4", "task": "poem"}, "row 0: task: 'poem' is not one; a request has one of .*caption"),
    ],
    ids=lambda value: (
        None if isinstance(value, str) else "-".join(f"{k}={v[:12]}" for k, v in value.items()) or "no-video"
    ),
)
def test_a_bad_request_is_refused_with_a_sentence(champion: Any, row: dict[str, str], says: str) -> None:
    with pytest.raises(Refusal, match=says) as refused:
        ask(champion, {"question": QUESTION, **row})
    assert refused.value.get_http_status_code() == 400
    sent = json.loads(refused.value.serialize_as_json())
    assert len(sent["message"]) < 500
    assert "Traceback" not in sent["message"]


def test_a_task_of_its_projects_own_is_a_name_and_its_code_is_not_needed(
    champion: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Refusal, match="row 0: task: 'count' is not one"):
        ask(champion, ROW | {"task": "count"})
    inner = champion.unwrap_python_model()
    usage = inner._usage.model_dump(mode="json") | {"tasks": ["count"]}
    monkeypatch.setattr(inner, "_usage", type(inner._usage).model_validate(usage))
    assert ask(champion, ROW | {"task": "count"}) == ask(champion, ROW)


def test_a_reply_that_takes_too_long_is_cut_off(champion: Any, videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = champion.unwrap_python_model()
    frames = load_video(videos / "deep/red.mp4", inner._usage.sampled_frames)
    with monkeypatch.context() as patch:
        # Frames at hand and a reply that would take minutes: what ends it is the limit on
        # generation.
        patch.setattr(inner, "_decoders", lambda file, field, ends: frames)
        patch.setattr(inner, "_limits", replace(inner._limits, timeout_s=0.3))
        patch.setattr(inner, "_usage", inner._usage.model_copy(update={"max_new_tokens": 100_000}))
        patch.setattr("stages.lib.inference.policy.end_ids", lambda *_: [])
        refuses_in_time(champion, "generation: not done within 0.3 s")
    assert ask(champion, ROW) == [RED]


def test_one_file_is_one_video_however_it_is_named(
    champion: Any, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = champion.unwrap_python_model()
    names = ["deep/red.mp4", "./deep/red.mp4", "deep/./red.mp4", "inner.mp4"]
    sent = base64.b64encode((videos / "deep/red.mp4").read_bytes()).decode()
    rows = [{"question": QUESTION, "video": name} for name in names] + [
        {"question": QUESTION, "video_base64": sent}
    ] * 3
    taken = inner.receive(parse_rows(rows))
    try:
        assert [len(taken.questions), len(taken.files)] == [7, 2]
    finally:
        taken.close()
    with pytest.raises(Refused, match=r"video_base64: .* MB are allowed"):
        inner.receive(parse_rows([{"question": QUESTION, "video_base64": base64.b64encode(b"x" * 900_000)}] * 3))


def test_frames_that_are_too_large_together_are_refused_and_none_are_shown(
    champion: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = sum(frames_of(champion, name).pixels.nbytes for name in ("deep/red.mp4", "deep/blue.mp4"))
    monkeypatch.setattr("stages.tools.serving.server.REQUEST_FRAME_BYTES", shown - 1)
    assert ask(champion, ROW) == [RED]
    with pytest.raises(Refusal, match="too large together"):
        ask(champion, ROW, ROW | {"video": "deep/blue.mp4"})


def test_questions_are_answered_in_batches_of_so_many_pixels(champion: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = frames_of(champion, "deep/red.mp4")
    items = [(str(number), frames) for number in range(5)]
    monkeypatch.setattr("stages.tools.serving.server.BATCH_PIXELS", frames.pixels.size // 3 * 2)
    assert [[name for name, _ in batch] for batch in batches(items)] == [["0", "1"], ["2", "3"], ["4"]]
    monkeypatch.setattr("stages.tools.serving.server.BATCH_PIXELS", 1)
    assert [len(batch) for batch in batches(items)] == [1] * 5
    assert ask(champion, ROW, ROW | {"video": "deep/blue.mp4"})[0] == RED


def frames_of(champion: Any, name: str) -> Frames:
    inner = champion.unwrap_python_model()
    return load_video(inner._limits.folder / name, inner._usage.sampled_frames)


def test_the_memory_of_a_decoder_is_bounded(champion: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    aside = IsolatedWorker(hungry_on_blue, memory_bytes=256 << 20)
    try:
        monkeypatch.setattr(champion.unwrap_python_model()._decoders, "_quick", aside)
        with pytest.raises(
            Refusal, match=r"video: too-large: blue.mp4: needs more memory than 1024 MB to decode; scale the video down"
        ):
            ask(champion, ROW | {"video": "deep/blue.mp4"})
        assert ask(champion, ROW) == [RED]
    finally:
        aside.close()


KEY = "abcdefghij-0123456789"


@pytest.fixture(scope="module")
def keyed(champion: Any) -> Iterator[Running]:
    """The application with a key, on the loopback address of IPv6, around the model that is
    loaded already."""
    with running(champion.unwrap_python_model(), KEY, "::1") as asked:
        yield asked


def test_a_key_is_demanded(keyed: Running) -> None:
    body = json.dumps({"dataframe_records": [ROW]}).encode()
    right = {"Authorization": f"Bearer {KEY}"}
    assert keyed("POST", "/invocations", body, right).document == {"predictions": [RED]}
    for headers in (
        {},
        {"Authorization": "Bearer no"},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": f"Bearer {KEY}x"},
    ):
        for method, path in (("POST", "/invocations"), ("GET", "/version"), ("GET", "/docs"), ("GET", "/openapi.json")):
            refused = keyed(method, path, body if method == "POST" else None, headers)
            assert refused.status == 401, (headers, path)
            assert refused.headers["www-authenticate"] == 'Bearer realm="vidbridge"'
            assert "send 'Authorization: Bearer KEY' with its VIDBRIDGE_SERVE_KEY" in refused.document["message"]
            assert KEY not in refused.text
    assert keyed("GET", "/ping").status == 200
    assert (
        keyed("GET", "/openapi.json", None, right).document["components"]["securitySchemes"]["key"]["scheme"]
        == "bearer"
    )
