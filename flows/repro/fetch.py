"""Fetching for a plan: objects from the remote into the cache, entries of the run cache into
``dvc.lock``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from flows.content import remote as remotes
from flows.content import run_cache
from flows.repro.steps import PlanStep
from stages.runtime.plain import one_line
from stages.tracking.lineage.cache import ContentStore
from stages.tracking.lineage.listing import ListError
from stages.tracking.lineage.remote import remote_error
from stages.tracking.lineage.transfer import MissingContent
from stages.tracking.lineage.uri import TrackingError

#: Files requested together; progress is logged after each such part.
_TOGETHER = 64


class Progress:
    """Progress of a fetch: files and MB that arrived, of those announced."""

    def __init__(self, say: Callable[[str], None], files: int, megabytes: float) -> None:
        self._say, self._files, self._megabytes = say, files, megabytes
        self._came, self._bytes = 0, 0

    def came(self, name: str, paths: Sequence[Path]) -> None:
        self._came += len(paths)
        self._bytes += sum(path.stat().st_size for path in paths)
        self._say(
            f"fetched {self._came:,} of {self._files:,} files, {self._bytes / 1e6:,.1f} of {self._megabytes:,.1f} MB"
            f" ({name})"
        )

    def warn(self, text: str) -> None:
        self._say(f"warning: {text}")


def fetch(content: ContentStore, step: PlanStep, progress: Progress) -> set[str]:
    """Fetch the outs of one stage into the cache, each object verified by its hash; returns those
    that could not be fetched.

    Raises:
        ListError: a list of files could write elsewhere.
        TrackingError: the remote stopped answering. Fetched files stay.
    """
    assert step.remote is not None
    for oid in step.remote.objects:
        try:
            wanted = sorted(set(content.files(oid, step.name).values())) if oid.endswith(".dir") else [oid]
            for part in _parts(wanted):
                content.fetch(part, step.name)
                progress.came(step.name, [Path(content.cache.oid_to_path(file)) for file in part])
        except MissingContent as error:
            _verify_answer(content, step, oid)
            progress.warn(f"{error}; so {step.name} will run")
            seen = remotes.seen_of(content)
            seen.write(seen.objects - {oid})
            return {oid}
        except ListError as error:
            # A bad list that dvc.lock names needs a person; an entry of the run cache is just not
            # used.
            if step.entry is None:
                raise
            progress.warn(f"{error}; so {step.name} will run")
            return {oid}
    return set()


def _verify_answer(content: ContentStore, step: PlanStep, oid: str) -> None:
    """Verify that the remote answers, before one of its objects is believed to be missing.

    Raises:
        TrackingError: what is missing may be there: the remote did not answer.
    """
    if (remote := remotes.opened(content)) is None:
        return
    try:
        remote.verify_answer(oid)
    except Exception as error:
        if not remotes.failed(error):
            raise
        raise remote_error(content.remote_name(), f"{step.name}: fetching stopped", error) from error


def _parts(items: Sequence[str]) -> Iterator[list[str]]:
    rest = iter(items)
    while part := list(islice(rest, _TOGETHER)):
        yield part


def take_over(content: ContentStore, steps: Sequence[PlanStep]) -> None:
    """Write the run cache's entries of these stages into ``dvc.lock``, and keep the entries.

    Raises:
        TrackingError: an entry is gone, or another than when the plan was made.
    """
    from dvc.repo import lock_repo
    from dvc.stage.loader import StageLoader

    if not steps:
        return
    stages = {stage.name: stage for stage in content.repo.index.stages if stage.cmd}
    remote: remotes.Remote | None = None
    for step in steps:
        assert step.entry is not None
        stage, (key, _, value) = stages[step.name], step.entry.partition("/")
        text = dict(run_cache.local_entries(content.repo, key)).get(value)
        if text is None:
            remote = remote or remotes.opened(content)
            text = dict(remote.entries(key)).get(value) if remote else None
        try:
            if text is None:
                raise ValueError("is gone")
            entry = run_cache.read_entry(text, key, value, {out.def_path for out in stage.outs})
        except ValueError as error:
            raise TrackingError(
                "run cache", f"entry {step.entry}: {one_line(error)}", "try again: vidbridge run"
            ) from error
        run_cache.save(content.repo, key, value, text)
        with lock_repo(content.repo):
            StageLoader.fill_from_lock(stage, entry)
            stage.dump(update_pipeline=False)
