"""The champion, asked: through MLflow's own loader always, over HTTP from a fresh clone among the slow tests."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.processes.prefect_server import free_port
from stages.domain.core.frames import Frames
from stages.lib.inference.generate import generate
from stages.lib.rows.samples import InputError
from stages.lib.video.encoder import ffmpeg_binary
from stages.lib.video.loader import load_video
from stages.params import load_params
from stages.runtime.workers import Aside
from stages.tools.serving.export import card, publish
from stages.tools.serving.files import open_named
from stages.tools.serving.limits import key_from_environment, limits_from_environment
from stages.tools.serving.refusal import Refused
from stages.tools.serving.requests import parse_rows
from stages.tools.serving.server import Refusal, answer_row, batches
from stages.tools.serving.videos import keep_base64
from stages.tools.suites.engines.models import choose
from stages.tracking.lineage.uri import DATABASE, TrackingError
from stages.tracking.registry.explain import explain
from stages.tracking.registry.register import register
from stages.tracking.registry.servable import USAGE, usage_of
from stages.tracking.registry.versions import CHAMPION
from stages.tracking.runs.run import TAG
from stages.tracking.runs.store import open_client
from tests.support.checkout import ROOT
from tests.support.repository import git
from tests.support.serving_project import (
    CLIP,
    MODEL,
    QUESTION,
    RED,
    ROW,
    URI,
    Running,
    as_the_project,
    environment,
    hang_on_blue,
    hungry_on_blue,
    make_video_folder,
    post,
    request,
    running,
)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video_folder(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def project(serving_root: Path) -> Iterator[Path]:
    with as_the_project(serving_root) as root:
        yield root


@pytest.fixture(scope="module")
def champion(project: Path, videos: Path) -> Iterator[Any]:
    """What `mlflow.pyfunc.load_model` makes of the alias."""
    import mlflow

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIDBRIDGE_SERVE_VIDEOS", str(videos))
        patch.setenv("VIDBRIDGE_SERVE_MAX_MB", "2")
        # The registry follows; one that is set by itself would stay for other tests.
        mlflow.set_tracking_uri(f"sqlite:///{project / DATABASE}")
        try:
            loaded = mlflow.pyfunc.load_model(URI)
            yield loaded
            loaded.unwrap_python_model().close()
        finally:
            mlflow.set_tracking_uri(None)


def ask(model: Any, *rows: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows as they come over HTTP."""
    from mlflow.pyfunc.scoring_server import infer_and_parse_data

    answered: list[dict[str, Any]] = model.predict(
        infer_and_parse_data({"dataframe_records": list(rows)}, model.metadata.get_input_schema())
    )
    return answered


@pytest.mark.slow
def test_a_version_is_an_ordinary_folder_and_what_mlflow_needs(champion: Any, project: Path, tmp_path: Path) -> None:
    import mlflow
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    added = {"MLmodel", "served.py", "vidbridge.json"}
    folder = Path(mlflow.artifacts.download_artifacts(URI, dst_path=str(tmp_path)))
    ours = {path.name for path in (project / "made").iterdir()}
    assert {path.name for path in folder.iterdir()} == ours | added | {"registered_model_meta"}
    listed = {item.path: item.file_size for item in get_artifact_repository(URI).list_artifacts(None)}
    assert set(listed) == ours | added
    assert {name: (folder / name).stat().st_size for name in listed} == listed
    # Nothing in it is a pickle, and one file alone is to be had.
    assert "python_model" not in (folder / "MLmodel").read_text()
    assert mlflow.models.get_model_info(URI).signature.inputs.input_names()[0] == "question"
    # By content alone there is nothing but the content.
    source = mlflow.MlflowClient().get_model_version(MODEL, "1").source
    (tmp_path / "bare").mkdir()
    get_artifact_repository(source).download_artifacts("", str(tmp_path / "bare"))
    assert {path.name for path in (tmp_path / "bare").iterdir()} == ours


def test_it_answers_about_a_file_and_about_bytes_alike(champion: Any, videos: Path) -> None:
    sent = {colour: base64.b64encode((videos / f"deep/{colour}.mp4").read_bytes()).decode() for colour in ("red", "blue")}
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


