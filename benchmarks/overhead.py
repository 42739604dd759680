"""What faults cost: time and memory of a faulty forward against the clean one.

    python -m benchmarks.overhead [--turns N] [--threads N] [--json FILE]

The network is quant_cnv with 2-bit weights and activations, in evaluation, without gradients, on
batches of 64 images of 32 x 32. The reference tool is a wrapper written to the specification, with
a dense mask (`benchmarks.dense_wrapper`). Further cases are the small quant_digits (4 bits, 8 x 8
images), where the overhead of Python shows, a densenet121 with all its sites disabled, and the
call of one site alone.
"""

from __future__ import annotations

import copy
import functools
import warnings
from dataclasses import asdict
from typing import Any

import torch
from brevitas.nn import QuantHardTanh, QuantIdentity, QuantReLU
from torch import Tensor, nn

from benchmarks import dense_wrapper
from benchmarks.measuring import (
    Compared,
    Spread,
    compare_in_turns,
    peak_bytes,
    ratio_row,
    run_benchmark,
    seconds_of,
    verdict,
)
from benchmarks.networks import (
    BATCH,
    Stopwatch,
    outputs_of,
    quant_cnv,
    quant_digits,
    transformed,
)
from fxfault.data.torchvision_import import import_torchvision
from fxfault.functional import begin_forward, fault_inject

PERCENTS = (0.001, 0.1, 1.0, 5.0, 20.0)
# Upper bounds of faulty over clean time.
BOUNDS = {
    "fxfault 0.001 %": 1.01,
    "fxfault 0.1 %": 1.01,
    "fxfault 1 %": 1.04,
    "fxfault 5 %": 1.10,
    "fxfault 20 %": 1.30,
    "fxfault 5 % + statistics": 1.20,
    "quant_digits 1 %": 1.25,
    "densenet121, disabled": 1.01,
    "one call, copying": 1.3,
    "one call, in place": 0.4,
}
SITE_MICROSECONDS = 120.0  # Upper bound of one strike after a layer has filled the caches.
DENSE_FACTOR = 10.0  # The dense wrapper must add this many times as much at 1 %.
TRANSFORM_SECONDS = 3.0
MEBI = 1 << 20


def measure(turns: int) -> dict[str, Any]:
    """Print and return all figures."""
    print()
    return {
        "time": measure_time(turns),
        "others": measure_others(turns),
        "call": measure_call(10 * turns),
        "memory": measure_memory(),
        "transform": measure_transform(min(5, turns)),
    }


# -- time --------------------------------------------------------------------------------


