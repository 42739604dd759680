"""The networks of `tasks.py` do their tasks, and worse under faults."""

from __future__ import annotations

import functools
import importlib
import math
from typing import Any

import pytest
import tasks
import torch
from torch.utils.data import DataLoader

import fxfault
from fxfault.data.batches import Batch, take_apart
from fxfault.metrics.built_in import BUILT_IN

STRUCK = {"enabled": True, "apply_during": "eval", "probability": 10.0, "seed": 3}


def made(reference: str, **kwargs: Any) -> Any:
    return getattr(tasks, reference.partition(":")[2])(**kwargs)


@functools.cache
def batches(name: str, size: int = 32) -> list[Batch]:
    task = tasks.TASKS[name]
    data, forward = made(task.data, split="test"), made(task.model).forward
    loader = data if isinstance(data, DataLoader) else DataLoader(data, size)
    return [take_apart(batch, forward=forward) for batch in loader]


def measured(name: str, network: Any) -> tuple[float, torch.Tensor]:
    """The number for all data, and the values of the samples."""
    task = tasks.TASKS[name]
    module, _, attribute = BUILT_IN[task.metric].partition(":")
    metric: Any = getattr(importlib.import_module(module), attribute)
    is_class = isinstance(metric, type)
    metric = metric(**task.kwargs) if is_class else functools.partial(metric, **task.kwargs)
    values = []
    with torch.no_grad():
        for batch in batches(name):
            outputs = network(*batch.inputs, **batch.keywords)
            if is_class:
                metric.update(outputs, batch.targets)
            each = metric.per_sample if is_class else metric
            values.append(each(outputs, batch.targets))
    samples = torch.cat(values)
    return (metric.compute() if is_class else float(samples.mean())), samples


@pytest.mark.parametrize("name", tasks.TASKS)
def test_a_network_does_its_task_and_worse_under_faults(name: str) -> None:
    task = tasks.TASKS[name]
    network = made(task.model)
    golden, samples = measured(name, network)
    assert task.at_least < golden < task.at_most
    assert len(samples) == tasks.SAMPLES
    faulty: Any = fxfault.transform(network, STRUCK)
    assert len(faulty.faults) >= 2
    struck, changed = measured(name, faulty)
    higher = math.isfinite(task.at_least)
    assert struck < golden if higher else struck > golden
    assert float((changed != samples).double().mean()) > 0.2
    faulty.faults.set_probability(0.0)
    again, same = measured(name, faulty)
    assert again == golden
    assert same.tolist() == samples.tolist()


def test_a_network_is_trained_the_same_way_each_time() -> None:
    before = torch.get_rng_state()
    first = tasks._network("stereo_net").state_dict()
    tasks._network.cache_clear()
    second = tasks._network("stereo_net").state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", tasks.TASKS)
def test_batches_have_the_forms_that_they_are_meant_to_have(name: str) -> None:
    first = batches(name)[0]
    assert first.samples == 32
    expected = {"regression": (2, []), "language": (0, ["input_ids", "attention_mask"])}
    assert (len(first.inputs), list(first.keywords)) == expected.get(name, (1, []))
    if name == "language":
        assert len({batch.keywords["input_ids"].shape[1] for batch in batches(name)}) > 1
        assert first.keywords["input_ids"].dtype == torch.int64
