"""Small networks and data for tasks other than classification, made from scikit-learn's digits.

Each task has a factory of a network, trained in seconds, and one of its data, as an experiment
names them: `tasks:segmenter`, `tasks:segmented`. Their batches have different forms: tensors,
dicts, triples, dataclasses and padded tokens.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from brevitas.nn import (
    QuantConv1d,
    QuantConv2d,
    QuantEmbedding,
    QuantIdentity,
    QuantLinear,
    QuantReLU,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fxfault.data.digits import DigitsDataset

SAMPLES = 96
"""Samples of a test split."""

Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Task:
    """A task as the file of an experiment names it.

    Attributes:
        model: the factory of the network.
        data: the factory of the data set.
        metric: name of the built-in metric.
        kwargs: its further arguments.
        at_least: a value that the trained network reaches without faults; or `at_most`.
        at_most: a value that the trained network stays below without faults.
    """

    model: str
    data: str
    metric: str
    kwargs: dict[str, Any]
    at_least: float = float("-inf")
    at_most: float = float("inf")


TASKS = {
    "segmentation": Task(
        "tasks:segmenter", "tasks:segmented", "mean_iou", {"ignore_index": 255}, at_least=65
    ),
    "detection": Task(
        "tasks:detector", "tasks:detected", "map", {"iou_thresholds": [0.5]}, at_least=65
    ),
    "regression": Task("tasks:stereo_net", "tasks:stereo", "rmse", {}, at_most=0.3),
    "denoising": Task("tasks:denoiser", "tasks:noisy", "psnr", {"data_range": 1.0}, at_least=17),
    "language": Task("tasks:row_model", "tasks:rows", "perplexity", {"shift": True}, at_most=2.3),
}


# -- data ---------------------------------------------------------------------------------


@dataclass(eq=False)
class Items(Dataset[Any]):
    """A map-style data set of prepared items."""

    items: Sequence[Any]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


@functools.cache
def _digits(split: str) -> tuple[Tensor, Tensor]:
    data = DigitsDataset(split)
    most = SAMPLES if split == "test" else len(data)
    return data.images[:most], data.labels[:most]


def _generator(split: str) -> torch.Generator:
    return torch.Generator().manual_seed(int(split == "test"))


def segmented(split: str) -> Items:
    """Dicts of an image (1, 8, 8) and the class of each pixel (8, 8).

    The classes are paper, ink of a digit below 5, and ink of another; 255 marks pixels in between.
    """
    images, labels = _digits(split)
    classes = torch.where(images[:, 0] > 0.5, 1 + labels[:, None, None] // 5, 0)
    classes[(images[:, 0] > 0.25) & (images[:, 0] <= 0.5)] = 255
    pairs = zip(images, classes, strict=True)
    return Items([{"image": image, "target": target} for image, target in pairs])


def detected(split: str) -> Items:
    """Pairs of an image (1, 12, 12) with one digit, and its box in pixels and its label.

    The label is 0 for a digit below 5, and 1 for another.
    """
    images, labels = _digits(split)
    generator, items = _generator(split), []
    for image, label in zip(images, labels, strict=True):
        top, left = torch.randint(5, (2,), generator=generator).tolist()
        canvas = torch.zeros(1, 12, 12)
        canvas[:, top : top + 8, left : left + 8] = image
        rows, columns = (canvas[0] > 0).nonzero().unbind(1)
        corners = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        box = torch.stack(corners).float()[None]
        items.append((canvas, {"boxes": box, "labels": label[None] // 5}))
    return Items(items)


def stereo(split: str) -> Items:
    """Triples of two views (1, 8, 12) of a digit, and by how many pixels it moved (1,)."""
    images, _ = _digits(split)
    shifts = torch.randint(5, (len(images),), generator=_generator(split))
    items = []
    for image, shift in zip(images, shifts.tolist(), strict=True):
        left = F.pad(image, (2, 2))
        right = F.pad(image, (shift, 4 - shift))
        items.append((left, right, torch.tensor([shift - 2.0])))
    return Items(items)


@dataclass
class Noisy:
    """A batch of noisy images and the clean ones."""

    image: Tensor
    target: Tensor


def _noisy_batch(items: list[tuple[Tensor, Tensor]]) -> Noisy:
    images, targets = zip(*items, strict=True)
    return Noisy(torch.stack(images), torch.stack(targets))


def noisy(split: str) -> DataLoader[Any]:
    """A loader of dataclasses, with a collate function of its own."""
    images, _ = _digits(split)
    noise = torch.randn(images.shape, generator=_generator(split))
    items = list(zip(images + 0.2 * noise, images, strict=True))
    return DataLoader(Items(items), batch_size=32, collate_fn=_noisy_batch)


def _padded(items: list[Tensor]) -> dict[str, Tensor]:
    longest = max(map(len, items))
    tokens = torch.stack([F.pad(item, (0, longest - len(item)), value=-100) for item in items])
    mask = tokens >= 0
    return {"input_ids": tokens.clamp(min=0), "attention_mask": mask.long(), "labels": tokens}


def rows(split: str) -> DataLoader[Any]:
    """A loader of the pixels of digits as tokens from 0 to 3, padded to the longest of a batch."""
    images, _ = _digits(split)
    tokens = (images.flatten(1) * 3).round().to(torch.int64)
    lengths = torch.randint(24, 65, (len(tokens),), generator=_generator(split)).tolist()
    items = [row[:length] for row, length in zip(tokens, lengths, strict=True)]
    return DataLoader(Items(items), batch_size=32, collate_fn=_padded)


# -- networks -----------------------------------------------------------------------------


class Kit:
    """Makes layers of Brevitas, or those of torch that they stand for, of the same names."""

    def __init__(self, quantised: bool) -> None:
        self.quantised = quantised

    def identity(self) -> nn.Module:
        return (
            QuantIdentity(bit_width=8, return_quant_tensor=True)
            if self.quantised
            else nn.Identity()
        )

    def relu(self) -> nn.Module:
        return QuantReLU(bit_width=8, return_quant_tensor=True) if self.quantised else nn.ReLU()

    def linear(self, inputs: int, outputs: int) -> nn.Module:
        if self.quantised:
            return QuantLinear(inputs, outputs, bias=True, weight_bit_width=8)
        return nn.Linear(inputs, outputs)

    def conv(self, inputs: int, outputs: int, size: int, **options: Any) -> nn.Module:
        if self.quantised:
            return QuantConv2d(inputs, outputs, size, weight_bit_width=8, **options)
        return nn.Conv2d(inputs, outputs, size, **options)

    def block(self, inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
        conv = self.conv(inputs, outputs, 3, padding=1, stride=stride, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), self.relu())

    def sequence(self, inputs: int, outputs: int, size: int) -> nn.Module:
        if self.quantised:
            return QuantConv1d(inputs, outputs, size, bias=True, weight_bit_width=8)
        return nn.Conv1d(inputs, outputs, size)

    def embedding(self, tokens: int, width: int) -> nn.Module:
        if self.quantised:
            return QuantEmbedding(tokens, width, weight_bit_width=8)
        return nn.Embedding(tokens, width)


class Segmenter(nn.Module):
    """Scores of three classes for each pixel, in a dict as torchvision's networks return it."""

    def __init__(self, kit: Kit) -> None:
        super().__init__()
        self.features = nn.Sequential(
            kit.identity(), kit.block(1, 16), kit.block(16, 16), kit.block(16, 16)
        )
        self.head = kit.conv(16, 3, 1, bias=True)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"out": self.head(self.features(image))}


