"""The whole pipeline on the recipe `smoke`: real H.264, a real Qwen2.5-VL, real optimiser steps,
DVC, Prefect and MLflow. Run once."""

from __future__ import annotations

import html
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from stages.domain.core.records import Checkpoint, Clip, Sample, Score
from stages.domain.rl.rollouts import RolloutGroup
from stages.lib.rows.jsonl import read_rows
from tests.support.checkout import ROOT
from tests.support.projects.repository import commit, edit, git
from tests.support.projects.smoke import environment, make_project, succeed
from tests.support.servers.engine.stand_in import HfEngine, served

pytestmark = pytest.mark.xdist_group("smoke")


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which `vidbridge run` has finished."""
    folder = make_project(tmp_path_factory.mktemp("smoke") / "project")
    output = succeed(folder, "vidbridge", "run", "--yes")
    (folder / ".vidbridge" / "first-run.txt").write_text(output)
    return folder


@pytest.fixture
def edited(project: Path) -> Iterator[Path]:
    """The finished project, put back to its commit after the test."""
    yield project
    git(project, "checkout", "--quiet", "--", ".")


def test_the_run_ends_with_scores_and_what_to_do_next(project: Path) -> None:
    output = (project / ".vidbridge" / "first-run.txt").read_text()
    for word in (
        "base",
        "cold-start",
        "bridge",
        "general",
        "random",
        "constant",
        "general - cold-start",
        "vidbridge promote",
    ):
        assert word in output


def test_every_artefact_validates(project: Path) -> None:
    clips = read_rows(project / "data/clips/manifest.jsonl", Clip)
    assert len(clips) == 64
    for path in sorted((project / "data/samples").glob("*/*.jsonl")):
        assert read_rows(path, Sample)
    for row in ("base", "cold-start", "bridge", "general"):
        checkpoints = read_rows(project / "models" / row / "checkpoints.jsonl", Checkpoint)
        assert [c.final for c in checkpoints] == [False] * (len(checkpoints) - 1) + [True]
        scores = read_rows(project / "scores" / row / "predictions.jsonl", Score)
        assert len(scores) == 6 * 8
        assert all(0 <= score.value <= 1 for score in scores if score.value is not None)
        table = json.loads((project / "scores" / row / "scores.json").read_text())
        for view in ("blank", "shuffled"):
            changed = read_rows(project / "scores" / row / f"predictions_{view}.jsonl", Score)
            assert [score.sample_id for score in changed] == [score.sample_id for score in scores]
            means = [sum(s.value or 0.0 for s in changed if s.task == task) / 8 for task in table["tasks"]]
            assert table[f"{view}_mean"] == pytest.approx(sum(means) / 6)
            assert [task[view] for task in table["tasks"].values()] == pytest.approx(means)
    for row in ("bridge", "general"):
        groups = read_rows(project / "models" / row / "rollouts.jsonl", RolloutGroup)
        assert {group.step for group in groups} == {2, 4}
        assert [group for group in groups if len(group.rollouts) != 8] == []
    assert json.loads((project / "reports/metrics.json").read_text())["candidate"] == "general"


@pytest.mark.slow
def test_the_candidate_is_put_through_our_own_benchmark(project: Path) -> None:
    samples = read_rows(project / "data/samples/test/mix_vid_qa.jsonl", Sample)
    asked = (
        "--benchmark",
        "mix-vid-qa-test",
        "--annotations",
        "data/samples/test",
        "--out",
        ".vidbridge/mix",
        "--controls",
        "4",
    )
    shown = succeed(project, "vidbridge", "evaluate", "--model", "candidate", *asked)
    assert f"{len(samples)} of {len(samples)} questions answered" in shown
    written = json.loads((project / ".vidbridge/mix/scores.json").read_text())
    assert written["partial"] is False
    # The frames and the words are those of the pipeline's own evaluation.
    own = {score.sample_id: score.reply for score in read_rows(project / "scores/general/predictions.jsonl", Score)}
    rows = [json.loads(line) for line in (project / ".vidbridge/mix/predictions.jsonl").read_text().splitlines()]
    shared = [row for row in rows if row["id"] in own]
    assert len(shared) == 8
    assert [row for row in shared if row["reply"] != own[row["id"]]] == []


def test_an_engine_scores_a_policy_as_this_process_does(project: Path, tmp_path: Path) -> None:
    with served(HfEngine(project / "models/general/final")) as at:  # other weights than are scored
        succeed(
            project,
            *("python", "-m", "stages", "rescore", "cold-start", "models/cold-start/final", str(tmp_path)),
            VIDBRIDGE_ROLLOUT_ENGINE=at.address,
        )
        with at.client() as client:
            assert client.health().weights.startswith("evaluate.cold.start-")
    own, found = (
        json.loads((folder / "scores.json").read_text()) for folder in (project / "scores/cold-start", tmp_path)
    )
    assert found == own


def test_weights_moved_in_every_training_stage(project: Path) -> None:
    from safetensors.torch import load_file

    weights = {
        row: load_file(project / "models" / row / "final/model.safetensors")
        for row in ("base", "cold-start", "bridge", "general")
    }
    for before, after in (("base", "cold-start"), ("cold-start", "bridge"), ("bridge", "general")):
        moved = [name for name, value in weights[before].items() if not value.equal(weights[after][name])]
        assert any("visual" in name for name in moved), f"{after}: the vision tower did not learn"
        assert any("layers" in name and "visual" not in name for name in moved), (
            f"{after}: the language model did not learn"
        )


def test_a_second_run_does_nothing_and_says_so(project: Path) -> None:
    output = succeed(project, "vidbridge", "run", "--yes")
    assert "up to date" in output
    assert "will run" not in output
    assert "up to date" in succeed(project, "dvc", "status")


def test_a_learning_rate_reruns_its_stage_and_what_follows_only(edited: Path) -> None:
    text = (edited / "params.yaml").read_text()
    at = text.index("general:")
    (edited / "params.yaml").write_text(
        text[:at] + text[at:].replace("learning_rate: 2.0e-4", "learning_rate: 1.0e-4", 1)
    )
    lines = succeed(edited, "vidbridge", "plan").splitlines()
    planned = {line.split()[0] for line in lines if "will run" in line}
    assert planned == {"grpo@general", "evaluate@general", "summary"}


def test_a_comment_in_tracking_reruns_nothing(edited: Path) -> None:
    with (edited / "stages/tracking/runs/run.py").open("a") as file:
        file.write("# a remark\n")
    assert "will run" not in succeed(edited, "vidbridge", "plan")


def test_packages_did_their_work(project: Path) -> None:
    """decord served the frames, ffmpeg-python built the commands, TRL trained: logged as metrics in
    MLflow."""
    code = """
