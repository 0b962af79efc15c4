"""Location of the project and environment of its processes: the circumstance, never the identity,
of a result.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from stages.runtime import paths
from stages.runtime.project import NO_TELEMETRY, find_project

#: No telemetry, no look-ups for new versions, no questions at a terminal.
QUIET = {
    **NO_TELEMETRY,
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "GIT_TERMINAL_PROMPT": "0",
}


def project_or_none() -> Path | None:
    """Enter the project and return its folder; None outside of one, for commands that need only
    what their arguments name.

    Raises:
        ProjectError: ``VIDBRIDGE_PROJECT`` names a folder that is not a project.
    """
    if (root := find_project()) is None:
        be_quiet()
    else:
        enter(root)
    return root


def be_quiet() -> None:
    """Set the variables of this process's environment that need no project."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


#: Files that come with this code: their name inside the installed package (``flows/shipped``, see
#: pyproject.toml), and in the repository.
SHIPPED = {
    "recipes": "infra/recipes",
    "deepspeed": "infra/deepspeed",
    "fsdp": "infra/fsdp",
    "prefect.yaml": "infra/prefect.yaml",
    "work-pool.json": "infra/work-pool.json",
    "dvc.yaml": "dvc.yaml",
}
#: Folder of a project's own recipes.
RECIPES = Path("infra/recipes")


def shipped(name: str) -> Path:
    """Path on this machine of a file or folder of :data:`SHIPPED`."""
    packaged = Path(__file__).parents[1] / "shipped"
    return packaged / name if packaged.is_dir() else Path(__file__).parents[2] / SHIPPED[name]


def recipe_files(root: Path | None) -> dict[str, Path]:
    """Recipes by name: those of the project, and those that come with this code, where the project
    has none of that name.
    """
    folders = [shipped("recipes")] + ([] if root is None else [root / RECIPES])
    found = {path.stem: path for folder in folders for path in folder.glob("*.yaml")}
    return dict(sorted(found.items()))


def state(root: Path) -> Path:
    return root / paths.STATE


def defaults(root: Path) -> dict[str, str]:
    """Default values of environment variables, used unless the user set them. Every path is
    absolute: processes start in several folders.
    """
    local = state(root)
    return {
        **QUIET,
        "VIDBRIDGE_PROJECT": str(root),
        "VIDBRIDGE_SCRATCH": str(root / paths.SCRATCH),
        # DVC's own is /var/tmp/dvc, which a read-only root file system has not. Its folder for each
        # project has the path in its name.
        "DVC_SITE_CACHE_DIR": str(local / "dvc"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{root / paths.DATABASE}",
        "PREFECT_HOME": str(local / "prefect"),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        # Status of a server while its database restarts; retried for a minute, like one that is
        # away itself.
        "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500,504",
        "PREFECT_LOGGING_FORMATTERS_STANDARD_FLOW_RUN_FMT": "%(asctime)s %(flow_run_name)s │ %(message)s",
        "PREFECT_LOGGING_FORMATTERS_STANDARD_TASK_RUN_FMT": "%(asctime)s %(task_run_name)s │ %(message)s",
        "PREFECT_LOGGING_FORMATTERS_STANDARD_DATEFMT": "%H:%M:%S",
    }


def enter(root: Path) -> None:
    """Set this process's environment; variables that the user set stay. Call it before Prefect or
    MLflow is imported.
    """
    state(root).mkdir(mode=0o700, exist_ok=True)
    for name, value in defaults(root).items():
        os.environ.setdefault(name, value)


def stage_environment(root: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment of a stage's command: this interpreter is ``python``, a plain shell, unbuffered
    output, no run to hijack.
    """
    env = {**defaults(root), **os.environ, **(extra or {})}
    env["VIDBRIDGE_PROJECT"] = str(root)
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", os.defpath)])
    env["SHELL"] = shutil.which("sh") or "/bin/sh"
    env["PYTHONUNBUFFERED"] = "1"
    # Its output is read by us, whatever this terminal can show.
    env["PYTHONIOENCODING"] = "utf-8:backslashreplace"
    # MLFLOW_RUN_ID would make every stage log into the parent run.
    env.pop("MLFLOW_RUN_ID", None)
    return env


def scratch(root: Path) -> Path:
    """Folder of the state from which interrupted training resumes, ``VIDBRIDGE_SCRATCH``."""
    return Path(os.environ.get("VIDBRIDGE_SCRATCH") or defaults(root)["VIDBRIDGE_SCRATCH"]).expanduser()


@contextmanager
def exported(name: str, value: str) -> Iterator[None]:
    """Set a variable of this process, for as long as the block lasts."""
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
