"""Samples whose inputs differ in shape from batch to batch are struck and counted by their own.

What a sample meets is a function of (seed, trial, site, sample, element), where the element is
counted in the sample's own shape. So batches of one sample each, which hold no other shape, give
the same outputs, and the same counts of elements, hits and struck samples.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import tasks
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxfault
from fxfault.errors import SiteError
from fxfault.evaluation.compiled_runner import CompiledRunner
from fxfault.evaluation.full.runner import FullRunner
from fxfault.evaluation.incremental.runner import IncrementalRunner
from fxfault.evaluation.rows import TrialRow
from fxfault.evaluation.trials import Trials
from fxfault.metrics.metric import make_metric

LENGTHS = (7, 4, 9)
ONE = {"min_val": -1.0, "max_val": 1.0}
SIZES = ((8, 8), (8, 12), (6, 10))


def tokens(samples: int, length: int) -> dict[str, Tensor]:
    """Rows of digits' pixels, as `tasks.rows` has them, cut to a length."""
    drawn = torch.Generator().manual_seed(length)
    ids = torch.randint(4, (samples, length), generator=drawn)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def images(samples: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Digits, enlarged or cut to a size, and the classes of their pixels."""
    items = tasks.segmented("test").items[:samples]
    pictures = torch.stack([item["image"] for item in items])
    return F.interpolate(pictures, size), (F.interpolate(pictures, size)[:, 0] > 0.5).long()


def sequences() -> tuple[nn.Module, list[Any], Any]:
    return tasks.row_model(), [tokens(5, n) for n in (*LENGTHS, 7)], ("perplexity", {"shift": True})


def pictures() -> tuple[nn.Module, list[Any], Any]:
    return tasks.segmenter(), [images(4, size) for size in (*SIZES, SIZES[0])], ("mean_iou", {})


def alone(batch: Any) -> list[Any]:
    """The samples of a batch, each as a batch of its own."""
    if isinstance(batch, dict):
        parts = [value.split(1) for value in batch.values()]
        return [dict(zip(batch, one, strict=True)) for one in zip(*parts, strict=True)]
    return list(zip(*(value.split(1) for value in batch), strict=True))


def struck(network: nn.Module, **settings: Any) -> Any:
    config = {"enabled": True, "apply_during": "eval", "seed": 3, **settings}
    return fxfault.freeze(fxfault.transform(network.eval(), config))


def rows_of(runner: Any, trials: int = 3) -> tuple[list[TrialRow], list[Any]]:
    made = Trials(runner)
    made.set(made.faults.config)
    rows, results = [], []
    for trial in range(trials):
        rows.append(replace(made.run("{}", trial), seconds=0.0))
        results.append(made.last)
    return rows, results


@pytest.mark.parametrize("task", [sequences, pictures])
@pytest.mark.parametrize(
    "settings",
    [
        {"probability": 0.5},
        {"probability": 0.05, "rate_unit": "bit", "injection_type": "bit_flip"},
        {"num_faults": 2, "injection_type": "bit_flip"},
        {"faults": [{"injection_type": "msb_flip", "probability": 0.3},
                    {"injection_type": "random", "num_faults": 1}]},
        {"probability": 2.0, "memory": ["activations", "weights"]},
        {"probability": 20.0, "hw_mask": True, "frequency_value": 4},
    ],
    ids=["probability", "bits", "num_faults", "several", "weights", "units"],
)  # fmt: skip
def test_batches_of_one_sample_have_the_same_faults_and_counts(
    task: Any, settings: dict[str, Any]
) -> None:
    network, batches, (name, kwargs) = task()
    model = struck(network, **settings)
    together, results = rows_of(FullRunner(model, batches, metric=make_metric(name, kwargs)))
    singles = [one for batch in batches for one in alone(batch)]
    apart, expected = rows_of(FullRunner(model, singles, metric=make_metric(name, kwargs)))
    for row, other, result, same in zip(together, apart, results, expected, strict=True):
        assert torch.equal(result.struck, same.struck)
        assert torch.equal(result.records.isnan(), same.records.isnan())
        # Kernels may round by the size of a batch; a fault that is another one shows more.
        known = ~same.records.isnan()
        assert torch.allclose(result.records[known], same.records[known], rtol=1e-4)
        counts = ("samples", "faults", "elements", "struck")
        assert [getattr(row, key) for key in counts] == [getattr(other, key) for key in counts]
    assert any(row.faults for row in together)
    if "num_faults" not in settings:
        return
    assert all(row.faults == 2 * row.samples for row in together)
    assert all(row.struck == row.samples for row in together)


@pytest.mark.parametrize("task", [sequences, pictures])
def test_exposed_elements_are_those_that_the_sites_had(task: Any) -> None:
    """Counted by hooks on the layers of the network, for all batches."""
    network, batches, (name, kwargs) = task()
    model = struck(network, probability=1.0)
    metric = make_metric(name, kwargs)
    (row,), _ = rows_of(FullRunner(model, batches, metric=metric), trials=1)
    seen = [0]

    def count(module: Any, args: Any, output: Any) -> None:
        seen[0] += getattr(output, "value", output).numel()

    plain = task()[0].eval()
    paths = {site.module_path for site in model.faults}
    hooks = [plain.get_submodule(path).register_forward_hook(count) for path in paths]
    for batch in batches:
        if isinstance(batch, dict):
            plain(batch["input_ids"], batch["attention_mask"])
        else:
            plain(batch[0])
    for hook in hooks:
        hook.remove()
    assert row.elements == seen[0]
    # Far from every element is hit: four standard deviations of a binomial.
    assert abs(row.faults - 0.01 * seen[0]) < 4 * (0.01 * seen[0]) ** 0.5


def test_a_rare_fault_strikes_a_sample_by_its_own_length() -> None:
    """The share of short and of long sequences that is struck follows from their elements."""
    network, *_ = sequences()
    batches = [tokens(300, 4), tokens(300, 40)]
    model = struck(network, probability=0.2)
    metric = make_metric("perplexity", {"shift": True})
    (row,), (result,) = rows_of(FullRunner(model, batches, metric=metric), trials=1)
    shares = [float(part.double().mean()) for part in result.struck.split(300)]
    elements = {}
    for length in (4, 40):
        FullRunner(model, [tokens(1, length)], metric=metric).run()
        elements[length] = sum(site.elements for site in model.faults)
    for share, length in zip(shares, (4, 40), strict=True):
        expected = 1 - 0.998 ** elements[length]
        deviation = (expected * (1 - expected) / 300) ** 0.5
        assert abs(share - expected) < 4 * deviation + 1e-9  # wrong once in 16000
    assert row.struck == int(result.struck.sum())


def test_an_incremental_runner_runs_in_full_and_says_why() -> None:
    network, batches, (name, kwargs) = pictures()
    model = struck(network, probability=0.5)
    full = rows_of(FullRunner(model, batches, metric=make_metric(name, kwargs)))[0]
    runner = IncrementalRunner(model, batches, metric=make_metric(name, kwargs))
    assert rows_of(runner)[0] == full
    assert "differ in shape from batch to batch" in str(runner.why_full)
    assert not runner.samples_alike
    compiled = CompiledRunner(
        FullRunner(model, batches, metric=make_metric(name, kwargs)), backend="aot_eager"
    )
    assert rows_of(compiled)[0] == full
    assert "differ in shape" in str(compiled.why_not)


def test_more_faults_than_a_short_sample_has_elements_are_refused() -> None:
    network, *_ = sequences()
    model = struck(network, num_faults=400, injection_type="bit_flip")
    metric = make_metric("perplexity", {"shift": True})
    runner = FullRunner(model, [tokens(2, 40), tokens(2, 4)], metric=metric)
    with pytest.raises(SiteError, match=r"num_faults: got 400, allowed: up to the \d+ elements"):
        rows_of(runner, trials=1)


def test_a_site_that_a_batch_does_not_reach_strikes_none_of_its_samples() -> None:
    from brevitas.nn import QuantIdentity

    class Either(nn.Module):
        """Quantises long inputs alone, by its own Python code."""

        def __init__(self) -> None:
            super().__init__()
            self.long = QuantIdentity(bit_width=8, scaling_impl_type="const", **ONE)
            self.all = QuantIdentity(bit_width=8, scaling_impl_type="const", **ONE)

        def forward(self, x: Tensor) -> Tensor:
            if x.shape[1] > 3:
                x = self.long(x)
            return self.all(x)[:, :2]

    drawn = torch.Generator().manual_seed(0)
    batches = [
        (torch.rand(50, length, generator=drawn), torch.zeros(50, 2)) for length in (2, 6, 2)
    ]
    model = struck(Either(), probability=100.0, layers=["long"])
    for order in itertools.permutations(batches):
        metric = make_metric("mae")
        (row,), (result,) = rows_of(FullRunner(model, list(order), metric=metric), trials=1)
        reached = torch.cat([torch.full((50,), batch[0].shape[1] > 3) for batch in order])
        assert torch.equal(result.struck, reached)
        assert (row.struck, row.faults, row.elements) == (50, 300, 300)
