"""Small networks after public code, whose samples lie in all sorts of ways in an activation."""

from __future__ import annotations

import functools
from typing import Any

import torch
from brevitas import nn as qnn
from torch import Tensor, nn

import fxfault

N = 14
Data = list[tuple[Tensor, Tensor]]


def act(bits: int = 4, **kwargs: Any) -> nn.Module:
    return qnn.QuantReLU(bit_width=bits, **kwargs)


def identity(bits: int = 4) -> nn.Module:
    return qnn.QuantIdentity(bit_width=bits)


class TwoViews(nn.Module):
    """Test-time augmentation: both views as one batch, scores added."""

    shape = (12,)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act = nn.Linear(12, 16), act()
        self.more, self.act2, self.head = nn.Linear(16, 8), act(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.stem(torch.cat([x, x.flip(-1)], 0)))
        a, b = self.head(self.act2(self.more(y))).chunk(2, 0)
        return a + b


class Siamese(nn.Module):
    """Two towers with the same weights, called one after the other."""

    shape = (2, 6)

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(6, 8), act())
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.tower(x[:, 0]) - self.tower(x[:, 1])).abs())


class Raft(nn.Module):
    """The encoder of RAFT: two images concatenated, encoded, split."""

    shape = (2, 3, 6, 6)

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 4, 3, padding=1), act()
        self.conv2, self.act2 = nn.Conv2d(4, 4, 3, stride=2), act()
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.unbind(1)
        batch = first.shape[0]
        y = torch.cat([first, second], dim=0)
        y = self.act2(self.conv2(self.act(self.conv(y))))
        a, b = torch.split(y, [batch, batch], dim=0)
        return self.head((a * b).flatten(1))


