"""What all pictures share: fonts, sizes, colours, axes of rates, bars, and files.

Importing this module does not import matplotlib.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fxfault.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")
MOST_BARS = 40
# With more rates or epochs than this, not each of them gets a tick or a marker.
MOST_TICKS = 12

# Those of Okabe and Ito, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
# What a page in a dark scheme changes; see `fxfault.results.pictures.campaign_plots.dark_scheme`.
INK, MUTED, LINE, GRID, NOT_KNOWN = "#000000", "#555555", "#8c8c8c", "#e6e6e6", "#d9d9d9"
GREY = "#666666"
# A colour map: the more accuracy is lost, the darker.
WEAKNESS = "YlOrRd"

_LONGEST_NAME = 36
_LONGEST_TITLE = 80
_SETTINGS = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "savefig.dpi": 150,
    "svg.fonttype": "none",
    "text.parse_math": False,  # The $ in a name is no formula.
    "svg.hashsalt": "fxfault",  # So that the same picture has the same bytes.
}
# A column of a paper is 3.5 inches wide (IEEE, ACM), and so is a phone.
_COLUMN = 3.5
_STYLES: dict[str, dict[str, Any]] = {
    "screen": {"font.size": 10},
    "phone": {"font.size": 9},
    "paper": {
        "font.size": 8,
        "font.family": "STIXGeneral",  # Like Times; it comes with matplotlib.
        "axes.linewidth": 0.6,
        "lines.linewidth": 1.1,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "pdf.fonttype": 42,  # Publishers refuse Type 3.
        "svg.fonttype": "path",
    },
}
STYLES = ("screen", "paper")


@dataclass(frozen=True)
class Look:
    """For what pictures are drawn, and how large.

    >>> Look().of(6.6, 4.0), Look("paper").of(6.6, 4.0), Look("paper", (7.0, 3.0)).of(6.6, 4.0)
    ((6.6, 4.0), (3.5, 4.0), (7.0, 3.0))

    Attributes:
        style: `screen`, `paper` (one column, fonts like its text), or `phone` for the page.
        size: width and height of each picture, in inches; None for what suits its content.
    """

    style: str = "screen"
    size: tuple[float, float] | None = None

    def of(self, width: float, height: float) -> tuple[float, float]:
        """The size of a picture that would be so wide and high on a wide screen, in inches."""
        if self.size is not None:
            return self.size
        return width if self.style == "screen" else min(width, _COLUMN), height

    @property
    def is_narrow(self) -> bool:
        """Whether a picture has the width of one column."""
        return (self.size[0] if self.size else 9.0 if self.style == "screen" else _COLUMN) < 5.0

    @property
    def small(self) -> float:
        """The size of fonts in legends and notes, in points."""
        return 0.86 * float(_STYLES[self.style]["font.size"])


SCREEN = Look()


def check_matplotlib(flag: str) -> None:
    """Check before the work that matplotlib is installed, which an option (`flag`) needs."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(f'{flag}: matplotlib is not installed; pip install "fxfault[cli]"')


def shortened(name: str, longest: int = _LONGEST_NAME) -> str:
    """Cut out the middle of a long name, and replace characters that cannot be drawn.

    >>> shortened("backbone.stage_three.block_eleven.attention.softmax")
    'backbone.stage_thr…attention.softmax'
    """
    name = "".join(sign if sign.isprintable() else "�" for sign in name)
    if len(name) <= longest:
        return name
    head = longest // 2
    return f"{name[:head]}…{name[-(longest - head - 1) :]}"


def plot_settings(look: Look = SCREEN) -> Any:
    """A context in which matplotlib draws with the fonts and sizes of a look."""
    import matplotlib

    return matplotlib.rc_context({**_SETTINGS, **_STYLES[look.style]})


