"""Shots, flags and near-duplicates of real files, seen while they are decoded once."""

from __future__ import annotations

import json
import subprocess
import tarfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from stages.domain.core.records import Clip, Reject, Span
from stages.ingest.curation.curator import Curator
from stages.ingest.curation.duplicates import NearDuplicate, without_near_duplicates
from stages.ingest.curation.viewing import Viewed, Viewer, flags
from stages.ingest.curation.watching import SMALL_PX, validate_watched
from stages.ingest.examination import Asked, examine
from stages.ingest.examine import examine_source
from stages.lib.video import encoder
from stages.lib.video.encoder import encode, ffmpeg_binary, validate
from stages.lib.video.errors import VideoError
from stages.lib.video.probe import probe
from stages.lib.video.reader import read_frames
from stages.params import IngestParams, load_params
from tests.support.builders import clip
from tests.support.checkout import ROOT
from tests.support.servers.files import file_server
from tests.support.siblings import REAL_CLIPS, needs_real_clips

PARAMS = load_params(ROOT / "params.yaml").ingest
BUNNY = ROOT / "tests/data/clips/bigbuckbunny.mp4"
Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def scene(seed: int, frames: int = 16, height: int = 72, width: int = 96) -> Pixels:
    """Blocks of one random picture that go to the right, 8 frames a second."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 255, (height // 12, width // 12, 3), np.uint8).repeat(12, 0).repeat(12, 1)
    return np.stack([np.roll(blocks, number, axis=1) for number in range(frames)])


def viewed(path: Path) -> tuple[Viewed, int]:
    facts = probe(path)
    viewer = Viewer(facts.rate, facts.frames)
    times = validate_watched(path, viewer.see).times
    return viewer.viewed(facts, len(times) - facts.frames), facts.slots


def flagged(path: Path) -> tuple[str, ...]:
    found, frames = viewed(path)
    return flags(found.pictures_in(Span(start=0, stop=frames)), Fraction(frames, 8))


def source(folder: Path, **films: Pixels) -> IngestParams:
    for name, frames in films.items():
        encode(frames, Fraction(8), folder / f"{name}.mp4", crf=18)
    rows = "".join(json.dumps({"video": f"{name}.mp4"}) + "\n" for name in films)
    (folder / "annotations.jsonl").write_text(rows)
    changes = {"source": str(folder), "curate": True, "near_duplicates": "report", "timeout_s": 60}
    return IngestParams.model_validate(PARAMS.model_dump() | changes)


def test_watching_gives_the_times_of_a_plain_decode_and_every_frame() -> None:
    seen: list[Pixels] = []
    assert validate_watched(BUNNY, lambda frames: seen.append(frames.copy())) == validate(BUNNY)
    frames = np.concatenate(seen)
    assert frames.shape == (132, SMALL_PX, SMALL_PX, 3)
    # Another decoder and another scaler see the same.
    pixels, _ = read_frames(BUNNY, [0, 66, 131])
    cells = pixels[:, :720, :].reshape(3, 8, 90, 8, 160, 3).mean(axis=(2, 4))
    small = frames[[0, 66, 131]][..., ::-1].reshape(3, 8, 8, 8, 8, 3).mean(axis=(2, 4))
    assert np.abs(cells - small).max() < 3


def test_a_damaged_file_and_a_late_one_end_as_they_do_without_a_viewer(tmp_path: Path) -> None:
    content = BUNNY.read_bytes()
    (tmp_path / "rotten.mp4").write_bytes(content[:200_000] + bytes(b ^ 0x3C for b in content[200_000:]))
    with pytest.raises(VideoError) as plain:
        validate(tmp_path / "rotten.mp4")
    with pytest.raises(VideoError) as watched:
        validate_watched(tmp_path / "rotten.mp4", lambda _: None)
    assert (plain.value.reason, watched.value.reason) == ("damaged", "damaged")
    with pytest.raises(VideoError, match=r"decoding did not end within 0\.01 s"):
        validate_watched(BUNNY, lambda _: None, timeout_s=0.01)


def test_shots_are_found_at_their_frame_and_belong_to_their_part(tmp_path: Path) -> None:
    path = tmp_path / "three.mp4"
    encode(np.concatenate([scene(1), scene(2, 20), scene(3)]), Fraction(8), path, crf=18)
    found, frames = viewed(path)
    assert (found.shots, frames) == ((16, 36), 52)
    assert found.shots_in(Span(start=0, stop=16)) == ()
    assert found.shots_in(Span(start=10, stop=40)) == (6, 26)
    assert found.shots_in(Span(start=16, stop=36)) == ()
    assert viewed(BUNNY)[0].shots == ()


def test_shots_of_a_variable_rate_count_frames_as_the_clip_does(tmp_path: Path) -> None:
    """The second half is twice as slow, so that frame 24 of the file is shown from slot 32 on."""
    whole, slow = tmp_path / "whole.mp4", tmp_path / "slow.mp4"
    encode(np.concatenate([scene(1, 16), scene(2, 8), scene(3, 8)]), Fraction(8), whole, crf=18)
    late = "setpts='if(lt(N,16),N,16+2*(N-16))/8/TB'"
    command = [ffmpeg_binary(), "-v", "error", "-i", str(whole), "-vf", late, "-fps_mode", "passthrough", str(slow)]
    subprocess.run(command, check=True)
    facts = probe(slow)
    found, _ = viewed(slow)
    assert facts.variable_rate
    expected = [facts.rate * (16 + 2 * (n - 16)) / 8 for n in (16, 24)]
    assert np.abs(np.array(found.shots) - [float(slot) for slot in expected]).max() <= 1
    assert all(facts.frame_at(slot) == frame for slot, frame in zip(found.shots, (16, 24), strict=True))


def test_black_static_and_letterboxed_clips_are_flagged_and_others_are_not(tmp_path: Path) -> None:
    films = {
        "plain": scene(1),
        "black": np.full((16, 72, 96, 3), 8, np.uint8),
        "static": scene(1)[:1].repeat(16, 0),
        "boxed": np.pad(scene(1), ((0, 0), (12, 12), (0, 0), (0, 0))),
        "pillars": np.pad(scene(1), ((0, 0), (0, 0), (16, 16), (0, 0))),
        "uneven": np.pad(scene(1), ((0, 0), (24, 0), (0, 0), (0, 0))),
    }
    # A thing on black ground is no letterbox.
    night = np.zeros((16, 72, 96, 3), np.uint8)
    for number, frame in enumerate(night):
        frame[30:42, 20 + 3 * number : 32 + 3 * number] = 200
    films["night"] = night
    for name, frames in films.items():
        encode(frames, Fraction(8), tmp_path / f"{name}.mp4", crf=18)
    assert {name: flagged(tmp_path / f"{name}.mp4") for name in films} == {
        "plain": (),
        "black": ("black",),
        "static": ("static",),
        "boxed": ("letterboxed",),
        "pillars": ("letterboxed",),
        "uneven": (),
        "night": (),
    }


def test_a_part_is_judged_by_its_own_pictures(tmp_path: Path) -> None:
    path = tmp_path / "half.mp4"
    encode(np.concatenate([scene(1), scene(2)[:1].repeat(16, 0)]), Fraction(8), path, crf=18)
    found, _ = viewed(path)
    halves = [flags(found.pictures_in(Span(start=n, stop=n + 16)), Fraction(2)) for n in (0, 16)]
    assert halves == [(), ("static",)]


def test_near_duplicates_are_found_reported_across_splits_and_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDBRIDGE_WORKERS", "1")
    first = scene(1)
    small = first[:, ::2, ::2]
    brighter = np.clip(first.astype(int) + 8, 0, 255).astype(np.uint8)
    other_colours = np.ascontiguousarray(first[..., ::-1])
    params = source(
        tmp_path,
        a=first,
        b=np.ascontiguousarray(small),
        c=brighter,
        d=other_colours,
        e=scene(2),
        f=np.full_like(first, 90),
    )
    curator, journal = Curator(params), tmp_path / "state/journal.jsonl"
    clips, _, _, counts, _ = examine_source(params, 7, journal, curator=curator)
    assert [pair.clips for pair in curator.pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert counts.used == 6, "reported only"
    across = sum(pair.across_splits for pair in curator.pairs)
    assert curator.summary(clips)["near_duplicates"] == {"pairs": 3, "across_splits": across}
    assert f"3 pairs of near-duplicates, {across} across splits." in curator.card(clips)

    dropping = Curator(params := params.model_copy(update={"near_duplicates": "drop"}))
    kept, rejects, _, counts, _ = examine_source(params, 7, journal, curator=dropping)
    assert len(kept) == 4
    assert {reject.reason for reject in rejects} == {"near-duplicate"}
    assert (counts.read, counts.used) == (6, 4)
    assert dropping.pairs == curator.pairs


def test_videos_elsewhere_are_curated_as_those_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the cache holds one of them at a time, and in tars."""
    monkeypatch.setenv("VIDBRIDGE_WORKERS", "1")
    monkeypatch.setenv("VIDBRIDGE_SOURCE_CACHE", str(tmp_path / "cache"))
    made, tars, journal = tmp_path / "made", tmp_path / "tars", tmp_path / "state/journal.jsonl"
    made.mkdir()
    tars.mkdir()
    params = source(
        made, a=scene(1), b=np.concatenate([scene(1), scene(2)]), c=np.ascontiguousarray(scene(1)[:, ::2, ::2])
    )
    names = [f"{name}.mp4" for name in "abc"]
    for number, name in enumerate(names):
        with tarfile.open(tars / f"{number}.tar", "w") as tar:
            tar.add(made / name, name)

    def found(asked: IngestParams) -> tuple[list[Clip], list[NearDuplicate]]:
        curator = Curator(asked)
        return examine_source(asked, 7, journal, curator=curator).clips, curator.pairs

    expected = found(params)
    assert [clip.shots for clip in expected[0]] == [(), (16,), ()]
    assert [near.clips for near in expected[1]] == [("a", "c")]
    journal.unlink()
    largest = max((made / name).stat().st_size for name in names)
    with file_server(made) as web, monkeypatch.context() as small:
        small.setenv("VIDBRIDGE_SOURCE_CACHE_GB", str(1.5 * largest / 1e9))
        served = params.model_copy(update={"source": f"{web.address}/annotations.jsonl"})
        assert found(served) == expected
        assert found(served) == expected
        assert [len(web.bodies(name)) for name in names] == [1, 1, 1], "what was seen is not fetched again"
    journal.unlink()
    assert found(params.model_copy(update={"videos": str(tars)})) == expected


