"""Rendering of self-contained HTML pages: templates, inlined styles and pictures."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
from PIL import Image

from stages.domain.core.records import Sample

#: Largest number of frames and pixels of a row of a film strip, so that it fits on a phone, and
#: largest height of a frame.
STRIP_FRAMES, STRIP_WIDTH_PX, STRIP_PX = 8, 900, 120
#: JPEG quality of frames that were scaled down: 16 frames of a film take 0.1 MB, and 0.8 MB without
#: loss.
STRIP_QUALITY = 80


def fill(template: str, *, trim_blocks: bool = False, **content: Any) -> str:
    """Render a template of ``stages/pages/templates``; values are escaped as HTML.

    Args:
        template: file name of the template.
        trim_blocks: remove the line break after each block, for text where it would be visible.
        content: variables of the template.

    Raises:
        jinja2.UndefinedError: the template uses a variable that ``content`` lacks.
    """
    environment = jinja2.Environment(
        autoescape=True,
        loader=jinja2.PackageLoader("stages.pages"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=trim_blocks,
    )
    return environment.get_template(template).render(content)


def fill_page(template: str, *, styles: Sequence[str], scripts: Sequence[str] = (), **content: Any) -> str:
    """Render a page with its style sheets and scripts inlined, and with the hashes by which its
    content-security policy allows them.

    The template reads them as ``style``, ``style_hash`` and, where there are scripts, ``script``
    and ``script_hash``.
    """
    inlined = {"style": template_text(*styles)}
    if scripts:
        inlined["script"] = template_text(*scripts)
    for name, text in inlined.items():
        content |= {name: text, f"{name}_hash": policy_hash(text)}
    return fill(template, **content)


def template_text(*names: str) -> str:
    """Concatenate files of ``stages/pages/templates`` unchanged: a style sheet or a script that a
    page inlines and allows by its hash."""
    return "".join((Path(__file__).parent / "templates" / name).read_text(encoding="utf-8") for name in names)


def policy_hash(text: str) -> str:
    """Hash by which a content-security policy allows an inline script or style."""
    return f"sha256-{in_base64(hashlib.sha256(text.encode()).digest())}"


def reference_text(sample: Sample) -> str:
    """Reference answer of a sample; for a letter also the text of its option."""
    if not sample.options:
        return sample.reference
    return f"{sample.reference}: {sample.options[ord(sample.reference) - ord('A')]}"


def in_base64(content: bytes) -> str:
    """Encode bytes as base64, for a ``data:`` URL or a hash in a content-security policy."""
    return base64.b64encode(content).decode()


def film_strip(pixels: npt.NDArray[np.uint8]) -> str:
    """Draw frames [frames, height, width, 3] side by side, and return the picture as a ``data:``
    URL.

    Frames higher than :data:`STRIP_PX` are scaled down to it and stored as JPEG; smaller ones are
    stored losslessly.
    """
    frames = [Image.fromarray(frame) for frame in pixels]
    is_large = pixels.shape[1] > STRIP_PX
    if is_large:
        width = max(1, round(pixels.shape[2] * STRIP_PX / pixels.shape[1]))
        frames = [frame.resize((width, STRIP_PX), Image.Resampling.LANCZOS, reducing_gap=2.0) for frame in frames]
    width, height = frames[0].size
    gap = max(1, width // 24)
    fitting = max(1, min(STRIP_FRAMES, STRIP_WIDTH_PX // (width + gap)))
    across, down = min(len(frames), fitting), -(-len(frames) // fitting)
    strip = Image.new("RGB", (across * (width + gap) - gap, down * (height + gap) - gap), "white")
    for number, frame in enumerate(frames):
        row, column = divmod(number, fitting)
        strip.paste(frame, (column * (width + gap), row * (height + gap)))
    buffer = io.BytesIO()
    kind = "jpeg" if is_large else "png"
    strip.save(buffer, format=kind, quality=STRIP_QUALITY)
    return f"data:image/{kind};base64,{in_base64(buffer.getvalue())}"
