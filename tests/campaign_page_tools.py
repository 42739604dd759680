"""Stores of invented trials, and pages made from them, for the tests of the report's page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fxfault.campaign import Cell, Study
from fxfault.campaign.records.background import Background, Node, SiteNote
from fxfault.campaign.records.store import Store
from fxfault.cli import campaign
from fxfault.evaluation.rows import TrialRow

SITES = ("stem.act", "body.0.act", "body.1.act", "head.act")
# Chance of a changed prediction at 5 %.
WEAKNESS = (0.04, 0.3, 0.1, 0.01)
HOSTILE = '<script>document.title="struck"</script>&$x_1$"\''


def residual(sites: Sequence[str] = SITES) -> Background:
    """Describe a network with a shortcut from the first of four sites to the last."""
    nodes = [
        Node("x", "input", "x"),
        Node("stem", "layer", "QuantConv2d"),
        *(Node(name, "site", "QuantReLU", name) for name in sites),
        Node("add", "operation", "add"),
        Node("output", "output", "output"),
    ]
    edges = [(0, 1), (1, 2), (2, 3), (3, 4), (2, 6), (4, 6), (6, 5), (5, 7)]
    # The addition comes before the last site.
    order = [0, 1, 2, 3, 4, 6, 5, 7]
    places = [order.index(number) for number in range(len(nodes))]
    notes = [
        SiteNote(name, i, "QuantReLU", 8 if i else 4, bool(i), 64 * (i + 1))
        for i, name in enumerate(sites)
    ]
    return Background(
        [nodes[number] for number in order],
        [(places[first], places[last]) for first, last in edges],
        notes,
        {"python": "3.11.7", "device": "cuda:0", "threads": "1"},
        "2026-11-22T05:00:00+00:00",
    )


def write_store(
    path: Path,
    background: Background | None = None,
    sites: Sequence[str] = SITES,
    trials: int = 4,
    **changes: Any,
) -> Study:
    """Write a store of invented trials; the first site of `sites` is never struck alone."""
    content: dict[str, Any] = {
        "dataset": {"name": "digits"},
        "model": {"name": "quant_digits"},
        "quantization": {"weight_bit_width": 4, "act_bit_width": 4},
        "checkpoint": {"path": "bundled:digits"},
        "axes": {
            "layers": ["each", "all"],
            "injection_type": ["random", "msb_flip"],
            "probability": [1, 5],
        },
        "trials": None if "stop" in changes else trials,
        **changes,
    }
    study = Study.from_dict(content)
    cells = [cell for cell in study.cells(sites) if cell.layers != (sites[0],)]
    weak = dict(zip(sites, WEAKNESS, strict=False))
    rows = [row for cell in cells for row in _invented(cell, trials, weak)]
    fingerprint = {
        "code": {"torch": "2.13.0"},
        "data": {"samples": 500, "labels": "ab" * 32},
        "networks": {"bundled:digits": {"state": "cd" * 32}},
    }
    with Store.create(path, study.to_dict(), fingerprint) as store:
        if background is not None:
            store.note(background.to_dict())
        store.register(cell.key for cell in cells)
        store.add(rows)
    return study


def _invented(cell: Cell, trials: int, weak: dict[str, float]) -> list[TrialRow]:
    twice = 2 if cell.injection_type == "msb_flip" else 1
    rate = cell.rate or 1.0
    total = sum(weak.get(site, 0.02) for site in cell.layers or weak)
    chance = min(0.9, total * twice * rate / 5)
    random = np.random.default_rng([7, round(rate), twice])
    found = []
    for number in range(trials):
        draws = random.random(500)
        sdc, critical = int((draws < chance).sum()), int((draws[:480] < chance).sum())
        struck = max(300, sdc)
        counts = (500, 480 - critical, 480, sdc, critical, 490, 50, 5000, struck, struck - sdc)
        found.append(TrialRow(cell.key, number, *counts, 0.25))
    return found


def page_of(store: Path, html: Path, *options: str) -> str:
    """Return the page that the command makes from a store."""
    status = campaign.main(["report", "--store", str(store), "--html", str(html), *options])
    assert status == 0
    return html.read_text(encoding="utf-8")
