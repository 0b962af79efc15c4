"""Whole and sampled validation: what each finds, and that neither depends on what was done
before."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from stages.domain.core.records import Clip, Reject
from stages.domain.core.timeline import plain
from stages.ingest import examine as examining
from stages.ingest.examination import Asked
from stages.ingest.examine import examine_source
from stages.lib.video.encoder import ffmpeg_binary
from stages.lib.video.errors import VideoError
from stages.lib.video.loader import FrameLoader
from stages.lib.video.pictures import spread
from stages.params import Validation, load_params
from tests.support.checkout import ROOT

WHOLE, SAMPLED = Validation(mode="whole", whole_up_to=0), Validation(mode="sampled", whole_up_to=0)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """9 groups of 10 frames, too large to be decoded whole in a sampled validation."""
    return _made(tmp_path_factory.mktemp("videos") / "good.mp4", "320x240", "-g", "10")


def _made(path: Path, size: str, *output: str) -> Path:
    command = [ffmpeg_binary(), "-v", "error", "-y", "-f", "lavfi", "-i", f"testsrc2=s={size}:r=10:d=9"]
    command += ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-bf", "0", *output, str(path)]
    subprocess.run(command, check=True, timeout=60)
    return path


def _rotten(good: Path, out: Path, frame: int) -> Path:
    """The same file, with the picture of one frame overwritten."""
    import av

    with av.open(str(good)) as container:
        packet = next(p for number, p in enumerate(container.demux(video=0)) if number == frame)
        at, size = packet.pos, packet.size
    content = bytearray(good.read_bytes())
    content[at + 16 : at + size - 4] = bytes((7 * n) % 251 for n in range(size - 20))
    out.write_bytes(bytes(content))
    return out


def _ingest(
    folder: Path, validation: Validation, monkeypatch: pytest.MonkeyPatch, journal: Path | None = None, **changes: Any
) -> tuple[list[Clip], list[Reject], list[Asked]]:
    looked: list[Asked] = []

    def map_items(work: Any, items: Sequence[Asked], *_: Any, **__: Any) -> list[Any]:
        looked.extend(items)
        return [work(item) for item in items]

    monkeypatch.setattr(examining, "map_items", map_items)
    rows = [json.dumps({"video": path.name}) + "\n" for path in sorted(folder.glob("*.mp4"))]
    (folder / "annotations.jsonl").write_text("".join(rows), encoding="utf-8")
    params = load_params(ROOT / "params.yaml").ingest.model_copy(
        update={"source": str(folder), "validation": validation, **changes}
    )
    clips, rejects, *_ = examine_source(params, 7, journal)
    return clips, rejects, looked


@pytest.mark.parametrize(("frame", "seen"), [(0, True), (50, True), (80, True), (40, False), (45, False)])
def test_damage_is_found_at_ingest_or_when_it_is_read(
    frame: int, seen: bool, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys are frames 0, 10 … 80; 0, 20, 50 and 80 are decoded."""
    _rotten(good, tmp_path / "bad.mp4", frame)
    assert [reject.reason for reject in _ingest(tmp_path, WHOLE, monkeypatch)[1]] == ["damaged"]
    clips, rejects, _ = _ingest(tmp_path, SAMPLED, monkeypatch)
    if seen:
        assert [reject.reason for reject in rejects] == ["damaged"]
        return
    loader = FrameLoader({"bad": clips[0]}, tmp_path, cache_bytes=0)
    timeline = plain("bad", clips[0].frames, clips[0].rate)
    assert len(loader.frames(timeline, [0, 39, 60])) == 3
    with pytest.raises(VideoError, match=r"damaged"):
        loader.frames(timeline, [frame])


def test_the_last_group_must_be_there(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = good.read_bytes()
    fast = tmp_path / "good.mp4"
    subprocess.run(
        [ffmpeg_binary(), "-v", "error", "-i", good, "-c", "copy", "-movflags", "+faststart", fast], check=True
    )
    fast.write_bytes(fast.read_bytes()[: len(content) * 2 // 3])
    assert [reject.reason for reject in _ingest(tmp_path, SAMPLED, monkeypatch)[1]] == ["damaged"]


def test_small_files_are_always_decoded_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """decord reads them, and shows a damaged frame without a word."""
    small = _made(tmp_path / "small.mkv", "64x64", "-g", "10")
    fast = tmp_path / "small.mp4"
    subprocess.run([ffmpeg_binary(), "-v", "error", "-i", small, "-c", "copy", fast], check=True)
    _rotten(fast, fast, 45)
    assert [reject.reason for reject in _ingest(tmp_path, SAMPLED, monkeypatch)[1] if ".mkv" not in reject.item] == [
        "damaged"
    ]


def test_both_validations_give_equal_rows_of_good_files(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.mp4").write_bytes(good.read_bytes())
    subprocess.run(
        [ffmpeg_binary(), "-v", "error", "-i", good, "-c:v", "libx264", "-bf", "2", "-g", "250", tmp_path / "b.mp4"],
        check=True,
    )
    assert _ingest(tmp_path, WHOLE, monkeypatch)[0] == _ingest(tmp_path, SAMPLED, monkeypatch)[0]


def test_the_bound_decides_and_a_sampled_report_is_no_whole_one(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = tmp_path / "state/journal.jsonl"
    folder = tmp_path / "videos"
    folder.mkdir()
    _rotten(good, folder / "bad.mp4", 45)
    (folder / "good.mp4").write_bytes(good.read_bytes())
    few, many = Validation(mode="auto", whole_up_to=2), Validation(mode="auto", whole_up_to=1)
    clips, rejects, looked = _ingest(folder, many, monkeypatch, journal)
    assert (len(clips), len(rejects), [one.whole for one in looked]) == (2, 0, [False, False])
    assert _ingest(folder, many, monkeypatch, journal)[2] == []
    clips, rejects, looked = _ingest(folder, few, monkeypatch, journal)
    assert ([clip.clip_id for clip in clips], [one.whole for one in looked]) == (["good"], [True, True])
    assert [reject.reason for reject in rejects] == ["damaged"]
    for validation, accepted in ((many, 2), (few, 1)):
        again = _ingest(folder, validation, monkeypatch, journal)
        assert (len(again[0]), again[2]) == (accepted, [])


def test_a_file_that_is_encoded_again_is_decoded_whole(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rotten = _rotten(good, tmp_path / "rotten.mkv", 45)
    turned = tmp_path / "turned.mp4"
    subprocess.run(
        [ffmpeg_binary(), "-v", "error", "-display_rotation:v:0", "90", "-i", rotten, "-c", "copy", turned], check=True
    )
    rejects = _ingest(tmp_path, SAMPLED, monkeypatch, tmp_path / "state/journal.jsonl", normalise=True)[1]
    assert "damaged" in [reject.reason for reject in rejects]


def test_four_at_most_the_first_and_the_last_among_them() -> None:
    assert [spread(count) for count in (0, 1, 2, 3, 4, 9)] == [(), (0,), (0, 1), (0, 1, 2), (0, 1, 2, 3), (0, 2, 5, 8)]
    for count in range(1, 300):
        assert {0, count - 1} <= set(spread(count))
        assert len(spread(count)) <= 4
