"""Scores that are not finite: counted in plain Python, in old stores, and in reports."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch
from campaign_page_tools import page_of, write_store
from campaign_tools import outcome, small_study
from test_compiled_runner import Backend, runner_with
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fxfault
from fxfault.campaign import Cell
from fxfault.campaign.cell_result import CellResult
from fxfault.campaign.driver import run_study
from fxfault.campaign.estimates.intervals import wilson
from fxfault.campaign.estimates.ranking import rank_sites
from fxfault.campaign.estimates.summary import summarise, table_of
from fxfault.campaign.records.connection import SCHEMA
from fxfault.campaign.records.store import Store
from fxfault.evaluation.chance import doubt_of
from fxfault.evaluation.full.runner import FullRunner
from fxfault.evaluation.incremental.runner import IncrementalRunner
from fxfault.evaluation.rows import FIELDS, REALS, TrialRow, measure
from fxfault.results.reports.campaign_export import exported
from fxfault.results.reports.campaign_findings import read_findings
from fxfault.results.reports.campaign_report import report_lines
from fxfault.results.reports.evaluation_export import _common_entry, to_csv
from fxfault.results.reports.evaluation_report import Findings, ranking_lines, sweep_lines

SAMPLES = 24

# The tables of a store of schema 1, as they were written.
OLD_TRIALS = """
CREATE TABLE trials (
    cell INTEGER NOT NULL REFERENCES cells (id),
    trial INTEGER NOT NULL, samples INTEGER NOT NULL, correct INTEGER NOT NULL,
    golden_correct INTEGER NOT NULL, sdc INTEGER NOT NULL, critical_sdc INTEGER NOT NULL,
    top5 INTEGER, faults INTEGER NOT NULL, elements INTEGER NOT NULL, struck INTEGER NOT NULL,
    masked INTEGER NOT NULL,
    seconds REAL NOT NULL,
    PRIMARY KEY (cell, trial)
) WITHOUT ROWID
"""


# -- counts ---------------------------------------------------------------------------------


def faulty_net() -> Any:
    torch.manual_seed(5)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    with torch.no_grad():
        next(net.parameters()).mul_(3)
    settings = {"enabled": True, "apply_during": "eval", "seed": 3, "injection_type": "bit_flip"}
    words = {"word": "ieee", "targets": ["Linear"], "bit": 30, "probability": 4.0}
    return fxfault.transform(net, {**settings, **words})


def batches() -> Any:
    torch.manual_seed(6)
    images = torch.randn(SAMPLES, 4)
    images[3], images[17] = float("nan"), float("inf")  # No prediction without faults.
    return DataLoader(TensorDataset(images, torch.arange(SAMPLES) % 3), batch_size=7)


def scores_of(model: Any, data: Any, strikes: bool) -> list[list[float]]:
    """The scores of all samples, with the faults of the present trial or without any."""
    found, done = [], 0
    model.faults.enabled = strikes
    with torch.no_grad():
        for images, _ in data:
            with model.faults.samples(torch.arange(done, done + len(images))):
                found += model(images).tolist()
            done += len(images)
    model.faults.enabled = True
    return found


def predicted(scores: list[float]) -> int | None:
    if any(math.isnan(s) or s == math.inf for s in scores) or max(scores) == -math.inf:
        return None
    return scores.index(max(scores))


def test_the_counts_are_those_of_plain_python() -> None:
    model, data = faulty_net(), batches()
    runner = FullRunner(model, data)
    golden = runner.golden()
    before = [predicted(scores) for scores in scores_of(model, data, strikes=False)]
    assert [number for number, was in enumerate(before) if was is None] == [3, 17]
    totals = dict.fromkeys(("correct", "sdc", "critical_sdc", "masked", "due"), 0)
    for trial in range(12):
        model.faults.reset(trial=trial)
        made = runner.run()
        assert made.struck is not None
        row = measure(golden, made, cell="x", trial=0, faults=0, elements=1, seconds=0.1)
        model.faults.reset(trial=trial)
        after = [predicted(scores) for scores in scores_of(model, data, strikes=True)]
        expected = dict.fromkeys(totals, 0)
        for number, (was, now) in enumerate(zip(before, after, strict=True)):
            label, struck = number % 3, bool(made.struck[number])
            expected["correct"] += now == label
            if was is None:
                continue
            expected["due"] += now is None
            expected["sdc"] += now is not None and now != was
            expected["critical_sdc"] += now is not None and was == label and now != label
            expected["masked"] += struck and now == was
        assert {name: getattr(row, name) for name in totals} == expected
        assert row.golden_correct == sum(was == n % 3 for n, was in enumerate(before))
        # Each struck sample with a golden prediction is one of three.
        known = sum(
            bool(hit) for hit, was in zip(made.struck, before, strict=True) if was is not None
        )
        assert row.masked + row.sdc + row.due == known
        totals = {name: count + expected[name] for name, count in totals.items()}
    assert all(totals.values()), totals


@pytest.mark.parametrize("kind", ["incremental", "compiled"])
def test_runners_agree_where_scores_are_not_finite(kind: str) -> None:
    model, data = fxfault.freeze(faulty_net()), batches()
    full = FullRunner(model, data)
    other: Any = IncrementalRunner(model, data, verify=100.0)
    if kind == "compiled":
        other = runner_with(FullRunner(model, data), Backend())
    assert torch.equal(other.golden().top, full.golden().top)
    lost = 0
    for trial in range(8):
        model.faults.reset(trial=trial)
        expected = full.run()
        model.faults.reset(trial=trial)
        found = other.run()
        assert torch.equal(found.top, expected.top)
        assert found.struck is not None
        assert expected.struck is not None
        assert torch.equal(found.struck, expected.struck)
        lost += expected.unpredicted - full.golden().unpredicted
    assert lost > 0


def test_samples_without_a_golden_prediction_are_named() -> None:
    golden = FullRunner(faulty_net(), batches()).golden()
    assert golden.unpredicted == 2
    assert "the scores of 2 of 24 samples are not finite" in str(doubt_of(golden))


# -- stores ---------------------------------------------------------------------------------


def made_old(path: Path) -> None:
    """Turn a store into one of schema 1, which has no `due`."""
    names = ", ".join(["cell", *(name for name in FIELDS[1:] if name not in ("due", *REALS))])
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            f"ALTER TABLE trials RENAME TO young; {OLD_TRIALS}; INSERT INTO trials ({names}) "
            f"SELECT {names} FROM young; DROP TABLE young; PRAGMA user_version = 1"
        )


def columns_of(path: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return [
            name for (name,) in connection.execute("SELECT name FROM pragma_table_info('trials')")
        ]


def schema_of(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])


def test_a_store_of_schema_1_reports_as_before_and_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    write_store(path)
    new = report_lines(read_findings(path)), outcome(path)
    made_old(path)
    assert "due" not in columns_of(path)
    assert (report_lines(read_findings(path)), outcome(path)) == new
    with Store.open(path) as store:
        assert store.table()["due"].tolist() == [0] * len(store.rows())
    with Store.open(path, write=True) as store:
        assert store.rows()
    assert (schema_of(path), "due" in columns_of(path)) == (1, False)


def test_the_column_comes_with_the_first_trial_that_is_added(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    write_store(path)
    made_old(path)
    with Store.open(path) as reader, Store.open(path, write=True) as store:
        old = store.rows()
        assert {row.due for row in old} == {0}
        store.add([old[0]])  # It is there already, and compared with what is stored.
        more = dataclasses.replace(old[0], trial=99, sdc=0, correct=400, due=7)
        store.add([more])
        # The reader opened the store when it lacked the column.
        assert [row.due for row in reader.rows() if row.trial == 99] == [7]
        assert int(reader.table()["due"].sum()) == 7
        with pytest.raises(fxfault.FxFaultError, match="came again with other counts"):
            store.add([dataclasses.replace(more, due=6)])
    assert (schema_of(path), columns_of(path).count("due")) == (SCHEMA, 1)


def test_a_study_of_schema_1_is_resumed(tmp_path: Path) -> None:
    whole, part = tmp_path / "whole.sqlite", tmp_path / "part.sqlite"
    rule = {"margin": 6.0, "min_trials": 2, "max_trials": 3}
    few = {"margin": 6.0, "min_trials": 2, "max_trials": 2}
    run_study(small_study(stop=rule), whole)
    run_study(small_study(stop=few), part)
    made_old(part)
    run_study(small_study(stop=rule), part)
    assert outcome(part) == outcome(whole)
    assert "due" in columns_of(part)


# -- estimates and reports ------------------------------------------------------------------


def with_due(path: Path) -> None:
    """Turn half of the SDCs of the first site's trials into DUEs."""
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE trials SET due = sdc / 2, sdc = sdc - sdc / 2 WHERE cell = 1")
        connection.execute("UPDATE trials SET critical_sdc = min(critical_sdc, sdc)")


