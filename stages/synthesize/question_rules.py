"""Descriptions of clips for a writing model, and rules for the questions and thinking that it
writes."""

from __future__ import annotations

import re
from collections.abc import Collection

from stages.domain.core.records import Clip, Span
from stages.domain.tasks.lexicon import content_words

# Word boundaries are those of ASCII, so that English words are found between Chinese characters
# too; Chinese and Japanese have none.
#: Positions in a mixture by which a question might name its video. "What happens first?" does not
#: match.
_POSITION = re.compile(
    r"\b(?:first|1st|second|2nd|third|last|final|other|another|former|latter|left|right|odd|even|alternat\w+|interleaved|mixed)\s+"
    r"(?:video|clip|footage|film|recording|part|piece|segment|half|one)s?\b"
    r"|\b(?:video|clip|part|segment)\s+(?:one|two|1|2|a|b)\b"
    r"|\b(?:two|both)\s+(?:of\s+the\s+)?(?:video|clip|recording)s\b"
    r"|(?:第[一二两12]|前一?|后一?|另一?|其他|最后一?|左边的?|右边的?)(?:个|段|部)?(?:视频|影片|片段|录像|录影|部分)|(?:两|二)(?:个|段)(?:视频|影片|片段|录像)"
    r"|(?:最初|最後|次|別|他|もう一つ|左|右|[一二12]つ目|[一二12]番目)の(?:動画|ビデオ|映像|部分|クリップ)",
    re.IGNORECASE | re.ASCII,
)
#: Words of a writer who reads notes instead of watching.
_NOTES = re.compile(
    r"\b(?:notes?|annotat\w+|metadata|transcripts?|ground["
    r" -]truth|privileged|captions?|described|descriptions?|labels?|labell?ed"
    r"|listed|provided|according to|reference answer|numbered events?|fence)\b"
    r"|字幕|标注|标签|注释|注解|元数据|文字描述|参考答案|根据(?:描述|文字|笔记)|キャプション|注釈|ラベル|説明文",
    re.IGNORECASE | re.ASCII,
)
#: Markup that would end a turn or a block where the text is rendered.
_MARKUP = re.compile(r"<\||\|>|</?(?:think|answer)\b", re.IGNORECASE)


def describe_clip(clip: Clip, dark: Collection[Span] = ()) -> str:
    """Write the annotation of a clip as text for a model; events in ``dark`` are marked. Empty
    without annotation.

    The headings contain no words of :data:`_NOTES`, which would otherwise count as seen in the
    video.
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
        # A number alone would imply that the event comes after the ones before.
        meanwhile = "" if in_turn else " (starts while others go on)"
        lines.append(f"Event {number}{hidden}{meanwhile}: {event.caption}")
    return "\n".join(lines)


def flaw(question: str, answer: str) -> str | None:
    """Return the slug of the rule that a question about one of two mixed videos breaks; None if it
    breaks no rule.

    ``gives-itself-away``: the answer has no content word beyond those of the question.
    """
    if holds_markup(question) or holds_markup(answer):
        return "holds-markup"
    if _POSITION.search(question):
        return "names-a-position"
    if content_words(answer) <= content_words(question):
        return "gives-itself-away"
    return None


def holds_markup(text: str) -> bool:
    """Return whether a text could end a turn or a block where it is rendered."""
    return _MARKUP.search(text) is not None


def mentions_notes(thinking: str, description: str) -> bool:
    """Return whether the thinking mentions notes, which a viewer does not have. Words of the
    description may be seen in the video."""
    seen = description.casefold()
    return any(match.group().casefold() not in seen for match in _NOTES.finditer(thinking))
