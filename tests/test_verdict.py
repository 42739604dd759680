"""The verdict claims no more than the intervals show, and the tolerable rate is a tested one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from fxfault.campaign import Cell
from fxfault.campaign.estimates.cell_states import UNFINISHED, UNSURE
from fxfault.campaign.estimates.ranking import RankedSite, curves, left_out, rank_sites
from fxfault.campaign.estimates.summary import Summary, Table, summarise, table_of
from fxfault.campaign.estimates.tolerance import tolerable_rates, usual_tolerance
from fxfault.evaluation.rows import TrialRow
from fxfault.metrics.facts import ACCURACY, DATA, MetricFacts
from fxfault.results.reports.verdict import verdict

SEED = 20120601
SAMPLES = 1000
GOLDEN = 950


def cell(site: str | None, rate: float, fault: str = "random", bit: int | None = None) -> Cell:
    layers = None if site is None else [site]
    return Cell.of(injection_type=fault, probability=rate, bit=bit, layers=layers)


def row(of: Cell, trial: int, lost: int) -> TrialRow:
    """A trial in which so many of the right predictions turned wrong."""
    seen = {"faults": 60, "elements": 1200, "struck": 900, "masked": 900 - lost, "seconds": 0.1}
    counts = {"golden_correct": GOLDEN, "sdc": lost, "critical_sdc": lost, "top5": None}
    return TrialRow(
        cell=of.key, trial=trial, samples=SAMPLES, correct=GOLDEN - lost, **counts, **seen
    )


def study(lost: dict[Cell, Sequence[int]]) -> tuple[Table, Summary]:
    """The rows and the estimates of cells, of which each has so many trials with such losses."""
    rows = [row(of, k, each) for of, losses in lost.items() for k, each in enumerate(losses)]
    cells = list(lost)
    table = table_of(rows, cells)
    return table, summarise(table, cells)


NOTHING, LITTLE, MUCH = (0, 1, 0, 1), (4, 5, 5, 6), (200, 210, 190, 205)


# -- the tolerable rate ---------------------------------------------------------------------


def test_the_tolerable_rate_is_the_highest_tested_one_below_which_all_are_tolerable() -> None:
    _, summary = study(
        {
            cell("a", 1.0): NOTHING,
            cell("a", 5.0): LITTLE,
            cell("a", 20.0): MUCH,
            cell("b", 1.0): NOTHING,
            cell("b", 5.0): MUCH,  # Of all sites, one costs too much.
            cell("b", 20.0): NOTHING,  # That it costs less at a higher rate does not help.
            cell("a", 1.0, "msb_flip"): LITTLE,
            cell("b", 1.0, "msb_flip"): LITTLE,
            cell(None, 1.0): MUCH,
        }
    )

    each, flips, everything = tolerable_rates(summary, 1.0)

    assert (each.place, each.fault, each.rate, each.rate_text) == ("each", "random", 1.0, "1%")
    assert not each.is_highest
    assert each.beyond is not None
    assert summary.cells[each.beyond] == cell("b", 5.0)
    assert (flips.rate, flips.is_highest, flips.beyond) == (1.0, True, None)
    assert (everything.place, everything.rate, everything.rate_text) == ("all", None, "")
    assert tolerable_rates(summary, 0.01)[1].rate is None
    assert tolerable_rates(summary, 30.0)[0].rate == 20.0


def test_a_rate_that_lacks_a_site_or_an_interval_is_not_tolerable() -> None:
    lost = {cell("a", 1.0): NOTHING, cell("b", 1.0): NOTHING, cell("a", 5.0): NOTHING}
    assert tolerable_rates(study(lost)[1], 1.0)[0].rate == 1.0
    (single,) = tolerable_rates(study({cell("a", 1.0): (0,)})[1], 1.0)
    _, summary = study({cell("a", 1.0): NOTHING})
    fall = summary["fall"]
    nan = np.full(1, math.nan)
    blind = dataclasses.replace(
        summary,
        estimates={**summary.estimates, "fall": dataclasses.replace(fall, low=nan, high=nan)},
    )
    assert single.rate in (None, 1.0)  # Wilson's interval may know, Student's does not.
    assert tolerable_rates(blind, 1.0)[0].rate is None


def test_a_rate_of_nothing_is_no_tested_rate() -> None:
    assert tolerable_rates(study({cell("a", 0.0): (0, 0, 0)})[1], 1.0) == []


@pytest.mark.parametrize("excess", [0.0, 0.05])
def test_a_rate_that_costs_too_much_is_rarely_called_tolerable(excess: float) -> None:
    """The upper end of a 95 % interval is too low in 2.5 % of studies.

    With 2,000 studies, more than the 99.99 % quantile of that would be a fault of the code, or of
    luck once in 10,000 times.
    """
    random, studies, trials = np.random.default_rng(SEED), 2000, 10
    cells = [cell(f"s{i}", 1.0) for i in range(studies)]
    chance = (1.0 + excess) / 100
    lost = random.binomial(SAMPLES, chance, (studies, trials))
    _, summary = study(dict(zip(cells, lost.tolist(), strict=True)))
    # Each site is a study of its own.
    claimed = sum(bool(high <= 1.0) for high in summary["fall"].high)
    assert claimed <= stats.binom.ppf(0.9999, studies, 0.025)


def test_other_metrics_have_a_hundredth_of_their_golden_value() -> None:
    _, summary = study({cell("a", 1.0): NOTHING})
    assert usual_tolerance(summary) == 1.0
    psnr = dataclasses.replace(
        summary, metric=MetricFacts("psnr", "dB", each=DATA), golden=np.array([31.5])
    )
    assert usual_tolerance(psnr) == pytest.approx(0.315)
    assert usual_tolerance(dataclasses.replace(psnr, golden=np.zeros(1))) is None


# -- the sentences --------------------------------------------------------------------------


def said(lost: dict[Cell, Sequence[int]], **more: object) -> str:
    table, summary = study(lost)
    ranked = rank_sites(table, summary)
    return " ".join(verdict(summary, ranked, **more).sentences)  # type: ignore[arg-type]


def test_the_verdict_names_costs_rates_and_what_to_protect() -> None:
    lost = {cell(s, r): MUCH if s == "b" else LITTLE for s in "abc" for r in (1.0, 5.0)}
    text = said(lost)
    assert "The costliest cell is random at 1% in b: its faults cost 20.12 [" in text
    assert "the same for random at 5% in b" in text
    assert "Of 3 sites, b is the weakest: faults there alone cost 20.12 [" in text
    assert "averaged over 2 settings" in text
    assert "With each site struck alone, faults are tolerable at no tested rate with random" in text
    assert "Not shown to be tolerable: random at 1% in b, a loss of 20.12 [" in text
    assert "Tolerable means a loss of at most 1 point, by the upper end of the 95 %" in text
    assert "Protect first: b. Some intervals are wide: up to ±1.36 points" in text
    assert "a loss of at most 25 points, by the upper end" in said(lost, tolerance=25.0)


def test_sites_that_cannot_be_told_apart_are_named_together() -> None:
    text = said({cell(site, 1.0): LITTLE if site == "c" else MUCH for site in "abc"})
    assert "the weakest is a or one of b, which cannot be told apart" in text
    assert "Protect first: a, b; the study does not tell in which order." in text
    equal = said({cell(site, 1.0): MUCH for site in "ab"})
    assert "The 2 sites cannot be told apart" in equal


def test_a_cost_that_may_be_nothing_says_so() -> None:
    text = said({cell("a", 1.0): (30, 0, 0, 0), cell("b", 1.0): (0, 0, 1, 0)})
    assert "That may be nothing: the interval contains 0" in text
    assert "more trials would narrow them" in text


def test_nothing_lost_is_said_with_what_that_excludes() -> None:
    text = said({cell(site, 1.0): (0, 0) for site in "ab"})
    assert "No fault changed a prediction in any of 2 cells: an SDC rate of 0.00 [0.00, " in text
    assert "Protect" not in text
    assert "weakest" not in text


def test_a_bit_above_all_is_named_only_if_the_intervals_show_it() -> None:
    bits = {
        cell(site, 1.0, "bit_flip", bit): MUCH if bit == 1 and site == "a" else LITTLE
        for site in "ab"
        for bit in range(2)
    }
    assert "Protect first: a (bit 1 above all, of 2 bits)." in said(bits)
    same = {of: MUCH if of.layers == ("a",) else LITTLE for of in bits}
    assert "Protect first: a." in said(same)


def test_a_fault_of_some_sites_is_no_part_of_a_mean_over_all() -> None:
    lost = {cell(site, 1.0, "bit_flip", 0): LITTLE for site in "ab"}
    lost[cell("a", 1.0, "bit_flip", 1)] = MUCH
    _, summary = study(lost)
    assert left_out(summary) == ["bit_flip 1"]
    whole, part = curves(summary)
    assert (whole.place, whole.partial) == ("each", False)
    assert (part.place, part.partial) == ("a", True)
    assert "Not in this mean, as not all sites have them: bit_flip 1." in said(lost)


def test_what_is_not_known_is_said() -> None:
    lost = {cell(site, 1.0): (100,) if site == "a" else (1,) for site in "ab"}
    text = said(lost, states=[UNFINISHED, UNSURE])
    assert "Not finished: 1 of 2 cells lack trials, so this may change." in text
    assert "1 of 2 cells never became as precise as the stop rule asks" in text
    assert "2 of 2 cells have one trial and no interval" in text


def test_results_in_doubt_have_no_verdict() -> None:
    text = said({cell("a", 1.0): MUCH}, doubts=["golden accuracy 10.2% is no better than chance"])
    assert text.startswith("No verdict: golden accuracy 10.2% is no better than chance.")
    assert "costliest" not in text


def test_a_lower_better_metric_is_raised() -> None:
    _, summary = study({cell("a", 1.0): MUCH})
    error = MetricFacts("error", "", higher_is_better=False, each=DATA)
    ranked = [RankedSite("a", 1, 1, 1, 2.0, 1.5, 2.5, math.nan, 4)]
    text = " ".join(verdict(dataclasses.replace(summary, metric=error), ranked).sentences)
    assert "its faults raise the error by 20.12" in text
    assert ACCURACY.name not in text


def test_sites_that_are_called_numbers_are_called_sites() -> None:
    text = said({cell("3", 1.0): MUCH, cell("0", 1.0): LITTLE})
    assert "Of 2 sites, site 3 is the weakest" in text
    assert "random at 1% in site 3" in text
    assert "Protect first: site 3." in text
