"""What is known of a clip, told to a model that writes, and the rules that what it wrote must keep."""

from __future__ import annotations

import re
from collections.abc import Collection

from stages.domain.core.records import Clip, Span
from stages.domain.tasks.lexicon import content_words

# Of English words the edges are those of ASCII, so that one is found between Chinese characters too; Chinese and Japanese have none.
#: Places in a mixture that a question might name its video by. "What happens first?" is none of them.
_POSITION = re.compile(
    r"\b(?:first|1st|second|2nd|third|last|final|other|another|former|latter|left|right|odd|even|alternat\w+|interleaved|mixed)\s+"
    r"(?:video|clip|footage|film|recording|part|piece|segment|half|one)s?\b"
    r"|\b(?:video|clip|part|segment)\s+(?:one|two|1|2|a|b)\b"
    r"|\b(?:two|both)\s+(?:of\s+the\s+)?(?:video|clip|recording)s\b"
    r"|(?:第[一二两12]|前一?|后一?|另一?|其他|最后一?|左边的?|右边的?)(?:个|段|部)?(?:视频|影片|片段|录像|录影|部分)|(?:两|二)(?:个|段)(?:视频|影片|片段|录像)"
    r"|(?:最初|最後|次|別|他|もう一つ|左|右|[一二12]つ目|[一二12]番目)の(?:動画|ビデオ|映像|部分|クリップ)",
    re.IGNORECASE | re.ASCII,
)
#: Words of somebody who reads instead of watching.
_NOTES = re.compile(
    r"\b(?:notes?|annotat\w+|metadata|transcripts?|ground[ -]truth|privileged|captions?|described|descriptions?|labels?|labell?ed"
    r"|listed|provided|according to|reference answer|numbered events?|fence)\b"
    r"|字幕|标注|标签|注释|注解|元数据|文字描述|参考答案|根据(?:描述|文字|笔记)|キャプション|注釈|ラベル|説明文",
    re.IGNORECASE | re.ASCII,
)
#: What would end a turn or a block where the text is rendered.
_MARKUP = re.compile(r"<\||\|>|</?(?:think|answer)\b", re.IGNORECASE)


def describe_clip(clip: Clip, dark: Collection[Span] = ()) -> str:
    """All that the annotation says of a clip, for a model to read; events in ``dark`` are marked. Empty where it says nothing.

    The headings are no words of :data:`_NOTES`, which would otherwise seem to be seen.
    """
    lines = []
    if clip.label:
        lines.append(f"Kind: {clip.label}")
    if clip.caption:
        lines.append(f"In all: {clip.caption}")
    for subject in clip.subjects:
        does = f"; {', '.join(subject.actions)}" if subject.actions else ""
        lines.append(f"Seen: {' '.join((*subject.attributes, subject.name))}{does}")
    for number, (event, in_turn) in enumerate(zip(clip.events, clip.in_turn, strict=True), start=1):
        hidden = " (hidden from the viewer)" if event.span in dark else ""
        # A number alone would say that it comes after the ones before.
        meanwhile = "" if in_turn else " (starts while others go on)"
        lines.append(f"Event {number}{hidden}{meanwhile}: {event.caption}")
    return "\n".join(lines)


def flaw(question: str, answer: str) -> str | None:
    """Why a question about one of two mixed videos must not be asked, as a slug; None when no rule speaks against it.

    ``gives-itself-away``: the answer says nothing that the question has not said.
    """
    if holds_markup(question) or holds_markup(answer):
        return "holds-markup"
    if _POSITION.search(question):
        return "names-a-position"
    if content_words(answer) <= content_words(question):
        return "gives-itself-away"
    return None


def holds_markup(text: str) -> bool:
    """Whether a text could end a turn or a block where it is rendered."""
    return _MARKUP.search(text) is not None


def mentions_notes(thinking: str, told: str) -> bool:
    """Whether the thinking speaks of notes, which a viewer has not. A word that the describe_clip itself uses may be what is seen."""
    seen = told.casefold()
    return any(match.group().casefold() not in seen for match in _NOTES.finditer(thinking))
