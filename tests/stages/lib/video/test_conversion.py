"""Square pixels, deinterlacing and tone mapping, against ffmpeg's output and against arithmetic."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from stages.ingest.examination import Asked, examine
from stages.lib.video.encoder import ffmpeg_binary
from stages.lib.video.pictures import first_look
from stages.lib.video.probe import probe
from stages.lib.video.reader import read_frames
from tests.support.siblings import REAL_CLIPS, needs_real_clips

Pixels = npt.NDArray[np.uint8]


def _mended(path: Path, out: Path) -> tuple[Pixels, tuple[str, ...]]:
    """All frames of the re-encoded file, and what was mended."""
    found = examine(Asked(path.name), path.parent, out)
    assert found.media is not None, found.problem
    assert found.media.normalised is not None
    again = out / found.media.normalised
    facts = probe(again)
    assert not facts.hazards
    assert not first_look(again).hazards
    return read_frames(again, range(facts.frames), facts=facts)[0], found.media.normalised_for


def _by_ffmpeg(path: Path, filters: str, width: int, height: int) -> Pixels:
    command = [ffmpeg_binary(), "-nostdin", "-v", "error", "-i", str(path), "-vf", filters]
    command += ["-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, capture_output=True, timeout=60, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)


def _away(ours: Pixels, theirs: Pixels) -> float:
    """Largest mean difference of a frame."""
    assert ours.shape == theirs.shape
    return float(np.abs(ours.astype(int) - theirs).mean(axis=(1, 2, 3)).max())


def test_pixels_become_square(make: Callable[..., Path], tmp_path: Path) -> None:
    video = make("wide.mp4", "-vf", "setsar=16/11", "-c:v", "libx264", "-crf", "4")
    facts = probe(video)
    assert (facts.width, facts.height, facts.hazards) == (93, 64, ("pixel-aspect",))
    unmended, by = read_frames(video, range(60), facts=facts)
    assert by == "pyav"
    assert _away(unmended, _by_ffmpeg(video, "scale=93:64", 93, 64)) < 3
    mended, reasons = _mended(video, tmp_path)
    assert reasons == ("pixel-aspect",)
    assert _away(mended, _by_ffmpeg(video, "scale=92:64", 92, 64)) < 3


@pytest.mark.parametrize(("aspect", "turned", "size"), [("1/1", False, (64, 64)), ("2/3", True, (64, 43))])
def test_a_turned_picture_is_squared_as_it_is_stored(
    aspect: str, turned: bool, size: tuple[int, int], make: Callable[..., Path]
) -> None:
    video = make(f"stored-{turned}.mp4", "-vf", f"setsar={aspect}", "-c:v", "libx264")
    if turned:
        video = make("turned.mp4", "-c", "copy", before=("-display_rotation:v:0", "90"), source=video)
    assert (probe(video).width, probe(video).height) == size


def test_an_absurd_aspect_is_an_error_of_the_header(make: Callable[..., Path]) -> None:
    video = make("absurd.mp4", "-vf", "setsar=1/100", "-c:v", "libx264")
    assert (probe(video).width, probe(video).hazards) == (64, ())


MOVING = ("-f", "lavfi")


def test_interlaced_frames_are_deinterlaced(make: Callable[..., Path], tmp_path: Path) -> None:
    """Each frame holds the lines of two moments; afterwards it is the frame that ffmpeg makes."""
    bar = "color=black:s=128x96:r=50:d=2,geq=lum='if(between(X-mod(N*3,100),0,18),220,20)':cb=128:cr=128"
    video = make(
        "interlaced.mp4", "-vf", "tinterlace=interleave_top,setfield=tff", "-c:v", "libx264", "-crf", "4",
        "-flags", "+ilme+ildct", "-bf", "2", before=MOVING, source=Path(bar),
    )  # fmt: skip
    found = examine(Asked(video.name), video.parent, None)
    assert found.media is not None
    assert found.media.hazards == ("interlaced",)
    assert found.media.frames == 50
    combed = read_frames(video, range(50))[0]
    mended, reasons = _mended(video, tmp_path)
    assert reasons == ("interlaced",)
    assert _away(mended, _by_ffmpeg(video, "bwdif=mode=send_frame:parity=auto:deint=interlaced", 128, 96)) < 3
    assert _comb(mended) < _comb(combed) / 3
    # Equal to one moment of the two: the upper field's.
    truth = _by_ffmpeg(_lavfi(tmp_path, bar), "select='not(mod(n,2))'", 128, 96)
    assert _away(mended[2:-2], truth[2:-2]) < 12


def _mixed(folder: Path, *interlaced: bool, size: str = "1280x720") -> Path:
    """A film of one second a stretch, 25 frames and a key frame each, of which some are
    interlaced."""
    raw = b""
    for fields in interlaced:
        graph = "tinterlace=interleave_top,setfield=tff" if fields else "setfield=prog"
        rate = 50 if fields else 25
        command = [ffmpeg_binary(), "-v", "error", "-f", "lavfi", "-i", f"testsrc2=s={size}:r={rate}:d=1"]
        command += ["-vf", graph, "-c:v", "libx264", "-preset", "ultrafast", "-bf", "0", "-g", "25"]
        command += ["-flags", "+ilme+ildct", "-x264-params", "tff=1"] if fields else []
        command += ["-pix_fmt", "yuv420p", "-f", "h264", "-"]
        raw += subprocess.run(command, capture_output=True, timeout=60, check=True).stdout
    video = folder / f"{''.join('i' if fields else 'p' for fields in interlaced)}.mp4"
    command = [ffmpeg_binary(), "-v", "error", "-r", "25", "-f", "h264", "-i", "-", "-c", "copy", str(video)]
    subprocess.run(command, input=raw, timeout=60, check=True)
    return video


@pytest.mark.parametrize("whole", [True, False])
def test_a_file_is_interlaced_wherever_a_picture_is(whole: bool, tmp_path: Path) -> None:
    for stretches, interlaced in (((False, True), True), ((True, False), True), ((False, False), False)):
        video = _mixed(tmp_path, *stretches)
        assert first_look(video).interlaced == stretches[0], "the first picture does not tell"
        found = examine(Asked(video.name, whole=whole), tmp_path, None)
        assert found.media is not None, found.problem
        assert (("interlaced" in found.media.hazards), found.media.frames) == (interlaced, 50), video.name


def test_progressive_pictures_of_a_mixed_file_stay_as_they_are(tmp_path: Path) -> None:
    video = _mixed(tmp_path, False, True, size="192x128")
    mended, reasons = _mended(video, tmp_path / "again")
    assert "interlaced" in reasons
    stored = read_frames(video, range(50))[0]
    assert len(mended) == 50
    # The frames at the joint see their neighbours.
    assert _away(mended[:24], stored[:24]) < 3
    assert _comb(mended[26:]) < 0.8 * _comb(stored[26:])


def _comb(pixels: Pixels) -> float:
    """How much neighbouring lines differ where something moves."""
    return float(np.abs(np.diff(pixels[..., 0].astype(int), axis=1)).mean())


def _lavfi(folder: Path, graph: str) -> Path:
    path = folder / "progressive.mkv"
    command = [ffmpeg_binary(), "-v", "error", "-y", "-f", "lavfi", "-i", graph, "-c:v", "ffv1", str(path)]
    subprocess.run(command, check=True, timeout=60)
    return path


#: Light of grey patches, in cd/m2.
LIGHTS = (0.5, 5.0, 20.0, 100.0, 400.0, 1000.0)


def _pq(light: float) -> float:
    """The inverse EOTF of SMPTE ST 2084, light in cd/m2."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    power = (light / 10_000) ** m1
    return float(((c1 + c2 * power) / (1 + c3 * power)) ** m2)


