"""``vidbridge run`` and ``vidbridge plan``: plan, print the plan, run it as a Prefect flow, print
the results. ``vidbridge node``: take part in what another machine runs.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli import app, complete
from flows.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path


def run(
    stage: app.StageArgument = "summary",
    dry_run: Annotated[bool, typer.Option("--dry-run", "--plan", help="Only print what would run, and why.")] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask before a run that trains a pretrained model.")
    ] = False,
    resume_across_code: Annotated[
        bool,
        typer.Option(
            "--resume-across-code", help="Resume training from a checkpoint although its code changed since (tagged)."
        ),
    ] = False,
    recipe: Annotated[
        str | None, typer.Option(help="Recipe to write into params.yaml first.", autocompletion=complete.recipes)
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Value to write into params.yaml first, such as grpo.general.steps=50; may be repeated.",
            autocompletion=complete.settings,
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same as --set seed=….")] = None,
    push: Annotated[
        bool,
        typer.Option(
            "--push", help="Push DVC's run cache and the branch with dvc.lock, for other hosts (as scheduled runs do)."
        ),
    ] = False,
) -> None:
    """Run what is out of date, register it, print the scores. Outs that the DVC remote holds are
    fetched instead.

    Example: change grpo.general.learning_rate in params.yaml, then `vidbridge run`: that stage and
    what follows it run again, only. Ctrl-C ends it at once; the next `vidbridge run` resumes
    training at its last checkpoint.

    --recipe, --set and --seed change params.yaml for good; the changes are shown first, and refused
    if params.yaml has edits that no commit keeps. Example: vidbridge run --recipe smoke --set
    grpo.general.steps=50 --seed 3
    """
    if resume_across_code:
        os.environ["VIDBRIDGE_RESUME_ACROSS_CODE"] = "1"
    with app.resumable_with("vidbridge run"):
        # The import too: it takes a second, in which a person may think better of it.
        from flows.project.run import run as bring_up_to_date

        root = app.root()
        wanted = [*(settings or []), *([] if seed is None else [f"seed={seed}"])]
        if recipe is not None or wanted:
            if dry_run:
                raise UsageError(
                    "--dry-run",
                    "changes nothing, and --recipe, --set and --seed change params.yaml",
                    "leave one of them out",
                )
            _change_params(root, recipe, wanted)
        bring_up_to_date(root, stage, dry_run=dry_run, ask=not yes, push=push)


def plan(
    stage: app.StageArgument = "summary",
    as_json: app.JsonOption = False,
) -> None:
    """Show what would run or be fetched, why, and at what cost.

    Time and GPU hours come from earlier runs of a stage (measured; scaled where only its steps
    differ), else from rates that you declare in .vidbridge/rates.yaml, else they are unknown.
    Questions to judges and writer are counted, as upper bounds.

    Example: vidbridge plan grpo@bridge
    """
    from flows.project.run import run as look

    look(app.root(), stage, dry_run=True, ask=False, as_json=as_json)


def node() -> None:
    """Train with the first node of several machines, until Ctrl-C.

    That machine runs `vidbridge run` with VIDBRIDGE_NODES and VIDBRIDGE_RDZV; this one has the same
    values, a VIDBRIDGE_NODE from 1, and the same project on a shared folder. Nothing is written
    here: outs and MLflow's runs are the first node's.

    Example: VIDBRIDGE_NODES=2 VIDBRIDGE_NODE=1 VIDBRIDGE_RDZV=10.0.0.1:29400 vidbridge node
    """
    from flows.project.node import take_part

    take_part(app.root())


def _change_params(root: Path, recipe: str | None, settings: list[str]) -> None:
    from flows.console import show
    from flows.params_file import recipes

    show.say(recipes.change(root, recipe, settings).rstrip("\n") or "params.yaml says so already")
