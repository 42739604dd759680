"""The batches of a training: which samples, in which order, moved and mirrored how.

All of it is a function of (seed, epoch, place in the epoch) or (seed, epoch, sample), and no
generator has a state. So a training that is resumed in the middle of an epoch sees what one that
was not stopped would have seen, and so do several processes together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from fxfault.data.guarded import Guarded, samples_of
from fxfault.errors import DataError
from fxfault.experiment.sections import TrainingConfig
from fxfault.faults.random_numbers import stream_key

# The key of a sample of a training set in an epoch.
_Place = tuple[int, int]


@dataclass(frozen=True)
class Shard:
    """Which of several processes this is; each has an equal part of every joined batch.

    Attributes:
        rank: number of the process, from 0.
        world_size: number of processes.
    """

    rank: int = 0
    world_size: int = 1


def split_validation(
    dataset: Dataset[Any], fraction: float, seed: int
) -> tuple[Dataset[Any], Dataset[Any] | None]:
    """Hold out a part of the training data, drawn by the seed.

    >>> from fxfault.data import build_dataset
    >>> training, validation = split_validation(build_dataset("digits", "train"), 0.1, seed=0)
    >>> len(training), len(validation)
    (1167, 130)

    Args:
        dataset: the training split; its order is kept in both parts.
        fraction: 0 to 1; above 0 at least one sample is held out.
        seed: of the draw; the same one draws the same samples.

    Returns:
        What is left to train on, and what is held out; None for a fraction of 0.

    Raises:
        DataError: nothing would be left to train on.
    """
    if fraction == 0:
        return dataset, None
    size: int = samples_of(dataset)
    held_out = max(1, round(fraction * size))
    if held_out >= size:
        raise DataError(
            f"training.validation_fraction: {fraction:g} of {size} samples leaves none to train "
            f"on; lower it"
        )
    order = torch.randperm(size, generator=_generator(seed, "validation")).tolist()
    return Subset(dataset, sorted(order[held_out:])), Subset(dataset, sorted(order[:held_out]))


class Augmented(Dataset[tuple[Tensor, int]]):
    """A data set whose item (epoch, index) is sample `index` as that epoch sees it.

    Args:
        dataset: map-style, of (image, label); an image has the shape (C, H, W).
        config: `shift` and `flip`.
        seed: of shifts and mirrorings.
    """

    def __init__(self, dataset: Dataset[Any], config: TrainingConfig, seed: int) -> None:
        self.dataset = Guarded(dataset)
        self.shift = config.shift
        self.flip = config.flip
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: _Place) -> tuple[Tensor, int]:
        """The image, shape (C, H, W), and its label.

        Raises:
            DataError: the data set fails; its error is quoted.
        """
        epoch, index = place
        image, label = self.dataset[index]
        if not self.shift and not self.flip:
            return image, label
        # Its bits are used up from the lowest on: one for the mirror, the rest for the shifts.
        bits = stream_key(self.seed, "augmentation", epoch, index)
        bits, mirrored = divmod(bits, 2)
        bits, down = divmod(bits, 2 * self.shift + 1)
        right = bits % (2 * self.shift + 1)
        if self.flip and mirrored:
            image = image.flip(-1)
        return shifted(image, down - self.shift, right - self.shift), label


def shifted(image: Tensor, down: int, right: int) -> Tensor:
    """Move an image by whole pixels; what comes in from outside is 0.

    >>> shifted(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), 1, 0)
    tensor([[[0., 0.],
             [1., 2.]]])

    Args:
        image: shape (C, H, W).
        down: pixels; negative ones move it up.
        right: pixels; negative ones move it left.
    """
    if not down and not right:
        return image
    moved = torch.zeros_like(image)
    height, width = image.shape[-2:]
    rows, columns = height - abs(down), width - abs(right)
    if rows <= 0 or columns <= 0:
        return moved
    source = image[..., max(-down, 0) :, max(-right, 0) :][..., :rows, :columns]
    moved[..., max(down, 0) :, max(right, 0) :][..., :rows, :columns] = source
    return moved


class EpochOrder(Sampler[list[_Place]]):
    """The batches of an epoch, as lists of (epoch, index), for one of several processes.

    A last batch that is not full is left out: the samples in it differ from epoch to epoch, and
    batch statistics of one or two samples do harm. Where all samples are less than one joined
    batch, they are one batch.

    >>> order = EpochOrder(samples=10, batch_size=2, seed=0, shard=Shard(1, 2))
    >>> len(order), [len(batch) for batch in order]
    (2, [2, 2])

    Args:
        samples: of the data set.
        batch_size: samples in a batch of this process.
        seed: of the order.
        shard: which of several processes this is.

    Attributes:
        epoch: the epoch whose batches are given, from 0.
        first_batch: where the next pass starts; later ones start at 0 again.
    """

    def __init__(self, *, samples: int, batch_size: int, seed: int, shard: Shard) -> None:
        if samples < shard.world_size:
            raise DataError(
                f"{samples} training samples are too few for {shard.world_size} processes"
            )
        self.samples = samples
        self.batch_size = min(batch_size, samples // shard.world_size)
        self.seed = seed
        self.shard = shard
        self.epoch = 0
        self.first_batch = 0

    @property
    def sampler(self) -> EpochOrder:
        """Where Lightning looks for `set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Tell the epoch; Lightning does so before each."""
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
    """The loader of training batches, which Lightning saves and sets back within an epoch.

    Args:
        dataset: the training samples.
        config: batch size, augmentation and workers.
        seed: of the order and of the augmentation.
        shard: which of several processes this is.
    """

    def __init__(
        self, dataset: Dataset[Any], config: TrainingConfig, seed: int, shard: Shard
    ) -> None:
        self.order = EpochOrder(
            samples=samples_of(dataset),
            batch_size=config.batch_size,
            seed=seed,
            shard=shard,
        )
        self._given = 0
        super().__init__(
            Augmented(dataset, config, seed),
            batch_sampler=self.order,
            num_workers=config.num_workers,
            # Its own generator: a loader without one takes a number from torch's global one.
            generator=torch.Generator(),
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # Lazy: Lightning asks for the iterator before it tells the epoch.
        self._given = self.order.first_batch
        key = stream_key(self.order.seed, "workers", self.order.epoch)
        self.generator.manual_seed(key >> 1)
        for batch in super().__iter__():
            self._given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """How many batches of the epoch were given."""
        return {"batches": self._given % max(1, len(self))}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Start the next pass after the batches that were given."""
        self.order.first_batch = state["batches"]


def evaluation_loader(dataset: Dataset[Any], batch_size: int, shard: Shard) -> DataLoader[Any]:
    """The batches of one process's part of a data set, in its order.

    Each process has an equal slice of every joined batch, as `FaultSites.shard` asks for. What
    cannot be shared equally at the end is one more batch, of one sample, for the first of them.

    >>> data = Subset(range(11), range(11))
    >>> [list(evaluation_loader(data, 2, Shard(rank, 2)).batch_sampler) for rank in (0, 1)]
    [[[0, 1], [4, 5], [8], [10]], [[2, 3], [6, 7], [9]]]

    Args:
        dataset: map-style.
        batch_size: samples in a batch of this process.
        shard: which of several processes this is.

    Raises:
        DataError: there is not a sample for each process.
    """
    size: int = samples_of(dataset)
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
    batches = _Batches([batch for batch in own if batch])
    guarded: Any = Guarded(dataset)
    return DataLoader(guarded, batch_sampler=batches, generator=torch.Generator())


class _Batches(Sampler[list[int]]):
    def __init__(self, batches: list[list[int]]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


def _generator(*parts: object) -> torch.Generator:
    # torch's CPU generator keeps the low 32 bits of a seed alone, and those are hashed ones.
    return torch.Generator().manual_seed(stream_key(*parts) >> 1)
