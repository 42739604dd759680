"""The batches of a training: selection, order and augmentation of the samples.

Everything is a function of (seed, epoch, place in the epoch) or (seed, epoch, sample); there is no
generator with a state. A training that resumes in the middle of an epoch, or that runs in several
processes, therefore sees the same batches as an uninterrupted one in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
)

from fxfault.data.guarded import Guarded, samples_of
from fxfault.errors import DataError
from fxfault.experiment.training_sections import TrainingConfig
from fxfault.faults.random_numbers import stream_key
from fxfault.messages import described

_Place = tuple[int, int]  # epoch and index of a training sample

Collate = Callable[[list[Any]], Any]
"""Joins samples to a batch."""


@dataclass(frozen=True)
class Shard:
    """One of several processes, each with an equal part of every joined batch.

    Attributes:
        rank: number of the process, from 0.
        world_size: number of processes.
    """

    rank: int = 0
    world_size: int = 1


def samples_and_collate(data: Any) -> tuple[Dataset[Any], Collate | None]:
    """The samples of a data set or of a user's data loader, and what joins them to batches.

    Order and size of the batches are those of the training, so of a loader only its data set and
    its collate function count.

    Args:
        data: map-style data set, or a `DataLoader`.

    Returns:
        The data set, and the collate function of a loader; None for that of torch.

    Raises:
        DataError: the loader chooses its samples by a sampler of its own, which training would
            not follow.
    """
    if not isinstance(data, DataLoader):
        return data, None
    sampler, batches = data.sampler, data.batch_sampler
    known = type(sampler) in (SequentialSampler, RandomSampler) and type(batches) is BatchSampler
    if (
        not known
        or getattr(sampler, "replacement", False)
        or samples_of(sampler) != samples_of(data.dataset)
    ):
        kind = type(sampler if type(batches) is BatchSampler else batches).__name__
        raise DataError(
            f"training data: the data loader chooses its samples by a {kind}; training draws them "
            "by `seed`, each once in an epoch: give a loader without a sampler, or its data set"
        )
    return data.dataset, data.collate_fn


def split_validation(
    dataset: Dataset[Any], fraction: float, seed: int
) -> tuple[Dataset[Any], Dataset[Any] | None]:
    """Hold out a part of the training data for validation.

    >>> from fxfault.data import build_dataset
    >>> training, validation = split_validation(build_dataset("digits", "train"), 0.1, seed=0)
    >>> len(training), len(validation)
    (1167, 130)

    Args:
        dataset: the training split; both parts keep its order.
        fraction: share to hold out, 0 to 1; above 0, at least one sample is held out.
        seed: seed of the draw.

    Returns:
        The samples to train on, and those held out; None instead of the latter if `fraction` is 0.

    Raises:
        DataError: no sample would be left to train on.
    """
    if fraction == 0:
        return dataset, None
    size = samples_of(dataset)
    held_out = max(1, round(fraction * size))
    if held_out >= size:
        raise DataError(
            f"training.validation_fraction: {fraction:g} of {size} samples leaves none to train "
            f"on; lower it"
        )
    order = torch.randperm(size, generator=_generator(seed, "validation")).tolist()
    return Subset(dataset, sorted(order[held_out:])), Subset(dataset, sorted(order[:held_out]))


class Augmented(Dataset[Any]):
    """A data set whose item (epoch, index) is sample `index`, augmented for that epoch.

    With `shift` or `flip`, the samples of `dataset` are pairs of an image, shape (C, H, W), and a
    class. Else they may be anything.
    """

    def __init__(self, dataset: Dataset[Any], config: TrainingConfig, seed: int) -> None:
        self.dataset = Guarded(dataset)
        self.shift, self.flip, self.seed = config.shift, config.flip, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: _Place) -> Any:
        epoch, index = place
        item = self.dataset[index]
        if not self.shift and not self.flip:
            return item
        image, label = _image_and_label(item)
        # The lowest bit decides the mirroring, the others the shifts.
        bits = stream_key(self.seed, "augmentation", epoch, index)
        bits, mirrored = divmod(bits, 2)
        bits, down = divmod(bits, 2 * self.shift + 1)
        right = bits % (2 * self.shift + 1)
        if self.flip and mirrored:
            image = image.flip(-1)
        return shifted(image, down - self.shift, right - self.shift), label


def _image_and_label(item: Any) -> tuple[Tensor, Any]:
    """The parts of a sample that may be moved without moving its target."""
    if isinstance(item, (tuple, list)) and len(item) == 2:
        image, label = item
        shape = tuple(getattr(label, "shape", () if isinstance(label, (int, float)) else (0,)))
        if isinstance(image, Tensor) and image.dim() == 3 and shape in ((), (1,)):
            return image, label
    raise DataError(
        f"training.shift, training.flip: a sample is {described(item)}; they move images, shape "
        "(C, H, W), of pairs with a class, and no other targets: set both to 0 and false, and "
        "augment in your data set"
    )


def shifted(image: Tensor, down: int, right: int) -> Tensor:
    """Move an image by whole pixels, filling with zeros.

    >>> shifted(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), 1, 0)
    tensor([[[0., 0.],
             [1., 2.]]])

    Args:
        image: image of shape (C, H, W).
        down: shift in pixels; negative values move up.
        right: shift in pixels; negative values move left.
    """
    height, width = image.shape[-2:]
    if abs(down) >= height or abs(right) >= width:
        return torch.zeros_like(image)
    return nn.functional.pad(image, (right, -right, down, -down))


class EpochOrder(Sampler[list[_Place]]):
    """The batches of an epoch for one of several processes, as lists of (epoch, index).

    An incomplete last batch is left out, as batch statistics of one or two samples do harm; its
    samples differ from epoch to epoch. If there are fewer samples than one joined batch, they form
    one batch.

    >>> order = EpochOrder(samples=10, batch_size=2, seed=0, shard=Shard(1, 2))
    >>> len(order), [len(batch) for batch in order]
    (2, [2, 2])

    Attributes:
        batch_size: samples in a batch of this process.
        epoch: the epoch, from 0.
        first_batch: first batch of the next pass; later passes start at 0 again.
    """

    def __init__(self, *, samples: int, batch_size: int, seed: int, shard: Shard) -> None:
        if samples < shard.world_size:
            raise DataError(
                f"{samples} training samples are too few for {shard.world_size} processes"
            )
        self.samples, self.seed, self.shard = samples, seed, shard
        self.batch_size = min(batch_size, samples // shard.world_size)
        self.epoch = self.first_batch = 0

    @property
    def sampler(self) -> EpochOrder:
        """The object on which Lightning looks for `set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Lightning calls this before each."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.samples // (self.batch_size * self.shard.world_size)

    def __iter__(self) -> Iterator[list[_Place]]:
        first, self.first_batch = self.first_batch, 0
        generator = _generator(self.seed, "order", self.epoch)
        order = torch.randperm(self.samples, generator=generator).tolist()
        for batch in range(first, len(self)):
            start = (batch * self.shard.world_size + self.shard.rank) * self.batch_size
            yield [(self.epoch, index) for index in order[start : start + self.batch_size]]


class TrainingLoader(DataLoader[Any]):
    """A loader of training batches that Lightning can save and restore within an epoch.

    `seed` determines the order and the augmentation.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        config: TrainingConfig,
        seed: int,
        shard: Shard,
        collate: Collate | None = None,
    ) -> None:
        samples, size = samples_of(dataset), config.batch_size
        self.order = EpochOrder(samples=samples, batch_size=size, seed=seed, shard=shard)
        self._given = 0
        super().__init__(
            Augmented(dataset, config, seed),
            batch_sampler=self.order,
            collate_fn=collate,
            num_workers=config.num_workers,
            # A loader without its own generator draws a number from torch's global one.
            generator=torch.Generator(),
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator, because Lightning creates the iterator before it sets the epoch.
        self._given = self.order.first_batch
        key = stream_key(self.order.seed, "workers", self.order.epoch)
        self.generator.manual_seed(key >> 1)
        for batch in super().__iter__():
            self._given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Number of batches of the epoch that the loader has given."""
        return {"batches": self._given % max(1, len(self))}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Start the next pass after those batches."""
        self.order.first_batch = state["batches"]


def evaluation_loader(
    dataset: Dataset[Any], batch_size: int, shard: Shard, collate: Collate | None = None
) -> DataLoader[Any]:
    """Load one process's part of a data set, in order.

    Each process gets an equal slice, `batch_size` samples, of every joined batch, as
    `FaultSites.shard` requires. Samples left over at the end go to the first processes, as one more
    batch of one sample each.

    >>> data = Subset(range(11), range(11))
    >>> [list(evaluation_loader(data, 2, Shard(rank, 2)).batch_sampler) for rank in (0, 1)]
    [[[0, 1], [4, 5], [8], [10]], [[2, 3], [6, 7], [9]]]

    Raises:
        DataError: there are fewer samples than processes.
    """
    size = samples_of(dataset)
    if size < shard.world_size:
        raise DataError(
            f"{size} validation samples are too few for {shard.world_size} processes; raise "
            f"training.validation_fraction"
        )
    own: list[list[int]] = []
    for start in range(0, size, batch_size * shard.world_size):
        joined = range(start, min(start + batch_size * shard.world_size, size))
        part = len(joined) // shard.world_size
        rest = joined[part * shard.world_size :]
        own += [list(joined[shard.rank * part :][:part]), list(rest[shard.rank :][:1])]
    batches = [batch for batch in own if batch]
    guarded: Any = Guarded(dataset)
    return DataLoader(
        guarded, batch_sampler=batches, collate_fn=collate, generator=torch.Generator()
    )


def _generator(*parts: object) -> torch.Generator:
    # torch's CPU generator keeps only the low 32 bits of a seed; those of a stream key are hashed.
    return torch.Generator().manual_seed(stream_key(*parts) >> 1)
