"""Pages that stand alone: templates filled in, and pictures as text inside them."""

from __future__ import annotations

import base64
import hashlib
import io
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
from PIL import Image

from stages.domain.core.records import Sample

#: A row of a film strip has at most so many frames and pixels, so that each is seen on a phone, and no frame is higher than so many.
STRIP_FRAMES, STRIP_WIDTH_PX, STRIP_PX = 8, 900, 120
#: How well frames are kept that were made smaller: 16 of a film take 0.1 MB, and 0.8 MB without loss.
STRIP_QUALITY = 80


def fill(template: str, *, trim_blocks: bool = False, **content: Any) -> str:
    """A file of ``stages/templates`` with its places filled in; what is put in is escaped as HTML.

    Args:
        template: the file's name.
        trim_blocks: leave out the line break behind each block, for text where it would be seen.
        content: what the places are called, and what goes there.

    Raises:
        jinja2.UndefinedError: the template names a place that ``content`` lacks.
    """
    environment = jinja2.Environment(
        autoescape=True, loader=jinja2.PackageLoader("stages.pages"), undefined=jinja2.StrictUndefined, trim_blocks=trim_blocks
    )
    return environment.get_template(template).render(content)


def template_text(*names: str) -> str:
    """Files of ``stages/templates`` as they are, one after the other: a style sheet or a script that a page holds and names by its hash."""
    return "".join((Path(__file__).parent / "templates" / name).read_text(encoding="utf-8") for name in names)


def policy_hash(text: str) -> str:
    """What a content-security policy names an inline script or style by."""
    return f"sha256-{in_base64(hashlib.sha256(text.encode()).digest())}"


def reference_text(sample: Sample) -> str:
    """What a perfect answer says; of a letter also what it stands for."""
    if not sample.options:
        return sample.reference
    return f"{sample.reference}: {sample.options[ord(sample.reference) - ord('A')]}"


def in_base64(content: bytes) -> str:
    """Bytes as a page holds them: in a ``data:`` address, or in the hash that a content-security policy names a script by."""
    return base64.b64encode(content).decode()


def film_strip(pixels: npt.NDArray[np.uint8]) -> str:
    """Frames [frames, height, width, 3] side by side, as the address of a picture; small ones exactly, large ones as a JPEG.

    A frame is as high as it is, or :data:`STRIP_PX`.
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
