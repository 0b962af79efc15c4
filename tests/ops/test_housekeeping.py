"""`vidbridge gc` where a team's servers hold everything: an S3 store that another project uses too,
MLflow with accounts."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.support.checkout import ROOT
from tests.support.projects.repository import commit
from tests.support.projects.small import dvc, lay_out
from tests.support.servers.service import environment
from tests.support.servers.stack import BUCKET, Stack

REMOTE = f"s3://{BUCKET}/kept"


def project(root: Path) -> Path:
    """A small project, with a model of its own: another test of this session may have made one of
    the usual name."""
    root.mkdir(parents=True)
    lay_out(root)
    params = (root / "params.yaml").read_text()
    (root / "params.yaml").write_text(
        params.replace("registered_model: vidbridge-tiny", "registered_model: vidbridge-kept")
    )
    return root


def test_a_remote_that_others_use_is_freed_of_what_is_ours(servers: Stack, tmp_path: Path) -> None:
    env = environment() | servers.env(remote=REMOTE)

    def call(folder: Path, *command: str, status: int = 0, **changes: str) -> str:
        done = subprocess.run(
            command, cwd=folder, env=env | changes, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    theirs = tmp_path / "theirs"
    theirs.mkdir()
    dvc(theirs, "init", "-q", "--no-scm")
    (theirs / "file").write_text("of another project")
    call(theirs, "dvc", "remote", "add", "-d", "shared", REMOTE)
    call(theirs, "dvc", "add", "-q", "file")
    call(theirs, "dvc", "push", "-q")

    root = project(tmp_path / "ours")
    dvc(root, "repro", "-q")
    commit(root, "first")
    call(root, "vidbridge", "register")
    (root / "rates.json").write_text("2\n")
    dvc(root, "repro", "-q")
    commit(root, "second")
    call(root, "vidbridge", "register")
    call(root, "vidbridge", "promote", "--reason", "it is the only one")

    asked = ("vidbridge", "gc", "--remote", "--versions", "--keep-days", "0")
    # Who may only read frees nothing.
    servers.add_user("reader-of-gc", "password-of-the-reader")
    reader = {"MLFLOW_TRACKING_USERNAME": "reader-of-gc", "MLFLOW_TRACKING_PASSWORD": "password-of-the-reader"}
    refused = call(root, *asked, "--yes", status=1, **reader)
    assert "nothing was freed" in refused
    servers.mlflow.kill()
    try:
        assert "nothing was freed" in call(root, *asked, "--yes", status=1)
    finally:
        servers.mlflow.start()
    freed = call(root, *asked, "--yes")
    assert "shared, and nothing says that it is this project's" in freed
    assert "MB freed" in freed

    # The other project is whole, and so is ours, on a machine that has nothing: the work tree and
    # the champion.
    shutil.rmtree(theirs / ".dvc/cache")
    (theirs / "file").unlink()
    call(theirs, "dvc", "pull", "-q")
    assert (theirs / "file").read_text() == "of another project"
    shutil.rmtree(root / ".dvc/cache")
    load = (
        "from pathlib import Path; from stages.tracking.registry.named import find_named; from stages.tracking.session"
        " import Session\nfrom stages.tracking.registry.versions import load_version; print(load_version(Path.cwd(),"
        " find_named(Session(Path.cwd()), 'champion')))"
    )
    loaded = Path(call(root, "python", "-c", load, PYTHONPATH=str(ROOT)).strip().splitlines()[-1])
    assert (loaded / "model.safetensors").stat().st_size == 2 << 20

    # What is gone is made again, and not believed to be there: the run cache knew its stages.
    (root / "rates.json").write_text("1\n")
    again = call(root, "dvc", "repro", "sft@cold-start")
    assert "Running stage 'sft@cold-start'" in again
    assert (root / "models/cold-start/final/model.safetensors").is_file()
