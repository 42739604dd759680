"""The pictures of results: what they show, on a screen and in a paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from campaign_page_tools import residual, write_store
from matplotlib.figure import Figure

from fxfault.campaign.estimates.ranking import Curve, HeatMap, RankedSite
from fxfault.campaign.estimates.repeats import Distinct, without_repeats
from fxfault.cli import campaign
from fxfault.metrics.facts import ACCURACY
from fxfault.results.pictures.campaign_plots import not_drawn, pictures
from fxfault.results.pictures.curves import curves_picture, draw_curves, draw_losses
from fxfault.results.pictures.drawing import Look
from fxfault.results.pictures.heat_map import draw_heat_map, heat_picture
from fxfault.results.pictures.ranking import draw_ranking
from fxfault.results.reports.campaign_findings import read_findings

RATES = (1.0, 5.0, 20.0)


def curve(fault: str, loss: float, place: str = "each", **more: Any) -> Curve:
    """A curve that loses so much at the highest of three rates."""
    values = 99.0 - loss * np.array([0.05, 0.3, 1.0])
    rates = more.pop("rates", RATES)
    part = values[-len(rates) :]
    return Curve(place, fault, None, rates, part, part - 0.5, part + 0.5, sites=5, **more)


def texts_of(picture: bytes) -> list[str]:
    root = ElementTree.fromstring(picture)
    return [part.text or "" for part in root.iter() if part.tag.endswith("text")]


def axes_of() -> Any:
    return Figure().subplots()


# -- curves ---------------------------------------------------------------------------------


def test_a_panel_has_few_lines_in_colour_and_the_costliest_are_those() -> None:
    axes = axes_of()
    drawn = [curve(f"bit_flip {bit}", 2.0**bit) for bit in range(7)]

    draw_curves(axes, drawn, golden=99.0)

    named = [line.get_label() for line in axes.lines if line.get_marker() not in ("", "None")]
    assert named == ["bit_flip 6", "bit_flip 5", "bit_flip 4", "bit_flip 3"]
    labels = axes.get_legend_handles_labels()[1]
    assert labels == [*named, "bit_flip 0 to 2", "golden, no faults"]
    assert len({line.get_color() for line in axes.lines if line.get_label() in named}) == 4


def test_a_mean_over_some_sites_has_a_panel_of_its_own() -> None:
    drawn = [curve("random", 30.0), curve("bit_flip 7", 60.0, "a", partial=True)]
    titles = texts_of(curves_picture(drawn, {None: 99.0}, "svg"))
    assert {"each site alone, mean", "5 sites alone: a"} <= set(titles)


def test_a_single_rate_is_drawn_as_bars() -> None:
    axes = axes_of()
    drawn = [curve("random", 30.0, rates=(5.0,)), curve("msb_flip", 50.0, rates=(5.0,))]

    draw_losses(axes, drawn, golden=99.0)

    assert [bar.get_width() for bar in axes.patches] == pytest.approx([30.0, 50.0])
    assert axes.get_xlabel() == "Accuracy lost (percentage points) at 5%"
    texts = texts_of(curves_picture(drawn, {None: 99.0}, "svg"))
    assert "Accuracy lost (percentage points) at 5%" in texts


@pytest.mark.parametrize(("loss", "shown"), [(80.0, True), (3.0, False)])
def test_chance_is_drawn_where_lines_come_near_it(loss: float, shown: bool) -> None:
    texts = texts_of(curves_picture([curve("random", loss)], {None: 99.0}, "svg", chance=10.0))
    assert ("chance (10%)" in texts) is shown


def test_panels_that_are_left_out_are_counted() -> None:
    drawn = [curve("random", 9.0, f"site{number}") for number in range(8)]
    texts = texts_of(curves_picture(drawn, {None: 99.0}, "svg"))
    assert any("2 more groups of sites are not drawn" in text for text in texts)


# -- the map --------------------------------------------------------------------------------


def bits(*rows: tuple[float, ...]) -> HeatMap:
    """A map of `msb_flip` and of two bits."""
    faults = ("msb_flip", "bit_flip 0", "bit_flip 1")
    return HeatMap(tuple("ab"[: len(rows)]), faults, np.array(rows), ("1%",))


@pytest.mark.parametrize(
    ("rows", "widths"),
    [
        (((9.0, 1.0, 9.0), (4.0, 2.0, 4.5)), {"a": 2, "b": 2}),  # Not the same.
        (((9.0, 9.0, 1.0),), {"a": 2}),  # The same as another bit.
        (((9.0, 1.0, 9.0),), {"a": 3}),  # The word has a higher bit, which was not struck.
        (((9.0, 1.0, 9.0),), {"a": None}),  # Nobody knows.
    ],
)
def test_a_column_that_may_be_another_fault_stays(
    rows: tuple[tuple[float, ...], ...], widths: dict[str, int | None]
) -> None:
    distinct = without_repeats(bits(*rows), widths)
    assert distinct.map.faults == ("msb_flip", "bit_flip 0", "bit_flip 1")
    assert (distinct.top, distinct.note) == ((), "")


def test_the_same_fault_has_one_column_and_an_outline() -> None:
    found = without_repeats(bits((9.0, 1.0, 9.0), (4.0, 4.0, np.nan)), {"a": 2, "b": 1})
    assert found.map.faults == ("bit_flip 0", "bit_flip 1")
    assert found.top == ((0, 1), (1, 0))
    assert found.note == "Not shown twice: msb_flip is the flip of the most significant bit."
    axes = axes_of()
    draw_heat_map(axes, found)
    assert len(axes.patches) == 2
    texts = texts_of(heat_picture(found, "svg"))
    assert {"Site struck alone", "bit 0", "bit 1"} <= set(texts)
    assert any("grey: no such bit, or not measured" in text for text in texts)
    assert "at 1%" in texts


# -- on given axes, and in a paper ----------------------------------------------------------


def test_every_chart_draws_on_given_axes() -> None:
    axes = Figure(figsize=(8, 6)).subplots(2, 2)
    draw_curves(axes[0, 0], [curve("random", 30.0)], 99.0, ACCURACY, 10.0)
    draw_losses(axes[0, 1], [curve("random", 30.0, rates=(5.0,))], 99.0)
    draw_ranking(axes[1, 0], [RankedSite("a", 1, 1, 1, 5.0, 4.0, 6.0, 7.0, 4)])
    draw_heat_map(axes[1, 1], Distinct(bits((9.0, 1.0, 9.0)), {}))
    assert all(panel.get_xlabel() for panel in axes.flat)


def test_a_paper_gets_vectors_of_one_column_in_its_fonts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_store(tmp_path / "s", residual())
    folder = tmp_path / "pictures"
    asked = ["report", "--store", str(tmp_path / "s"), "--figures", str(folder)]

    assert campaign.main([*asked, "--style", "paper"]) == 0

    names = ("accuracy", "heat_map", "network", "ranking")
    assert sorted(path.name for path in folder.iterdir()) == [
        f"{name}.{ending}" for name in names for ending in ("pdf", "svg")
    ]
    for path in folder.glob("*.svg"):
        root = ElementTree.fromstring(path.read_bytes())
        assert float(root.attrib["width"].removesuffix("pt")) <= 3.5 * 72 + 0.5
        assert not [part for part in root.iter() if part.tag.endswith("text")]  # Outlines.
    content = (folder / "ranking.pdf").read_bytes()
    assert b"STIX" in content
    assert b"/Type3" not in content


def test_pictures_have_the_size_that_is_asked_for(tmp_path: Path) -> None:
    write_store(tmp_path / "s", residual())
    drawn = pictures(read_findings(tmp_path / "s"), "svg", Look(size=(7.0, 3.0)))
    sizes = {}
    for name, picture in drawn.items():
        root = ElementTree.fromstring(picture)
        sizes[name] = [float(root.attrib[key].removesuffix("pt")) for key in ("width", "height")]
    network = sizes.pop("network")
    assert all(size == pytest.approx([504.0, 216.0]) for size in sizes.values())
    assert network[0] <= 504.0


@pytest.mark.parametrize("size", ["7", "7x", "axb", "900x600", "0x3", "7x3x1", "nanx3"])
def test_a_size_that_is_none_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], size: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        campaign.main(["report", "--store", str(tmp_path / "s"), "--figure-size", size])
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert "--figure-size" in err
    assert "such as 3.5x2.4" in err
    assert err.count("\n") == 1


def test_nothing_is_drawn_where_nothing_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("campaign_page_tools.WEAKNESS", (0.0,) * 4)
    axes = {"layers": "each", "probability": [1, 5]}
    write_store(tmp_path / "s", residual(), axes=axes)
    findings = read_findings(tmp_path / "s")

    assert not_drawn(findings) == ["accuracy", "ranking", "heat_map"]
    assert set(pictures(findings, "svg")) == {"network"}
    folder = str(tmp_path / "pictures")
    assert campaign.main(["report", "--store", str(tmp_path / "s"), "--figures", folder]) == 0
    assert "Not drawn, as no fault moved anything in it: heat_map" in capsys.readouterr().out
