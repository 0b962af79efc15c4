"""Pictures in a request to an OpenAI-compatible endpoint."""

from __future__ import annotations

import base64
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image


def fitted(pixels: npt.NDArray[np.uint8], max_pixels: int) -> Image.Image:
    """Picture of a frame, uint8 RGB [height, width, 3], with even sides, scaled down if it has more
    than ``max_pixels``."""
    picture = Image.fromarray(pixels)
    scale = min(1.0, (max_pixels / (picture.width * picture.height)) ** 0.5)
    size = (max(2, int(picture.width * scale) // 2 * 2), max(2, int(picture.height * scale) // 2 * 2))
    return picture if size == picture.size else picture.resize(size, Image.Resampling.BICUBIC)


def jpeg_url(picture: Image.Image, quality: int) -> str:
    """The picture as a JPEG in a ``data:`` address."""
    out = BytesIO()
    picture.save(out, "JPEG", quality=quality)
    return data_url("image/jpeg", out.getvalue())


def data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
