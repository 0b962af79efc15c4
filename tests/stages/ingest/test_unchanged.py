"""An ingest of a folder in which nothing has changed takes the last result, and any other does
not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.housekeeping.leftovers import _journals
from stages.domain.core.records import Clip
from stages.ingest import stage, unchanged
from stages.ingest.examine import examine_source, journal_file
from stages.lib.rows.jsonl import read_rows
from stages.lib.video.encoder import encode, ffmpeg_binary
from stages.params import IngestParams, Params, load_params
from stages.runtime import paths
from tests.support.checkout import ROOT

ROWS = [
    {"video": "a.mp4", "caption": "Blocks go right.", "events": [{"start": 0.5, "end": 1, "caption": "They go."}]},
    {"video": "b.mkv", "label": "blocks"},
    {"video": "b.mkv", "start": 0, "end": 1, "id": "half"},
    {"video": "gone.mp4"},
]


class Project:
    """A project in the present folder, with a source of two videos.

    Attributes:
        made: ingests that read the source.
    """

    def __init__(self) -> None:
        self.made = 0
        self.source = Path("videos")
        self.source.mkdir()
        for seed, name in enumerate(("a.mp4", "b.mkv")):
            self.film(seed, name)
        self.rows(ROWS)

    def film(self, seed: int, name: str) -> None:
        blocks = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8).repeat(12, 0).repeat(12, 1)
        frames = np.stack([np.roll(blocks, number, axis=1) for number in range(16)])
        encode(frames, Fraction(8), Path("film.mp4"), crf=30)
        # decord must not read Matroska: such a file is encoded again.
        command = [ffmpeg_binary(), "-v", "error", "-y", "-i", "film.mp4", "-c", "copy", str(self.source / name)]
        subprocess.run(command, check=True)

    def rows(self, rows: list[dict[str, Any]]) -> None:
        (self.source / "annotations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def params(self, **changes: Any) -> Params:
        loaded = load_params(ROOT / "params.yaml")
        settings = {"source": str(self.source), "normalise": True}
        ingest = IngestParams.model_validate(loaded.ingest.model_dump() | settings | changes)
        return loaded.model_copy(update={"ingest": ingest})

    def ingest(self, params: Params) -> tuple[dict[str, bytes], bool]:
        """Outs of an ingest, and whether it read the source."""
        before = self.made
        shutil.rmtree(paths.CLIPS, ignore_errors=True)
        stage.ingest(params)
        outs = {str(path): path.read_bytes() for path in sorted(paths.CLIPS.rglob("*")) if path.is_file()}
        return outs, self.made > before

    def whole(self, params: Params) -> dict[str, bytes]:
        """Outs of an ingest that knows of no earlier one."""
        shutil.rmtree(paths.EXAMINED)
        outs, is_made = self.ingest(params)
        assert is_made
        return outs


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("stages.ingest.examine.map_items", lambda work, items, *_, **__: map(work, items))
    made = Project()

    def counted(*given: Any, **named: Any) -> Any:
        made.made += 1
        return examine_source(*given, **named)

    monkeypatch.setattr(stage, "examine_source", counted)
    return made


def test_a_second_look_takes_the_first_ones_outs(project: Project) -> None:
    params = project.params()
    first = project.ingest(params)
    assert first[1]
    clips = read_rows(paths.CLIPS / paths.MANIFEST_FILE, Clip)
    assert [(clip.clip_id, clip.normalised) for clip in clips] == [("a", False), ("b", True), ("half", True)]
    assert len(first[0]) == 5, "four files and a re-encoded one"
    assert project.ingest(params) == (first[0], False)
    # The same rows once more, as a checkout writes them.
    project.rows(ROWS)
    assert project.ingest(params) == (first[0], False)


def test_a_curated_source_has_its_near_duplicates_again(project: Project) -> None:
    params = project.params(curate=True, near_duplicates="report")
    shutil.copy(project.source / "a.mp4", project.source / "gone.mp4")
    with (project.source / "gone.mp4").open("ab") as file:
        file.write(bytes(8))  # other bytes, the same pictures
    outs, _ = project.ingest(params)
    assert outs[str(paths.CLIPS / paths.NEAR_DUPLICATES_FILE)].count(b"\n") == 1
    assert project.ingest(params) == (outs, False)
    assert project.ingest(project.params(curate=True))[1]


def _edited_in_place(project: Project) -> None:
    """An edit that neither size nor time betrays."""
    file = project.source / "annotations.jsonl"
    status = file.stat()
    file.write_text(file.read_text().replace("right", "light"))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


CHANGES: dict[str, Callable[[Project], Any]] = {
    "a row": _edited_in_place,
    "a row more": lambda project: project.rows([*ROWS, {"video": "a.mp4", "start": 1, "end": 2, "id": "end"}]),
    "a video": lambda project: project.film(7, "a.mp4"),
    "a folder where a video is missing": lambda project: (project.source / "gone.mp4").mkdir(),
    "a video more": lambda project: project.film(9, "c.mp4"),
    "a video less": lambda project: (project.source / "b.mkv").unlink(),
}


def test_changes_of_the_source_are_seen(project: Project) -> None:
    params = project.params()
    before, _ = project.ingest(params)
    for what, change in CHANGES.items():
        change(project)
        after, is_made = project.ingest(params)
        assert is_made, what
        assert after != before, what
        assert project.ingest(params) == (after, False), what
        assert project.whole(params) == after, what
        before = after


def test_other_parameters_code_and_seed_are_seen(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    params = project.params()
    project.ingest(params)
    assert project.ingest(project.params(min_frames=12))[1]
    assert project.ingest(params)[1], "only the last result is kept"
    assert project.ingest(params.model_copy(update={"seed": params.seed + 1}))[1]
    assert project.ingest(params)[1]
    monkeypatch.setattr(unchanged, "_code", lambda: "another")
    assert project.ingest(params)[1]
    assert not project.ingest(params)[1]


def test_what_a_killed_ingest_kept_is_not_taken(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    params = project.params()
    kept = journal_file(params.ingest).with_suffix("") / "outs"

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(unchanged, "write_record", killed)
        with pytest.raises(KeyboardInterrupt):
            project.ingest(params)
    assert (kept / paths.MANIFEST_FILE).is_file()
    outs, is_made = project.ingest(params)
    assert is_made
    # Nor what is damaged, or lacks a file that was encoded again.
    manifest = kept / paths.MANIFEST_FILE
    manifest.write_bytes(manifest.read_bytes()[:-9])
    assert project.ingest(params) == (outs, True)
    (kept / paths.CARD_FILE).unlink()
    assert project.ingest(params) == (outs, True)
    next(kept.parent.glob("normalised/*")).unlink()
    assert project.ingest(params) == (outs, True)
    # A journal that another ingest has written in holds other reports, perhaps.
    with journal_file(params.ingest).open("a") as lines:
        lines.write("\n")
    assert project.ingest(params) == (outs, True)
    assert project.ingest(params) == (outs, False)


def test_a_source_that_changes_during_its_ingest_is_read_again(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = project.params()
    made = stage.examine_source

    def while_edited(*given: Any, **named: Any) -> Any:
        project.rows(ROWS[:1])
        found = made(*given, **named)
        project.rows(ROWS[:2])
        return found

    with monkeypatch.context() as patched:
        patched.setattr(stage, "examine_source", while_edited)
        outs, _ = project.ingest(params)
    project.rows(ROWS)
    again, is_made = project.ingest(params)
    assert is_made
    assert again != outs


def test_what_depends_on_the_moment_is_tried_again(project: Project) -> None:
    params = project.params(timeout_s=60)
    outcome = unchanged.Outcome(clips=1, rejects={"worker-died": 1}, warning="")
    project.ingest(params)
    journal, before = journal_file(params.ingest), unchanged.identity(params)
    assert unchanged.take(before, journal, paths.CLIPS) is not None
    shutil.rmtree(journal.with_suffix("") / "outs")
    clips = read_rows(paths.CLIPS / paths.MANIFEST_FILE, Clip)
    unchanged.keep(params, before, journal, [paths.CLIPS / paths.MANIFEST_FILE], clips, outcome)
    assert unchanged.take(before, journal, paths.CLIPS) is None


def test_what_a_listing_does_not_tell_is_read_always(project: Project, tmp_path: Path) -> None:
    params = project.params()
    assert unchanged.identity(params) is not None
    assert unchanged.identity(project.params(annotations="../rows.jsonl")) is None
    assert unchanged.identity(project.params(videos=str(project.source))) is None
    (tmp_path / "elsewhere").mkdir()
    (project.source / "linked").symlink_to(tmp_path / "elsewhere")
    assert unchanged.identity(params) is None


def test_a_kept_result_that_names_a_removed_video_is_freed(project: Project) -> None:
    params = project.params()
    project.ingest(params)
    a, *_ = read_rows(paths.CLIPS / paths.MANIFEST_FILE, Clip)

    def freed(removed: set[str]) -> list[str]:
        found = _journals(Path.cwd(), params, frozenset(removed), keep_s=3600)
        return [leftover.path.name for leftover in found if leftover.why is None]

    assert freed({"0" * 64}) == []
    assert freed({a.sha256}) == ["outs"]
