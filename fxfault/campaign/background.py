"""What a store notes beside its trials, for a report: the network around its sites, and where.

No row depends on it and nothing is compared with it, so that it may be missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

INPUT, OUTPUT, LAYER, OPERATION = "input", "output", "layer", "operation"
SITE, CONTAINER = "site", "container"


@dataclass(frozen=True)
class Node:
    """A value of a network, and what makes it.

    Attributes:
        name: path of the layer, or name of the operation in the graph.
        kind: `input`, `output`, `layer`, `operation`, `site`, or `container`: a module with a
            forward of its own, which no graph shows.
        label: class name of the layer, or name of the operation.
        site: name of the site, where it is one.
    """

    name: str
    kind: str
    label: str
    site: str | None = None


@dataclass(frozen=True)
class SiteNote:
    """What is known of a site.

    Attributes:
        name: of the site.
        index: place in the order of execution.
        module_type: class name of its activation layer.
        bit_width: bits of the word; None where it is learned.
        signed: whether the codes are; None where nothing showed it.
        elements: of one sample; None where it has no fixed number of them.
    """

    name: str
    index: int
    module_type: str
    bit_width: int | None
    signed: bool | None
    elements: int | None


@dataclass(frozen=True)
class Background:
    """What the report of a store shows beside its rows.

    Attributes:
        nodes: of the network, in the order of execution.
        edges: from and to, as indices of nodes; from the earlier to the later.
        sites: in the order of execution.
        environment: versions, device and the like, by name.
        begun: when the study began, as ISO 8601; empty where that is not known.
        classes: that the network gives scores for; None where that is not known.
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
        """All of it as plain values that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Background:
        """The inverse of `to_dict`; what is missing is empty.

        >>> Background.from_dict({})
        Background(nodes=(), edges=(), sites=(), environment={}, begun='', classes=None, \
never_called=())
        """
        return cls(
            nodes=tuple(Node(**node) for node in content.get("nodes", ())),
            edges=tuple((first, second) for first, second in content.get("edges", ())),
            sites=tuple(SiteNote(**site) for site in content.get("sites", ())),
            environment=dict(content.get("environment", {})),
            begun=str(content.get("begun", "")),
            classes=content.get("classes"),
            never_called=tuple(content.get("never_called", ())),
        )
