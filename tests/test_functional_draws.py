"""The operation in a graph: its ways to draw and to change words give the same bits."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from brevitas.nn import QuantIdentity
from brevitas.quant.binary import SignedBinaryActPerTensorConst
from functional_tools import (
    EVERY_KIND,
    MODELS,
    RATES,
    Faulty,
    chain,
    data,
    fixed_scale,
    gradients_of,
)
from torch import Tensor

from fxfault.faults import sampling
from fxfault.strike import draws, plan, strikes

# -- draws of a fixed size, as on an accelerator ------------------------------------------


@pytest.fixture(params=[0.5, 10.0, 90.0, 100.0])
def both_draws(
    request: pytest.FixtureRequest, faulty: Faulty, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[Any]]:
    """Give a function that runs a measurement with draws of either kind."""

    def run(measure: Callable[[Any], Any], **settings: Any) -> list[Any]:
        results = []
        for fixed in (False, True):
            for name in ("random_hits", "random_upsets"):
                draw = functools.partial(getattr(sampling, name), fixed_size=fixed)
                monkeypatch.setattr(draws, name, draw)
            if fixed:
                monkeypatch.setattr(plan, "order_for_loops", lambda *given: None)
            net = faulty(
                chain(fixed_scale(4, narrow_range=True)),
                probability=request.param,
                **settings,
            )
            results.append(measure(net))
        return results

    return run


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_fixed_size_gives_the_same_values(
    both_draws: Callable[..., list[Any]], model: str, grad: bool
) -> None:
    def measure(net: Any) -> Tensor:
        with torch.set_grad_enabled(grad):
            return net(data(30, 20).requires_grad_(grad)).value

    assert torch.equal(*both_draws(measure, injection_type=model))


def numbers_of(statistics: Any) -> dict[str, Any]:
    """What was recorded at the first site."""
    layer = statistics.to_dict()["layers"]["0"]
    return {key: number for key, number in layer.items() if key != "name"}


KINDS: dict[str, dict[str, Any]] = {
    "random bit": {"injection_type": "bit_flip"},
    "stuck": {"injection_type": "stuck_at_1"},
    "burst": {"injection_type": "burst", "burst_length": 3},
    "bits": {"injection_type": "bit_flip", "rate_unit": "bit"},
    "stuck bits": {"injection_type": "stuck_at_0", "rate_unit": "bit"},
}


@pytest.mark.parametrize("gradient_mode", ["ste", "zero_faulty"])
@pytest.mark.parametrize("kind", [{}, *KINDS.values()], ids=str)
def test_fixed_size_gives_the_same_gradients(
    both_draws: Callable[..., list[Any]], gradient_mode: str, kind: dict[str, Any]
) -> None:
    def measure(net: Any) -> Tensor:
        return gradients_of(net, data(30, 20), data(30, 20, seed=3))[1]

    assert torch.equal(*both_draws(measure, gradient_mode=gradient_mode, **kind))


@pytest.mark.parametrize("kind", KINDS.values(), ids=str)
def test_fixed_size_gives_the_same_faults_of_other_kinds(
    both_draws: Callable[..., list[Any]], kind: dict[str, Any]
) -> None:
    def measure(net: Any) -> tuple[list[float], dict[str, Any]]:
        statistics = net.faults.new_statistics()
        values = net(data(30, 400)).value.tolist()
        return values, numbers_of(statistics)

    (values, layer), (fixed_values, fixed_layer) = both_draws(measure, **kind)
    assert fixed_values == values
    assert fixed_layer == pytest.approx(layer, rel=1e-12)
    assert layer["injected_count"] > 0


SEVERAL = [
    {"injection_type": "bit_flip", "rate_unit": "bit", "probability": 20.0},
    {"injection_type": "random", "probability": 1.0},
    {"injection_type": "stuck_at_1", "bit": 1, "probability": 30.0},
    {"injection_type": "burst", "num_faults": 4},
]


@pytest.mark.parametrize("mode", ["ste", "zero_faulty"])
def test_fixed_size_gives_the_same_where_several_faults_strike(
    faulty: Faulty, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    results = []
    for fixed in (False, True):
        for name in ("random_hits", "random_upsets"):
            draw = functools.partial(getattr(sampling, name), fixed_size=fixed)
            monkeypatch.setattr(draws, name, draw)
        if fixed:
            monkeypatch.setattr(plan, "order_for_loops", lambda *given: None)
        net = faulty(chain(fixed_scale(4)), faults=SEVERAL, gradient_mode=mode)
        statistics = net.faults.new_statistics()
        x = data(30, 20) / 4  # Clipped nowhere.
        output, gradient, _ = gradients_of(net, x, data(30, 20, seed=3))
        results.append((output, gradient, numbers_of(statistics)))
        if mode == "zero_faulty":
            clean = gradients_of(chain(fixed_scale(4)), x, data(30, 20, seed=3))[1]
            assert bool((clean != 0).all())
            assert int((gradient == 0).sum()) == statistics.total_injections
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert results[1][2] == pytest.approx(results[0][2], rel=1e-12)


@pytest.mark.parametrize("model", MODELS)
def test_fixed_size_gives_the_same_statistics(
    both_draws: Callable[..., list[Any]], model: str
) -> None:
    def measure(net: Any) -> dict[str, Any]:
        statistics = net.faults.new_statistics()
        for _ in range(3):
            net(data(30, 20))
        return numbers_of(statistics)

    plain, fixed = both_draws(measure, injection_type=model)
    assert fixed == pytest.approx(plain, rel=1e-12)


# -- the compiled loop and torch's operations ---------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("width", [1, 3, 8, 16])
@pytest.mark.parametrize("narrow", [False, True])
def test_the_loop_gives_what_torch_gives(
    faulty: Faulty,
    monkeypatch: pytest.MonkeyPatch,
    width: int,
    narrow: bool,
    model: str,
    dtype: torch.dtype,
) -> None:
    binary = QuantIdentity(act_quant=SignedBinaryActPerTensorConst, return_quant_tensor=True)
    layer = fixed_scale(width, narrow_range=narrow) if width > 1 else binary
    results = []
    for by_loop in (True, False):
        if not by_loop:
            monkeypatch.setattr(plan, "order_for_loops", lambda *given: None)
        net = faulty(chain(layer), injection_type=model, seed=1).to(dtype)
        for probability in (0.5, 20.0, 100.0):
            net.faults.set_probability(probability)
            net.faults.reset()
            statistics = net.faults.new_statistics()
            with torch.no_grad():
                recorded = net(data(30, 50).to(dtype)).value
            net.faults.set_statistics(None)
            net.faults.reset()
            with torch.no_grad():
                alone = net(data(30, 50).to(dtype)).value
            assert torch.equal(alone, recorded)
            results.append((recorded.view(torch.uint8), statistics.to_dict()))
    for (looped, counts), (plain, plain_counts) in zip(results[:3], results[3:], strict=True):
        assert torch.equal(looped, plain)  # All bits, the sign of a zero too.
        assert counts == plain_counts


@pytest.mark.parametrize(("model", "rate"), EVERY_KIND, ids=str)
@pytest.mark.parametrize("width", [1, 3, 16])
def test_the_loop_gives_what_torch_gives_of_every_kind(
    faulty: Faulty,
    monkeypatch: pytest.MonkeyPatch,
    width: int,
    model: dict[str, Any],
    rate: dict[str, Any],
) -> None:
    binary = QuantIdentity(act_quant=SignedBinaryActPerTensorConst, return_quant_tensor=True)
    layer = fixed_scale(width, narrow_range=True) if width > 1 else binary
    results = []
    for by_loop in (True, False):
        if not by_loop:
            monkeypatch.setattr(plan, "order_for_loops", lambda *given: None)
        net = faulty(chain(layer), **model, **rate)
        statistics = net.faults.new_statistics()
        with torch.no_grad():
            struck = net(data(30, 50)).value
        results.append((struck.view(torch.uint8), statistics.to_dict()))
    (looped, counts), (plain, plain_counts) = results
    assert torch.equal(looped, plain)
    assert counts == plain_counts
    assert counts["total_injections"] > 0


SHAPES = [
    (3, 4, 5),
    (1, 7, 2),
    (3, 6, 3, 5),
    (2, 1, 3, 4),
    (2, 5, 1, 1),
    (1, 2, 1, 6),
    (2, 3, 2, 3, 2),
]


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rate", RATES.values(), ids=str)
def test_the_loop_finds_its_way_where_channels_come_last(
    faulty: Faulty, monkeypatch: pytest.MonkeyPatch, rate: dict[str, Any], shape: tuple[int, ...]
) -> None:
    monkeypatch.setattr(strikes, "_write", None)  # Nobody calls it.
    rate = {**rate, "injection_type": "bit_flip"}
    if "num_faults" in rate:
        rate["num_faults"] = 2
    x = data(*shape)
    results = []
    for arranged in (x, x.movedim(1, -1).contiguous().movedim(-1, 1)):
        net = faulty(fixed_scale(4), **rate)
        statistics = net.faults.new_statistics()
        recorded = net(arranged).value
        net.faults.set_statistics(None)
        net.faults.reset()
        assert torch.equal(net(arranged).value, recorded)
        assert recorded.stride() == fixed_scale(4)(arranged).value.stride()
        results.append((recorded, statistics.to_dict()))
    (rows, counts), (last, last_counts) = results
    assert torch.equal(rows, last)
    assert counts == last_counts
    assert counts["total_injections"] > 0
