"""Make what an experiment file names: data, network, weights, device.

Importing this module imports neither torch nor brevitas.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fxfault.data import DatasetFacts, build_dataset, dataset_facts
from fxfault.data.catalogue import Split
from fxfault.data.guarded import Guarded, samples_of
from fxfault.errors import ConfigError, DataError, FxFaultError
from fxfault.experiment.sections import ExperimentConfig
from fxfault.factories import find_factory
from fxfault.foreign import quoting
from fxfault.messages import quote_error
from fxfault.models import build_model

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fxfault.data.batches import Batch
    from fxfault.metrics.metric import Metric
    from fxfault.models.checkpoints import CheckpointInfo

# Batches are kept in memory if all their images together are not larger than this.
KEPT_BYTES = 2**30

_EXAMPLES = {"dataset": "dataset: {name: digits}", "model": "model: {name: quant_digits}"}


def check_sections(experiment: ExperimentConfig, names: Iterable[str], source: str) -> None:
    """Raise a `ConfigError` if a file has not all sections that a command needs.

    >>> check_sections(ExperimentConfig(), ["dataset", "model"], "faults.yaml")
    Traceback (most recent call last):
    ...
    fxfault.errors.ConfigError: faults.yaml has no section `dataset` and no section `model`; add \
for instance `dataset: {name: digits}` and `model: {name: quant_digits}`
    """
    missing = [name for name in names if getattr(experiment, name) is None]
    if missing:
        absent = " and ".join(f"no section `{name}`" for name in missing)
        added = " and ".join(f"`{_EXAMPLES[name]}`" for name in missing)
        raise ConfigError(f"{source} has {absent}; add for instance {added}")


def load_model(
    experiment: ExperimentConfig,
    checkpoint: str | None,
    facts: DatasetFacts | None = None,
    folder: str | None = None,
) -> tuple[nn.Module, CheckpointInfo | None]:
    """Build the network of an experiment and load its weights.

    Args:
        experiment: experiment with a section `model`, and `dataset` for a built-in network.
        checkpoint: file or `bundled:NAME`; None leaves the network untrained.
        facts: sizes of the data set; default: those of the section `dataset`.
        folder: folder that the path of the checkpoint starts from; default: the current folder
            when the function is called, even if the user's network changes it.

    Returns:
        The network, in eval mode and on the CPU, and the weights that were loaded.

    Raises:
        ConfigError: a section is missing.
        DataError: the network or the checkpoint cannot be used.
    """
    folder = os.getcwd() if folder is None else folder
    own = _has_own_network(experiment)
    check_sections(experiment, ["model"] if own else ["dataset", "model"], "the configuration")
    assert experiment.model is not None
    if own:  # Only built-in networks use the sizes.
        facts = DatasetFacts(num_classes=2, in_channels=1, image_size=(1, 1))
    elif facts is None:
        assert experiment.dataset is not None
        data = experiment.dataset
        facts = dataset_facts(data.name, root=data.root, kwargs=data.kwargs)
    model = build_model(
        experiment.model.name,
        **asdict(facts),
        **asdict(experiment.quantization),
        kwargs=experiment.model.kwargs,
    )
    if checkpoint is None:
        return model.eval(), None
    from fxfault.models.checkpoints import load_checkpoint  # imports torch

    info = load_checkpoint(checkpoint, model, folder)
    return model.eval(), info


def _has_own_network(experiment: ExperimentConfig) -> bool:
    return experiment.model is not None and ":" in experiment.model.name


@dataclass(frozen=True)
class EvaluationData:
    """The data that a command evaluates on.

    Attributes:
        dataset: map-style data set of (image, label); with a network of the user's own, also of
            other items, or a data loader.
        facts: sizes of the data set; None if the user's own data set does not give them.
    """

    dataset: Any
    facts: DatasetFacts | None

    @property
    def items(self) -> Any:
        """The samples by their numbers: the data set, or that of a data loader."""
        from torch.utils.data import DataLoader

        return self.dataset.dataset if isinstance(self.dataset, DataLoader) else self.dataset


class Batches:
    """The batches of a data set, in its order, the same at each iteration.

    Small data stays in memory after the first pass: an evaluation under faults reads it many
    times, and decoding images takes longer than a GPU needs for them. Larger data is read again
    at each pass and must not change.

    Attributes:
        samples: number of samples.
        forward: the forward of the network that the batches are for, whose parameters tell inputs
            from targets (`fxfault.data.batches`); None if it is not known yet.
    """

    def __init__(
        self, dataset: Any, batch_size: int | None, taker: Any = None, forward: Any = None
    ) -> None:
        """Take a data set.

        Args:
            dataset: map-style data set, or a `DataLoader` with a sampler, a batch size and a
                collate function of its own; without `batch_size`, an iterable of batches, which is
                read once to count its samples.
            batch_size: number of samples in a batch; a loader has its own.
            taker: the user's function that takes a batch apart; see `fxfault.data.batches`.
            forward: the forward of the network that the batches are for.
        """
        from torch.utils.data import DataLoader

        self.forward = forward
        self._taker = taker
        self._loader: Any
        if batch_size is None:
            self._loader = dataset
            sizes = [batch.samples for batch in self._taken_apart()]
            self.samples, self._number = sum(sizes), len(sizes)
        elif isinstance(dataset, DataLoader):
            self.samples, self._loader = _samples_of_loader(dataset), dataset
        else:
            self.samples = samples_of(dataset)
            guarded: Any = Guarded(dataset)
            self._loader = DataLoader(guarded, batch_size=batch_size)
        if batch_size is not None:
            self._number = len(self._loader)
        self._kept: list[Batch] | None = None
        self._sums: dict[int, int] = {}

    def __len__(self) -> int:
        return self._number

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches, taken apart.

        Raises:
            DataError: the data set fails, in which case its error is quoted, its samples have
                changed since the first pass, or a batch cannot be taken apart.
        """
        if self._kept is not None:
            yield from self._kept
            return
        kept, is_small = [], True
        seen = 0
        for number, batch in enumerate(self._taken_apart()):
            tensors = _tensors_of(batch)
            if number == 0:
                is_small = sum(part.nbytes for part in tensors) * len(self) <= KEPT_BYTES
            if is_small:
                kept.append(batch)
            seen += batch.samples
            self._compare(number, tensors)
            yield batch
        if seen != self.samples:  # `__len__` is wrong or has changed.
            raise DataError(
                f"the data set says that it has {self.samples} samples and gave {seen}; its len() "
                "must be the number of samples that it has"
            )
        self._kept = kept if is_small else None

    def _compare(self, number: int, tensors: Iterable[Any]) -> None:
        """Check that a batch has not changed, as its golden predictions are computed only once."""
        checksum = 0
        for part in tensors:
            checksum = zlib.crc32(_bytes_of(part), checksum)
        if self._sums.setdefault(number, checksum) != checksum:
            raise DataError(
                f"batch {number} of the data set is not what it was when it was first read: leave "
                "its files alone while they are used, and draw no random numbers for test data"
            )

    def _taken_apart(self) -> Iterator[Batch]:
        from fxfault.data.batches import take_apart  # imports torch

        for given in self._read():
            yield take_apart(given, forward=self.forward, taker=self._taker)

    def _read(self) -> Iterator[Any]:
        try:
            yield from self._loader
        except FxFaultError:
            raise
        # Not FOREIGN: a GeneratorExit ends this generator when its reader stops early.
        except (Exception, SystemExit) as error:
            raise DataError(f"the data set cannot be read: {quote_error(error)}") from error


