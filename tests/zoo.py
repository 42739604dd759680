"""Networks to test the passes on: hand-written ones, and those of third parties.

Each entry gives the same network every time it is called, and names an input shape.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import brevitas.nn as qnn
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxfault.data.torchvision_import import import_torchvision


@dataclass(frozen=True)
class Entry:
    """A network of the zoo."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    sites: int

    def __call__(self) -> nn.Module:
        """Give a network of the caller's own: a copy, where building one takes long."""
        model = copy.deepcopy(_built_once(self)) if self in THIRD_PARTY else self._built()
        torch.manual_seed(0)
        return model

    def _built(self) -> nn.Module:
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Brevitas's flow uses deprecated calls of its own.
            model = self.build()
            model(self.input())
        return model

    def input(self) -> Tensor:
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(1))


class Chain(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            qnn.QuantIdentity(return_quant_tensor=True),
            qnn.QuantConv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            qnn.QuantReLU(bit_width=4),
            nn.Flatten(),
            qnn.QuantLinear(8 * 36, 10, bias=True),
        )


class DataDependent(nn.Module):
    """Control flow on values, a loop over a container, a parameter and an unused layer."""

    def __init__(self) -> None:
        super().__init__()
        self.act = qnn.QuantReLU(bit_width=4)
        self.linear = qnn.QuantLinear(8, 8, bias=False)
        self.block = nn.Sequential(nn.Linear(8, 8), qnn.QuantIdentity(return_quant_tensor=True))
        self.unused = nn.Linear(3, 3)
        self.gain = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(x) * self.gain
        if x.sum() > 0:
            x = self.linear(x)
        for _ in range(3):
            x = self.block(x)
        return self.act(x)


class KeptInside(nn.Module):
    """A container that must keep its forward, reached through a plain list; shared layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = qnn.QuantIdentity()
        self.inner = DataDependent()
        self.last = nn.Linear(8, 8)
        self.blocks = (self.inner,)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.first(self.last(x))


class FunctionalDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act = qnn.QuantReLU(bit_width=4)
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.act(self.linear(x)), 0.5, training=self.training)


class Branching(nn.Module):
    """An auxiliary head in training."""

    def __init__(self) -> None:
        super().__init__()
        self.act = qnn.QuantReLU(bit_width=4)
        self.linear = nn.Linear(8, 8)
        self.auxiliary = qnn.QuantReLU(bit_width=3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.linear(x))
        if self.training:
            y = y + self.auxiliary(x)
        return y


class Modes(nn.Module):
    """Forwards that depend on the mode, in-place addition, a tensor made in the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = FunctionalDropout()
        self.branch = Branching()
        self.act = qnn.QuantIdentity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.branch(self.dropout(x))
        alias = x
        x += 1.0
        return self.act(alias) + torch.tensor([1.0])


class TypeQuestion(nn.Module):
    """Asks for the type of a value that the graph cannot know."""

    def __init__(self) -> None:
        super().__init__()
        self.act = qnn.QuantIdentity(return_quant_tensor=True)
        self.pool = nn.AdaptiveAvgPool1d(8)
        self.out = qnn.QuantReLU(bit_width=4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.act(x))
        if isinstance(x, Tensor):
            x = x * 2.0
        return self.out(x)


class SideEffects(nn.Module):
    """Counts its calls and stores a value: effects that tracing would run only once."""

    def __init__(self) -> None:
        super().__init__()
        self.act = qnn.QuantReLU(bit_width=4)
        self.calls = 0
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen = self.seen + x.shape[0]
        return self.act(x) * self.calls


