"""Small networks with forwards in the style of public code of this field.

Each entry names the calls to make, and the changes between them after the transform. If its forward
cannot be traced, `kept` gives the expected reason: no forward is kept without one.
"""

from __future__ import annotations

import enum
import functools
import math
import types
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import brevitas.nn as qnn
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

BRANCH, TYPE, ITERATES = "branches on a value", "type of a value", "iterates over a value"
NUMBER, WITH, NONE = "value as a number", "`try` or a `with`", "compares a value by identity"


@dataclass(frozen=True)
class Call:
    """The arguments of one call, built for a number of samples each time."""

    args: Callable[[int], tuple[Any, ...]]
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __call__(self, model: nn.Module, samples: int) -> Any:
        torch.manual_seed(5)
        made = {k: v(samples) if callable(v) else v for k, v in self.kwargs.items()}
        return model(*self.args(samples), **made)


@dataclass(frozen=True)
class Forward:
    """A network, and the calls and changes to try.

    Attributes:
        name: name of the entry.
        build: builds the network.
        calls: calls to make before and after each change.
        changes: changes to the transformed model.
        kept: part of the reason why a container keeps its own forward, by the container's path.
        reset: restores state outside the network.
    """

    name: str
    build: Callable[[], nn.Module]
    calls: tuple[Call, ...]
    changes: tuple[Callable[[Any], Any], ...] = ()
    kept: dict[str, str] = field(default_factory=dict)
    reset: Callable[[], Any] = lambda: None

    def __call__(self) -> nn.Module:
        torch.manual_seed(0)
        return self.build()


TABLE: list[Forward] = []


def entry(*calls: Call, **options: Any) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Add a class of networks to the table."""

    def add(kind: type[nn.Module]) -> type[nn.Module]:
        TABLE.append(Forward(kind.__name__, kind, calls or (FLAT,), **options))
        return kind

    return add


def change(name: str, value: Any) -> Callable[[Any], None]:
    return lambda model: setattr(model, name, value)


def rows(samples: int, *shape: int, seed: int = 1) -> Tensor:
    return torch.randn(samples, *shape, generator=torch.Generator().manual_seed(seed))


def flat(samples: int) -> Tensor:
    return rows(samples, 8)


FLAT = Call(lambda n: (rows(n, 8),))
IMAGE = Call(lambda n: (rows(n, 3, 8, 8),))
TEXT = Call(lambda n: (torch.arange(n * 4).reshape(n, 4) % 16,))


def act(**options: Any) -> qnn.QuantIdentity:
    return qnn.QuantIdentity(bit_width=4, **options)


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv=qnn.QuantConv2d(inputs, outputs, 3, stride=stride, padding=1, weight_bit_width=4),
            norm=nn.BatchNorm2d(outputs),
            act=act(),
        )
    )


def dense(inputs: int = 8, outputs: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs), act())


class Base(nn.Module):
    """A linear layer and an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.act = nn.Linear(8, 8), act()


# -- images -----------------------------------------------------------------------------


