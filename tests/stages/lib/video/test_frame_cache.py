"""Frames on disk: decoded once by all processes together, within a bound, and never wrong when the
disk is."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pytest

from stages.domain.core.frames import Fit
from stages.domain.core.records import Clip, Sample, Segment, Span, Timeline
from stages.domain.core.timeline import interleave, mask, plain
from stages.errors import InputError
from stages.lib.video import loader as edits
from stages.lib.video.encoder import encode
from stages.lib.video.loader import FrameLoader
from stages.lib.video.open import frame_memory_bytes, frame_store
from stages.runtime import frame_cache
from stages.runtime.frame_cache import FrameStore, Pixels
from tests.support.checkout import ROOT
from tests.support.video.numbered_frames import FRAMES, RATE, draw_numbers

PLENTY = 100_000_000
KEYS = [hashlib.sha256(bytes([n])).hexdigest() for n in range(9)]


def half(pixels: Pixels) -> Pixels:
    return pixels[:, ::2, ::2]


def fit() -> Fit:
    return Fit("half", half)


@pytest.fixture(autouse=True)
def any_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_cache, "LEFT_FREE_BYTES", 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for place, name in enumerate("ab"):
        numbers = list(range(1000 * place, 1000 * place + FRAMES))
        encode(draw_numbers(numbers, size=128), RATE, folder / f"{name}.mp4", crf=10)
    encode(draw_numbers(list(range(FRAMES))), RATE, folder / "small.mp4", crf=10)
    return folder


def clip(folder: Path, name: str, size: int = 128) -> Clip:
    return Clip(
        clip_id=name,
        source_id=name,
        path=f"{name}.mp4",
        sha256=hashlib.sha256((folder / f"{name}.mp4").read_bytes()).hexdigest(),
        split="train",
        frames=FRAMES,
        rate=RATE,
        width=size,
        height=size,
        codec="h264",
    )


def loader(folder: Path, disk: FrameStore | None, memory: int = 0, **changes: object) -> FrameLoader:
    clips = {
        name: clip(folder, name, size).model_copy(update=changes)
        for name, size in (("a", 128), ("b", 128), ("small", 64))
    }
    return FrameLoader(clips, folder, memory, folder, disk, fit)


def decoded_frames(of: FrameLoader) -> float:
    return of.counts()["frames_served_by_decord"] + of.counts()["frames_served_by_pyav"]


def sample(timeline: Timeline, name: str) -> Sample:
    return Sample(
        sample_id=name,
        task="caption",
        clip_id=timeline.clip_ids[0],
        split="train",
        timeline=timeline,
        sampled_frames=8,
        question="what ?",
        reference="that",
    )


A = plain("a", FRAMES, RATE)
MIXED = interleave(
    [Segment(clip_id="a", span=Span(start=0, stop=30))], [Segment(clip_id="b", span=Span(start=0, stop=30))], RATE
)
SAMPLES = [sample(A, "plain"), sample(mask(A, Span(start=20, stop=40)), "masked"), sample(MIXED, "mixed")]


def load_all(
    folder: Path, disk: Path, start: Barrier, out: multiprocessing.Queue[tuple[float, int, list[bytes]]]
) -> None:
    frame_cache.LEFT_FREE_BYTES = 0
    mine = loader(folder, FrameStore(disk, PLENTY))
    start.wait(60)
    pixels = [mine.load(one).pixels.tobytes() for one in SAMPLES]
    counts = mine.counts()
    out.put(
        (counts["frames_served_by_decord"] + counts["frames_served_by_pyav"], int(counts["frame_store_misses"]), pixels)
    )


def test_two_processes_decode_each_sample_once_between_them(folder: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start, out = context.Barrier(2), context.Queue()
    both = [context.Process(target=load_all, args=(folder, tmp_path / "frames", start, out)) for _ in range(2)]
    for process in both:
        process.start()
    found = [out.get(timeout=60) for _ in both]
    for process in both:
        process.join(60)
    # 8 of the whole clip, 6 that are not dark, 4 of each of two clips.
    assert sum(frames for frames, _, _ in found) == 8 + 6 + 8
    assert sum(misses for _, misses, _ in found) == len(SAMPLES)
    expected = [half(loader(folder, None).load(one).pixels).tobytes() for one in SAMPLES]
    assert found[0][2] == found[1][2] == expected


def test_a_later_stage_reads_what_an_earlier_one_decoded(folder: Path, tmp_path: Path) -> None:
    first = loader(folder, FrameStore(tmp_path, PLENTY)).load(SAMPLES[0])
    later = loader(folder, FrameStore(tmp_path, PLENTY))
    # Another question about the same frames, from a run whose videos lie elsewhere.
    again = later.load(sample(A, "another question"))
    assert np.array_equal(first.pixels, again.pixels)
    assert later.counts() == {
        "frames_served_by_decord": 0,
        "frames_served_by_pyav": 0,
        "frame_store_hits": 1,
        "frame_store_misses": 0,
    }
    with pytest.raises(ValueError, match="read-only"):
        again.pixels[0] = 7


def test_other_content_has_another_entry(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def misses(one: Sample, **changes: object) -> float:
        fresh = loader(folder, FrameStore(tmp_path, PLENTY), **changes)
        fresh.load(one)
        return fresh.counts()["frame_store_misses"]

    assert [misses(SAMPLES[0]), misses(SAMPLES[0])] == [1, 0]
    assert misses(SAMPLES[1]) == 1
    assert misses(SAMPLES[0].model_copy(update={"sampled_frames": 9})) == 1
    assert misses(SAMPLES[0], sha256="0" * 64) == 1
    assert misses(SAMPLES[0], hazards=("open-gop",)) == 1
    # For a clip that ingest has re-encoded, the digest of that file counts, not of its source.
    assert [
        misses(SAMPLES[0], normalised=True, sha256="1" * 64),
        misses(SAMPLES[0], normalised=True, sha256="2" * 64),
    ] == [0, 0]
    monkeypatch.setattr(edits, "_code_version", lambda: "other code")
    assert misses(SAMPLES[0]) == 1


def test_a_small_clip_is_decoded_once_for_all_its_samples_and_stages(folder: Path, tmp_path: Path) -> None:
    whole = plain("small", FRAMES, RATE)
    samples = [sample(whole, "plain"), sample(mask(whole, Span(start=20, stop=40)), "masked")]
    sheets = loader(folder, FrameStore(tmp_path, PLENTY), PLENTY)
    expected = [loader(folder, None, PLENTY).load(one).pixels for one in samples]
    assert all(np.array_equal(sheets.load(one).pixels, pixels) for one, pixels in zip(samples, expected, strict=True))
    assert (decoded_frames(sheets), sheets.counts()["frame_store_misses"]) == (FRAMES, 1)
    later = loader(folder, FrameStore(tmp_path, PLENTY), PLENTY)
    assert all(np.array_equal(later.load(one).pixels, pixels) for one, pixels in zip(samples, expected, strict=True))
    assert (decoded_frames(later), later.counts()["frame_store_hits"]) == (0, 1)
    other = loader(folder, FrameStore(tmp_path, PLENTY), PLENTY, sha256="0" * 64)
    other.load(samples[0])
    assert other.counts()["frame_store_misses"] == 1


def pixels_of(number: int) -> Pixels:
    return np.random.default_rng(number).integers(0, 256, (4, 50, 50, 3), dtype=np.uint8)


def kept_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.*"))


def test_the_bound_holds_and_the_least_recently_used_go(tmp_path: Path) -> None:
    one = 4 * 50 * 50 * 3 + 128 + 4
    bound = 4 * one
    # Two of them, as in two processes: neither has a record of the other's writes.
    disks = [FrameStore(tmp_path, bound), FrameStore(tmp_path, bound)]
    for number in range(4):
        assert disks[number % 2].fetch(KEYS[number], lambda number=number: pixels_of(number))[1]
        time.sleep(0.01)
    assert disks[0].fetch(KEYS[0], lambda: pytest.fail("was there"))[1]
    for number in range(4, 9):
        disks[number % 2].fetch(KEYS[number], lambda number=number: pixels_of(number))
        assert kept_bytes(tmp_path) <= bound
        if number == 4:
            assert {path.stem for path in tmp_path.glob("*.npy")} == {KEYS[0], KEYS[3], KEYS[4]}
        time.sleep(0.01)
    pixels, kept = FrameStore(tmp_path, one - 1).fetch("f" * 64, lambda: pixels_of(1))
    assert np.array_equal(pixels, pixels_of(1))
    assert not kept


@pytest.mark.parametrize("damage", ["a bit", "cut off", "empty", "something else"])
def test_a_damaged_entry_is_decoded_again(damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    FrameStore(tmp_path, PLENTY).fetch(KEYS[0], lambda: pixels_of(0))
    path = tmp_path / f"{KEYS[0]}.npy"
    content = path.read_bytes()
    flipped = content[:5000] + bytes([content[5000] ^ 1]) + content[5001:]
    path.write_bytes(
        {"a bit": flipped, "cut off": content[:-1000], "empty": b"", "something else": b"PK\3\4" * 900}[damage]
    )
    disk = FrameStore(tmp_path, PLENTY)
    pixels, kept = disk.fetch(KEYS[0], lambda: pixels_of(0))
    assert np.array_equal(pixels, pixels_of(0))
    assert kept
    assert disk.stats.misses == 1
    said = capsys.readouterr().err
    assert said.count("warning") == 1
    assert f"{path}: damaged" in said
    assert path.read_bytes() == content
    assert np.array_equal(disk.fetch(KEYS[0], lambda: pytest.fail("was there"))[0], pixels_of(0))


DIES = """
import sys, time
from pathlib import Path
from tests.support.video.numbered_frames import draw_numbers
from stages.runtime import frame_cache as store
store.LEFT_FREE_BYTES = 0
def never(head, pixels):
    print("half written", flush=True)
    time.sleep(60)
