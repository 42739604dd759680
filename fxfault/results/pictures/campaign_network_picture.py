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
    SCREEN,
    WEAKNESS,
    Look,
    memories_of,
    plot_settings,
    rendered,
    shortened,
)

# Points, 72 to the inch.
_ROW, _LANE, _GAP = 16.0, 9.0, 26.0
_LETTER = {"screen": 0.59, "phone": 0.59, "paper": 0.49}  # Mean width of a letter, in font sizes.
_MARGIN, _HEAD = 14.0, 46.0
_BETWEEN = 12.0  # The gap between two columns of text.
_WIDEST = 960.0  # Beyond this, fewer columns are easier to read.
_LEGEND_WIDTH, _LEGEND_HEIGHT = 150.0, 8.0
_BESIDE = 24.0  # A mark of the legend and the gap behind its name.
_SHORTEST_NAME, _LONGEST_NAME = 14, 36  # Characters.


def network_picture(
    background: Background,
    falls: Mapping[str, float],
    file_format: str,
    metric: MetricFacts = ACCURACY,
    look: Look = SCREEN,
) -> bytes:
    """Draw a network; sites without a fall (in the unit of the metric, by name) are grey.

    Beside each site are its name, the class of its layer, the bits of its word, and its fall. The
    picture is as high as the network is long, and as wide as its names, up to the width of the
    look. If there are several memories, the shape of a mark says what it is. In an SVG, the mark
    and the name of site n have the ids `site-n` and `site-n-name`.
    """
    with plot_settings(look):
        return rendered(_Picture(background, falls, metric, look).figure, file_format)


