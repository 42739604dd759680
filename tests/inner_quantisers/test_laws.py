"""Sites that are quantisers inside layers: what the passes, runners and training keep."""

from __future__ import annotations

import copy
from typing import Any

import brevitas.nn as qnn
import pytest
import torch
import torch.utils.checkpoint
from inner_quantisers.tools import (
    LAYERS,
    NAMES,
    SIGNED,
    WARNINGS,
    Aliased,
    Words,
    calibrated,
    codes_of,
    every_layer,
    example,
    images,
    residual,
    same,
    struck,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fxfault
from fxfault.evaluation.full.runner import FullRunner
from fxfault.evaluation.incremental.runner import IncrementalRunner
from fxfault.faults.torch_versions import why_not_compiled
from fxfault.passes import diff, trace
from fxfault.passes.layer_quantisers import struck_of
from fxfault.passes.segments import split_at_sites

pytestmark = WARNINGS


def result(output: Any) -> Tensor:
    made: Tensor = output[0] if isinstance(output, tuple) else output
    return made


@every_layer
def test_without_faults_the_model_is_the_given_one(name: str) -> None:
    net, inputs, _ = example(name)
    before = copy.deepcopy(net.state_dict())
    faulty = struck(net, probability=0.0)

    # `check` also counts the calls of each quantiser against the strikes.
    found = fxfault.check(faulty, net, *inputs)
    assert found.modes == ("eval", "train")
    assert found.not_called == ()
    assert torch.equal(result(faulty(*inputs)), result(net(*inputs)))
    assert list(faulty.state_dict()) == list(net.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@every_layer
def test_strip_gives_the_traced_model_back(name: str) -> None:
    net, inputs, _ = example(name)
    faulty = struck(net)
    with_faults = result(faulty(*inputs))
    stripped = fxfault.strip(faulty)

    if hasattr(stripped, "code"):
        assert stripped.code == trace(net).code
    assert torch.equal(result(stripped(*inputs)), result(net(*inputs)))
    assert all(struck_of(module) is None for module in (*stripped.modules(), *net.modules()))
    assert all(m.fast_mode for m in (*net.modules(), *stripped.modules()) if hasattr(m, "cell"))
    faulty.faults.reset()
    assert torch.equal(result(faulty(*inputs)), with_faults)


@pytest.mark.parametrize("name", [*LAYERS, "residual"])
def test_a_frozen_model_strikes_the_same_words(name: str) -> None:
    net, inputs = (residual(), (images(),)) if name == "residual" else example(name)[:2]
    faulty = struck(net, probability=10.0, injection_type="random")
    frozen = fxfault.freeze(faulty)
    with torch.no_grad():
        for trial in range(3):
            faulty.faults.reset(trial)
            frozen.faults.reset(trial)
            found = result(frozen(*inputs))
            assert torch.equal(found, result(faulty(*inputs)))
            assert not torch.equal(found, result(net(*inputs)))


def test_a_copy_strikes_the_same_words() -> None:
    faulty = struck(residual(), probability=10.0)
    twin = copy.deepcopy(faulty)

    assert torch.equal(twin(images()), faulty(images()))
    twin.faults.enabled = False
    assert not torch.equal(twin(images()), faulty(images()))


def test_the_diff_names_what_is_struck_inside() -> None:
    notes = [line for line in diff(struck(residual())).splitlines() if line.startswith("# ")]

    assert notes == [f"# {name}: struck inside the layer" for name in NAMES if name != "relu"]


def test_the_drawing_shows_the_faults_inside() -> None:
    text = fxfault.passes.to_dot(struck(residual()))

    assert all(f"FAULT {number}: {name}" in text for number, name in enumerate(NAMES))


@pytest.mark.parametrize("layers", [None, ["b.*"], ["relu", "b.*"], ["fc.*"], ["add.*"]])
def test_incremental_runs_predict_what_full_runs_do(layers: Any) -> None:
    inputs = images(36)
    data = DataLoader(TensorDataset(inputs, torch.zeros(36).long()), batch_size=8)
    faulty = struck(residual(), probability=0.3, injection_type="random", layers=layers)
    for model in (faulty, fxfault.freeze(faulty)):
        starts = [segment.site.name for segment in split_at_sites(model)[1:] if segment.site]
        assert starts == ["a.input_quant", *NAMES[2:5], "fc.input_quant"]
        runner, full = IncrementalRunner(model, data), FullRunner(model, data)
        for trial in range(3):
            model.faults.reset(trial)
            found = runner.run()
            model.faults.reset(trial)
            assert torch.equal(found.top, full.run().top)
        assert runner.why_full is None


def test_the_faults_of_a_sample_do_not_depend_on_its_batch() -> None:
    faulty = struck(residual(), probability=5.0)
    faulty.faults.measure(images(12))
    whole = faulty(images(12))
    faulty.faults.reset()
    parts = torch.cat([faulty(part) for part in images(12).split([5, 4, 3])])

    assert torch.allclose(whole, parts, atol=1e-5)


def test_compiled_code_strikes_the_same_words() -> None:
    faulty = struck(residual(), probability=10.0)
    faulty.faults.measure(images())
    made = fxfault.compile(faulty, images(), backend="aot_eager")
    if not made.compiled:
        assert made.why_not.startswith(why_not_compiled() or "torch.compile failed: ")
    with torch.no_grad():
        for trial in range(3):
            made.model.faults.reset(trial)
            faulty.faults.reset(trial)
            assert torch.equal(made.model(images()), faulty(images()))


@pytest.mark.parametrize("unit", ["element", "bit"])
@pytest.mark.parametrize("count", [0, 1, 50])
def test_a_number_of_faults_counts_each_word_once(count: int, unit: str, words: Words) -> None:
    x = images().abs()
    net = calibrated(Aliased(False, same), x)
    settings = {"injection_type": "bit_flip", "rate_unit": unit}
    faulty = struck(net, num_faults=count, **settings, bit=0 if unit == "element" else None)
    words.run(faulty, x)

    clean, used = codes_of(net.act.act_quant(x)), codes_of(words.used["conv.input_quant"][-1])
    flips = [bin(a ^ b).count("1") for a, b in zip(clean, used, strict=True)]
    assert [sum(flips[n : n + 108]) for n in range(0, 648, 108)] == [count] * 6


def test_broken_units_strike_inside_a_layer(words: Words) -> None:
    net, (x,), _ = example("linear")
    words.run(struck(net, hw_mask=True, frequency_value=4, probability=25.0), x)
    changed = words.used["0.input_quant"][0].value != words.clean["0.input_quant"][0].value

    assert torch.equal(changed[:, :4], changed[:, 4:])
    assert (changed == changed[:1]).all()


def test_statistics_count_each_word_once() -> None:
    x = images().abs()
    faulty = struck(calibrated(Aliased(False, same), x), track_statistics=True)
    faulty(x)
    stats = faulty.faults.statistics.layer_stats.values()

    assert [one.total_activations for one in stats] == [6 * 108, 0]
    assert [one.injected_count for one in stats] == [6 * 108, 0]


# -- training ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["ste", "zero_faulty"])
def test_gradients_pass_struck_words(mode: str) -> None:
    net = calibrated(
        nn.Sequential(qnn.QuantLinear(8, 3, bias=False, input_quant=SIGNED)),
        images(4, 1).flatten(1)[:, :8],
    )
    x = torch.randn(4, 8).clamp(-0.5, 0.5).requires_grad_()
    faulty = struck(net, probability=50.0, gradient_mode=mode, injection_type="lsb_flip")
    faulty(x).sum().backward()
    found, x.grad = x.grad, None
    net(x).sum().backward()

    assert x.grad is not None
    assert found is not None
    if mode == "ste":
        assert torch.equal(found, x.grad)
    else:
        assert 0 < int((found == 0).sum()) < found.numel()
        assert torch.equal(found[found != 0], x.grad[found != 0])


def test_a_checkpoint_repeats_the_faults_and_what_passes_on() -> None:
    class Repeated(nn.Module):
        """One quantiser gets a word that is struck already, and then one that is not."""

        def __init__(self, checkpoint: bool) -> None:
            super().__init__()
            self.act = qnn.QuantReLU(bit_width=4)
            self.add = qnn.QuantEltwiseAdd(input_quant=self.act.act_quant, output_quant=None)
            self.checkpoint = checkpoint

        def forward(self, x: Tensor) -> Tensor:
            y = self.act(x)
            if not self.checkpoint:
                return self.add(y, x) * x
            run = torch.utils.checkpoint.checkpoint
            made: Any = run(lambda y, x: self.add(y, x) * x, y, x, use_reentrant=False)
            return made  # type: ignore[no-any-return]

    gradients = []
    for checkpoint in (False, True):
        net = calibrated(Repeated(checkpoint), images().abs())
        faulty = struck(net, apply_during="both", probability=30.0, gradient_mode="zero_faulty")
        x = images().abs().requires_grad_()
        faulty(x).sum().backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)
