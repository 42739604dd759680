"""Write graphs in the DOT language, and let Graphviz turn them into pictures."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence

from fxfault.errors import FxFaultError

Style = Mapping[str, str]

STYLES: dict[str, Style] = {
    "input or output": {"shape": "box", "style": "filled,rounded", "fillcolor": "#d9e2ec"},
    "layer": {"shape": "box", "style": "filled", "fillcolor": "#ffffff"},
    "fault target": {"shape": "box", "style": "filled,bold", "fillcolor": "#fff3c4"},
    "operation": {"shape": "ellipse", "style": "filled", "fillcolor": "#f0f0f0"},
    "own forward or graph": {"shape": "box3d", "style": "filled", "fillcolor": "#e8dcf5"},
    "fault, armed": {
        "shape": "octagon",
        "margin": "0.02,0.02",
        "style": "filled",
        "fillcolor": "#f4a09a",
        "color": "#a61b1b",
        "penwidth": "2",
    },
    "fault, not armed": {
        "shape": "octagon",
        "margin": "0.02,0.02",
        "style": "filled,dashed",
        "fillcolor": "#fdecea",
        "color": "#a61b1b",
    },
}
LABEL_WIDTH = 34

# With more edges `dot` takes minutes for its best layout (densenet121: 1,164 edges and 630 nodes).
# These settings cut its search short and draw straight lines, which takes seconds.
_MANY_EDGES = 800
_HURRIED: Style = {"nslimit": "0.3", "nslimit1": "1", "mclimit": "0.05", "splines": "line"}
_SECONDS = 300


def digraph(name: str, title: str, nodes: Sequence[str], edges: Sequence[str]) -> str:
    """A whole graph with a title and a legend, of lines for its nodes and edges."""
    head = {
        "rankdir": "TB",
        "fontname": "Helvetica",
        "nodesep": "0.25",
        "ranksep": "0.3",
        "labelloc": "t",
        "labeljust": "l",
        **(_HURRIED if len(edges) > _MANY_EDGES else {}),
    }
    return "\n".join(
        [
            f"digraph {quoted(name)} {{",
            f"  graph [{attributes(head)}, label={_legend(title)}];",
            '  node [fontname="Helvetica", fontsize="10", height="0.3", margin="0.12,0.05"];',
            '  edge [color="#555555", arrowsize="0.6", fontname="Helvetica", fontsize="9"];',
            *nodes,
            *edges,
            "}",
            "",
        ]
    )


def _legend(title: str) -> str:
    """An HTML-like label of a title and a swatch of each kind of node."""
    cells = ""
    for kind, style in STYLES.items():
        text = f"{kind} ({style['shape']})" if kind.startswith("fault,") else kind
        cells += f'<TD BGCOLOR="{style["fillcolor"]}" COLOR="{style.get("color", "#555555")}">'
        cells += f'<FONT POINT-SIZE="9">{html.escape(text)}</FONT></TD>'
    return (
        f'<<TABLE BORDER="0" CELLBORDER="1" CELLSPACING="4" CELLPADDING="3"><TR>'
        f'<TD BORDER="0" COLSPAN="{len(STYLES)}"><B>{html.escape(title)}</B></TD></TR>'
        f"<TR>{cells}</TR></TABLE>>"
    )


def node_attributes(kind: str, label: list[str], tooltip: str = "") -> str:
    """The attributes of a node of a kind of `STYLES`; long lines of its label are folded."""
    text = "\n".join(line for part in label for line in _folded(part))
    return attributes({"label": text, "tooltip": tooltip or text, **STYLES[kind]})


def _folded(text: str) -> list[str]:
    """Fold a long text after spaces and dots.

    >>> _folded("FAULT 6: encoder.layers.encoder_layer_0.self_attention.v_quant")
    ['FAULT 6: encoder.layers.', 'encoder_layer_0.self_attention.', 'v_quant']
    """
    lines = [""]
    for part in re.findall(r"[^. ]+[. ]*|[. ]+", text):
        if len(lines[-1] + part) > LABEL_WIDTH and lines[-1]:
            lines.append("")
        lines[-1] += part
    return [line.rstrip() for line in lines]


def attributes(values: Mapping[str, str]) -> str:
    """A list of attributes."""
    return ", ".join(f"{key}={quoted(value)}" for key, value in values.items())


def quoted(text: str, line_end: str = "\\n") -> str:
    r"""A DOT string; unescaped, DOT reads `\N` as the node's name and `&lt;` as a character.

    >>> print(quoted('say "\\N"'))
    "say \"\\N\""
    """
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("&", "&amp;")
    lines = escaped.splitlines()
    return '"' + line_end.join([*lines, ""] if line_end == "\\l" else lines) + '"'


def svg_of(text: str) -> str:
    """Turn a graph in the DOT language into an SVG picture, with Graphviz's `dot`.

    Raises:
        FxFaultError: Graphviz is not installed, fails, or takes more than five minutes.
    """
    program = shutil.which("dot")
    if program is None:
        raise FxFaultError(
            "an SVG drawing needs Graphviz, whose program `dot` was not found; install it "
            "(Debian and Ubuntu: apt-get install graphviz; macOS: brew install graphviz), or "
            "write the DOT text (--dot FILE, to_dot) and render it elsewhere"
        )
    try:
        done = subprocess.run(
            [program, "-Tsvg"], input=text.encode(), capture_output=True, timeout=_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise FxFaultError(
            f"Graphviz did not finish in {_SECONDS} seconds; write the DOT text (--dot FILE, "
            "to_dot) and render it with another of its layouts"
        ) from error
    if done.returncode:
        raise FxFaultError(f"Graphviz failed: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout.decode()
