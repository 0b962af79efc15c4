"""Size of the house: a reader can take in a module, and what a folder opens onto."""

from __future__ import annotations

import subprocess
from collections import defaultdict
from pathlib import PurePosixPath

from tests.support.checkout import ROOT

MOST_LINES = 400
MOST_ENTRIES = 16
#: These open onto the pipeline itself: its stages with the libraries, and its flows with theirs.
AT_THE_DOOR = {"stages": 20, "flows": 18}


def committed() -> list[PurePosixPath]:
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=True).stdout
    return [PurePosixPath(name) for name in listed.splitlines()]


def test_no_module_is_longer_than_a_reader_takes_in() -> None:
    lengths = {
        str(file): len((ROOT / file).read_text(encoding="utf-8").splitlines())
        for file in committed()
        if file.suffix == ".py" and (ROOT / file).is_file()
    }
    assert len(lengths) > 300
    assert {file: lines for file, lines in lengths.items() if lines > MOST_LINES} == {}, "split it by subject"


def test_no_folder_opens_onto_more_than_one_can_look_over() -> None:
    entries: defaultdict[str, set[str]] = defaultdict(set)
    for file in committed():
        parts = file.parts
        for depth in range(1, len(parts)):
            if parts[0] in ("stages", "flows", "tests", "benchmarks") and parts[depth] != "__init__.py":
                entries["/".join(parts[:depth])].add(parts[depth])
    wide = {
        folder: len(names) for folder, names in entries.items() if len(names) > AT_THE_DOOR.get(folder, MOST_ENTRIES)
    }
    assert wide == {}, "make rooms by subject"
