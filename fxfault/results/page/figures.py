"""Parts of a web page made from matplotlib's SVG pictures, with its colours, fonts and links."""

from __future__ import annotations

import re
from collections.abc import Mapping
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
_OWN_LINK = re.compile(r"url\(#([^)]*)\)")
_FONT = re.compile(r"font-family:[^;]*;?")
# Pixels of the page for each point of a picture.
_PIXELS = 96 / 72
# The smallest width of a picture on the page, as a share of its own width.
_SMALLEST = 0.75


def inlined(
    picture: bytes,
    name: str,
    title: str,
    description: str,
    *,
    scheme: Mapping[str, str],
    links: Mapping[str, tuple[str, str]] | None = None,
) -> str:
    """Make a matplotlib SVG part of a page: an `svg` element without any outside address.

    Args:
        picture: the SVG file.
        name: name of the picture on the page, the prefix of its ids.
        title: short title.
        description: what the picture shows.
        scheme: colours, in lower case, that the page sets with CSS variables (`variable`).
        links: address (`#row`) and text of each link, by the id of a part of the picture. The part
            with `-name` after that id becomes the same link.
    """
    svg = ElementTree.fromstring(picture)
    for parent in list(svg.iter()):
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):
                parent.remove(child)
    for element in svg.iter():
        element.tag = _local(element.tag)
        attributes = {_local(key): value for key, value in element.attrib.items()}
        element.attrib.clear()
        element.attrib.update(
            (key, _rewritten(key, value, name, scheme)) for key, value in attributes.items()
        )
    for part, (address, text) in (links or {}).items():
        _link(svg, f"{name}-{part}", address, text)
    width, height = (float(svg.attrib[key].removesuffix("pt")) for key in ("width", "height"))
    svg.attrib.update(
        {
            "width": f"{width * _PIXELS:.0f}",
            "height": f"{height * _PIXELS:.0f}",
            # So that on a narrow screen the box scrolls, and the picture stays readable.
            "style": f"min-width: {_SMALLEST * width * _PIXELS:.0f}px",
            "role": "group" if links else "img",
            "aria-labelledby": f"{name}-title {name}-desc",
        }
    )
    svg.attrib.pop("version", None)
    for place, (tag, text) in enumerate((("title", title), ("desc", description))):
        note = Element(tag, {"id": f"{name}-{tag}"})
        note.text = text
        svg.insert(place, note)
    return ElementTree.tostring(svg, encoding="unicode")


def width_of(picture: bytes) -> float:
    """The width of a matplotlib SVG, in points."""
    return float(ElementTree.fromstring(picture).attrib["width"].removesuffix("pt"))


def variable(colour: str) -> str:
    """The CSS variable of a colour.

    >>> variable("#0072B2")
    '--c0072b2'
    """
    return f"--c{colour.lstrip('#').lower()}"


def _local(name: str) -> str:
    """A name without its XML name space."""
    return name.rpartition("}")[2]


def _rewritten(key: str, value: str, name: str, scheme: Mapping[str, str]) -> str:
    """The value of an attribute, with ids, colours and fonts of the page."""
    if key == "id":
        return f"{name}-{value}"
    if key == "href" and value.startswith("#"):
        return f"#{name}-{value[1:]}"
    value = _OWN_LINK.sub(rf"url(#{name}-\1)", value)
    if key in ("style", "fill", "stroke"):
        value = _FONT.sub("", value)
        value = _COLOUR.sub(lambda found: _coloured(found[0].lower(), scheme), value)
    return value


def _coloured(colour: str, scheme: Mapping[str, str]) -> str:
    return f"var({variable(colour)})" if colour in scheme else colour


def _link(svg: Element, part: str, address: str, text: str) -> None:
    """Make a link of a part and its name, in the place of the part."""
    parents = {child: parent for parent in svg.iter() for child in parent}
    found = {element.get("id"): element for element in svg.iter()}
    members = [found[name] for name in (part, f"{part}-name") if name in found]
    if not members:
        return
    link = Element("a", {"href": address, "class": "site"})
    title = Element("title")
    title.text = text
    link.append(title)
    home = parents[members[0]]
    home.insert(list(home).index(members[0]), link)
    for member in members:
        parents[member].remove(member)
        link.append(member)
