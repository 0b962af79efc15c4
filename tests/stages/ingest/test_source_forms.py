"""Frame folders, second tables and counts of rows, where rows and videos are not in one folder."""

from __future__ import annotations

import io
import json
import tarfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from stages.domain.core.timeline import plain
from stages.errors import InputError
from stages.ingest import examine as examining
from stages.ingest.examine import Examined, examine_source
from stages.lib.annotations.annotation import rows_rejected
from stages.lib.video.encoder import encode
from stages.lib.video.loader import FrameLoader
from stages.params import load_params
from stages.runtime.sources import remote
from stages.runtime.sources.videos import open_videos
from stages.tools.dataset.check import check
from tests.support.checkout import ROOT
from tests.support.servers.files import file_server
from tests.support.video.numbered_frames import draw_numbers, read_numbers

PARAMS = load_params(ROOT / "params.yaml")
NUMBERS = list(range(16))


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDBRIDGE_SOURCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "TRIES", 1)
    monkeypatch.setattr(examining, "map_items", lambda work, items, *_, **__: map(work, items))


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """A video and a frame folder, with no rows."""
    folder = tmp_path / "videos"
    (folder / "v/p").mkdir(parents=True)
    for number, pixels in enumerate(draw_numbers(NUMBERS)):
        Image.fromarray(pixels).save(folder / f"v/p/{number:03}.png")
    encode(draw_numbers(NUMBERS), Fraction(8), folder / "v/a.mp4", crf=18)
    return folder


