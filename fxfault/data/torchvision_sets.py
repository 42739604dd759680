"""CIFAR-10, CIFAR-100, MNIST, Fashion-MNIST and SVHN, as torchvision loads them.

Options (kwargs): download (true: fetch missing files), image_size (none: as stored) and augment
(false). With augment, training images get a border of zeros, an eighth of the side wide, and are
cropped at random; those of CIFAR are also flipped.

Pixels are scaled to [0, 1] and then normalised channel by channel with the mean and the standard
deviation of the training split, listed in `_SETS`.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import pickle
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fxfault.data.facts import DatasetFacts
from fxfault.data.labelled_images import LabelledImages
from fxfault.data.options import read_options
from fxfault.data.torchvision_import import import_torchvision
from fxfault.errors import DataError
from fxfault.messages import quote_error

_logger = logging.getLogger(__name__)

_DEFAULTS = {"download": True, "image_size": None, "augment": False}
_NOT_FOUND = "Dataset not found"  # the start of torchvision's message

# What torchvision raises for damaged or wrong files, and if the network fails.
_UNREADABLE = (
    AssertionError,
    EOFError,
    IndexError,
    KeyError,
    OSError,
    RuntimeError,
    ValueError,
    http.client.HTTPException,
    pickle.UnpicklingError,
)


@dataclass(frozen=True)
class _TorchvisionSet:
    class_name: str
    facts: DatasetFacts
    mean: tuple[float, ...]
    std: tuple[float, ...]
    is_flippable: bool
    files: str
    source: str


_SETS = {
    "cifar10": _TorchvisionSet(
        "CIFAR10",
        DatasetFacts(10, 3, (32, 32)),
        (0.4914, 0.4822, 0.4465),
        (0.2470, 0.2435, 0.2616),
        True,
        "the folder cifar-10-batches-py with data_batch_1 to data_batch_5, test_batch and "
        "batches.meta",
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    ),
    "cifar100": _TorchvisionSet(
        "CIFAR100",
        DatasetFacts(100, 3, (32, 32)),
        (0.5071, 0.4865, 0.4409),
        (0.2673, 0.2564, 0.2762),
        True,
        "the folder cifar-100-python with train, test and meta",
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    ),
    "mnist": _TorchvisionSet(
        "MNIST",
        DatasetFacts(10, 1, (28, 28)),
        (0.1307,),
        (0.3081,),
        False,
        "the folder MNIST/raw with train-images-idx3-ubyte, train-labels-idx1-ubyte, "
        "t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
    ),
    "fashion_mnist": _TorchvisionSet(
        "FashionMNIST",
        DatasetFacts(10, 1, (28, 28)),
        (0.2860,),
        (0.3530,),
        False,
        "the folder FashionMNIST/raw with train-images-idx3-ubyte, train-labels-idx1-ubyte, "
        "t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte",
        "https://github.com/zalandoresearch/fashion-mnist",
    ),
    "svhn": _TorchvisionSet(
        "SVHN",
        DatasetFacts(10, 3, (32, 32)),
        (0.4377, 0.4438, 0.4728),
        (0.1980, 0.2010, 0.1970),
        False,
        "the files train_32x32.mat and test_32x32.mat",
        "http://ufldl.stanford.edu/housenumbers/",
    ),
}


def build(name: str, split: str, root: Path, kwargs: dict[str, Any]) -> LabelledImages:
    """Open a split; download it first if it is missing and the options allow it."""
    options = read_options(name, kwargs, _DEFAULTS)
    torchvision = import_torchvision()
    spec = _SETS[name]
    opener = getattr(torchvision.datasets, spec.class_name)
    arguments: dict[str, Any] = {
        "root": str(root),
        "transform": _transform(torchvision, spec, split, options),
        **({"split": split} if name == "svhn" else {"train": split == "train"}),
    }
    inner = _open_or_download(name, root, options["download"], opener, arguments)
    return LabelledImages(
        inner, facts(name, root, kwargs), f"data set {name!r}: the {split} split in {root}"
    )


def facts(name: str, root: Path, kwargs: dict[str, Any]) -> DatasetFacts:
    """Published sizes, or the image size from the options."""
    options = read_options(name, kwargs, _DEFAULTS)
    known = _SETS[name].facts
    size = options["image_size"] or known.image_size
    return DatasetFacts(known.num_classes, known.in_channels, size)


def _transform(torchvision: Any, spec: _TorchvisionSet, split: str, options: dict[str, Any]) -> Any:
    transforms = torchvision.transforms
    size = options["image_size"] or spec.facts.image_size
    steps: list[Any] = []
    if options["image_size"]:
        steps.append(transforms.Resize(size))
    if options["augment"] and split == "train":
        steps.append(transforms.RandomCrop(size, padding=max(1, min(size) // 8)))
        if spec.is_flippable:
            steps.append(transforms.RandomHorizontalFlip())
    steps += [transforms.ToTensor(), transforms.Normalize(spec.mean, spec.std)]
    return transforms.Compose(steps)


def _open_or_download(
    name: str, root: Path, may_download: bool, opener: Any, arguments: dict[str, Any]
) -> Any:
    try:
        return opener(**arguments, download=False)
    except ImportError as error:  # SVHN is read with scipy
        raise DataError(
            f'data set {name!r} needs another package ({error}): pip install "fxfault[cli]"'
        ) from error
    except _UNREADABLE as error:
        if not (isinstance(error, RuntimeError) and str(error).startswith(_NOT_FOUND)):
            raise DataError(
                f"data set {name!r}: its files in {root} cannot be read ({quote_error(error)}): "
                f"delete them and fetch them again from {_SETS[name].source}"
            ) from error
        if not may_download:
            raise _absent(name, root, "and kwargs download is false") from error
    return _download(name, root, opener, arguments)


def _download(name: str, root: Path, opener: Any, arguments: dict[str, Any]) -> Any:
    _logger.info("downloading data set %s into %s", name, root)
    was_there = root.exists()
    try:
        # torchvision up to 0.21 prints its progress; stdout belongs to the command.
        with contextlib.redirect_stdout(sys.stderr):
            return opener(**arguments, download=True)
    except _UNREADABLE as error:
        if not was_there:  # torchvision makes the folder before it connects.
            with contextlib.suppress(OSError):
                root.rmdir()
        raise _absent(name, root, f"and the download failed ({quote_error(error)})") from error


def _absent(name: str, root: Path, why: str) -> DataError:
    spec = _SETS[name]
    return DataError(
        f"data set {name!r} is not in {root}, or its files are not the published ones, {why}: "
        f"put {spec.files} into {root} (from {spec.source}), or let fxfault download it where "
        f"there is a network (kwargs download: true)"
    )
