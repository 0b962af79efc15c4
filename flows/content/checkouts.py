"""Check, before DVC checks anything out, that outs and every file of the lists behind them lie
inside the project.

DVC places a file at whatever path a folder's list gives (3.67.1: ``../../x`` too), so content that
``dvc.lock``, a ``.dvc`` file or the run cache names could overwrite anything. A clone brings the
first two along, a shared cache the third.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flows.errors import UnsafeContent
from stages.runtime import paths
from stages.tracking.lineage.listing import MAX_BYTES, ListError, check_paths, is_hash, parse_list, path_fault, too_long

#: DVC's command line with `watch_lists` in force. A file, not a module: it is started without the
#: project in ``sys.path``.
COMMAND = str(Path(__file__).with_name("checked_dvc.py"))


def check(repo: Any, stages: Iterable[Any]) -> None:
    """Check the outs of DVC's ``stages`` as they are locked. Reads lists that are not in the cache
    from a remote that is a folder. DVC checks out from the cache only, so lists that are fetched
    later are checked at checkout.

    Raises:
        UnsafeContent: an out lies outside the project or behind a link that leads out, or what it
            is to hold would.
    """
    for stage in stages:
        # A stage of dvc.yaml is locked in dvc.lock; other files, such as videos.dvc, hold what they
        # lock.
        file = paths.LOCK_FILE if stage.cmd else stage.relpath
        try:
            check_outs(repo, stage.outs, f"{file}: {stage.name}" if stage.cmd else file)
        except ListError as error:
            remedy = f"{error.remedy}; put another {file} in place: git checkout COMMIT -- {file}"
            raise UnsafeContent.from_error(error, remedy=remedy) from error


def check_outs(repo: Any, outs: Iterable[Any], where: str) -> None:
    """Check outs wherever they are named; ``where`` opens the message.

    Raises:
        UnsafeContent, ListError: as `check`.
    """
    for out in outs:
        name = f"{where}: out {str(out)!r}"
        _check_place(repo, out, name)
        _check_content(repo, out, name)


def _check_place(repo: Any, out: Any, name: str) -> None:
    root = Path(repo.root_dir)
    remedy = "name a folder inside the project"
    if not out.is_in_repo or Path(out.fs_path) == root:
        raise UnsafeContent(name, f"lies outside the project {root}, where DVC would delete and write", f"{remedy}")
    path = Path(out.fs_path).relative_to(root)
    if fault := path_fault(path.as_posix()):
        raise UnsafeContent(name, fault, remedy)
    for above in (path, *list(path.parents)[:-1]):
        link = root / above
        # A file that is a link leads into DVC's cache.
        if (
            link.is_dir()
            and link.is_symlink()
            and not link.resolve().is_relative_to(root.resolve())
            and not _own_link(root, above)
        ):
            raise UnsafeContent(
                name,
                f"{above} is a link to {str(link.readlink())!r} that came with the repository, and DVC would"
                f" write there; remove it (git rm {above})",
                "a link of your own is not committed",
            )
    if out.stage.cmd and Path(out.fs_path).is_dir():
        for place, folders, _ in os.walk(out.fs_path):
            for folder in folders:
                inside = Path(place, folder)
                if inside.is_symlink() and not inside.resolve().is_relative_to(root.resolve()):
                    raise UnsafeContent(
                        name,
                        f"{inside} is a link that leads out, and DVC would write there",
                        f"remove it: rm {inside}",
                    )


def _own_link(root: Path, path: Path) -> bool:
    """Return whether a link was created here and did not come with the repository."""
    done = subprocess.run(["git", "-C", str(root), "ls-files", "--", str(path)], capture_output=True, check=False)
    return done.returncode == 0 and not done.stdout.strip()


def _check_content(repo: Any, out: Any, name: str) -> None:
    if out.files is not None:
        check_paths((entry.get("relpath") for entry in out.files), f"{name}: files")
    if not out.hash_info:
        return
    oid = out.hash_info.value
    if not is_hash(oid):
        raise UnsafeContent(
            name,
            f"{str(oid)[:200]!r} is not a hash of DVC (32 hex digits) and would be read as a path",
            "run the stage again",
        )
    if out.files is None and oid.endswith(".dir") and (path := _list_file(repo, out, oid)) is not None:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise too_long(oid, size, name)
        text = path.read_bytes()
        if hashlib.md5(text, usedforsecurity=False).hexdigest() == oid.removesuffix(".dir"):
            parse_list(text, oid, name)
        # Else damaged: DVC finds that out by itself, and drops it.


def _list_file(repo: Any, out: Any, oid: str) -> Path | None:
    """Path of a folder's list: in the cache, or in a remote that is a folder of this machine."""
    from dvc.exceptions import DvcException

    cached = Path(out.cache.oid_to_path(oid))
    if cached.is_file():
        return cached
    try:
        remote = repo.cloud.get_remote_odb(out.remote, hash_name=out.hash_name)
    except DvcException:
        return None  # No remote.
    if "local" not in (remote.fs.protocol, *([] if isinstance(remote.fs.protocol, str) else remote.fs.protocol)):
        return None
    found = Path(remote.oid_to_path(oid))
    return found if found.is_file() else None


def watch_lists() -> None:
    """Make DVC, in this process, refuse every list that `check` would refuse, wherever it comes
    from, and every entry of the run cache that gives a stage outs other than its own. Raises an
    error of DVC's, so that ``dvc`` ends with one line.
    """
    from dvc.exceptions import DvcException
    from dvc.stage.cache import StageCache
    from dvc_data.hashfile.tree import Tree

    read, load = Tree.from_list.__func__, StageCache._load

    def from_list(cls: type[Tree], entries: Any, hash_name: str | None = None) -> Any:
        try:
            check_paths((entry.get("relpath") for entry in entries), "list of a folder's files")
            for entry in entries:
                if "md5" in entry and not is_hash(entry["md5"]):
                    raise ListError(
                        "list of a folder's files",
                        f"{entry['relpath']!r}: md5: {entry['md5']!r} is not a hash (32 hex digits)",
                        "run the stage again",
                    )
        except ListError as error:
            raise DvcException(str(error)) from error
        return read(cls, entries, hash_name)

    def _load(self: StageCache, stage: Any) -> Any:
        entry = load(self, stage)
        own = {out.def_path for out in stage.outs}
        for out in (entry or {}).get("outs", ()):
            if out["path"] not in own or not is_hash(out.get("md5", "")):
                raise DvcException(
                    f"run cache: an entry for stage {stage.name} gives it the out {out['path']!r} ({out.get('md5')!r}),"
                    f" which is not its own; somebody else wrote it: rm -r {self.cache_dir}"
                )
        return entry

    Tree.from_list = classmethod(from_list)
    StageCache._load = _load
