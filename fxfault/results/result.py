"""What all results have in common: text, tables for notebooks and pandas, figures, and files."""

from __future__ import annotations

import importlib
import importlib.util
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxfault.errors import ConfigError
from fxfault.files.access import expanded
from fxfault.messages import got
from fxfault.results.outputs import OutputFile
from fxfault.results.pictures.drawing import FORMATS, check_matplotlib, new_figure, plot_settings

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

Content = Callable[[], "str | bytes"]
_WHAT = ("cells", "trials")


class Result(ABC):
    """What was measured, as an object that prints itself, draws itself, and saves itself."""

    _has_curve = False

    @abstractmethod
    def __str__(self) -> str:
        """The tables that the command prints."""

    @abstractmethod
    def _repr_html_(self) -> str:
        """A table, for a notebook."""

    @abstractmethod
    def _rows(self, what: str) -> list[Mapping[str, Any]]:
        """The rows of a table; `what` is `cells` or `trials`."""

    @abstractmethod
    def _draw(self, axes: Any, label: str | None) -> None:
        """Draw into some axes; `label` is what the legend calls the curve."""

    @abstractmethod
    def _files(self) -> Mapping[str, Content]:
        """What makes the content of a file that is no picture, by its ending."""

    @abstractmethod
    def _picture(self, file_format: str) -> bytes:
        """Draw a picture for a file."""

    def to_pandas(self, what: str = "cells") -> pandas.DataFrame:
        """Return a table for pandas.

        Args:
            what: `cells` for a row of estimates for each rate (and site), `trials` for a row of
                counts for each trial.

        Raises:
            ConfigError: pandas is not installed, or there is no such table.
        """
        if what not in _WHAT:
            raise ConfigError(f"what: got {got(what)}, allowed: 'cells' or 'trials'")
        if importlib.util.find_spec("pandas") is None:
            raise ConfigError("to_pandas: pandas is not installed; pip install pandas")
        return importlib.import_module("pandas").DataFrame(self._rows(what))

    def plot(self, ax: Axes | None = None, *, label: str | None = None) -> Axes:
        """Draw the result.

        The figure belongs to nobody but the axes: pyplot does not know it, and no style changes.
        In a notebook, `result.plot().figure` shows it.

        Args:
            ax: axes to draw into, for instance those of another result; None makes a figure.
            label: what the legend calls the curve of a sweep; None takes the fault model.

        Returns:
            The axes.

        Raises:
            ConfigError: matplotlib is not installed, `ax` are no axes, or there is a label for a
                result that is not one curve.
        """
        check_matplotlib("plot")
        if label is not None and not self._has_curve:
            raise ConfigError(f"label: got {got(label)}, allowed: None, as this is no sweep")
        if ax is None:
            with plot_settings():
                _, ax = new_figure(6.6, 4.0)
                self._draw(ax, label)
                return ax
        if not hasattr(ax, "get_legend_handles_labels"):
            raise ConfigError(f"ax: got {type(ax).__name__}, allowed: axes of matplotlib or None")
        self._draw(ax, label)
        return ax

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Save the result in the format of the ending; an existing file is replaced as a whole.

        Args:
            path: the file. `.json` has all that was found, `.csv` the table, `.png`, `.svg` and
                `.pdf` the figure; a study also has `.html` and `.parquet`.

        Returns:
            The path.

        Raises:
            ConfigError: the ending is another one, the file cannot be written, or a package is
                missing.
        """
        if not isinstance(path, (str, os.PathLike)):
            raise ConfigError(f"path: got {got(path)}, allowed: the path of a file")
        file = expanded(os.fspath(path))
        ending, files = file.suffix.lower().removeprefix("."), self._files()
        if ending not in (*files, *FORMATS):
            allowed = ", ".join(f".{name}" for name in (*files, *FORMATS))
            raise ConfigError(f"save: {file} does not end in one of {allowed}")
        output = OutputFile("save", file)
        if ending in files:
            return output.write(files[ending]())
        check_matplotlib("save")
        return output.write(self._picture(ending))
