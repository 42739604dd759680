"""A paragraph on the methods of a study, for the paper that publishes its results."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator

from fxfault.campaign.estimates.cell_states import UNFINISHED, UNSURE
from fxfault.campaign.studies.stop_rule import look_points
from fxfault.messages import and_more, counted
from fxfault.results.reports.campaign_findings import Findings, golden_by_checkpoint
from fxfault.results.reports.text import bits_together, per_each

_MOST_NAMED = 12


def methods_text(findings: Findings, width: int = 100) -> str:
    """Say how the results of a store came about, in lines of at most so many characters.

    It names all that another group needs to repeat the study: versions, seed, fault models, rates,
    sites, trials, the stop rule, the intervals, data and machine.
    """
    wrapper = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False)
    return wrapper.fill(" ".join(_sentences(findings)))


def _sentences(findings: Findings) -> Iterator[str]:
    yield _network(findings)
    yield from _faults(findings)
    yield _trials(findings)
    yield from _intervals(findings)
    yield from _fingerprint(findings)
    unfinished = findings.states.count(UNFINISHED)
    if unfinished:
        cells = counted(len(findings.states), "cell")
        yield f"THE STUDY IS NOT FINISHED: {unfinished} of {cells} lack trials."


def _network(findings: Findings) -> str:
    plain, metric = findings.study.to_dict(), findings.summary.metric
    code, environment = findings.fingerprint.get("code", {}), findings.background.environment
    bits = sorted({site.bit_width for site in findings.background.sites if site.bit_width})
    words = f" with words of {_joined(f'{width}' for width in bits)} bits" if bits else ""
    samples = counted(int(findings.table["samples"][0]), "sample")
    named = [f"{name} {version}" for name, version in sorted(code.items())]
    named += [f"Python {environment['python']}"] if "python" in environment else []
    golden = [
        f"{metric.shown(value)}{f' ({name})' if name else ''}"
        for name, value in golden_by_checkpoint(findings.summary).items()
    ]
    text = (
        f"We injected faults into the quantised network {plain['model']['name']}{words}, evaluated "
        f"on {samples} of the test data of {plain['dataset']['name']}, with "
        f"{_joined(named) or 'fxfault'}"
    )
    where = [environment[key] for key in ("device", "processor", "system") if environment.get(key)]
    text += f" on {', '.join(where)}" if where else ""
    return f"{text}. Without faults, its {metric.name} is {_joined(golden)}."


def _joined(texts: Iterable[str]) -> str:
    """List some texts in a sentence.

    >>> _joined("abc")
    'a, b and c'
    """
    listed = list(texts)
    if len(listed) < 2:
        return "".join(listed)
    return f"{', '.join(listed[:-1])} and {listed[-1]}"


def _faults(findings: Findings) -> Iterator[str]:
    cells = findings.summary.cells
    faults = bits_together(dict.fromkeys(cell.fault for cell in cells))
    kinds = _joined(dict.fromkeys(kind for cell in cells for kind in cell.memories))
    yield f"Faults struck {kinds}; the fault models were {_joined(faults)}."
    rates = dict.fromkeys(cell.rate for cell in cells if cell.rate is not None)
    if rates:
        number = next(cell for cell in cells if cell.rate is not None)
        listed = _joined(f"{rate:g}" for rate in rates)
        config = findings.study.experiment.fault_injection
        if config.hw_mask:
            units = f"{config.frequency_value:,} parallel units"
            yield f"Of {units}, a share of {listed} % was faulty throughout a trial."
        elif number.num_faults is None:
            what = "bit" if config.rate_unit == "bit" else "word"
            yield f"Each {what} was hit independently with a probability of {listed} %."
        else:
            each = " or ".join(dict.fromkeys(per_each(cell.memories) for cell in cells))
            yield f"Exactly {listed} faults {each} were drawn."
    alone = list(dict.fromkeys(c.single_site for c in cells if c.single_site is not None))
    together = list(dict.fromkeys(cell.place for cell in cells if cell.single_site is None))
    if alone:
        sites = counted(len(alone), "site")
        yield f"{sites} were struck one at a time: {and_more(alone, _MOST_NAMED)}."
    if together:
        yield f"Struck together were: {and_more(together, _MOST_NAMED)}."
    if findings.never_called:
        yield f"Never reached, and so not struck: {', '.join(findings.never_called)}."


def _trials(findings: Findings) -> str:
    study, summary = findings.study, findings.summary
    total = f"{counted(findings.trials, 'trial')} in {counted(len(summary.cells), 'cell')}"
    start = (
        "A trial is one evaluation of all samples under one draw of faults; trial k draws its "
        f"faults from the seed {study.seed} and from k"
    )
    if study.stop is None:
        return f"{start}. Each cell has {counted(study.max_trials, 'trial')} ({total})."
    rule, metric = study.stop, summary.metric
    margin = f"±{rule.margin:g} percentage points"
    what = f"the {metric.name} and the SDC rate"
    if rule.metric_margin is not None:
        margin = f"±{rule.metric_margin:g}{metric.difference_unit} and {margin}"
        if not metric.has_sdc:
            margin = f"±{rule.metric_margin:g}{metric.difference_unit}"
            what = f"the {metric.name}"
    looks = look_points(rule)
    text = (
        f"{start}. A cell ended when the {rule.confidence:g} % intervals of {what} were within "
        f"{margin}, looked at after {and_more(map(str, looks), 12)} trials, or after "
        f"{rule.max_trials} trials ({total})."
    )
    unsure = findings.states.count(UNSURE)
    return f"{text} {unsure} of the cells did not become as precise as that." if unsure else text


def _intervals(findings: Findings) -> Iterator[str]:
    summary, metric = findings.summary, findings.summary.metric
    text = (
        f"All intervals have a confidence of {summary.confidence:g} % and are for other draws of "
        f"faults on the same data; they do not cover other samples or another training. Those of "
        f"the {metric.name} and of its loss are Student's t over trials"
    )
    yield f"{text}; rates have Wilson's score interval." if metric.has_sdc else f"{text}."
    if metric.has_sdc and any(findings.study.shares_faults(cell) for cell in summary.cells):
        yield (
            "Where all samples of a trial share their faults, Wilson's interval is that of the "
            "effective number of samples (Korn and Graubard, 1998)."
        )
    if metric.is_accuracy:
        yield "Silent data corruption (SDC) is a top-1 prediction that differs from the golden one."
    elif metric.has_sdc:
        yield (
            f"Silent data corruption (SDC) is a sample whose {metric.name} moved by more than "
            f"{metric.tolerance:g}{metric.difference_unit}."
        )
    if findings.ranked:
        yield (
            "Sites are ranked by the mean loss over all settings that they share; for the interval "
            "of a rank each pair of sites is compared by Student's t over trials, with the "
            "correction of Bonferroni (Mogstad, Romano, Shaikh and Wilhelm, 2024)."
        )


def _fingerprint(findings: Findings) -> Iterator[str]:
    data, networks = (findings.fingerprint.get(key, {}) for key in ("data", "networks"))
    parts = [f"labels {data['labels'][:12]}"] if "labels" in data else []
    parts += [f"inputs {data['inputs'][:12]}"] if "inputs" in data else []
    parts += [
        f"weights{f' {name}' if len(networks) > 1 else ''} {network['state'][:12]}"
        for name, network in networks.items()
        if "state" in network
    ]
    if parts:
        yield f"SHA-256 (first 12 digits): {', '.join(parts)}."
