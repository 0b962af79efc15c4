"""Drawings as inline SVG: scaled by the page, coloured by its style sheet (light or dark), with
readable, searchable text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from xml.etree import ElementTree as ET

from markupsafe import Markup

Points = Sequence[tuple[float, float]]


class Area(NamedTuple):
    """Plot area of a drawing: pixels of its edges, and the values there."""

    left: float
    right: float
    top: float
    bottom: float
    x: tuple[float, float]
    y: tuple[float, float]

    def px(self, x: float) -> float:
        low, high = self.x
        return self.left + (self.right - self.left) * (x - low) / (high - low)

    def py(self, y: float) -> float:
        low, high = self.y
        return self.bottom - (self.bottom - self.top) * (y - low) / (high - low)


def canvas(width: float, height: float, label: str, kind: str) -> ET.Element:
    """Create an empty drawing. ``label``: text for screen readers; ``kind``: its class in the style
    sheet."""
    size = {"viewBox": f"0 0 {width:g} {height:g}", "class": kind, "role": "img", "aria-label": label}
    return ET.Element("svg", size | {"width": f"{width:g}", "height": f"{height:g}"})


def put(
    parent: ET.Element, tag: str, kind: str, text: str = "", hint: str = "", **attributes: float | str
) -> ET.Element:
    """Add an element of class ``kind``; numbers are rounded to a tenth of a pixel. ``hint``:
    tooltip."""
    values = {
        name: value if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")
        for name, value in attributes.items()
    }
    element = ET.SubElement(parent, tag, {"class": kind, **values})
    element.text = text or None
    if hint:
        ET.SubElement(element, "title").text = hint
    return element


def line(parent: ET.Element, area: Area, points: Points, kind: str, hint: str = "") -> None:
    """Add a line through ``points``, in values."""
    path = " ".join(f"{area.px(x):.1f},{area.py(y):.1f}" for x, y in points)
    put(parent, "polyline", f"line {kind}", hint=hint, points=path)


def rule(parent: ET.Element, area: Area, y: float, kind: str) -> None:
    """Add a horizontal line at value ``y``."""
    put(parent, "line", kind, x1=area.left, x2=area.right, y1=area.py(y), y2=area.py(y))


def scale_y(parent: ET.Element, area: Area, most: int = 4) -> None:
    """Add horizontal lines at round values, with their numbers at the left."""
    for value in ticks(*area.y, most):
        rule(parent, area, value, "grid")
        put(parent, "text", "tick", f"{value:g}", x=area.left - 6, y=area.py(value) + 4, **{"text-anchor": "end"})


def ticks(low: float, high: float, most: int) -> list[float]:
    """At most ``most`` + 1 round values from ``low`` to ``high``."""
    from matplotlib.ticker import MaxNLocator

    slack = 1e-9 * (high - low)
    values = MaxNLocator(nbins=most, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [round(float(value), 12) for value in values if low - slack <= value <= high + slack]


def to_markup(drawing: ET.Element) -> Markup:
    """The drawing as markup for a page; any text in it is escaped."""
    return Markup(ET.tostring(drawing, encoding="unicode"))  # noqa: S704


def interval_bar(low: float, mean: float, high: float, span: tuple[float, float]) -> Markup:
    """Draw an interval on a short scale from ``span``'s first value to its second, for a table's
    cell, with a mark at 0 if inside."""
    area = Area(1, 95, 0, 10, span, (0, 1))
    drawing = canvas(96, 10, f"{mean:.3f}, from {low:.3f} to {high:.3f}", "bar")
    put(drawing, "line", "track", x1=1, x2=95, y1=5, y2=5)
    if span[0] < 0 < span[1]:
        put(drawing, "line", "zero", x1=area.px(0), x2=area.px(0), y1=0, y2=10)
    put(drawing, "rect", "range", x=area.px(low), width=max(area.px(high) - area.px(low), 1), y=3, height=4, rx=2)
    put(drawing, "circle", "mean", cx=area.px(mean), cy=5, r=3)
    return to_markup(drawing)
