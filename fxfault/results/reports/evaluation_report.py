"""What `fxfault eval` evaluates and finds, and the lines that it prints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fxfault.campaign.cell_result import CellResult
from fxfault.campaign.estimates.cell_states import UNFINISHED
from fxfault.campaign.estimates.ranking import RankedSite
from fxfault.campaign.fault_evaluation import estimate, rank
from fxfault.config.fault_injection import FaultInjectionConfig
from fxfault.experiment.sections import ExperimentConfig
from fxfault.messages import and_more, counted
from fxfault.metrics.facts import ACCURACY, MetricFacts
from fxfault.models.checkpoints import CheckpointInfo
from fxfault.passes import FrozenPart
from fxfault.results.reports.campaign_report import standing_lines
from fxfault.results.reports.seen_sites import SeenSite, SeenSites
from fxfault.results.reports.text import (
    figure,
    lined_up,
    mean_and_std,
    per_each,
    percent,
    rate_words,
    with_interval,
)
from fxfault.results.reports.verdict import Verdict, verdict

if TYPE_CHECKING:
    import torch


WIDE = "=" * 60
CONFIDENCE = 95.0  # percent, of all intervals
_ONE_RUN = "one run: no interval; two runs or more have one"
_ALL_EQUAL = "no interval: all runs are equal, or fewer than two have a value"
_MOST_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is evaluated, and how.

    Attributes:
        command: the command line; None for a call from Python.
        experiment: the configuration with the changes of the command line. A call from Python has
            objects in place of the sections `dataset` and `model`, which are None then.
        network: name of the network.
        data: name of the data set.
        faults: the sites of the transformed model.
        checkpoint: the weights; None for a call from Python.
        num_classes: number of classes; None if it is unknown.
        samples: number of samples of each trial.
        batches: number of batches of each trial.
        configs: the configuration with each of the rates, in the order of evaluation.
        num_runs: trials for each result.
        sweep: whether a list of rates was given, perhaps of one.
        per_layer: whether each site is also struck alone.
        frozen: the results of freezing; None if the model is not frozen.
    """

    command: str | None
    experiment: ExperimentConfig
    network: str
    data: str
    faults: SeenSites
    checkpoint: CheckpointInfo | None
    num_classes: int | None
    samples: int
    batches: int
    device: torch.device
    configs: tuple[FaultInjectionConfig, ...]
    num_runs: int
    sweep: bool
    per_layer: bool
    frozen: Sequence[FrozenPart] | None

    @property
    def selected(self) -> list[SeenSite]:
        """The sites that the configuration selects; a trial in mode `layer` strikes one."""
        return [site for site in self.faults if site.selected]

    def struck_alone(self, findings: Findings) -> int:
        """How many sites `--per-layer` strikes: the selected ones that are called."""
        return sum(site.name not in findings.never_called for site in self.selected)


@dataclass(kw_only=True)
class Findings:
    """Results so far.

    Attributes:
        baseline: the metric without faults; None before it is known.
        metric: what the metric is.
        classes: number of classes that the network scores; None if unknown.
        doubt: why the baseline leaves little to measure; None if nothing is wrong with it.
        never_called: names of the sites that the evaluation never calls.
        results: one for each rate, in the order of evaluation.
        layers: one for each site struck alone, in the order of execution.
        complete: whether no result is missing.
        tolerance: the largest cost that the verdict calls tolerable, in the unit of the metric;
            None for the usual one.
    """

    baseline: float | None = None
    metric: MetricFacts = ACCURACY
    classes: int | None = None
    doubt: str | None = None
    never_called: tuple[str, ...] = ()
    results: list[CellResult] = field(default_factory=list)
    layers: list[CellResult] = field(default_factory=list)
    complete: bool = False
    tolerance: float | None = None

    @property
    def verdict(self) -> Verdict:
        """What the results say so far."""
        # A site that is struck alone may be all that the configuration selects.
        different = {result.cell.key: result for result in (*self.layers, *self.results)}
        doubts = [] if self.doubt is None else [self.doubt]
        ranked = [site for site, _ in self.ranked]
        states = [] if self.complete else [UNFINISHED]
        summary = estimate(list(different.values()), CONFIDENCE)
        return verdict(summary, ranked, states=states, doubts=doubts, tolerance=self.tolerance)

    @property
    def chance(self) -> float | None:
        """Accuracy of guessing if the classes are balanced, in percent; None if unknown."""
        return 100.0 / self.classes if self.classes and self.metric.is_accuracy else None

    @property
    def has_due(self) -> bool:
        """Whether any prediction was lost to scores that are not finite."""
        return any(result.total("due") for result in (*self.results, *self.layers))

    @property
    def ranked(self) -> list[tuple[RankedSite, CellResult]]:
        """The sites struck alone with their results, the most vulnerable first."""
        by_name = {result.cell.place: result for result in self.layers}
        ranked = rank(self.layers, CONFIDENCE) if self.layers else []
        return [(site, by_name[site.name]) for site in ranked]


