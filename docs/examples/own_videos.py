"""Turn a spreadsheet of timed events into the annotations of a folder of videos; adapt it to your
columns.

    python docs/examples/own_videos.py events.csv ~/videos
    vidbridge data check ~/videos

The table has a header and a row for each event: ``video`` (relative to the folder), ``start`` and
``end`` in seconds, ``caption``, and if you have them ``label`` and ``split``. Rows of one video
become one line of ``annotations.jsonl``. It needs the standard library only, and judges nothing:
`vidbridge data check` says what is wrong with which line.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def annotations(rows: Iterable[dict[str, str]]) -> list[dict[str, Any]]:
    """One annotation for each video, in the order of their first rows; events in the order in which
    they start."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        clip = found.setdefault(row["video"], {"video": row["video"], "events": []})
        clip["events"].append(
            {"start": float(row["start"]), "end": float(row["end"]), "caption": row["caption"].strip()}
        )
        clip |= {key: row[key] for key in ("label", "split") if row.get(key)}
    for clip in found.values():
        clip["events"].sort(key=lambda event: (event["start"], event["end"]))
        clip["caption"] = " Then ".join(event["caption"] for event in clip["events"])
    return list(found.values())


def main(table: Path, folder: Path) -> int:
    """Write ``annotations.jsonl`` into the folder; the exit status."""
    target = folder / "annotations.jsonl"
    if target.exists():
        print(f"{target}: exists already; move it away first", file=sys.stderr)
        return 1
    with table.open(newline="", encoding="utf-8") as file:
        lines = [json.dumps(clip, ensure_ascii=False) + "\n" for clip in annotations(csv.DictReader(file))]
    target.write_text("".join(lines), encoding="utf-8")
    print(f"{target}: {len(lines)} videos; now: vidbridge data check {folder}")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python own_videos.py TABLE.csv FOLDER")
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
