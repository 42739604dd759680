"""The built-in networks, and networks of the user's own."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from brevitas.nn import QuantConv2d, QuantHardTanh, QuantIdentity, QuantLinear, QuantReLU
from brevitas.quant_tensor import IntQuantTensor
from torch import fx, nn

from fxfault.errors import DataError, FxFaultError
from fxfault.models import build_model, model_names

ACTIVATIONS = (QuantIdentity, QuantReLU, QuantHardTanh)

# Name, a size that it takes and how often its activations are called in a forward.
NETWORKS = [
    ("quant_cnv", (3, 32, 32), 9),
    ("quant_digits", (1, 8, 8), 5),
    ("quant_lenet", (1, 28, 28), 5),
    ("quant_lenet", (3, 32, 32), 5),
    ("quant_resnet20", (3, 16, 16), 39),
    ("quant_tfc", (1, 28, 28), 4),
    ("quant_tfc", (3, 8, 12), 4),
    ("quant_lfc", (1, 8, 8), 4),
]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def make(name: str, shape: tuple[int, ...], bits: int = 4, **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "num_classes": 10,
        "in_channels": shape[0],
        "image_size": shape[1:],
        "weight_bit_width": bits,
        "act_bit_width": bits,
    }
    return build_model(name, **(settings | changes))


def activation_outputs(model: nn.Module, images: torch.Tensor) -> list[tuple[str, IntQuantTensor]]:
    """Names and outputs of the activations, in execution order."""
    seen: list[tuple[str, IntQuantTensor]] = []
    hooks = [
        module.register_forward_hook(
            lambda _module, _inputs, output, name=name: seen.append((name, output))
        )
        for name, module in model.named_modules()
        if isinstance(module, ACTIVATIONS)
    ]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return seen


def test_names_are_sorted_and_all_can_be_built() -> None:
    assert model_names() == tuple(sorted({name for name, _, _ in NETWORKS}))


@pytest.mark.parametrize(("name", "shape", "sites"), NETWORKS)
def test_network_gives_a_score_for_each_class(
    name: str, shape: tuple[int, ...], sites: int
) -> None:
    model = make(name, shape, num_classes=7)
    images = torch.rand(2, *shape)
    assert model(images).shape == (2, 7)
    with torch.no_grad():
        assert model.eval()(images).shape == (2, 7)


@pytest.mark.parametrize(("name", "shape", "sites"), NETWORKS)
def test_every_activation_is_an_integer_quant_tensor(
    name: str, shape: tuple[int, ...], sites: int
) -> None:
    model = make(name, shape).eval()
    outputs = activation_outputs(model, torch.rand(2, *shape))
    assert len(outputs) == sites
    assert all(isinstance(output, IntQuantTensor) for _, output in outputs)
    assert outputs[0][0] == "input_quant"


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("name", model_names())
def test_weights_and_activations_have_the_widths_asked_for(name: str, bits: int) -> None:
    shape = next(shape for known, shape, _ in NETWORKS if known == name)
    model = make(name, shape, weight_bit_width=bits, act_bit_width=9 - bits).eval()
    for layer in model.modules():
        if isinstance(layer, (QuantConv2d, QuantLinear)):
            codes = layer.quant_weight().int()
            assert codes.unique().numel() <= max(2, 2**bits - 1)
            assert int(layer.quant_weight().bit_width) == bits
    outputs = activation_outputs(model, torch.rand(2, *shape))
    assert [int(output.bit_width) for _, output in outputs] == [8] + [9 - bits] * (len(outputs) - 1)


@pytest.mark.parametrize("bits", [1, 2, 8])
def test_cnv_activations_are_signed_and_narrow(bits: int) -> None:
    model = make("quant_cnv", (3, 32, 32), bits).eval()
    largest = max(1, 2 ** (bits - 1) - 1)
    for _, output in activation_outputs(model, torch.rand(2, 3, 32, 32))[1:]:
        codes = output.int()
        assert output.signed
        assert codes.abs().max() <= largest
        assert codes.min() < 0


def test_binary_activations_are_minus_one_and_one() -> None:
    model = make("quant_cnv", (3, 32, 32), 1).eval()
    for _, output in activation_outputs(model, torch.rand(2, 3, 32, 32))[1:]:
        assert output.value.unique().tolist() == [-1.0, 1.0]


def test_cnv_has_the_published_layers() -> None:
    model = make("quant_cnv", (3, 32, 32))
    widths = [
        (layer.in_channels, layer.out_channels)
        for layer in model.modules()
        if isinstance(layer, QuantConv2d)
    ]
    assert widths == [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256)]
    features = [
        (layer.in_features, layer.out_features)
        for layer in model.modules()
        if isinstance(layer, QuantLinear)
    ]
    assert features == [(256, 512), (512, 512), (512, 10)]


def test_resnet20_has_twenty_weighted_layers_besides_the_shortcuts() -> None:
    model = make("quant_resnet20", (3, 32, 32))
    names = [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, (QuantConv2d, QuantLinear)) and "shortcut" not in name
    ]
    assert len(names) == 20


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_resnet20_adds_codes_of_one_scale_in_eval_mode(bits: int) -> None:
    model = make("quant_resnet20", (3, 16, 16), bits)
    for _ in range(2):
        model(torch.rand(4, 3, 16, 16))
    outputs = activation_outputs(model.eval(), torch.rand(4, 3, 16, 16))
    operands = [(name, output) for name, output in outputs if name.endswith("sum_quant")]
    assert len(operands) == 18
    for (name, left), (same_name, right) in zip(operands[::2], operands[1::2], strict=True):
        assert name == same_name
        assert torch.equal(left.scale, right.scale)


def test_digits_network_is_small() -> None:
    model = make("quant_digits", (1, 8, 8))
    assert sum(parameter.numel() for parameter in model.parameters()) < 30_000


@pytest.mark.parametrize(("name", "shape", "sites"), NETWORKS)
def test_every_parameter_gets_a_gradient(name: str, shape: tuple[int, ...], sites: int) -> None:
    model = make(name, shape)
    model(torch.rand(4, *shape)).sum().backward()
    assert [key for key, value in model.named_parameters() if value.grad is None] == []


@pytest.mark.parametrize("bits", [1, 4])
@pytest.mark.parametrize("name", model_names())
def test_a_forward_leaves_a_fresh_network_as_it_is(name: str, bits: int) -> None:
    shape = next(shape for known, shape, _ in NETWORKS if known == name)
    model = make(name, shape, bits).eval()
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        model(torch.rand(2, *shape))
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


class _LayerTracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        is_brevitas = type(module).__module__.startswith("brevitas")
        return is_brevitas or super().is_leaf_module(module, qualified_name)


@pytest.mark.parametrize(("name", "shape", "sites"), NETWORKS)
def test_network_can_be_traced_bit_for_bit(name: str, shape: tuple[int, ...], sites: int) -> None:
    model = make(name, shape).eval()
    traced = fx.GraphModule(model, _LayerTracer().trace(model)).eval()
    images = torch.rand(2, *shape)
    with torch.no_grad():
        assert torch.equal(traced(images), model(images))
    calls = [
        node
        for node in traced.graph.nodes
        if node.op == "call_module" and isinstance(traced.get_submodule(node.target), ACTIVATIONS)
    ]
    assert len(calls) == sites


def test_input_bit_width_can_be_chosen() -> None:
    model = make("quant_digits", (1, 8, 8), kwargs={"input_bit_width": 5}).eval()
    name, output = activation_outputs(model, torch.rand(2, 1, 8, 8))[0]
    assert (name, int(output.bit_width)) == ("input_quant", 5)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("quant_cnv", (28, 28), "takes images of 32 x 32, not 28 x 28"),
        ("quant_lenet", (8, 8), "takes images of 28 x 28 or 32 x 32, not 8 x 8"),
        ("quant_digits", (32, 32), "takes images of 8 x 8, not 32 x 32"),
        ("quant_resnet20", (4, 32), "takes images of at least 8 x 8, not 4 x 32"),
    ],
)
def test_a_wrong_image_size_is_refused(name: str, size: tuple[int, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        make(name, (1, *size))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_bit_width": 0}, "weight_bit_width is 0; it must be an integer from 1 to 16"),
        ({"act_bit_width": 17}, "act_bit_width is 17; it must be an integer from 1 to 16"),
        ({"act_bit_width": True}, "act_bit_width is True"),
        ({"act_bit_width": 2.5}, "act_bit_width is 2.5"),
        ({"num_classes": 1}, "num_classes is 1; it must be an integer of at least 2"),
        ({"in_channels": 0}, "in_channels is 0; it must be an integer of at least 1"),
        ({"image_size": 8}, "image_size is 8; it must be a height and a width"),
        ({"image_size": (8, 0)}, r"image_size is \(8, 0\)"),
        ({"kwargs": {"input_bit_width": 17}}, "input_bit_width is 17"),
        ({"kwargs": {"input_bits": 8}}, "unknown key 'input_bits'.*allowed: input_bit_width"),
        ({"kwargs": {"num_classes": 3}}, "num_classes is not for kwargs"),
    ],
)
def test_a_setting_out_of_range_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        make("quant_digits", (1, 8, 8), **changes)


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        DataError, match=r"'quant_cnn' is unknown \(did you mean 'quant_cnv'\?\).*quant_lenet"
    ):
        make("quant_cnn", (3, 32, 32))


# The user's own networks.

OWN_MODULE = """
from torch import nn