import json
from mlflow.tracking import MlflowClient
client = MlflowClient()
(experiment,) = [e for e in client.search_experiments() if e.name == "vidbridge"]
runs = client.search_runs([experiment.experiment_id])
rows = {}
for run in runs:
    tags = run.data.tags
    pages = [file.path for file in client.list_artifacts(run.info.run_id, "rollouts")]
    row = [run.data.metrics, tags.get("mlflow.parentRunId"), run.info.status, pages]
    rows[tags.get("vidbridge.stage", "pipeline")] = row
print(json.dumps(rows))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=project,
        env=environment(project, MLFLOW_TRACKING_URI=f"sqlite:///{project}/.vidbridge/mlflow.db"),
        capture_output=True,
        text=True,
        check=True,
    )
    runs = json.loads(done.stdout.strip().splitlines()[-1])
    parent = runs.pop("pipeline")
    assert parent[2] == "FINISHED"
    assert [run for run in runs.values() if not (run[1] is not None and run[2] == "FINISHED")] == []
    assert runs["corpus"][0]["commands_built_by_ffmpeg_python"] == 64
    shown = [runs[stage][0] for stage in ("sft@cold-start", "grpo@bridge", "evaluate@general")]
    # What one stage has decoded, later ones read from the disk.
    assert sum(metrics["frames_served_by_decord"] for metrics in shown) > 0
    assert all(metrics["frames_served_by_decord"] + metrics["frame_store_hits"] > 0 for metrics in shown)
    assert runs["grpo@general"][0]["reward"] >= 0
    for stage, run in runs.items():
        assert run[3] == ([f"rollouts/step-{n:08d}.html" for n in (2, 4)] if stage.startswith("grpo@") else []), stage


