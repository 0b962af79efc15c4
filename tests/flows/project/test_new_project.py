"""A project of an installed package: only parameters, the pipeline and settings; its code is the
package's, and counts.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import yaml

from flows.cli import recipes as commands
from flows.deployments.prefect_file import deployment_name
from flows.deployments.repositories import inspect
from flows.errors import UsageError
from flows.processes.environment import SHIPPED
from flows.project import new_project
from flows.repro import package_code
from flows.repro.plan import make_plan
from tests.support.checkout import ROOT
from tests.support.projects.repository import commit


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "own"
    monkeypatch.setenv("VIDBRIDGE_PROJECT", str(root))
    commands.init(root, recipe="smoke")
    monkeypatch.chdir(root)
    return root


def test_what_is_written_can_be_planned_and_nothing_is_overwritten(own: Path, tmp_path: Path) -> None:
    assert (own / "params.yaml").read_bytes() == (ROOT / "infra/recipes/smoke.yaml").read_bytes()
    commit(own, "start")
    tracked = subprocess.run(["git", "ls-files"], cwd=own, capture_output=True, text=True, check=True).stdout.split()
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    files = {
        ".dvc/config",
        ".dvc/.gitignore",
        ".dvcignore",
        ".gitignore",
        "dvc.yaml",
        "mappings/README.md",
        "params.yaml",
        "tasks/README.md",
    }
    for readme in ("mappings/README.md", "tasks/README.md"):
        assert (own / readme).read_text() == (ROOT / readme).read_text()
    assert set(tracked) == files | {f"code/{stage}.txt" for stage in stages}
    assert len(make_plan(own).to_run) == 13
    assert deployment_name(own) == "nightly", "of the package, as the recipes are"
    found = inspect(str(own), "main", "", "tiny")
    assert (found.is_project, found.recipe, inspect(str(own), "main", "", "nope").recipe) == (True, "tiny", None)
    for folder in (own, own / "params.yaml"):
        with pytest.raises(UsageError, match="is not empty"):
            new_project.init(folder, "smoke", smoke=False)
    with pytest.raises(UsageError, match="'nope' does not exist; choose one of smoke, tiny"):
        new_project.init(tmp_path / "other", "nope", smoke=False)
    assert not (tmp_path / "other").exists()


def test_its_pipeline_is_ours_with_the_code_of_each_stage_as_one_file(own: Path) -> None:
    ours, theirs = (yaml.safe_load((root / "dvc.yaml").read_text()) for root in (ROOT, own))
    for name, stage in ours["stages"].items():
        stage = stage.get("do", stage)
        code = [dep for dep in stage["deps"] if dep.startswith("stages/")]
        stage["deps"] = sorted({*stage["deps"], f"code/{name}.txt"} - set(code))
        assert sorted(package_code.parse((own / f"code/{name}.txt").read_text())) == sorted(code)
    for stage in theirs["stages"].values():
        stage = stage.get("do", stage)
        stage["deps"] = sorted(stage["deps"])
    assert theirs == ours


def test_other_code_in_the_package_is_told_by_a_plan_and_an_older_pipeline_is_upgraded(own: Path) -> None:
    text = (own / "code/grpo.txt").read_text()
    (own / "code/grpo.txt").write_text(text.replace("stages/grpo ", "stages/grpo 0"))
    commit(own, "made by an older package")
    assert package_code.refresh(own) == ("grpo",)
    assert package_code.refresh(own) == ()
    assert (own / "code/grpo.txt").read_text() == text
    new = (own / "dvc.yaml").read_text()
    (own / "dvc.yaml").write_text(new.replace("timeout_s: 86400", "timeout_s: 1", 1))
    assert new_project.is_behind(own)
    with pytest.raises(UsageError, match="has edits that no commit keeps"):
        new_project.upgrade(own)
    commit(own, "as the older package had it")
    assert "-    meta: {kind: data, retries: 1, timeout_s: 1}\n" in new_project.upgrade(own)
    assert (own / "dvc.yaml").read_text() == new
    assert not new_project.is_behind(own)
    with pytest.raises(UsageError, match="its code is its own"):
        new_project.upgrade(ROOT)


def test_the_wheel_has_what_a_project_begins_with() -> None:
    table = (
        (ROOT / "pyproject.toml")
        .read_text()
        .partition("[tool.hatch.build.targets.wheel.force-include]\n")[2]
        .partition("\n\n")[0]
    )
    included = dict(reversed([part.strip('" ') for part in line.split("=")]) for line in table.splitlines())
    assert included == {f"flows/shipped/{name}": place for name, place in SHIPPED.items()}


def wheel(folder: Path) -> Path:
    """Build the wheel of the checkout's committed files, or of all its files if git does not list
    them.
    """
    source = folder / "source"
    names = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True
    ).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
    uv = next(
        (found for found in (ROOT / ".tools/bin/uv", shutil.which("uv")) if found and Path(found).is_file()), None
    )
    pip = [sys.executable, "-m", "pip"] if not shutil.which("pip") else [str(shutil.which("pip"))]
    build = [str(uv), "build", "--wheel", "-o", str(folder)] if uv else [*pip, "wheel", "--no-deps", "-w", str(folder)]
    done = subprocess.run([*build, str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("vidbridge-*.whl"))


@pytest.mark.slow
def test_a_project_of_an_installed_package_runs_and_an_upgrade_runs_what_it_changes(tmp_path: Path) -> None:
    """The wheel in an environment of its own, beside the libraries of this one; away from the
    checkout.
    """
    place = tmp_path / "env"
    subprocess.run([str(Path(sys.base_prefix) / "bin/python3"), "-m", "venv", "--without-pip", str(place)], check=True)
    (packages,) = place.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel(tmp_path)) as archive:
        archive.extractall(packages)
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    env = {
        name: value for name, value in os.environ.items() if not name.startswith(("VIDBRIDGE_", "MLFLOW_", "PYTHON"))
    }
    env |= {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}

    def vidbridge(*arguments: str, cwd: Path) -> str:
        command = [str(place / "bin/python"), "-m", "flows.cli.command", *arguments]
        done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    own = tmp_path / "own"
    vidbridge("init", "own", "--recipe", "smoke", cwd=tmp_path)
    subprocess.run("git add -A && git commit -qm start", shell=True, cwd=own, env=env, check=True)
    assert "13 to run" in vidbridge("plan", cwd=own)
    vidbridge("run", "synthesize", cwd=own)
    assert "nothing to do" in vidbridge("plan", "synthesize", cwd=own)
    subprocess.run("git add -A && git commit -qm data", shell=True, cwd=own, env=env, check=True)
    code = packages / "stages/ingest/split.py"
    code.write_text("# A comment is no other code.\n" + code.read_text())
    assert "nothing to do" in vidbridge("plan", "synthesize", cwd=own)
    code.write_text(code.read_text() + "\n\nOTHER = 1\n")
    planned = vidbridge("plan", "synthesize", cwd=own)
    assert "dep code/ingest.txt changed (stages/ingest)" in planned
    assert "2 to run, 1 up to date" in planned
    assert "ingest stands as it is" in vidbridge("accept", "ingest", "--why", "a constant that nothing reads", cwd=own)
    assert "nothing to do" in vidbridge("plan", "synthesize", cwd=own)