def row_of(correct: int, due: int, cell: Cell, trial: int = 0) -> TrialRow:
    """A trial that lost some of 90 right predictions of 100, all of them as DUEs or SDCs."""
    lost = 90 - correct - due
    return TrialRow(cell.key, trial, 100, correct, 90, lost, lost, None, 9, 99, 99, 10, 0.1, due)


def test_the_rate_is_that_of_the_samples_with_wilsons_interval() -> None:
    cell = Cell.of(injection_type="random", probability=1.0)
    rows = [row_of(70, due, cell, trial) for trial, due in enumerate([3, 5, 7])]
    summary = summarise(table_of(rows, [cell]), [cell])
    low, high = wilson(15, 300)
    due = summary["due"]
    assert (due.value[0], due.low[0], due.high[0]) == pytest.approx((5.0, 100 * low, 100 * high))
    wide = summarise(table_of(rows, [cell]), [cell], shared=[True])["due"]
    assert wide.high[0] - wide.low[0] != pytest.approx(due.high[0] - due.low[0])
    assert summary.has_due
    assert "due_low" in next(summary.rows())
    none = summarise(table_of([row_of(70, 0, cell)], [cell]), [cell])
    assert not none.has_due
    assert not any(name.startswith("due") for name in next(none.rows()))


def test_lost_predictions_count_as_events_of_a_ranking() -> None:
    """Equal trials that lose predictions are no surer as DUEs than as SDCs."""
    cells = [Cell.of(injection_type="random", probability=1.0, layers=[name]) for name in "ab"]

    def ranking(due: int) -> list[Any]:
        rows = [row_of(89 - n, (1 + n) * due, cells[n], k) for n in (0, 1) for k in range(4)]
        table = table_of(rows, cells)
        return [
            (site.name, site.rank_low, site.rank_high, site.fall)
            for site in rank_sites(table, summarise(table, cells))
        ]

    assert ranking(1) == ranking(0)
    assert ranking(0)[0][2] == 2