class TimeMajor(nn.Module):
    """A recurrent network over (T, B, F), as nn.RNN has it."""

    shape = (5, 6)

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.act0 = nn.Linear(6, 6), act()
        self.cell, self.act, self.head = nn.Linear(14, 8), act(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        steps = self.act0(self.embed(x.transpose(0, 1)))
        hidden = x.new_zeros(x.shape[0], 8)
        for t in range(5):
            hidden = self.act(self.cell(torch.cat([steps[t], hidden], -1)))
        return self.head(hidden)


class Spiking(nn.Module):
    """A loop over time as snnTorch has it: spikes recorded and stacked, (T, B, F)."""

    shape = (6,)

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.spike = nn.Linear(6, 12), act(2)
        self.fc2, self.record = nn.Linear(12, 5), act()

    def forward(self, x: Tensor) -> Tensor:
        mem, out = torch.zeros(x.shape[0], 12), []
        for _ in range(4):
            mem = 0.9 * mem + self.fc1(x)
            out.append(self.fc2(self.spike(mem)))
        return self.record(torch.stack(out)).sum(0)


class FoldedTime(nn.Module):
    """Time folded in front of the batch: (T * B, C)."""

    shape = (3, 6)

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.act, self.head = nn.Linear(6, 8), act(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.fc(x.transpose(0, 1).flatten(0, 1)))
        return self.head(y.view(3, -1, 8).mean(0))


class Windows(nn.Module):
    """Swin: window_partition folds the windows of an image into the batch."""

    shape = (4, 4, 3)

    def __init__(self) -> None:
        super().__init__()
        self.proj, self.act = nn.Linear(3, 6), act()
        self.mlp, self.act2, self.head = nn.Linear(6, 6), act(), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        windows = x.view(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5)
        windows = self.act(self.proj(windows.reshape(-1, 4, c)))
        y = windows.view(b, 2, 2, 2, 2, 6).permute(0, 1, 3, 2, 4, 5).reshape(b, 16, 6)
        return self.head(self.act2(self.mlp(y)).mean(1))


class BothFolded(nn.Module):
    """Two views of windows: 2 * N * 4 rows."""

    shape = (4, 6)

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.act, self.head = nn.Linear(6, 8), act(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([x, x.flip(-1)], 0).flatten(0, 1)
        y = self.act(self.fc(y)).view(2, -1, 4, 8)
        return self.head(y.mean((0, 2)))


class NanoGPT(nn.Module):
    """A block of nanoGPT, with tokens folded into rows (B * T, C) for the MLP."""

    shape = (4, 8)

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.act = nn.LayerNorm(8), nn.Linear(8, 24), identity()
        self.fc, self.gelu, self.head = nn.Linear(8, 16), act(), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = self.qkv(self.norm(x)).split(8, dim=2)
        q, k, v = (y.view(b, t, 2, 4).transpose(1, 2) for y in (q, k, v))
        weights = self.act((q @ k.transpose(-2, -1)).softmax(-1))
        y = (weights @ v).transpose(1, 2).reshape(b * t, c)
        return self.head(self.gelu(self.fc(y)).view(b, t, -1)[:, -1])


class MultiCrop(nn.Module):
    """DINO: crops of each image concatenated along the batch, scores averaged."""

    shape = (3, 8)

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.act, self.head = nn.Linear(8, 8), act(), nn.Linear(8, 5)

    def forward(self, crops: Tensor) -> Tensor:
        y = self.head(self.act(self.fc(torch.cat(list(crops.unbind(1))))))
        return torch.stack(y.chunk(3)).mean(0)


class Sorted(nn.Module):
    """Samples sorted by their length, as for packed sequences, and put back in the end."""

    shape = (8,)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act0 = nn.Linear(8, 8), act()
        self.fc, self.act, self.head = nn.Linear(8, 8), act(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        order = x.sum(1).argsort(stable=True)
        y = self.act(self.fc(self.act0(self.first(x))[order]))
        return self.head(y[order.argsort()])


class BatchStatistics(nn.Module):
    """Batch norm with the statistics of the batch in eval mode too."""

    shape = (8,)

    def __init__(self) -> None:
        super().__init__()
        self.act0 = act()
        self.fc, self.norm = nn.Linear(8, 8), nn.BatchNorm1d(8, track_running_stats=False)
        self.act, self.head = act(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.norm(self.fc(self.act0(x)))))


class AcrossBatch(nn.Module):
    """Attention from every sample to every other one."""

    shape = (8,)

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.act, self.head = nn.Linear(8, 8), act(), nn.Linear(8, 5)
        self.after = act()

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.fc(x))
        return self.head(self.after((y @ y.T).softmax(-1) @ y))


class Vit(nn.Module):
    """A vision transformer's input: a class token before the patches, a table of positions."""

    shape = (3, 4, 4)

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 2, stride=2)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.positions = nn.Parameter(torch.randn(1, 5, 8))
        self.table, self.act = identity(), act()
        self.fc, self.act2, self.head = nn.Linear(8, 8), act(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patch(x).flatten(2).transpose(1, 2)
        y = torch.cat([self.token.expand(x.shape[0], -1, -1), y], 1)
        y = self.act(y + self.table(self.positions))
        y = y + self.fc(y.mean(1, keepdim=True))
        return self.head(self.act2(y)[:, 0])


class PixelShuffle(nn.Module):
    shape = (4, 4, 4)

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(4, 8, 3, padding=1), act()
        self.act2, self.head = act(), nn.Linear(2, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.pixel_shuffle(self.act(self.conv(x)), 2)
        return self.head(self.act2(y - 0.1).mean((2, 3)))


class Transposed(nn.Module):
    """Features first, (C, N)."""

    shape = (8,)

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.act, self.head = nn.Linear(8, 6), act(), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.fc(x).t())
        return self.head((y + 0.5 * y.roll(1, 0)).t())


class TransposedImages(nn.Module):
    """Channels before the batch, (C, N, H, W)."""

    shape = (3, 4, 4)

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.head = nn.Conv2d(3, 4, 3), act(), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.conv(x).transpose(0, 1)).mean((2, 3)).t())


