"""The network of a study as a picture: the colour of a site shows what faults there cost.

Importing this module does not import matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fxfault.campaign.records.background import CONTAINER, SITE, Background, Node
from fxfault.metrics.facts import ACCURACY, MetricFacts
from fxfault.results.pictures.campaign_network import Place, Strip, lay_out
from fxfault.results.pictures.drawing import (
    INK,
    LINE,
    MEMORY_CORNERS,
    MUTED,
    NOT_KNOWN,
    WEAKNESS,
    memories_of,
    plot_settings,
    rendered,
    shortened,
)

# Points, 72 to the inch.
_ROW, _LANE, _GAP = 16.0, 9.0, 26.0
_LETTER = 5.3  # Average width of a letter.
_VALUE = 34.0
_MARGIN, _HEAD = 14.0, 46.0
_WIDEST = 960.0  # Beyond this, fewer columns are easier to read.
_NAME_SIZE, _SMALL_SIZE = 8.7, 7.6
_LEGEND_WIDTH, _LEGEND_HEIGHT = 150.0, 8.0
_BESIDE = 24.0  # A mark of the legend and the gap behind its name.


def network_picture(
    background: Background,
    falls: Mapping[str, float],
    file_format: str,
    metric: MetricFacts = ACCURACY,
) -> bytes:
    """Draw a network; sites without a fall (in the unit of the metric, by name) are grey.

    If there are several memories, the shape of a mark says what it is. In an SVG, the mark and the
    name of site n have the ids `site-n` and `site-n-name`.
    """
    with plot_settings():
        return rendered(_Picture(background, falls, metric).figure, file_format)


class _Picture:
    """Draws on one set of axes whose unit is a point, downwards."""

    def __init__(
        self, background: Background, falls: Mapping[str, float], metric: MetricFacts
    ) -> None:
        import matplotlib
        from matplotlib.colors import Normalize
        from matplotlib.figure import Figure

        self.nodes, self.falls, self.metric = background.nodes, falls, metric
        self.index = {site.name: site.index for site in background.sites}
        self.memories = {site.name: site.memory for site in background.sites}
        sites = [node.site for node in self.nodes if node.site is not None]
        kinds = memories_of(self.memories, sites)
        self.shapes = kinds if len(kinds) > 1 else []
        most = max(falls.values(), default=0.0)
        self.most = most if most > 0 else 1.0  # If nothing was lost, any scale will do.
        self.norm = Normalize(0.0, self.most)
        self.shades = matplotlib.colormaps[WEAKNESS]
        for columns in (3, 2, 1):
            self.strip = lay_out(background.nodes, background.edges, columns)
            self.lefts, width = self._columns()
            if width <= _WIDEST:
                break
        shapes = sum(_LETTER * len(kind) + _BESIDE for kind in self.shapes)
        width = max(width, _LEGEND_WIDTH + 250.0, _LEGEND_WIDTH + 110.0 + shapes)
        height = _HEAD + self.strip.rows * _ROW + _MARGIN
        self.figure: Any = Figure(figsize=(width / 72, height / 72))
        self.axes = self.figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
        self.axes.set_axis_off()
        self._legend(width, height)
        self._edges(self.strip)
        for place in self.strip.places:
            self._node(place, self.nodes[place.node])

    def _columns(self) -> tuple[list[float], float]:
        """The left end of each column, and the width of the whole picture."""
        lefts, left = [], _MARGIN
        self.widths = []
        for column, lanes in enumerate(self.strip.lanes):
            names = [
                len(self._name(self.nodes[place.node]))
                for place in self.strip.places
                if place.column == column
            ]
            self.widths.append(lanes * _LANE + 6 + _LETTER * max(names, default=0) + _VALUE)
            lefts.append(left)
            left += self.widths[-1] + _GAP
        return lefts, left - _GAP + _MARGIN

    @staticmethod
    def _name(node: Node) -> str:
        return shortened(node.site or (node.name if node.kind == CONTAINER else node.label))

    def _x(self, column: int, lane: int) -> float:
        return self.lefts[column] + (lane + 0.5) * _LANE

    @staticmethod
    def _y(row: float) -> float:
        return _HEAD + (row + 0.5) * _ROW

    # -- nodes ------------------------------------------------------------------------------

    def _node(self, place: Place, node: Node) -> None:
        x, y = self._x(place.column, place.lane), self._y(place.row)
        text = self.lefts[place.column] + self.strip.lanes[place.column] * _LANE + 6
        if node.site is not None:
            self._site(node.site, x, y, text, self.lefts[place.column] + self.widths[place.column])
            return
        from matplotlib.patches import Circle, Rectangle

        side = 7.0 if node.kind == CONTAINER else 5.0
        is_join = node.kind not in ("input", "output", CONTAINER)
        corner = x - side / 2, y - side / 2
        mark = Circle((x, y), 2.2) if is_join else Rectangle(corner, side, side)
        mark.set(facecolor=INK if is_join else "white", edgecolor=INK, linewidth=0.8, zorder=3)
        self.axes.add_patch(mark)
        self._text(text, y, self._name(node), size=_SMALL_SIZE, color=MUTED, style="italic")

    @staticmethod
    def _mark(memory: str, x: float, y: float) -> Any:
        from matplotlib.patches import Circle, RegularPolygon

        corners = MEMORY_CORNERS[memory]
        if not corners:
            return Circle((x, y), 4.0)
        return RegularPolygon((x, y), corners, radius=5.2, orientation=math.pi)  # y is downwards.

    def _site(self, name: str, x: float, y: float, text: float, right: float) -> None:
        fall, gid = self.falls.get(name), f"site-{self.index[name]}"
        colour = NOT_KNOWN if fall is None else self.shades(self.norm(max(fall, 0.0)))
        mark = self._mark(self.memories.get(name, "activations"), x, y)
        mark.set(facecolor=colour, edgecolor=INK, linewidth=0.8, zorder=3)
        mark.set_gid(gid)
        self.axes.add_patch(mark)
        self._text(text, y, shortened(name), size=_NAME_SIZE, gid=f"{gid}-name")
        value = "–"
        if fall is not None:
            accurate = self.metric.is_accuracy
            value = f"{fall + 0.0:.2f}" if accurate else self.metric.number(fall)
        self._text(right, y, value, size=_NAME_SIZE, ha="right")

    def _text(self, x: float, y: float, text: str, **look: Any) -> None:
        self.axes.text(x, y, text, va="center_baseline", **look)

    # -- edges ------------------------------------------------------------------------------

    def _edges(self, strip: Strip) -> None:
        from matplotlib.patches import PathPatch
        from matplotlib.path import Path

        lines = [
            line
            for first, last in strip.edges
            for line in self._edge(strip.places[first], strip.places[last])
        ]
        if lines:
            path = Path.make_compound_path(*(Path(points, codes) for points, codes in lines))
            look = {"facecolor": "none", "edgecolor": LINE, "linewidth": 1.1, "zorder": 2}
            self.axes.add_patch(PathPatch(path, **look))

    def _edge(self, first: Place, last: Place) -> list[tuple[list[tuple[float, float]], list[int]]]:
        """The lines of an edge: down the lane of its value, then over to the node at its end."""
        move, line, curve = 1, 2, 4  # The codes of matplotlib's Path.
        top, end = self._y(first.row), self._y(self.strip.rows - 0.5)
        lines: list[tuple[list[tuple[float, float]], list[int]]] = []
        for column in range(first.column, last.column):
            x = self._x(column, first.lane)
            lines.append(([(x, top), (x, end)], [move, line]))
            top = self._y(-0.5)
        x, to = self._x(last.column, first.lane), self._x(last.column, last.lane)
        y = self._y(last.row)
        turn = max(top, y - _ROW)
        middle = (turn + y) / 2
        points = [(x, top), (x, turn), (x, middle), (to, middle), (to, y)]
        return [*lines, (points, [move, line, curve, curve, curve])]

    # -- legend -----------------------------------------------------------------------------

    def _legend(self, width: float, height: float) -> None:
        from matplotlib.patches import Circle

        if not self.falls:
            self._text(_MARGIN, 10, "No site was struck alone: no colours", size=_NAME_SIZE)
            return
        unit = " (points)" if self.metric.unit == "%" else self.metric.in_unit
        text = f"{self.metric.title} lost when struck alone{unit}"
        self._text(_MARGIN, 10, text, size=_NAME_SIZE)
        place = _MARGIN / width, 1 - 26 / height, _LEGEND_WIDTH / width, _LEGEND_HEIGHT / height
        bar = self.figure.add_axes(place)
        steps = [[step / 63 * self.most for step in range(64)]]
        extent = (0, self.most, 0, 1)
        bar.imshow(steps, cmap=self.shades, norm=self.norm, aspect="auto", extent=extent)
        bar.set_yticks([])
        bar.locator_params(axis="x", nbins=4)
        bar.tick_params(labelsize=_SMALL_SIZE, length=2, pad=1)
        x = _MARGIN + _LEGEND_WIDTH + 24
        for kind in self.shapes:
            mark = self._mark(kind, x, 22)
            mark.set(facecolor="white", edgecolor=INK, linewidth=0.8)
            self.axes.add_patch(mark)
            self._text(x + 9, 22, kind, size=_NAME_SIZE)
            x += _LETTER * len(kind) + _BESIDE
        if len(self.falls) < len([node for node in self.nodes if node.kind == SITE]):
            self.axes.add_patch(Circle((x, 22), 4, facecolor=NOT_KNOWN, edgecolor=INK, lw=0.8))
            self._text(x + 9, 22, "not known", size=_NAME_SIZE)
