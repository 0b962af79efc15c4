"""Lists of files as DVC writes them, read from a remote that anybody may write to."""

from __future__ import annotations

import json

import pytest

from stages.tracking.lineage.listing import ListError, parse_list
from tests.support.tracking.poisoned import PATHS


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_no_list_with_such_a_path_is_read(path: str) -> None:
    entries = [{"md5": "0" * 32, "relpath": name} for name in ("final/config.json", "final/model.safetensors", path)]
    with pytest.raises(
        ListError, match=r"m version 3: folder x\.dir: .*relpath: '.*; nothing of it was placed"
    ) as refused:
        parse_list(json.dumps(entries).encode(), "x.dir", "m version 3")
    assert str(refused.value).isascii()
    assert "\n" not in str(refused.value)
    assert len(parse_list(json.dumps(entries[:2]).encode(), "x.dir")) == 2


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"{{{", "its list of files is not JSON"),
        (b"\xff\xfe", "its list of files is not JSON"),
        (b"[" * 100_000, "its list of files is not JSON (RecursionError)"),
        (b'{"relpath": "a"}', "not a list but dict"),
        (b"[1]", "entry 1: 1 is not a file with relpath and md5"),
        (b'[{"md5": "0123456789abcdef0123456789abcdef"}]', "entry 1: relpath: None is not a path"),
        (b'[{"relpath": "a"}]', "entry 1: 'a': md5: None is not 32 hex digits"),
        (b'[{"relpath": "a", "md5": "../../../etc/passwd"}]', "md5: '../../../etc/passwd' is not 32 hex digits"),
        (b'[{"relpath": "a", "md5": "0123456789abcdef0123456789abcdef.dir"}]', "is not 32 hex digits"),
        (b'[{"relpath": 5, "md5": "0123456789abcdef0123456789abcdef"}]', "entry 1: relpath: 5 is not a path"),
    ],
)
def test_what_is_no_list_is_one_sentence(text: bytes, sentence: str) -> None:
    with pytest.raises(ListError) as refused:
        parse_list(text, "x.dir", "m version 3")
    assert str(refused.value).startswith("m version 3: folder x.dir: ")
    assert sentence in str(refused.value)
