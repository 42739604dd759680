"""The result of a study: the estimates of a store of trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fxfault.campaign.estimates.ranking import Curve, RankedSite, curves
from fxfault.campaign.estimates.summary import Summary
from fxfault.errors import ConfigError
from fxfault.messages import counted, html_list, html_table
from fxfault.metrics.facts import MetricFacts
from fxfault.results.pictures.curves import curves_picture, draw_curves, panels_of
from fxfault.results.pictures.drawing import check_matplotlib
from fxfault.results.pictures.ranking import draw_ranking, ranking_picture
from fxfault.results.reports.campaign_export import check_format, exported, rows_of
from fxfault.results.reports.campaign_findings import Findings, golden_by_checkpoint
from fxfault.results.reports.campaign_report import report_lines
from fxfault.results.reports.text import figure, with_interval
from fxfault.results.result import Content, Result

_MOST_ROWS = 50


@dataclass(frozen=True, repr=False, eq=False)
class StudyResult(Result):
    """What a study found; see `fxfault.run_study`.

    Attributes:
        findings: the content of the store, with estimates.
    """

    findings: Findings

    @property
    def store(self) -> Path:
        """The file with the trials."""
        return self.findings.path

    @property
    def summary(self) -> Summary:
        """The estimates of all cells, with their intervals."""
        return self.findings.summary

    @property
    def metric(self) -> MetricFacts:
        """What was measured."""
        return self.summary.metric

    @property
    def ranked(self) -> Sequence[RankedSite]:
        """The sites that were struck alone, the most vulnerable first."""
        return self.findings.ranked

    def __repr__(self) -> str:
        cells, trials = len(self.summary.cells), self.findings.trials
        return (
            f"{type(self).__name__}({counted(cells, 'cell')}, {counted(trials, 'trial')}, "
            f"store {str(self.store)!r})"
        )

    def __str__(self) -> str:
        return "\n".join(report_lines(self.findings))

    def _repr_html_(self) -> str:
        parts = [html_list("Verdict", self.findings.verdict().sentences)]
        if self.ranked:
            parts.append(self._ranking_html())
        cells = counted(len(self.summary.cells), "cell")
        return f"{''.join(parts)}<details><summary>{cells}</summary>{self._cells_html()}</details>"

    def _ranking_html(self) -> str:
        """The ranking of the sites that were struck alone."""
        metric, level = self.metric, figure(self.summary.confidence, 0)
        head = ["Rank", f"{level}%", "Site", f"Fall{metric.in_points}", "Trials"]
        rows = [
            [
                *(str(site.rank), f"{site.rank_low}-{site.rank_high}", site.name),
                metric.with_interval(site.fall, site.fall_low, site.fall_high),
                f"{site.trials:,}",
            ]
            for site in self.ranked[:_MOST_ROWS]
        ]
        more = f", the first {len(rows)} of {len(self.ranked)}" if self.ranked[_MOST_ROWS:] else ""
        return html_table(head, rows, f"{self.findings.study.title}: sites struck alone{more}")

    def _cells_html(self) -> str:
        """The estimates of the cells."""
        summary, metric = self.summary, self.metric
        head = ["Site", "Faults", "Rate", "Trials", f"{metric.title}{metric.in_unit}"]
        head += [f"Fall{metric.in_points}", *(["SDC (%)"] if metric.has_sdc else [])]
        rows = []
        for index, cell in enumerate(summary.cells[:_MOST_ROWS]):
            parts = [
                tuple(float(end[index]) for end in (part.value, part.low, part.high))
                for part in (summary["measure"], summary["fall"], summary["sdc"])
            ]
            row = [cell.place, cell.fault, cell.rate_text, f"{summary.trials[index]:,}"]
            row += [metric.with_interval(*part) for part in parts[:2]]
            rows.append([*row, *([with_interval(*parts[2])] if metric.has_sdc else [])])
        left_out = len(summary.cells) - len(rows)
        more = f", the first {len(rows)} of them" if left_out else ""
        golden = ", ".join(
            f"{metric.name} {metric.shown(value)}"
            for value in golden_by_checkpoint(summary).values()
        )
        cells = counted(len(summary.cells), "cell")
        level = figure(summary.confidence, 0)
        caption = f"{self.store.name}: {golden}; {cells}{more}; {level}% intervals"
        return html_table(head, rows, caption)

    def _rows(self, what: str) -> list[Mapping[str, Any]]:
        return [_hashable(row) for row in rows_of(self.findings, what)]

    def _draw(self, axes: Any, label: str | None) -> None:
        """Draw the ranking if sites were struck alone, else the metric against the rate."""
        findings, summary = self.findings, self.summary
        if findings.ranked:
            facts = findings.memories, self.metric
            draw_ranking(axes, findings.ranked, summary.confidence, *facts)
            return
        (_, checkpoint, _), members = next(iter(panels_of(self._curves()).items()))
        golden = golden_by_checkpoint(summary)[checkpoint]
        draw_curves(axes, members, golden, self.metric)
        axes.legend()

    def _curves(self) -> list[Curve]:
        drawn = curves(self.summary)
        if not drawn:
            raise ConfigError(
                "plot: the study has neither a rate of faults nor sites that were struck alone, so "
                "there is nothing to draw; to_pandas() has the estimates"
            )
        return drawn

    def _picture(self, file_format: str) -> bytes:
        findings, summary = self.findings, self.summary
        if findings.ranked:
            facts = findings.memories, self.metric
            return ranking_picture(findings.ranked, summary.confidence, file_format, *facts)
        golden = golden_by_checkpoint(summary)
        return curves_picture(self._curves(), golden, file_format, self.metric)

    def _files(self) -> Mapping[str, Content]:
        return {
            "json": lambda: exported(self.findings, "cells", "json"),
            "csv": lambda: exported(self.findings, "cells", "csv"),
            "parquet": self._parquet,
            "html": self._page,
        }

    def _parquet(self) -> str | bytes:
        check_format("parquet")
        return exported(self.findings, "cells", "parquet")

    def _page(self) -> str:
        check_matplotlib("save")
        from fxfault.results.page.html import page

        return page(self.findings)


def _hashable(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row by which pandas can group: text for lists, and for all sites together."""
    plain = {key: ";".join(v) if isinstance(v, (list, tuple)) else v for key, v in row.items()}
    if "layers" in plain and plain["layers"] is None:
        plain["layers"] = "all"
    return plain
