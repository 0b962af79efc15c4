"""Digests of videos: a reply belongs to the content of its video, not to a file's name.

A digest is stored beside the file's metadata (size, times, number), so that only files that may
have changed are read again.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

CONTENTS_FILE = "videos.jsonl"


class Contents:
    """Digests of files, each computed once; ``file`` stores them between processes and may be
    deleted."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known: dict[str, tuple[list[int], str]] = {}
        if file.exists():
            for line in file.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                    self._known[row["path"]] = (row["state"], row["sha256"])
                except (ValueError, KeyError, TypeError):
                    continue  # half a line of a process that was ended: that file is read again

    def of(self, path: Path) -> str:
        """SHA-256 of the file, in hexadecimal digits.

        Raises:
            OSError: it cannot be read.
        """
        name, about = str(path.resolve()), path.stat()
        # The change time is set by the system alone: a copy that preserves times and size still
        # differs from the file it replaced.
        state = [about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino]
        entry = self._known.get(name)
        if entry is not None and entry[0] == state:
            return entry[1]
        with path.open("rb") as content:
            sha256 = hashlib.file_digest(content, "sha256").hexdigest()
        self._known[name] = (state, sha256)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a", encoding="utf-8") as out:
            # A line of its own, whatever an ended process left before it.
            out.write("\n" + json.dumps({"path": name, "state": state, "sha256": sha256}) + "\n")
        return sha256