def _hable(light: float) -> float:
    """John Hable's filmic curve, of light in units of white."""
    a, b, c, d, e, f = 0.15, 0.50, 0.10, 0.20, 0.02, 0.30
    return ((light * (a * light + b * c) + d * e) / (light * (a * light + b) + d * f)) - e / f


def _displayed(light: float) -> float:
    """The inverse EOTF of a BT.709 display (ITU-R BT.1886)."""
    return float(light ** (1 / 2.4))


def test_greys_of_a_high_range_are_mapped_by_the_curve(tmp_path: Path) -> None:
    """Patches of known light, coded in PQ by arithmetic, against the curve by arithmetic."""
    greys = np.array([round((64 + 876 * _pq(light)) / 1) for light in LIGHTS])
    luma = np.repeat(np.repeat(greys[None], 64, 0), 32, 1).astype("<u2")
    chroma = np.full((32, luma.shape[1] // 2), 512, "<u2")
    raw = b"".join(plane.tobytes() for plane in (luma, chroma, chroma)) * 12
    video = tmp_path / "pq.mp4"
    command = [
        ffmpeg_binary(), "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "yuv420p10le", "-s", "192x64", "-r", "10",
        "-i", "-", "-c:v", "libx265", "-x265-params",
        "log-level=none:crf=4:colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc", "-color_primaries", "bt2020",
        "-color_trc", "smpte2084", "-colorspace", "bt2020nc", str(video),
    ]  # fmt: skip
    subprocess.run(command, input=raw, check=True, timeout=60)
    found = examine(Asked(video.name), tmp_path, None)
    assert found.media is not None
    assert "hdr" in found.media.hazards
    mended, _ = _mended(video, tmp_path / "again")
    expected = [255 * _displayed(_hable(light / 100) / _hable(10)) for light in LIGHTS]
    shown = [float(mended[5, 16:48, 32 * n + 8 : 32 * n + 24].mean()) for n in range(len(LIGHTS))]
    assert shown == pytest.approx(expected, abs=3)


@needs_real_clips
def test_the_container_overrides_the_stream_about_colours() -> None:
    """Its stream is marked PQ, its container BT.709, and BT.709 is what it shows."""
    assert not first_look(REAL_CLIPS / "nasa_13013_hdr.mp4").hdr
    assert probe(REAL_CLIPS / "SAR-2by3.mp4").width == 427
    assert probe(REAL_CLIPS / "video_desks.3gp").width == 384
