"""Laws of transformed models, over forwards as public code writes them (`forwards/`).

A graph answers only for what it was traced for, and each call of a target meets one strike:
before and after every change that an entry names, for its default and its other arguments.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from forwards import images, states, transformers
from forwards.table import TABLE, Forward
from torch import Tensor, nn
from wild import ALL_HIT, alike, lowest_bits_flipped

import fxfault
from fxfault.passes import containers_of, trace
from fxfault.passes.tracing.traced_module import TracedModule
from fxfault.quantisers.inner_quantisers import gives_word, is_named

NETWORKS = (images, transformers, states)  # Each adds its own to the table.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Named tensors"),
    pytest.mark.parametrize("entry", TABLE, ids=lambda entry: entry.name),
]
Modes = tuple[Callable[[], contextlib.AbstractContextManager[None]], ...]
PLAIN: Modes = (contextlib.nullcontext,)
TARGETS = tuple(fxfault.FaultInjectionConfig().targets)


def outputs_of(
    entry: Forward, model: nn.Module, sizes: tuple[int, ...], changed: bool, modes: Modes = PLAIN
) -> list[Any]:
    """What all calls return, before and after each change, with state outside put back.

    Args:
        modes: what holds while the calls are made; they are made once in each of them.
    """
    entry.reset()
    outputs = []
    try:
        for change in (None, *(entry.changes if changed else ())):
            if change is not None:
                change(model)
            for mode in modes:
                with mode():
                    outputs += [kept(call(model, size)) for call in entry.calls for size in sizes]
    finally:
        entry.reset()
    return outputs


def kept(output: Any) -> Any:
    return output.detach().clone() if isinstance(output, Tensor) else output


def transformed(entry: Forward, training: bool) -> Any:
    entry.reset()
    faulty = fxfault.transform(entry().train(training), ALL_HIT)
    faulty.faults.enabled = False
    return faulty


@functools.cache
def shared(name: str) -> Any:
    """A transformed model in eval mode, for tests that leave it as it is."""
    return transformed(next(entry for entry in TABLE if entry.name == name), False)


def calls_of_targets(model: nn.Module) -> list[str]:
    """A list that grows with each call of a target layer."""
    calls: list[str] = []
    for path, module in model.named_modules():
        if is_named(module, TARGETS) and gives_word(module):
            module.register_forward_pre_hook(lambda *_, path=path: calls.append(path))
    return calls


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_each_call_gives_what_the_eager_model_gives(entry: Forward, training: bool) -> None:
    """Without faults, and with one in the lowest bit of each element, in turn."""
    sizes = (7,) if training else (16, 1, 7)
    eager, faulty = entry().train(training), transformed(entry, training)
    calls, statistics = calls_of_targets(eager), faulty.faults.new_statistics()
    struck: list[str] = []

    @contextlib.contextmanager
    def flipped() -> Iterator[None]:
        before = len(calls)
        with lowest_bits_flipped():
            yield
        struck.extend(calls[before:])

    @contextlib.contextmanager
    def enabled() -> Iterator[None]:
        faulty.faults.enabled = True
        yield
        faulty.faults.enabled = False

    expected = outputs_of(entry, eager, sizes, True, (contextlib.nullcontext, flipped))
    got = outputs_of(entry, faulty, sizes, True, (contextlib.nullcontext, enabled))
    for number, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert alike(a, b), (number, containers_of(faulty))
    strikes = sum(layer.sample_count for layer in statistics.layer_stats.values())
    assert strikes == len(struck)


def test_containers_are_traced_or_say_truly_why_not(entry: Forward) -> None:
    found = {c.path: c.reason for c in containers_of(shared(entry.name)) if c.reason}
    for path, reason in found.items():
        named = reason.startswith("the module that calls it keeps")
        named |= reason in ("its forward branches on self.training", "it has no forward")
        assert named or entry.kept.get(path, "not kept") in reason, found
        assert "\n" not in reason
        assert len(reason) < 120
    assert entry.kept.keys() <= found.keys()


def test_check_passes_and_finds_nothing_to_keep(entry: Forward) -> None:
    faulty, model = transformed(entry, False), entry().eval()
    call = entry.calls[0]
    torch.manual_seed(5)
    found = fxfault.check(faulty, model, *call.args(7), **call.kwargs)
    entry.reset()
    if not entry.kept:
        assert (found.kept, dict(found.not_compared)) == ((), {})


def test_stripped_copied_and_frozen_models_answer_alike(entry: Forward) -> None:
    faulty = shared(entry.name)
    expected = outputs_of(entry, entry().eval(), (7,), changed=True)
    stripped = fxfault.strip(faulty)
    assert codes(stripped) == codes(trace(entry().eval()))
    for model in (copy.deepcopy(faulty), copy.deepcopy(stripped)):
        assert alike(outputs_of(entry, model, (7,), changed=True), expected)
    unchanged = expected[: len(entry.calls)]
    assert alike(outputs_of(entry, fxfault.freeze(faulty), (7,), changed=False), unchanged)


def codes(model: nn.Module) -> list[str]:
    return [part.code for part in model.modules() if isinstance(part, TracedModule)]