def pair(one: Clip, other: Clip) -> NearDuplicate:
    return NearDuplicate(clips=(one.clip_id, other.clip_id), splits=(one.split, other.split), bits=1.0, colour=1)


def test_what_is_measured_on_is_kept_rather_than_what_is_trained_on() -> None:
    train, test, apart = clip(0, split="train"), clip(1, split="test"), clip(2, split="train")
    kept, rejects = without_near_duplicates([train, test, apart], [pair(train, test)])
    assert kept == [test, apart]
    (reject,) = rejects
    assert isinstance(reject, Reject)
    assert reject.item == "c0"
    assert "shows what 'videos/c1.mp4' does (clip 'c1', test)" in reject.detail
    # Of a chain a-b-c only the middle goes where it stands last.
    a, b, c = clip(0), clip(3), clip(1)
    assert without_near_duplicates([a, c, b], [pair(a, b), pair(b, c)])[0] == [a, c]


def test_nothing_is_looked_at_unless_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDBRIDGE_WORKERS", "1")
    params = source(tmp_path, a=scene(1)).model_copy(update={"curate": False, "near_duplicates": None})
    curator = Curator(params)
    (clip,) = examine_source(params, 7, curator=curator).clips
    assert (clip.shots, clip.flags) == (None, None)
    assert not {"shots", "flags"} & set(json.loads(clip.model_dump_json(exclude_none=True)))
    assert (curator.summary([clip]), curator.card([clip])) == ({}, "")