class Auxiliary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = conv(8, 4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(F.adaptive_avg_pool2d(x, 2)).mean((2, 3))
        return self.fc(F.dropout(x, 0.7, training=self.training))


@entry(IMAGE, changes=(change("aux_logits", False),))
class GoogLeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.aux_logits, self.stem, self.body = True, conv(3, 8), conv(8, 8)
        self.aux, self.fc = Auxiliary(), nn.Linear(8, 5)

    def _forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        x = self.stem(x)
        aux: Tensor | None = None
        if self.training and self.aux_logits:
            aux = self.aux(x)
        return self.fc(self.body(x).mean((2, 3))), aux

    def forward(self, x: Tensor) -> Any:
        x, aux = self._forward(x)
        return (x, aux) if self.training and self.aux_logits else x


PAIR = Call(lambda n: ([rows(n, 3, 8, 8), rows(n, 3, 8, 8, seed=2)],))


@entry(PAIR, IMAGE, kept={"": TYPE})
class RaftEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.dropout = conv(3, 8, 2), conv(8, 4), nn.Dropout2d(0.2)

    def forward(self, x: Any) -> Any:
        is_list = isinstance(x, (tuple, list))
        if is_list:
            batch = x[0].shape[0]
            x = torch.cat(x, dim=0)
        x = self.conv2(self.conv1(x))
        if self.training and self.dropout is not None:
            x = self.dropout(x)
        return torch.split(x, [batch, batch], dim=0) if is_list else x


@entry(Call(lambda n: (rows(n, 3, 8, 8), rows(n, 3, 8, 8, seed=2))))
class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(conv(3, 4), nn.Flatten()), nn.Linear(256, 3)

    def forward_once(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.abs(self.forward_once(a) - self.forward_once(b))


@entry(IMAGE)
class TwoViews(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = conv(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.body(torch.cat([x, x.flip(-1)])).chunk(2, 0)
        return first + second


@entry(
    Call(lambda n: ([rows(n, 3, 8, 8), rows(n, 3, 4, 4)],)),
    kept={"": "length of a value"},
)
class MultiCrop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = conv(3, 4), nn.Linear(4, 3)

    def forward(self, crops: list[Tensor]) -> Tensor:
        sizes = [crops[i].shape[-1] for i in range(len(crops))]
        assert sizes == sorted(sizes, reverse=True)
        return self.head(torch.cat([self.body(crop).mean((2, 3)) for crop in crops]))


class Detect(nn.Module):
    """Heads at two scales; the module caches the grids for the last size that it met."""

    def __init__(self) -> None:
        super().__init__()
        self.nl, self.no, self.stride = 2, 6, [2, 4]
        self.m = nn.ModuleList(nn.Sequential(act(), nn.Conv2d(c, self.no, 1)) for c in (4, 8))
        self.grid = [torch.zeros(0)] * 2
        self.register_buffer("anchors", torch.tensor([1.0, 2.0]))

    def forward(self, x: list[Tensor]) -> Any:
        z = []
        x = list(x)
        for i in range(self.nl):
            x[i] = self.m[i](x[i])
            bs, _, ny, nx = x[i].shape
            if not self.training:
                if self.grid[i].shape[1:] != x[i].shape[2:]:
                    ys, xs = torch.meshgrid(torch.arange(ny), torch.arange(nx), indexing="ij")
                    self.grid[i] = torch.stack([xs, ys]).float()
                y = x[i].sigmoid()
                xy = (y[:, :2] * 2 - 0.5 + self.grid[i]) * self.stride[i]
                z.append(torch.cat([xy, y[:, 2:] * self.anchors[i]], 1).view(bs, self.no, -1))
        return x if self.training else (torch.cat(z, 2), x)


@entry(IMAGE, Call(lambda n: (rows(n, 3, 12, 12),)), kept={"": "hands a list", "detect": ITERATES})
class Yolo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.detect = conv(3, 4, 2), conv(4, 8, 2), Detect()

    def forward(self, x: Tensor) -> Any:
        a = self.a(x)
        return self.detect([a, self.b(a)])


@entry(IMAGE)
class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)
        self.down, self.middle, self.up = conv(3, 4), conv(4, 4), conv(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        x, indices = self.pool(skip)
        x = self.unpool(self.middle(x), indices, output_size=skip.size())
        return self.up(torch.cat([x, skip], dim=1))


@entry(IMAGE, changes=(lambda m: m.blocks.append(conv(3, 3)[0:2]),))
class VggLoop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([conv(3, 4), nn.MaxPool2d(2), conv(4, 3)])

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = []
        for layer in self.blocks:
            x = layer(x)
            if isinstance(layer, nn.MaxPool2d):
                outputs.append(x)
        return [*outputs, x]


@entry(IMAGE, changes=(change("exit_at", 2), change("exit_at", 1)))
class EarlyExit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.exit_at, self.features = 3, nn.Sequential(conv(3, 4), conv(4, 4), conv(4, 4))
        self.heads = nn.ModuleList(nn.Linear(4, 3) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features[: self.exit_at](x)
        return self.heads[self.exit_at - 1](x.mean((2, 3)))


class DenseLayer(nn.Module):
    def __init__(self, inputs: int, memory_efficient: bool) -> None:
        super().__init__()
        self.act1, self.conv1 = act(), nn.Conv2d(inputs, 4, 1)
        self.drop_rate, self.memory_efficient = 0.2, memory_efficient

    def bn_function(self, inputs: list[Tensor]) -> Tensor:
        return self.conv1(self.act1(torch.cat(inputs, 1)))

    def forward(self, inputs: Any) -> Tensor:
        prev = [inputs] if isinstance(inputs, Tensor) else inputs
        if self.memory_efficient and not torch.jit.is_scripting():
            new = checkpoint(self.bn_function, prev, use_reentrant=False)
        else:
            new = self.bn_function(prev)
        return F.dropout(new, p=self.drop_rate, training=self.training)


class DenseBlock(nn.ModuleDict):
    def __init__(self, memory_efficient: bool) -> None:
        super().__init__()
        for i in range(2):
            self.add_module(f"denselayer{i + 1}", DenseLayer(3 + 4 * i, memory_efficient))

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for _, layer in self.items():
            features.append(layer(features))
        return torch.cat(features, 1)


@entry(IMAGE)
class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.out = DenseBlock(False), act()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.block(x))


@entry(FLAT, kept={"": "checkpointing"})
class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.use_checkpoint = nn.ModuleList([dense(), dense()]), True

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            if self.use_checkpoint and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x


@entry(IMAGE)
class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc1, self.fc2 = conv(3, 8), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.act, self.gate = qnn.QuantReLU(bit_width=4), qnn.QuantSigmoid(bit_width=4)

    def _scale(self, x: Tensor) -> Tensor:
        return self.gate(self.fc2(self.act(self.fc1(F.adaptive_avg_pool2d(x, 1)))))

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self._scale(x) * x


class Pyramid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleList([conv(4, 4), conv(8, 4)])
        self.layer = conv(4, 4)

    def get_result_from_inner(self, x: Tensor, idx: int) -> Tensor:
        if idx < 0:
            idx += len(self.inner)
        for i, module in enumerate(self.inner):
            if i == idx:
                return module(x)
        return x

    def forward(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        names, values = list(x.keys()), list(x.values())
        last = self.get_result_from_inner(values[-1], -1)
        results = [self.layer(last)]
        for idx in range(len(values) - 2, -1, -1):
            lateral = self.get_result_from_inner(values[idx], idx)
            last = lateral + F.interpolate(last, size=lateral.shape[-2:], mode="nearest")
            results.insert(0, self.layer(last))
        return OrderedDict(zip(names, results, strict=True))


@entry(IMAGE)
class FeaturePyramid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fpn = conv(3, 4, 2), conv(4, 8, 2), Pyramid()

    def forward(self, x: Tensor) -> Any:
        a = self.a(x)
        return self.fpn({"a": a, "b": self.b(a)})


@entry(IMAGE, changes=(change("deep_supervision", False),))
class NestedUNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([conv(3, 4), conv(4, 4), conv(4, 4)])
        self.heads = nn.ModuleList(nn.Conv2d(4, 2, 1) for _ in range(3))
        self.deep_supervision = True

    def forward(self, x: Tensor) -> Any:
        outputs = []
        for stage, head in zip(self.stages, self.heads, strict=True):
            x = stage(x)
            outputs.append(head(x))
        return outputs if self.deep_supervision and self.training else outputs[-1]


@entry(Call(lambda n: (rows(n, 4),)), Call(lambda n: (rows(n, 4), torch.arange(n) % 5)))
class Generator(nn.Module):
    """Generates from a latent vector, with or without labels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body = nn.Embedding(5, 4), dense(4, 8)
        self.out = nn.Sequential(nn.Linear(8, 12), qnn.QuantTanh(bit_width=4))

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        if labels is not None:
            z = z * self.embed(labels)
        return self.out(self.body(z)).view(-1, 3, 2, 2)


# -- transformers -----------------------------------------------------------------------


@dataclass
class GPTConfig:
    n_embd: int = 8
    n_head: int = 2
    block_size: int = 4
    dropout: float = 0.1


class CausalSelfAttention(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(8, 24), nn.Linear(8, 8)
        self.act, self.n_head, self.n_embd = act(), config.n_head, config.n_embd
        mask = torch.tril(torch.ones(4, 4)).view(1, 1, 4, 4)
        self.register_buffer("bias", mask)
        self.attn_dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        k, q, v = (t.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for t in (k, q, v))
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = att.masked_fill(self.bias[:, :, :T, :T] == 0, float("-inf"))
        y = self.attn_dropout(F.softmax(att, dim=-1)) @ v
        return self.c_proj(self.act(y.transpose(1, 2).contiguous().view(B, T, C)))


class Block(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.attn, self.mlp = CausalSelfAttention(config), nn.Sequential(dense(), nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


@entry(
    TEXT,
    Call(lambda n: (torch.arange(n * 4).reshape(n, 4) % 16,) * 2),
    kept={"": BRANCH},
)
class NanoGPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = GPTConfig()
        self.transformer = nn.ModuleDict(
            dict(
                wte=nn.Embedding(16, 8),
                wpe=nn.Embedding(4, 8),
                h=nn.ModuleList([Block(self.config) for _ in range(2)]),
                ln_f=nn.LayerNorm(8),
            )
        )
        self.lm_head = nn.Linear(8, 16, bias=False)
        self.transformer.wte.weight = self.lm_head.weight

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Any:
        device = idx.device
        _, t = idx.size()
        assert t <= self.config.block_size, f"{t} is more than {self.config.block_size}"
        pos = torch.arange(0, t, dtype=torch.long, device=device)
        x = self.transformer.wte(idx) + self.transformer.wpe(pos)
        for block in self.transformer.h:
            x = block(x)
        x = self.transformer.ln_f(x)
        if targets is not None:
            logits = self.lm_head(x)
            loss = F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))
        else:
            logits, loss = self.lm_head(x[:, [-1], :]), None
        return logits, loss


@entry(IMAGE, changes=(change("pool", "mean"),))
class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.pool = nn.Conv2d(3, 8, 4, stride=4), "cls"
        self.cls_token = nn.Parameter(torch.randn(1, 1, 8))
        self.pos_embedding = nn.Parameter(torch.randn(1, 9, 8))
        self.blocks = nn.Sequential(Block(GPTConfig(dropout=0.0)))
        self.blocks[0].attn.bias = torch.ones(1, 1, 5, 5)

    def forward(self, img: Tensor) -> Tensor:
        x = self.patch(img).flatten(2).transpose(1, 2)
        b, n, _ = x.shape
        x = torch.cat((self.cls_token.expand(b, -1, -1), x), dim=1)
        x = self.blocks(x + self.pos_embedding[:, : (n + 1)])
        return x.mean(dim=1) if self.pool == "mean" else x[:, 0]


class HFConfig:
    model_type = "tiny"

    def __init__(self) -> None:
        self.return_dict, self.output_hidden_states, self.torchscript = True, False, False

    @property
    def use_return_dict(self) -> bool:
        return self.return_dict and not self.torchscript


@dataclass
class ModelOutput:
    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...] | None = None


def hf_change(name: str, value: Any) -> Callable[[Any], None]:
    return lambda model: setattr(model.config, name, value)


@entry(
    FLAT,
    Call(lambda n: (flat(n),), {"output_hidden_states": True}),
    Call(lambda n: (flat(n), flat(n)), {"return_dict": False}),
    changes=(hf_change("return_dict", False), hf_change("output_hidden_states", True)),
)
class HuggingFace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config, self.layer = HFConfig(), nn.ModuleList([dense(), dense()])

    def forward(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        output_hidden_states = (
            output_hidden_states
            if output_hidden_states is not None
            else self.config.output_hidden_states
        )
        return_dict = return_dict if return_dict is not None else self.config.use_return_dict
        all_states: Any = () if output_hidden_states else None
        if attention_mask is not None:
            x = x * attention_mask
        for layer in self.layer:
            if output_hidden_states:
                all_states = (*all_states, x)
            x = layer(x)
        if not return_dict:
            return tuple(v for v in [x, all_states] if v is not None)
        return ModelOutput(x, all_states)


def window_partition(x: Tensor, window: int) -> Tensor:
    b, h, w, c = x.shape
    x = x.view(b, h // window, window, w // window, window, c)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, window, window, c)


@entry(Call(lambda n: (rows(n, 8, 8, 3),)), changes=(change("shift", 1), change("shift", 0)))
class SwinBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.window, self.shift, self.proj = 4, 2, nn.Sequential(nn.Linear(3, 3), act())

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        if self.shift > 0:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        windows = self.proj(window_partition(x, self.window))
        x = windows.view(b, h // self.window, w // self.window, self.window, self.window, c)
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        return torch.roll(x, (self.shift, self.shift), (1, 2)) if self.shift > 0 else x


def drop_path(x: Tensor, drop_prob: float = 0.0, training: bool = False) -> Tensor:
    if drop_prob == 0.0 or not training:
        return x
    keep = 1 - drop_prob
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    mask = x.new_empty(shape).bernoulli_(keep)
    if keep > 0.0:
        mask.div_(keep)
    return x * mask


class DropPath(nn.Module):
    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        return drop_path(x, self.drop_prob, self.training)


@entry(FLAT, changes=(lambda m: setattr(m.drop_path, "drop_prob", 0.9),))
class StochasticDepth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.drop_path, self.out = dense(), DropPath(0.5), act()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x + self.drop_path(self.body(x)))


@entry(FLAT, Call(lambda n: (flat(n), flat(n))), Call(lambda n: (), {"x": flat, "mask": flat}))
class Timm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.global_pool = dense(), nn.Linear(8, 3), ""

    def forward_features(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.body(x)
        return x if mask is None else x * mask

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = x if not self.global_pool else x.mean(1, keepdim=True)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.forward_head(self.forward_features(x, mask=mask))


@entry(Call(lambda n: (rows(n, 4, 8),)), Call(lambda n: (rows(n, 4, 8), rows(n, 3, 8))))
class EinsumAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.act = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), act()
        self.scale = 8**-0.5

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        sim = torch.einsum("bid,bjd->bij", self.q(x), self.k(context)) * self.scale
        return self.act(torch.einsum("bij,bjd->bid", sim.softmax(-1), self.v(context)))


@entry(Call(lambda n: (rows(n, 4, 8),)), Call(lambda n: (rows(n, 6, 8),)))
class PositionalEncoding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("pe", torch.linspace(-1, 1, 80).view(1, 10, 8), persistent=False)
        self.dropout, self.act = nn.Dropout(0.1), act()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.dropout(x + self.pe[:, : x.size(1)].requires_grad_(False)))


class Router(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(8, 3), nn.ModuleList([dense() for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.gate(x).softmax(-1).max(-1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows = torch.where(chosen == number)[0]
            if rows.numel() > 0:
                out[rows] = expert(x[rows]) * weights[rows, None]
        return out


@entry(FLAT, kept={"moe": BRANCH})
class MixtureOfExperts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.moe = dense(), Router()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.moe(self.stem(x))


# -- sequences and time -----------------------------------------------------------------


class Leaky(nn.Module):
    """A spiking neuron with its membrane potential as state."""

    def __init__(self) -> None:
        super().__init__()
        self.beta, self.threshold, self.act = 0.9, 1.0, act()

    def init_leaky(self) -> float:
        return 0.0

    def forward(self, current: Tensor, mem: Any) -> tuple[Tensor, Tensor]:
        mem = self.beta * mem + current
        spikes = (mem > self.threshold).float()
        return self.act(spikes + mem), mem - spikes * self.threshold


@entry(FLAT, changes=(change("num_steps", 2), lambda m: setattr(m.lif, "beta", 0.5)))
class SnnLoop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif, self.num_steps = nn.Linear(8, 8), Leaky(), 3

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem, spikes, potentials = self.lif.init_leaky(), [], []
        for _ in range(self.num_steps):
            spk, mem = self.lif(self.fc(x), mem)
            spikes.append(spk)
            potentials.append(mem)
        return torch.stack(spikes, dim=0), torch.stack(potentials, dim=0)


@entry(
    Call(lambda n: (rows(5, n, 8),)),
    Call(lambda n: (rows(3, n, 8),)),
    kept={"": NUMBER},
)
class TimeMajor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.act = nn.Linear(16, 8), act()

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(x.size(1), 8)
        outputs = []
        for step in range(x.size(0)):
            state = self.act(self.cell(torch.cat([x[step], state], 1)))
            outputs.append(state)
        return torch.stack(outputs)


@entry(
    Call(lambda n: (rows(n, 4, 8), torch.arange(n) % 4 + 1)),
    kept={"": "converts a value to an array or a tensor"},
)
class SortedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.act = nn.GRU(8, 8, batch_first=True), act()

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        lengths, order = lengths.sort(descending=True)
        packed = nn.utils.rnn.pack_padded_sequence(x[order], lengths, batch_first=True)
        _, hidden = self.rnn(packed)
        return self.act(hidden[-1])[order.argsort()]


@entry(FLAT)
class Recurrent(nn.Module):
    """One block, used repeatedly."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.norms = dense(), nn.ModuleList(nn.LayerNorm(8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for norm in self.norms:
            x = x + self.block(norm(x))
        return self.block(x)


# -- state and settings -----------------------------------------------------------------

STATE = {"calls": 0}
SETTINGS = types.SimpleNamespace(gain=2.0)
WIDTHS = [1, 2, 3]
CACHE: dict[int, Tensor] = {}
CALLS = 0


def reset() -> None:
    global CALLS
    CALLS, SETTINGS.gain, ClassCounter.calls = 0, 2.0, 0
    STATE.update(calls=0)
    WIDTHS[:] = [1, 2, 3]
    CACHE.clear()
    Settings.gain = 2.0
    ClosureCounter.tick = staticmethod(counter())
    ones.cache_clear()


@entry(kept={"": "changes the global CALLS"}, reset=reset)
class GlobalCounter(Base):
    def forward(self, x: Tensor) -> Tensor:
        global CALLS
        CALLS += 1
        return self.act(self.linear(x)) * CALLS


@entry(kept={"": "changes STATE"}, reset=reset)
class GlobalTable(Base):
    def forward(self, x: Tensor) -> Tensor:
        STATE["calls"] += 1
        return self.act(self.linear(x)) * STATE["calls"]


@entry(kept={"": "changes ClassCounter.calls"}, reset=reset)
class ClassCounter(Base):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        ClassCounter.calls += 1
        return self.act(self.linear(x)) * ClassCounter.calls


def counter() -> Callable[[], int]:
    calls = 0

    def tick() -> int:
        nonlocal calls
        calls += 1
        return calls

    return tick


@entry(kept={"": "changes calls"}, reset=reset)
class ClosureCounter(Base):
    tick = staticmethod(counter())

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.linear(x)) * self.tick()


@entry(changes=(lambda m: setattr(SETTINGS, "gain", 3.0),), reset=reset)
class ConfigurationObject(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.linear(x)) * SETTINGS.gain


@entry(changes=(lambda m: WIDTHS.append(4),), reset=reset)
class ModuleConstant(Base):
    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.linear(x))
        return torch.stack([F.max_pool1d(x, k, stride=1).mean(-1) for k in WIDTHS])


@entry(kept={"": "while tracing"}, reset=reset)
class GlobalCache(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.linear(x)) * mask_of(8)


def mask_of(width: int) -> Tensor:
    if width not in CACHE:
        CACHE[width] = torch.ones(width) * (len(CACHE) + 1)
    return CACHE[width]


@functools.lru_cache
def ones(width: int) -> Tensor:
    return torch.ones(width)


@entry(kept={"": "reads ones, a _lru_cache_wrapper"}, reset=reset)
class LruCache(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.linear(x)) * ones(8)


@entry(
    changes=(
        lambda m: setattr(Settings, "gain", 3.0),
        change("gain", 4.0),
        lambda m: delattr(m, "gain"),
    ),
    reset=reset,
)
class Settings(Base):
    gain = 2.0

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.linear(x)) * self.gain


@entry(changes=(lambda m: setattr(m.act, "gain", 2.0), lambda m: setattr(m, "bias", 1.0)))
class AskedByName(Base):
    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.linear(x)) * getattr(self.act, "gain", 1.0)
        return x + self.bias if hasattr(self, "bias") else x


@entry(changes=(lambda m: m.gains.append(nn.Parameter(torch.ones(8))),))
class ParameterGains(Base):
    def __init__(self) -> None:
        super().__init__()
        self.gains = nn.ParameterList([torch.ones(8), torch.full((8,), 2.0)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.linear(x))
        return sum(x * gain for gain in self.gains) / len(self.gains)


@entry(changes=(change("activation", torch.tanh), change("activation", F.relu)))
class PartialActivation(Base):
    def __init__(self) -> None:
        super().__init__()
        self.activation = functools.partial(F.leaky_relu, negative_slope=0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.activation(self.linear(x)))


@entry(
    changes=(
        change("temperature", 2.0),
        change("temperature", 2),
        change("temperature", torch.tensor(3.0)),
    )
)
class Temperature(Base):
    def __init__(self) -> None:
        super().__init__()
        self.temperature = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return F.softmax(self.act(self.linear(x)) / self.temperature, -1)


class Kind(enum.Flag):
    DOUBLE = enum.auto()
    SHIFTED = enum.auto()


@entry(changes=(change("mode", "b"), change("kind", Kind.DOUBLE | Kind.SHIFTED)))
class Dispatch(Base):
    def __init__(self) -> None:
        super().__init__()
        self.mode, self.kind = "a", Kind.DOUBLE
        self.table = {"a": self.forward_a, "b": self.forward_b}

    def forward_a(self, x: Tensor) -> Tensor:
        return self.act(self.linear(x))

    def forward_b(self, x: Tensor) -> Tensor:
        return self.linear(self.act(x))

    def forward(self, x: Tensor) -> Tensor:
        x = self.table[self.mode](x)
        x = x * 2 if Kind.DOUBLE in self.kind else x
        return x + 1 if self.kind & Kind.SHIFTED else x


@entry(changes=(lambda m: setattr(m, "block", types.MethodType(lambda s, x: s.act(x) * 5, m)),))
class MethodReplaced(Base):
    def block(self, x: Tensor) -> Tensor:
        return self.act(self.linear(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) * 2


def halved(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs) / 2

    return wrapper


@entry(kept={"": "decorated"})
class Decorated(Base):
    @halved
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.linear(x))


@entry(kept={"": "decorated"})
class WithoutGradient(Base):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.linear(x))


class Parent(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.linear(x))


@entry(FLAT)
class SuperForward(Parent):
    def __init__(self) -> None:
        super().__init__()
        self.second = act()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(super().forward(x) * 2)


@entry(kept={"": "imports torch"})
class TryImport(Base):
    def forward(self, x: Tensor) -> Tensor:
        try:
            from torch.nn.functional import no_such_function as softplus
        except ImportError:
            softplus = F.softplus
        return self.act(softplus(self.linear(x)))


@entry(FLAT, Call(lambda n: (flat(n),), {"mode": "plus"}), Call(lambda n: (flat(n), None)))
class WalrusAndMatch(Base):
    def forward(self, x: Tensor, mode: str | None = "twice") -> Tensor:
        x = self.act(y := self.linear(x))
        match mode:
            case "twice":
                return x * 2 + y
            case "plus":
                return x + 1
            case _:
                return x


@entry(changes=(change("_scale", 3.0),))
class PropertyBased(Base):
    _scale = 2.0

    @property
    def scale(self) -> float:
        return self._scale * 2

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.linear(x)) * self.scale