# -- lines for the console ------------------------------------------------------------------


def announcement(setting: Setting, config: FaultInjectionConfig) -> str:
    """Say what is evaluated next."""
    if not setting.sweep:
        return f"Evaluating with {rate_label(config)}..."
    if config.num_faults is None:
        return f"\nEvaluating with probability {percent(config.probability, 0)}..."
    return f"\nEvaluating with {rate_label(config)}..."


def rate_label(config: FaultInjectionConfig) -> str:
    """Write how often faults strike.

    >>> rate_label(FaultInjectionConfig(num_faults=1))
    '1 fault per sample'
    >>> rate_label(FaultInjectionConfig(num_faults=2, memory="weights"))
    '2 faults per trial'
    """
    if config.faults is not None:
        entries = config.entries()
        replayed = len(entries) == 1 and entries[0].replay is not None
        return f"the {entries[0]}" if replayed else "the faults of the configuration"
    if config.num_faults is None:
        return f"{percent(config.probability)} fault probability"
    return f"{counted(config.num_faults, 'fault')} {per_each(config.memories)}"


def full_run_note(verify: float | None, compiles: bool, cache_memory: int | None) -> str | None:
    """Name the options that have no effect because statistics are tracked, if any were given."""
    if verify and not compiles:
        options = "--cache-memory and --verify have"
    elif cache_memory is not None:
        options = "--cache-memory has"
    else:
        return None
    return (
        f"every run is a full one, so {options} no effect: statistics are tracked (set "
        "`track_statistics: false` for faster runs)"
    )


def setting_lines(setting: Setting) -> list[str]:
    """The block that says which faults strike, and where."""
    config = setting.experiment.fault_injection
    drawn = config.mode == "layer" and config.injection_layer == -1
    number, chosen = str(len(setting.faults)), setting.selected
    if not drawn and len(chosen) < len(setting.faults):
        names = and_more((site.name for site in chosen), _MOST_NAMED)
        number = f"{len(chosen)} of {number} ({names})"
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
        skipped = and_more(setting.faults.skipped, _MOST_NAMED)
        lines.append(f"  Skipped, no fault can strike: {skipped}")
    return lines


def _fault_lines(setting: Setting) -> list[str]:
    """The lines that say what strikes, and how often."""
    config = setting.configs[0]
    kinds = config.memories
    if config.faults is not None:
        return [
            f"  Fault {number}: {entry}{_layers_text(entry.layers)}"
            for number, entry in enumerate(config.entries(), start=1)
        ]
    several, bits = len(setting.configs) > 1, config.rate_unit == "bit"
    kind = [f"  Injection type: {setting.faults[0].fault}"]
    if kinds != ("activations",):
        kind.insert(0, f"  Memory: {', '.join(kinds)}")
    if config.num_faults is not None:
        counts = ", ".join(str(c.num_faults) for c in setting.configs)
        return [*kind, f"  {'Bits hit' if bits else 'Faults'} {per_each(kinds)}: {counts}"]
    values = ", ".join(percent(c.probability, 0 if several else 1) for c in setting.configs)
    name = "Probabilities" if several else "Probability"
    return [*kind, f"  {name}: {values}{' of the bits' if bits else ''}"]


def _layers_text(layers: Any) -> str:
    if layers is None:
        return ""
    listed = layers if isinstance(layers, (list, tuple)) else [layers]
    return f" (layers: {and_more(map(str, listed), _MOST_NAMED)})"


def _interval_line(result: CellResult) -> str:
    """The intervals of the metric and the SDC rate; one run gives none for the metric."""
    summary = estimate([result], CONFIDENCE)
    metric = summary.metric
    parts = {metric.name: (summary["measure"], metric.with_interval)}
    if summary.has_sdc:
        parts["SDC rate"] = summary["sdc"], with_interval
    if summary.has_due:
        parts["DUE rate"] = summary["due"], with_interval
    texts = []
    for name, (part, written) in parts.items():
        value, low, high = (float(ends[0]) for ends in (part.value, part.low, part.high))
        missing = ""
        if math.isnan(low) and not math.isnan(value):
            missing = f" ({_ONE_RUN if len(result.runs) < 2 else _ALL_EQUAL})"
        texts.append(f"{name} {written(value, low, high)}{missing}")
    return f"  With {CONFIDENCE:g}% intervals: {', '.join(texts)}"