class Skips(nn.Module):
    """Two views, with a skip connection around the struck layers."""

    shape = (8,)

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.act = nn.Linear(8, 8), act()
        self.fc2, self.act2, self.head = nn.Linear(8, 8), act(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([x, -x])
        y = self.act(self.fc(both))
        y = self.act2(self.fc2(y)) + both + y
        return self.head(y.view(2, -1, 8).sum(0))


class HardExamples(nn.Module):
    """The half of the batch with the highest score goes through another layer."""

    shape = (8,)

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.act, self.act2 = nn.Linear(8, 8), act(), act()
        self.more, self.head = nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.fc(x))
        chosen = y.sum(1).topk((x.shape[0] + 1) // 2).indices
        return self.head(y.index_add(0, chosen, self.act2(self.more(y[chosen]))))


class Pairs(nn.Module):
    """Interleaved views: each sample's rows follow each other."""

    shape = (8,)

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.act, self.head = nn.Linear(8, 8), act(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.stack([x, x.flip(-1)], 1).flatten(0, 1)
        return self.head(self.act(self.fc(y)).view(-1, 2, 8).sum(1))


class SharedScale(nn.Module):
    """Divided by the largest value of the batch."""

    shape = (8,)

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.act, self.head = nn.Linear(8, 8), act(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        return self.head(self.act(y / y.abs().max()))


class Small(nn.Module):
    """Layers for the networks below, which differ in how samples go through them."""

    shape: tuple[int, ...] = (8,)

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.act = nn.Linear(8, 8), act()
        self.fc2, self.act2, self.head = nn.Linear(8, 8), act(), nn.Linear(8, 5)


class HeadsFirst(Small):
    """The attention of torch: (N * heads, T, T), and time first beside it."""

    shape = (4, 8)

    def forward(self, x: Tensor) -> Tensor:
        q = self.fc(x.transpose(0, 1)).reshape(4, -1, 4).transpose(0, 1)
        weights = self.act(torch.bmm(q, q.transpose(1, 2)))
        y = torch.bmm(weights, q).transpose(0, 1).reshape(4, -1, 8)
        return self.head(self.act2(self.fc2(y)).mean(0))


class HeadsConcatenated(Small):
    """SASRec: heads concatenated along the batch, (heads * N, T, T)."""

    shape = (4, 8)

    def forward(self, x: Tensor) -> Tensor:
        q = torch.cat(self.fc(x).split(4, 2), 0)
        y = torch.cat((self.act(q @ q.transpose(1, 2)) @ q).chunk(2, 0), 2)
        return self.head(self.act2(self.fc2(y)).mean(1))


class SamplesLast(Small):
    def forward(self, x: Tensor) -> Tensor:
        y = self.fc2(self.act(self.fc(x))).t().reshape(2, 4, -1)
        return self.head(self.act2(y - 0.05).reshape(8, -1).t())


class Grid(nn.Module):
    """All images side by side in one."""

    shape = (1, 4, 4)

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.head = nn.Conv2d(1, 2, 1), act(), nn.Linear(2, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x.permute(1, 2, 0, 3).reshape(1, 1, 4, -1))
        return self.head(self.act(y).view(2, 4, -1, 4).mean((1, 3)).t())


class Reversed(Small):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act2(self.fc2(self.act(self.fc(x).flip(0)))).flip(0))


class ByPlace(Small):
    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.fc(x) + 0.3 * torch.arange(x.shape[0])[:, None])
        return self.head(self.act2(self.fc2(y)))


class EverySecond(Small):
    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.fc(x))
        places = torch.arange(0, x.shape[0], 2)
        return self.head(y).index_add(0, places, self.head(self.act2(self.fc2(y[places]))))


