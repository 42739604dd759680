"""What faults cost: time and memory of a faulty forward against the clean one.

    python -m benchmarks.overhead [--turns N] [--threads N] [--json FILE]

The network is quant_cnv with 2-bit weights and activations, in evaluation, without
gradients, on batches of 64 images of 32 x 32. Beside fxfault stands a wrapper written to
the specification, with a dense mask (`benchmarks.dense_wrapper`). Then come the small
quant_digits (4 bits, 8 x 8 images), where the overhead of Python shows, a densenet121 with all its
sites disabled, and the call of one site alone.
"""

from __future__ import annotations

import copy
import functools
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

import fxfault
from benchmarks import dense_wrapper
from benchmarks.measuring import (
    Compared,
    Run,
    Spread,
    compare_in_turns,
    load_average,
    machine,
    parse_options,
    peak_bytes,
    seconds_of,
    verdict,
)
from fxfault.data.torchvision_import import import_torchvision
from fxfault.functional import begin_forward, fault_inject
from fxfault.models import build_model

BATCH = 64
PERCENTS = (0.001, 0.1, 1.0, 5.0, 20.0)
# Faulty over clean time, at most; at 1 % the dense wrapper must add ten times as much.
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
DENSE_FACTOR = 10.0
TRANSFORM_SECONDS = 3.0
MEBI = 1 << 20


def main() -> None:
    """Measure, print, and save where asked."""
    options = parse_options(__doc__, turns=25)
    torch.set_num_threads(options.threads)
    before = load_average()
    result: dict[str, Any] = {"schema": "fxfault-overhead/1", "machine": machine()}
    print("; ".join(f"{key} {value}" for key, value in result["machine"].items()))
    print(f"load average {before} before, {options.turns} turns\n")
    result["time"] = measure_time(options.turns)
    result["others"] = measure_others(options.turns)
    result["call"] = measure_call(10 * options.turns)
    result["memory"] = measure_memory()
    result["transform"] = measure_transform(min(5, options.turns))
    result["load_average"] = {"before": before, "after": load_average()}
    print(f"\nload average {result['load_average']['after']} after")
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print(f"saved {options.json}")


def network() -> tuple[nn.Module, Tensor]:
    """The clean network, in eval mode, with scales and normalisation from one batch."""
    torch.manual_seed(0)
    model = build_model(
        "quant_cnv",
        num_classes=10,
        in_channels=3,
        image_size=(32, 32),
        weight_bit_width=2,
        act_bit_width=2,
    )
    images = torch.randn(BATCH, 3, 32, 32)
    with torch.no_grad():
        model(images)
    return model.eval(), images


def transformed(model: nn.Module, percent: float, **settings: Any) -> Any:
    """The network with sites that strike while evaluating."""
    config = {"enabled": True, "probability": percent, "apply_during": "eval", "seed": 0}
    return fxfault.transform(model, {**config, **settings})


def _forward_of(module: nn.Module, images: Tensor) -> Run:
    return lambda: module(images)


# -- time --------------------------------------------------------------------------------


def measure_time(turns: int) -> dict[str, Any]:
    """Print and return the ratios of faulty to clean time.

    The first row compares the clean network with itself: what it shows is noise.
    """
    model, images = network()
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
            cases = {name: _forward_of(module, images) for name, module in group.items()}
            compared |= compare_in_turns(_forward_of(model, images), cases, count)
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
    return {
        "cases": {name: asdict(case) for name, case in compared.items()},
        "inside": {name: asdict(spread) for name, spread in inside.items()},
        "dense_over_fxfault_added_at_1_percent": factor,
    }


def _dense_factor(compared: dict[str, Compared], inside: Spread) -> float:
    """How many times as much the dense wrapper adds; of our two figures the larger one counts."""
    case = compared["fxfault 1 %"]
    ours = max(case.added.median, (inside.median - 1) * case.reference.median)
    return compared["dense 1 %"].added.median / ours


def _inside(net: Any, images: Tensor, turns: int) -> Spread:
    """1 + the share of a forward's time that its inserted calls take.

    Numerator and denominator come from the same forward, so that the mood of the machine
    cancels out; what the calls cost the layers around them (caches) is not in it.
    """
    spent = 0.0

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any) -> Any:
            nonlocal spent
            started = time.perf_counter()
            result = function(*args)
            spent += time.perf_counter() - started
            return result

        return call

    net = copy.deepcopy(net)
    calls = {function: timed(function) for function in (begin_forward, fault_inject)}
    for node in net.graph.nodes:
        node.target = calls.get(node.target, node.target)
    net.recompile()
    shares = []
    for turn in range(-1, turns):
        spent = 0.0
        total = seconds_of(_forward_of(net, images))
        if turn >= 0:
            shares.append(1 + spent / (total - spent))
    return Spread.of(shares)