class _Picture:
    """Draws on one set of axes whose unit is a point, downwards."""

    def __init__(
        self,
        background: Background,
        falls: Mapping[str, float],
        metric: MetricFacts,
        look: Look,
    ) -> None:
        import matplotlib
        from matplotlib.colors import Normalize
        from matplotlib.figure import Figure

        self.nodes, self.graph = background.nodes, background.edges
        self.falls, self.metric = falls, metric
        self.notes = {site.name: site for site in background.sites}
        sites = [node.site for node in self.nodes if node.site is not None]
        memories = {site.name: site.memory for site in background.sites}
        kinds = memories_of(memories, sites)
        self.shapes = kinds if len(kinds) > 1 else []
        self.most = max(falls.values(), default=0.0)
        self.norm = Normalize(0.0, self.most if self.most > 0 else 1.0)
        self.shades = matplotlib.colormaps[WEAKNESS]
        self.letter = _LETTER[look.style]
        self.size = 8.7 if look.style == "screen" else 8.0
        self.longest, self.shows_types = _LONGEST_NAME, True
        width = self._fit(72 * look.of(_WIDEST / 72, 1.0)[0])
        legend = self._legend_rows(width)
        self.head = _HEAD + _ROW * max(0, len(legend) - 1)
        height = self.head + self.strip.rows * _ROW + _MARGIN
        self.figure: Any = Figure(figsize=(width / 72, height / 72))
        self.axes = self.figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
        self.axes.set_axis_off()
        self._legend(width, height, legend)
        self._edges(self.strip)
        for place in self.strip.places:
            self._node(place, self.nodes[place.node])

    def _fit(self, widest: float) -> float:
        """Choose columns, and what is written beside the sites, for a width; returns the width."""
        width = math.inf
        for columns in (3, 2, 1):
            self.strip = lay_out(self.nodes, self.graph, columns)
            self.lefts, width = self._columns()
            if width <= widest:
                break
        if width > widest:
            self.shows_types = False
            self.lefts, width = self._columns()
        while width > widest and self.longest > _SHORTEST_NAME:
            self.longest -= 1
            self.lefts, width = self._columns()
        least = self._letters(self._headline()) + 2 * _MARGIN
        return max(width, min(least, widest))

    def _letters(self, text: str) -> float:
        """About how wide a text is."""
        return self.letter * self.size * len(text)

    def _columns(self) -> tuple[list[float], float]:
        """The left end of each column, and the width of the whole picture."""
        lefts, left = [], _MARGIN
        self.parts: list[tuple[float, float, float, float]] = []
        for column, lanes in enumerate(self.strip.lanes):
            nodes = [self.nodes[p.node] for p in self.strip.places if p.column == column]
            texts = zip(*(self._texts(node) for node in nodes), strict=True)
            widths = [max(map(self._letters, of_column), default=0.0) for of_column in texts]
            name, kind, bits, value = widths or [0.0] * 4
            right, gap = lanes * _LANE + 6 + name, _BETWEEN
            starts = right + (gap if kind else 0)
            ends = starts + kind + (gap + bits if bits else 0)
            end = ends + (gap + value if value else 0)
            self.parts.append((starts, ends, end, name))
            lefts.append(left)
            left += end + _GAP
        return lefts, left - _GAP + _MARGIN

    def _texts(self, node: Node) -> tuple[str, str, str, str]:
        """What is written beside a node: its name, and of a site its layer, bits and fall."""
        if node.site is None:
            return self._name(node), "", "", ""
        note = self.notes.get(node.site)
        kind = note.module_type if note is not None and self.shows_types else ""
        bits = "" if note is None or note.bit_width is None else f"{note.bit_width} bit"
        return self._name(node), kind, bits, self._value(node.site)

    def _value(self, name: str) -> str:
        fall = self.falls.get(name)
        if fall is None:
            return "–" if self.falls else ""
        return (
            f"{round(fall, 2) + 0.0:.2f}" if self.metric.is_accuracy else self.metric.number(fall)
        )

    def _name(self, node: Node) -> str:
        name = node.site or (node.name if node.kind == CONTAINER else node.label)
        return shortened(name, self.longest)

    def _x(self, column: int, lane: int) -> float:
        return self.lefts[column] + (lane + 0.5) * _LANE

    def _y(self, row: float) -> float:
        return self.head + (row + 0.5) * _ROW

    # -- nodes ------------------------------------------------------------------------------

    def _node(self, place: Place, node: Node) -> None:
        x, y = self._x(place.column, place.lane), self._y(place.row)
        text = self.lefts[place.column] + self.strip.lanes[place.column] * _LANE + 6
        if node.site is not None:
            self._site(node, x, y, text, place.column)
            return
        from matplotlib.patches import Circle, Rectangle

        side = 7.0 if node.kind == CONTAINER else 5.0
        is_join = node.kind not in ("input", "output", CONTAINER)
        corner = x - side / 2, y - side / 2
        mark = Circle((x, y), 2.2) if is_join else Rectangle(corner, side, side)
        mark.set(facecolor=INK if is_join else "white", edgecolor=INK, linewidth=0.8, zorder=3)
        self.axes.add_patch(mark)
        self._text(text, y, self._name(node), size=self.size - 1, color=MUTED, style="italic")

    @staticmethod
    def _mark(memory: str, x: float, y: float) -> Any:
        from matplotlib.patches import Circle, RegularPolygon

        corners = MEMORY_CORNERS[memory]
        if not corners:
            return Circle((x, y), 4.0)
        return RegularPolygon((x, y), corners, radius=5.2, orientation=math.pi)  # y is downwards.

    def _site(self, node: Node, x: float, y: float, text: float, column: int) -> None:
        name = str(node.site)
        fall, note = self.falls.get(name), self.notes.get(name)
        gid = None if note is None else f"site-{note.index}"
        colour = NOT_KNOWN if fall is None else self.shades(self.norm(max(fall, 0.0)))
        mark = self._mark("activations" if note is None else note.memory, x, y)
        mark.set(facecolor=colour, edgecolor=INK, linewidth=0.8, zorder=3)
        mark.set_gid(gid)
        self.axes.add_patch(mark)
        left, (starts, ends, end, _) = self.lefts[column], self.parts[column]
        shown, kind, bits, value = self._texts(node)
        self._text(text, y, shown, size=self.size, gid=gid and f"{gid}-name")
        self._text(left + starts, y, kind, size=self.size - 1, color=MUTED)
        self._text(left + ends, y, bits, size=self.size - 1, color=MUTED, ha="right")
        self._text(left + end, y, value, size=self.size, ha="right")

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

    def _headline(self) -> str:
        if not self.falls:
            return "No site was struck alone: no colours"
        if self.most <= 0:
            return f"No site lost {self.metric.name} when struck alone"
        unit = " (points)" if self.metric.unit == "%" else self.metric.in_unit
        return f"{self.metric.title} lost when struck alone{unit}"

    def _legend_rows(self, width: float) -> list[list[str]]:
        """What the marks mean, in rows that fit beside the scale and below it."""
        sites = sum(node.kind == SITE for node in self.nodes)
        unknown = ["not known"] if self.falls and len(self.falls) < sites else []
        marks = [*self.shapes, *unknown]
        beside = _LEGEND_WIDTH + 24 if self.falls and self.most > 0 else 0.0
        widths = [self._letters(what) + _BESIDE for what in marks]
        if _MARGIN + beside + sum(widths) <= width:
            return [marks]
        rows: list[list[str]] = [[]] if beside else []  # Nothing beside the scale.
        x = width
        for what, needed in zip(marks, widths, strict=True):
            if x + needed > width:
                rows.append([])
                x = _MARGIN
            rows[-1].append(what)
            x += needed
        return rows

    def _legend(self, width: float, height: float, rows: list[list[str]]) -> None:
        from matplotlib.patches import Circle

        self._text(_MARGIN, 10, self._headline(), size=self.size)
        has_scale = bool(self.falls) and self.most > 0
        if has_scale:
            self._scale(width, height)
        y = 22.0
        for number, row in enumerate(rows):
            x = _MARGIN + (_LEGEND_WIDTH + 24 if has_scale and number == 0 else 4.0)
            y = 22.0 if number == 0 else 30.0 + _ROW * number
            for what in row:
                if what in self.shapes:
                    mark = self._mark(what, x, y)
                    mark.set(facecolor="white", edgecolor=INK, linewidth=0.8)
                else:
                    mark = Circle((x, y), 4, facecolor=NOT_KNOWN, edgecolor=INK, lw=0.8)
                self.axes.add_patch(mark)
                self._text(x + 9, y, what, size=self.size)
                x += self._letters(what) + _BESIDE

    def _scale(self, width: float, height: float) -> None:
        """Draw the colours with what they cost."""
        place = _MARGIN / width, 1 - 26 / height, _LEGEND_WIDTH / width, _LEGEND_HEIGHT / height
        bar = self.figure.add_axes(place)
        steps = [[step / 63 * self.most for step in range(64)]]
        extent = (0, self.most, 0, 1)
        bar.imshow(steps, cmap=self.shades, norm=self.norm, aspect="auto", extent=extent)
        bar.set_yticks([])
        bar.locator_params(axis="x", nbins=4)
        bar.tick_params(labelsize=self.size - 1, length=2, pad=1)
