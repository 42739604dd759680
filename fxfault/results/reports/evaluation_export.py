"""What `fxfault eval` found, as JSON and as CSV."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from typing import Any

from fxfault.campaign.cell_result import CellResult
from fxfault.campaign.estimates.ranking import RankedSite
from fxfault.campaign.estimates.summary import Estimate
from fxfault.campaign.fault_evaluation import estimate
from fxfault.config.fault_injection import SECTION
from fxfault.experiment.applied_settings import applied
from fxfault.metrics.facts import MetricFacts
from fxfault.models.checkpoints import AS_MADE, CheckpointInfo
from fxfault.passes import FrozenPart
from fxfault.results.reports.environment import machine, versions
from fxfault.results.reports.evaluation_report import CONFIDENCE, Findings, Setting
from fxfault.results.reports.seen_sites import SeenSite
from fxfault.results.reports.text import csv_text
from fxfault.sites.statistics import FaultStatistics

SCHEMA = "fxfault-eval/1"


def to_json(setting: Setting, findings: Findings) -> str:
    """The JSON document that docs/eval-json.md describes."""
    return json.dumps(_document(setting, findings), indent=2, allow_nan=False) + "\n"


def _document(setting: Setting, findings: Findings) -> dict[str, Any]:
    experiment, checkpoint = setting.experiment, setting.checkpoint
    model, dataset = experiment.model, experiment.dataset
    metric = {} if findings.metric.is_accuracy else {"metric": findings.metric.to_dict()}
    return {
        "schema": SCHEMA,
        **metric,
        "complete": findings.complete,
        "command": setting.command,
        "config": _config_entry(setting),
        "model": {"name": setting.network, "kwargs": dict(model.kwargs) if model else {}},
        "dataset": {
            "name": setting.data,
            "kwargs": dict(dataset.kwargs) if dataset else {},
            "split": "test" if dataset else None,
            "samples": setting.samples,
            "batches": setting.batches,
            "batch_size": experiment.training.batch_size if dataset else None,
            "num_classes": setting.num_classes,
        },
        "checkpoint": checkpoint and _checkpoint_entry(checkpoint),
        "seed": setting.faults.seed,
        **machine(setting.device),
        "versions": versions("torch", "brevitas", "numpy", "fxfault"),
        "frozen": None if setting.frozen is None else _frozen_entry(setting.frozen),
        "injection_layers": [_site_entry(site) for site in setting.faults],
        "skipped": dict(setting.faults.skipped),
        "confidence": CONFIDENCE,
        "never_called": list(findings.never_called),
        "baseline": findings.baseline,
        "baseline_doubt": findings.doubt,
        "verdict": findings.verdict.to_dict(),
        "results": [_result_entry(result, findings.has_due) for result in findings.results],
        "per_layer": [_layer_entry(*ranked, findings.has_due) for ranked in findings.ranked]
        if setting.per_layer
        else None,
        "statistics": _all_statistics(findings.results),
    }


def _config_entry(setting: Setting) -> dict[str, Any]:
    config = applied(setting.experiment.to_dict())
    if setting.experiment.model is not None:
        return config
    # Of the other sections, a call from Python reads none.
    return {SECTION: config[SECTION]}


def _checkpoint_entry(checkpoint: CheckpointInfo) -> dict[str, Any]:
    made = None if checkpoint.path else AS_MADE
    return {"path": checkpoint.path or None, "sha256": checkpoint.sha256, "weights": made}


def _frozen_entry(parts: Sequence[FrozenPart]) -> dict[str, Any]:
    what = [part.what for part in parts]
    return {
        "weights": what.count("weights"),
        "activations": what.count("activation"),
        "left": [f"{part.path} ({part.type}): {part.why_not}" for part in parts if not part.what],
    }


def _site_entry(site: SeenSite) -> dict[str, Any]:
    return {
        "index": site.index,
        "name": site.name,
        "memory": site.memory,
        "module_path": site.module_path,
        "module_type": site.module_type,
        "bit_width": site.bit_width,
        "signed": site.signed,
        "narrow_range": site.narrow_range,
        "elements": site.elements,
        "selected": site.selected,
    }


def _common_entry(result: CellResult, has_due: bool) -> dict[str, Any]:
    summary = estimate([result], CONFIDENCE)
    due: dict[str, Any] = {}
    if has_due:
        due = {
            "due_rate": float(summary["due"].value[0]),
            "due_interval": _interval(summary["due"]),
        }
    if not result.metric.is_accuracy:
        ends = result.for_other_samples(CONFIDENCE)
        due["degradation_interval_of_samples"] = None if math.isnan(ends[0]) else list(ends)
    return {
        "probability": result.cell.probability,
        "num_faults": result.cell.num_faults,
        "mean": _number(result.mean),
        "std": result.std,
        "interval": _interval(summary["measure"]),
        "runs": list(map(_number, result.runs)),
        "degradation": _number(result.degradation),
        "sdc_rate": _number(float(summary["sdc"].value[0])),
        "sdc_interval": _interval(summary["sdc"]),
        **due,
        "injection_rate": result.injection_rate,
    }


def _number(value: float) -> float | None:
    """A number, or None for a NaN: no value, or a rate that the metric cannot tell."""
    return None if math.isnan(value) else value


def _interval(estimated: Estimate) -> list[float] | None:
    ends = [float(estimated.low[0]), float(estimated.high[0])]
    return None if any(map(math.isnan, ends)) else ends


def _result_entry(result: CellResult, has_due: bool) -> dict[str, Any]:
    layers, statistics = result.run_layers, result.statistics
    return {
        **_common_entry(result, has_due),
        "run_layers": None if layers is None else list(layers),
        "statistics": None if statistics is None else statistics.to_dict(),
    }


def _layer_entry(site: RankedSite, result: CellResult, has_due: bool) -> dict[str, Any]:
    own = None
    if result.statistics is not None:
        assert result.index is not None
        own = result.statistics.layer_stats[result.index].to_dict()
    return {
        "index": result.index,
        "name": site.name,
        "rank": site.rank,
        "rank_interval": [site.rank_low, site.rank_high],
        **_common_entry(result, has_due),
        "statistics": own,
    }


def _all_statistics(results: Sequence[CellResult]) -> dict[str, Any] | None:
    parts = [result.statistics for result in results if result.statistics is not None]
    if not parts:
        return None
    total = FaultStatistics(len(parts[0].layer_stats))
    return functools.reduce(FaultStatistics.merge, parts, total).to_dict()


def to_csv(findings: Findings) -> str:
    """A row for each result, in percent; sites struck alone come last, ranked."""
    runs = [{f"run_{k}": value for k, value in enumerate(r.runs)} for r in ordered(findings)]
    return csv_text({**row, **more} for row, more in zip(cell_rows(findings), runs, strict=True))


def ordered(findings: Findings) -> list[CellResult]:
    """All results; sites struck alone come last, the most vulnerable first."""
    return [*findings.results, *(result for _, result in findings.ranked)]


def cell_rows(findings: Findings) -> list[dict[str, Any]]:
    """A row for each result, in the order of `ordered`; None stands for what has no value."""
    return [_row(result, findings.has_due) for result in ordered(findings)]


def trial_rows(findings: Findings) -> list[dict[str, Any]]:
    """A row for each trial, with its value, its counts, and what was struck."""
    return [
        {
            **_place_entry(result),
            "trial": row.trial,
            "value": _number(row.measure),
            "golden": result.baseline,
            "degradation": _number(float(result.metric.loss(result.baseline, row.measure))),
            **{name: getattr(row, name) for name in _counts(result.metric, findings.has_due)},
        }
        for result in ordered(findings)
        for row in result.rows
    ]


def _counts(metric: MetricFacts, has_due: bool) -> list[str]:
    """Names of the counts of a trial that mean something."""
    names = ["samples"]
    names += ["correct", "golden_correct", "critical_sdc"] if metric.is_accuracy else []
    names += ["sdc", "masked"] if metric.has_sdc else []
    return [*names, *(["due"] if has_due else []), "struck", "faults", "elements", "seconds"]


def _place_entry(result: CellResult) -> dict[str, Any]:
    return {
        "layer": "all" if result.index is None else result.index,
        "site": "" if result.index is None else result.cell.place,
        "probability": result.cell.probability,
        "num_faults": result.cell.num_faults,
    }


def _row(result: CellResult, has_due: bool) -> dict[str, Any]:
    entry = _common_entry(result, has_due)
    due = (
        {"due_rate": entry["due_rate"], **_ends("due_rate", entry["due_interval"])}
        if has_due
        else {}
    )
    return {
        **_place_entry(result),
        "baseline": result.baseline,
        **{key: entry[key] for key in ("mean", "std", "degradation", "sdc_rate")},
        **_ends("mean", entry["interval"]),
        **_ends("sdc_rate", entry["sdc_interval"]),
        **due,
        "injection_rate": entry["injection_rate"],
    }


def _ends(name: str, ends: Sequence[float] | None) -> dict[str, float | None]:
    low, high = ends or (None, None)
    return {f"{name}_low": low, f"{name}_high": high}


def is_same_evaluation(old: Any, new: Any) -> bool:
    """Whether an old JSON document holds the same evaluation as a new one, or a part of it.

    >>> entry = {"probability": 5.0, "num_faults": None, "runs": [50.0]}
    >>> new = {"schema": "fxfault-eval/1", "complete": True, "config": {}, "per_layer": None,
    ...        "checkpoint": {"sha256": "0f"}, "results": [entry, {**entry, "probability": 10.0}]}
    >>> part = {**new, "complete": False, "results": [entry]}
    >>> is_same_evaluation(part, new), is_same_evaluation(new, part)
    (True, False)
    >>> is_same_evaluation({**new, "config": {"seed": 1}}, new), is_same_evaluation([], new)
    (False, False)
    """
    try:
        (then, is_complete), (now, will_be) = ((_asked(doc), doc["complete"]) for doc in (old, new))
    except (KeyError, TypeError, IndexError):
        return False
    if then[0] != now[0] or (is_complete and not will_be):
        return False
    if is_complete:
        return then[1] == now[1]
    return then[1] == now[1][: len(then[1])]  # An interrupted one has the first rates.


def _asked(document: Any) -> tuple[list[Any], list[Any]]:
    """What identifies an evaluation: its common settings, and the rates that were done."""
    results = document["results"]
    common = [
        document["schema"],
        document["config"],
        document["checkpoint"]["sha256"],
        document["per_layer"] is not None,
        len(results[0]["runs"]),
    ]
    return common, [(entry["probability"], entry["num_faults"]) for entry in results]
