"""The report of a store as one web page.

A Jinja2 template makes the page, and escapes everything that comes from the store, such as names of
sites and paths.
"""

from __future__ import annotations

import base64
import hashlib
import math
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from importlib import resources
from importlib.metadata import version
from typing import Any

import numpy as np
import yaml

from fxfault.campaign.estimates.ranking import curves
from fxfault.campaign.estimates.summary import Summary
from fxfault.campaign.records.background import SiteNote
from fxfault.experiment.applied_settings import applied, is_own
from fxfault.messages import counted, flat
from fxfault.metrics.facts import MetricFacts
from fxfault.results.page.figures import inlined, variable, width_of
from fxfault.results.pictures.campaign_plots import DARK, not_drawn, pictures
from fxfault.results.pictures.curves import has_single_rate
from fxfault.results.pictures.drawing import SCREEN, Look
from fxfault.results.reports.campaign_findings import Findings, golden_by_checkpoint
from fxfault.results.reports.campaign_report import state_lines
from fxfault.results.reports.campaign_tables import (
    Table,
    cell_table,
    curve_table,
    heat_table,
    plain_table,
    ranking_table,
    site_table,
)
from fxfault.results.reports.text import duration, figure, with_interval

_TEMPLATES = resources.files("fxfault.results.page").joinpath("templates")
# A page with more rows than this would open slowly.
MOST_ROWS = 10_000
_COLUMN = 260.0  # Points; a picture of this width fits a phone.


def _titles(metric: MetricFacts) -> dict[str, str]:
    """The titles of the figures."""
    heat = "SDC rate" if metric.has_sdc else f"{metric.title} lost"
    return {
        "accuracy": "Accuracy against how often faults strike",
        "curves": f"{metric.title} against how often faults strike",
        "ranking": f"{metric.title} that faults at each site alone cost",
        "heat_map": f"{heat} by site and fault",
        "network": f"The network with its sites coloured by the {metric.name} that faults there "
        "cost",
    }


def page(findings: Findings, tolerance: float | None = None) -> str:
    """Give the page of a store with trials.

    `tolerance` is for the verdict, in the unit of the metric (of accuracy in percentage points).
    """
    import jinja2

    drawn = {look.style: pictures(findings, "svg", look) for look in (SCREEN, Look("phone"))}
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    script = _text("page.js")
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest())
    colours, titles = DARK, _titles(findings.summary.metric)
    template = environment.from_string(_text("page.html"))
    return template.render(
        style=_text("page.css"),
        script=script,
        script_hash=script_hash.decode(),  # The page's policy allows no other script.
        colours=[(variable(light), light, dark) for light, dark in colours.items()],
        figures=_figures(findings, drawn, colours),
        repeats=findings.heat_map.note if findings.ranked else "",
        quiet=[titles[name] for name in not_drawn(findings)],
        title=findings.study.title,
        about=_about(findings),
        verdict=findings.verdict(tolerance).sentences,
        notes=(findings.study.labels.notes or "").strip(),
        brief=list(_brief(findings)),
        metric=findings.summary.metric,
        has_sdc=findings.summary.has_sdc,
        settings=list(_settings(findings)),
        states=state_lines(findings),
        is_single_rate=has_single_rate(curves(findings.summary)),
        confidence=f"{findings.summary.confidence:g}",
        tables=_tables(findings),
        store=str(findings.path),
        commands=_commands(findings),
        study=yaml.safe_dump(
            applied(findings.study.to_dict()), sort_keys=False, allow_unicode=True
        ),
        made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        version=version("fxfault"),
    )


def _text(name: str) -> str:
    return _TEMPLATES.joinpath(name).read_text(encoding="utf-8")


# -- what was run ---------------------------------------------------------------------------


def _about(findings: Findings) -> str:
    """What the verdict is about, in one line."""
    plain, summary = findings.study.to_dict(), findings.summary
    samples = counted(int(findings.table["samples"][0]), "sample")
    parts = [f"{plain['model']['name']} on {samples} of {plain['dataset']['name']}"]
    parts += [counted(findings.trials, "trial") + f" in {counted(len(summary.cells), 'cell')}"]
    golden = set(golden_by_checkpoint(summary).values())
    if len(golden) == 1:
        parts.append(f"golden {summary.metric.name} {summary.metric.shown(golden.pop())}")
    if findings.study.labels.name:
        parts.insert(0, findings.study.labels.name)
    return "; ".join(parts)


