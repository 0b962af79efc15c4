"""Checks of folder lists before DVC writes files: of `dvc.lock`, of a `.dvc` file, of the run cache
of a clone.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.errors import DvcError, StageFailed, UnsafeContent
from flows.repro import clone, reproduce
from flows.repro.plan import TARGET, make_plan
from tests.support.processes.commands import vidbridge
from tests.support.surroundings import assert_untouched, put

STAGE, OUT = "sft@cold-start", "models/cold-start"


def listing(store: Path, *paths: str) -> str:
    """Store a list that names a harmless file and these."""
    entries = [{"md5": put(store, b"{}"), "relpath": "final/config.json"}]
    entries += [{"md5": put(store, b"evil"), "relpath": path} for path in paths]
    return put(store, json.dumps(entries).encode(), ".dir")


def locked_as(root: Path, **changes: Any) -> None:
    lock = yaml.safe_load((root / "dvc.lock").read_text())
    out = lock["stages"][STAGE]["outs"][0]
    out.update(changes)
    for name in [name for name, value in out.items() if value is None]:
        del out[name]
    # DVC trusts a stage whose deps and outs are as locked; those after it were made from another
    # out now, which changes nothing here.
    (root / "dvc.lock").write_text(yaml.safe_dump(lock))


PATHS = [
    "../../../outside/file",
    "final/../../../../outside/file",
    "/etc/vidbridge-test",
    "final//config",
    "./config",
    "a\\..\\b",
    "a\nb",
    "a\0b",
    "",
    "x" * 256,
    "/".join(["deep" * 20] * 40),
    ".git/hooks/post-checkout",
    "final/config.json",
    "final/config.json/below",
]


@pytest.mark.parametrize("path", PATHS, ids=range(len(PATHS)))
def test_a_locked_list_that_could_write_elsewhere_is_refused_before_anything_is_written(
    done: Path, outside: Path, path: str
) -> None:
    steps = tuple(step for step in make_plan(done).steps if step.name == STAGE)
    locked_as(done, md5=listing(done / ".dvc/cache", path))
    shutil.rmtree(done / OUT)
    for attempt in (lambda: make_plan(done), lambda: reproduce.restore(done, steps)):
        with pytest.raises(
            UnsafeContent, match=r"dvc\.lock: sft@cold-start: out 'models/cold-start': folder [0-9a-f]{32}\.dir: "
        ):
            attempt()
    assert_untouched(outside)
    assert not (done / OUT).exists()


def test_dvc_itself_would_have_written_there(done: Path, outside: Path) -> None:
    """Show the fault that is guarded against, in DVC 3.67.1. If this fails, DVC has fixed it, and
    `flows.content.checkouts` can be removed.
    """
    locked_as(done, md5=listing(done / ".dvc/cache", PATHS[0]))
    shutil.rmtree(done / OUT)
    subprocess.run(["dvc", "checkout", "-q", "-f", OUT], cwd=done, capture_output=True, check=False)
    assert outside.read_text() == "evil"


def test_a_stage_that_is_run_checks_what_dvc_takes_from_its_cache(done: Path, outside: Path) -> None:
    locked_as(done, md5=listing(done / ".dvc/cache", PATHS[0]))
    shutil.rmtree(done / OUT)
    said: list[str] = []
    with pytest.raises(StageFailed):
        reproduce.reproduce(done, STAGE, said.append)
    assert any("may leave its folder" in line for line in said), said
    assert [line for line in said if "Traceback" in line] == []
    assert_untouched(outside)


@pytest.mark.parametrize("what", ["a list", "an out of the project", "a hash that is a path"])
def test_an_entry_of_the_run_cache_gives_a_stage_its_own_outs_only(done: Path, outside: Path, what: str) -> None:
    for file in (done / ".dvc/cache/runs").glob("*/*/*"):
        entry = yaml.safe_load(file.read_text())
        if entry["outs"][0]["path"] == OUT:
            own = entry["outs"][0]
            secret = "../" * len((done / ".dvc/cache/files/md5/xx").parts) + str(outside)
            own |= {
                "a list": {"md5": listing(done / ".dvc/cache", PATHS[0])},
                "an out of the project": {"path": "work.py", "md5": put(done / ".dvc/cache", b"evil")},
                "a hash that is a path": {"md5": secret},
            }[what]
            file.write_text(yaml.safe_dump(entry))
            # The newest entry is the one that DVC takes.
            os.utime(file, (2e9, 2e9))
    lock = yaml.safe_load((done / "dvc.lock").read_text())
    del lock["stages"][STAGE]
    (done / "dvc.lock").write_text(yaml.safe_dump(lock))
    shutil.rmtree(done / OUT)
    before, said = (done / "work.py").read_text(), []
    with pytest.raises(StageFailed):
        reproduce.reproduce(done, STAGE, said.append)
    assert any(
        ("may leave its folder" if what == "a list" else "somebody else wrote it: rm -r") in line for line in said
    ), said
    assert_untouched(outside)
    assert (done / "work.py").read_text() == before


def test_files_that_are_listed_in_the_lock_itself_are_looked_at_too(done: Path, outside: Path) -> None:
    evil = put(done / ".dvc/cache", b"evil")
    locked_as(done, md5=None, files=[{"relpath": PATHS[0], "md5": evil, "size": 4}])
    with pytest.raises(
        UnsafeContent, match=r"out 'models/cold-start': files: entry 1: relpath: .* may leave its folder"
    ):
        make_plan(done)
    assert_untouched(outside)


def test_a_hash_is_no_path(done: Path, outside: Path) -> None:
    locked_as(done, md5=f"../../../../../outside/{outside.name}")
    with pytest.raises(UnsafeContent, match="is not a hash of DVC"):
        make_plan(done)


@pytest.mark.parametrize("out", ["../outside/made", ".git/hooks", "."])
def test_an_out_outside_the_project_is_refused(done: Path, outside: Path, out: str) -> None:
    text = (done / "dvc.yaml").read_text()
    (done / "dvc.yaml").write_text(text.replace("outs: [scores/baselines]", f'outs: ["{out}"]'))
    with pytest.raises((UnsafeContent, DvcError)):
        make_plan(done, "baselines")
    assert_untouched(outside)


def test_a_link_that_came_with_the_repository_leads_nowhere_and_one_of_ones_own_may(done: Path, outside: Path) -> None:
    shutil.rmtree(done / OUT)
    (done / OUT).symlink_to(outside.parent)
    assert make_plan(done, STAGE).steps[-1].name == STAGE
    subprocess.run(["git", "add", "-f", OUT], cwd=done, check=True)
    with pytest.raises(
        UnsafeContent, match=r"models/cold-start is a link to '.*outside' that came with the repository"
    ):
        make_plan(done)
    assert_untouched(outside)


def test_a_link_inside_an_out_is_not_written_through(done: Path, outside: Path) -> None:
    shutil.rmtree(done / OUT / "final")
    (done / OUT / "final").symlink_to(outside.parent)
    with pytest.raises(UnsafeContent, match="is a link that leads out, and DVC would write there; remove it: rm "):
        make_plan(done)
    assert_untouched(outside)


def test_a_clone_whose_lock_names_a_poisoned_list_of_the_remote_is_refused(
    done: Path, outside: Path, tmp_path: Path
) -> None:
    """Attack as it would arrive: `git clone`, an empty cache, a remote that somebody else could
    write to.
    """
    remote = tmp_path / "remote"
    subprocess.run(["dvc", "remote", "add", "-q", "-d", "-f", "local", str(remote)], cwd=done, check=True)
    locked_as(done, md5=listing(remote, PATHS[0]))
    for command in (["add", "-A"], ["commit", "-qm", "a run"]):
        subprocess.run(["git", *command], cwd=done, check=True)
    root = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(done), str(root)], check=True)
    shutil.copytree(done / "data/corpus", root / "data/corpus")
    for command in ("plan", "run"):
        said = vidbridge(command, cwd=root)
        assert said.returncode != 0
        assert "error: dvc.lock: sft@cold-start: out 'models/cold-start': folder " in said.stderr + said.stdout
        assert (
            "may leave its folder (an empty part, '.' or '..'); nothing of it was placed" in said.stderr + said.stdout
        )
        assert "Traceback" not in said.stderr + said.stdout
    # A scheduled run tries several locks; it does not pass such a one over in silence.
    with pytest.raises(UnsafeContent):
        clone.choose_lock(root, TARGET)
    assert_untouched(outside)


def test_a_tracked_source_is_looked_at_too(done: Path, outside: Path) -> None:
    videos = {"outs": [{"md5": listing(done / ".dvc/cache", PATHS[0]), "path": "videos", "hash": "md5"}]}
    (done / "videos.dvc").write_text(yaml.safe_dump(videos))
    (done / "videos").mkdir()
    text = (done / "params.yaml").read_text()
    (done / "params.yaml").write_text(text.replace("source: data/corpus", "source: videos"))
    with pytest.raises(UnsafeContent, match=r"videos\.dvc: out 'videos': folder "):
        make_plan(done)
    assert_untouched(outside)
