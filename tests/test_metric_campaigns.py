"""Studies with a metric: estimates, ranks, stop rule, store, reports, and stores from before."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from campaign_tools import small_study

from fxfault.campaign import Cell, StopRule
from fxfault.campaign.driver import run_study
from fxfault.campaign.estimates.cell_states import is_within
from fxfault.campaign.estimates.comparison import Side, compare
from fxfault.campaign.estimates.crossed import Changes, crossed_bootstrap
from fxfault.campaign.estimates.ranking import rank_sites, weakest
from fxfault.campaign.estimates.summary import Summary, summarise
from fxfault.campaign.records.store import Store
from fxfault.errors import FxFaultError, InvalidConfigError, StoreError
from fxfault.evaluation.rows import COUNTS, REALS
from fxfault.metrics.facts import DATA, MetricFacts
from fxfault.results.page.html import page
from fxfault.results.pictures.campaign_plots import pictures
from fxfault.results.reports.campaign_export import exported
from fxfault.results.reports.campaign_findings import read_findings
from fxfault.results.reports.campaign_report import comparison_lines, report_lines

PSNR = MetricFacts("psnr", "dB", True, 0.5)
ERROR = MetricFacts("error", "", False, 0.0)
NONE = ("correct", "golden_correct", "critical_sdc", "top5")


def cell(site: str = "a", rate: float = 1.0) -> Cell:
    return Cell.of(injection_type="random", probability=rate, layers=[site])


def table(changes: np.ndarray[Any, Any], golden: float, tolerance: float = 0.0) -> dict[str, Any]:
    """Rows of trials, from changes of shape (cells, trials, samples)."""
    cells, trials, samples = changes.shape
    flat = changes.reshape(-1, samples)
    rows = len(flat)
    made = {name: np.full(rows, np.nan) for name in (*COUNTS, *REALS, "seconds")}
    made["cell"] = np.repeat(np.arange(cells), trials)
    made["trial"] = np.tile(np.arange(trials), cells)
    made |= {name: np.zeros(rows) for name in ("due", "seconds")}
    made |= {name: np.full(rows, float(samples)) for name in ("samples", "struck", "elements")}
    made["faults"] = made["samples"] / 2
    moved = np.abs(flat) > tolerance
    made["sdc"], made["masked"] = moved.sum(1) * 1.0, (~moved).sum(1) * 1.0
    made["golden"], made["value"] = np.full(rows, golden), golden + flat.mean(1)
    made["squares"] = (flat**2).sum(1)
    return made


def held(summary: Summary, name: str, truth: float) -> float:
    """Percentage of the cells whose interval holds a truth."""
    found = summary[name]
    return 100 * float(((found.low <= truth) & (truth <= found.high)).mean())


# -- estimates --------------------------------------------------------------------------------

# Studies of 1,000 cells with 20 trials of 100 samples. An interval that is exact lies outside 93
# to 97 % of 1,000 with probability 0.4 %.


@pytest.mark.parametrize("metric", [PSNR, ERROR], ids=["higher is better", "lower is better"])
@pytest.mark.parametrize("kind", ["normal", "skewed", "shared"])
def test_intervals_of_real_valued_metrics_hold_the_truth(metric: MetricFacts, kind: str) -> None:
    random = np.random.default_rng(len(kind))
    size = (1000, 20, 100)
    changes, truth = random.normal(-0.3, 2.0, size), -0.3
    if kind == "skewed":  # Three of ten samples move, by a gamma variable.
        changes = -random.gamma(2.0, 1.5, size) * (random.random(size) < 0.3)
        truth = -0.9
    elif kind == "shared":  # A trial is one draw for all of its samples.
        changes = changes + random.normal(0.0, 0.5, (1000, 20, 1))
    cells = [cell(rate=1 + i / 100) for i in range(1000)]
    summary = summarise(table(changes, 30.0), cells, metric=metric)
    assert 93 <= held(summary, "measure", 30.0 + truth) <= 97
    fall = -truth if metric.higher_is_better else truth
    assert 93 <= held(summary, "fall", fall) <= 97
    assert np.allclose(summary["fall"].value, metric.loss(30.0, summary["measure"].value))
    assert (summary["fall"].low <= summary["fall"].high).all()


@pytest.mark.parametrize(("runs", "missing"), [(25, 0.0), (25, 0.05), (3, 0.0)])
def test_the_interval_for_other_samples_holds_the_truth(runs: int, missing: float) -> None:
    # An interval that is exact holds fewer than 90.5 % of 400 with probability 0.02 %. With three
    # runs it is careful, as samples scatter more, of which there are many.
    random, holds = np.random.default_rng(5), 0
    for _ in range(400):
        trials, samples = random.normal(0, 0.5, (runs, 1)), random.normal(0, 2.0, (1, 60))
        changes = 1.0 + trials + samples + random.normal(0, 0.5, (runs, 60))
        changes[random.random(changes.shape) < missing] = np.nan
        low, high = crossed_bootstrap(Changes.of(changes))
        holds += low <= 1.0 <= high
    assert 90.5 <= holds / 4 <= (98.5 if runs > 3 else 100)


def test_the_interval_for_other_samples_is_wider_than_that_of_trials() -> None:
    random = np.random.default_rng(2)
    changes = random.normal(1.0, 2.0, (1, 60)) + random.normal(0, 0.1, (25, 60))
    low, high = crossed_bootstrap(Changes.of(changes))
    summary = summarise(table(changes[None], 5.0), [cell()], metric=ERROR)
    assert high - low > 10 * float(summary["fall"].high[0] - summary["fall"].low[0])
    many = Changes.of(np.repeat(changes, 50, axis=1))  # 3,000 samples, in 1,000 runs of three.
    assert many.sums.shape == (25, 1000)
    assert many.counts.sum() == 25 * 3000
    assert np.isnan(crossed_bootstrap(Changes.of(changes[:1]))).all()
    assert np.isnan(crossed_bootstrap(Changes.of(np.zeros((9, 9))))).all()


def test_trials_without_a_value_are_left_out() -> None:
    rows = table(np.array([[[1.0], [3.0], [9.0]], [[0.0], [0.0], [0.0]]]), 10.0)
    rows["value"][2] = math.nan
    rows["due"][2] = 1
    summary = summarise(rows, [cell("a"), cell("b")], metric=PSNR)
    assert summary["measure"].value.tolist() == [12.0, 10.0]
    assert summary["measure"].n.tolist() == [2, 3]
    # No trial of the second cell moved the metric: nothing tells by how much one might.
    assert np.isnan([summary["measure"].low[1], summary["fall"].high[1]]).all()
    assert summary["sdc"].high[1] > 0


def test_the_stop_rule_takes_the_margin_of_the_metric() -> None:
    random = np.random.default_rng(0)
    wide = random.normal(-1.0, 0.1, (1, 30, 50)) + random.normal(0, 2.0, (1, 30, 1))
    quiet = np.zeros((1, 30, 50))
    rule = {"margin": 50.0, "confidence": 95.0}
    loud = summarise(table(wide, 30.0), [cell()], metric=PSNR)
    assert is_within(loud, StopRule(**rule, metric_margin=2.0)).tolist() == [True]
    assert is_within(loud, StopRule(**rule, metric_margin=0.2)).tolist() == [False]
    still = summarise(table(quiet, 30.0), [cell()], metric=PSNR)
    assert is_within(still, StopRule(margin=1.0, metric_margin=0.2)).tolist() == [True]
    assert is_within(still, StopRule(margin=0.01, metric_margin=0.2)).tolist() == [False]
    alone = MetricFacts("all", each=DATA)
    unknown = summarise(table(quiet, 30.0), [cell()], metric=alone)
    assert is_within(unknown, StopRule(margin=50.0, metric_margin=9.0)).tolist() == [False]


# -- ranking and comparison -------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-13, 1.0, 1e13])
def test_ranks_do_not_depend_on_the_unit(scale: float) -> None:
    random = np.random.default_rng(3)
    means = np.array([0.1, 2.0, 0.1, 1.0])[:, None, None]
    changes = random.normal(means, 1.0, (4, 12, 40)) * scale
    cells = [cell(site) for site in "abcd"]
    rows = table(changes, 7.0 * scale)
    found = rank_sites(rows, summarise(rows, cells, metric=ERROR))
    assert [site.name for site in found[:2]] == ["b", "d"]
    assert [(site.rank_low, site.rank_high) for site in found[:2]] == [(1, 1), (2, 2)]
    assert [site.name for site in weakest(found)] == ["b"]
    # A metric whose rise is a gain ranks the other way round.
    other = rank_sites(rows, summarise(rows, cells, metric=PSNR))
    assert other[-1].name == "b"
    assert weakest(other) == []


def test_studies_compare_by_the_better_side() -> None:
    random = np.random.default_rng(1)
    low, high = (random.normal(mean, 0.1, (1, 20, 30)) for mean in (0.5, 2.0))
    for metric, better in ((ERROR, 0), (PSNR, 1)):
        sides = [
            Side(rows, summarise(rows, [cell()], metric=metric), 7)
            for rows in (table(low, 5.0), table(high, 5.0))
        ]
        found = compare(*sides)
        assert found[0].value == pytest.approx(1.5, abs=0.1)
        assert found[0].favours_b == bool(better)
        assert found[0].b_better == float(better)
        text = "\n".join(comparison_lines(found, ("one", "two"), 95.0, metric))
        assert f"B is clearly better in {better}, A in {1 - better} of 1 cells." in text
        assert text.splitlines()[3].startswith(metric.name)
    mixed = Side(table(low, 5.0), summarise(table(low, 5.0), [cell()], metric=ERROR), 7)
    with pytest.raises(FxFaultError, match="the studies have other metrics: A has psnr"):
        compare(sides[0], mixed)


# -- studies ----------------------------------------------------------------------------------

AXES = {"layers": ["each"], "injection_type": ["random"], "probability": [5.0]}


def metric_study(metric: Any = "l2", **changes: Any) -> Any:
    return small_study(**{"metric": metric, "stop": None, "trials": 2, "axes": AXES, **changes})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("metric") / "study.sqlite"
    run_study(metric_study(), path, on_note=lambda text: None)
    return path


def test_a_study_with_a_metric_has_its_values_in_the_store(store: Path) -> None:
    with Store.open(store) as opened:
        rows, facts = opened.rows(), opened.fingerprint["metric"]
    assert facts == MetricFacts("l2", "", False, 0.0).to_dict()
    assert all(row.value is not None and row.value >= 0 == row.golden for row in rows)
    assert any(row.value for row in rows)
    assert all(getattr(row, name) is None for row in rows for name in NONE)


def test_reports_name_the_metric_and_not_the_accuracy(store: Path) -> None:
    findings = read_findings(store)
    text = "\n".join(report_lines(findings))
    assert "Metric: l2, lower is better, SDC if a sample moves by more than 0" in text
    assert "Golden l2: 0 (bundled:digits)" in text
    drawn = pictures(findings, "svg")
    assert set(drawn) == {"curves", "ranking", "heat_map", "network"}
    shown = page(findings)
    for part in (text, shown, *(picture.decode() for picture in drawn.values())):
        assert "ccuracy" not in part
        assert "l2" in part or part == drawn["heat_map"].decode()
    cells = list(csv.DictReader(io.StringIO(str(exported(findings, "cells", "csv")))))
    assert {"l2", "l2_low", "fall", "sdc", "golden"} <= set(cells[0])
    assert not {"accuracy", "critical_sdc", "top5"} & set(cells[0])
    document = json.loads(str(exported(findings, "trials", "json")))
    assert document["metric"]["name"] == "l2"
    assert {"value", "golden", "squares", "sdc"} <= set(document["rows"][0])
    assert not set(NONE) & set(document["rows"][0])


def test_a_store_goes_on_only_with_its_metric(store: Path, tmp_path: Path) -> None:
    copy = tmp_path / "study.sqlite"
    copy.write_bytes(store.read_bytes())
    for other in ({"name": "l2", "tolerance": 1.0}, "cosine", None):
        with pytest.raises(StoreError, match=r"holds trials of something else.*metric"):
            run_study(metric_study(other), copy)
    made = run_study(metric_study(trials=3), copy, on_note=lambda text: None)
    assert made.trials - made.earlier == len(made.cells)


def test_a_stop_rule_names_the_margin_of_a_metric() -> None:
    rule = {"margin": 5.0, "min_trials": 2, "max_trials": 4}
    with pytest.raises(InvalidConfigError, match=r"stop\.metric_margin: missing"):
        metric_study(trials=None, stop=rule)
    with pytest.raises(InvalidConfigError, match=r"stop\.metric_margin: got 1\.0"):
        metric_study(None, trials=None, stop={**rule, "metric_margin": 1.0})
    study = metric_study(trials=None, stop={**rule, "metric_margin": 1.0})
    assert type(study).from_dict(study.to_dict()) == study
    assert "metric_margin" not in small_study().to_dict()["stop"]


def test_a_store_from_before_metrics_opens_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "study.sqlite"
    run_study(metric_study(None), path, on_note=lambda text: None)
    with Store.open(path) as opened:
        before = opened.rows()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        for name in REALS:
            connection.execute(f"ALTER TABLE trials DROP COLUMN {name}")
        connection.execute("PRAGMA user_version = 2")
        connection.commit()
    with Store.open(path) as opened:
        assert opened.rows() == before
        assert np.isnan(opened.table()["value"]).all()
    assert "Golden accuracy" in "\n".join(report_lines(read_findings(path)))
    made = run_study(metric_study(None, trials=3), path, on_note=lambda text: None)
    assert made.trials - made.earlier == len(made.cells)
    with Store.open(path) as opened:
        assert [row for row in opened.rows() if row.trial < 2] == before