def _brief(findings: Findings) -> Iterator[str]:
    """More results in a few sentences."""
    summary = findings.summary
    golden = golden_by_checkpoint(summary)
    metric = summary.metric
    for checkpoint, value in golden.items():
        several = f" ({checkpoint})" if len(golden) > 1 else ""
        if metric.is_accuracy:
            yield f"Without faults {figure(value)} % of the predictions are right{several}."
        else:
            yield f"Without faults, the {metric.name} is {metric.shown(value)}{several}."
    if not metric.is_accuracy:
        yield f"Metric: {metric.sentence}."
    if findings.never_called:
        yield f"Never called in this evaluation: {', '.join(findings.never_called)}."
    sdc = summary["sdc"]
    if not np.isnan(sdc.value).all():
        yield _about_changes(summary)
        if summary.has_due:
            yield _about_losses(summary)


def _about_changes(summary: Summary) -> str:
    """Say in which cell most predictions change."""
    if np.nanmax(summary["sdc"].value) == 0:
        return f"Faults changed no {_things(summary)} in any cell."
    return f"Most {_things(summary)}s change in cell {_largest(summary, 'sdc')}."


def _things(summary: Summary) -> str:
    return "prediction" if summary.metric.is_accuracy else "value"


def _about_losses(summary: Summary) -> str:
    """Say in which cell most predictions are lost."""
    what = "Most predictions are lost to scores that are not finite (DUE) in cell"
    if not summary.metric.is_accuracy:
        what = "Most values are not finite (DUE) in cell"
    return f"{what} {_largest(summary, 'due')}."


def _largest(summary: Summary, name: str) -> str:
    """The cell where a rate of predictions is the largest, and the rate."""
    part = summary[name]
    index = int(np.nanargmax(part.value))
    share = with_interval(part.value[index], part.low[index], part.high[index])
    tied = int((part.value == part.value[index]).sum()) - 1
    cell = summary.cells[index]
    others = f", and as many in {counted(tied, 'other cell')}" if tied else ""
    return f"{cell.place}, {cell.fault}, {cell.rate_text}: {share} % of them{others}"


def _settings(findings: Findings) -> Iterator[tuple[str, str]]:
    """The settings of the study, as pairs of a name and a value."""
    study, summary, table = findings.study, findings.summary, findings.table
    plain = study.to_dict()
    yield "Network", _named(plain["model"])
    if plain.get("quantization") and not is_own(plain):
        yield "Quantisation", _in_words(plain["quantization"])
    if findings.background.sites:
        yield "Bits of a site's word", _widths(findings.background.sites)
    yield "Data", _named({**plain["dataset"], "root": None})
    batch = (plain.get("training") or {}).get("batch_size", "?")
    yield "Samples", f"{int(table['samples'][0]):,}, in batches of {batch}"
    metric = summary.metric
    for checkpoint, golden in golden_by_checkpoint(summary).items():
        value = f"{figure(golden)} %" if metric.is_accuracy else metric.shown(golden)
        yield "Checkpoint", f"{checkpoint or 'none'}, golden {metric.name} {value}"
    if not metric.is_accuracy:
        yield "Metric", metric.sentence
    yield "Seed of the faults", str(study.seed)
    for name, values in plain["axes"].items():
        if name != "checkpoint" and values != [None]:
            yield f"Axis {name}", _in_words(values)
    if study.stop is None:
        yield "Trials of each cell", str(study.max_trials)
    else:
        yield "Stop rule", _in_words(plain["stop"])
    seconds = float(table["seconds"].sum())
    done = f"{counted(len(summary.cells), 'cell')}, {counted(findings.trials, 'trial')}"
    yield "Done", f"{done}, {duration(seconds)} of computing"
    if findings.background.begun:
        yield "Begun", findings.background.begun.replace("T", " ").replace("+00:00", " UTC")
    yield "Intervals", f"{summary.confidence:g} %, for other draws of faults on the same data"


def _widths(sites: Sequence[SiteNote]) -> str:
    """The bit widths of the sites, the most frequent first, with numbers of sites."""
    widths = Counter(site.bit_width for site in sites)
    return ", ".join(
        f"{'learned' if width is None else width} ({counted(number, 'site')})"
        for width, number in widths.most_common()
    )


def _named(section: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in section.items() if key != "name" and value}
    return f"{section['name']}{f' ({_in_words(rest)})' if rest else ''}"


