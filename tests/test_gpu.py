"""What an accelerator must give: the CPU's faults, without waiting for the device."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxfault
from fxfault.campaign import FaultEvaluation
from fxfault.evaluation import FullRunner
from fxfault.models import build_model

MODELS = ("random", "lsb_flip", "msb_flip", "full_flip")

Faulty = Callable[..., Any]

pytestmark = pytest.mark.gpu


@pytest.fixture
def device() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    return torch.device("cuda")


@pytest.fixture
def digits() -> nn.Module:
    """A calibrated network whose sums are exact enough to agree on any device: compare codes."""
    torch.manual_seed(0)
    settings = {"num_classes": 10, "in_channels": 1, "image_size": (8, 8)}
    model = build_model("quant_digits", weight_bit_width=4, act_bit_width=4, **settings)
    with torch.no_grad():
        model(torch.randn(64, 1, 8, 8))
    return model.eval()


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    """Make whatever waits for the device an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def quantiser(**settings: Any) -> nn.Module:
    from brevitas.nn import QuantIdentity

    return nn.Sequential(
        QuantIdentity(bit_width=4, scaling_impl_type="const", scaling_init=2.0, **settings)
    ).eval()


@pytest.mark.parametrize("fault_model", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("settings", [{}, {"hw_mask": True, "frequency_value": 16}])
def test_faults_are_those_of_the_cpu(
    faulty: Faulty,
    device: torch.device,
    fault_model: str,
    dtype: torch.dtype,
    settings: dict[str, Any],
) -> None:
    x = torch.randn(30, 3, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    outputs = []
    for place in (torch.device("cpu"), device):
        net = faulty(quantiser().to(dtype), probability=7.0, injection_type=fault_model, **settings)
        net.to(place)
        outputs.append(net(x.to(place)).cpu())
        net.faults.check()
    assert torch.equal(*outputs)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("statistics", [False, True])
def test_no_forward_waits_for_the_device(
    faulty: Faulty, device: torch.device, digits: nn.Module, statistics: bool, frozen: bool
) -> None:
    net = faulty(digits, probability=3.0, track_statistics=statistics).to(device)
    net = fxfault.freeze(net) if frozen else net
    x = torch.randn(64, 1, 8, 8, device=device)
    with torch.no_grad():
        net(x)
        torch.cuda.synchronize()
        with no_waiting():
            net(x)
    net.faults.check()


@pytest.mark.parametrize("gradient_mode", ["ste", "zero_faulty"])
def test_gradients_are_those_of_the_cpu(
    faulty: Faulty, device: torch.device, gradient_mode: str
) -> None:
    clean = torch.randn(30, 50, generator=torch.Generator().manual_seed(0))
    gradients = []
    for place in (torch.device("cpu"), device):
        net = faulty(quantiser(), probability=20.0, gradient_mode=gradient_mode).to(place)
        x = clean.to(place).requires_grad_()
        net(x).sum().backward()
        assert isinstance(x.grad, Tensor)
        gradients.append(x.grad.cpu())
    assert torch.equal(*gradients)


def test_statistics_are_those_of_the_cpu(faulty: Faulty, device: torch.device) -> None:
    x = torch.randn(30, 50, generator=torch.Generator().manual_seed(0))
    found = []
    for place in (torch.device("cpu"), device):
        net = faulty(quantiser(), probability=20.0).to(place)
        statistics = net.faults.new_statistics()
        net(x.to(place))
        found.append(statistics.to_dict())
    assert found[0]["total_injections"] == found[1]["total_injections"] > 100
    for ours, theirs in zip(found[0]["layers"], found[1]["layers"], strict=True):
        assert ours == pytest.approx(theirs)


def test_an_evaluation_runs(faulty: Faulty, device: torch.device, digits: nn.Module) -> None:
    batches = [(torch.randn(32, 1, 8, 8), torch.randint(10, (32,))) for _ in range(2)]
    net = fxfault.freeze(faulty(copy.deepcopy(digits), probability=5.0).to(device))
    evaluation = FaultEvaluation(FullRunner(net, batches, device), num_runs=2)
    results = list(evaluation.sweep([0.0, 20.0]))
    assert results[0].mean == results[0].baseline
    assert len(results[1].runs) == 2


def test_an_unsound_value_is_told_when_asked(faulty: Faulty, device: torch.device) -> None:
    net = faulty(quantiser(), probability=100.0).to(device)
    x = torch.randn(4, 5, device=device)
    x[0, 0] = float("nan")
    net(x)
    with pytest.raises(fxfault.errors.SiteError, match="not integer codes"):
        net.faults.check()
