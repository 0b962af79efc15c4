"""``vidbridge recipe``: what params.yaml says."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.cli import app


def list_all() -> None:
    """List the recipes. Example: vidbridge recipe list"""
    from flows import recipes
    from flows.console import show
    from flows.processes.environment import project_or_none
    from stages.runtime.plain import one_line

    for one in recipes.recipes(project_or_none()):
        show.say(f"{'*' if one.in_use else ' '} {one_line(one.name):<22} {one_line(one.about)}")


def show(name: app.RecipeArgument) -> None:
    """Print a recipe. Example: vidbridge recipe show smoke"""
    from flows import recipes
    from flows.console import show
    from flows.processes.environment import project_or_none
    from stages.runtime.bounded_yaml import read_text

    show.write(read_text(recipes.recipe(project_or_none(), name).path), end="")


def diff(name: app.RecipeArgument) -> None:
    """Show what using a recipe would change in params.yaml. Example: vidbridge recipe diff smoke"""
    from flows import recipes
    from flows.console import show

    show.say(recipes.difference(app.root(), name).rstrip("\n") or f"params.yaml is {name} already")


def use(
    name: app.RecipeArgument,
    force: Annotated[bool, typer.Option("--force", help="Overwrite edits of params.yaml that no commit keeps.")] = False,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Its rows, tasks and losses in small: tiny model, generated corpus, a few steps each.")
    ] = False,
) -> None:
    """Copy a recipe over params.yaml. Example: vidbridge recipe use videocap-r1 --smoke && vidbridge run"""
    from flows import recipes
    from flows.console import show

    params = recipes.use(app.root(), name, force, smoke=smoke)
    show.say(
        f"params.yaml is now {params.recipe} (seed {params.seed}); see what changed: git diff params.yaml; then: vidbridge run"
    )
