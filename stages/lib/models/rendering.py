"""Chat text around prompts and replies, by the processor's own template."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from transformers import ProcessorMixin

from stages.lib.models.chat import TURN_START


def render(processor: ProcessorMixin, prompt: str, videos: int = 1) -> str:
    """Render the chat text of a prompt: ``videos`` placeholders, the user's text, and the start of
    the assistant's turn.

    The user's text is data: control tokens in it are defused, otherwise a caption could open a turn
    or insert a video.
    """
    content: list[Any] = [
        *({"type": "video"} for _ in range(videos)),
        {"type": "text", "text": defused(processor, prompt)},
    ]
    messages: list[Any] = [{"role": "user", "content": content}]
    # All prompts need thinking: switch it on in templates that have a switch.
    switch: dict[str, Any] = {"enable_thinking": True} if "enable_thinking" in str(processor.chat_template) else {}
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **switch)
    assert isinstance(text, str)
    return text


@lru_cache(maxsize=8)
def reply_opening(processor: ProcessorMixin) -> str:
    """Tags that the chat template puts in front of every reply (``<think>`` and a line break);
    mostly none.

    They are part of the reply: parsers read them with it, and training teaches the text behind
    them.
    """
    # Records of replies take pydantic to import, which a machine that only measures may lack.
    from stages.domain.core.replies import opened_by

    return opened_by(render(processor, "x"))


def check_trainable(processor: ProcessorMixin) -> None:
    """Check that the chat template lets a reply think.

    Raises:
        ValueError: the chat template ends thinking before a reply begins, so no reply can have the
            form that training requires.
    """
    opening = reply_opening(processor)
    if "</think>" in opening or "<answer>" in opening:
        raise ValueError(
            f"chat_template: puts {opening!r} in front of every reply, so that none can be thinking and then an answer;"
            " use a template that leaves thinking open, or a model that thinks"
        )


def behind_opening(processor: ProcessorMixin, reply: str) -> str:
    """Strip the opening that the chat template already puts in front of a target reply.

    Raises:
        ValueError: the reply does not begin with it.
    """
    opening = reply_opening(processor)
    if not opening:
        return reply
    begun = reply.lstrip()
    if not begun.startswith(opening.strip()):
        raise ValueError(
            f"reply: {reply[:60]!r} does not begin with {opening.strip()!r}, which the chat template puts in front of"
            " it"
        )
    return begun.removeprefix(opening.strip()).lstrip()


def defused(processor: ProcessorMixin, text: str) -> str:
    """Respell control tokens in a text, so that they are ordinary text."""
    for token in (*processor.tokenizer.all_special_tokens, TURN_START):
        text = text.replace(token, token.replace("<|", "< |"))
    return text
