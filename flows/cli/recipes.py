"""``vidbridge init`` and ``vidbridge recipe``: create a project, and set its params.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli import app, complete


def init(
    folder: Annotated[Path, typer.Argument(help="Folder to create; new or empty.")],
    recipe: Annotated[
        str, typer.Option(help="Recipe to copy to params.yaml.", autocompletion=complete.recipes)
    ] = "tiny",
    smoke: Annotated[
        bool,
        typer.Option("--smoke", help="Small version of the recipe: tiny model, generated corpus, a few steps each."),
    ] = False,
    upgrade: Annotated[
        bool, typer.Option("--upgrade", help="In an existing project: update dvc.yaml to the installed package.")
    ] = False,
) -> None:
    """Create a project; the code stays in the package.

    params.yaml, dvc.yaml, DVC's settings, .gitignore, and a git repository if there is none.
    code/*.txt holds the digest of the code of each stage: after an upgrade of the package
    `vidbridge plan` shows which stages have other code, and runs those again.

    Example: vidbridge init my-videos --recipe smoke && cd my-videos && git add -A && git commit -m
    start && vidbridge run
    """
    from flows.console import show
    from flows.processes.environment import be_quiet
    from flows.project import new_project

    be_quiet()
    folder = folder.expanduser().resolve()
    if upgrade:
        show.say(new_project.upgrade(folder).rstrip("\n") or "dvc.yaml is the package's already")
        return
    params = new_project.init(folder, recipe, smoke=smoke)
    show.say(f"{folder} is a project with the parameters of {params.recipe}; they stand in params.yaml")
    show.show_next(show.console(), f"cd {folder}", "git add -A && git commit -m start", "vidbridge run")


def list_all() -> None:
    """List the recipes. Example: vidbridge recipe list"""
    from flows.console import show
    from flows.params_file import recipes
    from flows.processes.environment import project_or_none
    from stages.runtime.plain import one_line

    for one in recipes.recipes(project_or_none()):
        show.say(f"{'*' if one.in_use else ' '} {one_line(one.name):<22} {one_line(one.about)}")


def show(name: app.RecipeArgument) -> None:
    """Print a recipe. Example: vidbridge recipe show smoke"""
    from flows.console import show
    from flows.params_file import recipes
    from flows.processes.environment import project_or_none
    from stages.runtime.bounded_yaml import read_text

    show.write(read_text(recipes.recipe(project_or_none(), name).path), end="")


def diff(name: app.RecipeArgument) -> None:
    """Show what using a recipe would change in params.yaml. Example: vidbridge recipe diff smoke"""
    from flows.console import show
    from flows.params_file import recipes

    show.say(recipes.difference(app.root(), name).rstrip("\n") or f"params.yaml is {name} already")


def use(
    name: app.RecipeArgument,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite edits of params.yaml that no commit keeps.")
    ] = False,
    smoke: Annotated[
        bool,
        typer.Option(
            "--smoke",
            help="Its rows, tasks and losses on a small scale: tiny model, generated corpus, a few steps each.",
        ),
    ] = False,
) -> None:
    """Copy a recipe over params.yaml. Example: vidbridge recipe use videocap-r1 --smoke &&
    vidbridge run
    """
    from flows.console import show
    from flows.params_file import recipes

    params = recipes.use(app.root(), name, force, smoke=smoke)
    show.say(
        f"params.yaml is now {params.recipe} (seed {params.seed}); see what changed: git diff params.yaml; then:"
        " vidbridge run"
    )