def _measured_lines(result: CellResult) -> list[str]:
    """Intervals and rates, and in mode `layer` the site that each trial struck."""
    hit, total = result.total("faults"), result.total("elements")
    realised = f"  Realised fault rate: {result.injection_rate:.6g}% ({hit} of {total} values)"
    lines = [_interval_line(result)]
    low, high = result.for_other_samples(CONFIDENCE)
    if not math.isnan(low):
        metric = result.metric
        lost = metric.with_interval(result.degradation, low, high)
        unit = metric.difference_unit
        lines.append(f"  For other samples, too: degradation {lost}{unit} (bootstrap of both)")
    lines.append(realised)
    if result.run_layers is not None:
        lines.append(f"  Layer of each run: {', '.join(map(str, result.run_layers))}")
    return lines


def single_lines(result: CellResult) -> list[str]:
    """The result of a single rate, with the statistics."""
    runs = f" ({len(result.runs)} runs)" if len(result.runs) > 1 else ""
    metric = result.metric
    lost = f"{metric.signed(result.degradation)}{metric.difference_unit}"
    lines = [
        "Results:",
        f"  Baseline {metric.name}:   {metric.shown(result.baseline)}",
        f"  Fault {metric.name}:      {mean_and_std(result)}{runs}",
        f"  {metric.title} degradation: {lost}",
        *_measured_lines(result),
    ]
    if result.statistics is not None:
        lines += ["", result.statistics.report()]
    return lines


def sweep_lines(result: CellResult) -> list[str]:
    """The result of one rate of a sweep."""
    metric = result.metric
    spread = f" (std: {metric.shown(result.std)})" if len(result.runs) > 1 else ""
    return [f"  {metric.title}: {metric.shown(result.mean)}{spread}", *_measured_lines(result)]


def summary_lines(results: Sequence[CellResult]) -> list[str]:
    """The table at the end of a sweep."""
    kind = "Probability" if results[0].cell.num_faults is None else "Faults"
    metric = results[0].metric
    width = max([10, len(metric.title), *(len(mean_and_std(result)) for result in results)])
    unit = metric.difference_unit.strip()
    lines = [
        "Sweep Summary:",
        f" {kind:>11} | {metric.title:>{width}} | Degradation{f' ({unit})' if unit else ''}",
        "-" * (38 + width),
    ]
    for result in results:
        lines.append(
            f" {rate_words(result):>11} | {mean_and_std(result):>{width}} |"
            f" {metric.signed(result.degradation):>20}"
        )
    return lines


def ranking_lines(findings: Findings) -> list[str]:
    """The table of sites struck alone, the most vulnerable first."""
    ranked = findings.ranked
    has_due = any(site.due for site, _ in ranked)
    metric, unit = findings.metric, findings.metric.difference_unit.strip()
    lost = f"Degradation{f' ({unit})' if unit else ''}"
    head = ["Rank", "Layer", metric.title, lost, f"{CONFIDENCE:g}%"]
    head += ["SDC"] if metric.has_sdc else []
    head += [*(["DUE"] if has_due else []), "Ranks"]
    rows = []
    for site, result in ranked:
        interval = f"{metric.number(site.fall_low)} to {metric.number(site.fall_high)}"
        row = [str(site.rank), str(result.index), mean_and_std(result)]
        row += [metric.signed(result.degradation), "-" if math.isnan(site.fall_low) else interval]
        row += [f"{figure(site.sdc)}%"] if metric.has_sdc else []
        row += [f"{figure(site.due)}%"] if has_due else []
        rows.append([*row, f"{site.rank_low}-{site.rank_high}"])
    title = "Layer Ranking (each struck alone, the most vulnerable first):"
    top, line, *lines = lined_up(head, rows)
    names = [site.name for site, _ in ranked]
    named = [f" {text} | {name}" for text, name in zip(lines, names, strict=True)]
    end = f"{CONFIDENCE:g}%: interval of the degradation; Ranks: where the layer may stand"
    if any(len(result.runs) < 2 for _, result in ranked):
        end += f"; {_ONE_RUN}"
    standing = standing_lines([site for site, _ in ranked], metric)
    return [title, f" {top} | Site", f"{line}-------", *named, f"({end})", *standing]


def interrupted_line(setting: Setting, findings: Findings) -> str:
    """Say how much of an interrupted evaluation is kept."""
    kind = "probabilities" if setting.configs[0].num_faults is None else "numbers of faults"
    kept = f"{len(findings.results)} of {len(setting.configs)} {kind}"
    if setting.per_layer:
        kept = f"{len(findings.layers)} of {setting.struck_alone(findings)} layers"
    return f"interrupted: {kept} done and kept; the JSON says complete: false"
