"""The results of evaluating a network: under one rate of faults, under several, site by site."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fxfault.campaign.cell_result import CellResult
from fxfault.campaign.estimates.ranking import RankedSite
from fxfault.campaign.fault_evaluation import estimate
from fxfault.messages import counted, html_list, html_table
from fxfault.metrics.facts import MetricFacts
from fxfault.results.pictures.plots import draw_evaluation, evaluation_picture
from fxfault.results.reports.campaign_report import standing_lines
from fxfault.results.reports.evaluation_export import cell_rows, to_csv, to_json, trial_rows
from fxfault.results.reports.evaluation_report import (
    CONFIDENCE,
    Findings,
    Setting,
    ranking_lines,
    rate_label,
    setting_lines,
    single_lines,
    summary_lines,
)
from fxfault.results.reports.text import figure, listed, mean_and_std, rate_words, with_interval
from fxfault.results.result import Content, Result
from fxfault.sites.statistics import FaultStatistics


@dataclass(frozen=True, repr=False, eq=False)
class Evaluated(Result):
    """What an evaluation found.

    Attributes:
        setting: what was evaluated, and how.
        findings: all results.
        notes: sentences that a user should know.
    """

    setting: Setting
    findings: Findings
    notes: tuple[str, ...] = ()

    @property
    def baseline(self) -> float:
        """The metric without faults; by default the accuracy, in percent."""
        assert self.findings.baseline is not None
        return self.findings.baseline

    @property
    def metric(self) -> MetricFacts:
        """What was measured."""
        return self.findings.metric

    @property
    def seed(self) -> int:
        """The seed of the faults; the one drawn if the configuration gives none."""
        return self.setting.faults.seed

    @property
    def never_called(self) -> tuple[str, ...]:
        """Names of the sites that the network never called, where no fault can strike."""
        return self.findings.never_called

    @property
    def results(self) -> tuple[CellResult, ...]:
        """The result of each rate, with all selected sites struck together."""
        return tuple(self.findings.results)

    def __repr__(self) -> str:
        runs = counted(self.setting.num_runs, "run")
        return f"{type(self).__name__}({self._words()}; {runs}, seed {self.seed})"

    def __str__(self) -> str:
        lines = ["Verdict:", *listed(self.findings.verdict.sentences), ""]
        lines += [*setting_lines(self.setting), "", *self._lines()]
        return "\n".join([*lines, *(f"Note: {note}" for note in self.notes)])

    def _repr_html_(self) -> str:
        verdict = html_list("Verdict", self.findings.verdict.sentences)
        table = html_table(*self._table(), caption=self._caption)
        return verdict + table + html_list("Notes", self.notes)

    @property
    def _caption(self) -> str:
        metric = self.metric
        runs = counted(self.setting.num_runs, "run")
        return f"{self.setting.network}: {metric.name} {metric.shown(self.baseline)}, {runs}"

    def _rows(self, what: str) -> list[Mapping[str, Any]]:
        return list(trial_rows(self.findings) if what == "trials" else cell_rows(self.findings))

    def _draw(self, axes: Any, label: str | None) -> None:
        draw_evaluation(axes, self.setting, self.findings, label)

    def _picture(self, file_format: str) -> bytes:
        return evaluation_picture(self.setting, self.findings, file_format)

    def _files(self) -> Mapping[str, Content]:
        return {
            "json": lambda: to_json(self.setting, self.findings),
            "csv": lambda: to_csv(self.findings),
        }

    def _words(self) -> str:
        """What was found, in a few words."""
        shown, results = self.metric.shown, self.results
        means = f"from {shown(results[0].mean)} to {shown(results[-1].mean)} at "
        means += counted(len(results), "rate")
        return f"{self.metric.name} {shown(self.baseline)}, {means}"

    def _lines(self) -> list[str]:
        """The lines that the command prints."""
        return summary_lines(self.findings.results)

    def _table(self) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
        """The head and rows of the table for a notebook."""
        metric = self.metric
        head = [
            "Faults",
            metric.title,
            f"{CONFIDENCE:g}% interval",
            f"Degradation{metric.in_points}",
        ]
        head += ["SDC (%)"] if metric.has_sdc else []
        return head, [self._table_row(result) for result in self.results]

    def _table_row(self, result: CellResult) -> list[str]:
        metric, summary = self.metric, estimate([result], CONFIDENCE)
        measure, sdc = summary["measure"], summary["sdc"]
        ends = [metric.number(float(end[0])) for end in (measure.low, measure.high)]
        rate = "" if result.cell.rate is None else f"{rate_words(result)} "
        row = [f"{rate}{result.cell.fault}", mean_and_std(result)]
        row += ["-" if math.isnan(measure.low[0]) else " to ".join(ends)]
        row.append(metric.signed(result.degradation))
        if metric.has_sdc:
            row.append(with_interval(*(float(part[0]) for part in (sdc.value, sdc.low, sdc.high))))
        return row


class SweepResult(Evaluated):
    """The metric of a network at several rates of faults; see `fxfault.sweep`."""

    _has_curve = True


class EvaluationResult(Evaluated):
    """The metric of a network under faults; see `fxfault.evaluate`."""

    @property
    def result(self) -> CellResult:
        """The result, with the counts of each run."""
        return self.results[0]

    @property
    def mean(self) -> float:
        """Mean of the metric under faults."""
        return self.result.mean

    @property
    def std(self) -> float:
        """Sample standard deviation of the runs; 0 for one run."""
        return self.result.std

    @property
    def runs(self) -> tuple[float, ...]:
        """The metric of each run; NaN if it has no value."""
        return self.result.runs

    @property
    def degradation(self) -> float:
        """By how much the mean is worse than the baseline."""
        return self.result.degradation

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the mean, for other draws of faults; NaN for one run."""
        found = estimate([self.result], CONFIDENCE)["measure"]
        return float(found.low[0]), float(found.high[0])

    @property
    def sdc_rate(self) -> float:
        """Share of samples with another prediction than without faults, in percent.

        NaN if the metric has no value for a sample.
        """
        return float(estimate([self.result], CONFIDENCE)["sdc"].value[0])

    @property
    def statistics(self) -> FaultStatistics | None:
        """What was hit at each site; None unless `track_statistics` is true."""
        return self.result.statistics

    def _words(self) -> str:
        shown, faults = self.metric.shown, rate_label(self.setting.configs[0])
        return f"{self.metric.name} {shown(self.baseline)}, {shown(self.mean)} with {faults}"

    def _lines(self) -> list[str]:
        return single_lines(self.result)


