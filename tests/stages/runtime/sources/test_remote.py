"""Fetching from a real web server: what was cut short goes on, what changed is noticed, what is
here needs no server."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stages.runtime.sources import remote
from stages.runtime.sources.failures import Changed, Gone, SourceAccessError, access_error
from stages.runtime.sources.remote import RemoteRoot, fetch, fetch_one
from stages.runtime.sources.roots import NameRules, Roots
from stages.runtime.sources.store import Known, SourceStore
from stages.runtime.sources.videos import open_videos
from tests.support.servers.files import FileServer

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def _root(web: FileServer, name: str = "a.mp4", content: bytes = CONTENT) -> RemoteRoot:
    (web.folder / name).write_bytes(content)
    return RemoteRoot(web.address, "ingest.source")


def test_what_was_cut_short_goes_on_where_it_was(
    web: FileServer, store: SourceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "CHUNK_BYTES", 4096)
    root, known = _root(web), Known(store, web.address)
    version = root.version("a.mp4")
    web.cut_after = 3000
    with pytest.raises(SourceAccessError, match=r"a\.mp4: no answer .*; see that the server runs"):
        fetch_one(root, store, known, "a.mp4", version)
    assert store.find(SHA256, "a.mp4") is None
    web.cut_after, web.fail_at = None, 4096
    with pytest.raises(SourceAccessError):  # the first chunk came, not the second one
        fetch_one(root, store, known, "a.mp4", version)
    monkeypatch.setattr(remote, "CHUNK_BYTES", 10**6)
    web.fail_at, web.asked[:] = None, []
    assert fetch_one(root, store, known, "a.mp4", version) == SHA256
    assert web.bodies("a.mp4") == [f"bytes=4096-{len(CONTENT) - 1}"]
    path = store.find(SHA256, "a.mp4")
    assert path is not None
    assert path.read_bytes() == CONTENT
    assert path.suffix == ".mp4"


def test_a_server_without_ranges_gives_the_whole_file(
    web: FileServer, store: SourceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "CHUNK_BYTES", 1000)
    web.ranges = False
    root = _root(web)
    assert fetch_one(root, store, Known(store, web.address), "a.mp4", root.version("a.mp4")) == SHA256
    assert len(web.bodies("a.mp4")) == 1


def test_what_changed_while_it_was_fetched_is_not_kept(web: FileServer, store: SourceStore) -> None:
    root, known = _root(web), Known(store, web.address)
    before = root.version("a.mp4")
    (web.folder / "a.mp4").write_bytes(CONTENT[::-1])
    found = fetch(root, store, known, {"a.mp4": before}, "videos", quiet=True)
    assert isinstance(found["a.mp4"], Changed)
    assert list((store.folder / "objects").glob("*/*")) == []
    (web.folder / "a.mp4").unlink()
    assert isinstance(fetch(root, store, known, {"a.mp4": before}, "videos", quiet=True)["a.mp4"], Gone)


def test_what_is_fetched_at_once_by_several_is_fetched_once(web: FileServer, store: SourceStore) -> None:
    root = _root(web)
    version = root.version("a.mp4")

    def one(_: int) -> str:
        own = SourceStore(store.folder, store.most_bytes)
        return fetch_one(root, own, Known(own, web.address), "a.mp4", version)

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(one, range(4))) == {SHA256}
    assert len(web.bodies("a.mp4")) == 1


def test_a_clip_is_found_again_on_another_machine_and_without_a_server(
    web: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDBRIDGE_SOURCE_CACHE", str(tmp_path / "other"))
    _root(web, "train/a b.mp4" if (web.folder / "train").mkdir() is None else "")
    roots = Roots("rows", web.address, NameRules("data/", "train/", ".mp4"))
    videos = open_videos(roots)
    assert videos.path("data/a b", SHA256).read_bytes() == CONTENT
    web.status, web.asked[:] = 503, []
    assert open_videos(roots).path("data/a b", SHA256).read_bytes() == CONTENT
    assert web.asked == []
    with pytest.raises(SourceAccessError, match=r"^ingest.videos: http://.*/train/b\.mp4: no usable answer"):
        videos.path("data/b", "0" * 64)
    web.status = None
    with pytest.raises(SourceAccessError, match=r"changed since ingest: it has SHA-256 .*; run ingest again"):
        videos.path("data/a b", "0" * 64)
    with pytest.raises(SourceAccessError, match="there is no such object any more"):
        videos.path("data/gone", "0" * 64)
    web.status = 403
    with pytest.raises(SourceAccessError, match="access denied"):
        videos.path("data/gone", "0" * 64)


def test_a_server_that_keeps_silent_is_given_up_soon(web: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("TRIES", 5), ("PAUSE_S", 0.001), ("READ_S", 0.1)):
        monkeypatch.setattr(remote, name, value)
    root = _root(web)
    web.silent_s = 0.3
    with pytest.raises(
        SourceAccessError, match=r"a\.mp4: no answer \(SocketTimeoutError: .*; see that the server runs"
    ):
        root.version("a.mp4")
    assert len(web.asked) <= 2, "a HEAD and a GET, once"
    web.silent_s, web.status, web.asked[:] = 0, 503, []
    with pytest.raises(SourceAccessError, match=r"a\.mp4: no usable answer \(ClientResponseError: 503"):
        root.version("a.mp4")
    assert len(web.asked) >= 5, "one that answers may be busy"


@pytest.fixture
def bucket(web: FileServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[RemoteRoot]:
    """A bucket at the address of a web server, which answers as no bucket does."""
    from s3fs import S3FileSystem

    monkeypatch.setenv("AWS_ENDPOINT_URL", web.address)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "key")
    monkeypatch.setattr(remote, "READ_S", 0.1)
    S3FileSystem.clear_instance_cache()
    yield RemoteRoot("s3://team/videos", "ingest.source")
    S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize(
    ("status", "silent_s", "variables", "message"),
    [
        (
            500,
            0,
            {},
            r"s3://team/videos: no usable answer \(OSError: .*Internal Server Error\); see that the server runs",
        ),
        (403, 0, {}, r"s3://team/videos: access denied .*; let this account list and read it, or correct AWS_ACC"),
        (404, 0, {}, r"nothing there, or bucket 'team' does not exist; correct the address or AWS_ENDPOINT_URL"),
        (None, 0.3, {}, r"s3://team/videos: no answer \(ReadTimeoutError: .*\); see that the server runs"),
        (None, 0, {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, r"no answer \(EndpointConnectionError: .*\); see that"),
        (
            None,
            0,
            {"AWS_ENDPOINT_URL": "nonsense"},
            r"^AWS_ENDPOINT_URL: ValueError: Invalid endpoint: nonsense; write",
        ),
        (None, 0, {"AWS_PROFILE": "nobody"}, r"no keys for it in the environment \(ProfileNotFound: .*\); set AWS_ACC"),
    ],
)
def test_each_trouble_of_a_bucket_is_one_message(
    web: FileServer,
    bucket: RemoteRoot,
    monkeypatch: pytest.MonkeyPatch,
    status: int | None,
    silent_s: float,
    variables: dict[str, str],
    message: str,
) -> None:
    web.status, web.silent_s = status, silent_s
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SourceAccessError, match=message):
        bucket.listing()
    with pytest.raises(SourceAccessError, match=message):
        bucket.check()


def test_a_store_of_google_is_an_error_soon_without_its_client_and_without_an_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if importlib.util.find_spec("gcsfs") is None:
        with pytest.raises(SourceAccessError, match=r"gs://team/rows: gs:// needs gcsfs; uv sync --extra gcs"):
            RemoteRoot("gs://team/rows", "ingest.source").check()
    monkeypatch.setattr(remote, "getproxies", dict)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "127.0.0.1:1")
    with pytest.raises(ConnectionRefusedError) as refused:
        remote._check_google()
    said = str(access_error("ingest.source", "gs://team/rows", refused.value))
    assert said.startswith("ingest.source: gs://team/rows: no answer (ConnectionRefusedError: ")
