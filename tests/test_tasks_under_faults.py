"""The networks of `tasks.py` have the same rows in full and in incremental runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tasks
from torch.utils.data import DataLoader

import fxfault
from fxfault.errors import DataError
from fxfault.evaluation import FullRunner, IncrementalRunner
from fxfault.evaluation.rows import TrialRow
from fxfault.evaluation.trials import Trials
from fxfault.metrics import make_metric

STRUCK = {"enabled": True, "apply_during": "eval", "probability": 5.0, "seed": 3}


def made(reference: str, **kwargs: Any) -> Any:
    return getattr(tasks, reference.partition(":")[2])(**kwargs)


def rows_of(runner: Any) -> list[TrialRow]:
    trials = Trials(runner)
    trials.set(trials.faults.config)
    return [replace(trials.run("{}", trial), seconds=0.0) for trial in range(2)]


@pytest.mark.parametrize("name", tasks.TASKS)
def test_a_task_has_the_same_rows_in_each_runner(name: str) -> None:
    task = tasks.TASKS[name]
    try:
        metric = make_metric(task.metric, task.kwargs)
    except DataError as error:
        pytest.skip(str(error))
    data = made(task.data, split="test")
    loader = data if isinstance(data, DataLoader) else DataLoader(data, 32)
    model = fxfault.freeze(fxfault.transform(made(task.model).eval(), STRUCK))
    full = rows_of(FullRunner(model, loader, metric=metric))
    runner = IncrementalRunner(
        model, loader, verify=100.0, metric=make_metric(task.metric, task.kwargs)
    )
    assert rows_of(runner) == full
    assert all(row.value != row.golden for row in full)
    assert all(row.sdc for row in full)