store._checksum = never
store.FrameStore(Path(sys.argv[1]), 100_000_000).fetch(sys.argv[2], lambda: draw_numbers([7], size=400))
"""


def test_a_kill_in_the_middle_of_writing_leaves_nothing_wrong(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", DIES, str(tmp_path), KEYS[0]]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "half written\n"
        finally:
            child.send_signal(signal.SIGKILL)
    assert [path.suffix for path in tmp_path.glob("*.*")] == [".part"]
    disk, expected = FrameStore(tmp_path, PLENTY), draw_numbers([7], size=400)
    # The claim ended with its process, and the half-written file never counts as the frames.
    assert np.array_equal(disk.fetch(KEYS[0], lambda: expected)[0], expected)
    assert disk.stats.misses == 1
    assert [path.suffix for path in tmp_path.glob("*.*")] == [".npy"]
    assert np.array_equal(disk.fetch(KEYS[0], lambda: pytest.fail("was there"))[0], expected)


def test_what_a_dead_writer_left_goes_in_time(tmp_path: Path) -> None:
    disk = FrameStore(tmp_path, 70_000)
    disk.fetch(KEYS[0], lambda: pixels_of(0))
    left, young = tmp_path / f"{KEYS[1]}.part", tmp_path / f"{KEYS[2]}.part"
    left.write_bytes(bytes(30_000))
    os.utime(left, (0, 0))
    young.write_bytes(bytes(3))
    (tmp_path / "used_bytes").write_text("")  # as a kill in the middle of writing leaves it
    disk.fetch(KEYS[3], lambda: pixels_of(3))
    assert {path.name for path in tmp_path.glob("*.*")} == {f"{KEYS[0]}.npy", young.name, f"{KEYS[3]}.npy"}


def test_a_full_disk_is_no_error(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(frame_cache, "LEFT_FREE_BYTES", 10**18)
    mine = loader(folder, FrameStore(tmp_path, PLENTY))
    expected = [half(loader(folder, None).load(one).pixels) for one in SAMPLES]
    for one, pixels in zip(SAMPLES, expected, strict=True):
        assert np.array_equal(mine.load(one).pixels, pixels)
    assert not kept_bytes(tmp_path)
    said = capsys.readouterr().err
    assert said.count("warning") == 1
    assert "free some space, lower VIDBRIDGE_FRAME_DISK_GB" in said


def test_a_folder_that_cannot_be_used_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    disk = FrameStore(tmp_path / "file", PLENTY)
    for _ in range(2):
        assert not disk.fetch(KEYS[0], lambda: pixels_of(0))[1]
    assert capsys.readouterr().err.count("warning") == 1


def test_the_environment_says_where_and_how_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDBRIDGE_FRAME_CACHE", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("VIDBRIDGE_FRAME_DISK_GB", "0.5")
    disk = frame_store()
    assert disk is not None
    assert (disk.folder, disk.most_bytes) == (tmp_path / "elsewhere", 500_000_000)
    monkeypatch.setenv("VIDBRIDGE_FRAME_DISK_GB", "0")
    assert frame_store() is None
    for wrong in ("much", "-1", "nan", "inf"):
        monkeypatch.setenv("VIDBRIDGE_FRAME_DISK_GB", wrong)
        with pytest.raises(InputError, match=f"VIDBRIDGE_FRAME_DISK_GB: '{wrong}' is not a number of gigabytes"):
            frame_store()
    monkeypatch.setenv("VIDBRIDGE_FRAME_CACHE_MB", "3")
    assert frame_memory_bytes() == 3_000_000
    monkeypatch.setenv("VIDBRIDGE_FRAME_CACHE_MB", "much")
    with pytest.raises(InputError, match="VIDBRIDGE_FRAME_CACHE_MB: 'much' is not a number of megabytes"):
        frame_memory_bytes()
