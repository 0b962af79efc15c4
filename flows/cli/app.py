"""Shared parts of every command of ``vidbridge``: interruption, global options, kinds of argument,
the project it works in.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from flows.cli import complete
from flows.cli.command import INTERRUPTED
from flows.errors import UsageError

if TYPE_CHECKING:
    from stages.tracking.session import Session


class Commands(typer.core.TyperGroup):
    """Command group that ends on Ctrl-C with a sentence and the status that shells expect; typer
    prints nothing, or "Aborted!".
    """

    def make_context(self, *arguments: Any, **named: Any) -> Any:
        with _interruptible():
            return super().make_context(*arguments, **named)

    def invoke(self, ctx: Any) -> Any:
        with _interruptible():
            return super().invoke(ctx)


@contextmanager
def _interruptible() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def resumable_with(command: str) -> Iterator[None]:
    """End the block on Ctrl-C with a sentence that says how to continue. In `main` it would be too
    late: typer prints "Aborted!" before.
    """
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"interrupted; every stage has been ended. Go on where it stopped: {command}", err=True)
        raise typer.Exit(INTERRUPTED) from None


#: Exit status of a command that did its work and whose answer is no.
FAILURE = 1

StageArgument = Annotated[
    str, typer.Argument(help="Stage to bring up to date, with its dependencies.", autocompletion=complete.stages)
]
RecipeArgument = Annotated[str, typer.Argument(help="Name of a recipe.", autocompletion=complete.recipes)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, for programs.")]
BenchmarkOption = Annotated[
    str,
    typer.Option(
        help="A public benchmark, such as video-mme; an unknown name lists all.",
        autocompletion=complete.benchmarks,
    ),
]
AnnotationsOption = Annotated[
    str,
    typer.Option(
        help="Annotation file as published (JSON, JSON Lines, Parquet), its folder, or hf://datasets/OWNER/NAME@COMMIT."
    ),
]
VersionArgument = Annotated[
    str,
    typer.Argument(
        help="A version's number, champion, or models:/NAME@champion, models:/NAME/7.", autocompletion=complete.versions
    ),
]
VersionOption = Annotated[
    str | None,
    typer.Option(help="A version's number, or champion; default: champion.", autocompletion=complete.versions),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        help="Version of any registered model, instead of --version: models:/NAME@champion or models:/NAME/7.",
        autocompletion=complete.model_uris,
    ),
]


def _say_version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        typer.echo(f"vidbridge {version('vidbridge')}")
        raise typer.Exit


def global_options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose", "-v", help="Before the command: also print output of DVC and Prefect, and DEBUG logs."
        ),
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet",
            "-q",
            help="Before the command: print only errors, and output requested explicitly, such as --json.",
        ),
    ] = False,
) -> None:
    """Read ``.env``, and set the verbosity."""
    from flows.processes import dotenv, verbosity

    if verbose and quiet:
        raise UsageError("--verbose, --quiet", "contradict each other", "set one of them")
    dotenv.load()
    verbosity.choose(verbose=verbose, quiet=quiet)


def root() -> Path:
    """Enter the project and return its folder.

    Raises:
        ProjectError: there is none.
    """
    from flows.processes.environment import enter
    from stages.runtime.project import project_root

    found = project_root()
    enter(found)
    return found


def session() -> Session:
    """Enter the project and open its session."""
    found = root()
    from stages.tracking.session import Session

    return Session(found)


def reader() -> Session:
    """Open the project, or outside of one the cache folder: for commands that only query the
    registry.
    """
    from flows.cli import outside

    return outside.reader()


def as_typed(path: Path | None) -> Path | None:
    """Absolute form of a path as it was typed, before the project's folder becomes the working
    directory.
    """
    return None if path is None else path.expanduser().resolve()


def version_of(version: str | None, model: str | None) -> str:
    """Version that ``--version`` and ``--model`` name; champion if neither does.

    Raises:
        UsageError: both are given, or ``--model`` names no version.
    """
    if version is not None and model is not None:
        raise UsageError("--version, --model", "contradict each other", "set one of them")
    if model is not None and not model.startswith("models:"):
        raise UsageError(
            "--model",
            f"{model!r} is not a version",
            f"write models:/NAME@champion or models:/NAME/3, or --version {model}",
        )
    return version or model or "champion"
