"""Proofs on the recipe `smoke` that take minutes: a schedule that notices a new clip, and a kill in
the middle of GRPO. make test-slow"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stages.domain.core.records import Clip
from stages.lib.rows.jsonl import read_rows
from stages.params import load_params
from tests.support.projects.repository import commit, edit, git
from tests.support.projects.smoke import BIN, belonging_to, environment, make_project, succeed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def wait_until(true: object, seconds: float) -> bool:
    assert callable(true)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.5)
    return False


def test_kill_9_of_the_flow_in_grpo_leaves_nothing_and_the_next_run_resumes(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    text = (project / "params.yaml").read_text()
    before, general = text[: text.index("  general:")], text[text.index("  general:") :]
    general = general.replace("steps: 4\n", "steps: 120\n", 1).replace("save_steps: 2", "save_steps: 5", 1)
    (project / "params.yaml").write_text(before + general)
    commit(project, "long enough to be killed")
    with (tmp_path / "flow.log").open("wb") as log:
        flow = subprocess.Popen(
            [str(BIN / "vidbridge"), "run", "--yes"], cwd=project, env=environment(project), stdout=log, stderr=log
        )
        states = project / ".vidbridge/scratch/grpo-general"
        assert wait_until(lambda: list(states.glob("*/state/checkpoint-5*")), 400), (tmp_path / "flow.log").read_text()[
            -3000:
        ]
        os.kill(flow.pid, signal.SIGKILL)
        flow.wait()
    assert wait_until(lambda: not belonging_to(project), 30), belonging_to(project)
    output = subprocess.run(
        [str(BIN / "vidbridge"), "run", "--yes"],
        cwd=project,
        env=environment(project),
        capture_output=True,
        text=True,
        check=False,
    )
    said = output.stdout + output.stderr
    assert output.returncode == 0, said[-3000:]
    resumed = re.search(r"grpo@general: 120 steps.*?resumed from step (\d+)", said, re.DOTALL)
    assert resumed is not None
    assert int(resumed[1]) >= 5
    assert "sft@cold-start: 100 steps" not in said, "what was done stays done"


def test_a_cron_deployment_fires_by_itself_and_notices_a_new_clip(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    edit(project / "params.yaml", "judge: {kind: rule,", "judge: {kind: rule_on_real_text,")
    commit(project, "clips elsewhere")
    succeed(project, "dvc", "repro", "--quiet", "corpus")
    before = git(project, "status", "--porcelain")
    videos = tmp_path / "videos"
    shutil.copytree(project / "data/corpus", videos)
    lines = (videos / "annotations.jsonl").read_text().splitlines(keepends=True)
    # One to learn from, so that there is a new candidate, and one held out, so that there is a new
    # evaluation.
    late = [next(line for line in reversed(lines) if json.loads(line)["split"] == split) for split in ("train", "test")]
    names = [json.loads(line)["video"] for line in late]
    (videos / "annotations.jsonl").write_text("".join(line for line in lines if line not in late))
    for number, name in enumerate(names):
        shutil.move(videos / name, tmp_path / f"late-{number}.mp4")

    with (tmp_path / "deploy.log").open("wb") as log:
        command = [str(BIN / "vidbridge"), "deploy", "--cron", "* * * * *", "--source", str(videos)]
        # A shell starts background jobs with SIGINT ignored, and children inherit that; at a
        # terminal it is not.
        handler = signal.signal(signal.SIGINT, signal.default_int_handler)
        serving = subprocess.Popen(command, cwd=project, env=environment(project), stdout=log, stderr=log)
        signal.signal(signal.SIGINT, handler)
        try:
            assert wait_until(lambda: len(verdicts(tmp_path)) == 1, 600), (tmp_path / "deploy.log").read_text()[-3000:]
            for number, name in enumerate(names):
                shutil.copy(tmp_path / f"late-{number}.mp4", videos / name)
            with (videos / "annotations.jsonl").open("a") as file:
                file.writelines(late)
            assert wait_until(lambda: len(verdicts(tmp_path)) == 2, 600), (tmp_path / "deploy.log").read_text()[-3000:]
        finally:
            serving.send_signal(signal.SIGINT)
            serving.wait(60)
    assert wait_until(lambda: not belonging_to(tmp_path), 30), belonging_to(tmp_path)
    (clone,) = (one for one in (project / ".vidbridge/scheduled").iterdir() if one.is_dir())
    assert len(read_rows(clone / "data/clips/manifest.jsonl", Clip)) == len(lines)
    said = (tmp_path / "deploy.log").read_text()
    assert "the champion, version" in said, "it was scored again, since the held-out clips changed"
    # Rules that only a champion gives: a refusal names those that were not met, which seed and
    # clips decide.
    assert "(gate.max_task_drop)" in said or "(gate.min_gain)" in said, "the gate compared the two"
    assert len(run_branches(project)) == 2
    assert git(project, "status", "--porcelain") == before, "the person's own work tree was not touched"


def verdicts(folder: Path) -> list[str]:
    """What the gate said of each run, in the log of the deployment: it comes after the push."""
    return re.findall(r"version \d+ (?:is champion|was refused)", (folder / "deploy.log").read_text())


def run_branches(project: Path) -> list[str]:
    return [name for name in git(project, "branch", "--format=%(refname:short)").split() if name.startswith("runs/")]


@pytest.mark.parametrize("recipe", ["vidbridge-r1", "vidbridge-r1-staged", "videocap-r1"])
def test_each_papers_recipe_runs_end_to_end_in_small(recipe: str, tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    succeed(project, "vidbridge", "recipe", "use", recipe, "--smoke", "--force")
    commit(project, recipe)
    said = succeed(project, "vidbridge", "run", "--yes")
    params = load_params(project / "params.yaml")
    for row in params.rows:
        assert (project / "models" / row / "final/model.safetensors").is_file()
        assert row in said
    scores = json.loads((project / f"scores/{params.candidate}/scores.json").read_text())
    assert set(scores["tasks"]) == set(params.synthesize.tasks.named)
    assert "nothing to do" in succeed(project, "vidbridge", "run", "--yes")


def test_two_ranks_of_zero3_from_the_command_line(tmp_path: Path) -> None:
    """The papers' path in small, cold start and GRPO both sharded over two processes; what comes of
    it needs none of that."""
    project = make_project(tmp_path / "project")
    succeed(project, "vidbridge", "recipe", "use", "vidbridge-r1-staged", "--smoke", "--force")
    commit(project, "vidbridge-r1-staged")
    several = {"VIDBRIDGE_RANKS": "2", "VIDBRIDGE_DEEPSPEED": "infra/deepspeed/zero3.json"}
    succeed(project, "vidbridge", "run", "grpo@bridge", "--yes", timeout_s=900, CUDA_VISIBLE_DEVICES="", **several)
    code = """