class Detector(nn.Module):
    """One box for each image, with a score for each class."""

    def __init__(self, kit: Kit) -> None:
        super().__init__()
        self.features = nn.Sequential(
            kit.identity(),
            kit.block(1, 16),
            kit.block(16, 24, stride=2),
            nn.Flatten(),
            kit.linear(24 * 36, 64),
            kit.relu(),
        )
        self.boxes = kit.linear(64, 4)
        self.scores = kit.linear(64, 2)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        found = self.features(image)
        boxes = 6 + 6 * self.boxes(found)
        return {"boxes": boxes.unsqueeze(1), "scores": self.scores(found).unsqueeze(1)}


class StereoNet(nn.Module):
    """How far a digit moved between two views, in pixels."""

    def __init__(self, kit: Kit) -> None:
        super().__init__()
        self.views = kit.identity()
        self.features = nn.Sequential(
            kit.block(2, 16),
            kit.block(16, 16, stride=2),
            nn.Flatten(),
            kit.linear(16 * 4 * 6, 32),
            kit.relu(),
            kit.linear(32, 1),
        )

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.features(self.views(torch.cat([left, right], 1)))


class Denoiser(nn.Module):
    """A noisy image less the noise that is found in it."""

    def __init__(self, kit: Kit) -> None:
        super().__init__()
        self.noise = nn.Sequential(
            kit.identity(),
            kit.block(1, 16),
            kit.block(16, 16),
            kit.conv(16, 1, 3, padding=1, bias=True),
        )

    def forward(self, image: Tensor) -> Tensor:
        return image - self.noise(image)