class Routed(Small):
    """A mixture of experts: some samples go through another layer."""

    def forward(self, x: Tensor) -> Tensor:
        y, chosen = self.act(self.fc(x)), (x[:, 0] > 0).nonzero()[:, 0]
        return self.head(y).index_add(0, chosen, self.head(self.act2(self.fc2(y[chosen]))))


class DeadViews(Small):
    """Two views, the first site of which is always 0."""

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([x, -2 * x])
        y = self.act(-both.abs())
        a, b = self.head(self.act2(self.fc2(y + both))).chunk(2)
        return a - b


class Dead(Small):
    """Two views without any information in them, until a fault strikes."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.act2(self.fc2(self.act(-torch.cat([x, 2 * x]).abs() - 1)))
        a, b = self.head(y).chunk(2)
        return 2 * a + b * torch.arange(5)


CONSECUTIVE, TABLE = "consecutive", "belong to the batch: it is the same for every batch"
TWO = "every N-th row (outer=2)"
SORTED = "belong to the batch: its values follow the order of the samples in the batch"

# What is to be found at each site; an end of it where several things are said.
NETWORKS: dict[type[nn.Module], list[str]] = {
    TwoViews: [TWO, TWO],
    Siamese: [CONSECUTIVE] * 2,
    Raft: [TWO, TWO],
    TimeMajor: ["every N-th row (outer=5)", *[CONSECUTIVE] * 5],
    Spiking: [*[CONSECUTIVE] * 4, "every N-th row (outer=4)"],
    FoldedTime: ["every N-th row (outer=3)"],
    Windows: [CONSECUTIVE] * 2,
    BothFolded: ["every N-th 4 rows (outer=2)"],
    NanoGPT: [CONSECUTIVE] * 2,
    MultiCrop: ["every N-th row (outer=3)"],
    Sorted: [CONSECUTIVE, SORTED],
    BatchStatistics: [CONSECUTIVE, "they influence each other"],
    AcrossBatch: [CONSECUTIVE, "they influence each other"],
    Vit: [TABLE, CONSECUTIVE, CONSECUTIVE],
    PixelShuffle: [CONSECUTIVE] * 2,
    Transposed: ["every N-th row (outer=6)"],
    TransposedImages: ["every N-th row (outer=4)"],
    Skips: [TWO, TWO],
    HardExamples: [CONSECUTIVE, "belong to the batch"],
    Pairs: [CONSECUTIVE],
    SharedScale: ["they influence each other"],
    HeadsFirst: [CONSECUTIVE, "every N-th row (outer=4)"],
    HeadsConcatenated: [TWO, CONSECUTIVE],
    SamplesLast: [CONSECUTIVE, "every N-th row (outer=8)"],
    Grid: ["every N-th 4 rows (outer=8)"],
    Reversed: [SORTED, SORTED],
    ByPlace: [SORTED, SORTED],
    EverySecond: [CONSECUTIVE, "belong to the batch: no dimension of its shape (4, 8)"],
    Routed: [CONSECUTIVE, "belong to the batch: no dimension"],
    DeadViews: [TWO, TWO],
    Dead: [TWO, "which is a guess: what comes in is the same for all samples"],
}
REFUSED = (Sorted, HardExamples, Reversed, ByPlace, EverySecond, Routed)
MIXING = (BatchStatistics, AcrossBatch, SharedScale)


@functools.cache
def _net_of(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(3)
    net: Any = kind()
    net(torch.randn(32, *kind.shape))
    return net.eval()


def model_of(kind: type[nn.Module], **settings: Any) -> Any:
    """Transform and freeze a calibrated network; all of a kind share its layers."""
    given = {"enabled": True, "apply_during": "eval", "probability": 3.0, "seed": 5, **settings}
    return fxfault.freeze(fxfault.transform(_net_of(kind), given))


def data_of(kind: type[nn.Module], batch: int, samples: int = N) -> Data:
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(samples, *kind.shape, generator=generator)
    return [(part, torch.zeros(len(part), dtype=torch.int64)) for part in inputs.split(batch)]