def test_it_is_asked_as_it_was_trained(champion: Any, project: Path, videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames and prompts are those of the parameters that the version was registered with, whatever params.yaml says now."""
    asked: list[tuple[str, Any]] = []

    def listening(model: Any, processor: Any, items: Any, **settings: Any) -> list[str]:
        asked.extend(items)
        return generate(model, processor, items, **settings)

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


def test_a_reply_that_does_not_parse_comes_whole() -> None:
    assert answer_row("<think>red</think> red") == {"thinking": None, "answer": None, "reply": "<think>red</think> red"}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"video": "../private.mp4"}, "may not leave the server's folder"),
        ({"video": "deep/../../private.mp4"}, "may not leave the server's folder"),
        ({"video": str(CLIP)}, "may not leave the server's folder"),
        ({"video": "link.mp4"}, "not a link that leads out"),
        ({"video": "out/private.mp4"}, "not a link that leads out"),
        ({"video": "nowhere.mp4"}, "'nowhere.mp4' is no file in the server's folder"),
        ({"video": "deep"}, "is no file in the server's folder"),
        ({"video": "x" * 5000}, "is no file in the server's folder"),
        ({"video": "a\0b"}, "may not leave the server's folder"),
        ({"video": "text.mp4"}, "video: .*text.mp4.*send a video that ffmpeg can read"),
        ({"video_base64": "%%%"}, "video_base64: .*standard base64"),
        ({"video_base64": "AAAA"}, "video_base64: .*send a video that ffmpeg can read"),
        ({"video_base64": "A" * (4 << 20)}, "video_base64: 3.0 MB, 2 MB are allowed"),
        ({}, "none given; send one of them"),
        ({"video": "deep/red.mp4", "video_base64": "AAAA"}, "both given; send one of them"),
        ({"video": "deep/red.mp4", "question": ""}, "row 0: question"),
        ({"video": "deep/red.mp4", "question": "?" * 9000}, "row 0: question"),
        ({"video": "deep/red.mp4", "task": "poem"}, "row 0: task: .*'caption'"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(f"{k}={v[:12]}" for k, v in value.items()) or "no-video",
)
def test_a_bad_request_is_refused_with_a_sentence(champion: Any, row: dict[str, str], says: str) -> None:
    with pytest.raises(Refusal, match=says) as refused:
        ask(champion, {"question": QUESTION, **row})
    assert refused.value.get_http_status_code() == 400
    sent = json.loads(refused.value.serialize_as_json())
    assert len(sent["message"]) < 500
    assert "Traceback" not in sent["message"]


def test_too_many_rows_are_refused() -> None:
    with pytest.raises(Refused, match="rows: 17 in one request; send 1 to 16"):
        parse_rows([{"question": QUESTION, "video": "a.mp4"}] * 17)


def test_a_reply_that_takes_too_long_is_cut_off(champion: Any, videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = champion.unwrap_python_model()
    frames = load_video(videos / "deep/red.mp4", inner._usage.sampled_frames)
    with monkeypatch.context() as patch:
        # Frames at hand and a reply that would take minutes: what ends it is the limit on generation.
        patch.setattr(inner, "_decoders", lambda file, field, ends: frames)
        patch.setattr(inner, "_limits", replace(inner._limits, timeout_s=0.3))
        patch.setattr(inner, "_usage", inner._usage.model_copy(update={"max_new_tokens": 100_000}))
        patch.setattr("stages.lib.models.settings.end_ids", lambda *_: None)
        refuses_in_time(champion, "generation: not done within 0.3 s")
    assert ask(champion, ROW) == [RED]


@pytest.mark.slow
def test_a_slow_video_costs_its_own_request_and_no_other(champion: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = champion.unwrap_python_model()
    quick, slow = Aside(hang_on_blue, processes=2), Aside(hang_on_blue)
    try:
        monkeypatch.setattr(inner._decoders, "_quick", quick)
        monkeypatch.setattr(inner._decoders, "_slow", slow)
        monkeypatch.setattr(inner._decoders, "_limit_s", 3.0)
        monkeypatch.setattr("stages.tools.serving.videos.QUICK_S", 1.0)
        assert ask(champion, ROW) == [RED]
        with ThreadPoolExecutor(4) as others:
            blue = [others.submit(refuses_in_time, champion, "decoding video: not done within 3 s", video="deep/blue.mp4")]
            # Two are in the processes that everybody shares, where they stay for a second.
            blue += [others.submit(refuses_in_time, champion, "decoding video", video="deep/blue.mp4") for _ in range(2)]
            time.sleep(1.5)
            waited = []
            while not all(one.done() for one in blue[:1]):
                started = time.monotonic()
                assert ask(champion, ROW) == [RED]
                waited.append(time.monotonic() - started)
            assert waited
            assert min(waited) < 1, waited
            for one in blue:
                one.result()
        assert ask(champion, ROW) == [RED]
    finally:
        quick.close()
        slow.close()


def refuses_in_time(model: Any, says: str, **changes: str) -> None:
    started = time.monotonic()
    with pytest.raises(Refusal, match=says) as refused:
        ask(model, ROW | changes)
    assert refused.value.get_http_status_code() == 504
    assert time.monotonic() - started < 20


def test_without_a_folder_no_path_is_read(videos: Path) -> None:
    with pytest.raises(Refused, match="this server reads no files; send video_base64"):
        open_named(None, "deep/red.mp4", 1 << 20)
    with pytest.raises(Refused, match=r"video: .* MB, 0.000977 MB are allowed \(VIDBRIDGE_SERVE_MAX_MB\)"):
        open_named(videos.resolve(), "deep/red.mp4", 1024)
    kept = keep_base64(base64.b64encode(b"abc"), 3)
    try:
        assert os.pread(kept.descriptor, 9, 0) == b"abc"
    finally:
        kept.close()


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("VIDBRIDGE_SERVE_VIDEOS", "/nowhere/at/all", "is no folder"),
        ("VIDBRIDGE_SERVE_MAX_MB", "many", "is no number above 0"),
        ("VIDBRIDGE_SERVE_TIMEOUT_S", "-1", "is no number above 0"),
    ],
)
def test_a_limit_that_is_none_stops_the_server_at_its_start(
    name: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"{name}: {value!r} {says}"):
        limits_from_environment()


@pytest.fixture(scope="module")
def exported(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"
    made = publish(project, CHAMPION, folder)
    assert (made.version.number, made.folder) == (1, folder)
    return folder


#: A table as evaluation writes it.
SCORES = {
    "schema_version": 1,
    "row": "base",
    "digest": "d1",
    "split": "test",
    "samples": 240,
    "mean": 0.375,
    "format": 0.925,
    "tasks": {
        "mcqa": {"mean": 0.375, "low": 0.3125, "high": 0.4375, "samples": 240, "format": 0.925, "blank": 0.25, "shuffled": 0.3}
    },
}


def test_what_is_put_through_a_benchmark_is_asked_as_its_version_says(project: Path, exported: Path) -> None:
    params = load_params(project / "params.yaml")
    other = params.model_copy(update={"prompt": params.prompt.model_copy(update={"instruction": "As params.yaml says now"})})
    chosen = [choose(project, other, which, None) for which in (URI, f"models:/{MODEL}/1", "champion", "1")]
    assert {one.version.number for one in chosen if one.version} == {1}
    assert len({one.identity["weights"] for one in chosen}) == 1
    for one in (*chosen, choose(project, other, str(exported), None)):
        assert one.asks_itself
        assert (one.prompt, one.max_new_tokens, one.precision) == (params.prompt, params.evaluation.max_new_tokens, "fp32")
    assert not choose(project, other, str(project / "made"), None).asks_itself
    assert choose(project, other, str(project / "made"), None).prompt == other.prompt
    with pytest.raises(TrackingError, match="no version '9'"):
        choose(project, other, f"models:/{MODEL}/9", None)


def test_an_exported_folder_stands_alone(exported: Path, project: Path, videos: Path, champion: Any) -> None:
    """Its bytes are the registered ones and its own, and the code in its card gets the served reply from it."""
    given = {path.name: path.read_bytes() for path in (project / "made").iterdir()}
    assert {name: (exported / name).read_bytes() for name in given} == given
    assert all(path.stat().st_nlink == 1 for path in exported.iterdir())
    assert all(str(project).encode() not in path.read_bytes() for path in exported.iterdir())
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(card_code(exported).replace("What happens first?", QUESTION), card_inputs(videos / "deep/red.mp4"))
    assert printed.getvalue().strip() == RED["reply"]


@pytest.mark.slow
def test_mlflow_answers_from_an_exported_folder(exported: Path, champion: Any) -> None:
    import mlflow

    again = mlflow.pyfunc.load_model(str(exported))
    assert ask(again, ROW) == ask(champion, ROW)
    again.unwrap_python_model().close()


def card_code(folder: Path) -> str:
    """The Python in a model card, for that folder."""
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert code is not None
    return code[1].replace("this folder", str(folder))


def card_inputs(video: Path) -> dict[str, Any]:
    """What the card leaves to its reader: the frames, and what is known of the video."""
    import torch
    from transformers.video_utils import VideoMetadata

    from stages.lib.models.processor import video_metadata

    frames = load_video(video, load_params(ROOT / "params.yaml").synthesize.sampled_frames)
    return {
        "frames": torch.from_numpy(frames.pixels.copy()).permute(0, 3, 1, 2),
        "metadata": VideoMetadata(**video_metadata(frames)),
    }


def test_a_card_says_what_a_reader_needs(exported: Path, project: Path, tmp_path: Path) -> None:
    page = (exported / "README.md").read_text()
    front = yaml.safe_load(page.split("---")[1])
    assert (front["library_name"], front["pipeline_tag"], front["license"]) == ("transformers", "video-text-to-text", "apache-2.0")
    for part in (
        "recipe | `tiny`",
        "vllm serve",
        "This version was not evaluated",
        "generated shapes only",
        "It was not tested on",
    ):
        assert part in page
    client = open_client(project)
    tags = {"scores": json.dumps(SCORES), "baselines": json.dumps({"digest": "d1", "means": {"random": 0.125}})}
    for name, text in tags.items():
        client.set_model_version_tag(MODEL, "1", TAG + name, text)
    try:
        publish(project, "1", tmp_path / "scored")
    finally:
        for name in tags:
            client.delete_model_version_tag(MODEL, "1", TAG + name)
    page = (tmp_path / "scored/README.md").read_text()
    assert "| mcqa | 0.375 | 0.312 – 0.438 | 240 | 0.925 | 0.250 | 0.300 |" in page
    assert "| **mean over tasks** | **0.375** | | 240 | 0.925 | | |\n| baseline: random | 0.125 | | | | | |\n" in page
    # Apart from the tables' own line breaks, nothing of the template is left.
    assert not re.search(r"\{[%{]|[%}]\}(?!')|&#|&lt;", page)


def test_a_card_names_the_base_model(project: Path) -> None:
    recipe = load_params(ROOT / "infra/recipes/videocap-r1.yaml")
    config = {"model_type": "qwen2_vl", "positions_behind_video": "after_last"}
    page = card(explain(project, "1"), usage_of(recipe, recipe.candidate), config)
    front = yaml.safe_load(page.split("---")[1])
    assert front["base_model"] == recipe.model.name  # type: ignore[union-attr]
    assert front["license"] == "other"
    assert "trained on | structured_caption" in page
    assert repr(recipe.prompt.structured_instruction)[1:-1] in page


def test_a_card_says_by_which_rule_text_was_placed_behind_videos(project: Path, exported: Path) -> None:
    page, usage = (exported / "README.md").read_text(), usage_of(load_params(ROOT / "params.yaml"), "base")
    assert json.loads((exported / "config.json").read_text())["positions_behind_video"] == "after_last"
    row = (
        "| positions behind a video | one after the video's last position on any axis, time included (transformers <= 5.2, vLLM) |"
    )
    assert row in page
    assert "transformers from 5.3 on goes on by the larger" in page
    old = card(explain(project, "1"), usage, {"model_type": "qwen2_5_vl"})
    assert "| positions behind a video | not stated: trained by an older version" in old
    third = card(explain(project, "1"), usage, {"model_type": "qwen3_vl", "positions_behind_video": "after_last"})
    assert "| positions behind a video | a grid a frame" in third
    assert "get_rope_index" not in third


def test_an_export_overwrites_nothing(project: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="holds something already; name a new or an empty folder"):
        publish(project, CHAMPION, tmp_path)
    with pytest.raises(InputError, match="holds something already"):
        publish(project, CHAMPION, tmp_path / "mine.txt")
    (tmp_path / "empty").mkdir()
    publish(project, CHAMPION, tmp_path / "empty")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "mine.txt"]


def test_a_version_of_older_code_says_what_to_do(project: Path, tmp_path: Path) -> None:
    client = open_client(project)
    client.delete_model_version_tag(MODEL, "1", TAG + USAGE)
    with pytest.raises(TrackingError, match=r"does not say how it is asked .*: vidbridge register"):
        publish(project, CHAMPION, tmp_path / "model")
    assert register(project).updated == (1,)
    publish(project, CHAMPION, tmp_path / "model")


@pytest.mark.slow
def test_an_exported_folder_loads_where_nothing_of_ours_is(exported: Path, tmp_path: Path) -> None:
    code = (
        "from transformers import AutoModelForImageTextToText, AutoProcessor; import sys;"
        f"print(type(AutoModelForImageTextToText.from_pretrained({str(exported)!r})).__name__,"
        f" type(AutoProcessor.from_pretrained({str(exported)!r})).__name__, [m for m in sys.modules if m in ('stages', 'mlflow')])"
    )
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[-2] == "Qwen2_5_VLForConditionalGeneration Qwen2_5_VLProcessor []"


@pytest.mark.slow
def test_mlflow_serves_the_champion_from_a_fresh_clone(project: Path, videos: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(project), str(clone))
    port = free_port()
    changes = {"VIDBRIDGE_DVC_REMOTE": str(project / ".vidbridge/remote"), "VIDBRIDGE_SERVE_VIDEOS": str(videos)}
    env = environment(project, **changes, VIDBRIDGE_SERVE_MAX_MB="2")
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", URI, "-p", str(port), "--env-manager", "local"]
    log = tmp_path / "log"
    with log.open("wb") as out:
        server = subprocess.Popen(command, cwd=clone, env=env, stdout=out, stderr=out, start_new_session=True)
    try:
        deadline = time.monotonic() + 240
        while request(port, "GET", "/ping").status != 200:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        assert post(port, [ROW]) == (200, {"predictions": [RED]})
        whole = {"question": QUESTION, "video": "rabbit.mp4"}
        status, said = post(port, [whole])
        assert status == 200, said
        (answer,) = said["predictions"]
        assert set(answer) == {"thinking", "answer", "reply"}
        sent = base64.b64encode(CLIP.read_bytes()).decode()
        assert post(port, [{"question": QUESTION, "video_base64": sent}]) == (200, {"predictions": [answer]})
        for row, says in (
            (ROW | {"video": "../private.mp4"}, "may not leave the server's folder"),
            ({"question": QUESTION, "video_base64": "A" * (4 << 20)}, "2 MB are allowed"),
            ({"video": "deep/red.mp4"}, "question"),
        ):
            status, said = post(port, [row])
            assert (status, says in said["message"]) == (400, True), said
            assert "Traceback" not in json.dumps(said)
            assert len(json.dumps(said)) < 1000
    finally:
        os.killpg(server.pid, 15)
        server.wait(30)


def test_links_into_the_cache_of_dvc_are_files_of_the_folder_and_no_others_are(tmp_path: Path) -> None:
    folder, cache = tmp_path / "project/films", tmp_path / "project/.dvc/cache/files/md5/0a"
    folder.mkdir(parents=True)
    cache.mkdir(parents=True)
    for place, name in ((cache, "1b"), (tmp_path, "private.mp4")):
        (place / name).write_bytes(b"film")
        (folder / f"{name}.mp4").symlink_to(place / name)
    opened = open_named(folder, "1b.mp4", 1 << 20)
    status = (cache / "1b").stat()
    opened.close()
    assert (opened.key, opened.name) == ((status.st_dev, status.st_ino), "1b.mp4")
    with pytest.raises(Refused, match="not a link that leads out"):
        open_named(folder, "private.mp4.mp4", 1 << 20)


def test_a_link_that_is_swapped_in_after_the_look_is_not_followed(tmp_path: Path) -> None:
    """Somebody who may write to the folder exchanges a file, and a folder on the way to it, for links as fast as they can."""
    folder = tmp_path / "films"
    (folder / "deep").mkdir(parents=True)
    for place in (folder, folder / "deep"):
        (place / "a.mp4").write_bytes(b"open")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.mp4").write_bytes(b"SECRET")
    code = """if True:
        import os, sys
        folder, outside = sys.argv[1:]
        os.chdir(folder)
        while True:
            os.symlink(f"{outside}/a.mp4", "link"); os.replace("link", "a.mp4")
            with open("file", "wb") as file: file.write(b"open")
            os.replace("file", "a.mp4")
            os.rename("deep", "kept"); os.symlink(outside, "deep")
            os.unlink("deep"); os.rename("kept", "deep")
    """
    swapping = subprocess.Popen([sys.executable, "-c", code, str(folder), str(outside)])
    said: dict[bytes | str, int] = {}
    try:
        ends = time.monotonic() + 3
        while time.monotonic() < ends:
            for name in ("a.mp4", "deep/a.mp4"):
                try:
                    opened = open_named(folder, name, 1 << 20)
                except Refused as refused:
                    found: bytes | str = "out" if "leads out" in refused.sentence else "no file"
                else:
                    found = os.pread(opened.descriptor, 9, 0)
                    opened.close()
                said[found] = said.get(found, 0) + 1
        assert swapping.poll() is None
    finally:
        swapping.kill()
        swapping.wait()
    assert set(said) <= {b"open", "out", "no file"}, said
    # It was a race: each of the outcomes happened, and the last only where something changed between look and opening.
    assert {b"open", "out"} <= set(said), said


def test_one_file_is_one_video_however_it_is_named(champion: Any, videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = champion.unwrap_python_model()
    names = ["deep/red.mp4", "./deep/red.mp4", "deep/./red.mp4", "inner.mp4"]
    sent = base64.b64encode((videos / "deep/red.mp4").read_bytes()).decode()
    rows = [{"question": QUESTION, "video": name} for name in names] + [{"question": QUESTION, "video_base64": sent}] * 3
    taken = inner.receive(parse_rows(rows))
    try:
        assert [len(taken.questions), len(taken.files)] == [7, 2]
    finally:
        taken.close()
    with pytest.raises(Refused, match=r"video_base64: .* MB are allowed"):
        inner.receive(parse_rows([{"question": QUESTION, "video_base64": base64.b64encode(b"x" * 900_000)}] * 3))


def test_frames_that_are_too_large_together_are_refused_and_none_are_shown(champion: Any, monkeypatch: pytest.MonkeyPatch) -> None:
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
    aside = Aside(hungry_on_blue, memory_bytes=256 << 20)
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
    """The application with a key, on the loopback address of IPv6, around the model that is loaded already."""
    with running(champion.unwrap_python_model(), KEY, "::1") as asked:
        yield asked


def test_a_key_is_demanded(keyed: Running) -> None:
    body = json.dumps({"dataframe_records": [ROW]}).encode()
    right = {"Authorization": f"Bearer {KEY}"}
    assert keyed("POST", "/invocations", body, right).document == {"predictions": [RED]}
    for headers in ({}, {"Authorization": "Bearer no"}, {"Authorization": f"Basic {KEY}"}, {"Authorization": f"Bearer {KEY}x"}):
        for method, path in (("POST", "/invocations"), ("GET", "/version"), ("GET", "/docs"), ("GET", "/openapi.json")):
            refused = keyed(method, path, body if method == "POST" else None, headers)
            assert refused.status == 401, (headers, path)
            assert refused.headers["www-authenticate"] == 'Bearer realm="vidbridge"'
            assert "send 'Authorization: Bearer KEY' with its VIDBRIDGE_SERVE_KEY" in refused.document["message"]
            assert KEY not in refused.text
    assert keyed("GET", "/ping").status == 200
    assert keyed("GET", "/openapi.json", None, right).document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"


@pytest.mark.parametrize(
    ("key", "says"), [("short", "5 characters; set at least 16"), ("with a space in its middle", "without spaces")]
)
def test_a_key_that_is_none_is_refused(key: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDBRIDGE_SERVE_KEY", key)
    with pytest.raises(ValueError, match=says) as refused:
        key_from_environment()
    assert key not in str(refused.value)


@pytest.mark.slow
def test_sixteen_rows_under_the_limits_of_a_7b_recipe_take_less_than_two_gigabytes(
    exported: Path, videos: Path, tmp_path: Path
) -> None:
    """The tiny model with that recipe's frames and its processor's cap: what a request takes beside the weights is then the same."""
    recipe = load_params(ROOT / "infra/recipes/vidbridge-r1.yaml")
    model = tmp_path / "model"
    shutil.copytree(exported, model)
    usage = json.loads((model / "vidbridge.json").read_text()) | {"sampled_frames": recipe.synthesize.sampled_frames}
    (model / "vidbridge.json").write_text(json.dumps(usage))
    config = json.loads((model / "processor_config.json").read_text())
    pixels = recipe.model.max_pixels_per_frame  # type: ignore[union-attr]
    config["video_processor"]["size"] = {"shortest_edge": 50_176, "longest_edge": pixels}
    (model / "processor_config.json").write_text(json.dumps(config))
    for number in range(16):
        source = ["-f", "lavfi", "-i", f"testsrc2=s=1280x720:r=25:d={1 + number / 10}", "-preset", "ultrafast"]
        subprocess.run([ffmpeg_binary(), "-v", "error", *source, str(tmp_path / f"{number}.mp4")], check=True, timeout=60)
    code = """if True:
        import sys, threading, time, psutil
        from pathlib import Path
        from stages.tools.serving.server import VideoAnswers
        from stages.tools.serving.requests import parse_rows

        def taken():
            total = 0
            for one in (psutil.Process(), *psutil.Process().children(recursive=True)):
                lines = Path(f"/proc/{one.pid}/smaps_rollup").read_text().splitlines()
                total += next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
            return total

        def main():
            model = VideoAnswers(Path(sys.argv[1]))
            model.load_context(None)
            model.receive(parse_rows([{"question": "q", "video": "0.mp4"}])).close()
            time.sleep(20)
            before, peak, done = taken(), [0], threading.Event()
            def watch():
                while not done.wait(0.05):
                    peak[0] = max(peak[0], taken())
            watching = threading.Thread(target=watch)
            watching.start()
            request = model.receive(parse_rows([{"question": "q", "video": f"{n}.mp4"} for n in range(16)]))
            answers = model.answer(request, time.monotonic() + 600)
            done.set()
            watching.join()
            request.close()
            model.close()
            print(len(answers), peak[0] - before)

        if __name__ == "__main__":
            main()
    """
    (tmp_path / "ask.py").write_text(textwrap.dedent(code))
    env = environment(tmp_path, VIDBRIDGE_SERVE_VIDEOS=str(tmp_path), VIDBRIDGE_SERVE_TIMEOUT_S="600")
    done = subprocess.run(
        [sys.executable, str(tmp_path / "ask.py"), str(model)], env=env, capture_output=True, text=True, check=True
    )
    answers, grew = map(int, done.stdout.split()[-2:])
    assert answers == 16
    assert grew < 2 << 30, f"{grew / 1e6:.0f} MB"
