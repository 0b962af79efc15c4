"""The champion in service, in minutes: MLflow's handling of a version, slow videos, memory at the
size of a real recipe."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from flows.processes.prefect_server import free_port
from stages.lib.video.encoder import ffmpeg_binary
from stages.params import load_params
from stages.runtime.workers import IsolatedWorker
from stages.tools.serving.export import export_version
from stages.tracking.registry.versions import CHAMPION
from stages.tracking.session import Session
from tests.support.checkout import ROOT
from tests.support.projects.repository import git
from tests.support.projects.serving import (
    CLIP,
    MODEL,
    QUESTION,
    RED,
    ROW,
    URI,
    ask,
    environment,
    hang_on_blue,
    post,
    refuses_in_time,
    request,
)


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
    # It contains no pickle, and one file alone can be downloaded.
    assert "python_model" not in (folder / "MLmodel").read_text()
    assert mlflow.models.get_model_info(URI).signature.inputs.input_names()[0] == "question"
    # By content alone there is nothing but the content.
    source = mlflow.MlflowClient().get_model_version(MODEL, "1").source
    (tmp_path / "bare").mkdir()
    get_artifact_repository(source).download_artifacts("", str(tmp_path / "bare"))
    assert {path.name for path in (tmp_path / "bare").iterdir()} == ours


@pytest.mark.slow
def test_a_slow_video_costs_its_own_request_and_no_other(champion: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = champion.unwrap_python_model()
    quick, slow = IsolatedWorker(hang_on_blue, processes=2), IsolatedWorker(hang_on_blue)
    try:
        monkeypatch.setattr(inner._decoders, "_quick", quick)
        monkeypatch.setattr(inner._decoders, "_slow", slow)
        monkeypatch.setattr(inner._decoders, "_limit_s", 3.0)
        monkeypatch.setattr("stages.tools.serving.videos.QUICK_S", 1.0)
        assert ask(champion, ROW) == [RED]
        with ThreadPoolExecutor(4) as others:
            blue = [
                others.submit(refuses_in_time, champion, "decoding video: not done within 3 s", video="deep/blue.mp4")
            ]
            # Two are in the shared processes, where they stay for a second.
            blue += [
                others.submit(refuses_in_time, champion, "decoding video", video="deep/blue.mp4") for _ in range(2)
            ]
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


@pytest.fixture(scope="module")
def exported(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"
    made = export_version(Session(project), CHAMPION, folder)
    assert (made.version.number, made.folder) == (1, folder)
    return folder


@pytest.mark.slow
def test_mlflow_answers_from_an_exported_folder(exported: Path, champion: Any) -> None:
    import mlflow

    again = mlflow.pyfunc.load_model(str(exported))
    assert ask(again, ROW) == ask(champion, ROW)
    again.unwrap_python_model().close()


@pytest.mark.slow
def test_an_exported_folder_loads_where_nothing_of_ours_is(exported: Path, tmp_path: Path) -> None:
    code = (
        "from transformers import AutoModelForImageTextToText, AutoProcessor; import"
        f" sys;print(type(AutoModelForImageTextToText.from_pretrained({str(exported)!r})).__name__,"
        f" type(AutoProcessor.from_pretrained({str(exported)!r})).__name__, [m for m in sys.modules if m in ('stages',"
        " 'mlflow')])"
    )
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
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


@pytest.mark.slow
def test_sixteen_rows_under_the_limits_of_a_7b_recipe_take_less_than_two_gigabytes(
    exported: Path, videos: Path, tmp_path: Path
) -> None:
    """The tiny model with that recipe's frames and its processor's cap: what a request takes
    beside the weights is then the same."""
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
        subprocess.run(
            [ffmpeg_binary(), "-v", "error", *source, str(tmp_path / f"{number}.mp4")], check=True, timeout=60
        )
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