def test_a_file_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = source(tmp_path, a=np.concatenate([scene(1), scene(2)]))

    def refused(*_: object) -> None:
        raise AssertionError("a second decode")

    monkeypatch.setattr(encoder, "validate", refused)
    report = examine(Asked("a.mp4", watch=True), Path(params.source), None)
    assert report.problem is None
    assert report.viewed is not None
    assert report.viewed.shots == (16,)


def test_every_frame_is_looked_at_in_a_source_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that ``auto`` would sample; the words of ``sampled`` contradict a look."""
    monkeypatch.setenv("VIDBRIDGE_WORKERS", "1")
    params = source(tmp_path, a=np.concatenate([scene(1), scene(2)]))
    asked = params.model_dump() | {"validation": {"mode": "auto", "whole_up_to": 0}}
    (clip,) = examine_source(IngestParams.model_validate(asked), 7).clips
    assert clip.shots == (16,)
    with pytest.raises(ValidationError, match=r"curate looks at every frame; set validation\.mode: auto or whole"):
        IngestParams.model_validate(asked | {"validation": {"mode": "sampled", "whole_up_to": 0}})


def test_a_frame_folder_is_looked_at_as_a_file_of_its_pictures(tmp_path: Path) -> None:
    pixels = np.concatenate([scene(1), scene(2)])
    encode(pixels, Fraction(8), tmp_path / "a.mp4", crf=18)
    (tmp_path / "b").mkdir()
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / f"b/{number:03}.png")
    file, folder = (
        examine(Asked(name, frame_rate=Fraction(8), watch=True), tmp_path, None).viewed for name in ("a.mp4", "b")
    )
    assert file is not None
    assert folder is not None
    assert folder.shots == file.shots == (16,)
    assert folder.at == file.at
    whole = Span(start=0, stop=len(pixels))
    colours = [seen.pictures_in(whole).colours for seen in (file, folder)]
    # The file's colours have half the resolution.
    assert np.abs(colours[0] - colours[1]).max() <= 10
    Image.fromarray(pixels[0, :36]).save(tmp_path / "b/005.png")
    problem = examine(Asked("b", frame_rate=Fraction(8), watch=True), tmp_path, None).problem
    assert problem is not None
    assert problem.reason == "damaged"


@pytest.mark.slow
@needs_real_clips
def test_no_two_different_real_clips_are_near_duplicates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pairs of these six files hold one recording each in two containers."""
    monkeypatch.setenv("VIDBRIDGE_WORKERS", "1")
    names = (
        "sample_h265.ts",
        "SAR-2by3.mp4",
        "h264-png.mkv",
        "testsrc2_vp8.webm",
        "testsrc2_vp9.webm",
        "test_non_zero_start.mp4",
    )
    for name in names:
        (tmp_path / name).write_bytes((REAL_CLIPS / name).read_bytes())
    (tmp_path / "annotations.jsonl").write_text("".join(json.dumps({"video": name}) + "\n" for name in names))
    changes = {"source": str(tmp_path), "curate": True, "near_duplicates": "report", "timeout_s": 60}
    params = IngestParams.model_validate(PARAMS.model_dump() | changes)
    curator = Curator(params)
    assert len(examine_source(params, 7, curator=curator).clips) == len(names)
    assert [pair.clips for pair in curator.pairs] == [("SAR-2by3", "h264-png"), ("testsrc2_vp8", "testsrc2_vp9")]