# Plain DVC imports everything again for each of thirteen stages; tests/flows/test_pipeline.py
# compares all stages of a light project.
@pytest.mark.slow
@pytest.mark.parametrize("target", ["base", "summary"])
def test_dvc_repro_from_scratch_leaves_the_same_lock_and_the_same_versions(
    project: Path, tmp_path: Path, target: str
) -> None:
    other = make_project(tmp_path / "plain")
    succeed(other, "dvc", "repro", "--quiet", target)
    ran, same = (yaml.safe_load((folder / "dvc.lock").read_text())["stages"] for folder in (project, other))
    assert target in same
    assert same == (ran if target == "summary" else {stage: ran[stage] for stage in same})
    succeed(other, "vidbridge", "register")
    assert versions(other) == [version for version in versions(project) if version[0] in same] != []


def versions(project: Path) -> list[list[str]]:
    """Stage, step and source of every registered version."""
    code = """
import json
from mlflow.tracking import MlflowClient
found = MlflowClient().search_model_versions("name='vidbridge-smoke'")
print(json.dumps(sorted([v.tags["vidbridge.stage"], v.tags["vidbridge.step"], v.source] for v in found)))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=project,
        env=environment(project, MLFLOW_TRACKING_URI=f"sqlite:///{project}/.vidbridge/mlflow.db"),
        capture_output=True,
        text=True,
        check=True,
    )
    found: list[list[str]] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def test_promote_explain_predict_report_and_a_fresh_clone(project: Path, tmp_path: Path) -> None:
    assert "is champion" in succeed(project, "vidbridge", "promote", "--reason", "end to end")
    explained = succeed(project, "vidbridge", "explain", "champion")
    for word in ("grpo@general", "grpo@bridge", "sft@cold-start", "base"):
        assert word in explained
    clip = ROOT / "tests/data/clips/bigbuckbunny.mp4"
    said = succeed(project, "vidbridge", "predict", str(clip), "--question", "describe the video .")
    assert "generated shapes only" in said
    succeed(project, "vidbridge", "report")
    (page,) = project.glob("report*.html")
    text = page.read_text()
    shown = html.unescape(text)
    for row in ("bridge", "general"):
        assert f"{row}, step 4" in shown
        for group in read_rows(project / "models" / row / "rollouts.jsonl", RolloutGroup):
            assert group.step < 4 or all(rollout.score.reason in shown for rollout in group.rollouts)
    assert "http://" not in text.replace("http://www.w3.org", "")

    clone = tmp_path / "clone"
    git(project, "clone", "--quiet", str(project), str(clone))
    code = """
import mlflow, sys
from transformers import AutoModelForImageTextToText, AutoProcessor
folder = mlflow.artifacts.download_artifacts("models:/vidbridge-smoke@champion", dst_path="champion")
model = AutoModelForImageTextToText.from_pretrained(folder)
AutoProcessor.from_pretrained(folder)
print(type(model).__name__)
"""
    changes = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{project}/.vidbridge/mlflow.db",
        "VIDBRIDGE_DVC_REMOTE": str(project / ".vidbridge/remote"),
        "VIDBRIDGE_PROJECT": str(clone),
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=clone,
        env=environment(clone, **changes),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().splitlines()[-1] == "Qwen2_5_VLForConditionalGeneration"


@pytest.mark.slow
def test_the_real_clip_goes_through_ingest_and_synthesize(tmp_path: Path) -> None:
    folder = make_project(tmp_path / "own")
    shutil.copytree(ROOT / "tests/data/clips", tmp_path / "videos")
    edit(folder / "params.yaml", "source: data/corpus", f"source: {tmp_path / 'videos'}")
    edit(folder / "params.yaml", "judge: {kind: rule,", "judge: {kind: rule_on_real_text,")
    commit(folder, "own videos")
    succeed(folder, "dvc", "repro", "--quiet", "synthesize")
    (clip,) = read_rows(folder / "data/clips/manifest.jsonl", Clip)
    assert (clip.frames, clip.width, clip.height, clip.codec) == (132, 1280, 720, "h264")
    summary = json.loads((folder / "data/samples/summary.json").read_text())
    counts = {
        task: sum(summary["samples"][split][task] for split in summary["samples"])
        for task in summary["samples"]["train"]
    }
    assert counts["dark_event_infer"] >= 1
    assert counts["mcqa"] == counts["qa"] == 2
    assert counts["caption"] == 1
    assert summary["rejects"]["nothing-to-ask"] == 1
    assert not (folder / "data/corpus").exists(), "own videos need no generated corpus"
    assert (folder / "data/samples/sheets/dark_event_infer.png").stat().st_size > 10_000
