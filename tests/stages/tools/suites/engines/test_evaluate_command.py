"""``vidbridge evaluate`` as a person types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli.main import app
from flows.errors import UsageError
from stages.lib.engine.errors import EngineLost, EngineUnavailable
from tests.support.checkout import ROOT
from tests.support.suites.coloured import about_colours


def given(folder: Path, videos: Path | None, *more: str) -> list[str]:
    annotations = folder / "videomme.jsonl"
    shown = ["--videos", str(videos)] if videos else []
    return [
        "evaluate",
        "--benchmark",
        "video-mme",
        "--annotations",
        str(annotations),
        *shown,
        "--out",
        str(folder / "out"),
        *more,
    ]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ((), "--model, --endpoint: exactly one is needed"),
        (("--model", "champion", "--endpoint", "http://127.0.0.1:1/v1"), "--model, --endpoint: exactly one is needed"),
        (("--endpoint", "http://127.0.0.1:1/v1"), "--endpoint-model: not given"),
        (("--model", "champion", "--endpoint-model", "x"), "--endpoint-model: means nothing without --endpoint"),
        (
            ("--endpoint", "http://127.0.0.1:1/v1", "--endpoint-model", "x", "--endpoint-video", "gif"),
            "--endpoint-video: 'gif' is unknown",
        ),
        (
            ("--endpoint", "http://127.0.0.1:1/v1", "--endpoint-model", "x", "--batch-size", "4"),
            "--batch-size: is of a model that runs here",
        ),
        (("--model", "champion", "--endpoint-video", "mp4"), "--endpoint-video: means nothing without --endpoint"),
        (("--model", "champion", "--controls", "4", "--no-controls"), "--controls, --no-controls: contradict"),
        (("--model", "champion", "--engine", "vlm"), "--engine: 'vlm' is unknown; set hf, vllm (starts one here), or"),
        (
            ("--endpoint", "http://127.0.0.1:1/v1", "--endpoint-model", "x", "--engine", "vllm"),
            "--engine: is of a model that is loaded here",
        ),
        (("--model", "champion", "--temperature", "0.7"), "--temperature: means nothing without --sampled"),
    ],
)
def test_flags_that_make_no_sense(
    tmp_path: Path, root: Path, more: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    done = CliRunner().invoke(app, given(tmp_path, tmp_path, *more))
    assert isinstance(done.exception, UsageError)
    assert said in str(done.exception)


def test_an_engine_that_is_not_there_is_told_before_a_model_is_loaded(
    tmp_path: Path, root: Path, taught: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    monkeypatch.setenv("VIDBRIDGE_ENGINE_ENV", str(tmp_path / "nowhere"))
    done = CliRunner().invoke(app, given(tmp_path, tmp_path, "--model", str(taught), "--engine", "vllm"))
    assert isinstance(done.exception, EngineUnavailable)
    assert "nowhere/bin/python does not exist, and the engine is built there; build it (make vllm)" in str(
        done.exception
    )
    monkeypatch.setenv("VIDBRIDGE_ROLLOUT_ENGINE", "http://127.0.0.1:1")
    done = CliRunner().invoke(app, given(tmp_path, tmp_path, "--model", str(taught)))
    assert isinstance(done.exception, EngineLost)
    assert "no engine answers there" in str(done.exception)


def test_videos_have_to_be_somewhere(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    done = CliRunner().invoke(app, given(tmp_path, None, "--model", "champion"))
    assert "--videos: not given; name the folder that holds the videos of video-mme" in str(done.exception)


@pytest.mark.slow
def test_a_model_in_a_folder_and_the_table_of_a_pair(tmp_path: Path, root: Path, taught: Path, videos: Path) -> None:
    about_colours(tmp_path, 3, "gone")
    lines = [json.dumps({"id": f"{name}-{n}", "reply": "B"}) for name in ("red", "green", "blue") for n in range(3)]
    (tmp_path / "other.jsonl").write_text("\n".join(lines))
    command = [
        sys.executable,
        "-m",
        "flows.cli.main",
        *given(tmp_path, videos, "--model", "./model", "--controls", "4"),
    ]
    command += ["--against", str(tmp_path / "other.jsonl")]
    environment = {**os.environ, "VIDBRIDGE_PROJECT": str(root), "PYTHONPATH": str(ROOT), "COLUMNS": "160"}
    done = subprocess.run(
        command, cwd=taught.parent, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    for words in (
        "PARTIAL",
        "(blank video)",
        "(shuffled video)",
        "minus other.jsonl",
        "+66.7 [",
        "exact McNemar p 0.0312",
        "gone, 5 questions",
    ):
        assert words in done.stdout, words
    assert "question/s" in done.stderr, "how far it is, and how long it will take"
    assert (tmp_path / "out/scores.md").is_file()
    bare = subprocess.run(
        [*command[:-4], "--no-controls"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (bare.returncode, bare.stderr.splitlines()[-1]) == (
        1,
        "error: --model: 'model' is not a folder; name one that holds a model, a version, or a hub id",
    )
