"""The recipe `smoke` with a judge at an endpoint, stage by stage as DVC runs them; the endpoint is
a real server."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support.judges.server import KEY, Fault, JudgeServer
from tests.support.projects.repository import edit
from tests.support.projects.smoke import call, make_project, succeed

RULE = "judge: {kind: rule, full_share: 0.8, partial_share: 0.4}"
OPENAI = (
    "judge: {kind: openai, model: referee, revision: r1, temperature: 0, max_tokens: 200, seed: 0, max_unavailable:"
    " 0.25}"
)


@pytest.mark.slow
def test_the_recipe_runs_on_an_endpoint_and_says_when_it_cannot(server: JudgeServer, tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    edit(project / "params.yaml", RULE, OPENAI)
    environ = server.environment(VIDBRIDGE_JUDGE_RETRIES="0")

    # Without an address, and with a key that is not accepted.
    succeed(project, "dvc", "repro", "sft")
    done = call(project, "python", "-m", "stages", "baselines")
    assert done.returncode == 1
    assert "error: VIDBRIDGE_JUDGE_URL: not set" in done.stderr
    server.always = Fault(status=401)
    done = call(project, "dvc", "repro", "baselines", **environ)
    assert done.returncode != 0
    assert "set VIDBRIDGE_JUDGE_KEY" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr + done.stdout
    server.always = None
    refused = server.requests

    succeed(project, "dvc", "repro", **environ)
    asked = server.requests
    assert asked - refused == len(server.times_asked()), "each question once, over all stages"
    for scores in (project / "scores").glob("*/scores.json"):
        json.loads(scores.read_text())
    assert "judge/prompt_tokens" not in "".join(
        path.read_text() for path in (project / "models").rglob("history.jsonl")
    )
    succeed(project, "dvc", "repro", **environ)
    assert server.requests == asked, "nothing to do"

    # Another process with the same questions: all answers come from the cache, and the scores are
    # the same.
    before = {path.parent.name: path.read_bytes() for path in (project / "scores").glob("*/scores.json")}
    shutil.rmtree(project / "scores")
    succeed(project, "dvc", "repro", "--force", "--single-item", "baselines", **environ)
    assert server.requests == asked
    assert (project / "scores/baselines/scores.json").read_bytes() == before["baselines"]

    assert b"judge/prompt_tokens" in (project / ".vidbridge/mlflow.db").read_bytes()
    for path in project.rglob("*"):
        if (
            path.is_file() and project / "tests" not in path.parents
        ):  # the tests are copied too, with the server and its key
            assert KEY.encode() not in path.read_bytes(), f"{path} holds the key"
