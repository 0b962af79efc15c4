"""The command line: quick, and errors that the user can act upon."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from flows.errors import UsageError
from flows.housekeeping import scratch
from flows.params_file import recipes
from flows.processes.locks import only_run
from flows.project import run as running
from flows.repro import registered
from flows.repro.scratch import release_scratch
from flows.repro.steps import Plan, PlanStep, StageMeta
from stages.runtime.leases import lease
from stages.tracking.lineage.uri import TrackingError
from stages.tracking.registry.register import RegisterReport
from stages.tracking.session import Session
from tests.support.checkout import ROOT
from tests.support.processes.commands import vidbridge


def test_importing_the_command_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'prefect', 'mlflow', 'dvc', 'pydantic', 'numpy', 'rich.table'}"
    code = f"import sys, flows.cli.main; print(sorted(name for name in {heavy} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_command_teaches_with_an_example() -> None:
    from flows.cli.main import COMMANDS, GROUPS

    for commands in (COMMANDS, *(grouped for _, grouped in GROUPS.values())):
        without = [name for name, command in commands.items() if "xample:" not in (command.__doc__ or "")]
        assert without == []


def test_a_run_with_nothing_to_do_says_so_and_starts_no_server(done: Path) -> None:
    registered.write(Session(done), RegisterReport("m", (), 4, (), 4, None, (), (), 0, {}))
    registered.promoted(done, 4)
    shown = vidbridge("run", cwd=done, PATH="/nonexistent")
    assert shown.returncode == 0, shown.stderr
    assert "nothing to do" in shown.stdout
    assert "cold-start" in shown.stdout
    assert "0.600" in shown.stdout
    assert not (done / ".vidbridge/prefect").exists()
    assert not (done / ".vidbridge/run.lock").exists()
    assert "vidbridge promote" not in shown.stdout, "the candidate is the champion"


def test_a_finished_run_is_registered_once_its_server_is_there(done: Path) -> None:
    """Also one that was cut short between its last stage and the registry."""
    report = RegisterReport("m", (), 4, (), 4, None, (), (), 0, {})
    assert not registered.is_noted(Session(done))
    registered.write(Session(done), report)
    assert registered.is_noted(Session(done))
    assert not registered.is_noted(Session(done), pushed=True)
    registered.pushed(done)
    assert registered.is_noted(Session(done), pushed=True)
    for name, text in (("dvc.lock", "\n"), ("params.yaml", None)):
        before = (done / name).read_text()
        (done / name).write_text(before + text if text else before.replace("learning_rate: ", "learning_rate: 1", 1))
        assert not registered.is_noted(Session(done)), name
        (done / name).write_text(before)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://anna:password@127.0.0.1:9")
        assert not registered.is_noted(Session(done))
        registered.write(Session(done), report)
        assert "password" not in (done / ".vidbridge/registered.json").read_text()
        # Nothing to run, and nothing is noted of that store.
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        with pytest.raises(TrackingError, match=r"MLFLOW_TRACKING_URI: http://127\.0\.0\.1:9: "):
            running.run(done, "summary", dry_run=False, ask=False)
    assert not registered.is_noted(Session(done))


def test_what_was_not_registered_or_not_judged_is_new_to_a_schedule(done: Path) -> None:
    from flows.scheduled import is_nothing_new

    def found(number: int) -> RegisterReport:
        return RegisterReport("m", (), number, (), number, None, (), (), 0, {})

    plan = Plan("summary", (PlanStep("summary", "restore", (), (), (), StageMeta()),))
    registered.write(Session(done), found(4))
    assert not is_nothing_new(Session(done), plan, promote=True), "its promotion failed"
    registered.judged(done, 4)
    registered.write(Session(done), found(4))
    assert is_nothing_new(Session(done), plan, promote=True)
    # The run cache knows what an earlier run made and could not register.
    known = replace(plan, steps=(replace(plan.steps[0], entry="a/b"),))
    assert not is_nothing_new(Session(done), known, promote=False)
    registered.write(Session(done), found(5))
    assert registered.awaits_gate(done)


def test_a_plan_says_why_and_changes_nothing(done: Path) -> None:
    (done / "learning.py").write_text("rate = 2\n")
    before = (done / "dvc.lock").read_bytes()
    for command in (["plan"], ["run", "--dry-run"]):
        shown = vidbridge(*command, cwd=done)
        assert "dep learning.py changed" in shown.stdout
        assert "5 to run, 7 up to date" in shown.stdout
    assert (done / "dvc.lock").read_bytes() == before


#: With the rule judge accepted for it; without that, parameters are refused before anybody looks
#: for the folder.
MISSING_FOLDER = (
    ("source: data/corpus", "source: missing-folder"),
    ("judge: {kind: rule,", "judge: {kind: rule_on_real_text,"),
)


@pytest.mark.parametrize(
    ("edits", "env", "said"),
    [
        (MISSING_FOLDER, {}, "ingest.source: 'missing-folder' is not a folder"),
        (MISSING_FOLDER[:1], {}, "{project}/params.yaml: judge.kind: 'rule' reads the sentences of data/corpus only"),
        ((), {"VIDBRIDGE_FFMPEG": "no-such-ffmpeg"}, "VIDBRIDGE_FFMPEG: no-such-ffmpeg: no such program"),
        ((), {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}, "MLFLOW_TRACKING_URI: http://127.0.0.1:9: no answer"),
        ((), {"PREFECT_API_URL": "http://127.0.0.1:9/api"}, "PREFECT_API_URL: http://127.0.0.1:9/api: no answer"),
    ],
)
def test_what_would_fail_later_fails_before_any_stage_starts(
    project: Path, edits: tuple[tuple[str, str], ...], env: dict[str, str], said: str
) -> None:
    for edit in edits:
        text = (project / "params.yaml").read_text()
        assert edit[0] in text
        (project / "params.yaml").write_text(text.replace(*edit))
    shown = vidbridge("run", cwd=project, **env)
    assert shown.returncode in (1, 2)
    assert f"error: {said.format(project=project)}" in shown.stderr
    assert "Traceback" not in shown.stderr
    assert not (project / ".vidbridge/attempts.txt").exists()


def test_a_broken_rule_in_the_parameters_is_a_usage_error(project: Path) -> None:
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text + "extra: 1\n")
    shown = vidbridge("run", cwd=project)
    assert shown.returncode == 2
    assert "unknown key" in shown.stderr


def test_two_runs_of_one_project_do_not_meet(done: Path) -> None:
    (done / "learning.py").write_text("rate = 2\n")
    with only_run(done):
        shown = vidbridge("run", cwd=done)
    assert shown.returncode == 1
    assert "is running this project already" in shown.stderr


def test_outside_a_project_and_without_git_one_message_each(tmp_path: Path, project: Path) -> None:
    (tmp_path / "empty").mkdir()
    shown = vidbridge("plan", cwd=tmp_path / "empty")
    assert shown.returncode == 2
    assert "not inside a project" in shown.stderr
    shutil.rmtree(project / ".git")
    shown = vidbridge("run", cwd=project)
    assert shown.returncode == 1
    assert "git" in shown.stderr
    assert "Traceback" not in shown.stderr


def test_a_port_in_use_is_one_message(project: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for option in ("--mlflow-port", "--prefect-port"):
            shown = vidbridge("ui", option, port, cwd=project)
            assert shown.returncode == 2
            assert f"{port} is in use" in shown.stderr


def test_the_doctor_finds_what_is_there_and_what_is_not(project: Path) -> None:
    shown = vidbridge("doctor", cwd=project)
    assert shown.returncode == 0, shown.stdout
    for word in (
        "ffmpeg",
        "decord",
        "PyAV",
        "DeepSpeed",
        "MLflow store",
        "Prefect API",
        "DVC remote",
        "judge",
        "git",
        "ready",
    ):
        assert word in shown.stdout
    shown = vidbridge("doctor", "--json", cwd=project, VIDBRIDGE_FFMPEG="no-such-ffmpeg")
    assert shown.returncode == 1
    found = json.loads(shown.stdout)
    assert not found["ready"]
    assert [one["what"] for one in found["findings"] if one["state"] == "missing"] == ["ffmpeg"]


@pytest.fixture
def cookbook(project: Path) -> Path:
    (project / "infra/recipes").mkdir(parents=True)
    text = (project / "params.yaml").read_text()
    (project / "infra/recipes/here.yaml").write_text(text)
    (project / "infra/recipes/other.yaml").write_text("# Another\n# seed.\n" + text.replace("seed: 7", "seed: 8"))
    (project / "infra/recipes/broken.yaml").write_text(text + "extra: 1\n")
    return project


def test_a_recipe_is_copied_and_edits_are_never_lost(cookbook: Path) -> None:
    listed = {one.name: one for one in recipes.recipes(cookbook)}
    assert listed["here"].in_use
    assert listed["other"].about.startswith("Another seed.")
    assert "+seed: 8" in recipes.difference(cookbook, "other")
    assert recipes.use(cookbook, "other").seed == 8
    (cookbook / "params.yaml").write_text((cookbook / "params.yaml").read_text() + "\n# my own\n")
    with pytest.raises(UsageError, match="edits that no commit"):
        recipes.use(cookbook, "here")
    assert "# my own" in (cookbook / "params.yaml").read_text()
    recipes.use(cookbook, "here", force=True)
    assert recipes.difference(cookbook, "here") == ""


def test_a_recipe_in_small_is_no_edit_to_be_lost(cookbook: Path) -> None:
    (cookbook / "infra/recipes/smoke.yaml").write_bytes((ROOT / "infra/recipes/smoke.yaml").read_bytes())
    small = recipes.use(cookbook, "other", smoke=True)
    assert (small.recipe, small.gate.registered_model) == ("other-smoke", "other-smoke")
    assert recipes.use(cookbook, "other").seed == 8
    recipes.use(cookbook, "other", smoke=True)
    path = cookbook / "params.yaml"
    path.write_text(path.read_text().replace("steps: 4\n", "steps: 5\n"))
    with pytest.raises(UsageError, match="edits that no commit"):
        recipes.use(cookbook, "other")


def test_a_recipe_that_does_not_load_is_not_used(cookbook: Path) -> None:
    before = (cookbook / "params.yaml").read_bytes()
    shown = vidbridge("recipe", "use", "broken", cwd=cookbook)
    assert shown.returncode == 2
    assert "unknown key" in shown.stderr
    assert (cookbook / "params.yaml").read_bytes() == before
    assert vidbridge("recipe", "use", "nope", cwd=cookbook).returncode == 2


def test_scratch_is_shown_and_deleted(project: Path) -> None:
    entry = project / ".vidbridge/scratch/grpo-bridge/1234"
    entry.mkdir(parents=True)
    (entry / "state.bin").write_bytes(bytes(1_500_000))
    shown = vidbridge("scratch", "status", cwd=project)
    assert "grpo-bridge/1234" in shown.stdout
    assert "1.5 MB" in shown.stdout
    assert "deleted 1 folders" in vidbridge("scratch", "clean", "--yes", cwd=project).stdout
    assert not entry.exists()


def test_the_state_to_resume_from_goes_with_the_stage_that_is_done_and_no_other(project: Path) -> None:
    """Not one that another run used last, nor one that another process holds: the folder may be
    shared by hosts.
    """
    other, mine = (project / f".vidbridge/scratch/grpo-bridge/{name}" for name in ("other", "mine"))
    for folder, run in ((other, "run of B"), (mine, "run of A")):
        (folder / "saved").mkdir(parents=True)
        (folder / "run.txt").write_text(run)
    with lease.held(mine, "grpo@bridge"):
        assert release_scratch(project, "grpo@bridge", "run of A") is None
    assert release_scratch(project, "grpo@bridge", "run of A") == mine
    assert other.exists()
    assert not mine.exists()
    assert release_scratch(project, "grpo@bridge", "run of A") is None


def test_what_somebody_trains_in_is_named_and_not_cleaned_away(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    used, left = (project / f".vidbridge/scratch/grpo-bridge/{name}" for name in ("used", "left"))
    left.mkdir(parents=True)
    with lease.held(used, "grpo@bridge"):
        scratch.show_scratch(project)
        scratch.delete_scratch(project, ask=False)
        assert (used.exists(), left.exists()) == (True, False)
    said = capsys.readouterr().out
    me = f"process {os.getpid()} on {socket.gethostname()}"
    assert f"held by {me}\n" in said
    assert f"grpo-bridge/used: is in use by {me}; left as it is" in said
    assert "deleted 1 folders" in said


def test_sigterm_ends_a_command_with_143_and_a_sentence(tmp_path: Path) -> None:
    """Also where it is process 1, as in a container: there a signal without a handler does
    nothing."""
    code = (
        "import time, flows.cli.main, flows.cli.command; flows.cli.main.main = lambda: (print('up', flush=True),"
        " time.sleep(60)); flows.cli.command.main()"
    )
    kill = (
        "import os, signal, subprocess, sys; p = subprocess.Popen([sys.executable, '-c', sys.argv[1]],"
        " stdout=subprocess.PIPE);"
    )
    kill += "p.stdout.readline(); p.terminate(); sys.exit(p.wait(20))"
    process_1 = ["unshare", "-Urpf", "--mount-proc"]
    refused = (
        not shutil.which("unshare") or subprocess.run([*process_1, "true"], capture_output=True, check=False).returncode
    )
    command = [sys.executable, "-c", code]
    if refused:
        done = subprocess.run(
            [sys.executable, "-c", kill, code], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 143, done.stderr
        assert done.stderr == "terminated; what this command had started has been ended\n"
        return
    process = subprocess.Popen([*process_1, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    (inner,) = psutil.Process(process.pid).children()
    inner.terminate()
    _, said = process.communicate(timeout=20)
    assert process.returncode == 143, said
    assert said == "terminated; what this command had started has been ended\n"
