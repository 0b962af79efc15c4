"""A plan of inputs outside of this machine: DVC's own dependency on a web server, and videos with a
root of their own."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from flows.repro import reproduce
from flows.repro.outside import changed_videos
from flows.repro.plan import make_plan
from stages.params import load_params
from stages.runtime.sources.failures import SourceAccessError
from stages.runtime.sources.watch import listing_digest, note_listing
from stages.tracking.lineage.lockfile import current_stage, read_lock
from tests.support.projects.flow import states, why
from tests.support.servers.files import file_server


def _set(project: Path, **values: str) -> None:
    text = (project / "params.yaml").read_text().replace("kind: rule,", "kind: rule_on_real_text,")
    for key, value in values.items():
        text, found = re.subn(rf"(?m)^  {key}: .*$", f"  {key}: {value}", text, count=1)
        assert found == 1
    (project / "params.yaml").write_text(text)


@pytest.mark.slow
def test_a_file_on_a_web_server_is_watched_by_its_tag(project: Path, tmp_path: Path) -> None:
    folder = tmp_path / "web"
    folder.mkdir()
    (folder / "rows.jsonl").write_text("{}\n")
    with file_server(folder) as web:
        source = f"{web.address}/rows.jsonl"
        _set(project, source=source)
        reproduce.reproduce(project, "ingest", lambda _: None)
        locked = read_lock(project)["ingest"].deps[source]
        assert locked
        web.asked.clear()
        assert states(project)["ingest"] == "up to date"
        assert {method for method, _, _ in web.asked} == {"HEAD"}
        (folder / "rows.jsonl").write_text("{}\n{}\n")
        assert why(project, "ingest") == (f"dep {source} changed",)
        now = current_stage(project, "ingest")
        assert now is not None
        assert now.deps[source] not in ("", locked)
        web.tagged = False
        with pytest.raises(SourceAccessError, match=r"rows\.jsonl: its server sends no ETag, so a change"):
            make_plan(project)
        web.status = 403
        with pytest.raises(SourceAccessError, match=r"^ingest\.source: .*access denied"):
            make_plan(project)
    with pytest.raises(SourceAccessError, match="no answer"):
        make_plan(project)
    away = current_stage(project, "ingest")
    assert away is not None
    assert away.deps[source] == locked


def test_what_an_ingest_has_seen_of_videos_with_a_root_of_their_own_is_compared(project: Path, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    (videos / "a.mp4").write_bytes(b"one")
    assert changed_videos(project) is None
    _set(project, source=str(videos), videos=str(videos))
    assert changed_videos(project) == ""  # nothing is known of it here
    roots = load_params(project / "params.yaml").ingest.roots
    seen = listing_digest(roots)
    assert seen is not None
    note_listing(roots, seen, project)
    assert changed_videos(project) == ""
    (videos / "a.mp4").write_bytes(b"two")
    os.utime(videos / "a.mp4", (1, 1))
    assert changed_videos(project) == f"videos below {videos} changed"


@pytest.mark.slow
def test_videos_with_a_root_of_their_own_force_ingest_when_they_change(project: Path, tmp_path: Path) -> None:
    rows, videos = tmp_path / "rows", tmp_path / "videos"
    rows.mkdir()
    videos.mkdir()
    (rows / "annotations.jsonl").write_text("{}\n")
    (videos / "a.mp4").write_bytes(b"one")
    _set(project, source=str(rows), videos=str(videos))
    reproduce.reproduce(project, "ingest", lambda _: None)
    assert states(project)["ingest"] == "up to date"  # nothing is known of it here
    roots = load_params(project / "params.yaml").ingest.roots
    seen = listing_digest(roots)
    assert seen is not None
    note_listing(roots, seen, project)
    assert states(project)["ingest"] == "up to date"
    (videos / "a.mp4").write_bytes(b"two")
    os.utime(videos / "a.mp4", (1, 1))
    (step,) = [step for step in make_plan(project).to_run if step.name == "ingest"]
    assert (step.why, step.forced) == ((f"videos below {videos} changed",), True)
    assert reproduce.reproduce(project, "ingest", lambda _: None).outcome == "unchanged"
    assert reproduce.reproduce(project, "ingest", lambda _: None, forced=True).outcome == "ran"