def _samples_of_loader(loader: Any) -> int:
    """Number of samples that a loader gives in a pass."""
    if loader.sampler is None or loader.batch_sampler is None or loader.drop_last:
        raise DataError(
            "the data loader must give all samples in batches: leave out batch_size=None, "
            "drop_last=True and data sets without a length"
        )
    with quoting("the sampler of the data loader must have a len()"):
        own = getattr(loader.batch_sampler, "sampler", None)
        return len(loader.sampler if own is None else own)


def _tensors_of(batch: Batch) -> list[Any]:
    """The tensors of a batch."""
    from torch import Tensor
    from torch.utils import _pytree as pytree

    leaves = pytree.tree_leaves([batch.inputs, batch.keywords, batch.targets])
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _bytes_of(tensor: Any) -> Any:
    """The bytes of a tensor of any dtype, which may be on another device."""
    import torch

    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()


def batches_of(experiment: ExperimentConfig, dataset: Any) -> Batches:
    """The batches of a data set for the evaluation of an experiment.

    Raises:
        DataError: the user's function for batches cannot be imported, or the data set has no
            length.
    """
    return Batches(dataset, experiment.training.batch_size, load_taker(experiment))


def load_taker(experiment: ExperimentConfig) -> Any:
    """Import the user's function that takes batches apart; None if the rules do.

    Raises:
        DataError: it cannot be imported.
    """
    section = experiment.dataset
    if section is None or section.batch is None:
        return None
    return find_factory(section.batch, what="batch function")