class RowModel(nn.Module):
    """Logits of the next pixel, from the ten before it."""

    def __init__(self, kit: Kit, reach: int = 10) -> None:
        super().__init__()
        self.reach = reach
        self.embedding = kit.embedding(4, 8)
        self.embedded = kit.identity()
        self.mixed = kit.sequence(8, 32, reach)
        self.active = kit.relu()
        self.head = kit.sequence(32, 4, 1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        embedded = self.embedding(input_ids) * attention_mask.unsqueeze(-1)
        before = F.pad(embedded.transpose(1, 2), (self.reach - 1, 0))
        logits = self.head(self.active(self.mixed(self.embedded(before))))
        return {"logits": logits.transpose(1, 2)}


# -- training -----------------------------------------------------------------------------


def _batches(data: Any, generator: torch.Generator) -> Iterator[Any]:
    """Shuffled batches of a data set, or of that of a loader."""
    own = isinstance(data, DataLoader)
    yield from DataLoader(
        data.dataset if own else data,
        batch_size=64,
        shuffle=True,
        collate_fn=data.collate_fn if own else None,
        generator=generator,
    )


def _trained(make: Callable[[Kit], nn.Module], data: Any, step: Loss, epochs: int) -> nn.Module:
    """Train a new network; the same each time, and no global generator moves.

    The layers of torch learn, ten times as fast, and those of Brevitas take over.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        learner, generator = make(Kit(quantised=False)).train(), torch.Generator().manual_seed(0)
        steps = epochs * len(list(_batches(data, generator)))
        optimizer = torch.optim.Adam(learner.parameters(), 0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=steps)
        for _ in range(epochs):
            for batch in _batches(data, generator):
                optimizer.zero_grad()
                step(learner, batch).backward()
                optimizer.step()
                schedule.step()
        network = make(Kit(quantised=True)).train()
        missing, unexpected = network.load_state_dict(learner.state_dict(), strict=False)
        assert not unexpected
        assert all("quant" in name for name in missing)
        with torch.no_grad():
            for batch, _ in zip(_batches(data, generator), range(4), strict=False):
                step(network, batch)  # which gives the activations their scales
    return network.eval()


def _segmenting(network: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(network(batch["image"])["out"], batch["target"], ignore_index=255)


def _detecting(network: nn.Module, batch: Any) -> Tensor:
    image, targets = batch
    found = network(image)
    boxes = F.l1_loss(found["boxes"], targets["boxes"])
    return boxes + F.cross_entropy(found["scores"][:, 0], targets["labels"][:, 0])


def _measuring(network: nn.Module, batch: Any) -> Tensor:
    left, right, shift = batch
    return F.mse_loss(network(left, right), shift)


def _denoising(network: nn.Module, batch: Any) -> Tensor:
    return F.mse_loss(network(batch.image), batch.target)


def _predicting(network: nn.Module, batch: Any) -> Tensor:
    logits = network(batch["input_ids"], batch["attention_mask"])["logits"]
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())


@functools.cache
def _network(kind: str) -> nn.Module:
    make: Callable[[Kit], nn.Module]
    make, data, step, epochs = {
        "segmenter": (Segmenter, segmented, _segmenting, 6),
        "detector": (Detector, detected, _detecting, 10),
        "stereo_net": (StereoNet, stereo, _measuring, 6),
        "denoiser": (Denoiser, noisy, _denoising, 6),
        "row_model": (RowModel, rows, _predicting, 5),
    }[kind]
    return _trained(make, data("train"), step, epochs)


def segmenter() -> nn.Module:
    """A trained `Segmenter`."""
    return copy.deepcopy(_network("segmenter"))


def detector() -> nn.Module:
    """A trained `Detector`."""
    return copy.deepcopy(_network("detector"))


def stereo_net() -> nn.Module:
    """A trained `StereoNet`."""
    return copy.deepcopy(_network("stereo_net"))


def denoiser() -> nn.Module:
    """A trained `Denoiser`."""
    return copy.deepcopy(_network("denoiser"))


def row_model() -> nn.Module:
    """A trained `RowModel`."""
    return copy.deepcopy(_network("row_model"))
