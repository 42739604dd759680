"""What the field knows of weights and floats, found again on the bundled digits network.

Each assertion compares means over trials that differ by many standard errors; the seeds are fixed.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fxfault
from fxfault.config.fault_injection import FaultInjectionConfig
from fxfault.evaluation.full.runner import FullRunner
from fxfault.experiment.parts import Batches, load_model, open_test_data
from fxfault.experiment.sections import ExperimentConfig

TRIALS = 12


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, Any]:
    experiment = ExperimentConfig.from_dict(
        {
            "dataset": {"name": "digits"},
            "model": {"name": "quant_digits"},
            "quantization": {"weight_bit_width": 4, "act_bit_width": 4},
            "checkpoint": {"path": "bundled:digits"},
        }
    )
    data = open_test_data(experiment)
    model, _ = load_model(experiment, "bundled:digits", data.facts, ".")
    return model.eval(), list(Batches(data.dataset, 250))


def lost(digits: tuple[nn.Module, Any], layers: Any = None, **faults: Any) -> float:
    """Accuracy that faults cost, in points, in the mean over trials."""
    model, data = digits
    settings = {"enabled": True, "apply_during": "eval", "seed": 1, "layers": layers, **faults}
    faulty = fxfault.freeze(fxfault.transform(model, FaultInjectionConfig.from_dict(settings)))
    runner, costs = FullRunner(faulty, data), []
    golden = runner.golden().accuracy
    for trial in range(TRIALS):
        faulty.faults.reset(trial)
        costs.append(golden - runner.run().accuracy)
    return sum(costs) / len(costs)


def flips(bit: int, **more: Any) -> dict[str, Any]:
    return {"injection_type": "bit_flip", "bit": bit, **more}


def test_the_highest_bit_of_a_weight_costs_most(digits: Any) -> None:
    costs = [lost(digits, **flips(bit, memory="weights", probability=5.0)) for bit in range(4)]

    assert costs[3] > 3 * max(costs[:3])
    assert costs[3] > 5


def test_the_first_layer_is_the_most_fragile(digits: Any) -> None:
    strike = flips(3, memory="weights", probability=5.0)
    names = ["features.0.weight", "features.3.weight", "features.7.weight", "classifier.0.weight"]
    costs = [lost(digits, name, **strike) for name in names]

    assert costs[0] == max(costs)
    assert costs[0] > 2 * costs[3]


def test_exponents_of_floats_cost_and_mantissas_do_not(digits: Any) -> None:
    share = {"memory": "parameters", "probability": 1.0}
    mantissa = max(lost(digits, "*.weight", **flips(bit, **share)) for bit in (0, 11, 22))
    exponent = lost(digits, "*.weight", **flips(30, **share))

    assert mantissa < 1
    assert exponent > 50


def test_a_scale_is_worse_than_a_weight(digits: Any) -> None:
    one = {"memory": "parameters", "num_faults": 1}
    top = {bit: lost(digits, "*scaling_impl.value", **flips(bit, **one)) for bit in (24, 26, 28)}
    weight = {bit: lost(digits, "*.weight", **flips(bit, **one)) for bit in (24, 26, 28)}

    assert all(top[bit] > weight[bit] for bit in top)
    assert sum(top.values()) > 10 * sum(weight.values())
    assert torch.tensor(list(top.values())).isfinite().all()