def load_metric(experiment: ExperimentConfig) -> Metric | None:
    """Make the metric of an experiment; None for the accuracy of a classifier.

    Raises:
        ConfigError: there is no such metric, or a value is not allowed.
        DataError: the user's function or class cannot be imported or made.
    """
    section = experiment.metric
    if section is None:
        return None
    from fxfault.metrics.metric import make_metric  # imports torch

    return make_metric(
        section.name,
        section.kwargs,
        higher_is_better=section.higher_is_better,
        tolerance=section.tolerance,
        unit=section.unit,
    )


def open_test_data(experiment: ExperimentConfig) -> EvaluationData:
    """Open the test split of an experiment's data set.

    Raises:
        ConfigError: there is no section `dataset`.
        DataError: the data does not exist or cannot be read, or does not give the sizes that a
            built-in network needs.
    """
    dataset = _open_data(experiment, "test")
    try:
        return EvaluationData(dataset, dataset_facts(dataset))
    # A data set for another task has no images or classes to look for.
    except (DataError, AttributeError, KeyError, IndexError, TypeError):
        if _has_own_network(experiment):
            return EvaluationData(dataset, None)
        if experiment.metric is not None:
            raise DataError(
                f"data set {_named(experiment)}: a built-in network cannot be sized for it; it "
                "takes pairs of an image and a class, so give a network of your own"
            ) from None
        raise


def _named(experiment: ExperimentConfig) -> str:
    return repr(None if experiment.dataset is None else experiment.dataset.name)


def open_training_data(experiment: ExperimentConfig) -> Any:
    """Open the training split of an experiment's data set; it raises as `open_test_data` does."""
    return _open_data(experiment, "train")


def _open_data(experiment: ExperimentConfig, split: Split) -> Any:
    check_sections(experiment, ["dataset"], "the configuration")
    assert experiment.dataset is not None
    data = experiment.dataset
    own_task = experiment.metric is not None or data.batch is not None
    return build_dataset(data.name, split, root=data.root, kwargs=data.kwargs, any_items=own_task)


def pick_device(name: str, what: str = "--device") -> torch.device:
    """Find the device that the user named.

    Args:
        name: `auto` (CUDA if it is available), `cpu`, `cuda` or `cuda:N`.
        what: what errors call the option or argument.

    Raises:
        ConfigError: the CUDA device does not exist.
    """
    import torch

    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(
            f"{what} {name}: torch {torch.__version__} finds no CUDA device; use {what} cpu"
        )
    number = re.search("[0-9]+$", name)
    index = int(number.group()) if number else torch.cuda.current_device()
    if index >= torch.cuda.device_count():
        found = ", ".join(f"cuda:{i}" for i in range(torch.cuda.device_count()))
        raise ConfigError(f"{what} {name}: there is no such device; there are: {found}")
    return torch.device("cuda", index)
