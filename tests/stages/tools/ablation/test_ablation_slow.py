"""`vidbridge ablate` on the recipe `smoke`, killed during its run. make test-slow"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from tests.support.projects.smoke import BIN, belonging_to, call, environment, make_project, succeed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def test_a_grid_that_is_killed_goes_on_and_says_the_same_every_time(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    log = tmp_path / "ablate.log"
    with log.open("wb") as file:
        first = subprocess.Popen(
            [str(BIN / "vidbridge"), "ablate"], cwd=project, env=environment(project), stdout=file, stderr=file
        )
        deadline = time.monotonic() + 600
        while ", qa: " not in log.read_text():
            assert first.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.5)
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    deadline = time.monotonic() + 60
    while belonging_to(project):
        assert time.monotonic() < deadline, belonging_to(project)
        time.sleep(0.5)

    out = tmp_path / "out"
    went_on = call(project, "vidbridge", "ablate", "--out", str(out), timeout_s=900)
    assert went_on.returncode == 0, went_on.stderr[-3000:]
    assert "done before" in went_on.stderr
    assert "QA + caption, rewards scaled by task (ours)" in went_on.stdout
    results = json.loads((out / "results.json").read_text())
    assert results["seeds"] == [1, 2]
    assert results["missing"] == []
    assert {row["name"] for row in results["rows"]} == {
        "random",
        "constant",
        "cold-start",
        "qa",
        "caption",
        "qa-caption-scaled",
    }
    # Each seed needs data of its own to be an observation of its own.
    corpora = {
        (project / f".vidbridge/ablation/smoke/seed-{seed}/data/samples/test/caption.jsonl").read_bytes()
        for seed in (1, 2)
    }
    assert len(corpora) == 2

    again = call(project, "vidbridge", "ablate", "--out", str(tmp_path / "again"), timeout_s=300)
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stderr.count("done before") == 6
    assert (tmp_path / "again/figure.svg").read_bytes() == (out / "figure.svg").read_bytes()
    assert "QA" in succeed(project, "vidbridge", "ablate", "--table")

    store = MlflowClient(f"sqlite:///{project}/.vidbridge/mlflow.db")
    versions = store.search_model_versions("name = 'vidbridge-smoke-ablation'")
    stages = {version.tags["vidbridge.stage"] for version in versions}
    assert {"grpo@qa", "grpo@caption", "grpo@qa-caption-scaled"} <= stages
    runs = store.search_runs(
        [store.get_experiment_by_name("vidbridge").experiment_id], "tags.`vidbridge.kind` = 'ablation'"
    )
    assert "FINISHED" in {run.info.status for run in runs}
    assert not (project / ".vidbridge/ablation/smoke/seed-1/.vidbridge/scratch").exists()

    (project / "stages/evaluate/stage.py").write_text((project / "stages/evaluate/stage.py").read_text() + "\n")
    refused = call(project, "vidbridge", "ablate")
    assert refused.returncode == 2
    assert "stages/evaluate/stage.py: edited and not committed" in refused.stderr
