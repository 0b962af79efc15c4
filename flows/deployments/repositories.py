"""Remote inspection of a repository: before a deployment names it, check what every run will find
there.
"""

from __future__ import annotations

import configparser
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from flows.errors import FlowError, UsageError
from flows.processes.environment import RECIPES, recipe_files
from stages.params import parse_params
from stages.params.own_tasks import names_own_tasks
from stages.runtime import paths
from stages.runtime.bounded_yaml import YamlError, parse_yaml
from stages.runtime.plain import redacted
from stages.tracking.lineage.git import git
from stages.tracking.lineage.uri import TrackingError


@dataclass(frozen=True)
class BranchContent:
    """Content of a repository's branch, as far as it concerns us. ``where`` names it in messages;
    ``remote``: the URL of DVC's default remote.
    """

    where: str
    is_project: bool
    #: Folders with a ``dvc.yaml``.
    projects: tuple[str, ...]
    #: The requested recipe, if it is among them.
    recipe: str | None
    recipes: tuple[str, ...]
    remote: str | None


def check_address(repository: str) -> str:
    """Validate ``repository`` as an address that git takes and that everyone who sees the
    deployment may read.

    Raises:
        UsageError: a relative path, an option, or an address with a password.
    """
    if redacted(repository) != repository:
        raise UsageError(
            "--repository",
            f"{redacted(repository)!r} holds a password, and everyone who sees the deployment would read it",
            "leave it out, and give the worker a key or one of git's credential helpers",
        )
    is_path = ":" not in repository.split("/", maxsplit=1)[0]  # else a URL, or host:path as ssh takes it
    if not repository.strip() or repository.startswith("-") or (is_path and not repository.startswith("/")):
        raise UsageError(
            "--repository",
            f"{repository!r} means nothing to a worker elsewhere",
            "set a URL, or an absolute path that it sees too",
        )
    return repository


def branches(address: Path | str) -> tuple[str, ...]:
    """Branches of a repository, at a URL or in a folder.

    Raises:
        FlowError: git cannot read it.
    """
    if isinstance(address, Path):
        return tuple(git(address, "for-each-ref", "--format=%(refname:lstrip=2)", "refs/heads/").splitlines())
    try:
        listed = git(Path.cwd(), "ls-remote", "--heads", "--", address)
    except TrackingError as error:
        raise FlowError(
            "--repository", f"{address} cannot be read from here ({error})", "correct the address, or your access"
        ) from error
    return tuple(line.partition("refs/heads/")[2] for line in listed.splitlines())


def inspect(repository: str, branch: str, folder: str, recipe: str | None) -> BranchContent:
    """Inspect the newest commit of a branch, with ``folder`` (no slash at either end, "" for the
    top) as the project's.

    Raises:
        FlowError: git cannot read it.
        ParamsError: what the runs would take as parameters breaks a rule.
    """
    where = f"{repository}, branch {branch}" + (f", folder {folder}" if folder else "")
    with tempfile.TemporaryDirectory(prefix="vidbridge-") as work_folder:
        work = Path(work_folder)
        git(work, "clone", "--quiet", "--no-checkout", "--depth", "1", "--branch", branch, "--", repository, "seen")
        seen = work / "seen"
        names = git(seen, "-c", "core.quotePath=false", "ls-tree", "-r", "--name-only", "HEAD").splitlines()
        prefix = f"{folder}/" if folder else ""
        projects = tuple(str(Path(name).parent) for name in names if Path(name).name == paths.PIPELINE_FILE)
        own = {
            Path(name).stem: name for name in names if name.startswith(f"{prefix}{RECIPES}/") and name.endswith(".yaml")
        }
        # A project without code of its own runs that of the installed package, whose recipes it
        # knows too.
        shipped = {} if any(name.startswith(f"{prefix}stages/") for name in names) else recipe_files(None)
        is_project = f"{prefix}{paths.PIPELINE_FILE}" in names
        chosen = f"{prefix}{paths.PARAMS_FILE}" if recipe is None else own.get(recipe)
        if is_project and chosen is not None:
            _check_params(_shown(seen, chosen), f"{chosen} in {where}")
        return BranchContent(
            where,
            is_project,
            projects,
            recipe if recipe in own or recipe in shipped else None,
            tuple(sorted({*own, *shipped})),
            _remote(_shown(seen, f"{prefix}.dvc/config")),
        )


def _check_params(text: str, name: str) -> None:
    try:
        table = parse_yaml(text, name)
        # Tasks of its own are code of the repository: the worker runs it, this command does not.
        if not names_own_tasks(table):
            parse_params(table, name)
    except YamlError as error:
        raise FlowError.from_error(error) from error


def _shown(seen: Path, name: str) -> str:
    done = subprocess.run(["git", "-C", str(seen), "show", f"HEAD:{name}"], capture_output=True, check=False)
    return done.stdout.decode(errors="replace") if done.returncode == 0 else ""


def _remote(text: str) -> str | None:
    """URL of the default remote in a ``.dvc/config``; None if it names none."""
    config = configparser.ConfigParser(strict=False, interpolation=None)
    try:
        config.read_string(text)
    except configparser.Error:
        return None
    name = config.get("core", "remote", fallback=None)
    return config.get(f"'remote \"{name}\"'", "url", fallback=None) if name else None