class WithoutGradient(nn.Module):
    """A part of the forward runs without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Sequential(nn.Linear(8, 8), qnn.QuantReLU(bit_width=4))
        self.out = qnn.QuantIdentity()

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.frozen(x)
        return self.out(x)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act = qnn.QuantIdentity(return_quant_tensor=True)
        self.lstm = qnn.QuantLSTM(8, 16)
        self.out = qnn.QuantReLU()

    def forward(self, x: Tensor) -> Tensor:
        y, (_, _) = self.lstm(self.act(x))
        return self.out(y)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act = qnn.QuantIdentity(return_quant_tensor=True)
        self.attention = qnn.QuantMultiheadAttention(8, 2)
        self.out = qnn.QuantReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(x)
        y, _ = self.attention(x, x, x)
        return self.out(y)


def _bnn_pynq(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from brevitas_examples.bnn_pynq.models import model_with_cfg

        return model_with_cfg(name, pretrained=False)[0]

    return build


def _quantised_torchvision(name: str, **options: Any) -> Callable[[], nn.Module]:
    """A network of torchvision, small, through Brevitas's own quantisation flow."""

    def build() -> nn.Module:
        from brevitas.graph.quantize import preprocess_for_quantize, quantize

        models = import_torchvision().models
        return quantize(preprocess_for_quantize(getattr(models, name)(**options)))

    return build


def _resnet_of_bnn_pynq() -> nn.Module:
    from brevitas_examples.bnn_pynq.models.resnet import QuantBasicBlock, QuantResNet

    return QuantResNet(QuantBasicBlock, _BLOCKS, act_bit_width=4, weight_bit_width=4)


def _resnet_of_torchvision() -> nn.Module:
    import_torchvision()
    from torchvision.models.resnet import BasicBlock

    return _quantised_torchvision("ResNet", block=BasicBlock, layers=_BLOCKS)()


# These networks repeat their blocks: one of each kind, and one after its like, are enough.
_BLOCKS = [2, 1, 1, 1]
_FEW_INVERTED = {"width_mult": 0.1, "inverted_residual_setting": [[1, 16, 1, 1], [6, 24, 2, 2]]}

HAND_WRITTEN = [
    Entry("chain", Chain, (4, 3, 8, 8), 2),
    Entry("lone_activation", qnn.QuantReLU, (4, 8), 1),
    Entry("data_dependent", DataDependent, (4, 8), 2),
    Entry("kept_inside", KeptInside, (4, 8), 4),
    Entry("modes", Modes, (4, 8), 4),
    Entry("branching", Branching, (4, 8), 2),
    Entry("type_question", TypeQuestion, (4, 2, 16), 2),
    Entry("side_effects", SideEffects, (4, 8), 1),
    Entry("without_gradient", WithoutGradient, (4, 8), 2),
    Entry("recurrent", Recurrent, (5, 3, 8), 14),
    Entry("attention", Attention, (5, 3, 8), 8),
]
BNN_PYNQ = [
    Entry(f"{family}_{w}w{a}a", _bnn_pynq(f"{family}_{w}w{a}a"), shape, sites)
    for family, shape, sites in (
        ("tfc", (2, 1, 28, 28), 4),
        ("sfc", (2, 1, 28, 28), 4),
        ("lfc", (2, 1, 28, 28), 4),
        ("cnv", (2, 3, 32, 32), 9),
    )
    for w, a in ((1, 1), (1, 2), (2, 2))
    if (family, w, a) != ("lfc", 2, 2)
] + [Entry("resnet12_4w4a", _resnet_of_bnn_pynq, (2, 3, 32, 32), 19)]
_TINY_DENSENET = {"growth_rate": 4, "block_config": (2, 2, 2), "num_init_features": 8}
_TINY_VIT = {
    "image_size": 16,
    "patch_size": 8,
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 16,
    "mlp_dim": 32,
}
TORCHVISION = [
    Entry("resnet12", _resnet_of_torchvision, (2, 3, 32, 32), 22),
    Entry(
        "mobilenet_v2", _quantised_torchvision("MobileNetV2", **_FEW_INVERTED), (2, 3, 32, 32), 15
    ),
    Entry("densenet", _quantised_torchvision("DenseNet", **_TINY_DENSENET), (2, 3, 32, 32), 29),
    Entry("vit", _quantised_torchvision("VisionTransformer", **_TINY_VIT), (2, 3, 16, 16), 35),
]
THIRD_PARTY = [*BNN_PYNQ, *TORCHVISION]
ZOO = [*HAND_WRITTEN, *THIRD_PARTY]


@functools.cache
def _built_once(entry: Entry) -> nn.Module:
    return entry._built()
