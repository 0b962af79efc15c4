"""The engine's process: how it starts, what is said when it does not, and that nothing is left of
it. No model is needed for that."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stages.errors import InputError
from stages.lib.engine.client import Asked
from stages.lib.engine.errors import EngineLost, EngineUnavailable
from stages.lib.engine.process import EngineProcess, EngineSettings, chosen_engine, engine_python
from stages.lib.engine.wire import Draw, Sampling
from stages.lib.engine_server.normalising import normalises_alike
from stages.lib.engine_server.options import key_of, options_of
from stages.lib.inference.seeds import seed_number
from tests.support.checkout import IN_CHECKOUT, ROOT
from tests.support.processes.ended import assert_ended
from tests.support.servers.engine.without_model import DEAF, DIE, END, NO_START

COMMAND = (sys.executable, str(ROOT / "tests/support/servers/engine/without_model.py"))
SETTINGS = EngineSettings("float32", 512)
SAMPLING = Sampling(4, (0,))

# httpcore does not close a Unix socket that it could not connect.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    return tmp_path / "model"


@pytest.fixture
def engine(model: Path) -> Iterator[EngineProcess]:
    with EngineProcess.start(model, SETTINGS, command=COMMAND) as started:
        yield started


def worker_of(engine: EngineProcess) -> int:
    (reply,) = engine.client.generate([Asked((9,), ())], [Draw(0, "s")], SAMPLING)
    assert reply.ids == [seed_number("s")]
    return int(reply.logps[0])


def test_it_answers_and_ends_with_all_its_processes(engine: EngineProcess, model: Path) -> None:
    health = engine.client.health()
    assert (health.pid, health.model) == (engine.pid, str(model.resolve()))
    worker, folder = worker_of(engine), engine.log_file.parent
    engine.close()
    assert_ended(engine.pid, worker)
    assert not folder.exists()
    engine.close()


def test_one_that_dies_in_mid_request_is_lost(engine: EngineProcess) -> None:
    worker = worker_of(engine)
    with pytest.raises(EngineLost, match="the engine ended while it answered /generate"):
        engine.client.generate([Asked((DIE,), ())], [Draw(0)], SAMPLING)
    with pytest.raises(EngineLost, match=r"no engine answers there|the engine ended while it answered"):
        engine.client.health()
    engine.close()
    assert_ended(worker)


def test_one_whose_vllm_ends_says_so_and_ends(engine: EngineProcess) -> None:
    worker = worker_of(engine)
    with pytest.raises(EngineLost, match=r"vLLM ended \(out of memory\)"):
        engine.client.generate([Asked((END,), ())], [Draw(0)], SAMPLING)
    assert_ended(engine.pid, worker)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_it_ends_with_the_process_that_started_it(model: Path, how: signal.Signals, tmp_path: Path) -> None:
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from stages.lib.engine.process import EngineProcess\n"
        "from tests.stages.lib.engine.test_process import COMMAND, SETTINGS, worker_of\n"
        f"with EngineProcess.start(Path({str(model)!r}), SETTINGS, command=COMMAND) as engine:\n"
        "    print(engine.pid, worker_of(engine), flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=IN_CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        parent.send_signal(how)
    assert_ended(*pids)


def test_one_that_does_not_start_says_why(model: Path, tmp_path: Path) -> None:
    environ = {**os.environ, NO_START: "Available memory is less than requested"}
    with pytest.raises(EngineUnavailable, match=r"exit status 1(.|\n)*Available memory is less than requested"):
        EngineProcess.start(model, SETTINGS, command=COMMAND, environ=environ, log_file=tmp_path / "log")
    assert "Available memory" in (tmp_path / "log").read_text()
    with pytest.raises(EngineUnavailable, match=r"exit status 2(.|\n)*holds no config.json"):
        EngineProcess.start(tmp_path, SETTINGS, command=COMMAND)


def test_one_that_is_not_ready_in_time_is_ended(model: Path) -> None:
    environ = {**os.environ, DEAF: "1", "VIDBRIDGE_ENGINE_START_S": "1"}
    with pytest.raises(EngineUnavailable, match="not ready within 1 s"):
        EngineProcess.start(model, SETTINGS, command=COMMAND, environ=environ)


def test_what_the_environment_names() -> None:
    assert [chosen_engine({"VIDBRIDGE_ROLLOUT_ENGINE": value}) for value in ("", "hf", "vllm", "unix:/a")] == [
        "hf",
        "hf",
        "vllm",
        "unix:/a",
    ]
    with pytest.raises(InputError, match="'vlm' is unknown"):
        chosen_engine({"VIDBRIDGE_ROLLOUT_ENGINE": "vlm"})
    memory = {"VIDBRIDGE_ENGINE_GPUS": "6, 7", "VIDBRIDGE_ENGINE_KV_CACHE_GB": "2.5", "VIDBRIDGE_ENGINE_VIDEO_GB": "1"}
    settings = EngineSettings.from_environment("bfloat16", 9000, 2, memory)
    assert settings == EngineSettings("bfloat16", 9000, 2, 2.5, 1.0, 0.9, ("6", "7"))
    assert "--gpus=2" in settings.arguments()
    for name in ("VIDBRIDGE_VLLM_MEMORY", "VIDBRIDGE_ENGINE_KV_CACHE_GB"):
        for value in ("x", "-1", "1e9"):
            with pytest.raises(InputError, match=f"{name}: '{value}' is not a number"):
                EngineSettings.from_environment("bfloat16", 9000, environ={name: value})
    with pytest.raises(EngineUnavailable, match=r"make vllm"):
        engine_python({"VIDBRIDGE_ENGINE_ENV": "/nowhere"})


def test_videos_that_are_normalised_unlike_pictures_are_noticed(tmp_path: Path) -> None:
    half, other = {"image_mean": [0.5], "image_std": [0.5]}, {"image_mean": [0.4], "image_std": [0.5]}
    for image, video, alike in ((half, half, True), (half, other, False)):
        published = {"preprocessor_config.json": image, "video_preprocessor_config.json": video}
        saved = {"processor_config.json": {"image_processor": image, "video_processor": video}}
        for number, files in enumerate((published, saved)):
            folder = tmp_path / f"{alike}{number}"
            folder.mkdir()
            for name, content in files.items():
                (folder / name).write_text(json.dumps(content))
            assert normalises_alike(folder) is alike


def test_without_a_key_only_this_machine_is_listened_to(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def options(*where: str) -> object:
        return key_of(options_of([f"--model={model}", "--max-model-len=9", *where]), {})

    assert options("--socket=/s") is None
    assert options("--port=80") is None
    with pytest.raises(SystemExit, match="VIDBRIDGE_ENGINE_KEY is not set"):
        options("--port=80", "--host=0.0.0.0")
    with pytest.raises(SystemExit, match="2"):
        options()
    assert "name --socket or --port" in capsys.readouterr().err
