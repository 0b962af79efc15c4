"""Drawing of the graph of the pipeline's stages: the inputs and the cost of each stage.

A column holds the stages at equal distance from the end, so that scores are side by side; the
longest chain (the training) runs along the top. A dependency that follows from others is not drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

import networkx as nx  # type: ignore[import-untyped]
from markupsafe import Markup

from stages.tools.report.drawing import canvas, put, to_markup

#: Sizes in pixels of a drawing that is not scaled: a box, and the room between two.
BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y, MARGIN = 110, 86, 22, 16, 2
#: Radius of a line's corner.
CORNER = 10
#: Colour of a stage by its verb, as ``meta.kind`` of dvc.yaml has it.
KINDS = {
    "corpus": "data",
    "ingest": "data",
    "synthesize": "data",
    "base": "data",
    "sft": "train",
    "difficulty": "evaluate",
    "grpo": "train",
    "baselines": "evaluate",
    "evaluate": "evaluate",
    "summary": "evaluate",
}


@dataclass(frozen=True)
class Box:
    """A stage: its name, lines of figures (empty: not timed here), and its share of the longest
    stage's time, in [0, 1]."""

    name: str
    lines: tuple[str, ...]
    share: float


def edges_of(deps: Mapping[str, Sequence[str]], outs: Mapping[str, Sequence[str]]) -> list[tuple[str, str]]:
    """Find which stage uses which: a dep is another's out, a part of it, or a folder around it.

    Args:
        deps, outs: paths by stage.

    Returns:
        (maker, user), without edges that follow from others.
    """
    graph = nx.DiGraph()
    graph.add_nodes_from(deps)
    for user, used in deps.items():
        for maker, paths_of_maker in outs.items():
            if maker != user and any(_touch(dep, out) for dep in used for out in paths_of_maker):
                graph.add_edge(maker, user)
    return sorted(nx.transitive_reduction(graph).edges)


def _touch(first: str, second: str) -> bool:
    return first == second or first.startswith(f"{second}/") or second.startswith(f"{first}/")


def places(names: Sequence[str], edges: Sequence[tuple[str, str]]) -> dict[str, tuple[int, int]]:
    """Column and lane of each stage: columns by the distance to the end, lane 0 for the longest
    chain, below it the latest users first."""
    graph = nx.DiGraph()
    graph.add_nodes_from(names)
    graph.add_edges_from(edges)
    order = list(nx.topological_sort(graph))
    to_end: dict[str, int] = {}
    for name in reversed(order):
        to_end[name] = max((to_end[user] + 1 for user in graph.successors(name)), default=0)
    columns = {name: max(to_end.values(), default=0) - distance for name, distance in to_end.items()}
    spine = set(nx.dag_longest_path(graph))
    lanes: dict[str, int] = {}
    for column in range(max(columns.values(), default=0) + 1):
        here = [name for name in order if columns[name] == column]

        def near(name: str) -> tuple[bool, int, int]:
            makers = [columns[maker] for maker in graph.predecessors(name)]
            return name not in spine, -max(makers, default=-1), names.index(name)

        # Lane 0 holds the spine only: another stage there would hide a line of the chain.
        for lane, name in enumerate(sorted(here, key=near), start=0 if spine & set(here) else 1):
            lanes[name] = lane
    return {name: (columns[name], lanes[name]) for name in names}


def draw(boxes: Sequence[Box], edges: Sequence[tuple[str, str]], *, upright: bool) -> Markup:
    """Draw the graph from left to right, or ``upright`` from top to bottom for a narrow screen:
    lines first, boxes above them."""
    where = places([box.name for box in boxes], edges)
    if upright:
        where = {name: (lane, column) for name, (column, lane) in where.items()}
    width = (1 + max(across for across, _ in where.values())) * (BOX_WIDTH + GAP_X) - GAP_X + 2 * MARGIN
    height = (1 + max(down for _, down in where.values())) * (BOX_HEIGHT + GAP_Y) - GAP_Y + 2 * MARGIN
    label = "the pipeline's stages and what they are made from"
    drawing = canvas(width, height, label, f"dag {'upright' if upright else 'level'}")
    for maker, user in edges:
        path = (_down if upright else _right)(_corner(where[maker]), _corner(where[user]))
        put(drawing, "path", "edge", d=path, hint=f"{maker} → {user}")
    for box in boxes:
        _draw_box(drawing, box, *_corner(where[box.name]))
    return to_markup(drawing)


def _draw_box(drawing: ET.Element, box: Box, x: float, y: float) -> None:
    verb, _, row = box.name.partition("@")
    group = put(
        drawing, "g", f"box {KINDS[verb]}{'' if box.lines else ' unknown'}", transform=f"translate({x:g} {y:g})"
    )
    put(group, "rect", "frame", width=BOX_WIDTH, height=BOX_HEIGHT, rx=8)
    put(group, "text", "verb", verb if row else KINDS[verb], x=10, y=15)
    put(group, "text", "name", _short(row or verb), x=10, y=32, hint=box.name)
    for number, figures in enumerate(box.lines or ("not run here",)):
        put(group, "text", "figures" if number else "figures first", figures, x=10, y=48 + 14 * number)
    if box.lines:
        put(group, "rect", "share", x=0, y=BOX_HEIGHT - 4, width=max(4.0, box.share * BOX_WIDTH), height=4, rx=2)


def _corner(cell: tuple[int, int]) -> tuple[float, float]:
    across, down = cell
    return MARGIN + across * (BOX_WIDTH + GAP_X), MARGIN + down * (BOX_HEIGHT + GAP_Y)


def _right(maker: tuple[float, float], user: tuple[float, float]) -> str:
    """Path of a line with a round corner: down out of the maker, then right into the user; or
    right, then up into it."""
    (ax, ay), (bx, by) = maker, user
    middle_a, middle_b = ay + BOX_HEIGHT / 2, by + BOX_HEIGHT / 2
    if ay == by:
        return f"M{ax + BOX_WIDTH:g} {middle_a:g}H{bx:g}"
    if ay < by:
        return f"M{ax + BOX_WIDTH / 2:g} {ay + BOX_HEIGHT:g}V{middle_b - CORNER:g}q0 {CORNER} {CORNER} {CORNER}H{bx:g}"
    x = bx + BOX_WIDTH / 2
    return f"M{ax + BOX_WIDTH:g} {middle_a:g}H{x - CORNER:g}q{CORNER} 0 {CORNER} -{CORNER}V{by + BOX_HEIGHT:g}"


def _down(maker: tuple[float, float], user: tuple[float, float]) -> str:
    """Path of such a line in an upright drawing: right out of the maker, then down into the user;
    or down, then left into it."""
    (ax, ay), (bx, by) = maker, user
    middle_a, middle_b = ax + BOX_WIDTH / 2, bx + BOX_WIDTH / 2
    if ax == bx:
        return f"M{middle_a:g} {ay + BOX_HEIGHT:g}V{by:g}"
    if ax < bx:
        return f"M{ax + BOX_WIDTH:g} {ay + BOX_HEIGHT / 2:g}H{middle_b - CORNER:g}q{CORNER} 0 {CORNER} {CORNER}V{by:g}"
    y = by + BOX_HEIGHT / 2
    return f"M{middle_a:g} {ay + BOX_HEIGHT:g}V{y - CORNER:g}q0 {CORNER} -{CORNER} {CORNER}H{bx + BOX_WIDTH:g}"


def _short(name: str) -> str:
    return name if len(name) <= 12 else f"{name[:11]}…"