import json, sys
import torch
from mlflow.tracking import MlflowClient
from transformers import AutoModelForImageTextToText, AutoProcessor
client = MlflowClient()
(experiment,) = [e for e in client.search_experiments() if e.name == "vidbridge"]
stages = {}
for run in client.search_runs([experiment.experiment_id]):
    if stage := run.data.tags.get("vidbridge.stage"):
        found = [run.data.tags.get("vidbridge.engine"), run.data.metrics.get("deepspeed_stage")]
        stages[stage] = [*found, run.info.status]
versions = [v.tags["vidbridge.stage"] for v in client.search_model_versions(f"name='{sys.argv[1]}'")]
folder = "models/bridge/final"
model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
with torch.no_grad():
    logits = model(**processor(text=["describe the video ."], return_tensors="pt")).logits
print(json.dumps({"stages": stages, "versions": versions, "finite": bool(torch.isfinite(logits).all())}))
"""
    name = load_params(project / "params.yaml").gate.registered_model
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, name],
        cwd=project,
        env=environment(project, MLFLOW_TRACKING_URI=f"sqlite:///{project}/.vidbridge/mlflow.db"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    engine = "deepspeed.runtime.zero.stage3.DeepSpeedZeroOptimizer_Stage3"
    for stage in ("sft@cold-start", "grpo@bridge"):
        assert found["stages"][stage] == [engine, 3.0, "FINISHED"]
        assert stage in found["versions"]
    assert found["finite"]
