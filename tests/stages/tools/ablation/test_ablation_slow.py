"""`vidbridge ablate` on the recipe `smoke`: killed during its run, and one or two trainings at a
time. make test-slow
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from mlflow.tracking import MlflowClient

from tests.support.projects.repository import commit
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
        while ": qa: 2 stages ran" not in log.read_text():
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
    assert re.search(r"6 trainings, [1-5] of them done before; ", went_on.stderr)
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
    assert "6 trainings, 6 of them done before; " in again.stderr
    assert "stages ran" not in again.stderr
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
    assert list((project / ".vidbridge/ablation/smoke/seed-1/.vidbridge/scratch").glob("*")) == []

    (project / "stages/evaluate/stage.py").write_text((project / "stages/evaluate/stage.py").read_text() + "\n")
    refused = call(project, "vidbridge", "ablate")
    assert refused.returncode == 2
    assert "stages/evaluate/stage.py: edited and not committed" in refused.stderr


def one_seed(folder: Path, **changes: object) -> Path:
    """A project whose grid has one seed, with changes of its variants by name."""
    project = make_project(folder)
    table = yaml.safe_load((project / "params.yaml").read_text())
    table["ablation"]["seeds"] = [1]
    for name, change in changes.items():
        table["ablation"]["variants"][name]["changes"] |= change
    (project / "params.yaml").write_text(yaml.safe_dump(table, sort_keys=False))
    commit(project, "one seed")
    return project


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by its path, less the commit, which two projects do not share."""
    files = {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}
    return {name: file.read_bytes() for name, file in files.items() if file.name != "identity.json"}


def test_two_trainings_at_a_time_give_the_bytes_of_one_and_a_failure_harms_no_other(tmp_path: Path) -> None:
    # Every prompt of this variant is set aside as too long, so that nothing is left to train on.
    alone = one_seed(tmp_path / "alone")
    broken = one_seed(tmp_path / "broken", caption={"max_prompt_tokens": 1})
    succeed(alone, "vidbridge", "ablate", "--jobs", "1", timeout_s=900)
    failed = call(broken, "vidbridge", "ablate", "--jobs", "2", timeout_s=900)
    assert failed.returncode == 1, failed.stderr[-3000:]
    logs = broken / ".vidbridge/ablation/smoke/logs"
    assert f"seed 1: caption: failed, see {logs / 'seed-1-caption.log'}; " in failed.stderr
    assert "max_prompt_tokens" in (logs / "seed-1-caption.log").read_text()
    assert "seed 1: caption: stage grpo@caption failed with exit status" in failed.stderr
    assert f"logs: {logs}; what was done stays done (2 trainings in this run)" in failed.stderr
    assert (broken / ".vidbridge/ablation/smoke/seed-1.2/dvc.lock").is_file(), "two of one seed ran side by side"
    one, two = (contents(project / ".vidbridge/ablation/smoke/scores") for project in (alone, broken))
    assert {name: two[name] for name in one if not name.startswith("1/caption/")} == {
        name: text for name, text in one.items() if not name.startswith("1/caption/")
    }

    # Mended, in the middle of it Ctrl-C; then what is left.
    (broken / "params.yaml").write_bytes((alone / "params.yaml").read_bytes())
    commit(broken, "mended")
    log = tmp_path / "interrupted.log"
    with log.open("wb") as file:
        # A shell starts background jobs with SIGINT ignored, and children inherit that.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            command = [str(BIN / "vidbridge"), "ablate", "--jobs", "2"]
            running = subprocess.Popen(command, cwd=broken, env=environment(broken), stdout=file, stderr=file)
        finally:
            signal.signal(signal.SIGINT, before)
        deadline = time.monotonic() + 600
        while "grpo@caption" not in log.read_text():
            assert running.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.1)
        running.send_signal(signal.SIGINT)
        assert running.wait(120) == 130, log.read_text()[-3000:]
    assert belonging_to(broken) == []
    assert "Go on where it stopped: vidbridge ablate" in log.read_text()
    went_on = call(broken, "vidbridge", "ablate", "--jobs", "2", timeout_s=900)
    assert went_on.returncode == 0, went_on.stderr[-3000:]
    assert contents(broken / ".vidbridge/ablation/smoke/scores") == one
