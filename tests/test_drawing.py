"""Drawings: what they show, and that Graphviz takes them."""

from __future__ import annotations

import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import brevitas.nn as qnn
import pytest
from torch import Tensor, nn
from zoo import HAND_WRITTEN, Attention, Branching, Entry, KeptInside, Modes

from fxfault.errors import FxFaultError, SiteError
from fxfault.passes import dot_text
from fxfault.passes.drawing import to_dot, to_svg

Faulty = Callable[..., Any]

needs_graphviz = pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not there")


@pytest.fixture
def chain() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), qnn.QuantReLU(bit_width=4), nn.Linear(4, 4))


def nodes(text: str) -> dict[str, str]:
    """The attributes of each node by the first line of its label (later ones win)."""
    found = re.findall(r"^ *n\d+ \[(label=\"(.*?)(?:\\n.*)?\".*)\];$", text, re.MULTILINE)
    return {label: attributes for attributes, label in found}


def edges(text: str) -> list[str]:
    """The edges, with the first line of each label in place of a name; dashed ones `..>`."""
    labels = dict(re.findall(r"^ *(n\d+) \[label=\"(.*?)(?:\\n|\")", text, re.MULTILINE))
    found = re.findall(r"^ *(n\d+) -> (n\d+)(.*);$", text, re.MULTILINE)
    arrows = [(labels[a], "..>" if "dashed" in style else "->", labels[b]) for a, b, style in found]
    return [" ".join(arrow) for arrow in arrows]


def test_one_node_for_each_step_of_the_data(chain: nn.Module, faulty: Faulty) -> None:
    assert edges(to_dot(faulty(chain))) == [
        "input input ..> begin_forward",
        "input input -> Linear",
        "Linear -> QuantReLU",
        "QuantReLU -> FAULT 0: 1",
        "FAULT 0: 1 -> Linear",
        "Linear -> output",
    ]


def test_layers_show_type_and_path(chain: nn.Module, faulty: Faulty) -> None:
    assert 'label="QuantReLU\\n1"' in nodes(to_dot(faulty(chain)))["QuantReLU"]


def test_an_armed_fault_has_its_own_colour_and_shape(chain: nn.Module, faulty: Faulty) -> None:
    text = to_dot(faulty(chain, probability=2.5, injection_type="msb_flip"))

    fault = nodes(text)["FAULT 0: 1"]
    assert 'label="FAULT 0: 1\\nmsb_flip 2.5 %"' in fault
    assert 'shape="octagon"' in fault
    assert 'fillcolor="#f4a09a"' in fault
    assert text.count("octagon") == 1 + 2  # The node, and two lines of the legend.


def test_a_fault_that_is_not_armed_is_dashed_and_says_why(chain: nn.Module, faulty: Faulty) -> None:
    fault = nodes(to_dot(faulty(chain, apply_during="train").eval()))["FAULT 0: 1"]

    assert "dashed" in fault
    assert "not armed: apply_during is" in fault


def test_the_legend_names_every_kind_of_node(chain: nn.Module, faulty: Faulty) -> None:
    text = to_dot(faulty(chain))

    assert "<B>Sequential: 1 site, 1 armed in train mode (seed 0)</B>" in text
    for kind in ("layer", "fault target", "operation", "fault, armed (octagon)"):
        assert f">{kind}</FONT>" in text


def test_operations_show_their_literals_but_not_names_of_values(faulty: Faulty) -> None:
    class Reshaping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = qnn.QuantReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(x).reshape(x.shape[0], -1)

    labels = nodes(to_dot(faulty(Reshaping())))

    assert {"getattr(·, 'shape')", "getitem(·, 0)", "reshape(·, ·, -1)"} <= labels.keys()


def test_a_kept_container_is_a_frame_with_its_reason(faulty: Faulty) -> None:
    text = to_dot(faulty(Attention()))

    assert "kept with its own forward: it is a layer of\\la library\\l" in text
    assert "QuantMultiheadAttention ..> QuantIdentity" in edges(text)
    assert r"FAULT 1: attention.in_proj.\ninput_quant" in text
    assert "FAULT 4: attention.q_scaled_quant" in text


def test_a_kept_model_is_a_frame_with_all_its_sites(branching: nn.Module, faulty: Faulty) -> None:
    text = to_dot(faulty(branching))

    assert edges(text) == ["_Branching ..> QuantIdentity", "_Branching ..> QuantReLU"]
    assert "kept with its own forward" in text


