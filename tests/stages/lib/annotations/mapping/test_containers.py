"""Containers: the same rows from every one, each with its line, without the whole file parsed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from stages.lib.annotations.annotation import SourceError
from stages.lib.annotations.collect import Source
from stages.lib.annotations.formats import read_source
from stages.lib.annotations.mapping.containers.read import Container, raw_rows
from tests.support.annotations.reading import ingest_params

ROWS = [{"v": f"{name}.mp4", "t": f"text, {name}"} for name in "abc"]
MAPPING = "video: v\ncaption: t\n"


def read(folder: Path, name: str, mapping: str = MAPPING) -> Source:
    for row in ROWS:
        (folder / row["v"]).touch()
    ours = folder.parent / "ours.yaml"
    ours.write_text(mapping)
    return read_source(ingest_params(folder, str(ours), name))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


def test_every_container_gives_the_same_rows(folder: Path) -> None:
    (folder / "list.json").write_text(json.dumps(ROWS, indent=1))
    (folder / "keys.json").write_text(json.dumps({row["v"]: {"t": row["t"]} for row in ROWS}))
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)) + "\n\n")
    (folder / "rows.csv").write_bytes(b'\xef\xbb\xbfv,t\r\na.mp4,"text, a"\r\nb.mp4,"text, b"\r\nc.mp4,"text, c"\r\n')
    (folder / "rows.tsv").write_text("v\tt\n" + "".join(f"{row['v']}\t{row['t']}\n" for row in ROWS))
    (folder / "bare.csv").write_text("".join(f"{row['v']}|{row['t']}\n" for row in ROWS))
    (folder / "lines.txt").write_text("".join(f"{row['v']} ## {row['t']}\n" for row in ROWS))
    parquet.write_table(pa.Table.from_pylist(ROWS), folder / "rows.parquet")
    expected = [(row["v"], row["t"]) for row in ROWS]
    places = {
        "list.json": ["list.json:2", "list.json:6", "list.json:10"],
        "keys.json": ["keys.json:1"] * 3,
        "rows.jsonl": ["rows.jsonl:1", "rows.jsonl:2", "rows.jsonl:3"],
        "rows.csv": ["rows.csv:2", "rows.csv:3", "rows.csv:4"],
        "rows.tsv": ["rows.tsv:2", "rows.tsv:3", "rows.tsv:4"],
        "bare.csv": ["bare.csv:1", "bare.csv:2", "bare.csv:3"],
        "lines.txt": ["lines.txt:1", "lines.txt:2", "lines.txt:3"],
        "rows.parquet": ["rows.parquet:row 1", "rows.parquet:row 2", "rows.parquet:row 3"],
    }
    mappings = {
        "keys.json": "video: $key\ncaption: t\n",
        "bare.csv": MAPPING + "columns: [v, t]\nseparator: '|'\n",
        "lines.txt": MAPPING + "patterns: {line: '(?P<v>\\S+) ## (?P<t>.*)'}\n",
    }
    for name, where in places.items():
        source = read(folder, name, mappings.get(name, MAPPING))
        assert [(row.video, row.caption) for row in source.rows] == expected, name
        assert [row.where for row in source.rows] == where
        assert (source.read, source.rejects) == (3, [])


def test_a_saved_folder_is_read_from_its_arrow_files(folder: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    for name, part in (("x-0.arrow", table.slice(0, 2)), ("x-1.arrow", table.slice(2))):
        (folder / "saved").mkdir(exist_ok=True)
        with pa.OSFile(str(folder / "saved" / name), "wb") as out, pa.ipc.new_stream(out, table.schema) as writer:
            writer.write_table(part)
    state = {"_data_files": [{"filename": "x-0.arrow"}, {"filename": "x-1.arrow"}]}
    (folder / "saved/state.json").write_text(json.dumps(state))
    source = read(folder, "saved")
    assert [(row.video, row.caption, row.where) for row in source.rows] == [
        (row["v"], row["t"], f"saved:row {place}") for place, row in enumerate(ROWS, start=1)
    ]


@pytest.mark.slow
def test_folders_that_datasets_has_saved(folder: Path) -> None:
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_list(ROWS)
    whole.save_to_disk(folder / "one", num_shards=2)
    datasets.DatasetDict({"train": whole.select([0, 1]), "test": whole.select([2])}).save_to_disk(folder / "several")
    one = read(folder, "one")
    assert [(row.video, row.where) for row in one.rows] == [
        ("a.mp4", "one:row 1"),
        ("b.mp4", "one:row 2"),
        ("c.mp4", "one:row 3"),
    ]
    several = read(folder, "several", MAPPING + "split: $split\n")
    assert [(row.video, row.split, row.where) for row in several.rows] == [
        ("a.mp4", "train", "several/train:row 1"),
        ("b.mp4", "train", "several/train:row 2"),
        ("c.mp4", "test", "several/test:row 1"),
    ]


def test_several_files_are_read_as_one(folder: Path) -> None:
    for row in ROWS:
        (folder / "parts").mkdir(exist_ok=True)
        (folder / f"parts/{row['v'][0]}.json").write_text(json.dumps([{"t": row["t"]}]))
    source = read(folder, "parts/*.json", "video: $file\ncaption: t\n")
    assert [(row.video, row.where) for row in source.rows] == [
        (f"{name}.mp4", f"parts/{name}.json:1") for name in "abc"
    ]
    with pytest.raises(SourceError, match=r"'parts/\*\.csv' matches no file"):
        read(folder, "parts/*.csv")


def test_a_document_is_parsed_a_row_at_a_time(folder: Path) -> None:
    """What is broken behind a row does not keep it back."""
    (folder / "rows.json").write_text('{"info": {"a": [1, 2]}, "rows": [{"v": 1}, {"v": 2}, oops')
    rows = raw_rows(folder, "rows.json", Container(path=("rows",)))
    assert [next(rows).value, next(rows).value] == [{"v": 1}, {"v": 2}]
    with pytest.raises(SourceError, match=r"rows\.json: not JSON: line 1: Expecting value"):
        next(rows)


@pytest.mark.parametrize(
    ("text", "path", "said"),
    [
        ('{"a": 1}', ("b",), "the document has no field 'b' \\(it has 'a'\\)"),
        ('{"a": {"c": []}}', ("a", "b"), "a has no field 'b'"),
        ('{"a": 1}', ("a",), "a is int, not a list or an object"),
        ('{"v": 1}\n{"v": 2}', ("x",), "has no field 'x'"),
        ('[{"v": 1} {"v": 2}]', (), "not JSON: line 1: need a comma or \\]"),
        ('[{"v": 1}]\n[{"v": 2}]', (), "line 2: something stands behind the document"),
        ('[{"v": 1},]', (), "a comma with nothing behind it"),
        ('{"v" 1}', (), "need a name and a colon"),
        ("", (), "not JSON: line 1"),
    ],
)
def test_a_document_without_such_rows_is_an_error(text: str, path: tuple[str, ...], said: str, folder: Path) -> None:
    (folder / "rows.json").write_text(text)
    with pytest.raises(SourceError, match=said):
        list(raw_rows(folder, "rows.json", Container(path=path)))


@pytest.mark.parametrize(
    ("text", "reasons"),
    [
        ("v,t\na.mp4,x,y\nb.mp4,z\n", ["3 cells, the table has 2 columns"]),
        ('v,t\na.mp4,"x\nb.mp4,z\n', ["no CSV (lines 2 to 3): unexpected end of data"]),
        ('v,t\na.mp4,"x" y\nb.mp4,z\n', ["no CSV (lines 2 to 2)"]),
        (f'v,t\na.mp4,x\n"{"y" * 140_000}"\nb.mp4,z\n', ["no CSV"]),
    ],
)
def test_rows_that_fit_no_header_are_set_aside_alone(text: str, reasons: list[str], folder: Path) -> None:
    (folder / "rows.csv").write_text(text)
    found = [raw.value for raw in raw_rows(folder, "rows.csv", Container())]
    details = [one.detail for one in found if not isinstance(one, dict)]
    assert len(details) == len(reasons)
    assert all(said in detail for said, detail in zip(reasons, details, strict=True))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rows.csv", b"", "the table is empty"),
        ("rows.csv", b"v,v\na,b\n", "column 'v' stands in the header twice"),
        ("rows.csv", b"\xff\xfe", "not UTF-8"),
        ("rows.parquet", b"PAR1 no", "no Parquet file"),
        ("rows.bin", b"", "its suffix does not tell what it contains"),
        ("rows.jsonl", b'[{"v": 1}]', "this is a JSON document"),
    ],
)
def test_a_file_that_is_no_such_container_is_an_error(name: str, content: bytes, said: str, folder: Path) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(SourceError, match=said):
        list(raw_rows(folder, name, Container()))


def test_a_number_that_is_missing_is_null(folder: Path) -> None:
    parquet.write_table(pa.table({"v": ["a.mp4", "b.mp4"], "n": [2.5, float("nan")]}), folder / "rows.parquet")
    source = read(folder, "rows.parquet", "video: v\nlength: n\n")
    assert [row.length_s for row in source.rows] == [2.5, None]


def test_a_folder_that_datasets_has_not_saved_is_an_error(folder: Path) -> None:
    (folder / "saved").mkdir()
    with pytest.raises(SourceError, match="no folder of `datasets`"):
        list(raw_rows(folder, "saved", Container()))
    state: dict[str, Any] = {"_data_files": [{"filename": "gone.arrow"}]}
    (folder / "saved/state.json").write_text(json.dumps(state))
    with pytest.raises(SourceError, match="no Arrow stream"):
        list(raw_rows(folder, "saved", Container()))
