"""Tars are data: what they may not do is refused, the rest is unpacked once."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from stages.runtime.sources import shards
from stages.runtime.sources.shards import ShardError, key_of, read_shard
from stages.runtime.sources.store import SourceStore

VIDEOS = frozenset((".mp4",))


def _tar(path: Path, *members: tuple[str, bytes] | tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return path


def _special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def test_members_that_are_not_files_below_the_folder_are_refused(tmp_path: Path, store: SourceStore) -> None:
    path = _tar(
        tmp_path / "a.tar",
        ("./a/1.mp4", b"one"),
        ("a/1.json", b'{"caption": "x"}'),
        ("a/1.mp4", b"again"),
        ("a/1.npy", b"features"),
        ("../out.mp4", b"evil"),
        ("/etc/out.mp4", b"evil"),
        ("a/2.txt", b"\xff\xfe"),
        _special("link.mp4", tarfile.SYMTYPE, "/etc/passwd"),
        _special("hard.mp4", tarfile.LNKTYPE, "a/1.mp4"),
        _special("pipe.mp4", tarfile.FIFOTYPE),
        _special("device.mp4", tarfile.CHRTYPE),
        _special("a", tarfile.DIRTYPE),
    )
    shard = read_shard(path, store, "v1", VIDEOS)
    assert shard.keys == ("a/1",)
    assert shard.texts == {"a/1": {".json": '{"caption": "x"}'}}
    (file,) = (store.folder / "objects").glob("*/*")
    assert file.read_bytes() == b"one"
    assert [(one.member, one.reason) for one in shard.refused] == [
        ("a/1.mp4", "repeated-member"),
        ("../out.mp4", "unsafe-member"),
        ("/etc/out.mp4", "unsafe-member"),
        ("a/2.txt", "bad-member"),
        ("link.mp4", "unsafe-member"),
        ("hard.mp4", "unsafe-member"),
        ("pipe.mp4", "unsafe-member"),
        ("device.mp4", "unsafe-member"),
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "cache"]


def test_sizes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MOST_TEXT_BYTES", 10)
    store = SourceStore(tmp_path / "cache", 100)
    path = _tar(tmp_path / "a.tar", ("1.mp4", b"x" * 101), ("1.json", b"y" * 11), ("2.mp4", b"x" * 100))
    shard = read_shard(path, store, "v1", VIDEOS)
    assert [(one.member, one.reason) for one in shard.refused] == [
        ("1.mp4", "large-member"),
        ("1.json", "large-member"),
    ]
    assert list(shard.videos) == ["2.mp4"]
    monkeypatch.setattr(shards, "MOST_MEMBERS", 1)
    with pytest.raises(ShardError, match="more than 1 members"):
        read_shard(_tar(tmp_path / "b.tar", ("1.mp4", b""), ("2.mp4", b"")), store, "v2", VIDEOS)


def test_a_tar_is_unpacked_once_and_again_where_its_videos_are_gone(tmp_path: Path, store: SourceStore) -> None:
    path = _tar(tmp_path / "a.tar", ("1.mp4", b"one"), ("1.txt", b"says"))
    shard = read_shard(path, store, "v1", VIDEOS)
    whole = path.read_bytes()
    path.unlink()
    assert read_shard(path, store, "v1", VIDEOS) == shard
    for file in (store.folder / "objects").glob("*/*"):
        file.unlink()
    path.write_bytes(whole)
    assert read_shard(path, store, "v1", VIDEOS) == shard
    assert store.find(shard.videos["1.mp4"].sha256, "1.mp4") is not None


@pytest.mark.parametrize("content", [b"no tar at all" * 99, b""])
def test_what_is_no_tar_is_named(tmp_path: Path, store: SourceStore, content: bytes) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    with pytest.raises(ShardError, match=r"a\.tar: cannot be read as a tar .*; make it again"):
        read_shard(path, store, "v1", VIDEOS)


def test_a_tar_that_was_cut_short_is_named(tmp_path: Path, store: SourceStore) -> None:
    path = _tar(tmp_path / "a.tar", ("1.mp4", b"x" * 5000), ("2.mp4", b"y" * 5000))
    path.write_bytes(path.read_bytes()[:8000])
    with pytest.raises(ShardError, match="cannot be read as a tar"):
        read_shard(path, store, "v1", VIDEOS)


def test_keys_are_those_of_webdataset() -> None:
    assert [key_of(name) for name in ("a/b.c/1.mp4", "1.seg.json", "1")] == ["a/b.c/1", "1", "1"]
