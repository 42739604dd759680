"""Build a data set by its name."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from fxfault.data.facts import DatasetFacts
from fxfault.data.guarded import samples_of
from fxfault.errors import DataError
from fxfault.factories import call_factory
from fxfault.files.access import expanded
from fxfault.messages import OWN_TASK, nearest, one_line

if TYPE_CHECKING:
    from torch.utils.data import Dataset

Split = Literal["train", "test"]
SPLITS = ("train", "test")

# Each module has build(name, split, root, kwargs) and facts(name, root, kwargs).
_BUILT_IN: dict[str, str] = {
    "digits": "fxfault.data.digits",
    "fake": "fxfault.data.fake",
    "image_folder": "fxfault.data.image_folder",
    "cifar10": "fxfault.data.torchvision_sets",
    "cifar100": "fxfault.data.torchvision_sets",
    "fashion_mnist": "fxfault.data.torchvision_sets",
    "mnist": "fxfault.data.torchvision_sets",
    "mnist_5k": "fxfault.data.mnist_5k",
    "svhn": "fxfault.data.torchvision_sets",
}


def dataset_names() -> tuple[str, ...]:
    """Names of the built-in data sets, sorted.

    >>> dataset_names()  # doctest: +NORMALIZE_WHITESPACE
    ('cifar10', 'cifar100', 'digits', 'fake', 'fashion_mnist', 'image_folder', 'mnist', 'mnist_5k',
    'svhn')
    """
    return tuple(sorted(_BUILT_IN))


def build_dataset(
    name: str,
    split: Split,
    *,
    root: str | Path = "./data",
    kwargs: Mapping[str, Any] | None = None,
    any_items: bool = False,
) -> Dataset[Any]:
    """Open one split of a data set, as a map-style data set of (image, label).

    Images are float tensors of shape (C, H, W); labels are integers from 0.

    >>> dataset = build_dataset("digits", "test")
    >>> image, label = dataset[0]
    >>> len(dataset), image.shape, label
    (500, torch.Size([1, 8, 8]), 3)

    Args:
        name: one of `dataset_names()`, or `package.module:factory` for your own data set. The
            module is searched in the current folder first; the factory is called as
            `factory(split=split, **kwargs)`.
        split: "train" or "test".
        root: folder with the data files (`digits`, `mnist_5k` and `fake` need none).
        kwargs: options of the data set; its module lists them.
        any_items: whether the user's own data set may have any items, or be a `DataLoader`; else
            they are pairs of an image and a class.

    Raises:
        DataError: the name, the split or an option is unknown, or the data does not exist, cannot
            be downloaded or cannot be read.
    """
    if split not in SPLITS:
        raise DataError(
            f"data set {name!r}: the split is {split!r}; it must be one of {', '.join(SPLITS)}"
        )
    options = dict(kwargs or {})
    if ":" in name:
        return _build_from_factory(name, split, options, any_items)
    # Absolute: images are opened later, when the user's code may have changed the folder.
    folder = Path(os.path.abspath(expanded(root)))
    return _loader(name).build(name, split, folder, options)


def dataset_facts(
    dataset: str | Dataset[Any],
    *,
    root: str | Path = "./data",
    kwargs: Mapping[str, Any] | None = None,
) -> DatasetFacts:
    """Find the sizes that a network for a data set needs.

    Only `image_folder` of the built-in names needs data on disk, as its folders are its classes.
    For a data set, or the name of a user's factory, the sizes come from its first image and its
    attribute `num_classes` or `classes`.

    >>> dataset_facts("cifar10")
    DatasetFacts(num_classes=10, in_channels=3, image_size=(32, 32))
    >>> dataset_facts("mnist", kwargs={"image_size": 32}).image_size
    (32, 32)

    Args:
        dataset: a name as for `build_dataset`, or a data set.
        root: as for `build_dataset`.
        kwargs: as for `build_dataset`.

    Raises:
        DataError: as for `build_dataset`, or the number of classes is unknown.
    """
    if not isinstance(dataset, str):
        return _observed_facts(dataset)
    if ":" in dataset:
        return _observed_facts(build_dataset(dataset, "test", root=root, kwargs=kwargs))
    return _loader(dataset).facts(dataset, expanded(root), dict(kwargs or {}))


def _loader(name: str) -> ModuleType:
    if name not in _BUILT_IN:
        raise DataError(
            f"data set {name!r} is unknown{nearest(name, dataset_names())}: name one of "
            f"{', '.join(dataset_names())}, or your own as package.module:factory"
        )
    return importlib.import_module(_BUILT_IN[name])


def _build_from_factory(
    name: str, split: Split, options: dict[str, Any], any_items: bool
) -> Dataset[Any]:
    if "split" in options:
        raise DataError(f"data set {name!r}: kwargs must not hold 'split', fxfault passes it")
    dataset = call_factory(name, what="data set", kwargs={"split": split, **options})
    if any_items and _is_loader(dataset):
        return dataset  # type: ignore[no-any-return]
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise DataError(
            f"data set {name!r}: the factory returned {one_line(repr(dataset))} of type "
            f"{type(dataset).__name__}; it must return a map-style data set, which has "
            f"__len__ and __getitem__"
        )
    if samples_of(dataset) == 0:
        raise DataError(f"data set {name!r}: its {split} split is empty")
    if not any_items:
        _check_item(dataset[0], f"data set {name!r}")
    return dataset


def _is_loader(dataset: Any) -> bool:
    from torch.utils.data import DataLoader

    return isinstance(dataset, DataLoader)


def _check_item(item: Any, prefix: str) -> None:
    import torch

    is_pair = isinstance(item, (tuple, list)) and len(item) == 2
    if not is_pair or not isinstance(item[0], torch.Tensor) or not item[0].is_floating_point():
        kinds = [type(part).__name__ for part in item] if is_pair else type(item).__name__
        raise DataError(
            f"{prefix}: its first item is {kinds}; it must be a pair of a float tensor (the "
            f"image) and an integer (the label), unless there is a `metric` ({OWN_TASK})"
        )
    try:
        is_integer = not isinstance(item[1], float) and int(item[1]) == item[1]
    except (TypeError, ValueError, RuntimeError):
        is_integer = False
    if not is_integer:
        raise DataError(
            f"{prefix}: the label of its first item is {one_line(repr(item[1]))}; "
            f"it must be an integer from 0"
        )


def _observed_facts(dataset: Any) -> DatasetFacts:
    from torch.utils.data import Subset

    if isinstance(dataset, Subset):
        return _observed_facts(dataset.dataset)
    known = getattr(dataset, "facts", None)
    if isinstance(known, DatasetFacts):
        return known
    num_classes = getattr(dataset, "num_classes", None)
    if num_classes is None and hasattr(dataset, "classes"):
        num_classes = len(dataset.classes)
    shape = tuple(dataset[0][0].shape)
    if num_classes is None or len(shape) != 3:
        raise DataError(
            f"data set of type {type(dataset).__name__}: a network cannot be sized for it, as "
            f"its images have the shape {shape} and num_classes is {num_classes}; give it images "
            f"of shape (C, H, W) and an attribute num_classes or classes"
        )
    return DatasetFacts(int(num_classes), shape[0], (shape[1], shape[2]))
