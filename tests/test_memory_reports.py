"""What commands, tables and pictures say of faults in weights beside those in activations."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from campaign_page_tools import SITES, page_of, residual, write_store
from campaign_tools import SMALL
from commands import Run

from fxfault.campaign import Cell, Study
from fxfault.campaign.estimates.ranking import RankedSite, curves, heat_map
from fxfault.campaign.estimates.repeats import Distinct
from fxfault.campaign.records.background import Background
from fxfault.cli import campaign, evaluate, inspect
from fxfault.evaluation.rows import TrialRow
from fxfault.results.pictures.campaign_network_picture import network_picture
from fxfault.results.pictures.curves import curves_picture
from fxfault.results.pictures.heat_map import heat_picture
from fxfault.results.pictures.ranking import ranking_picture
from fxfault.results.reports.campaign_findings import Findings, read_findings
from fxfault.results.reports.campaign_plan import Measured, plan_lines
from fxfault.results.reports.campaign_report import ranking_lines, report_lines

KINDS = dict(zip(SITES, ("activations", "weights", "biases", "activations"), strict=True))
FAST = ("--config", "digits", "--batch-size", "250", "--no-progress")


# -- options ----------------------------------------------------------------------------------


@pytest.mark.parametrize("main", [evaluate.main, inspect.main])
@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("wights", "'wights' is none of activations, weights, biases, parameters (did you mean"),
        ("weights,", "'' is none of activations, weights"),
        ("", "'' is none of activations, weights"),
    ],
)
def test_a_memory_that_is_none_is_one_line(
    run_command: Callable[..., Run], main: Any, value: str, said: str
) -> None:
    run = run_command(main, "--config", "digits", "--memory", value)

    assert (run.status, run.out) == (2, "")
    assert run.err.startswith(f"error: --memory: {said}")
    assert run.err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--memory", "biases"), "no fault can strike its biases: classifier.3.bias"),
        (("--memory", "weights,activations", "--num-faults", "2"), "--num-faults: got 2"),
        (("--memory", "weights", "--layers", "features.2"), "features.2"),
    ],
)
def test_a_memory_that_does_not_fit_is_one_line(
    run_command: Callable[..., Run], options: tuple[str, ...], said: str
) -> None:
    run = run_command(evaluate.main, *FAST, *options)

    assert run.status == 2
    assert said in run.err
    assert run.err.count("\n") == 1


def test_faults_of_the_configuration_have_their_own_memory(run_command: Callable[..., Run]) -> None:
    faults = {"enabled": True, "faults": [{"probability": 1.0, "memory": "weights"}]}
    content = {key: SMALL[key] for key in ("dataset", "model", "quantization", "checkpoint")}
    Path("own.yaml").write_text(
        yaml.safe_dump({**content, "fault_injection": faults}), encoding="utf-8"
    )

    refused = run_command(evaluate.main, "--config", "own.yaml", "--memory", "activations")
    run = run_command(evaluate.main, "--config", "own.yaml", "--no-progress")

    assert refused.status == 2
    assert refused.err.startswith("error: --memory: own.yaml has `faults`, each with its own")
    assert "  Fault 1: random at 1 % in weights\n" in run.out


def test_counts_of_faults_in_weights_are_those_of_a_trial(run_command: Callable[..., Run]) -> None:
    options = ("--memory", "weights", "--num-faults", "3", "--num-runs", "2")

    run = run_command(evaluate.main, *FAST, *options)

    assert run.status == 0
    assert "  Memory: weights\n" in run.out
    assert "  Faults per trial: 3\n" in run.out
    assert "Evaluating with 3 faults per trial..." in run.out
    assert "(6 of 45600 values)" in run.out  # Two trials with the 22,800 weights.
    assert "per sample" not in run.out
    (document,) = Path().glob("*.json")
    written = json.loads(document.read_text(encoding="utf-8"))
    assert written["config"]["fault_injection"]["memory"] == ["weights"]
    assert {site["memory"] for site in written["injection_layers"]} == {"weights"}


def test_a_replayed_list_is_about_the_memory_that_is_given(run_command: Callable[..., Run]) -> None:
    Path("list.csv").write_text("site,sample,element,mask\nfeatures.0.weight,0,7,8\n")

    other = run_command(evaluate.main, *FAST, "--replay", "list.csv")
    run = run_command(evaluate.main, *FAST, "--replay", "list.csv", "--memory", "weights")

    assert other.status == 2
    assert (run.status, run.err) == (0, "")
    assert "(1 of 144 values)" in run.out


def test_the_inspection_shows_the_sites_of_the_memories(run_command: Callable[..., Run]) -> None:
    run = run_command(inspect.main, "--config", "digits", "--memory", "weights,activations")

    assert run.status == 0
    assert "QuantDigits: 10 sites" in run.out
    assert "random 5 % in weights and activations, mode" in run.out


# -- the plan ---------------------------------------------------------------------------------


def test_the_plan_counts_words_of_weights_once_and_a_trial_as_one_draw() -> None:
    study = Study.from_yaml("digits_weights_study")
    sites = {"act": 8, "a.weight": 4}
    cells = study.cells(list(sites), sites, {"a.weight": "weights"})
    counts: dict[str, Any] = {
        "samples": 500,
        "correct": 1,
        "golden_correct": 1,
        "sdc": 0,
        "critical_sdc": 0,
    }
    more: dict[str, Any] = {"top5": None, "faults": 1, "struck": 1, "masked": 1, "seconds": 1.0}
    first, last = cells[0], cells[-1]
    rows = [
        TrialRow(cell=first.key, trial=0, **counts, **more, elements=1000),
        TrialRow(cell=last.key, trial=0, **counts, **more, elements=500 * 64),
    ]
    everywhere = Cell.of(injection_type="random", probability=1.0, memory="weights")
    rows.append(dataclasses.replace(rows[0], cell=everywhere.key))

    measured = Measured(cells, rows, sites, {"a.weight": "weights"})
    text = "\n".join(plan_lines(study, measured, 1.0, 95.0, 1))

    # Leveugle: N / (1 + e**2 (N - 1) / (t**2 / 4)), rounded up, with e = 0.01 and t = 1.95996.
    assert "a.weight: 2,825 draws of 4,000 possible faults, 2,825 trials for each cell" in text
    assert "act: 9,257 samples of 256,000 possible faults, 19 trials for each cell" in text
    assert "all weights: 2,825 draws of 4,000 possible faults" in text
    assert "share faults of weights, so that it is one draw" in text


def test_the_place_of_several_faults_names_their_memory() -> None:
    entry = {"injection_type": "random", "probability": 1.0, "memory": "weights"}
    cell = Cell.of(faults={"both": [entry, {**entry, "memory": ["biases"]}]})
    assert (cell.place, cell.memories) == ("all weights biases", ("weights", "biases"))
    named = Cell.of(faults={"one": [{**entry, "layers": "a.weight"}]})
    assert (named.place, named.memories) == ("a.weight", ("weights",))
    assert Cell.of(faults={"old": [{"probability": 1.0}]}).place == "all"


# -- reports and pictures ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> Findings:
    """A small study of weights and activations that ran."""
    folder = tmp_path_factory.mktemp("study")
    axes = {
        "memory": ["weights", "activations"],
        "layers": ["each", "all"],
        "injection_type": "msb_flip",
        "probability": 5.0,
    }
    content = {**{key: value for key, value in SMALL.items() if key != "stop"}, "trials": 2}
    (folder / "study.yaml").write_text(yaml.safe_dump({**content, "axes": axes}), encoding="utf-8")
    store = str(folder / "store")
    assert campaign.main(["run", str(folder / "study.yaml"), "--store", store]) == 0
    return read_findings(Path(store))


def test_each_memory_has_its_own_curves_and_a_column(findings: Findings) -> None:
    drawn = curves(findings.summary)
    assert [(curve.place, curve.memories, curve.sites) for curve in drawn] == [
        ("each", ("weights",), 5),
        ("all weights", ("weights",), 1),
        ("each", ("activations",), 5),
        ("all", ("activations",), 1),
    ]
    titles = texts_of(curves_picture(drawn, {None: 10.0, "bundled:digits": 10.0}, "svg"))
    assert {"weights: each site alone, mean", "all weights"} <= set(titles)
    assert "activations: all sites together" in titles
    text = "\n".join(report_lines(findings))
    assert "| Memory      | Fault" in text
    assert "| Memory" in "\n".join(ranking_lines(findings.ranked, 95.0, findings.memories))


def test_counts_of_faults_in_weights_have_their_own_axis(findings: Findings) -> None:
    (first, *_) = curves(findings.summary)
    single = dataclasses.replace(first, counted=True, rates=(2.0,))
    ends = {name: getattr(first, name).repeat(2) for name in ("values", "low", "high")}
    counted = dataclasses.replace(single, rates=(1.0, 2.0), **ends)
    golden = {None: 10.0, "bundled:digits": 10.0}
    assert "Faults per trial (logarithmic)" in texts_of(curves_picture([counted], golden, "svg"))
    samples = dataclasses.replace(counted, memories=("activations",))
    assert "Faults per sample (logarithmic)" in texts_of(curves_picture([samples], golden, "svg"))
    texts = texts_of(curves_picture([single], golden, "svg"))
    assert "Accuracy lost (percentage points) at 2 faults per trial" in texts


def texts_of(picture: bytes) -> list[str]:
    root = ElementTree.fromstring(picture)
    return [part.text or "" for part in root.iter() if part.tag.endswith("text")]


def ranked_sites() -> list[RankedSite]:
    return [RankedSite(name, n, n, n, 5.0 - n, 0.0, 9.0, 1.0, 4) for n, name in enumerate(SITES, 1)]


def test_the_ranking_has_a_legend_only_for_several_memories() -> None:
    plain = ranking_picture(ranked_sites(), 95.0, "svg")
    assert ranking_picture(ranked_sites(), 95.0, "svg", dict.fromkeys(SITES, "weights")) == plain
    assert "activations" not in texts_of(plain)

    drawn = ranking_picture(ranked_sites(), 95.0, "svg", KINDS)

    assert {"activations", "weights", "biases"} <= set(texts_of(drawn))
    text = drawn.decode().lower()
    # A bar for each site, and the patch of the legend.
    assert [text.count(f"fill: {colour}") for colour in ("#0072b2", "#d55e00", "#009e73")] == [
        *(3, 2, 2),
    ]


def test_the_heat_map_groups_the_sites_by_memory(findings: Findings) -> None:
    found = heat_map(findings.summary)
    mixed = dataclasses.replace(
        found, sites=found.sites[::-1][::2] + found.sites[::2], values=found.values
    )
    mixed = dataclasses.replace(mixed, values=found.values[: len(mixed.sites)])
    memories = findings.memories
    sites = [
        text
        for text in texts_of(heat_picture(Distinct(mixed, {}), "svg", memories))
        if text in memories
    ]
    kinds = [memories[site] for site in sites]
    assert kinds == sorted(kinds)
    assert set(kinds) == {"activations", "weights"}
    shown = Distinct(mixed, {})
    assert heat_picture(shown, "svg", dict.fromkeys(mixed.sites, "weights")) == heat_picture(
        shown, "svg"
    )


def test_the_network_has_shapes_only_for_several_memories() -> None:
    plain = residual()
    noted = [dataclasses.replace(site, memory=KINDS[site.name]) for site in plain.sites]
    mixed: Background = dataclasses.replace(plain, sites=noted)

    assert "weights" not in texts_of(network_picture(plain, {}, "svg"))
    drawn = network_picture(mixed, {SITES[0]: 1.0}, "svg")

    assert {"activations", "weights", "biases", "not known"} <= set(texts_of(drawn))
    paths = {
        part.get("id"): next(inner.get("d") or "" for inner in part.iter() if inner.get("d"))
        for part in ElementTree.fromstring(drawn).iter()
        if (part.get("id") or "").startswith("site-") and not (part.get("id") or "").endswith("e")
    }
    corners = [paths[f"site-{index}"].count("L") for index in range(4)]
    curved = ["C" in paths[f"site-{index}"] for index in range(4)]
    assert curved == [True, False, False, True]
    assert corners[1] == corners[2] + 1  # A diamond, and a triangle.


def test_the_page_has_a_column_of_memories_only_if_there_are_several(tmp_path: Path) -> None:
    plain = residual()
    noted = [dataclasses.replace(site, memory=KINDS[site.name]) for site in plain.sites]
    write_store(tmp_path / "a", plain)
    write_store(tmp_path / "b", dataclasses.replace(plain, sites=noted))

    assert ">Memory<" not in page_of(tmp_path / "a", tmp_path / "a.html")
    text = page_of(tmp_path / "b", tmp_path / "b.html")
    assert text.count(">Memory<") == 2  # Of the ranking and of the sites.
    assert "body.0.act: weights, 8 bits" in text
