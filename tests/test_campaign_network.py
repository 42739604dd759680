"""What a store notes of a network, where its drawing places it, and what is drawn."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from brevitas.nn import QuantReLU
from campaign_page_tools import HOSTILE, SITES, residual
from campaign_tools import small_study
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from zoo import TORCHVISION, ZOO, Entry

import fxfault
from fxfault.campaign.driver import run_study
from fxfault.campaign.records.background import CONTAINER, INPUT, OUTPUT, SITE, Background, Node
from fxfault.campaign.records.store import Store
from fxfault.campaign.workers.outline import background_of
from fxfault.results.pictures.campaign_network import Strip, contract, lay_out
from fxfault.results.pictures.campaign_network_picture import network_picture
from fxfault.results.pictures.drawing import Look
from fxfault.sites.fault_sites import faults_of

KINDS = ("operation", "operation", "layer", "site", "container")
DRAWN = [entry for entry in ZOO if entry.name in ("kept_inside", "modes", "recurrent", "resnet12")]


def noted(model: nn.Module) -> Background:
    """What is noted of a model."""
    config = {"enabled": True, "probability": 5.0, "apply_during": "eval", "seed": 1}
    faulty = fxfault.transform(model, config)
    faults = faults_of(faulty)
    return background_of(faulty, faults, dict.fromkeys(faults.names, 8), torch.device("cpu"))


# -- what is noted --------------------------------------------------------------------------


@pytest.mark.parametrize("entry", [*DRAWN, TORCHVISION[2]], ids=lambda entry: entry.name)
@pytest.mark.filterwarnings("ignore")  # Brevitas's flow warns of its own deprecation.
def test_every_site_that_runs_is_noted_once_and_edges_lead_forward(entry: Entry) -> None:
    background = noted(entry())

    names = [node.site for node in background.nodes if node.kind == SITE]
    assert len(names) == len(set(names))
    # One site of `modes` is in its graph for training alone.
    assert len(names) == entry.sites - (entry.name == "modes")
    assert set(names) <= {site.name for site in background.sites}
    assert all(first < last for first, last in background.edges)
    plain = background.to_dict()
    assert Background.from_dict(json.loads(json.dumps(plain))) == Background.from_dict(plain)


def test_a_shortcut_is_noted() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.linear, self.last = QuantReLU(), nn.Linear(4, 4), QuantReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.act(x)
            return self.last(self.linear(x) + x)

    background = noted(Residual().eval())

    kinds = [node.kind for node in background.nodes]
    assert kinds == ["input", "layer", "site", "layer", "operation", "layer", "site", "output"]
    assert background.nodes[2] == Node("act", SITE, "QuantReLU", "act")
    assert set(background.edges) == {(0, 1), (1, 2), (2, 3), (2, 4), (3, 4), (4, 5), (5, 6), (6, 7)}


def test_a_run_notes_the_network_and_compares_nothing_with_it(tmp_path: Path) -> None:
    study, path = small_study(stop=None, trials=1), tmp_path / "s.sqlite"
    run_study(study, path)
    with Store.open(path, write=True) as store:
        background, rows = Background.from_dict(store.background), store.rows()
        assert "background" not in json.dumps(store.fingerprint)
        # As an earlier version left it.
        store._connection.execute("DELETE FROM about WHERE name = 'background'")

    assert [site.name for site in background.sites][:2] == ["input_quant", "features.2"]
    assert [site.elements for site in background.sites] == [64, 1024, 2048, 512, 64]
    assert [site.signed for site in background.sites] == [True, *[False] * 4]
    assert [site.bit_width for site in background.sites] == [8, 4, 4, 4, 4]
    assert background.begun.endswith("+00:00")
    assert background.environment["threads"] == str(torch.get_num_threads())

    with Store.open(path) as store:
        assert store.background == {}
    run_study(study, path)

    with Store.open(path) as store:
        again = Background.from_dict(store.background)
        assert (again.nodes, again.edges, again.sites) == (
            background.nodes,
            background.edges,
            background.sites,
        )
        assert again.begun == ""  # Nobody knows any more.
        assert store.rows() == rows


# -- where it is placed ---------------------------------------------------------------------


@st.composite
def networks(draw: st.DrawFn) -> tuple[list[Node], list[tuple[int, int]]]:
    """Graphs with an input in front, whose edges lead forward."""
    count = draw(st.integers(1, 140))
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=count, max_size=count))
    nodes = [Node("x", INPUT, "x")]
    edges = []
    for number, kind in enumerate(kinds, start=1):
        site = f"s{number}" if kind == "site" else None
        nodes.append(Node(f"n{number}", kind, "n", site))
        near = st.integers(max(0, number - 12), number - 1)
        edges += [(first, number) for first in draw(st.lists(near, max_size=3, unique=True))]
    return [*nodes, Node("output", OUTPUT, "output")], [*edges, (count, count + 1)]


@given(networks(), st.integers(1, 3))
@settings(max_examples=150, deadline=None)
def test_a_layout_keeps_its_laws(
    network: tuple[list[Node], list[tuple[int, int]]], most: int
) -> None:
    nodes, edges = network

    strip = lay_out(nodes, edges, most)

    placed = [place.node for place in strip.places]
    kept = {n for n, node in enumerate(nodes) if node.kind in (INPUT, OUTPUT, SITE, CONTAINER)}
    assert placed == sorted(set(placed))
    assert kept <= set(placed)
    assert len({(place.column, place.row) for place in strip.places}) == len(placed)
    assert {place.column for place in strip.places} <= set(range(min(most, len(strip.lanes))))
    assert all(place.row < strip.rows for place in strip.places)
    assert all(place.lane < strip.lanes[place.column] for place in strip.places)
    assert all(first < last for first, last in strip.edges)
    assert_no_line_runs_through_a_node(strip)
    assert_values_in_a_lane_do_not_meet(strip)


def assert_no_line_runs_through_a_node(strip: Strip) -> None:
    for first, last in strip.edges:
        lane = strip.places[first].lane
        assert all(strip.places[between].lane != lane for between in range(first + 1, last))


def assert_values_in_a_lane_do_not_meet(strip: Strip) -> None:
    ends: dict[int, int] = {}
    for first, last in strip.edges:
        ends[first] = max(ends.get(first, first), last)
    for first, end in ends.items():
        for other, other_end in ends.items():
            if first < other and strip.places[first].lane == strip.places[other].lane:
                assert end <= other, (first, end, other, other_end)


@given(networks())
@settings(max_examples=100, deadline=None)
def test_a_contraction_keeps_which_site_reaches_which(
    network: tuple[list[Node], list[tuple[int, int]]],
) -> None:
    nodes, edges = network

    shown, kept = contract(nodes, edges)

    whole, part = reached(len(nodes), edges), reached(len(shown), kept)
    for second, last in enumerate(shown):
        before = {shown.index(first) for first in whole[last] if first in shown}
        assert part[second] == before
    joins = [n for n in range(len(shown)) if nodes[shown[n]].kind in ("layer", "operation")]
    assert all(sum(last == join for _, last in kept) > 1 for join in joins)
    assert all(any(first == join for first, _ in kept) for join in joins)


def reached(count: int, edges: list[tuple[int, int]]) -> list[set[int]]:
    """The nodes that lead to each."""
    found: list[set[int]] = [set() for _ in range(count)]
    for number in range(count):
        for first, last in edges:
            if last == number:
                found[number] |= {first} | found[first]
    return found


def test_a_chain_is_a_straight_line_and_a_shortcut_a_second_one() -> None:
    background = residual()

    strip = lay_out(background.nodes, background.edges)

    names = [background.nodes[place.node].name for place in strip.places]
    assert names == ["x", *SITES[:3], "add", SITES[3], "output"]
    assert [place.lane for place in strip.places] == [0, 0, 1, 1, 0, 0, 0]
    assert strip.lanes == (2,)


def test_a_long_network_is_folded_and_values_go_on_in_the_next_column() -> None:
    nodes = [Node(f"n{i}", SITE, "QuantReLU", f"n{i}") for i in range(80)]
    edges = [*((i, i + 1) for i in range(79)), (0, 79)]

    strip = lay_out(nodes, edges)

    assert (strip.rows, len(strip.lanes)) == (40, 2)
    assert strip.lanes == (2, 2)
    assert [place.column for place in strip.places] == [0] * 40 + [1] * 40


# -- what is drawn --------------------------------------------------------------------------


def test_sites_have_the_colour_of_what_they_cost_and_unknown_ones_are_grey() -> None:
    falls = {SITES[1]: 9.0, SITES[2]: 1.0, SITES[3]: -0.2}

    svg = ElementTree.fromstring(network_picture(residual(), falls, "svg"))

    parts = {element.get("id"): element for element in svg.iter() if element.get("id")}
    colours = [_fill(parts[f"site-{index}"]) for index in range(4)]
    assert colours[0] == "#d9d9d9"
    assert colours[1] == "#800026"  # The end of the scale.
    assert colours[3] == "#ffffcc"  # And its beginning.
    assert len(set(colours)) == 4
    texts = [element.text for element in svg.iter() if element.tag.endswith("text")]
    assert {"9.00", "1.00", "-0.20", "–", "not known", "add", *SITES} <= set(texts)
    assert texts.count("QuantReLU") == 4
    assert (texts.count("4 bit"), texts.count("8 bit")) == (1, 3)
    assert network_picture(residual(), falls, "png").startswith(b"\x89PNG")
    assert network_picture(residual(), falls, "svg") == network_picture(residual(), falls, "svg")


@pytest.mark.parametrize(
    ("falls", "said", "colour"),
    [
        ({}, "No site was struck alone: no colours", "#d9d9d9"),
        (dict.fromkeys(SITES, 0.0), "No site lost accuracy when struck alone", "#ffffcc"),
    ],
)
def test_a_scale_without_a_loss(falls: dict[str, float], said: str, colour: str) -> None:
    svg = ElementTree.fromstring(network_picture(residual(), falls, "svg"))

    texts = [element.text for element in svg.iter() if element.tag.endswith("text")]
    assert said in texts
    assert not [text for text in texts if text and "e−" in text]  # Of a scale of next to nothing.
    parts = {element.get("id"): element for element in svg.iter() if element.get("id")}
    assert {_fill(parts[f"site-{index}"]) for index in range(4)} == {colour}


@pytest.mark.parametrize("look", [Look(), Look("paper"), Look("phone"), Look(size=(4.0, 3.0))])
def test_a_picture_is_as_wide_as_its_content(look: Look) -> None:
    long = [f"features.{number}.a_name_of_some_length" for number in range(4)]
    for sites in (SITES, long):
        falls = dict.fromkeys(sites, 1.0)
        svg = ElementTree.fromstring(network_picture(residual(sites), falls, "svg", look=look))
        width = float(svg.attrib["width"].removesuffix("pt"))
        assert width <= 72 * look.of(960 / 72, 1.0)[0] + 0.5
        assert width > 150
        if look.style == "screen" and look.size is None:
            # Of the right end no more than a value and the margin.
            ends = re.findall(r"(?:translate\(|x=\")([\d.]+)", ElementTree.tostring(svg).decode())
            assert max(map(float, ends)) > width - 60


def _fill(group: ElementTree.Element) -> str:
    style = next(element.get("style") for element in group.iter() if element.get("style"))
    return style.partition("fill: ")[2][:7]  # type: ignore[union-attr]


def test_a_hostile_name_is_drawn_as_text() -> None:
    sites = (HOSTILE, "$a$", "b\x07", "c" * 300)

    svg = ElementTree.fromstring(network_picture(residual(sites), {}, "svg"))

    texts = [element.text for element in svg.iter() if element.tag.endswith("text")]
    assert "$a$" in texts
    assert "b�" in texts
    assert not [element for element in svg.iter() if element.tag.endswith("script")]
    assert any(text and text.startswith("<script>") for text in texts)
