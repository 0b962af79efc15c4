"""Make clips for the three tasks beside this file: bars to count, a square that is seen for a
while, two digits to read.

    python docs/examples/tasks/make_clips.py data/bars
    vidbridge data check data/bars

It writes H.264 files and ``annotations.jsonl``, whose rows have ``answers`` for each task.
"""

from __future__ import annotations

import json
import sys
from fractions import Fraction
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from stages.lib.video.encoder import encode

SPLITS = {"train": 48, "validation": 4, "test": 12}
SIZE, FRAMES, RATE = 64, 16, 8


def draw(bars: int, digits: str, seen: range, ground: tuple[int, int, int]) -> np.ndarray:
    """Frames, uint8 [T, H, W, 3], of colour ``ground``: some ``bars``, ``digits`` above, and in the
    frames ``seen`` a white square."""
    still = Image.new("RGB", (SIZE, SIZE), ground)
    pen = ImageDraw.Draw(still)
    for bar in range(bars):
        pen.rectangle((6 + 14 * bar, 44, 13 + 14 * bar, 62), fill=(220, 160, 40))
    pen.text((4, 2), digits, fill=(120, 240, 120), font=ImageFont.load_default(22))
    frames = np.repeat(np.asarray(still)[None], FRAMES, axis=0)
    frames[seen.start : seen.stop, 4:24, 40:60] = 255
    return frames


def main(folder: Path) -> int:
    rng, rows = Random(7), []
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in SPLITS.items():
        for number in range(count):
            bars, digits = rng.randint(1, 4), f"{rng.randint(10, 99)}"
            start, stop = sorted(rng.sample(range(0, FRAMES + 1, RATE // 2), 2))
            ground = (rng.randint(0, 80), rng.randint(0, 80), rng.randint(0, 80))
            name = f"{split}-{number:03d}.mp4"
            encode(draw(bars, digits, range(start, stop), ground), Fraction(RATE), folder / name, 18)
            answers = {
                "count": {"question": "how many bars are there ?", "number": bars},
                "grounding": {"question": "when is the white square seen ?", "spans": [[start / RATE, stop / RATE]]},
                "ocr": {"text": digits},
            }
            rows.append({"video": name, "split": split, "answers": answers})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "annotations.jsonl").write_text(text, encoding="utf-8")
    print(f"{len(rows)} clips in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
