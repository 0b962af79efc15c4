"""A long recording without annotations: scenes of grey ground, in each of which a coloured box goes
one way and then another."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple

from stages.lib.video.encoder import ffmpeg_binary

SCENE_S, RATE, WIDTH, HEIGHT = 15, 10, 192, 108
COLOURS = {"red": "0xdc1414", "green": "0x14c814", "blue": "0x1414dc", "yellow": "0xe6dc14"}
#: Grounds, no two neighbours of one brightness.
_GROUNDS = (
    f"mandelbrot=size={WIDTH}x{HEIGHT}:rate={RATE}",
    f"smptehdbars=size={WIDTH}x{HEIGHT}:rate={RATE}",
    f"color=0x303030:size={WIDTH}x{HEIGHT}:rate={RATE}",
    f"testsrc2=size={WIDTH}x{HEIGHT}:rate={RATE}",
    f"color=0xd0d0d0:size={WIDTH}x{HEIGHT}:rate={RATE},noise=alls=20:all_seed=1",
)
#: Two ways a scene: the verb, and how far the box goes right and down.
_WAYS = {"advances": (110, 0), "falls": (0, 60), "retreats": (-60, 0), "rises": (0, -20)}
_PAIRS = (
    ("advances", "falls"),
    ("falls", "advances"),
    ("retreats", "falls"),
    ("rises", "advances"),
    ("advances", "rises"),
)
#: Seconds at which the two ways begin; each takes three.
BEGINS_S, TAKES_S = (3, 9), 3


class Scene(NamedTuple):
    colour: str
    verbs: tuple[str, str]


def scenes(number: int) -> list[Scene]:
    return [Scene(list(COLOURS)[n % len(COLOURS)], _PAIRS[n % len(_PAIRS)]) for n in range(number)]


def write_recording(path: Path, number: int) -> list[Scene]:
    """Write ``number`` scenes one after the other, as H.264, and return what they show."""
    planned = scenes(number)
    inputs: list[str] = []
    graph = []
    for n, scene in enumerate(planned):
        ground = _GROUNDS[n % len(_GROUNDS)]
        box = f"color={COLOURS[scene.colour]}:size=24x24:rate={RATE}"
        inputs += ["-f", "lavfi", "-t", str(SCENE_S), "-i", f"{ground},format=gray,format=yuv420p"]
        inputs += ["-f", "lavfi", "-t", str(SCENE_S), "-i", box]
        places = []
        for axis, start in enumerate((64 if scene.verbs[0] == "retreats" else 10, 24)):
            moves = "".join(
                f"+{_WAYS[verb][axis]}*clip((t-{begins})/{TAKES_S},0,1)"
                for verb, begins in zip(scene.verbs, BEGINS_S, strict=True)
            )
            places.append(f"'{start}{moves}'")
        graph.append(f"[{2 * n}][{2 * n + 1}]overlay=x={places[0]}:y={places[1]}[s{n}]")
    joined = "".join(f"[s{n}]" for n in range(number)) + f"concat=n={number}"
    command = [ffmpeg_binary(), "-y", "-v", "error", *inputs, "-filter_complex", ";".join([*graph, joined])]
    subprocess.run([*command, "-c:v", "libx264", "-preset", "veryfast", "-crf", "20", str(path)], check=True)
    return planned
