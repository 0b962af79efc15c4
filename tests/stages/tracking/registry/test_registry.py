"""Registration after a `dvc repro`: versions and their tags, and idempotence."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from flows.console.registry import explanation_table
from stages.tracking.lineage.lockfile import read_lock
from stages.tracking.lineage.uri import EXPERIMENT, RUN_FILES, TrackingError
from stages.tracking.registry.explain import explain
from stages.tracking.registry.named import find_named
from stages.tracking.registry.register import RegisterReport, register
from stages.tracking.registry.versions import all_versions, load_version
from stages.tracking.runs.run import TAG
from stages.tracking.runs.store import open_client
from stages.tracking.session import Session
from tests.support.checkout import ROOT

MODEL = "vidbridge-tiny"
#: Stage and step of the seven versions, in order.
VERSIONS = [
    ("base", 0),
    ("sft@cold-start", 5),
    ("sft@cold-start", 10),
    ("grpo@bridge", 5),
    ("grpo@bridge", 10),
    ("grpo@general", 5),
    ("grpo@general", 10),
]


def weights(folder: Path) -> int:
    """Bytes of model weights below a folder, each file (not each link) once."""
    files = {
        path.stat().st_ino: path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and path.stat().st_size >= 1 << 20
    }
    return sum(files.values())


def test_every_checkpoint_becomes_a_version_once_and_no_weights_are_copied(project: Path) -> None:
    before = weights(project / ".vidbridge")
    first = register(Session(project))
    assert [(version.stage, version.step) for version in first.created] == VERSIONS
    assert (first.kept, first.candidate, first.skipped, first.warnings) == (0, 7, (), ())
    assert first.pushed
    again = register(Session(project))
    assert (again.created, again.kept, again.updated, again.candidate, again.pushed) == ((), 7, (), 7, 0)
    assert weights(project / RUN_FILES) == 0
    # The push to the remote (which lies below the project here) is the only copy, a content each.
    assert weights(project / ".vidbridge") - before == weights(project / ".dvc/cache")


def test_a_version_says_where_it_comes_from(project: Path, git_output: Callable[..., str]) -> None:
    register(Session(project))
    lock = read_lock(project)
    found = explain(Session(project), "candidate")
    version = found.version
    assert (version.number, version.stage, version.step, version.final, version.recipe) == (
        7,
        "grpo@general",
        10,
        True,
        "tiny",
    )
    assert found.commit == found.git_commit == git_output(project, "rev-parse", "HEAD").strip()
    assert found.source == f"dvc://{lock['grpo@general'].outs['models/general']}/final"
    assert found.params["params.yaml"]["grpo.general"]["rollouts"] == 8
    assert found.data == {"data/samples": lock["synthesize"].outs["data/samples"]}
    assert [(item.stage, item.version) for item in found.ancestors] == [
        ("grpo@bridge", 5),
        ("sft@cold-start", 3),
        ("base", 1),
    ]
    assert found.scores is not None
    assert (found.scores.mean, found.scores.digest) == (0.8, "d1")
    assert version.baselines is not None
    assert version.baselines.means == {"random": 0.1, "constant": 0.16}
    # Only evaluated policies have scores: the final ones.
    assert [item.scores is not None for item in all_versions(open_client(project), MODEL)] == [
        True,
        False,
        True,
        False,
        True,
        False,
        True,
    ]
    assert explain(Session(project), 1).source == f"dvc:///{lock['base'].outs['models/base/final']}"


def test_a_changed_row_gives_new_versions_of_it_and_of_what_follows(
    project: Path, repro: Callable[[Path], None]
) -> None:
    register(Session(project))
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["grpo"]["general"]["completions_per_device"] //= 2
    (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    stale = register(Session(project))
    assert (stale.created, stale.candidate) == ((), None)
    assert stale.skipped == ("grpo@general: params.yaml differs from what it was made with (grpo.general)",)
    assert dict(stale.unregistered) == {"grpo@general": stale.skipped[0]}
    repro(project)
    # The toy training does not look at that parameter: same content, same versions, which now have
    # the new lock.
    report = register(Session(project))
    assert (report.created, report.skipped, report.candidate) == ((), (), 7)
    (project / "source.txt").write_text("clips and one more\n")
    (project / "rates.json").write_text("2\n")
    repro(project)
    report = register(Session(project))
    assert [(version.stage, version.step) for version in report.created] == VERSIONS[1:]
    assert report.candidate == 13
    assert any("no commit holds this dvc.lock" in warning for warning in report.warnings), report.warnings
    assert explain(Session(project), 13).commit is None


def test_scores_that_come_later_reach_the_version(project: Path, repro: Callable[[Path], None]) -> None:
    text = (project / "means.json").read_text()
    register(Session(project))
    (project / "means.json").write_text(text.replace("0.8", "0.7"))
    repro(project)
    assert register(Session(project)).updated == (7,)
    scores = explain(Session(project), 7).scores
    assert scores is not None
    assert scores.mean == 0.7


def test_lock_and_parameters_are_kept_with_a_run(project: Path, tmp_path: Path) -> None:
    register(Session(project))
    register(Session(project))
    client = open_client(project)
    runs = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    assert [run.data.tags[TAG + "kind"] for run in runs] == ["register"]
    for name in ("dvc.lock", "params.yaml"):
        kept = Path(client.download_artifacts(runs[0].info.run_id, name, str(tmp_path)))
        assert kept.read_bytes() == (project / name).read_bytes()


REGISTER = (
    "import sys; from pathlib import Path; from stages.tracking.registry.register import register; from"
    " stages.tracking.session import Session; register(Session(Path(sys.argv[1])))"
)


@pytest.mark.slow
def test_two_registrations_at_once_make_no_duplicates(project: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", REGISTER, str(project)]
    both = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    versions = all_versions(open_client(project), MODEL)
    assert [(version.stage, version.step) for version in versions] == VERSIONS


def test_without_a_remote_it_says_so(project: Path) -> None:
    (project / ".dvc/config").write_text("[core]\n    analytics = false\n")
    report = register(Session(project))
    assert report.pushed is None
    assert report.warnings[0].startswith("no DVC remote: these versions load on this machine only")
    assert len(report.created) == 7


def test_an_unwritable_remote_registers_nothing(project: Path) -> None:
    (project / ".vidbridge/remote").write_text("a file where a folder should be")
    with pytest.raises(TrackingError, match=r"DVC remote 'local'"):
        register(Session(project))
    assert all_versions(open_client(project), MODEL) == []


def test_a_damaged_checkpoint_list_is_named(project: Path, repro: Callable[[Path], None]) -> None:
    text = (project / "make.py").read_text()
    (project / "make.py").write_text(text.replace('"path": path,', '"path": path + "x",'))
    repro(project)
    with pytest.raises(
        TrackingError, match=r"models/cold-start/checkpoints.jsonl line 1: path 'checkpoint-5x' is not in the out"
    ):
        register(Session(project))


@pytest.mark.slow
def test_a_server_takes_the_versions_and_a_clone_with_an_empty_cache_loads_them(
    project: Path, tmp_path: Path, mlflow_server: str, monkeypatch: pytest.MonkeyPatch, git_output: Callable[..., str]
) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    # Other tests register on this server too, and its version numbers go on from theirs.
    name = f"{MODEL}-elsewhere"
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace(f"registered_model: {MODEL}", f"registered_model: {name}"))
    git_output(project, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qam", "another model")
    report: RegisterReport = register(Session(project))
    assert [(version.stage, version.step) for version in report.created] == VERSIONS
    clone = tmp_path / "clone"
    git_output(tmp_path, "clone", "-q", str(project), str(clone))
    monkeypatch.setenv("VIDBRIDGE_PROJECT", str(clone))
    mlflow.set_tracking_uri(mlflow_server)
    try:
        with pytest.raises(mlflow.exceptions.MlflowException, match="dvc push, here run dvc fetch"):
            mlflow.artifacts.download_artifacts(f"models:/{name}@candidate")
        monkeypatch.setenv("VIDBRIDGE_DVC_REMOTE", str(project / ".vidbridge/remote"))
        folder = Path(mlflow.artifacts.download_artifacts(f"models:/{name}@candidate"))
        assert {path.name for path in folder.iterdir()} >= {"config.json", "model.safetensors"}
        assert (folder / "model.safetensors").read_bytes() == (
            project / "models/general/final/model.safetensors"
        ).read_bytes()
        base = Path(mlflow.artifacts.download_artifacts(f"models:/{name}/1"))
        assert json.loads((base / "config.json").read_text())["trained"] == "base"
        # Only what was asked for was fetched: one final policy and the base, of seven.
        assert weights(clone / ".dvc/cache") == 2 * (2 << 20)
        assert (
            load_version(clone, find_named(Session(clone), "candidate")).joinpath("config.json").read_bytes()
            == (folder / "config.json").read_bytes()
        )
        assert [item.version for item in explain(Session(clone), 7).ancestors] == [5, 3, 1]
        # The files MLflow needs to serve it are included, also for a copy of the version under
        # another name, as for production.
        copy = mlflow.MlflowClient().copy_model_version(f"models:/{name}@candidate", f"{name}-production")
        for uri in (f"models:/{name}@candidate", f"models:/{copy.name}/{copy.version}"):
            names = [item.path for item in mlflow.artifacts.list_artifacts(uri)]
            assert names == ["MLmodel", "config.json", "model.safetensors", "served.py", "vidbridge.json"]
        shutil.rmtree(base)
        shutil.rmtree(folder)
    finally:
        mlflow.set_tracking_uri(None)


def test_the_candidate_is_the_checkpoint_that_a_watched_training_kept(
    project: Path, repro: Callable[[Path], None]
) -> None:
    kept = {"keep": "best", "step": 5, "score": 0.61, "last_step": 10, "last_score": 0.5}
    text = (project / "make.py").read_text()
    for old, new in (
        ('(5, "checkpoint-5"), (10, "final")', '(5, "final"), (10, "checkpoint-10")'),
        (
            '    (out / "checkpoints.jsonl")',
            f'    (out / "summary.json").write_text(json.dumps({{"kept": {kept!r}}}))\n    (out / "checkpoints.jsonl")',
        ),
    ):
        assert old in text
        text = text.replace(old, new)
    (project / "make.py").write_text(text)
    repro(project)
    report = register(Session(project))
    versions = {(version.stage, version.step): version for version in all_versions(open_client(project), MODEL)}
    best, last = versions["grpo@general", 5], versions["grpo@general", 10]
    assert (report.candidate, best.final, last.final) == (best.number, True, False)
    assert best.source.endswith("/final")
    assert last.source.endswith("/checkpoint-10")
    assert json.loads(best.tags[TAG + "kept"]) == kept
    assert best.kept == "best checkpoint, step 5: 0.610 on the validation subset; the last, step 10: 0.500"
    assert (last.kept, best.scores is not None, last.scores) == (None, True, None)
    out = Console(width=120, file=StringIO())
    out.print(explanation_table(explain(Session(project), "candidate")))
    assert "best checkpoint, step 5: 0.610" in out.file.getvalue()  # type: ignore[attr-defined]
