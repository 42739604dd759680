"""A transformed model and other programs: it works, or an error says what to do instead."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from brevitas.nn import QuantLinear, QuantReLU
from torch import nn

import fxfault
from fxfault.errors import SiteError, TransformError

CONFIG = {"enabled": True, "apply_during": "eval", "seed": 1, "probability": 50.0}
IMAGES = torch.rand(4, 16)
RECORDERS: dict[str, Callable[[nn.Module], Any]] = {
    "jit.trace": lambda model: torch.jit.trace(model, IMAGES),
    "export": lambda model: torch.export.export(model, (IMAGES,)).module(),
    "onnx": lambda model: torch.onnx.export(model, (IMAGES,), io.BytesIO(), dynamo=False),
}


def transformed() -> Any:
    net = nn.Sequential(nn.Linear(16, 16), QuantReLU(bit_width=4))
    net(IMAGES)
    return fxfault.transform(net.eval(), CONFIG)


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("save", [lambda m: torch.save(m, io.BytesIO()), pickle.dumps])
def test_a_whole_model_is_not_saved_and_its_state_is(freeze: bool, save: Any) -> None:
    model = fxfault.freeze(transformed()) if freeze else transformed()
    with pytest.raises(TransformError, match=r"save model\.state_dict\(\)"):
        save(model)
    torch.save(model.state_dict(), io.BytesIO())


@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_refused() -> None:
    with pytest.raises(TransformError, match=r"cannot become TorchScript.*fxfault\.compile"):
        torch.jit.script(transformed())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("recorder", RECORDERS)
def test_faults_are_not_recorded(recorder: str) -> None:
    model = transformed()
    with pytest.raises(TransformError, match=r"faults\.enabled = False"):
        RECORDERS[recorder](model)
    assert not torch.equal(model(IMAGES), model(IMAGES))  # It goes on, with new faults each time.


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("recorder", ["jit.trace", "export"])
def test_a_model_without_faults_is_recorded(recorder: str) -> None:
    model = transformed()
    model.faults.enabled = False
    assert torch.equal(RECORDERS[recorder](model)(IMAGES), model(IMAGES))
    assert RECORDERS[recorder](fxfault.strip(transformed())) is not None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("gradients", [False, True])
def test_a_frozen_model_is_traced_as_the_one_that_it_was_made_from(gradients: bool) -> None:
    """torch checks a trace without gradients, where a frozen model may compute by constants."""
    net = nn.Sequential(QuantLinear(16, 16, bias=True), QuantReLU(bit_width=4))
    net(IMAGES)
    frozen: Any = fxfault.freeze(fxfault.transform(net.eval(), CONFIG))
    frozen.faults.enabled = False
    with torch.set_grad_enabled(gradients):
        traced = torch.jit.trace(frozen, IMAGES)
        assert torch.equal(traced(IMAGES), frozen(IMAGES))
        with torch.no_grad():
            net[0].weight *= -2  # It is the model's own.
        assert torch.equal(traced(IMAGES), frozen(IMAGES))


@pytest.mark.filterwarnings("ignore")
def test_a_frozen_model_is_smaller_as_onnx() -> None:
    pytest.importorskip("onnx")
    net = nn.Sequential(QuantLinear(16, 16, bias=True), QuantReLU(bit_width=4))
    net(IMAGES)
    sizes = []
    for model in (net.eval(), fxfault.freeze(net)):
        file = io.BytesIO()
        with torch.no_grad():
            torch.onnx.export(model, (IMAGES,), file, dynamo=False)
        sizes.append(len(file.getvalue()))
    assert sizes[1] < sizes[0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("freeze", [False, True])
def test_a_model_without_faults_becomes_onnx_by_the_new_exporter(freeze: bool) -> None:
    pytest.importorskip("onnxscript")
    reference = pytest.importorskip("onnx.reference")
    model = transformed()
    model.faults.enabled = False
    model = fxfault.freeze(model) if freeze else model
    file = io.BytesIO()
    with torch.no_grad():
        torch.onnx.export(model, (IMAGES,), dynamo=True, verbose=False).save(file)
    run = reference.ReferenceEvaluator(file.getvalue())
    (output,) = run.run(None, {run.input_names[0]: IMAGES.numpy()})
    assert torch.equal(torch.from_numpy(output), model(IMAGES).detach())


def test_a_quantiser_that_only_observes_is_named() -> None:
    net = nn.Sequential(QuantReLU(bit_width=4))
    net(IMAGES)
    for part in net.modules():
        if hasattr(part, "observer_only"):
            part.observer_only = True
    model = fxfault.transform(net.eval(), CONFIG)
    with pytest.raises(SiteError, match=r"site 0: .* quantiser of its QuantReLU only observes"):
        model(IMAGES)


def test_a_strict_export_with_faults_is_refused_in_our_words() -> None:
    # Dynamo wraps what is raised while it records.
    with pytest.raises(Exception, match="each forward draws new faults"):
        torch.export.export(transformed(), (IMAGES,), strict=True)
