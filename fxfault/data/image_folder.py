"""Pictures in folders, one folder for each class: root/train/CLASS/*.png and root/test/CLASS/*.png.

`root/val` stands in for a missing `root/test`. Options (kwargs): image_size (224), a side or a
height and a width. A side resizes the shorter side of a picture and cuts out the middle; a height
and a width resize the whole picture.

Pixels are scaled to [0, 1] and then normalised with ImageNet's means (0.485, 0.456, 0.406) and
standard deviations (0.229, 0.224, 0.225).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fxfault.data.facts import DatasetFacts
from fxfault.data.labelled_images import LabelledImages
from fxfault.data.options import read_options
from fxfault.data.torchvision_import import import_torchvision
from fxfault.errors import DataError
from fxfault.messages import quote_error

_DEFAULTS = {"image_size": 224}
_FOLDERS = {"train": ("train",), "test": ("test", "val")}
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
_LAYOUT = "one folder for each class with its pictures, such as train/cat/1.png and test/cat/2.png"


def build(name: str, split: str, root: Path, kwargs: dict[str, Any]) -> LabelledImages:
    """Open a split."""
    options = read_options(name, kwargs, _DEFAULTS)
    torchvision = import_torchvision()
    folder = _split_folder(name, split, root)
    classes = _classes_in(name, root)
    try:
        inner = torchvision.datasets.ImageFolder(
            str(folder),
            transform=_transform(torchvision, kwargs.get("image_size"), options["image_size"]),
        )
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"data set {name!r}: {folder} cannot be used ({quote_error(error)}): it must hold "
            f"{_LAYOUT}"
        ) from error
    sizes = DatasetFacts(len(classes), 3, options["image_size"])
    return LabelledImages(inner, sizes, f"data set {name!r}")


def facts(name: str, root: Path, kwargs: dict[str, Any]) -> DatasetFacts:
    """One class for each folder, three channels, and the image size from the options."""
    options = read_options(name, kwargs, _DEFAULTS)
    return DatasetFacts(len(_classes_in(name, root)), 3, options["image_size"])


def _split_folder(name: str, split: str, root: Path) -> Path:
    for folder in _FOLDERS[split]:
        if (root / folder).is_dir():
            return root / folder
    raise _absent(name, root, split)


def _absent(name: str, root: Path, split: str) -> DataError:
    wanted = " or ".join(_FOLDERS[split])
    return DataError(
        f"data set {name!r}: there is no folder {wanted} in {root}: it must hold {_LAYOUT} "
        f"(the folder to look in is the data set's root)"
    )


def _classes_in(name: str, root: Path) -> list[str]:
    """Class folders; all splits must share them, as a label is a position in their sorted list."""
    found = {
        folder: {entry.name for entry in (root / folder).iterdir() if entry.is_dir()}
        for folder in ("train", "test", "val")
        if (root / folder).is_dir()
    }
    if not found:
        raise _absent(name, root, "train")
    first, classes = next(iter(found.items()))
    for folder, others in found.items():
        if others != classes:
            differing = sorted(others ^ classes)
            raise DataError(
                f"data set {name!r}: {first} and {folder} in {root} do not have the same class "
                f"folders, only one of them has {', '.join(differing[:5])}: make them alike"
            )
    return sorted(classes)


def _transform(torchvision: Any, asked: Any, size: tuple[int, int]) -> Any:
    transforms = torchvision.transforms
    resize = [transforms.Resize(size)]
    if not isinstance(asked, (list, tuple)):
        resize = [transforms.Resize(size[0]), transforms.CenterCrop(size)]
    return transforms.Compose([*resize, transforms.ToTensor(), transforms.Normalize(_MEAN, _STD)])