class LayerRanking(Evaluated):
    """What faults cost at each site alone; see `fxfault.rank_layers`."""

    @property
    def ranked(self) -> tuple[tuple[RankedSite, CellResult], ...]:
        """The sites struck alone with their results, the most vulnerable first."""
        return tuple(self.findings.ranked)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the sites, the most vulnerable first."""
        return tuple(site.name for site, _ in self.ranked)

    def _words(self) -> str:
        sites, first = counted(len(self.findings.layers), "site"), self.ranked[0][0]
        for standing in standing_lines([site for site, _ in self.ranked], self.metric):
            return f"{sites}: {standing[0].lower()}{standing[1:].rstrip('.')}"  # No single one.
        lost = f"{self.metric.number(first.fall)}{self.metric.difference_unit} lost"
        return f"{sites}, the most vulnerable is {first.name!r} with {lost}"

    def _lines(self) -> list[str]:
        return [*single_lines(self.results[0]), "", *ranking_lines(self.findings)]

    def _table(self) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
        metric = self.metric
        head = ["Rank", f"{CONFIDENCE:g}%", "Site", metric.title, f"Degradation{metric.in_points}"]
        head += ["SDC (%)"] if metric.has_sdc else []
        return head, [
            [
                str(site.rank),
                f"{site.rank_low}-{site.rank_high}",
                site.name,
                mean_and_std(result),
                metric.with_interval(site.fall, site.fall_low, site.fall_high),
                *([figure(site.sdc)] if metric.has_sdc else []),
            ]
            for site, result in self.ranked
        ]
