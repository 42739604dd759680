"""Forwards in the style of public networks for images."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import brevitas.nn as qnn
import torch
import torch.nn.functional as F
from forwards.table import FLAT, IMAGE, ITERATES, TYPE, Call, act, change, conv, dense, entry, rows
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


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
