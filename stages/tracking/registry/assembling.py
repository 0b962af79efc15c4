"""Assemble a folder by content, once, and verify it before each use: its name is a hash, which
proves nothing."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from stages.runtime.paths import STATE
from stages.tracking.lineage.cache_folder import mark_used
from stages.tracking.lineage.listing import parse_list
from stages.tracking.lineage.opening import open_content
from stages.tracking.lineage.placing import holds, put_bytes, refuse_links
from stages.tracking.lineage.source import Source, placed

#: Suffixes of names in that folder. A quoted path never contains "@", so they collide with none.
_LIST, _WHOLE = "@list", "@whole"


def assemble(root: Path, where: Path, source: Source, added: Mapping[str, bytes]) -> Path:
    """Assemble the folder below ``root / where`` that holds the files of ``source`` and, beside
    them, ``added`` (name to content).

    An existing folder with exactly that content is reused; otherwise it is assembled again, from
    the DVC cache and remote.

    Raises:
        ListError: the folder's list could write elsewhere; no file was placed.
        TrackingError: neither cache nor remote has it, or a link blocks the folder's path.
    """
    name = quote(source.path, safe="") or _WHOLE
    if len(name) > 200:
        name = _md5(source.path.encode())
    if added:
        name += (
            "-" + _md5(b"\0".join(part for item in sorted(added.items()) for part in (item[0].encode(), item[1])))[:12]
        )
    target = root / where / source.oid.removesuffix(".dir") / name
    refuse_links(root / STATE, target)
    # The list is stored beside the folder, so that verification needs neither DVC nor its remote.
    # Its hash verifies the list.
    list_file = target.parent / _LIST
    if target.is_dir() and list_file.is_file() and not list_file.is_symlink():
        text = list_file.read_bytes()
        if _md5(text) == source.oid.removesuffix(".dir") and holds(target, _expected(text, source, added)):
            mark_used(target)
            return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".part-") as part, open_content(root) as content:
        whole = Path(part) / "whole"
        content.place(source, whole, strip=source.path)
        for path, written in added.items():
            put_bytes(whole, path, written)
        text = content.list_bytes(source.oid)
        put_bytes(Path(part), _LIST, text)
        (Path(part) / _LIST).replace(list_file)
        try:
            whole.replace(target)
        except OSError:
            # Another process was faster, with the same content; or the path holds something else.
            if not holds(target, _expected(text, source, added)):
                target.replace(Path(part) / "former")
                whole.replace(target)
        mark_used(target)
    return target


def _expected(text: bytes, source: Source, added: Mapping[str, bytes]) -> dict[str, str]:
    files = placed(parse_list(text, source.oid), source, source.path)
    return {path: md5 for path, (_, md5) in files.items()} | {path: _md5(content) for path, content in added.items()}


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
