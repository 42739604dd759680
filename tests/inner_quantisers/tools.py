"""Layers with quantisers inside, and what the struck ones make of their words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import brevitas.nn as qnn
import pytest
import torch
from brevitas.quant import (
    Int8ActPerTensorFloat,
    ShiftedUint8ActPerTensorFloat,
    Uint8ActPerTensorFloat,
)
from torch import Tensor, nn
from zoo import Attention

import fxfault
from fxfault.passes.layer_quantisers import StruckQuantiser

# Brevitas warns of shared quantisers and of zero points.
WARNINGS = [
    pytest.mark.filterwarnings("ignore:Keyword arguments are being passed:UserWarning"),
    pytest.mark.filterwarnings("ignore:Computing zero point:UserWarning"),
    pytest.mark.filterwarnings("ignore:Positional args are being deprecated:FutureWarning"),
]

SIGNED, UNSIGNED = Int8ActPerTensorFloat, Uint8ActPerTensorFloat


GATES = (
    *("cell_state", "input_acc", "forget_acc", "cell_acc", "output_acc", "input_sigmoid"),
    *("forget_sigmoid", "cell_tanh", "output_sigmoid", "hidden_state_tanh", "output"),
)


def calibrated(net: nn.Module, *inputs: Any) -> Any:
    torch.manual_seed(0)
    net.train()
    for _ in range(3):
        net(*inputs)
    return net.eval()


def struck(net: nn.Module, **settings: Any) -> Any:
    defaults = {"enabled": True, "apply_during": "eval", "seed": 3}
    if "num_faults" not in settings:
        defaults["probability"] = 100.0
    return fxfault.transform(net, {**defaults, "injection_type": "lsb_flip", **settings})


def images(samples: int = 6, channels: int = 3) -> Tensor:
    return torch.randn(samples, channels, 6, 6, generator=torch.Generator().manual_seed(1))


class Two(nn.Module):
    """A layer with two inputs."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, y: Tensor) -> Any:
        if isinstance(self.layer, qnn.QuantCat):
            return self.layer([x, y])
        return self.layer(x, y)


