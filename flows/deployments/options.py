"""Options of ``vidbridge deploy``, checked as far as possible before a server runs."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from flows.deployments.prefect_file import POOL, DeploymentRequest, deployment_name
from flows.deployments.repositories import BranchContent, branches, check_address, inspect
from flows.errors import UsageError
from flows.params_file import recipes
from stages.params import load_params, parse_params
from stages.runtime import paths
from stages.runtime.bounded_yaml import read_yaml
from stages.tracking.lineage.git import git, is_repository

_BANNED = re.compile(r"[/%&<>]")


def deployment_request(
    root: Path,
    *,
    cron: str | None = None,
    timezone: str | None = None,
    source: Path | None = None,
    recipe: str | None = None,
    repository: str | None = None,
    directory: str | None = None,
    branch: str | None = None,
    pool: str | None = None,
    name: str | None = None,
) -> tuple[DeploymentRequest, list[str]]:
    """Check the command line's options, as far as possible before a server runs; returns the
    settings with notes for the user.

    Raises:
        UsageError: naming option, value and remedy.
        ParamsError: what the runs would take as parameters breaks a rule.
        FlowError: git cannot read the repository.
    """
    if not is_repository(root):
        raise UsageError(
            "git",
            f"{root} is not a repository, and scheduled runs work in a clone of one",
            "create it: git init && git add -A && git commit -m start",
        )
    if directory is not None and repository is None:
        raise UsageError(
            "--directory",
            "is of --repository",
            "a project's own folder in its repository is known, leave the option out",
        )
    _check_schedule(cron, timezone)
    named, wanted_pool = name or deployment_name(root), pool or POOL
    for option, value in (("--name", named), ("--pool", wanted_pool)):
        if _BANNED.search(value) or not value.strip():
            raise UsageError(
                option, f"{value!r} cannot be a name in Prefect", "use letters, digits, '-', '_', '.' and spaces"
            )
    address = None if repository is None else check_address(repository)
    followed = branch or _checked_out(root)
    _check_branch(root if address is None else address, followed)
    notes: list[str] = []
    watched = None if source is None else _source(source, elsewhere=address is not None)
    folder = None
    if address is None:
        _check_params(root, watched, recipe)
    else:
        folder = _folder(directory)
        notes += _check_repository(inspect(address, followed, folder or "", recipe), recipe)
    return DeploymentRequest(followed, named, wanted_pool, cron, timezone, watched, recipe, address, folder), notes


def _check_schedule(cron: str | None, timezone: str | None) -> None:
    if timezone is not None:
        import difflib
        from zoneinfo import available_timezones

        zones = available_timezones()
        if timezone not in zones:
            near = difflib.get_close_matches(timezone, zones, 1, 0.7)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise UsageError(
                "--timezone",
                f"{timezone!r} is not a time zone",
                f"set an IANA name, such as Europe/Berlin or UTC{meant}",
            )
    if cron is not None:
        from prefect.client.schemas.schedules import CronSchedule

        try:
            CronSchedule(cron=cron, timezone=timezone or "UTC")
        except ValueError as error:
            raise UsageError(
                "--cron",
                f"{cron!r} is not a schedule",
                'set minute, hour, day, month and weekday, such as "0 3 * * *" (every day at 3)',
            ) from error


def _checked_out(root: Path) -> str:
    """Branch that is checked out; the deployment follows it."""
    if found := git(root, "branch", "--show-current"):
        return found
    at = git(root, "rev-parse", "--short", "HEAD")
    raise UsageError(
        "--branch",
        f"HEAD is detached (at {at}), so which branch the runs should follow is not known",
        "give --branch NAME",
    )


def _check_branch(place: Path | str, branch: str) -> None:
    found = branches(place)
    if branch in found:
        return
    there = ", ".join(found[:8]) + (", …" if len(found) > 8 else "") if found else "none"
    what = f"git push {place} {branch}" if isinstance(place, str) else f"git branch {branch} origin/{branch}"
    raise UsageError(
        "--branch", f"{branch!r} is not in {place} (there: {there})", f"name one of these, or make it: {what}"
    )


def _source(source: Path, *, elsewhere: bool) -> str:
    """Folder of videos; that of a worker elsewhere cannot be checked from here."""
    if elsewhere:
        if not source.is_absolute():
            raise UsageError(
                "--source",
                f"{str(source)!r} is relative, and with --repository it is a folder of the worker",
                "set its absolute path",
            )
        return str(source)
    folder = source.expanduser().resolve()
    if not folder.is_dir():
        raise UsageError("source", f"{str(folder)!r} is not a folder", "name the folder of your videos")
    return str(folder)


def _folder(directory: str | None) -> str | None:
    folder = PurePosixPath(directory or "")
    if folder.is_absolute() or ".." in folder.parts:
        raise UsageError(
            "--directory", f"{directory!r} leads out of the repository", "set the project's path inside it"
        )
    return None if folder == PurePosixPath(".") else str(folder)


def _check_params(root: Path, source: str | None, recipe: str | None) -> None:
    """Check now the parameters that every run will read, so that no run fails at night for a reason
    known in advance.
    """
    file = recipes.recipe(root, recipe).path if recipe else root / paths.PARAMS_FILE
    load_params(file)
    if source is not None:
        table = read_yaml(file)
        parse_params(table | {"ingest": table["ingest"] | {"source": source}}, f"{file.name} with --source {source}")


def _check_repository(found: BranchContent, recipe: str | None) -> list[str]:
    """Check now the content that every run will find in the repository; returns notes for the
    user."""
    if not found.is_project:
        there = f" (there is one in {', '.join(found.projects)})" if found.projects else ""
        raise UsageError(
            "--directory", f"{found.where} holds no dvc.yaml{there}", "name the folder of the project: --directory SUB"
        )
    if recipe and found.recipe is None:
        names = ", ".join(found.recipes) or "none"
        raise UsageError("--recipe", f"{recipe!r} is not in {found.where}", f"it has {names}")
    if found.remote is None:
        return [
            f"note: .dvc/config in {found.where} names no remote, so nothing that runs make reaches others, and runs"
            " end as failed; dvc remote add -d NAME URL, commit and push it, or set VIDBRIDGE_DVC_REMOTE where the"
            " worker runs"
        ]
    if "://" not in found.remote:
        kind = "a folder of the worker's machine" if found.remote.startswith("/") else "a folder of each clone"
        return [
            f"note: the DVC remote in {found.where} is {found.remote}, {kind}: what runs make reaches others only if"
            " they see that; give it a URL (dvc remote modify NAME url s3://…), or set VIDBRIDGE_DVC_REMOTE where the"
            " worker runs"
        ]
    return []
