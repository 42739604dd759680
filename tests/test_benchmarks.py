"""The benchmarks that compare fxfault with other ways to do the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks import simulated_workers
from benchmarks.networks import quant_digits
from benchmarks.peers_study import (
    HOOKS,
    OURS,
    Subject,
    Times,
    _check_counts,
    floating,
    measure_subject,
    quantised,
)
from benchmarks.peers_trials import ByFxfault, ByHooks, Outcome, flip_codes, flip_floats, hits
from fxfault.campaign import Study
from fxfault.campaign.driver import Progress, run_study
from fxfault.campaign.records.store import Store
from fxfault.campaign.studies.stop_rule import StopRule
from fxfault.campaign.workers.engine import Batch
from fxfault.campaign.workers.plan import Plan
from fxfault.campaign.workers.worker_engine import BATCHES_EACH
from fxfault.evaluation.rows import TrialRow
from fxfault.faults.bits import bits_of


def batches(images: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return [(part, torch.zeros(len(part)).long()) for part in images.split(size)]


def words(output: Any) -> Tensor:
    """The codes of a QuantTensor as words without a sign."""
    codes = (output.value / output.scale).round().int()
    return codes & ((1 << int(output.bit_width)) - 1)


def bits_between(a: Tensor, b: Tensor) -> list[int]:
    return [(int(x) ^ int(y)).bit_count() for x, y in zip(a.flatten(), b.flatten(), strict=True)]


def test_gaps_hit_each_element_alike() -> None:
    """Six standard deviations: wrong in one of 500 million runs for each of 101 figures."""
    random, times, rate = np.random.default_rng(0), 4000, 0.03
    drawn = [np.bincount(hits(random, 100, rate), minlength=100) for _ in range(times)]
    counts = np.sum(drawn, axis=0)
    assert abs(counts - times * rate).max() < 6 * (times * rate * (1 - rate)) ** 0.5
    assert abs(counts.sum() - 100 * times * rate) < 6 * (100 * times * rate * (1 - rate)) ** 0.5
    assert len(hits(random, 1000, 1e-9)) == 0


@torch.no_grad()
def test_plain_hooks_flip_one_bit_of_each_code() -> None:
    model, images = quant_digits()
    seen: list[Any] = []
    for site in ByFxfault(model, batches(images, 32)).names:
        seen.clear()
        handle = model.get_submodule(site).register_forward_hook(
            lambda layer, args, output: seen.append(output)
        )
        model(images[:4])
        handle.remove()
        before = words(seen[0]).clone()
        places = torch.arange(0, before.numel(), 2)
        flip_codes(seen[0], places, np.random.default_rng(0))
        found = bits_between(words(seen[0]), before)
        assert found[::2] == [1] * len(places)
        assert set(found[1::2]) <= {0}


def test_plain_hooks_flip_one_bit_of_each_float() -> None:
    values = torch.randn(4, 6)
    before = bits_of(values).clone()
    flip_floats(values, torch.arange(0, 24, 2), np.random.default_rng(0))
    changed = [
        (int(x) ^ int(y)) & 0xFFFFFFFF
        for x, y in zip(before.flatten(), bits_of(values).flatten(), strict=True)
    ]
    assert [bits.bit_count() for bits in changed] == [1, 0] * 12


@torch.no_grad()
def test_plain_hooks_change_as_many_predictions_as_fxfault() -> None:
    """Means of 40 trials each; six standard errors, wrong in one of 500 million runs."""
    model, images = quant_digits()
    data, trials = batches(images, 32), range(40)
    ours = ByFxfault(model, data)
    hooks = ByHooks(model, data, [model.get_submodule(name) for name in ours.names])
    changed = []
    for contender in (ours, hooks):
        contender.aim(4, 0.3)
        changed.append(np.array([contender.trial(number).changed for number in trials]))
        contender.release()
    difference = changed[0].mean() - changed[1].mean()
    assert changed[0].mean() > 1
    assert abs(difference) < 6 * (sum(c.var(ddof=1) for c in changed) / len(trials)) ** 0.5


@torch.no_grad()
def test_a_study_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    model, images = quant_digits()
    subjects: list[Subject] = [quantised(model, batches(images, 32))]
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)).eval()
    subjects.append(floating(net, batches(images, 32)))
    for subject in subjects:
        found = measure_subject(subject, 2, rates=(0.3, 1e-6))
        assert set(found) == {"skipped", "0.3", "1e-06"}
        assert len(found["0.3"]["seconds"]) == len(subject.layers)
        assert set(found["0.3"]["over_fxfault"]) == set(subject.contenders) - {OURS}
        assert found["0.3"]["changed"][HOOKS] > 0
        assert found["1e-06"]["changed"] == dict.fromkeys(subject.contenders, 0)
    printed = capsys.readouterr().out
    for tool in ("MRFI", "PyTorchFI"):
        assert (f"{tool}: left out, not installed" in printed) != (tool in subjects[1].contenders)


def test_other_numbers_of_faults_are_refused() -> None:
    made = {OURS: [Outcome(100, 0)] * 4, HOOKS: [Outcome(150, 0)] * 4}
    with pytest.raises(SystemExit, match="plain hooks struck 600 elements in 4 trials"):
        _check_counts("layer", made, 100.0)


def test_ratios_have_intervals() -> None:
    slow, fast = Times(np.array([4.0, 5.0, 6.0])), Times(np.array([1.0, 1.25, 1.5]))
    assert slow.over(fast) == (4.0, (4.0, 4.0))
    ratio, (low, high) = Times(np.array([4.0, 5.0, 7.0])).over(fast)
    assert low < ratio < high


def test_simulated_workers_share_the_trials_of_a_real_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulated_workers, "TRIAL", 0.01)
    study = replace(Study.from_yaml("digits_study"), stop=StopRule(margin=1.0, max_trials=40))
    engine = simulated_workers.SimulatedEngine(40, study, sites=3)
    loads: list[int] = []

    def note(progress: Progress) -> None:
        loads.extend(len(worker.batches) for worker in engine._workers)

    last = run_study(study, tmp_path / "study.sqlite", engine=engine, on_progress=note)
    assert last.is_finished
    assert last.trials == last.wanted
    assert 10 * len(last.cells) < last.trials < 40 * len(last.cells)
    assert max(loads) == BATCHES_EACH
    with Store.open(tmp_path / "study.sqlite") as store:
        rows = store.rows()
    alone = [simulated_workers.row_of(row.cell, row.trial) for row in rows]
    assert all(map(TrialRow.same_counts, alone, rows))


def test_an_idle_worker_gets_a_batch_before_one_that_is_busy() -> None:
    study = Study.from_yaml("digits_study")
    engine = simulated_workers.SimulatedEngine(3, study, sites=1)
    engine.start(Plan(study=study.to_dict()), print)
    while not all(worker.ready for worker in engine._workers):
        engine._hear_all(0.1)
    given = []
    for number in range(2 * 3 + 1):
        engine.submit(Batch("cell", (number,)))
        given.append(sorted(len(worker.batches) for worker in engine._workers))
    assert given == [[0, 0, 1], [0, 1, 1], [1, 1, 1], [1, 1, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2]]
