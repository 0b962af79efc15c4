"""A new project for the installed package: parameters, the pipeline, DVC's settings. Code and
recipes stay in the package.

Nothing of ours is left to maintain: ``vidbridge init --upgrade`` brings ``dvc.yaml`` up to a newer
package, and a plan brings the digests of its code (:mod:`flows.repro.package_code`).
"""

from __future__ import annotations

import difflib
from pathlib import Path

from flows.errors import UsageError
from flows.params_file import recipes
from flows.processes.locks import only_run
from flows.repro import package_code
from stages.params import Params, parse_params
from stages.runtime import paths
from stages.runtime.bounded_yaml import parse_yaml, read_text
from stages.tracking.lineage.git import git, is_repository

_FILES = {
    ".dvc/config": """\
[core]
    analytics = false
    check_update = false
    autostage = false
    remote = local
['remote "local"']
    url = ../.vidbridge/remote
""",
    ".dvc/.gitignore": "/config.local\n/tmp\n/cache\n",
    ".dvcignore": """\
# Nothing here is data: DVC neither hashes nor watches it.
.git
.venv
.vidbridge
__pycache__
/tasks/*.md
""",
    ".gitignore": """\
# State of this machine, and its settings.
/.vidbridge/
/.venv/
__pycache__/
/mlruns/
.env
# What the pipeline makes: dvc.lock names it, DVC keeps it.
/data/
/models/
/scores/
/reports/
/report/
/report.html
/data.html
*.unfinished
/dvc.lock.broken
""",
    f"{paths.MAPPINGS}/README.md": """\
Mappings of annotations of your own, for `ingest.format: mappings/NAME.yaml`. DVC watches this
folder: an edit in it runs ingest again.
""",
    f"{paths.OWN_TASKS}/README.md": """\
Tasks of your own, for `tasks: {module: tasks/NAME.py}` in params.yaml. DVC watches this folder: an
edit of any file but *.md runs the stages again that make or score samples. Every command in this
project runs the modules that params.yaml names.
""",
}


def init(folder: Path, recipe: str, *, smoke: bool) -> Params:
    """Write a project into a new or empty folder, with a git repository if there is none yet;
    returns its parameters.

    Raises:
        UsageError: the folder holds something, or there is no such recipe.
        ParamsError: the recipe breaks a rule.
        TrackingError: git says no.
    """
    if folder.exists() and (not folder.is_dir() or any(path.name != ".git" for path in folder.iterdir())):
        raise UsageError(
            "folder", f"{str(folder)!r} is not empty", "name a new or an empty one (an upgraded package: --upgrade)"
        )
    text = recipes.smoke_version(None, recipe) if smoke else read_text(recipes.recipe(None, recipe).path)
    params = parse_params(parse_yaml(text, recipe), recipe)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in {**_FILES, paths.PARAMS_FILE: text, paths.PIPELINE_FILE: package_code.pipeline_text()}.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content, encoding="utf-8")
    package_code.write(folder)
    if not is_repository(folder):
        git(folder, "init", "--quiet", "--initial-branch", "main")
    return params


def upgrade(root: Path) -> str:
    """Bring ``dvc.yaml`` and the digests of code of a project up to the installed package; returns
    what changed in ``dvc.yaml``.

    Raises:
        UsageError: it is not a project that `init` made, or ``dvc.yaml`` has edits that no commit
            keeps.
        FlowError: a run holds the project.
    """
    if not package_code.uses_package(root):
        raise UsageError(
            "--upgrade", f"{root} has no folder {package_code.FOLDER}/, so its code is its own", "upgrade that with git"
        )
    with only_run(root):
        old, new = read_text(root / paths.PIPELINE_FILE), package_code.pipeline_text()
        if old != new:
            if git(root, "status", "--porcelain", "--", paths.PIPELINE_FILE):
                raise UsageError(
                    paths.PIPELINE_FILE,
                    "has edits that no commit keeps",
                    "commit them first, git then shows what the upgrade changes",
                )
            (root / paths.PIPELINE_FILE).write_text(new, encoding="utf-8")
        package_code.refresh(root)
        # Packages before 0.3 made projects without it, and DVC needs each dependency to exist.
        for folder in (paths.MAPPINGS, paths.OWN_TASKS):
            (root / folder).mkdir(exist_ok=True)
            readme = f"{folder}/README.md"
            if not any((root / folder).iterdir()):
                (root / readme).write_text(_FILES[readme], encoding="utf-8")
    lines = difflib.unified_diff(
        old.splitlines(keepends=True),
        new.splitlines(keepends=True),
        paths.PIPELINE_FILE,
        f"{paths.PIPELINE_FILE} of the package",
    )
    return "".join(lines)


def is_behind(root: Path) -> bool:
    """Return whether ``dvc.yaml`` of a project that `init` made differs from the one that the
    installed package would write.
    """
    return package_code.uses_package(root) and read_text(root / paths.PIPELINE_FILE) != package_code.pipeline_text()
