"""The layout of a network's drawing: nodes below each other, values in lanes.

Between sites, only joins are drawn, where several values become one. Each node has its own row, in
the order of execution, with its name beside it. The value of a node runs down a lane until its last
use, like a branch in a drawing of version control. So a chain is a straight line, and a shortcut is
a second line beside it. A network of hundreds of sites is a strip, folded into columns like a
newspaper.

>>> from fxfault.campaign.records.background import Node
>>> nodes = [Node("x", "input", "x"), Node("conv", "layer", "Conv2d"),
...          Node("act", "site", "QuantReLU", "act"), Node("add", "operation", "add"),
...          Node("output", "output", "output")]
>>> strip = lay_out(nodes, [(0, 1), (1, 2), (0, 3), (2, 3), (3, 4)])
>>> [(nodes[place.node].name, place.row, place.lane) for place in strip.places]
[('x', 0, 0), ('act', 1, 1), ('add', 2, 0), ('output', 3, 0)]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fxfault.campaign.records.background import CONTAINER, INPUT, OUTPUT, SITE, Node

_SHOWN = (INPUT, OUTPUT, SITE, CONTAINER)
_ROWS_OF_ONE_COLUMN = 36
_ROWS_OF_TWO_COLUMNS = 100

Edge = tuple[int, int]


class Place(NamedTuple):
    """The place of a node, all counted from 0 and from the top left; a lane is in its column."""

    node: int
    column: int
    row: int
    lane: int


class Strip(NamedTuple):
    """A network as a strip.

    Attributes:
        places: places of the drawn nodes, in the order of execution.
        edges: start and end of each edge, as indices of `places`.
        rows: number of rows in the longest column.
        lanes: number of lanes in each column.
    """

    places: tuple[Place, ...]
    edges: tuple[Edge, ...]
    rows: int
    lanes: tuple[int, ...]


def lay_out(nodes: Sequence[Node], edges: Sequence[Edge], most_columns: int = 3) -> Strip:
    """Place the nodes of a network, in which every edge (two indices of nodes) leads forward."""
    shown, kept = contract(nodes, edges)
    lanes = _lanes(len(shown), kept)
    wanted = 1 + (len(shown) > _ROWS_OF_ONE_COLUMN) + (len(shown) > _ROWS_OF_TWO_COLUMNS)
    columns = min(wanted, most_columns)
    rows = max(1, -(-len(shown) // columns))
    places = tuple(
        Place(node, number // rows, number % rows, lane)
        for number, (node, lane) in enumerate(zip(shown, lanes, strict=True))
    )
    used = [0] * columns
    for place in places:
        used[place.column] = max(used[place.column], place.lane + 1)
    for first, last in kept:  # A value may pass through a column without a node of its own.
        for column in range(places[first].column, places[last].column + 1):
            used[column] = max(used[column], places[first].lane + 1)
    return Strip(places, tuple(kept), rows, tuple(used))


def contract(nodes: Sequence[Node], edges: Sequence[Edge]) -> tuple[list[int], list[Edge]]:
    """Leave out layers and operations that only pass on a single value.

    >>> nodes = [Node(name, "operation", name) for name in "abcd"]
    >>> contract([Node("x", "input", "x"), *nodes], [(0, 1), (1, 2), (0, 3), (2, 4), (3, 4)])
    ([0], [])

    Inputs, outputs, sites and containers stay, and so do operations that join values, if their
    value is used. Returns the indices of these nodes, and the edges between them as indices of
    that list.
    """
    sources = _neighbours(len(nodes), edges)
    behind: list[int | None] = []  # The shown node that stands for each node's value.
    found: dict[int, list[int]] = {}
    for number, node in enumerate(nodes):
        reached = [behind[source] for source in sources[number]]
        values = list(dict.fromkeys(value for value in reached if value is not None))
        if node.kind in _SHOWN or len(values) > 1:
            found[number] = values
            behind.append(number)
        else:
            behind.append(values[0] if values else None)
    used: set[int] = set()
    for number in sorted(found, reverse=True):
        if nodes[number].kind in _SHOWN or number in used:
            used.update(found[number])
        else:
            del found[number]
    order = {number: index for index, number in enumerate(found)}
    kept = [(order[value], order[n]) for n, values in found.items() for value in values]
    return list(found), kept


def _neighbours(count: int, edges: Sequence[Edge]) -> list[list[int]]:
    """The sources of each node."""
    sources: list[list[int]] = [[] for _ in range(count)]
    for first, last in edges:
        sources[last].append(first)
    return sources


def _lanes(count: int, edges: Sequence[Edge]) -> list[int]:
    """Give each node a lane that is free in its row."""
    last_use = list(range(count))
    for first, last in edges:
        last_use[first] = max(last_use[first], last)
    sources = _neighbours(count, edges)
    busy: dict[int, int] = {}  # The node whose value is in each lane.
    lanes: list[int] = []
    for node in range(count):
        ended = [lane for lane, value in busy.items() if last_use[value] <= node]
        for lane in ended:
            del busy[lane]
        # Straight on, if a value that is used for the last time frees its lane.
        straight = [lanes[s] for s in sources[node] if last_use[s] == node]
        lane = min(straight) if straight else next(n for n in range(count) if n not in busy)
        lanes.append(lane)
        if last_use[node] > node:
            busy[lane] = node
    return lanes