def test_reports_show_due_only_if_there_is_any(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    write_store(path)
    before = reports(path, tmp_path)
    assert not any(re.search(r"\bDUE\b|\bdue\b", text) for text in before)
    with_due(path)
    lines, page, trials, cells = reports(path, tmp_path)
    head = next(line for line in lines.splitlines() if line.startswith("Site") and "Hit" in line)
    assert [name.strip() for name in head.split("|")].count("DUE") == 1
    assert "DUE: scores not finite" in lines
    assert page.count(">DUE") >= 2  # The cells and the sites.
    assert "lost to scores that are not finite (DUE) in cell" in page
    with Store.open(path) as store:
        expected = [row.due for row in store.rows()]
    assert [line["due"] for line in json.loads(trials)["rows"]] == expected
    first = json.loads(cells)["rows"][0]
    samples = sum(row.samples for row in store_rows(path) if row.cell == store_rows(path)[0].cell)
    assert first["due"] == pytest.approx(100 * sum(expected) / samples)
    assert first["due_low"] < first["due"] < first["due_high"]


def store_rows(path: Path) -> list[TrialRow]:
    with Store.open(path) as store:
        return store.rows()


def reports(path: Path, folder: Path) -> list[str]:
    """What a user sees of a store: the terminal, the page, and two exports."""
    findings = read_findings(path)
    texts = ["\n".join(report_lines(findings, cells=True)), page_of(path, folder / "page.html")]
    for what in ("trials", "cells"):
        content = exported(findings, what, "json")
        assert isinstance(content, str)
        texts.append(content)
    return texts


def evaluated(due: int) -> Findings:
    cells = [Cell.of(injection_type="random", probability=5.0, layers=[name]) for name in "ab"]
    layers = [
        CellResult(cell=cell, rows=tuple(row_of(60 + 9 * n, due, cell, k) for k in (0, 1)), index=n)
        for n, cell in enumerate(cells)
    ]
    return Findings(results=layers[:1], layers=layers)


def test_an_evaluation_shows_due_only_if_there_is_any() -> None:
    none, some = evaluated(0), evaluated(4)
    assert "DUE" not in "\n".join([*sweep_lines(none.results[0]), *ranking_lines(none)])
    assert "due" not in to_csv(none) + str(_common_entry(none.results[0], none.has_due))
    assert re.search(r"SDC rate 26\.\d+ \[.*\], DUE rate 4\.00 \[", sweep_lines(some.results[0])[1])
    assert re.search(r"SDC \| +DUE \| Ranks", "\n".join(ranking_lines(some)))
    assert "sdc_rate_high,due_rate,due_rate_low,due_rate_high" in to_csv(some)
    entry = _common_entry(some.results[0], some.has_due)
    assert entry["due_rate"] == pytest.approx(4.0)
    assert entry["due_interval"][0] < 4.0 < entry["due_interval"][1]
