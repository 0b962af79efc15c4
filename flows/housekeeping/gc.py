"""``vidbridge gc``: list what nothing needs any more, and free it. Without ``--yes`` it changes
nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

from rich.table import Table
from rich.text import Text

from flows.console import show
from flows.errors import FlowError, UsageError
from flows.housekeeping.examination import examine
from flows.housekeeping.findings import Findings
from flows.housekeeping.gc_options import KEEP_DAYS, GcOptions
from flows.housekeeping.given_up import unmark
from flows.housekeeping.holdings import forget_index, remove, remove_files
from flows.housekeeping.project_needs import clones
from flows.housekeeping.registry_needs import Standing
from flows.processes.locks import only_run
from stages.runtime import paths as layout
from stages.runtime.leases import lease
from stages.runtime.plain import one_line
from stages.tracking.lineage.cache import ContentStore
from stages.tracking.session import Session


def gc(root: Path, order: GcOptions, *, yes: bool, as_json: bool) -> None:
    """List what nothing needs, and with ``yes`` free it.

    Raises:
        UsageError: ``--also`` names no project.
        FlowError, TrackingError: a run is working here, or who needs what cannot be told; nothing
            was freed.
    """
    for other in order.also:
        if not (other / layout.PIPELINE_FILE).is_file():
            raise UsageError(
                "--also",
                f"{str(other)!r} holds no dvc.yaml",
                "name the folder of a project that uses this cache or remote",
            )
    with Session(root) as session, ExitStack() as stack:
        if yes:
            # All that could make or take content meanwhile: this project's run, those of its
            # clones, those of the others.
            for project in (root, *clones(root), *order.also):
                stack.enter_context(only_run(project))
        if yes:
            stack.enter_context(_dvc_lock(session.content))
        marked: list[Standing] = []
        try:
            found = examine(session, order, marked, yes=yes)
        except BaseException:
            unmark(session, marked)
            raise
        if yes:
            _free(found)
    if as_json:
        rows = [asdict(row) for row in found.rows]
        document = {
            "freed": yes,
            "keep_days": order.keep_days,
            "bytes": found.freed_bytes,
            "rows": rows,
            "notes": found.notes,
        }
        show.document(document)
    else:
        _show(found, order, yes=yes)


@contextmanager
def _dvc_lock(content: ContentStore) -> Iterator[None]:
    from dvc.lock import LockError

    try:
        content.repo.lock.lock()
    except LockError as error:
        raise FlowError("gc", "DVC is at work in this project", "wait for it (dvc says more: dvc status)") from error
    try:
        yield
    finally:
        content.repo.lock.unlock()


def _free(found: Findings) -> None:
    """Remove what is free: the remote first, since the cache's lists tell whose its objects are.
    Versions were marked when they were examined.
    """
    for place, held in found.places:
        if vanished := remove(place, held):
            found.notes.append(f"{place.kind}: {vanished} objects had vanished already")
        if place.kind == "remote":
            forget_index(place.odb)
    odb, entries = found.far_entries
    remove_files(odb, entries)
    for path in found.entries:
        path.unlink(missing_ok=True)
    for path in found.paths:
        _remove(path)
    for path in found.scratch:
        if not lease.delete(path, "gc"):
            found.notes.append(f"{path}: is in use again; left as it is")


def _remove(path: Path) -> None:
    while path.is_dir() and not path.is_symlink():
        try:
            shutil.rmtree(path)
        except FileNotFoundError:
            continue  # somebody else removes it too
    path.unlink(missing_ok=True)


def _show(found: Findings, order: GcOptions, *, yes: bool) -> None:
    out = show.console()
    table = Table(box=None, pad_edge=False)
    for name in ("kind", "what", "objects", "MB", "", "why"):
        table.add_column(name, justify="right" if name in ("objects", "MB") else "left", overflow="fold")
    word = "freed" if yes else "free"
    for row in sorted(found.rows, key=lambda row: row.free):
        state = Text(word, "yellow") if row.free else Text("kept", "green")
        table.add_row(
            row.kind, one_line(row.what), f"{row.objects:,}", f"{row.bytes / 1e6:,.1f}", state, one_line(row.why)
        )
    out.print(table)
    for note in found.notes:
        out.print(Text(f"note: {one_line(note)}", style="yellow"))
    total = f"{found.freed_bytes / 1e6:,.1f} MB"
    if not any(row.free for row in found.rows):
        out.print("nothing to free")
    elif yes:
        out.print(f"{total} freed")
    else:
        flags = "".join(
            f" {flag}" for flag, given in (("--remote", order.remote), ("--versions", order.versions)) if given
        )
        flags += f" --keep-days {order.keep_days:g}" if order.keep_days != KEEP_DAYS else ""
        flags += "".join(f" --also {one_line(str(path))}" for path in order.also)
        out.print(f"nothing was changed. {total} come back with: vidbridge gc{flags} --yes")
    out.print("not looked at: MLflow's runs, metrics and pages, the videos themselves, git's history")
