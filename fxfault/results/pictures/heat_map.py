"""The map of sites and faults.

Importing this module does not import matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fxfault.campaign.estimates.ranking import HeatMap
from fxfault.campaign.estimates.repeats import Distinct
from fxfault.results.pictures.drawing import (
    INK,
    MEMORY_COLOURS,
    MOST_BARS,
    NOT_KNOWN,
    SCREEN,
    WEAKNESS,
    Look,
    memories_of,
    name_memories,
    new_figure,
    plot_settings,
    rendered,
    shortened,
)
from fxfault.results.reports.campaign_tables import at_rates

# Text on the colours of `WEAKNESS`, in light and dark schemes.
_ON_LIGHT, _ON_DARK = "#111111", "#fefefe"
# A heat map of more fields than this has no numbers in them.
_MOST_NUMBERS = 400
# Height of a row in a heat map of many sites, in inches.
_CLOSE = 0.17
_LONGEST_NARROW = 20  # Characters of a name in a narrow picture.
_NONE: Mapping[str, str] = {}


def heat_picture(
    found: Distinct,
    file_format: str,
    memories: Mapping[str, str] = _NONE,
    look: Look = SCREEN,
) -> bytes:
    """Draw the SDC rate, or what else a map has, by site and fault.

    Sites of one memory stand together.
    """
    sites, faults = found.map.sites, found.map.faults
    with plot_settings(look):
        width = 2.9 + 0.08 * max(map(len, sites)) + 0.62 * len(faults)
        height = 2.0 + (0.32 if len(sites) <= MOST_BARS else _CLOSE) * len(sites)
        figure, axes = new_figure(*look.of(max(4.0, width), max(2.6, height)))
        image = draw_heat_map(axes, found, memories, look)
        kinds = memories_of(memories, sites)
        if len(kinds) > 1:
            name_memories(figure, kinds, look)
        end: dict[str, Any] = {}
        if look.is_narrow:
            end = {"location": "top", "aspect": 40}
            # Below the whole picture, which is wider than its fields.
            figure.supxlabel(axes.get_xlabel(), fontsize=look.small)
            axes.set_xlabel("")
        rates = at_rates(found.map)
        if len(found.map.rates) > 4:
            rates = f"mean over {len(found.map.rates)} rates"
        small = look.small if look.is_narrow else None
        figure.colorbar(image, **end).set_label(
            f"{found.map.label}\n{rates}", labelpad=6, fontsize=small
        )
        return rendered(figure, file_format)


def draw_heat_map(
    axes: Any, distinct: Distinct, memories: Mapping[str, str] = _NONE, look: Look = SCREEN
) -> Any:
    """Draw the fields of a map on some axes; returns the image, from which a colour bar is made."""
    import matplotlib

    kinds = memories_of(memories, distinct.map.sites)
    if len(kinds) > 1:
        distinct = _grouped(distinct, memories, kinds)
    found = distinct.map
    shades = matplotlib.colormaps[WEAKNESS].with_extremes(bad=NOT_KNOWN)
    edges = [np.arange(size + 1) - 0.5 for size in found.values.shape[::-1]]
    style = {"edgecolors": "white", "linewidth": 0.8, "vmin": 0}
    if np.nanmin(found.values, initial=0.0) < 0:  # A cost may be a gain.
        del style["vmin"]
    image = axes.pcolormesh(*edges, found.values, cmap=shades, **style)
    axes.invert_yaxis()
    _name_axes(axes, distinct, look)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if len(kinds) > 1:
        for label, site in zip(axes.get_yticklabels(), found.sites, strict=True):
            label.set_color(MEMORY_COLOURS[memories.get(site, "activations")])
    _outline(axes, distinct)
    if found.values.size <= _MOST_NUMBERS:
        _write_numbers(axes, found, image, look)
    return image


def _name_axes(axes: Any, distinct: Distinct, look: Look) -> None:
    found, short = distinct.map, _short_names(distinct.map.faults)
    turned = {"rotation": 45, "ha": "right"} if look.is_narrow or _is_long(short) else {}
    axes.set_xticks(range(len(short)), short, **turned)
    longest = _LONGEST_NARROW if look.is_narrow else 36
    names = [shortened(site, longest) for site in found.sites]
    small = {"fontsize": 7.5} if len(names) > MOST_BARS else {}
    axes.set_yticks(range(len(names)), names, **small)
    notes = ["Fault"]
    if tuple(short) != found.faults:
        notes[0] = "Fault (bit: a bit_flip of it; 0 is the lowest)"
    if distinct.top:
        notes.append("outlined: the most significant bit, as msb_flip")
    if np.isnan(found.values).any():
        notes.append("grey: no such bit, or not measured")
    separator = "\n" if look.is_narrow else "; "
    axes.set_xlabel(notes[0] + "\n" + separator.join(notes[1:]) if notes[1:] else notes[0])
    axes.set_ylabel("Site struck alone")


def _short_names(faults: Sequence[str]) -> list[str]:
    """The faults with `bit` for `bit_flip`, unless another fault takes a bit.

    >>> _short_names(["random", "bit_flip 0"]), _short_names(["stuck_at_0 1", "bit_flip 1"])
    (['random', 'bit 0'], ['stuck_at_0 1', 'bit_flip 1'])
    """
    takes_bits = {fault.rpartition(" ")[0] for fault in faults if " " in fault}
    if takes_bits != {"bit_flip"}:
        return list(faults)
    return [fault.replace("bit_flip ", "bit ") for fault in faults]


def _is_long(names: Sequence[str]) -> bool:
    return max(map(len, names)) > 7


def _grouped(distinct: Distinct, memories: Mapping[str, str], kinds: Sequence[str]) -> Distinct:
    """The same heat map with the sites of each memory below each other."""
    found = distinct.map
    places = [kinds.index(memories.get(site, "activations")) for site in found.sites]
    order = sorted(range(len(places)), key=places.__getitem__)  # It keeps the order within one.
    sites = tuple(found.sites[index] for index in order)
    top = tuple((order.index(row), column) for row, column in distinct.top)
    return replace(distinct, map=replace(found, sites=sites, values=found.values[order]), top=top)


def _outline(axes: Any, distinct: Distinct) -> None:
    from matplotlib.patches import Rectangle

    for row, column in distinct.top:
        corner = column - 0.47, row - 0.47
        axes.add_patch(Rectangle(corner, 0.94, 0.94, fill=False, edgecolor=INK, linewidth=1.3))


def _write_numbers(axes: Any, found: HeatMap, image: Any, look: Look) -> None:
    size = 8.0
    if look.size is not None or look.is_narrow:
        width = (look.of(3.5, 3.0)[0] - 1.3) * 72 / len(found.faults)  # Points of a field.
        size = min(8.0, width / 2.4)
        if size < 5:  # Nobody reads them; the table has the numbers.
            return
    for row, values in enumerate(found.values.tolist()):
        for column, value in enumerate(values):
            if not math.isnan(value):
                text = f"{value:.3g}"
                if found.label == HeatMap.label:
                    text = f"{value:.1f}" if value < 99.95 else "100"
                colour = _ON_LIGHT if image.norm(value) < 0.7 else _ON_DARK
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=size)
