"""Contact sheets: PNG pages of samples for people, with frames, question, options and reference.

Text is drawn in a font of a package, never of the machine: sheets are outs of ``synthesize``, and
equal samples must give equal bytes everywhere. The report displays the same texts in every script.

A dark frame is outlined and marked DARK; where two clips are interleaved, each has its own letter
and colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from stages.domain.core.frames import Frames
from stages.domain.core.records import Sample
from stages.domain.core.timeline import Source, resolve
from stages.lib.video.loader import FrameLoader

CELL_PX = 112
FRAME_PX, GAP_PX, MARGIN_PX = 4, 8, 20
PER_LINE = 8
TEXT_PX, SMALL_PX, TITLE_PX = 15, 12, 22

#: Characters of Pillow's own font that are used here; it draws a box for everything else, such as é
#: and ß.
_PLAIN = frozenset(map(chr, range(32, 127))) | {"·"}
#: Note for texts with letters that matplotlib's font lacks too (Chinese, Japanese, Korean, Thai …).
NOT_DRAWN = (
    "Letters drawn as boxes are in no font that comes along; vidbridge report and vidbridge data browse show them."
)

PAPER, INK, FAINT = (255, 255, 255), (24, 24, 28), (110, 110, 118)
DARK_FRAME = (214, 60, 160)
PLAIN_FRAME = (205, 205, 210)
CLIP_FRAMES = ((22, 110, 190), (222, 120, 10), (40, 140, 70), (130, 80, 180))


@dataclass(frozen=True)
class SheetRow:
    """One sample: its frames, the source of each, and its texts."""

    title: str
    frames: Frames
    sources: tuple[Source, ...]
    question: str
    reference: str
    options: tuple[str, ...] = ()


def contact_sheet(rows: Sequence[SheetRow], path: Path, heading: str = "") -> None:
    """Write the sheet as a PNG, with the samples below each other: film strip, numbers and times,
    question, options, reference.

    Raises:
        ValueError: there are no rows, or sources and frames of a row differ in number.
    """
    if not rows:
        raise ValueError(f"rows: none for {path.name}; a contact sheet needs at least one sample")
    strips = [_draw(row) for row in rows]
    head_px = MARGIN_PX + (TITLE_PX + 2 * GAP_PX if heading else 0)
    height = head_px + sum(strip.height + MARGIN_PX for strip in strips)
    sheet = Image.new("RGB", (max(strip.width for strip in strips) + 2 * MARGIN_PX, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    if heading:
        pen.text((MARGIN_PX, MARGIN_PX), heading, INK, _font(TITLE_PX, heading))
    y = head_px
    for number, strip in enumerate(strips):
        if number:
            pen.line((MARGIN_PX, y - MARGIN_PX // 2, sheet.width - MARGIN_PX, y - MARGIN_PX // 2), PLAIN_FRAME)
        sheet.paste(strip, (MARGIN_PX, y))
        y += strip.height + MARGIN_PX
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, format="PNG", optimize=True)


def sample_sheet(heading: str, samples: Sequence[Sample], loader: FrameLoader, path: Path) -> None:
    """Write the contact sheet of samples, each with the frames that the model receives.

    Raises:
        ValueError: no samples.
        VideoError: a clip cannot be read.
    """
    rows = []
    for sample in samples:
        frames = loader.load(sample)
        sources = resolve(sample.timeline, frames.indices)
        rows.append(SheetRow(sample.sample_id, frames, sources, sample.question, sample.reference, sample.options))
    contact_sheet(rows, path, heading)


def _draw(row: SheetRow) -> Image.Image:
    if len(row.sources) != len(row.frames.indices):
        raise ValueError(
            f"{row.title}: {len(row.sources)} sources for {len(row.frames.indices)} frames; pass one per frame"
        )
    cell_width, cell_height = _cell(row.frames)
    letters = _letters(row.sources)
    # Below the picture: frame number and time, and for interleaved clips also the frame number
    # within the clip.
    labels_px = (2 if len(letters) > 1 else 1) * (SMALL_PX + 2) + GAP_PX
    slot_width, slot_height = cell_width + 2 * FRAME_PX, cell_height + 2 * FRAME_PX + labels_px
    columns = min(PER_LINE, len(row.sources))
    lines = -(-len(row.sources) // columns)
    # Short strips still leave room for the texts.
    width = max(columns * (slot_width + GAP_PX) - GAP_PX, PER_LINE * (CELL_PX + 2 * FRAME_PX + GAP_PX) - GAP_PX)
    texts = _texts(row, width)
    line_px = TEXT_PX + 5
    height = SMALL_PX + 10 + lines * (slot_height + GAP_PX) + len(texts) * line_px
    strip = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(strip)
    pen.text((0, 0), row.title, FAINT, _font(SMALL_PX, row.title))
    for position, source in enumerate(row.sources):
        x = position % columns * (slot_width + GAP_PX)
        y = SMALL_PX + 10 + position // columns * (slot_height + GAP_PX)
        picture = Image.fromarray(row.frames.pixels[position]).resize(
            (cell_width, cell_height), _kernel(row.frames, cell_width)
        )
        colour = DARK_FRAME if source.dark else _frame_colour(source, letters)
        pen.rectangle((x, y, x + slot_width - 1, y + cell_height + 2 * FRAME_PX - 1), colour)
        strip.paste(picture, (x + FRAME_PX, y + FRAME_PX))
        if source.dark:
            pen.text(
                (x + slot_width / 2, y + FRAME_PX + cell_height / 2), "DARK", DARK_FRAME, _font(TITLE_PX), anchor="mm"
            )
        if len(letters) > 1:
            _badge(pen, x + FRAME_PX, y + FRAME_PX, letters[source.clip_id], _frame_colour(source, letters))
        label = f"frame {row.frames.indices[position]}  ·  {float(row.frames.times_s[position]):.2f} s"
        pen.text((x + slot_width / 2, y + cell_height + 2 * FRAME_PX + 4), label, FAINT, _font(SMALL_PX), anchor="ma")
        if len(letters) > 1:
            clip_label = f"{letters[source.clip_id]} {source.frame}"
            pen.text(
                (x + slot_width / 2, y + cell_height + 2 * FRAME_PX + 5 + SMALL_PX),
                clip_label,
                colour,
                _font(SMALL_PX),
                anchor="ma",
            )
    y = SMALL_PX + 10 + lines * (slot_height + GAP_PX)
    for text, ink in texts:
        pen.text((0, y), text, ink, _font(TEXT_PX, text))
        y += line_px
    return strip


def _texts(row: SheetRow, width_px: int) -> list[tuple[str, tuple[int, int, int]]]:
    letters = _letters(row.sources)
    parts = [(f"Question: {row.question}", INK)]
    if row.options:
        parts.append(
            ("Options: " + "  ·  ".join(f"{chr(65 + n)}) {option}" for n, option in enumerate(row.options)), INK)
        )
    parts.append((f"Reference: {row.reference}", (20, 110, 60)))
    if len(letters) > 1:
        parts.append(("Clips: " + "  ·  ".join(f"{letter} = {clip_id}" for clip_id, letter in letters.items()), FAINT))
    if not all(_is_drawn(text) for text in (row.title, *(text for text, _ in parts))):
        parts.append((NOT_DRAWN, FAINT))
    return [(line, ink) for text, ink in parts for line in _wrap(text, width_px)]


def _wrap(text: str, width_px: int) -> list[str]:
    """Break a text into lines that fit; a word longer than a line is cut."""
    font = _font(TEXT_PX, text)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width_px:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if font.getlength(lines[-1] + letter) > width_px:
                lines.append("")
            lines[-1] += letter
    return lines


def _letters(sources: Sequence[Source]) -> dict[str, str]:
    """Letter of each clip, in order of appearance."""
    return {clip_id: chr(65 + number) for number, clip_id in enumerate(dict.fromkeys(s.clip_id for s in sources))}


def _frame_colour(source: Source, letters: dict[str, str]) -> tuple[int, int, int]:
    if len(letters) < 2:
        return PLAIN_FRAME
    return CLIP_FRAMES[(ord(letters[source.clip_id]) - 65) % len(CLIP_FRAMES)]


def _badge(pen: ImageDraw.ImageDraw, x: int, y: int, letter: str, colour: tuple[int, int, int]) -> None:
    pen.rectangle((x, y, x + 20, y + 20), colour)
    pen.text((x + 10, y + 10), letter, PAPER, _font(TEXT_PX), anchor="mm")


def _cell(frames: Frames) -> tuple[int, int]:
    """Width and height at which a frame is drawn: height CELL_PX, and no wider than two squares."""
    _, height, width, _ = frames.pixels.shape
    scale = min(CELL_PX / height, 2 * CELL_PX / width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _kernel(frames: Frames, cell_width: int) -> Image.Resampling:
    # Enlarged pixels stay squares, so that a person sees the resolution that the model receives.
    enlarged = cell_width >= frames.pixels.shape[2]
    return Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS


def _font(size_px: int, text: str = "") -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Font for ``text``: Pillow's own, or matplotlib's DejaVu Sans if that lacks a letter."""
    return ImageFont.load_default(size_px) if _PLAIN.issuperset(text) else _wide_font(size_px)


@lru_cache
def _wide_font(size_px: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", size_px)


def _is_drawn(text: str) -> bool:
    """Return whether the font for ``text`` has all its letters."""
    if _PLAIN.issuperset(text):
        return True
    font = _wide_font(TEXT_PX)
    # No font has this character, so this is the image of the box.
    box = bytes(font.getmask("\uffff"))
    return all(letter.isspace() or bytes(font.getmask(letter)) != box for letter in set(text))
