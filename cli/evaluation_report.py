"""What `fxfault-eval` found, as lines for the console, as JSON and as CSV."""

from __future__ import annotations

import csv
import io
import json
import math
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fxfault.applied_settings import applied
from fxfault.campaign.analysis import Estimate
from fxfault.campaign.ranking import RankedSite
from fxfault.checkpoints import CheckpointInfo
from fxfault.cli.campaign_report import figure, lined_up, standing_lines, with_interval
from fxfault.cli.outputs import inert
from fxfault.config import FaultInjectionConfig
from fxfault.data import DatasetFacts
from fxfault.evaluation import CellResult, estimate, rank
from fxfault.experiment import ExperimentConfig
from fxfault.fault_models import label_of
from fxfault.passes import FrozenPart
from fxfault.site import FaultSite
from fxfault.sites import FaultSites
from fxfault.statistics import FaultStatistics

SCHEMA = "fxfault-eval/1"
WIDE, THIN = "=" * 60, "-" * 60
CONFIDENCE = 95.0  # percent, of all intervals


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is evaluated, and how.

    Attributes:
        command: the command line.
        experiment: the configuration with what the command line changed in it.
        faults: the sites of the transformed model.
        checkpoint: the weights.
        facts: of the data set, where known.
        samples: of the data set.
        batches: in one pass over it.
        batch_size: samples in a batch.
        device: torch's name of it.
        device_name: the maker's name of a GPU; None for the CPU.
        configs: what is evaluated, one after the other: the configuration with each of the rates.
        num_runs: trials for each result.
        sweep: whether the rates are a sweep (of one, perhaps).
        per_layer: whether each site is struck alone, too.
        frozen: what became of each quantised layer; None where the model is not frozen.
    """

    command: str
    experiment: ExperimentConfig
    faults: FaultSites
    checkpoint: CheckpointInfo
    facts: DatasetFacts | None
    samples: int
    batches: int
    batch_size: int
    device: str
    device_name: str | None
    configs: tuple[FaultInjectionConfig, ...]
    num_runs: int
    sweep: bool
    per_layer: bool
    frozen: Sequence[FrozenPart] | None

    @property
    def selected(self) -> list[FaultSite]:
        """The sites that the configuration selects; in mode `layer`, one is taken for a trial."""
        return [site for site in self.faults if site.selected]

    def struck_alone(self, findings: Findings) -> int:
        """How many of those `--per-layer` strikes: all but those that are never called."""
        return sum(site.name not in findings.never_called for site in self.selected)

    @property
    def chance(self) -> float | None:
        """Accuracy of guessing, in percent, if the classes are balanced; None if unknown."""
        return None if self.facts is None else 100.0 / self.facts.num_classes


@dataclass(kw_only=True)
class Findings:
    """Results so far.

    Attributes:
        baseline: accuracy without faults, in percent; None before it is known.
        doubt: why the baseline is none to measure from; None if it is one.
        never_called: names of sites that no forward of the evaluation reaches.
        results: one for each rate, in the order asked for.
        layers: one for each site struck alone, in the order of execution.
        complete: whether that is all.
    """

    baseline: float | None = None
    doubt: str | None = None
    never_called: tuple[str, ...] = ()
    results: list[CellResult] = field(default_factory=list)
    layers: list[CellResult] = field(default_factory=list)
    complete: bool = False

    @property
    def ranked(self) -> list[tuple[RankedSite, CellResult]]:
        """The sites struck alone, the most vulnerable first, each with its result."""
        by_name = {result.cell.place: result for result in self.layers}
        ranked = rank(self.layers, CONFIDENCE) if self.layers else []
        return [(site, by_name[site.name]) for site in ranked]


# -- lines for the console ------------------------------------------------------------------


def percent(value: float, decimals: int = 1) -> str:
    """Write a percentage with at least some decimals, and with more where they would lie.

    >>> percent(10.0), percent(0.0001), percent(10.0, decimals=0), percent(2.5, decimals=0)
    ('10.0%', '0.0001%', '10%', '2.5%')
    """
    short = f"{value:.{decimals}f}"
    return f"{short if float(short) == value else format(value, '.10g')}%"


def rate_words(result: CellResult, decimals: int = 1) -> str:
    """How often faults struck, for a table."""
    if result.cell.probability is None:
        return result.cell.rate_text
    return percent(result.cell.probability, decimals)


def rate_label(config: FaultInjectionConfig, decimals: int = 1) -> str:
    """How often faults strike, for a line.

    >>> rate_label(FaultInjectionConfig(probability=10)), rate_label(
    ...     FaultInjectionConfig(num_faults=1))
    ('10.0% fault probability', '1 fault per sample')
    """
    if config.faults is not None:
        return "the faults of the configuration"
    if config.num_faults is None:
        return f"{percent(config.probability, decimals)} fault probability"
    return f"{config.num_faults} fault{'' if config.num_faults == 1 else 's'} per sample"


def points(value: float) -> str:
    """Write a difference of two percentages, in percentage points, with its sign.

    >>> points(5.142), points(-0.0001)
    ('+5.14', '+0.00')
    """
    return f"{round(value, 2) + 0.0:+.2f}"


def mean_and_std(result: CellResult) -> str:
    """Write an accuracy, with its standard deviation where there were several trials."""
    spread = f" ± {result.std:.2f}%" if len(result.runs) > 1 else ""
    return f"{result.mean:.2f}%{spread}"


def setting_lines(setting: Setting) -> list[str]:
    """The block that says which faults strike where."""
    config = setting.experiment.fault_injection
    drawn = config.mode == "layer" and config.injection_layer == -1
    number, chosen = str(len(setting.faults)), setting.selected
    if not drawn and len(chosen) < len(setting.faults):
        number = f"{len(chosen)} of {number} ({_listed(site.name for site in chosen)})"
    lines = [
        "Fault Injection Configuration:",
        f"  Injection layers: {number}",
        f"  Mode: {config.mode}{' (one drawn for each run)' if drawn else ''}",
        *_fault_lines(setting),
    ]
    if config.hw_mask:
        lines.append(f"  Hardware mask: {config.frequency_value} parallel units")
    if setting.num_runs > 1:
        lines.append(f"  Runs: {setting.num_runs} (± is their sample standard deviation)")
    if setting.faults.skipped and config.unsupported == "skip":
        lines.append(f"  Skipped, no fault can strike: {_listed(setting.faults.skipped)}")
    return lines


def _fault_lines(setting: Setting) -> list[str]:
    """What strikes, and how often."""
    config = setting.configs[0]
    if config.faults is not None:
        entries = [
            f"{entry}{'' if entry.layers is None else f' (layers: {_layers_text(entry.layers)})'}"
            for entry in config.entries()
        ]
        return [f"  Fault {number}: {text}" for number, text in enumerate(entries, start=1)]
    several, bits = len(setting.configs) > 1, config.rate_unit == "bit"
    kind = f"  Injection type: {label_of(setting.faults[0].fault_model)}"
    if config.num_faults is not None:
        counts = ", ".join(str(c.num_faults) for c in setting.configs)
        return [kind, f"  {'Bits hit' if bits else 'Faults'} per sample: {counts}"]
    values = ", ".join(percent(c.probability, 0 if several else 1) for c in setting.configs)
    name = "Probabilities" if several else "Probability"
    return [kind, f"  {name}: {values}{' of the bits' if bits else ''}"]


def _layers_text(layers: Any) -> str:
    return _listed(map(str, layers if isinstance(layers, (list, tuple)) else [layers]))


def _listed(names: Iterable[str], most: int = 5) -> str:
    listed = list(names)
    more = [f"{len(listed) - most} more"] if len(listed) > most else []
    return ", ".join(listed[:most] + more)


def rate_line(result: CellResult) -> str:
    """How many elements were hit in fact."""
    hit, total = result.total("faults"), result.total("elements")
    return f"  Realised fault rate: {result.injection_rate:.6g}% ({hit} of {total} values)"


ONE_RUN = "one run: no interval; give --num-runs 2 or more"


def interval_line(result: CellResult) -> str:
    """What the accuracy and the SDC rate are worth; one run tells nothing of the former."""
    summary = estimate([result], CONFIDENCE)
    texts = []
    for name, part in (("accuracy", summary["accuracy"]), ("SDC rate", summary["sdc"])):
        value, low, high = (float(ends[0]) for ends in (part.value, part.low, part.high))
        missing = f" ({ONE_RUN})" if math.isnan(low) and not math.isnan(value) else ""
        texts.append(f"{name} {with_interval(value, low, high)}{missing}")
    return f"  With {CONFIDENCE:g}% intervals: {', '.join(texts)}"


def layer_of_runs_line(result: CellResult) -> str | None:
    """Which site each trial struck; None unless `mode: layer` names one."""
    if result.run_layers is None:
        return None
    return f"  Layer of each run: {', '.join(map(str, result.run_layers))}"


def single_lines(result: CellResult) -> list[str]:
    """The results of one rate, with the statistics."""
    runs = f" ({len(result.runs)} runs)" if len(result.runs) > 1 else ""
    lines = [
        "Results:",
        f"  Baseline accuracy:   {result.baseline:.2f}%",
        f"  Fault accuracy:      {mean_and_std(result)}{runs}",
        f"  Accuracy degradation: {points(result.degradation)} points",
    ]
    lines += filter(None, [interval_line(result), rate_line(result), layer_of_runs_line(result)])
    if result.statistics is not None:
        lines += ["", result.statistics.report()]
    return lines


def sweep_lines(result: CellResult) -> list[str]:
    """The results of one rate of several."""
    spread = f" (std: {result.std:.2f}%)" if len(result.runs) > 1 else ""
    lines = [
        f"  Accuracy: {result.mean:.2f}%{spread}",
        interval_line(result),
        rate_line(result),
    ]
    return lines + list(filter(None, [layer_of_runs_line(result)]))


def summary_lines(results: Sequence[CellResult]) -> list[str]:
    """The table at the end of a sweep."""
    kind = "Probability" if results[0].cell.num_faults is None else "Faults"
    width = max([10, *(len(mean_and_std(result)) for result in results)])
    lines = [
        "Sweep Summary:",
        f" {kind:>11} | {'Accuracy':>{width}} | Degradation (points)",
        "-" * (38 + width),
    ]
    for result in results:
        lines.append(
            f" {rate_words(result):>11} | {mean_and_std(result):>{width}} |"
            f" {points(result.degradation):>20}"
        )
    return lines


def ranking_lines(findings: Findings) -> list[str]:
    """The table of sites struck alone, the most vulnerable first."""
    head = ["Rank", "Layer", "Accuracy", "Degradation (points)", f"{CONFIDENCE:g}%", "SDC", "Ranks"]
    rows = [
        [
            str(site.rank),
            str(result.index),
            mean_and_std(result),
            points(result.degradation),
            "-"
            if math.isnan(site.fall_low)
            else f"{figure(site.fall_low)} to {figure(site.fall_high)}",
            f"{figure(site.sdc)}%",
            f"{site.rank_low}-{site.rank_high}",
        ]
        for site, result in findings.ranked
    ]
    title = "Layer Ranking (each struck alone, the most vulnerable first):"
    top, line, *lines = lined_up(head, rows)
    names = [site.name for site, _ in findings.ranked]
    named = [f" {text} | {name}" for text, name in zip(lines, names, strict=True)]
    end = f"{CONFIDENCE:g}%: interval of the degradation; Ranks: where the layer may stand"
    if any(len(result.runs) < 2 for _, result in findings.ranked):
        end += f"; {ONE_RUN}"
    standing = standing_lines([site for site, _ in findings.ranked])
    return [title, f" {top} | Site", f"{line}-------", *named, f"({end})", *standing]


# -- files ----------------------------------------------------------------------------------


def to_json(setting: Setting, findings: Findings) -> str:
    """The JSON document; docs/eval-json.md describes it."""
    return json.dumps(_document(setting, findings), indent=2, allow_nan=False) + "\n"


def _document(setting: Setting, findings: Findings) -> dict[str, Any]:
    import torch

    experiment, checkpoint = setting.experiment, setting.checkpoint
    assert experiment.model is not None
    assert experiment.dataset is not None
    ranked = [_layer_entry(site, result) for site, result in findings.ranked]
    return {
        "schema": SCHEMA,
        "complete": findings.complete,
        "command": setting.command,
        "config": applied(experiment.to_dict()),
        "model": {"name": experiment.model.name, "kwargs": dict(experiment.model.kwargs)},
        "dataset": {
            "name": experiment.dataset.name,
            "kwargs": dict(experiment.dataset.kwargs),
            "split": "test",
            "samples": setting.samples,
            "batches": setting.batches,
            "batch_size": setting.batch_size,
            "num_classes": None if setting.facts is None else setting.facts.num_classes,
        },
        "checkpoint": {"path": checkpoint.path, "sha256": checkpoint.sha256},
        "seed": setting.faults.seed,
        "device": setting.device,
        "device_name": setting.device_name,
        "threads": torch.get_num_threads(),
        "versions": _versions(),
        "frozen": None if setting.frozen is None else _frozen_entry(setting.frozen),
        "injection_layers": [_site_entry(site) for site in setting.faults],
        "skipped": dict(setting.faults.skipped),
        "confidence": CONFIDENCE,
        "never_called": list(findings.never_called),
        "baseline": findings.baseline,
        "baseline_doubt": findings.doubt,
        "results": [_result_entry(result) for result in findings.results],
        "per_layer": ranked if setting.per_layer else None,
        "statistics": _all_statistics(findings.results),
    }


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    import numpy
    import torch

    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "brevitas": version("brevitas"),
        "numpy": numpy.__version__,
        "fxfault": version("fxfault"),
    }


def _frozen_entry(parts: Sequence[FrozenPart]) -> dict[str, Any]:
    what = [part.what for part in parts]
    return {
        "weights": what.count("weights"),
        "activations": what.count("activation"),
        "left": [f"{part.path} ({part.type}): {part.why_not}" for part in parts if not part.what],
    }


def _site_entry(site: FaultSite) -> dict[str, Any]:
    return {
        "index": site.index,
        "name": site.name,
        "module_path": site.module_path,
        "module_type": site.module_type,
        "bit_width": site.bit_width,
        "signed": site.signed,
        "narrow_range": site.quantiser.narrow_range,
        "elements": site.elements,
        "selected": site.selected,
    }


def _common_entry(result: CellResult) -> dict[str, Any]:
    summary = estimate([result], CONFIDENCE)
    return {
        "probability": result.cell.probability,
        "num_faults": result.cell.num_faults,
        "mean": result.mean,
        "std": result.std,
        "interval": _interval(summary["accuracy"]),
        "runs": list(result.runs),
        "degradation": result.degradation,
        "sdc_rate": float(summary["sdc"].value[0]),
        "sdc_interval": _interval(summary["sdc"]),
        "injection_rate": result.injection_rate,
    }


def _interval(estimated: Estimate) -> list[float] | None:
    ends = [float(estimated.low[0]), float(estimated.high[0])]
    return None if any(map(math.isnan, ends)) else ends


def _result_entry(result: CellResult) -> dict[str, Any]:
    layers, statistics = result.run_layers, result.statistics
    return {
        **_common_entry(result),
        "run_layers": None if layers is None else list(layers),
        "statistics": None if statistics is None else statistics.to_dict(),
    }


def _layer_entry(site: RankedSite, result: CellResult) -> dict[str, Any]:
    own = None
    if result.statistics is not None:
        assert result.index is not None
        own = result.statistics.layer_stats[result.index].to_dict()
    return {
        "index": result.index,
        "name": site.name,
        "rank": site.rank,
        "rank_interval": [site.rank_low, site.rank_high],
        **_common_entry(result),
        "statistics": own,
    }


def _all_statistics(results: Sequence[CellResult]) -> dict[str, Any] | None:
    parts = [result.statistics for result in results if result.statistics is not None]
    if not parts:
        return None
    total = FaultStatistics(len(parts[0].layer_stats))
    for part in parts:
        total.merge(part)
    return total.to_dict()


def to_csv(findings: Findings) -> str:
    """One row for each result, sites struck alone last and ranked; figures in percent."""
    rows = [*findings.results, *(result for _, result in findings.ranked)]
    runs = [f"run_{number}" for number in range(len(rows[0].runs))]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_csv_row(rows[0]), *runs])
    for row in rows:
        writer.writerow([*_csv_row(row).values(), *map(_figure, row.runs)])
    return text.getvalue()


def _csv_row(result: CellResult) -> dict[str, Any]:
    entry = _common_entry(result)
    figures = {key: _figure(entry[key]) for key in ("mean", "std", "degradation", "sdc_rate")}
    return {
        "layer": "all" if result.index is None else result.index,
        "site": "" if result.index is None else inert(result.cell.place),
        "probability": _figure(entry["probability"]),
        "num_faults": _figure(entry["num_faults"]),
        "baseline": _figure(result.baseline),
        **figures,
        **_ends("mean", entry["interval"]),
        **_ends("sdc_rate", entry["sdc_interval"]),
        "injection_rate": _figure(entry["injection_rate"]),
    }


def _ends(name: str, ends: Sequence[float] | None) -> dict[str, str]:
    low, high = ends or (None, None)
    return {f"{name}_low": _figure(low), f"{name}_high": _figure(high)}


def _figure(value: float | None) -> str:
    # Ten digits: 88.32, and not 88.32000000000001.
    return "" if value is None else format(value, ".10g")
