"""The cache of fetched files keeps its bound, and what it says of itself survives a kill."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from stages.errors import InputError
from stages.runtime.sources.addresses import fault_of_address, fault_of_name, place_of
from stages.runtime.sources.failures import SourceAccessError
from stages.runtime.sources.roots import NameRules
from stages.runtime.sources.store import Known, SourceStore, open_store


def _put(store: SourceStore, content: bytes, age_s: float = 0) -> Path:
    part = store.scratch() / "x"
    part.write_bytes(content)
    found = store.find(store.keep(part, "a.mp4"), "a.mp4")
    assert found is not None
    os.utime(found, (time.time() - age_s,) * 2)
    return found


def test_the_least_recently_used_files_go_and_never_those_in_use(tmp_path: Path) -> None:
    store = SourceStore(tmp_path, 2500)
    old, older = _put(store, b"a" * 1000, 5000), _put(store, b"b" * 1000, 9000)
    new = _put(store, b"c" * 1000)
    assert (old.exists(), older.exists(), new.exists()) == (True, False, True)
    old.touch()
    in_use = [_put(store, bytes([number]) * 1000) for number in range(4)]
    assert all(path.exists() for path in (old, new, *in_use))  # above the bound, and about to be opened


def test_what_an_object_was_is_known_to_every_process_after_a_kill(tmp_path: Path) -> None:
    store = SourceStore(tmp_path, 10**6)
    first, second = Known(store, "s3://b/x"), Known(store, "s3://b/x")
    first.put("a.mp4", "9 etag", "0" * 64)
    assert second.get("a.mp4", "9 etag") == "0" * 64
    (file,) = (tmp_path / "known").iterdir()
    with file.open("ab") as out:
        out.write(b'\n{"name": "b.mp4", "vers')
    first.put("c.mp4", "1 e", "1" * 64)
    fresh = Known(store, "s3://b/x")
    assert (fresh.get("a.mp4", "9 etag"), fresh.get("c.mp4", "1 e")) == ("0" * 64, "1" * 64)
    assert fresh.get("b.mp4", "1 e") is None
    assert Known(store, "s3://b/other").get("a.mp4", "9 etag") is None


def test_a_full_disk_is_named_with_its_remedy(tmp_path: Path) -> None:
    def write(part: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(part))

    with pytest.raises(SourceAccessError, match=r"VIDBRIDGE_SOURCE_CACHE: the disk is full .*; free some space"):
        SourceStore(tmp_path, 10**6).add("k", "a.mp4", 1, write, lambda: None)


def test_the_bound_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDBRIDGE_SOURCE_CACHE_GB", "much")
    with pytest.raises(InputError, match="'much' is not a number of GB; set one above 0"):
        open_store()


def test_an_address_holds_no_key_and_names_a_place() -> None:
    for bad, words in (
        ("s3://key:secret-of-mine@bucket/x", "no user or password"),
        ("https://host/x.jsonl?token=secret-of-mine", "no query"),
        ("ftp://host/x", "ftp:// is not supported"),
        ("s3:///x", "names no bucket"),
        ("s3://bucket/a/../b", "no '..'"),
    ):
        fault = fault_of_address(bad)
        assert fault is not None
        assert words in fault.problem
        assert "secret-of-mine" not in str(fault)
    for good in ("data/corpus", "/videos", "s3://bucket", "gs://bucket/x", "https://host/rows.jsonl"):
        assert fault_of_address(good) is None
    assert place_of("s3://bucket/set/") == ("s3://bucket/set", None)
    assert place_of("s3://bucket/set/rows.parquet") == ("s3://bucket/set", "rows.parquet")
    assert place_of("s3://bucket.json") == ("s3://bucket.json", None)


def test_a_name_stays_below_its_folder() -> None:
    for bad in ("", "/etc/passwd", "../a.mp4", "a/../../b", "a\\b", "a\0b", "s3://b/a", "x" * 300):
        assert fault_of_name(bad) is not None, bad
    assert fault_of_name("a b/ü.mp4") is None


def test_rules_for_names_go_both_ways() -> None:
    rules = NameRules("data/videos/", "train/", ".mp4")
    assert rules.file_of("data/videos/a") == "train/a.mp4"
    assert rules.name_of("train/a.mp4") == "data/videos/a"
    assert rules.name_of("test/a.mp4") is None
    assert rules.name_of("train/a.webm") is None
    assert NameRules().name_of("a.mp4") == "a.mp4"
