"""Qwen's special tokens and chat format."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stages.params import Family

END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
VISION_START = "<|vision_start|>"
VISION_END = "<|vision_end|>"
IMAGE = "<|image_pad|>"
VIDEO = "<|video_pad|>"
SPECIAL = (END_OF_TEXT, TURN_START, TURN_END, VISION_START, VISION_END, IMAGE, VIDEO)

#: Not special tokens: decoding with ``skip_special_tokens`` would strip the tags that rewards read.
REPLY_TAGS = ("<think>", "</think>", "<answer>", "</answer>")

#: Default system message of a chat of Qwen2-VL and Qwen2.5-VL.
SYSTEM = "You are a helpful assistant."

_CONTENT = (
    "{%- if message['content'] is string %}{{ message['content'] }}"
    "{%- else %}{%- for part in message['content'] %}"
    "{%- if part['type'] == 'text' %}{{ part['text'] }}"
    f"{{%- elif part['type'] == 'image' %}}{{{{ '{VISION_START}{IMAGE}{VISION_END}' }}}}"
    f"{{%- elif part['type'] == 'video' %}}{{{{ '{VISION_START}{VIDEO}{VISION_END}' }}}}"
    "{%- endif %}{%- endfor %}{%- endif %}"
)


def chat_template(family: Family) -> str:
    """Build Qwen's chat format as a Jinja template.

    Qwen2-VL and Qwen2.5-VL open with a default system message, Qwen3-VL does not.
    """
    system = (
        f"{{%- if loop.first and message['role'] != 'system' %}}{{{{ '{TURN_START}system\\n{SYSTEM}{TURN_END}\\n'"
        f" }}}}{{%- endif %}}"
        if family != "qwen3_vl"
        else ""
    )
    return (
        "{%- for message in messages %}"
        + system
        + f"{{{{ '{TURN_START}' + message['role'] + '\\n' }}}}"
        + _CONTENT
        + f"{{{{ '{TURN_END}\\n' }}}}"
        + "{%- endfor %}"
        + f"{{%- if add_generation_prompt %}}{{{{ '{TURN_START}assistant\\n' }}}}{{%- endif %}}"
    )
