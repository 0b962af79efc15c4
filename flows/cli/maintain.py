"""``vidbridge accept``, ``gc`` and ``scratch``: tasks that need a person's judgement."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli import app, complete
from flows.errors import UsageError


def collect_garbage(
    remote: Annotated[
        bool, typer.Option("--remote", help="Also free the DVC remote of content proven to be this project's own.")
    ] = False,
    versions: Annotated[
        bool,
        typer.Option(
            "--versions",
            help="Free the weights of versions that nothing needs (with --remote if there is one); tags and lineage"
            " stay.",
        ),
    ] = False,
    keep_days: Annotated[float, typer.Option(min=0, help="Keep everything younger than this.")] = 7.0,
    also: Annotated[
        list[Path] | None,
        typer.Option(help="Another project that uses this cache or remote; what it needs stays. May be repeated."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Free it; without this only print it.")] = False,
    as_json: app.JsonOption = False,
) -> None:
    """Free what nothing needs any more; without --yes only show it.

    Content stays if the work tree, any branch or tag (runs/* included), an alias (champion,
    candidate), or an earlier champion in the ledger names it: rollback stays possible. Everything
    else in DVC's cache is freed, with old scratch, assembled models, journals, frames and clones of
    scheduled runs. A registered version keeps its last copy unless --versions gives it up;
    `explain` still lists it.

    In a shared cache and a remote, only content that this project's history names is freed, and
    only if every branch of the origin is known here. MLflow's runs and pages are never touched.
    Example: vidbridge gc --remote --versions --yes
    """
    from flows.housekeeping import gc
    from flows.housekeeping.gc_options import GcOptions

    order = GcOptions(remote, versions, keep_days, tuple(path.expanduser().resolve() for path in also or ()))
    gc.gc(app.root(), order, yes=yes, as_json=as_json)


def accept(
    stage: Annotated[
        str | None, typer.Argument(help="Stage whose change does not matter.", autocompletion=complete.stages)
    ] = None,
    why: Annotated[str, typer.Option("--why", help="The reason, kept in accepted.jsonl.")] = "",
    every: Annotated[
        bool,
        typer.Option("--all", help="Every stage, as after an upgrade: only code changed, no out, parameter or data."),
    ] = False,
) -> None:
    """Declare that a change of a stage does not change its result.

    The change may be of its code or its parameters; the stage need not run again then. With --all
    it covers every stage's code, and only code: it refuses, and changes nothing, where an out is
    not the one in dvc.lock, a parameter or an input differs, or a stage never ran.

    Example: vidbridge accept sft@cold-start --why "only a comment moved"

    Example: vidbridge accept --all --why "files moved, no behaviour changed"
    """
    if (stage is None) == (not every):
        raise UsageError(
            "stage, --all", "exactly one is needed", "name the stage whose change does not matter, or set --all"
        )
    from flows.project import accept as acceptance

    if stage is None:
        acceptance.accept_all(app.root(), why)
    else:
        acceptance.accept(app.root(), stage, why)


def scratch_status() -> None:
    """List interrupted trainings and the space they take. Example: vidbridge scratch status"""
    from flows.housekeeping import scratch

    scratch.show_scratch(app.root())


def scratch_clean(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete the state of interrupted trainings.

    They then start at step 0. Example: vidbridge scratch clean --yes
    """
    from flows.housekeeping import scratch

    scratch.delete_scratch(app.root(), ask=not yes)
