"""Projects with the example tasks of docs/examples/tasks, and their parameters."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.params import Params, load_params
from stages.params.own_tasks import load_own_tasks
from tests.support.checkout import ROOT

EXAMPLES = ROOT / "docs/examples/tasks"
MODULES = ("count.py", "grounding.py", "ocr.py")


def lay_out(root: Path) -> Path:
    """Write parameters and modules of the examples into a folder, which becomes a project."""
    (root / "tasks").mkdir(parents=True, exist_ok=True)
    (root / "dvc.yaml").touch()
    for name in MODULES:
        shutil.copyfile(EXAMPLES / name, root / "tasks" / name)
    shutil.copyfile(EXAMPLES / "params.yaml", root / "params.yaml")
    return root


@contextmanager
def loaded(root: Path) -> Iterator[Params]:
    """The parameters of a project, whose tasks this process knows until the end of the block."""
    try:
        yield load_params(root / "params.yaml")
    finally:
        load_own_tasks(root, ())
