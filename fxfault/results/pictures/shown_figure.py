"""A figure that shows itself in a notebook. Importing this module imports matplotlib."""

from __future__ import annotations

import io

from matplotlib.figure import Figure


class ShownFigure(Figure):  # type: ignore[misc]  # matplotlib is skipped by type checkers.
    """A figure that a notebook shows as it is, also if it never asked for matplotlib."""

    def _repr_png_(self) -> bytes:
        picture = io.BytesIO()
        self.savefig(picture, format="png")
        return picture.getvalue()
