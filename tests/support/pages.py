"""What holds of every HTML page."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from stages.pages.render import policy_hash


class Page(HTMLParser):
    """Elements in order, each with its attributes and those of the elements around it."""

    VOID = frozenset({"meta", "img", "br", "input", "link", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str], list[tuple[str, dict[str, str]]]]] = []
        self.headings: list[int] = []
        self._open: list[tuple[str, dict[str, str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.found.append((tag, attributes, list(self._open)))
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in self.VOID:
            self._open.append((tag, attributes))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}, list(self._open)))

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop()[0] != tag:
            pass

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes, _ in self.found if name == tag]


def check(text: str) -> Page:
    """What holds of every page: language, one main heading, labels, names of pictures and headers
    of tables; nothing is blocked."""
    page = Page(text)
    assert page.of("html") == [{"lang": "en"}]
    assert len(page.of("main")) == 1
    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    assert all(deeper <= before + 1 for before, deeper in zip(page.headings, page.headings[1:], strict=False)), (
        page.headings
    )
    ids = [attributes["id"] for _, attributes, _ in page.found if "id" in attributes]
    assert len(ids) == len(set(ids)), "an id names one element"
    for tag, attributes, around in page.found:
        hidden = any(outer.get("aria-hidden") == "true" for _, outer in [*around, (tag, attributes)])
        one_picture = any(outer.get("role") == "img" for _, outer in around)
        if tag == "img":
            assert "alt" in attributes
            assert bool(attributes["alt"]) != one_picture, "the strip is the picture, its frames are parts of it"
        if tag == "svg" and not hidden and not one_picture:
            assert attributes.get("role") == "img"
            assert attributes.get("aria-label")
        if attributes.get("role") in ("img", "region", "tablist"):
            assert attributes.get("aria-label"), attributes
        if tag in ("select", "input"):
            assert any(outer == "label" for outer, _ in around), f"{attributes} has no label"
        if tag == "th":
            assert attributes.get("scope") == ("col" if any(outer == "thead" for outer, _ in around) else "row")
        for name in ("aria-controls", "aria-labelledby"):
            assert attributes.get(name, ids[0] if ids else "") in ids or name not in attributes, f"{name}: {attributes}"
        assert not any(name.startswith("on") or name == "style" for name in attributes), (
            f"the policy would block it: {attributes}"
        )
    (policy,) = [a["content"] for a in page.of("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert "unsafe" not in policy
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    for kind in ("style", "script"):
        for held in re.findall(rf"<{kind}>(.*?)</{kind}>", text, re.DOTALL):
            assert policy_hash(held) in policy, f"the browser would not take this {kind}"
    return page


class Elements(HTMLParser):
    """What a browser would find: elements with their attributes, and the text outside of scripts
    and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._inside = "", ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.text += data