def _time_row(name: str, case: Compared, inside: Spread | None = None) -> str:
    ratio, bound = case.ratio, BOUNDS.get(name)
    row = (
        f"{name:<26}{ratio.median:>8.3f}{f'{ratio.low:.3f} - {ratio.high:.3f}':>16}"
        f"{'' if inside is None else f'{inside.median:.3f}':>8}"
        f"{1e3 * case.added.median:>8.2f} ms"
    )
    return row if bound is None else f"{row}   {bound:g}: {verdict(ratio.median <= bound)}"


def measure_others(turns: int) -> dict[str, Any]:
    """Print and return the ratios of two more networks."""
    digits, small = build_digits()
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
            compared |= compare_in_turns(
                _forward_of(clean, batch), {name: _forward_of(net, batch)}, count
            )
    print()
    for name, case in compared.items():
        print(f"{_time_row(name, case, inside[name])} of {1e3 * case.reference.median:.1f} ms")
    return {
        name: {**asdict(case), "inside": asdict(inside[name])} for name, case in compared.items()
    }


def build_digits() -> tuple[nn.Module, Tensor]:
    """The bundled network for digits and a batch for it, as `network` gives its own."""
    torch.manual_seed(0)
    settings = {"weight_bit_width": 4, "act_bit_width": 4}
    model = build_model(
        "quant_digits", num_classes=10, in_channels=1, image_size=(8, 8), **settings
    )
    images = torch.randn(BATCH, 1, 8, 8)
    with torch.no_grad():
        model(images)
    return model.eval(), images


def measure_call(turns: int) -> dict[str, Any]:
    """Print and return the time of one call of `fault_inject` over that of one `clone`."""
    model, images = network()
    largest = _largest_output(model, images)
    net = transformed(model, 0.1)
    elements = largest.value[0].numel()
    with torch.no_grad():
        net(images)
        site = next(site for site in net.faults if site.elements == elements)
        copying = copy.copy(site)
        copying.layer = None  # As where somebody else sees the activation.
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
    model, images = network()
    largest = _largest_output(model, images)
    activation = largest_activation(model, images)
    with torch.no_grad():
        clean = peak_bytes(_forward_of(model, images))
    print(
        f"\nmemory: largest activation {activation / MEBI:.1f} MiB, "
        f"clean forward at most {clean / MEBI:.1f} MiB\n"
        f"{'in largest activations':<26}{'forward':>10}{'one call':>10}{'with grad':>11}   bound"
    )
    rows = {}
    for percent in (*PERCENTS, 100.0):
        net = transformed(model, percent)
        with torch.no_grad():
            extra = peak_bytes(_forward_of(net, images)) - clean
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
        dense = peak_bytes(_forward_of(wrapped, images)) - clean
    print(f"{'dense 1 %':<26}{dense / activation:>10.2f}")
    return {"largest_activation": activation, "clean": clean, "extra": rows, "dense": dense}


def largest_activation(model: nn.Module, images: Tensor) -> int:
    """Bytes of the largest output of a target."""
    values = _largest_output(model, images).value
    return int(values.numel() * values.element_size())


def _largest_output(model: nn.Module, images: Tensor) -> Any:
    """The largest output of a target, as the layer returns it."""
    seen: list[Any] = []
    hooks = [
        module.register_forward_hook(lambda module, args, output: seen.append(output))
        for module in model.modules()
        if type(module).__name__ in dense_wrapper.TARGETS
    ]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return max(seen, key=lambda output: output.value.numel())


def _peak_of_call(net: Any, activation: Any, *, requires_grad: bool) -> int:
    """What one call of `fault_inject` on the activation needs at most, its result included."""
    sizes = [site.elements for site in net.faults]
    elements = activation.value[0].numel()
    site = net.faults[sizes.index(elements)] if elements in sizes else net.faults[1]
    struck = activation._replace(value=activation.value.clone().requires_grad_(requires_grad))
    begin_forward(net.faults, activation.value)
    return peak_bytes(lambda: fault_inject(struck, site))


# -- transforming ------------------------------------------------------------------------


def measure_transform(turns: int) -> dict[str, Any]:
    """Print and return how long `transform` takes for a quantised densenet121."""
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
    """Torchvision's densenet121, quantised by Brevitas's own flow."""
    torchvision = import_torchvision()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Brevitas's flow warns of its own deprecation.
        from brevitas.graph.quantize import preprocess_for_quantize, quantize

        torch.manual_seed(0)
        float_model = torchvision.models.densenet121(weights=None).eval()
        model: nn.Module = quantize(preprocess_for_quantize(float_model))
    return model.eval()


if __name__ == "__main__":
    main()
