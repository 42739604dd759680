"""The notes of a store for its report: the network around the sites, and the environment.

No row depends on them and nothing is compared with them, so that they may be missing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

INPUT, OUTPUT, LAYER, OPERATION = "input", "output", "layer", "operation"
SITE, CONTAINER = "site", "container"

_NOTHING_ELSE: Any = {"extra": "forbid"}


@dataclass(frozen=True)
class Node:
    """A node of the network's graph: a layer or an operation, with the value that it makes.

    Attributes:
        name: path of the layer, or name of the operation in the graph.
        kind: `input`, `output`, `layer`, `operation`, `site`, or `container`: a module with a
            forward of its own, which the graph does not look into.
        label: class name of the layer, or name of the operation.
        site: name of the site, if the node is one.
    """

    name: str
    kind: str
    label: str
    site: str | None = None

    __pydantic_config__ = _NOTHING_ELSE


@dataclass(frozen=True)
class SiteNote:
    """The facts about a site.

    Attributes:
        name: name of the site.
        index: position in the order of execution.
        module_type: class name of its layer.
        bit_width: bits of the word; None if it is learned.
        signed: whether the codes are signed; None if unknown.
        elements: number of elements of one sample, or of a weight or bias; None if it varies.
        memory: what is struck: `activations`, `weights`, `biases` or `parameters`.
    """

    name: str
    index: int
    module_type: str
    bit_width: int | None
    signed: bool | None
    elements: int | None
    memory: str = "activations"

    __pydantic_config__ = _NOTHING_ELSE


@dataclass(frozen=True)
class Background:
    """What the report of a store shows beside its rows.

    Attributes:
        nodes: nodes of the network, in the order of execution.
        edges: pairs of indices of nodes, from an earlier to a later node.
        sites: sites of the network, in the order of execution.
        environment: versions, device and the like, by name.
        begun: when the study began, as ISO 8601; empty if unknown.
        classes: number of classes that the network scores; None if unknown.
        never_called: names of sites that no forward of the evaluation reaches.
    """

    nodes: Sequence[Node] = ()
    edges: Sequence[tuple[int, int]] = ()
    sites: Sequence[SiteNote] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    begun: str = ""
    classes: int | None = None
    never_called: Sequence[str] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Background:
        """Invert `to_dict`; missing keys take their defaults, and unknown ones are ignored.

        >>> Background.from_dict({})
        Background(nodes=(), edges=(), sites=(), environment={}, begun='', classes=None, \
never_called=())

        Raises:
            ValueError: a value has the wrong type.
        """
        from pydantic import TypeAdapter

        return TypeAdapter(cls).validate_json(json.dumps(content), strict=True)
