"""Videos in a bucket, from a server that speaks S3: equal results to the folder, nothing fetched to
learn that nothing changed, and one message for each trouble."""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from stages.runtime.paths import CLIPS, CORPUS, MANIFEST_FILE
from stages.runtime.sources.failures import SourceAccessError
from stages.runtime.sources.roots import NameRules, Roots
from stages.runtime.sources.videos import open_videos
from tests.support.projects.repository import commit
from tests.support.projects.smoke import call, succeed
from tests.support.servers import stack
from tests.support.servers.service import Service

ADDRESS = f"s3://{stack.BUCKET}/set"
#: Mapping of a Parquet whose columns are the fields of ``annotations.jsonl``.
MAPPING = """\
video: video
id: id
source: source
split: split
label: label
licence: licence
caption: caption
events: {each: events, start: start, end: end, caption: caption}
qa: {each: qa, question: question, options: options, answer: answer, rationale: rationale}
subjects: {each: subjects, name: name, attributes: attributes, actions: actions}
"""


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A store that speaks S3, with the keys of its client in the environment."""
    if not stack.SERVERS.is_file():
        pytest.skip("the servers' environment is not installed: make .tools/ops/bin/python")
    store = stack.object_store(tmp_path_factory.mktemp("store"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in stack.keys(store).items():
            patch.setenv(name, value)
        yield store
    store.close()


def _put(store: Service, name: str, content: bytes) -> None:
    signed = {"Authorization": f"AWS4-HMAC-SHA256 Credential={stack.KEY}/20260101/us-east-1/s3/aws4_request"}
    url = f"http://127.0.0.1:{store.port}/{stack.BUCKET}/{name}"
    httpx.put(url, headers=signed, content=content, timeout=60).raise_for_status()


def _requests(store: Service) -> list[str]:
    return re.findall(r'"(?:\x1b\[[0-9;]*m)*([A-Z]+ \S+)', store.log.read_text(encoding="utf-8"))


def _set(project: Path, **values: str) -> None:
    file = project / "params.yaml"
    text = file.read_text(encoding="utf-8").replace("kind: rule\n", "kind: rule_on_real_text\n")
    text = re.sub(r"kind: rule\b(?!_)", "kind: rule_on_real_text", text)
    for key, value in values.items():
        text, found = re.subn(rf"(?m)^  {key}: .*$", f"  {key}: {value}", text, count=1)
        assert found == 1
    file.write_text(text, encoding="utf-8")
    commit(project, str(values))


def _outs(project: Path) -> dict[str, str]:
    stages = yaml.safe_load((project / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    return {name: stages[name]["outs"][0]["md5"] for name in ("ingest", "synthesize")}


@pytest.fixture(scope="module")
def made(project: Path, bucket: Service) -> dict[str, str]:
    """Hashes of the outs of ingest, with curation, and synthesize from a folder. The bucket has its
    files, too: as they are below ``set``, in two tars below ``tars``."""
    succeed(project, "dvc", "repro", "corpus")
    videos = project.parent / "videos"
    shutil.copytree(project / CORPUS, videos)
    for path in sorted(videos.rglob("*")):
        if path.is_file():
            _put(bucket, f"set/{path.relative_to(videos).as_posix()}", path.read_bytes())
    rows = (videos / "annotations.jsonl").read_text(encoding="utf-8").splitlines()
    for number, some in enumerate((rows[: len(rows) // 2], rows[len(rows) // 2 :])):
        whole = io.BytesIO()
        with tarfile.open(fileobj=whole, mode="w") as tar:
            for line in some:
                row = json.loads(line)
                name = row.pop("video")
                for member, content in ((name, (videos / name).read_bytes()), (f"{name[:-4]}.json", json.dumps(row))):
                    data = content if isinstance(content, bytes) else content.encode()
                    info = tarfile.TarInfo(member)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        _put(bucket, f"tars/{number:05}.tar", whole.getvalue())
    _set(project, source=str(videos), curate="true", near_duplicates="report")
    succeed(project, "dvc", "repro", "synthesize")
    return _outs(project)


def _planned(project: Path) -> dict[str, tuple[str, list[str]]]:
    plan = json.loads(succeed(project, "vidbridge", "plan", "synthesize", "--json"))
    return {step["stage"]: (step["state"], step["why"]) for step in plan["steps"]}


def test_a_run_on_a_bucket_gives_the_samples_of_the_folder(
    project: Path, made: dict[str, str], bucket: Service
) -> None:
    for place in (ADDRESS, f"s3://{stack.BUCKET}/tars"):
        _set(project, source=place)
        succeed(project, "dvc", "repro", "synthesize")
        assert _outs(project) == made, place
        assert "didn't change, skipping" in succeed(project, "dvc", "repro", "synthesize")
    _set(project, source=ADDRESS)
    succeed(project, "dvc", "repro", "synthesize")
    before = len(_requests(bucket))
    assert {state for state, _ in _planned(project).values()} == {"up to date"}
    asked = _requests(bucket)[before:]
    assert not [line for line in asked if ".mp4" in line]
    assert len([line for line in asked if "list-type=2" in line]) <= 4  # one listing, not one a stage
    _put(bucket, "set/new.txt", b"new")
    state, why = _planned(project)["ingest"]
    assert (state, why) == ("will run", [f"dep {ADDRESS} changed"])
    succeed(project, "dvc", "repro", "synthesize")
    assert _outs(project) == made  # no row names it


def test_a_parquet_with_its_videos_under_another_prefix_gives_the_samples_of_the_folder(
    project: Path, made: dict[str, str], bucket: Service
) -> None:
    lines = (project.parent / "videos/annotations.jsonl").read_text(encoding="utf-8").splitlines()
    table = pa.Table.from_pylist([json.loads(line) for line in lines])
    whole = io.BytesIO()
    pq.write_table(table, whole, row_group_size=10)
    _put(bucket, "tables/train.parquet", whole.getvalue())
    (project / "mappings/ours.yaml").write_text(MAPPING, encoding="utf-8")
    columns = {"format": "mappings/ours.yaml", "annotations": "train.parquet"}
    _set(project, source=f"s3://{stack.BUCKET}/tables", videos=ADDRESS, **columns)
    try:
        succeed(project, "vidbridge", "run", "synthesize")
        assert _outs(project) == made
        pq.write_table(table.slice(1), whole := io.BytesIO())
        _put(bucket, "tables/train.parquet", whole.getvalue())
        assert _planned(project)["ingest"] == ("will run", [f"dep s3://{stack.BUCKET}/tables changed"])
        _put(bucket, "tables/train.parquet", whole.getvalue()[:-100])
        cut = f"s3://{stack.BUCKET}/tables"
        given = ("--videos", ADDRESS, "--format", "mappings/ours.yaml", "--annotations", "train.parquet")
        done = call(project, "vidbridge", "data", "check", cut, *given)
        assert done.returncode == 2
        assert f"error: {cut}/train.parquet: no Parquet file: " in done.stderr
    finally:
        _set(project, source=ADDRESS, videos="null", format="jsonl", annotations="null")


def test_videos_with_a_root_of_their_own_are_watched_by_a_plan(
    project: Path, made: dict[str, str], bucket: Service
) -> None:
    rows = project.parent / "rows"
    rows.mkdir(exist_ok=True)
    shutil.copy(project.parent / "videos/annotations.jsonl", rows)
    _set(project, source=str(rows), videos=ADDRESS)
    succeed(project, "vidbridge", "run", "synthesize")
    assert _outs(project) == made
    assert _planned(project)["ingest"][0] == "up to date"
    (first, second, *_) = sorted((project.parent / "videos/videos").iterdir())
    _put(bucket, f"set/videos/{first.name}", second.read_bytes())
    try:
        assert _planned(project)["ingest"] == ("will run", [f"videos below {ADDRESS} changed"])
        succeed(project, "vidbridge", "run", "synthesize")
        assert _outs(project) != made
        assert _planned(project)["ingest"][0] == "up to date"
    finally:
        _put(bucket, f"set/videos/{first.name}", first.read_bytes())
    succeed(project, "vidbridge", "run", "synthesize")
    assert _outs(project) == made
    _set(project, source=ADDRESS, videos="null")


def test_later_stages_fetch_again_on_another_host_and_need_no_server_for_what_is_here(
    project: Path, made: dict[str, str], bucket: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDBRIDGE_SOURCE_CACHE", str(tmp_path / "empty"))
    clip = json.loads((project / CLIPS / MANIFEST_FILE).read_text(encoding="utf-8").splitlines()[0])
    content = (project.parent / "videos" / clip["path"]).read_bytes()
    for place in (ADDRESS, f"s3://{stack.BUCKET}/tars"):
        videos = open_videos(Roots(place, None, NameRules()))
        shutil.rmtree(tmp_path / "empty", ignore_errors=True)
        assert videos.path(clip["path"], clip["sha256"]).read_bytes() == content
        with bucket.away("cut off", 0):
            assert videos.path(clip["path"], clip["sha256"]).read_bytes() == content
    with pytest.raises(SourceAccessError, match="changed since ingest"):
        open_videos(Roots(ADDRESS, None, NameRules())).path(clip["path"], "0" * 64)


def test_each_trouble_is_one_message_with_its_remedy(project: Path, made: dict[str, str], bucket: Service) -> None:
    def said(place: str, **changes: str) -> str:
        done = call(project, "vidbridge", "data", "check", place, **changes)
        assert done.returncode == 2, done.stderr
        (line,) = [line for line in done.stderr.splitlines() if "error: " in line]
        assert stack.SECRET not in done.stdout + done.stderr
        return line

    assert "no keys for it in the environment; set AWS_ACCESS_KEY_ID" in said(
        ADDRESS, AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="", HOME=str(project.parent / "nobody")
    )
    assert "bucket 'nobody-has-it' does not exist; correct the address" in said("s3://nobody-has-it/set")
    assert "nothing there" in said(f"s3://{stack.BUCKET}/nothing")
    assert "has no none.jsonl; name its file" in said(f"{ADDRESS}/none.jsonl")
    assert "no answer" in said(ADDRESS, AWS_ENDPOINT_URL="http://127.0.0.1:1")
    reset = f"http://127.0.0.1:{bucket.port}/moto-api/reset-auth"
    httpx.post(reset, content=b"0", timeout=30).raise_for_status()
    try:
        denied = said(ADDRESS)
        assert "access denied" in denied
        assert "let this account list and read it" in denied
    finally:
        httpx.post(reset, content=b"1000000", timeout=30).raise_for_status()
    done = call(project, "vidbridge", "plan", "synthesize", AWS_ENDPOINT_URL="http://127.0.0.1:1")
    assert done.returncode != 0
    assert "ingest.source: " in done.stderr
    assert "no answer" in done.stderr