@entry(changes=(lambda m: setattr(m.inner.linear, "out_features", 3),))
class Delegation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Parent()

    def __getattr__(self, name: str) -> Any:
        if name in ("linear", "act"):
            return getattr(super().__getattr__("inner"), name)
        return super().__getattr__(name)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.linear(x)) * self.linear.out_features


@entry(FLAT, Call(lambda n: (flat(n),), {"scale": 3.0}), kept={"": ITERATES})
class KeywordsPassedOn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Scaled()

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        return self.inner(x, **kwargs)


class Scaled(Base):
    def forward(self, x: Tensor, *, scale: float = 2.0) -> Tensor:
        return self.act(self.linear(x)) * scale


@entry(FLAT, Call(lambda n: (flat(n), flat(n))), kept={"": ITERATES})
class SeveralInputs(Base):
    def forward(self, *inputs: Tensor) -> Tensor:
        return self.act(sum(self.linear(x) for x in inputs))


class Maybe(nn.Module):
    def forward(self, x: Tensor) -> Tensor | None:
        return x if self.training else None


@entry(kept={"": NONE})
class SubBlockOfNone(Base):
    def __init__(self) -> None:
        super().__init__()
        self.extra = Maybe()

    def forward(self, x: Tensor) -> Tensor:
        extra = self.extra(x)
        x = self.act(self.linear(x))
        return x if extra is None else x + extra


@entry(FLAT)
class QuantStubs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quant = act(return_quant_tensor=True)
        self.linear = qnn.QuantLinear(8, 8, weight_bit_width=4, return_quant_tensor=False)
        self.dequant = act()

    def forward(self, x: Tensor) -> Tensor:
        return self.dequant(self.linear(self.quant(x)))


@entry(FLAT, kept={"": "default that may change"})
class MutableDefault(Base):
    def forward(self, x: Tensor, seen: tuple[list[int], ...] = ([],)) -> Tensor:
        return self.act(self.linear(x)) * (len(seen[0]) + 1)


def same_type(samples: int) -> tuple[Tensor]:
    return (flat(samples).half(),)


@entry(Call(same_type), changes=(lambda m: m.linear.double(),))
class ParameterType(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.linear(x.to(next(self.linear.parameters()).dtype)).float())