def test_a_graph_for_each_mode_is_drawn(faulty: Faulty) -> None:
    text = to_dot(faulty(Branching()))

    assert 'label="in eval mode\\l"' in text
    assert 'label="in train mode\\l"' in text
    assert text.count("FAULT 0: act") == 2
    assert text.count("FAULT 1: auxiliary") == 1


def test_a_traced_container_is_a_thin_frame(faulty: Faulty) -> None:
    text = to_dot(faulty(Modes()))

    assert 'label="FunctionalDropout dropout\\l"' in text
    assert "own graph: its forward branches on" in text


@pytest.mark.parametrize("entry", HAND_WRITTEN, ids=lambda entry: entry.name)
def test_every_network_is_drawn_with_all_its_sites(entry: Entry, faulty: Faulty) -> None:
    model = faulty(entry())
    text = to_dot(model)

    folded = text.replace("\\n", "")
    for site in model.faults:
        assert f"FAULT {site.index}: {site.name}".replace(" ", "") in folded.replace(" ", "")
    assert text.count("{") == text.count("}")


def test_edges_stand_outside_the_frames(faulty: Faulty) -> None:
    # Inside one, an edge would draw the nodes at both ends into the frame.
    depth = 0
    for line in to_dot(faulty(KeptInside())).splitlines():
        assert depth == 1 or " -> " not in line
        depth += line.endswith("{")
        depth -= line.strip() == "}"


def test_a_long_path_is_folded(faulty: Faulty) -> None:
    outer = nn.Sequential()
    outer.add_module("a_rather_long_name", nn.Sequential())
    outer.a_rather_long_name.add_module("of_an_activation_layer", qnn.QuantReLU())

    label = "QuantReLU\\na_rather_long_name.\\nof_an_activation_layer"
    assert f'label="{label}"' in to_dot(faulty(outer))


class Nasty:
    name = 'a "b" \\N <i> &lt; -> y'

    def corrupt(self, codes: Tensor, word: Any, draw: Any) -> Tensor:
        return codes


def test_names_are_quoted(chain: nn.Module, faulty: Faulty) -> None:
    text = to_dot(faulty(chain, injection_type=Nasty()))

    assert 'a \\"b\\" \\\\N <i> &amp;lt; -> y 100 %"' in text


@needs_graphviz
def test_a_quoted_name_arrives(chain: nn.Module, faulty: Faulty) -> None:
    picture = ElementTree.fromstring(to_svg(faulty(chain, injection_type=Nasty())))

    texts = [element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert 'a "b" \\N <i> &lt; -> y 100 %' in texts


def test_a_model_without_sites_is_refused(chain: nn.Module) -> None:
    with pytest.raises(SiteError, match=r"call fxfault.transform"):
        to_dot(chain)


def test_a_very_large_graph_is_laid_out_in_a_hurry(chain: nn.Module, faulty: Faulty) -> None:
    assert "nslimit" not in to_dot(faulty(chain))
    for edges, hurried in ((100, False), (1000, True)):
        text = dot_text.digraph("large", "A large one", [], ["  a -> b;"] * edges)
        assert ('nslimit="0.3"' in text) is hurried


# -- Graphviz -------------------------------------------------------------------------------


def test_without_graphviz_the_error_says_what_to_install(
    chain: nn.Module, faulty: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)

    with pytest.raises(FxFaultError, match=r"apt-get install graphviz.*--dot FILE"):
        to_svg(faulty(chain))


def test_a_graphviz_that_fails_is_quoted(
    chain: nn.Module, faulty: Faulty, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "dot"
    program.write_text("#!/bin/sh\ncat > /dev/null\necho no fonts >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(program))

    with pytest.raises(FxFaultError, match="Graphviz failed: no fonts"):
        to_svg(faulty(chain))


@needs_graphviz
def test_an_svg_shows_the_faults(chain: nn.Module, faulty: Faulty) -> None:
    picture = ElementTree.fromstring(to_svg(faulty(chain)))

    texts = [element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert picture.tag == "{http://www.w3.org/2000/svg}svg"
    assert {"FAULT 0: 1", "random 100 %", "QuantReLU"} <= set(texts)


@needs_graphviz
@pytest.mark.parametrize("entry", HAND_WRITTEN, ids=lambda entry: entry.name)
def test_graphviz_takes_every_drawing(entry: Entry, faulty: Faulty) -> None:
    text = to_dot(faulty(entry()))

    done = subprocess.run(["dot", "-Tsvg"], input=text.encode(), capture_output=True, check=True)
    assert done.stderr == b""