def _write(folder: Path, *rows: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "annotations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def _examined(source: object, journal: Path | None = None, **changes: Any) -> Examined:
    return examine_source(PARAMS.ingest.model_copy(update={"source": str(source), **changes}), 7, journal)


def _lines(journal: Path) -> int:
    return sum(bool(line) for line in journal.read_text().splitlines())


ROWS = ({"video": "v/a.mp4"}, {"video": "v/p", "rate": 8}, {"video": "v"})


def test_a_frame_folder_below_a_root_of_the_videos_is_a_clip(videos: Path, tmp_path: Path) -> None:
    rows, journal = _write(tmp_path / "rows", *ROWS), tmp_path / "examined/journal.jsonl"
    found = _examined(rows, journal, videos=str(videos))
    assert [(clip.path, clip.rate, clip.frames) for clip in found.clips] == [("v/a.mp4", 8, 16), ("v/p", 8, 16)]
    assert [(reject.item, reject.reason) for reject in found.rejects] == [("v", "no-frames")]
    assert (found.rows.read, found.rows.used) == (3, 2)
    clip = found.clips[1]
    loader = FrameLoader({"v/p": clip}, open_videos(PARAMS.ingest.model_copy(update={"source": str(videos)}).roots), 0)
    assert read_numbers(loader.frames(plain("v/p", 16, Fraction(8)), NUMBERS)) == NUMBERS
    examined = _lines(journal)
    assert _examined(rows, journal, videos=str(videos)) == found
    assert _lines(journal) == examined  # nothing was examined again


def test_pictures_elsewhere_are_not_read_through_a_root_of_the_videos(videos: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    (videos / "v/p/015.png").rename(secret)
    (videos / "v/p/015.png").symlink_to(secret)
    (videos / "v/p").rename(videos / "elsewhere")
    (videos / "v/linked").symlink_to(videos.parent / "videos/elsewhere")
    apart = tmp_path / "apart"
    apart.mkdir()
    (videos / "elsewhere/014.png").rename(apart / "014.png")
    (videos / "v/away").symlink_to(apart)
    rows = ({"video": f"{name}", "rate": 8} for name in ("elsewhere", "v/away"))
    found = _examined(_write(tmp_path / "rows", *rows), videos=str(videos))
    assert found.clips == []
    assert [(reject.item, reject.reason) for reject in found.rejects if reject.item != "v/a.mp4"] == [
        ("elsewhere", "outside-folder"),
        ("v/away", "outside-folder"),
    ]


def test_a_folder_on_a_server_or_in_a_tar_is_rejected(videos: Path, tmp_path: Path) -> None:
    _write(videos, *ROWS)
    names = sorted(path.relative_to(videos).as_posix() for path in videos.rglob("*") if path.is_file())
    (videos / "index.txt").write_text("\n".join(names))
    with file_server(videos) as web:
        found = _examined(f"{web.address}/index.txt")
        assert web.bodies("v/p/000.png") == []
    assert [clip.path for clip in found.clips] == ["v/a.mp4"]
    assert [(reject.item, reject.reason) for reject in found.rejects] == [
        ("v", "remote-folder"),
        ("v/p", "remote-folder"),
    ]
    assert f"v/p: {web.address}/v/p is a folder, and pictures are not fetched; encode them" in found.rejects[1].detail
    assert found.rows.read == found.rows.used + rows_rejected(found.rejects) == 3
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        tar.add(videos / "v", "v")
    found = _examined(_write(tmp_path / "rows", *ROWS), videos=str(tmp_path / "0.tar"))
    assert [clip.path for clip in found.clips] == ["v/a.mp4"]
    assert [(reject.item, reject.reason) for reject in found.rejects] == [
        ("annotations.jsonl:2", "missing-file"),
        ("v", "remote-folder"),
    ]


def test_each_row_of_tars_is_used_or_rejected(videos: Path, tmp_path: Path) -> None:
    members = {
        "0.tar": {"v/a.mp4": (videos / "v/a.mp4").read_bytes(), "v/a.txt": b"numbers", "b.json": b"{"},
        "1.tar": {"v/a.txt": b"the same key", "../c.txt": b"evil", "d.json": b'{"video": "d.mp4"}'},
    }
    (tmp_path / "tars").mkdir()
    for name, contents in members.items():
        with tarfile.open(tmp_path / "tars" / name, "w") as tar:
            for member, content in contents.items():
                info = tarfile.TarInfo(member)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    found = _examined(tmp_path / "tars")
    assert [clip.caption for clip in found.clips] == ["numbers"]
    assert [(reject.reason, reject.rows) for reject in found.rejects] == [
        ("bad-annotation", None),
        ("duplicate-id", None),
        ("missing-file", None),
        ("unsafe-member", 0),
    ]
    assert found.rows.read == found.rows.used + rows_rejected(found.rejects) == 4


MAPPING = """\
joins: {words: {file: words.csv, key: id, equals: id}}
video: name
caption: words.text
"""


@pytest.mark.parametrize("annotations", [None, "rows.json*"])
def test_a_mapping_reads_its_second_table_and_counts_unused_columns_on_a_server(
    videos: Path, tmp_path: Path, annotations: str | None
) -> None:
    mapping = tmp_path / "mine.yaml"
    mapping.write_text(MAPPING + "others: ignore\n")
    (videos / "rows.jsonl").write_text(json.dumps({"id": "7", "name": "v/a.mp4", "score": 3}) + "\n")
    (videos / "words.csv").write_text("id,text\n7,numbers\n")
    (videos / "unrelated.parquet").write_bytes(b"")
    (videos / "index.txt").write_text("rows.jsonl\nwords.csv\nunrelated.parquet\nv/a.mp4\n")
    with file_server(videos) as web:
        address = "rows.jsonl" if annotations is None else "index.txt"
        found = check(PARAMS, f"{web.address}/{address}", str(mapping), annotations)
        assert web.bodies("unrelated.parquet") == []
    assert [clip.caption for clip in found.clips] == ["numbers"]
    assert found.unused == ("score",)
    assert (found.rows.read, found.rows.used, found.rejects) == (1, 1, ())
    found = check(PARAMS, str(videos / "rows.jsonl"), str(mapping), None, str(videos))
    assert [clip.caption for clip in found.clips] == ["numbers"]


def test_mistakes_are_told_with_the_names_that_the_user_gave(videos: Path, tmp_path: Path) -> None:
    mapping = tmp_path / "mine.yaml"
    mapping.write_text("video: name\n")
    (videos / "rows.csv").write_text("name\nv/a.mp4\n")
    (videos / "index.txt").write_text("gone.jsonl\nv/a.mp4\n")
    (videos / "all.txt").write_text("rows.csv\nv/a.mp4\n")
    (videos / "whole.tar").write_bytes(_tar({"1.mp4": b"x" * 9000})[:5000])
    with file_server(videos) as web:
        for source, changes, message in (
            ("index.txt", {}, rf"^ingest.source: {web.address}/index.txt lists gone.jsonl, and the server has no such"),
            ("whole.tar", {}, rf"^{web.address}/whole.tar: cannot be read as a tar \(.*\); make it again"),
            ("all.txt", {"format": str(mapping)}, rf"^ingest.annotations: null, and '{web.address}' has none of the"),
        ):
            with pytest.raises(InputError, match=message) as raised:
                _examined(f"{web.address}/{source}", videos=web.address if changes else None, **changes)
            assert str(tmp_path / "cache") not in str(raised.value)


def _tar(members: dict[str, bytes]) -> bytes:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return whole.getvalue()
