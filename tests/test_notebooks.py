"""Where a progress bar shows: on a terminal and in a notebook, and which one."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from fxfault.results.calls import bar

Kernel = Any


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """Give a function that makes this process look like a kernel, with or without widgets."""
    real = importlib.util.find_spec

    def start(config: dict[str, Any], widgets: bool = True) -> None:
        module: Any = ModuleType("IPython")
        module.get_ipython = lambda: SimpleNamespace(config=config)
        monkeypatch.setitem(sys.modules, "IPython", module)
        found = {"ipywidgets": "found" if widgets else None}
        monkeypatch.setattr(
            "importlib.util.find_spec", lambda name: found[name] if name in found else real(name)
        )

    return start


def test_a_notebook_shows_a_bar_though_stderr_is_no_terminal(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert not bar.can_show_bar()
    assert bar.new_bar(3) is None
    kernel({"TerminalIPythonApp": {}})
    assert not bar.can_show_bar()
    kernel({"IPKernelApp": {}})
    assert bar.can_show_bar()


@pytest.mark.parametrize(("widgets", "module"), [(True, "tqdm.auto"), (False, "tqdm.std")])
def test_the_bar_of_a_notebook_is_a_widget_if_there_are_any(
    kernel: Kernel, widgets: bool, module: str
) -> None:
    pytest.importorskip("tqdm")
    from tqdm import auto, std

    kernel({"IPKernelApp": {}}, widgets)
    assert bar.bar_type() is {"tqdm.auto": auto.tqdm, "tqdm.std": std.tqdm}[module]


def test_outside_a_notebook_the_bar_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tqdm")
    from tqdm import std

    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert bar.bar_type() is std.tqdm


def test_the_figure_of_a_result_shows_itself() -> None:
    from fxfault.results.pictures.drawing import new_figure

    figure: Any = new_figure(2, 2)[0]
    assert figure._repr_png_().startswith(b"\x89PNG")
