"""What all pictures have in common: fonts and sizes, names that fit, and files.

Importing this module does not import matplotlib.
"""

from __future__ import annotations

import importlib.util
import io
from typing import TYPE_CHECKING, Any

from fxfault.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")
MOST_BARS = 40

_LONGEST_NAME = 36
_SETTINGS = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "savefig.dpi": 150,
    "svg.fonttype": "none",
    "text.parse_math": False,  # A name is data: no sign of it means anything.
    "svg.hashsalt": "fxfault",  # The same picture has the same bytes.
}


def check_matplotlib(flag: str) -> None:
    """Check before the work that anything can be drawn.

    Args:
        flag: of the command line that asks for it.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(f'{flag}: matplotlib is not installed; pip install "fxfault[cli]"')


def shortened(name: str, longest: int = _LONGEST_NAME) -> str:
    """Cut the middle out of a long name, as both ends tell more, and what no picture can hold.

    >>> shortened("backbone.stage_three.block_eleven.attention.softmax")
    'backbone.stage_thr…attention.softmax'
    """
    name = "".join(sign if sign.isprintable() else "�" for sign in name)
    if len(name) <= longest:
        return name
    head = longest // 2
    return f"{name[:head]}…{name[-(longest - head - 1) :]}"


def plot_settings() -> Any:
    """Draw with our fonts, sizes and colours inside this context, and as before after it."""
    import matplotlib

    return matplotlib.rc_context(_SETTINGS)


def new_figure(width: float, height: float, **grid: Any) -> tuple[Figure, Any]:
    """Make a figure of some size in inches, and its axes; `grid` as for `Figure.subplots`."""
    # Not pyplot: it keeps a global list of figures and may look for a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(**grid)


def rendered(figure: Figure, file_format: str) -> bytes:
    """The bytes of a picture file: `png`, `svg` or `pdf`."""
    # Without the time of drawing, the same results give the same file.
    undated: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    picture = io.BytesIO()
    figure.savefig(picture, format=file_format, metadata=undated.get(file_format))
    return picture.getvalue()