def measure_time(turns: int) -> dict[str, Any]:
    """Print and return the ratios of faulty to clean time.

    The first row compares the clean network with itself and shows the noise.
    """
    model, images = quant_cnv()
    disabled = transformed(model, 1.0)
    disabled.faults.enabled = False
    ours: dict[str, nn.Module] = {"clean again": model, "inserted, disabled": disabled}
    for percent in PERCENTS:
        ours[f"fxfault {percent:g} %"] = transformed(model, percent)
    ours["fxfault 5 % + statistics"] = transformed(model, 5.0, track_statistics=True)
    dense = {f"dense {percent:g} %": dense_wrapper.inject(model, percent) for percent in PERCENTS}
    compared: dict[str, Compared] = {}
    with torch.no_grad():
        inside = {
            name: _inside(net, images, turns)
            for name, net in ours.items()
            if name.startswith("fxfault")
        }
        for group, count in ((ours, turns), (dense, max(3, turns // 3))):
            cases = {name: functools.partial(net, images) for name, net in group.items()}
            compared |= compare_in_turns(functools.partial(model, images), cases, count)
    head = f"{'faulty / clean time':<26}{'median':>8}{'quartiles':>16}{'inside':>8}{'added':>11}"
    print(f"{head}   bound")
    for name, case in compared.items():
        print(_time_row(name, case, inside.get(name)))
    factor = _dense_factor(compared, inside["fxfault 1 %"])
    met = verdict(factor >= DENSE_FACTOR)
    print(f"dense adds {factor:.1f} times as much at 1 %   at least {DENSE_FACTOR:g}: {met}")
    clean = compared["clean again"].reference
    print(f"clean forward {1e3 * clean.median:.1f} ms ({BATCH} images)")
    print("inside: 1 + the time in the inserted calls over the rest of the same forward")
    with torch.no_grad():
        site = _site_cost(ours["fxfault 0.001 %"], images, turns)
    print(
        f"one site at 0.001 %, inside a forward: {site.median:.0f} us ({site.quartiles(0)})   "
        f"{SITE_MICROSECONDS:g}: {verdict(site.median <= SITE_MICROSECONDS)}"
    )
    return {
        "site_microseconds": asdict(site),
        "cases": {name: asdict(case) for name, case in compared.items()},
        "inside": {name: asdict(spread) for name, spread in inside.items()},
        "dense_over_fxfault_added_at_1_percent": factor,
    }


def _dense_factor(compared: dict[str, Compared], inside: Spread) -> float:
    """Return how many times as much the dense wrapper adds, over the larger of our two figures."""
    case = compared["fxfault 1 %"]
    ours = max(case.added.median, (inside.median - 1) * case.reference.median)
    return compared["dense 1 %"].added.median / ours


def _inside(net: Any, images: Tensor, turns: int) -> Spread:
    """Return 1 + the time of the inserted calls over the rest of the same forward.

    Both times come from the same forward, so changes in the machine's load cancel out. The cost
    that the calls cause in the layers around them (caches) is not included.
    """
    net, watch = copy.deepcopy(net), Stopwatch()
    watch.time_calls(net)
    shares = []
    for turn in range(-1, turns):
        total = seconds_of(functools.partial(net, images))
        spent = watch.read()
        if turn >= 0:
            shares.append(1 + spent / (total - spent))
    return Spread.of(shares)


def _site_cost(net: Any, images: Tensor, turns: int) -> Spread:
    """Return the microseconds that one call of `fault_inject` takes, mean over the sites."""
    net, watch = copy.deepcopy(net), Stopwatch()
    watch.time_calls(net, (fault_inject,))
    costs = []
    for _ in range(1 + turns):
        net(images)
        costs.append(1e6 * watch.read() / len(net.faults))
    return Spread.of(costs[1:])


def _time_row(name: str, case: Compared, inside: Spread | None = None) -> str:
    cells = f"{'' if inside is None else f'{inside.median:.3f}':>8}"
    return ratio_row(name, case, BOUNDS.get(name), f"{cells}{1e3 * case.added.median:>8.2f} ms")


def measure_others(turns: int) -> dict[str, Any]:
    """Print and return the ratios of two more networks."""
    digits, small = quant_digits()
    dense, images = densenet121().eval(), torch.randn(4, 3, 64, 64)
    disabled = transformed(dense, 1.0)
    disabled.faults.enabled = False
    digits_faulty = transformed(digits, 1.0)
    compared, inside = {}, {}
    with torch.no_grad():
        for name, clean, net, batch, count in (
            ("quant_digits 1 %", digits, digits_faulty, small, 10 * turns),
            ("densenet121, disabled", dense, disabled, images, turns),
        ):
            inside[name] = _inside(net, batch, count)
            cases = {name: functools.partial(net, batch)}
            compared |= compare_in_turns(functools.partial(clean, batch), cases, count)
    print()
    for name, case in compared.items():
        print(f"{_time_row(name, case, inside[name])} of {1e3 * case.reference.median:.1f} ms")
    return {
        name: {**asdict(case), "inside": asdict(inside[name])} for name, case in compared.items()
    }


def measure_call(turns: int) -> dict[str, Any]:
    """Print and return the time of one call of `fault_inject` over that of one `clone`."""
    model, images = quant_cnv()
    largest = _largest_output(model, images)
    net = transformed(model, 0.1)
    elements = largest.value[0].numel()
    with torch.no_grad():
        net(images)
        site = next(site for site in net.faults if site.elements == elements)
        copying = copy.copy(site)
        copying.layer = None  # As if other code also saw the activation.
        sites = {"one call, copying": copying, "one call, in place": site}
        cases = {name: functools.partial(fault_inject, largest, s) for name, s in sites.items()}
        compared = compare_in_turns(largest.value.clone, cases, turns)
    size = f"{BATCH * elements / 1e6:.1f} M elements"
    print(f"\none call of fault_inject at 0.1 %, {size}, over one clone")
    for name, case in compared.items():
        print(f"{_time_row(name, case)} of {1e3 * case.reference.median:.2f} ms")
    return {name: asdict(case) for name, case in compared.items()}


# -- memory ------------------------------------------------------------------------------


def measure_memory() -> dict[str, Any]:
    """Print and return the memory that faults need beyond the clean forward's."""
    model, images = quant_cnv()
    largest = _largest_output(model, images)
    activation = largest_activation(model, images)
    with torch.no_grad():
        clean = peak_bytes(functools.partial(model, images))
    print(
        f"\nmemory: largest activation {activation / MEBI:.1f} MiB, "
        f"clean forward at most {clean / MEBI:.1f} MiB\n"
        f"{'in largest activations':<26}{'forward':>10}{'one call':>10}{'with grad':>11}   bound"
    )
    rows = {}
    for percent in (*PERCENTS, 100.0):
        net = transformed(model, percent)
        with torch.no_grad():
            extra = peak_bytes(functools.partial(net, images)) - clean
            call = _peak_of_call(net, largest, requires_grad=False)
        copying = _peak_of_call(net, largest, requires_grad=True)
        rows[f"{percent:g}"] = {"forward": extra, "call": call, "call_with_grad": copying}
        shares = [value / activation for value in (extra, call, copying)]
        print(
            f"{f'fxfault {percent:g} %':<26}{shares[0]:>10.2f}{shares[1]:>10.2f}{shares[2]:>11.2f}"
            f"   1: {verdict(shares[0] <= 1)}"
        )
    wrapped = dense_wrapper.inject(model, 1.0)
    with torch.no_grad():
        dense = peak_bytes(functools.partial(wrapped, images)) - clean
    print(f"{'dense 1 %':<26}{dense / activation:>10.2f}")
    return {"largest_activation": activation, "clean": clean, "extra": rows, "dense": dense}


def largest_activation(model: nn.Module, images: Tensor) -> int:
    """Return the size in bytes of the largest output of a target."""
    values = _largest_output(model, images).value
    return int(values.numel() * values.element_size())


def _largest_output(model: nn.Module, images: Tensor) -> Any:
    outputs = outputs_of(model, images, QuantIdentity, QuantReLU, QuantHardTanh)
    return max(outputs, key=lambda output: output.value.numel())


def _peak_of_call(net: Any, activation: Any, *, requires_grad: bool) -> int:
    """Return the most bytes that one call of `fault_inject` needs, including its result."""
    sizes = [site.elements for site in net.faults]
    elements = activation.value[0].numel()
    site = net.faults[sizes.index(elements)] if elements in sizes else net.faults[1]
    struck = activation._replace(value=activation.value.clone().requires_grad_(requires_grad))
    begin_forward(net.faults, activation.value)
    return peak_bytes(lambda: fault_inject(struck, site))


# -- transforming ------------------------------------------------------------------------


def measure_transform(turns: int) -> dict[str, Any]:
    """Print and return the time of `transform` for a quantised densenet121."""
    model = densenet121()
    seconds = sorted(seconds_of(lambda: transformed(model, 1.0)) for _ in range(turns))
    sites = len(transformed(model, 1.0).faults)
    median = seconds[len(seconds) // 2]
    print(
        f"\ntransform of densenet121 ({sites} sites): {median:.2f} s "
        f"({seconds[0]:.2f} - {seconds[-1]:.2f} in {turns} turns)   "
        f"{TRANSFORM_SECONDS:g} s: {verdict(median < TRANSFORM_SECONDS)}"
    )
    return {"sites": sites, "seconds": seconds}


def densenet121() -> nn.Module:
    """Build torchvision's densenet121, quantised by Brevitas's own flow."""
    torchvision = import_torchvision()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Brevitas's flow uses deprecated calls of its own.
        from brevitas.graph.quantize import preprocess_for_quantize, quantize

        torch.manual_seed(0)
        float_model = torchvision.models.densenet121(weights=None).eval()
        model: nn.Module = quantize(preprocess_for_quantize(float_model))
    return model.eval()


if __name__ == "__main__":
    run_benchmark(__doc__, "fxfault-overhead/1", 25, measure)