def new_figure(width: float, height: float, **grid: Any) -> tuple[Figure, Any]:
    """Make a figure and its axes; the size is in inches, `grid` is for `Figure.subplots`."""
    # Not pyplot, which keeps a global list of figures and may look for a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(**grid)


# The colour of bars and names, and the corners of marks (0: round), by what is struck.
MEMORY_COLOURS = {"activations": BLUE, "weights": ORANGE, "biases": GREEN, "parameters": PINK}
MEMORY_CORNERS = {"activations": 0, "weights": 4, "biases": 3, "parameters": 5}


def memories_of(memories: Mapping[str, str], names: Iterable[str]) -> list[str]:
    """The different memories of some sites, in the order of `MEMORY_COLOURS`.

    >>> memories_of({"conv.weight": "weights"}, ["conv.weight", "act"])
    ['activations', 'weights']
    """
    found = {memories.get(name, "activations") for name in names}
    return [kind for kind in MEMORY_COLOURS if kind in found]


def name_memories(figure: Figure, shown: Sequence[str], look: Look = SCREEN) -> None:
    """Add a legend of the colours of some memories above everything else."""
    from matplotlib.patches import Patch

    patches = [Patch(color=MEMORY_COLOURS[kind], label=kind) for kind in shown]
    style = {"frameon": False, "fontsize": look.small, "handlelength": 1.2}
    figure.legend(handles=patches, loc="outside upper left", ncols=len(shown), **style)


def draw_bars(axes: Any, names: Sequence[str], lengths: Sequence[float], **style: Any) -> None:
    """Draw a horizontal bar for each name, the first at the top; `style` is for `Axes.barh`."""
    axes.barh(range(len(names)), lengths, height=0.7, **{"color": BLUE, **style})
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.grid(axis="x", color=GRID)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)


def draw_whiskers(
    axes: Any, values: Sequence[float], low: Sequence[float], high: Sequence[float]
) -> None:
    """Draw the intervals of horizontal bars; a NaN draws none."""
    below = [value - end for value, end in zip(values, low, strict=True)]
    above = [end - value for value, end in zip(values, high, strict=True)]
    axes.errorbar(
        values, range(len(values)), xerr=[below, above], fmt="none",
        ecolor=INK, elinewidth=1.2, capsize=3,
    )  # fmt: skip


def size_of_bars(names: Sequence[str], look: Look) -> tuple[float, float]:
    """The size of a figure with a bar for each name, in inches."""
    room = 0.28 if look.style == "screen" else 0.24
    width = 5.4 + 0.08 * max(map(len, names))
    return look.of(width, max(1.7, 1.2 + room * len(names)))


def set_headline(axes: Any, text: str) -> None:
    """Write a line above the axes, shortened to fit."""
    axes.set_title(shortened(text, _LONGEST_TITLE), fontsize="medium", loc="left")


def scale_rates(axes: Any, rates: Sequence[float], widest: float) -> bool:
    """Scale the axis of rates, and label each rate if there are few.

    Returns whether it is logarithmic: if two positive rates have a ratio of `widest` or more.
    """
    from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

    positive = [rate for rate in rates if rate > 0]
    is_wide = bool(positive) and max(positive) >= widest * min(positive)
    if is_wide and len(positive) < len(rates):
        # This axis has a place for 0; a logarithmic one has none.
        axes.set_xscale("symlog", linthresh=min(positive), linscale=0.5)
    elif is_wide:
        axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: format(rate, "g")))
    axes.xaxis.set_minor_formatter(NullFormatter())
    if len(rates) <= MOST_TICKS:
        axes.set_xticks(rates)
        axes.xaxis.set_minor_locator(NullLocator())
    return is_wide


def rendered(figure: Figure, file_format: str) -> bytes:
    """Give the bytes of a picture file in one of `FORMATS`."""
    # No time of drawing, so that the same results give the same file.
    undated: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    picture = io.BytesIO()
    figure.savefig(picture, format=file_format, metadata=undated.get(file_format))
    return picture.getvalue()
