"""Runs: entries of a stage while it works, its final status, and the outbox when the store dies."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest

from stages.domain.core.records import Checkpoint
from stages.params import Params, load_params
from stages.runtime.machine import gpus_in_use
from stages.runtime.paths import UNSENT
from stages.tracking.lineage.uri import (
    EXPERIMENT,
    RUN_FILES,
    TrackingError,
)
from stages.tracking.registry.register import register
from stages.tracking.runs.outbox import send_unsent
from stages.tracking.runs.run import TAG, pipeline_run, process_cost, stage_run
from stages.tracking.runs.store import open_client
from stages.tracking.session import Session
from tests.support.servers.wire import Wire
from tests.support.tracking.runs import logged, status


def test_a_run_says_what_it_is_made_of(project: Path, params: Params) -> None:
    with stage_run("grpo@bridge", params) as run:
        run.log(1, {"reward": 0.25, "loss/kl": 1.0})
        run.log(2, {"reward": 0.5})
        run.summary({"final/reward": 0.5})
    found = open_client(project).get_run(run.run_id or "")
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "grpo@bridge"
    assert logged(found) == {"reward": 0.5, "loss/kl": 1.0, "final/reward": 0.5}
    assert found.data.metrics["process/cpu_s"] > 0
    assert found.data.metrics["process/peak_gb"] > 0
    assert found.data.metrics["process/gpu_h"] == 0, "nothing here has worked on a GPU"
    assert [
        (point.step, point.value) for point in open_client(project).get_metric_history(run.run_id or "", "reward")
    ] == [
        (1, 0.25),
        (2, 0.5),
    ]
    tags = {name.removeprefix(TAG): value for name, value in found.data.tags.items() if name.startswith(TAG)}
    assert (tags["kind"], tags["stage"], tags["recipe"], tags["git_dirty"]) == ("stage", "grpo@bridge", "tiny", "false")
    assert json.loads(tags["versions"])["mlflow"] == version("mlflow")
    assert set(json.loads(tags["machine"])) == {"system", "processor", "cores", "memory"}
    assert set(json.loads(tags["data"])) == {"data/samples", "models/cold-start/final", "rates.json"}
    # Only the parameters the stage uses, according to DVC.
    assert found.data.params["grpo.bridge.learning_rate"] == str(params.grpo["bridge"].learning_rate)
    assert [name for name in found.data.params if name.startswith(("sft", "corpus"))] == []
    assert "mlflow.parentRunId" not in found.data.tags


def test_every_rank_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """No machine of this suite has a GPU: the library that would report one is replaced."""
    cuda = SimpleNamespace(is_initialized=lambda: True, get_device_name=lambda: "H200")
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert gpus_in_use() == ["H200"] * 4
    cost = process_cost()
    assert cost["process/gpu_h"] == pytest.approx(4 * cost["process/wall_s"] / 3600)
    cuda.is_initialized = lambda: False
    assert gpus_in_use() == []
    assert process_cost()["process/gpu_h"] == 0


def test_the_stage_digest_is_that_of_the_lock_and_follows_parameters(project: Path, params: Params) -> None:
    with stage_run("grpo@bridge", params) as run:
        pass
    assert [version.run_id for version in register(Session(project)).created if version.stage == "grpo@bridge"] == [
        run.run_id
    ] * 2
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(re.sub(r"learning_rate: \S+", "learning_rate: 3.0e-4", text))
    with stage_run("grpo@bridge", load_params(project / "params.yaml")) as changed:
        pass
    assert changed.tags[TAG + "stage_digest"] != run.tags[TAG + "stage_digest"]


def test_a_stage_is_the_child_of_the_pipelines_run(
    project: Path, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pipeline_run(params, tags={"trigger": "schedule"}) as parent:
        monkeypatch.setenv("VIDBRIDGE_PIPELINE_RUN", parent.run_id or "")
        with stage_run("base", params) as child:
            pass
    client = open_client(project)
    assert client.get_run(child.run_id or "").data.tags["mlflow.parentRunId"] == parent.run_id
    assert client.get_run(parent.run_id or "").data.tags[TAG + "trigger"] == "schedule"
    assert status(project, parent.run_id) == status(project, child.run_id) == "FINISHED"


@pytest.mark.parametrize(
    ("raised", "expected"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "FAILED")]
)
def test_how_a_stage_ended_is_seen(project: Path, params: Params, raised: type[BaseException], expected: str) -> None:
    with pytest.raises(raised), stage_run("base", params) as run:  # noqa: PT012
        run.log(1, {"loss": 1.0})
        raise raised
    assert status(project, run.run_id) == expected
    assert logged(open_client(project).get_run(run.run_id or "")) == {"loss": 1.0}


def test_a_checkpoint_is_there_at_once(project: Path, params: Params) -> None:
    with stage_run("grpo@bridge", params) as run:
        checkpoint = Checkpoint(
            stage="grpo@bridge", step=25, path="checkpoint-25", final=False, metrics={"reward": 0.5}
        )
        run.log(25, {"loss": 0.1})
        run.checkpoint(checkpoint, project / "models/bridge/checkpoint-5")
        found = open_client(project).get_run(run.run_id or "")
        # Without waiting for the next batch (2 s).
        deadline = time.monotonic() + 1.5
        while f"{TAG}checkpoint.00000025" not in found.data.tags:
            assert time.monotonic() < deadline
            found = open_client(project).get_run(run.run_id or "")
    row = json.loads(found.data.tags[f"{TAG}checkpoint.00000025"])
    assert row == {
        "step": 25,
        "path": "checkpoint-25",
        "final": False,
        "location": str(project / "models/bridge/checkpoint-5"),
    }
    assert found.data.metrics == {"loss": 0.1, "checkpoint/reward": 0.5}
    assert found.info.status == "RUNNING"


def test_a_page_is_among_the_files_of_its_run(project: Path, params: Params) -> None:
    with stage_run("grpo@bridge", params) as run:
        run.page("rollouts/step-00000025.html", "<p>Größe ✓</p>")
        assert run.flush()
        client, run_id = open_client(project), run.run_id or ""
        assert [file.path for file in client.list_artifacts(run_id, "rollouts")] == ["rollouts/step-00000025.html"]
        assert (
            Path(client.download_artifacts(run_id, "rollouts/step-00000025.html")).read_text(encoding="utf-8")
            == "<p>Größe ✓</p>"
        )


def test_where_no_file_can_be_put_metrics_are_kept_and_the_stage_ends_well(
    project: Path, params: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    with stage_run("grpo@bridge", params) as run:
        run_id = run.run_id or ""
        in_the_way = project / RUN_FILES / run_id
        in_the_way.parent.mkdir(parents=True, exist_ok=True)
        in_the_way.write_text("a file where the folder should be")
        run.page("rollouts/step-00000025.html", "<p>seen</p>")
        run.log(25, {"reward": 0.5})
    client = open_client(project)
    assert status(project, run_id) == "FINISHED"
    assert logged(client.get_run(run_id)) == {"reward": 0.5}
    said = capsys.readouterr().err
    assert "artifact rollouts/step-00000025.html: " in said
    assert f"1 entries of run {run_id} could not be sent" in said
    with pytest.raises(TrackingError, match=r"artifact rollouts/step-00000025.html: .*run vidbridge register again"):
        register(Session(project))
    in_the_way.unlink()
    assert register(Session(project)).unsent == 1
    assert Path(client.download_artifacts(run_id, "rollouts/step-00000025.html")).read_text() == "<p>seen</p>"


def test_what_can_never_be_sent_holds_up_nothing(
    project: Path, params: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    client = open_client(project)
    runs = []
    for _ in range(2):
        with stage_run("base", params) as run:
            runs.append(run.run_id or "")
    client.delete_run(runs[0])
    folder = project / UNSENT
    folder.mkdir(parents=True, exist_ok=True)
    tag = json.dumps(["tag", "late", "yes"]) + "\n"
    page = json.dumps(["text", "page.html", "<p></p>"]) + "\n"
    poisoned = {
        runs[0]: tag,
        "0" * 32: page,
        "1" * 32: tag,
        "2" * 32: tag + '["metric", "rew',
        "3" * 32: '["metric", 1]\n',
    }
    for name, text in poisoned.items() | {(runs[1], tag)}:
        (folder / f"{name}.jsonl").write_text(text)
    assert send_unsent(client, project) == 1
    assert client.get_run(runs[1]).data.tags["late"] == "yes"
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{name}.jsonl.refused" for name in poisoned)
    assert capsys.readouterr().err.count("can never be sent") == len(poisoned)


def test_only_the_first_rank_writes(project: Path, params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with stage_run("base", params) as run:
        run.log(1, {"loss": 1.0})
        run.checkpoint(Checkpoint(stage="base", step=0, path="final", final=True), project)
        run.page("page.html", "<p></p>")
    assert run.run_id is None
    assert open_client(project).get_experiment_by_name(EXPERIMENT) is None


@pytest.mark.slow
def test_metrics_are_seen_on_a_server_while_the_stage_works(
    project: Path, params: Params, mlflow_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    with stage_run("base", params) as run:
        for step in range(1500):
            run.log(step, {"reward": step / 1500})
        deadline = time.monotonic() + 10
        while "reward" not in open_client(project).get_run(run.run_id or "").data.metrics:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert status(project, run.run_id) == "RUNNING"
        run.page("rollouts/step-00000025.html", "<p>seen</p>")
    files = open_client(project).list_artifacts(run.run_id or "", "rollouts")
    assert [file.path for file in files] == ["rollouts/step-00000025.html"]
    assert len(open_client(project).get_metric_history(run.run_id or "", "reward")) == 1500


@pytest.fixture
def wire(mlflow_server: str) -> Iterator[Wire]:
    port = urlsplit(mlflow_server).port or 0
    wire = Wire(lambda: port)
    yield wire
    wire.close()


@pytest.mark.slow
def test_a_server_that_dies_costs_no_training_and_no_metrics(
    project: Path, params: Params, wire: Wire, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{wire.port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with stage_run("base", params) as run:
        run.log(1, {"reward": 0.1})
        assert run.flush()
        wire.refuse()
        run.log(2, {"reward": 0.2})
        run.checkpoint(Checkpoint(stage="base", step=2, path="final", final=True), project)
    kept = project / UNSENT / f"{run.run_id}.jsonl"
    assert [json.loads(line)[0] for line in kept.read_text().splitlines()] == ["metric", "tag", *["metric"] * 4, "end"]
    assert "vidbridge register" in capsys.readouterr().err
    wire.accept()
    assert status(project, run.run_id) == "RUNNING"
    assert register(Session(project)).unsent == 7
    assert not kept.exists()
    found = open_client(project).get_run(run.run_id or "")
    assert logged(found) == {"reward": 0.2}
    assert found.info.status == "FINISHED"
    assert f"{TAG}checkpoint.00000002" in found.data.tags