def _in_words(value: Any) -> str:
    """Write plain values in one line.

    >>> _in_words({"margin": 1.0, "bits": [3, "each"], "more": None})
    'margin 1, bits 3, each'
    """
    if isinstance(value, Mapping):
        given = {key: item for key, item in value.items() if item is not None}
        return ", ".join(f"{key} {_in_words(item)}" for key, item in given.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_in_words, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


# -- figures and tables ---------------------------------------------------------------------


def _figures(
    findings: Findings, drawn: Mapping[str, Mapping[str, bytes]], colours: Mapping[str, str]
) -> dict[str, list[tuple[str, str]]]:
    """The pictures of each figure: one for all screens, or one for wide and one for narrow ones."""
    about, titles = _descriptions(findings), _titles(findings.summary.metric)
    found: dict[str, list[tuple[str, str]]] = {}
    for name, picture in drawn["screen"].items():
        narrow = drawn["phone"][name]
        forms = {"wide": picture, "narrow": narrow}
        if width_of(picture) <= _COLUMN:
            forms = {"any": picture}
        for form, content in forms.items():
            ids = f"figure-{name.replace('_', '-')}"
            svg = inlined(
                content,
                f"{ids}-narrow" if form == "narrow" else ids,
                titles[name],
                about[name],
                scheme=colours,
                links=_site_links(findings) if name == "network" else None,
            )
            found.setdefault(name, []).append((form, svg))
    return found


def _descriptions(findings: Findings) -> dict[str, str]:
    """What each figure shows, in words; the tables beside them have all numbers."""
    metric = findings.summary.metric

    def written(value: float) -> str:
        return f"{figure(value, 1)} %" if metric.unit == "%" else metric.shown(value)

    lines = "Lines with interval bands: " + "; ".join(
        f"{curve.fault} ({curve.place}) from {written(curve.values[0])} "
        f"to {written(curve.values[-1])}"
        for curve in curves(findings.summary)[:12]
    )
    return {
        "accuracy": lines,
        "curves": lines,
        "ranking": "Bars with intervals, the weakest site first: "
        + ", ".join(f"{site.name} {metric.number(site.fall)}" for site in findings.ranked[:12]),
        "heat_map": "A row for each site and a column for each fault; the table has the numbers.",
        "network": f"{counted(len(findings.background.sites), 'site')} in the order of execution, "
        "with the values that run between them; each leads to its row in the table of sites.",
    }


def _site_links(findings: Findings) -> dict[str, tuple[str, str]]:
    ranked = {site.name: site for site in findings.ranked}
    links = {}
    for site in findings.background.sites:
        kind = f"{site.memory}, " if findings.has_several_memories else ""
        width = "bit width learned" if site.bit_width is None else f"{site.bit_width} bits"
        text = "not struck alone in settings that all sites have"
        if site.name in findings.never_called:
            text = "never called in this evaluation"
        if site.name in ranked:
            found = ranked[site.name]
            metric = findings.summary.metric
            fall = metric.with_interval(found.fall, found.fall_low, found.fall_high)
            text = f"{metric.name} lost {fall}{metric.difference_unit}, "
            text += f"rank {found.rank_low} to {found.rank_high}"
            text += f", SDC {figure(found.sdc)} %" if metric.has_sdc else ""
            text += f", DUE {figure(found.due)} %" if found.due else ""
        links[f"site-{site.index}"] = f"#site-{site.index}", f"{site.name}: {kind}{width}, {text}"
    return links


def _tables(findings: Findings) -> dict[str, Table]:
    tables = {
        "cells": cell_table(findings, MOST_ROWS),
        "sites": site_table(findings),
        "code": plain_table("code", "Versions and machine", _versions(findings)),
        "fingerprint": plain_table("fingerprint", "Fingerprint", _fingerprint(findings)),
    }
    drawn = curves(findings.summary)
    if drawn:
        confidence, metric = findings.summary.confidence, findings.summary.metric
        tables["curves"] = curve_table(drawn, confidence, metric)
    if findings.ranked:
        memories = findings.memories if findings.has_several_memories else None
        confidence, metric = findings.summary.confidence, findings.summary.metric
        tables["ranking"] = ranking_table(findings.ranked, confidence, memories, metric)
        tables["heat_map"] = heat_table(findings.heat_map.map)
    return tables


# -- how to repeat it -----------------------------------------------------------------------


def _commands(findings: Findings) -> str:
    """The commands that repeat the study, with its device and threads."""
    environment = findings.background.environment
    options = []
    if "device" in environment:
        options += ["--device", environment["device"].partition(":")[0]]
    if "threads" in environment:
        options += ["--threads", environment["threads"]]
    run = ["fxfault", "campaign", "run", "study.yaml", "--store", "study.sqlite", *options]
    report = ["fxfault", "campaign", "report", "--store", "study.sqlite"]
    report += ["--html", "report.html"]
    if not math.isclose(findings.summary.confidence, 95.0):
        report += ["--confidence", f"{findings.summary.confidence:g}"]
    return "\n".join(map(shlex.join, (run, report)))


def _versions(findings: Findings) -> Iterator[tuple[str, str]]:
    yield from sorted(findings.fingerprint.get("code", {}).items())
    yield from findings.background.environment.items()


def _fingerprint(findings: Findings) -> Iterator[tuple[str, str]]:
    parts = {key: findings.fingerprint.get(key, {}) for key in ("data", "networks")}
    yield from ((name, str(value)) for name, value in flat(parts, " ").items())
