"""A small project with one real registered model (a tiny Qwen2.5-VL), for what is done with versions."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import yaml
from learning.tiny_parts import tiny
from tracking.conftest import commit, dvc, run

from stages.learning.factory import save_model
from stages.tracking.registry import register
from stages.tracking.store import open_client
from stages.tracking.versions import CHAMPION

ROOT = Path(__file__).parents[1]
CLIP = ROOT / "tests/data/clips/bigbuckbunny.mp4"
MODEL = "vidbridge-tiny"
URI = f"models:/{MODEL}@{CHAMPION}"


def make_project(root: Path) -> Path:
    """git, DVC with a remote, one stage that gives a model, version 1 of it registered and champion."""
    root.mkdir()
    shutil.copyfile(ROOT / "params.yaml", root / "params.yaml")
    (root / ".gitignore").write_text("/.vidbridge/\n/models/\n/made/\n")
    save_model(*tiny("qwen2_5_vl"), root / "made")
    copy = f"{sys.executable} -c \"import shutil; shutil.copytree('made', 'models/base/final')\""
    stage = {"cmd": copy, "deps": ["made"], "params": ["seed", "model", "prompt"], "outs": ["models/base/final"]}
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"base": stage}}))
    run(root, "git", "init", "-q", "-b", "main")
    dvc(root, "init", "-q")
    (root / ".dvc" / "config").write_text(
        "[core]\n    remote = local\n    analytics = false\n['remote \"local\"']\n    url = ../.vidbridge/remote\n"
    )
    dvc(root, "repro", "-q")
    commit(root, "a model")
    assert [version.number for version in register(root).created] == [1]
    open_client(root).set_registered_model_alias(MODEL, CHAMPION, "1")
    return root


def environment(root: Path, **changes: str) -> dict[str, str]:
    """For a process in ``root``: nothing of the caller's own servers, this checkout's code."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("VIDBRIDGE_", "MLFLOW_", "GIT_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    database = f"sqlite:///{root / '.vidbridge/mlflow.db'}"
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return {**inherited, "PATH": path, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": database, **quiet, **changes}