built = nn.Linear(2, 2)
number = 3

class Nets:
    @staticmethod
    def make(width):
        return nn.Linear(width, 2)

def small(width=4):
    from own_helper import activation  # found while the factory runs, too
    return nn.Sequential(nn.Linear(width, 2), activation())

def fails():
    raise ValueError("width must be\\n  even")

def leaves():
    raise SystemExit(3)

def returns_text():
    return "a network"
"""


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = tmp_path / "own_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "nets.py").write_text(OWN_MODULE)
    (package / "broken.py").write_text("import a_module_that_is_not_there\n")
    (package / "typo.py").write_text("def make(:\n")
    (package / "exits.py").write_text("raise SystemExit('usage: exits')\n")
    (tmp_path / "own_helper.py").write_text("from torch.nn import ReLU as activation\n")
    monkeypatch.chdir(tmp_path)
    for name in list(sys.modules):
        if name.startswith(("own_package", "own_helper")):
            monkeypatch.delitem(sys.modules, name)
    return tmp_path


def build_own(reference: str, **kwargs: Any) -> nn.Module:
    return build_model(
        reference,
        num_classes=2,
        in_channels=1,
        image_size=(1, 1),
        weight_bit_width=4,
        act_bit_width=4,
        kwargs=kwargs,
    )


def test_own_network_is_imported_from_the_current_folder(own_folder: Path) -> None:
    path_before = list(sys.path)
    model = build_own("own_package.nets:small", width=6)
    assert isinstance(model, nn.Sequential)
    assert model[0].in_features == 6
    assert sys.path == path_before


def test_own_network_may_be_an_attribute_of_a_class(own_folder: Path) -> None:
    assert isinstance(build_own("own_package.nets:Nets.make", width=3), nn.Linear)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("own_package:nets:small", "write it as package.module:factory"),
        (":small", "write it as package.module:factory"),
        ("own_package.nets:", "write it as package.module:factory"),
        ("own-package.nets:small", "write it as package.module:factory"),
        (
            "own_package.net:small",
            r"package 'own_package' in .* has no module 'net' \(did you m",
        ),
        ("no_package_at_all.nets:small", "there is no module 'no_package_at_all'"),
        ("own_package.nets:smal", r"has no 'smal' \(did you mean 'small'\?\)"),
        ("own_package.nets:number", "'number' is an object of type int"),
        ("own_package.nets:built", "'built' is an object of type Linear"),
        ("own_package.broken:make", "raised ModuleNotFoundError.*a_module_that_is_not_there"),
        ("own_package.typo:make", "importing own_package.typo raised SyntaxError"),
        ("own_package.exits:make", "importing own_package.exits raised SystemExit: usage: exits"),
        ("own_package.nets:fails", r"fails\(\) raised ValueError: width must be even$"),
        ("own_package.nets:leaves", r"leaves\(\) raised SystemExit: 3"),
        ("own_package.nets:returns_text", "returned 'a network' of type str; it must return"),
    ],
)
def test_own_network_that_cannot_be_used_is_refused(
    own_folder: Path, reference: str, message: str
) -> None:
    path_before = list(sys.path)
    with pytest.raises(FxFaultError, match=message) as caught:
        build_own(reference)
    assert "\n" not in str(caught.value)
    assert sys.path == path_before


def test_own_factory_with_wrong_arguments_is_refused(own_folder: Path) -> None:
    with pytest.raises(DataError, match=r"small\(depth\) raised TypeError: .*'depth'"):
        build_own("own_package.nets:small", depth=3)


def test_importing_the_catalogues_imports_no_heavy_package() -> None:
    code = (
        "import sys, fxfault; before = set(sys.modules); import fxfault.models, fxfault.data; "
        "fxfault.models.model_names(), fxfault.data.dataset_names(); "
        "heavy = {'torch', 'brevitas', 'torchvision', 'numpy', 'sklearn'}; "
        "sys.exit(str(heavy & (set(sys.modules) - before) or ''))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert ran.stderr.strip() == ""
