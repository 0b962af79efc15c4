"""One set of videos in every place: the rows, the rejects, the files and the clips are those of the
folder."""

from __future__ import annotations

import importlib.util
import io
import json
import shutil
import tarfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.domain.core.records import Clip, Reject
from stages.ingest.examine import examine_source, journal_file
from stages.ingest.source import open_source
from stages.lib.annotations.annotation import SourceError
from stages.lib.video.encoder import encode
from stages.params import IngestParams, load_params
from stages.runtime.sources import remote
from stages.runtime.sources.failures import SourceAccessError
from stages.runtime.sources.videos import open_videos
from tests.support.checkout import ROOT
from tests.support.servers.files import file_server

SEED = 7
ROWS: list[dict[str, Any]] = [
    {"video": "v/b.mp4", "caption": "it moves", "events": [{"start": 0, "end": 1, "caption": "it moves"}]},
    {"video": "v/a.mp4", "caption": "it moves fast", "split": "test"},
    {"video": "v/gone.mp4"},
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three videos, of which rows name two and one that is not there."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "v").mkdir()
    for number, name in enumerate(("a", "b", "stray")):
        noise = np.random.default_rng(number).integers(0, 255, (8, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        frames = np.stack([np.roll(noise, shift, axis=1) for shift in range(16)])
        encode(frames, Fraction(8), folder / f"v/{name}.mp4", crf=20)
    _write(folder, ROWS)
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDBRIDGE_SOURCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VIDBRIDGE_WORKERS", "1")
    monkeypatch.setattr(remote, "TRIES", 1)


def _write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "annotations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def _params(source: object, **changes: object) -> IngestParams:
    ingest = load_params(ROOT / "params.yaml").ingest.model_dump()
    return IngestParams.model_validate({**ingest, "source": str(source), **changes})


def _read(params: IngestParams) -> tuple[Any, list[Reject], dict[str, bytes]]:
    """Rows, rejects, and the content of the files of the rows, as ingest and as later stages find
    them."""
    opened = open_source(params)
    rows, rejects, *_ = opened.read()
    names = [row.video for row in rows]
    if opened.files is None:
        found = {name: (Path(params.source) / name).read_bytes() for name in names}
    else:
        found = {file.name: file.here().read_bytes() for batch in opened.files.batches(names) for file in batch}
    return rows, rejects + opened.rejects, found


def _tars(made: Path, folder: Path) -> Path:
    folder.mkdir()
    for number, row in enumerate(ROWS[:2]):
        key = row["video"].removesuffix(".mp4")
        fields = {name: value for name, value in row.items() if name not in ("video", "caption")}
        with tarfile.open(folder / f"{number:05}.tar", "w") as tar:
            for name, content in (
                (f"{key}.json", json.dumps(fields).encode()),
                (f"{key}.txt", row["caption"].encode()),
                (f"{key}.mp4", (made / row["video"]).read_bytes()),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            if number:
                link = tarfile.TarInfo("v/stray.mp4")
                link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
                tar.addfile(link)
    return folder


def test_rows_and_files_are_the_same_wherever_they_are(made: Path, tmp_path: Path) -> None:
    expected = _read(_params(made))
    assert [reject.reason for reject in expected[1]] == ["missing-file", "no-annotation"]
    apart = _write(tmp_path / "rows", ROWS)
    assert _read(_params(apart, videos=str(made))) == expected
    assert _read(_params(made / "annotations.jsonl")) == expected
    with file_server(made) as web:
        assert _read(_params(apart, videos=web.address))[::2] == expected[::2]
        assert not any(name.endswith("stray.mp4") for _, name, _ in web.asked)  # only what rows name
        rows, rejects, files = _read(_params(f"{web.address}/annotations.jsonl"))
        assert (rows, files) == (expected[0], expected[2])
        assert [reject.reason for reject in rejects] == ["missing-file"]  # a web server lists no strays
        listing = "# all\nannotations.jsonl\nv/a.mp4\n./v/b.mp4\nv/stray.mp4\n../evil.mp4\n"
        (made / "index.txt").write_text(listing)
        try:
            assert _read(_params(f"{web.address}/index.txt")) == expected
        finally:
            (made / "index.txt").unlink()


def test_rows_may_name_files_by_a_prefix_and_without_an_extension(made: Path, tmp_path: Path) -> None:
    rows = [{**row, "video": row["video"].replace("v/", "data/train/").removesuffix(".mp4")} for row in ROWS]
    params = _params(
        _write(tmp_path / "rows", rows),
        videos=str(made),
        names={"strip": "data/train/", "add": "v/", "extension": ".mp4"},
    )
    found, rejects, files = _read(params)
    assert [row.video for row in found] == ["data/train/b", "data/train/a"]
    assert files["data/train/a"] == (made / "v/a.mp4").read_bytes()
    assert [reject.item for reject in rejects] == ["annotations.jsonl:3"]
    assert open_videos(params.roots).path("data/train/a", "").read_bytes() == files["data/train/a"]
    with pytest.raises(ValueError, match=r"add: '\.\./' leaves the folder"):
        _params(made, names={"strip": "", "add": "../", "extension": ""})


def test_tars_give_the_rows_and_files_of_the_folder(made: Path, tmp_path: Path) -> None:
    rows, _, files = _read(_params(made))
    tars = _tars(made, tmp_path / "tars")
    found, rejects, unpacked = _read(_params(tars))
    assert (found, unpacked) == (rows, files)
    assert [(reject.item, reject.reason) for reject in rejects] == [("00001.tar/v/stray.mp4", "unsafe-member")]
    assert [row.video for row in _read(_params(tars / "00001.tar"))[0]] == ["v/a.mp4"]


@pytest.mark.slow
def test_tars_give_the_clips_of_the_folder(made: Path, tmp_path: Path) -> None:
    expected = examine_source(_params(made), SEED)[0]
    tars = _tars(made, tmp_path / "tars")
    params, journal = _params(tars), tmp_path / "journal.jsonl"
    clips, rejects = examine_source(params, SEED, journal)[:2]
    assert clips == expected
    assert [reject.reason for reject in rejects] == ["unsafe-member"]
    assert _examined_videos(journal) == ["v/a.mp4", "v/b.mp4"]
    assert examine_source(params, SEED, journal)[0] == expected
    assert len(_examined_videos(journal)) == 2  # nothing was examined again
    shutil.rmtree(tmp_path / "cache")
    _later(params, clips, made)
    with file_server(tars) as web:
        apart = _params(made, videos=f"{web.address}/00001.tar")
        rows, rejects, _ = _read(apart)
        assert [row.video for row in rows] == ["v/a.mp4"]
        _later(apart, [clip for clip in clips if clip.path == "v/a.mp4"], made)


def _later(params: IngestParams, clips: list[Clip], made: Path) -> None:
    videos = open_videos(params.roots)
    for clip in clips:
        assert videos.path(clip.path, clip.sha256).read_bytes() == (made / clip.path).read_bytes()


def _examined_videos(journal: Path) -> list[str]:
    return [json.loads(line)["video"] for line in journal.read_text().splitlines() if line]


def test_videos_go_through_a_cache_that_holds_few_of_them(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (made / "v/a.mp4").stat().st_size
    with file_server(made) as web:
        monkeypatch.setenv("VIDBRIDGE_SOURCE_CACHE_GB", str(1.5 * size / 1e9))
        opened = open_source(_params(f"{web.address}/annotations.jsonl"))
        assert opened.files is not None
        batches = [[file.name for file in batch] for batch in opened.files.batches(["v/a.mp4", "v/b.mp4"])]
    assert batches == [["v/a.mp4"], ["v/b.mp4"]]
    monkeypatch.setenv("VIDBRIDGE_SOURCE_CACHE_GB", str(1.5 * size / 1e9))
    with pytest.raises(SourceAccessError, match=r"CACHE_GB: .* the videos of the tars have .*; raise it"):
        open_source(_params(_tars(made, tmp_path / "tars")))


def test_links_out_of_a_folder_of_videos_are_not_followed(made: Path, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    (videos / "v").mkdir(parents=True)
    shutil.copy(made / "v/a.mp4", videos / "v/a.mp4")
    (videos / "v/b.mp4").symlink_to(made / "v/b.mp4")
    rows, rejects, _ = _read(_params(_write(tmp_path / "rows", ROWS), videos=str(videos)))
    assert [row.video for row in rows] == ["v/a.mp4"]
    assert [reject.reason for reject in rejects] == ["missing-file", "missing-file"]


def test_what_cannot_be_read_at_all_is_one_message(made: Path, tmp_path: Path) -> None:
    with file_server(made) as web:
        with pytest.raises(SourceError, match=r"has no none\.jsonl; name its file in ingest\.annotations"):
            open_source(_params(f"{web.address}/none.jsonl"))
        with pytest.raises(SourceAccessError, match=r"index\.txt: no such file on that server"):
            open_source(_params(f"{web.address}/index.txt"))
        web.status = 401
        with pytest.raises(SourceAccessError, match="access denied"):
            open_source(_params(f"{web.address}/annotations.jsonl"))
        gone = web.address
    with pytest.raises(SourceAccessError, match=r"no answer .*; see that the server runs"):
        open_source(_params(f"{gone}/annotations.jsonl"))
    with pytest.raises(ValueError, match="a web server lists no folder; name its annotation file"):
        _params(f"{gone}/set")
    with pytest.raises(ValueError, match="videos: an address must hold no user or password") as error:
        _params(made, videos="s3://key:secret-of-mine@bucket")
    assert "secret-of-mine" not in str(error.value).split("[type=")[0]


@pytest.mark.skipif(importlib.util.find_spec("gcsfs") is not None, reason="the extra gcs is installed")
def test_the_extra_of_google_storage_is_named() -> None:
    with pytest.raises(SourceAccessError, match=r"gs:// needs gcsfs; uv sync --extra gcs"):
        open_source(_params("gs://bucket/set"))


def test_a_journal_belongs_to_a_source_and_not_to_its_view(made: Path) -> None:
    journals = {
        journal_file(_params(source, videos=videos)).name
        for source, videos in ((made, None), ("s3://b/x", None), ("s3://b/y", None), (made, "s3://b/x"))
    }
    assert len(journals) == 4