class Words:
    """The words that the struck quantisers of a model make: clean ones and those that are used."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clean: dict[str, list[Any]] = {}
        self.used: dict[str, list[Any]] = {}
        call = StruckQuantiser.__call__

        def spy(stand_in: StruckQuantiser, *args: Any, **kwargs: Any) -> Any:
            with_faults = call(stand_in, *args, **kwargs)
            self.clean.setdefault(stand_in.site.name, []).append(stand_in.quantiser(*args))
            self.used.setdefault(stand_in.site.name, []).append(with_faults)
            return with_faults

        monkeypatch.setattr(StruckQuantiser, "__call__", spy)

    def run(self, model: nn.Module, *inputs: Any) -> Any:
        self.clean.clear()
        self.used.clear()
        with torch.no_grad():
            return model(*inputs)


def codes_of(word: Any) -> list[int]:
    codes = (word.value.double() / word.scale.double() + word.zero_point.double()).round()
    found: list[int] = codes.long().flatten().tolist()
    return found


def narrow(**options: Any) -> dict[str, Any]:
    return {"bit_width": 4, **options}


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[str]]] = {
    "conv": (
        lambda: nn.Sequential(
            qnn.QuantConv2d(3, 4, 3, input_quant=SIGNED, output_quant=SIGNED, output_bit_width=5)
        ),
        (4, 3, 6, 6),
        ["0.input_quant", "0.output_quant"],
    ),
    "conv1d": (
        lambda: nn.Sequential(qnn.QuantConv1d(3, 4, 3, output_quant=UNSIGNED)),
        (4, 3, 6),
        ["0.output_quant"],
    ),
    "conv_transpose": (
        lambda: nn.Sequential(qnn.QuantConvTranspose2d(3, 2, 3, input_quant=SIGNED)),
        (4, 3, 6, 6),
        ["0.input_quant"],
    ),
    "linear": (
        lambda: nn.Sequential(
            qnn.QuantLinear(
                8, 5, bias=True, input_quant=ShiftedUint8ActPerTensorFloat, input_bit_width=3
            )
        ),
        (4, 8),
        ["0.input_quant"],
    ),
    "activation": (
        lambda: nn.Sequential(qnn.QuantReLU(bit_width=4, input_quant=SIGNED, input_bit_width=6)),
        (4, 8),
        ["0.input_quant", "0"],
    ),
    "add": (
        lambda: qnn.QuantEltwiseAdd(),
        (4, 8),
        ["QuantEltwiseAdd.input_quant", "QuantEltwiseAdd.output_quant"],
    ),
    "cat": (
        lambda: Two(qnn.QuantCat()),
        (4, 8),
        ["layer.input_quant", "layer.output_quant"],
    ),
    "lstm": (
        lambda: nn.Sequential(qnn.QuantLSTM(8, 4)),
        (3, 4, 8),
        ["0.layers.0.0.io_quant", *(f"0.layers.0.0.cell.{name}_quant" for name in GATES)],
    ),
    "coupled_lstm": (
        lambda: nn.Sequential(qnn.QuantLSTM(8, 4, coupled_input_forget_gates=True)),
        (3, 4, 8),
        [
            "0.layers.0.0.io_quant",
            *(f"0.layers.0.0.cell.{name}_quant" for name in GATES if "forget" not in name),
        ],
    ),
    "rnn": (
        lambda: nn.Sequential(qnn.QuantRNN(8, 4, bidirectional=True)),
        (3, 4, 8),
        [
            f"0.layers.0.{direction}.{name}_quant"
            for direction in range(2)
            for name in ("io", "cell.gate_acc", "cell.output")
        ],
    ),
    "attention": (
        lambda: Attention(),
        (5, 3, 8),
        [
            "act",
            "attention.in_proj.input_quant",
            *(f"attention.{name}_quant" for name in ("attn_output_weights", "q_scaled")),
            *(f"attention.{name}_quant" for name in ("k_transposed", "v")),
            "attention.out_proj.input_quant",
            "out",
        ],
    ),
}


def example(name: str) -> tuple[Any, tuple[Tensor, ...], list[str]]:
    build, shape, names = LAYERS[name]
    torch.manual_seed(0)
    count = 2 if name in ("add", "cat") else 1
    inputs = tuple(torch.randn(shape) for _ in range(count))
    return calibrated(build(), *inputs), inputs, names


every_layer = pytest.mark.parametrize("name", LAYERS)


class Aliased(nn.Module):
    """A convolution that takes its words from an activation layer with the same quantiser."""

    def __init__(self, returns_words: bool, between: Callable[[Any], Any]) -> None:
        super().__init__()
        self.act = qnn.QuantReLU(bit_width=4, return_quant_tensor=returns_words)
        self.conv = qnn.QuantConv2d(3, 2, 1, input_quant=self.act.act_quant)
        self.between = between

    def forward(self, x: Tensor) -> Any:
        return self.conv(self.between(self.act(x)))


def same(x: Any) -> Any:
    return x


class Residual(nn.Module):
    """Inner quantisers of many kinds, and two equal ones."""

    def __init__(self) -> None:
        super().__init__()
        self.a = qnn.QuantConv2d(3, 4, 3, padding=1, input_quant=SIGNED, output_quant=SIGNED)
        self.relu = qnn.QuantReLU(bit_width=6)
        self.b = qnn.QuantConv2d(4, 4, 3, padding=1, input_quant=self.relu.act_quant)
        self.add = qnn.QuantEltwiseAdd()
        self.fc = qnn.QuantLinear(144, 5, bias=True, input_quant=SIGNED)

    def forward(self, x: Tensor) -> Any:
        x = self.relu(self.a(x))
        return self.fc(self.add(x, self.b(x)).flatten(1))


def residual() -> Any:
    torch.manual_seed(0)
    return calibrated(Residual(), images())


NAMES = (
    *("a.input_quant", "a.output_quant", "relu", "b.input_quant"),
    *("add.input_quant", "add.output_quant", "fc.input_quant"),
)
