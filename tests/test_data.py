"""Data sets: the built-in ones, torchvision's readers on tiny local files, and the user's own."""

from __future__ import annotations

import builtins
import hashlib
import os
import pickle
import random
import struct
import subprocess
import sys
import types
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

from fxfault.data import DatasetFacts, build_dataset, dataset_facts, dataset_names
from fxfault.data import torchvision_import as torchvision_import_module
from fxfault.data.torchvision_import import import_torchvision
from fxfault.errors import DataError, FxFaultError

OFFLINE = {"download": False}
DIGITS_TEST_SHA256 = "31c3a333ad577b1b22bb9d6f02edb85546008965eb085f416769692826c1bf0b"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: Any, **_options: Any) -> None:
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def sized(dataset: Any) -> int:
    return len(dataset)


# Names, splits and options.


def test_names_are_sorted() -> None:
    assert dataset_names() == tuple(sorted(dataset_names()))
    assert {"digits", "cifar10", "cifar100", "mnist", "fashion_mnist", "svhn"} < set(
        dataset_names()
    )


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        DataError, match=r"'cifar-10' is unknown \(did you mean 'cifar10'\?\).*svhn"
    ):
        build_dataset("cifar-10", "test")
    with pytest.raises(DataError, match="'digit' is unknown"):
        dataset_facts("digit")


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(DataError, match="the split is 'val'; it must be one of train, test"):
        build_dataset("digits", "val")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("digits", {"size": 3}, "unknown key 'size'; allowed: none, this data set has no options"),
        ("fake", {"siez": 3}, r"unknown key 'siez' \(did you mean 'size'\?\); allowed: size, "),
        ("fake", {"size": 0}, "size is 0; it must be an integer of at least 1"),
        ("fake", {"size": True}, "size is True"),
        ("fake", {"image_size": [8, 8, 8]}, r"image_size is \[8, 8, 8\]; it must be a side"),
        ("fake", {"image_size": None}, "image_size is None"),
        ("fake", {"image_size": -1}, "image_size is -1"),
        ("cifar10", {"download": "no"}, "download is 'no'; it must be true or false"),
        ("cifar10", {"image_size": "32"}, "image_size is '32'"),
        ("image_folder", {"image_size": 1.5}, "image_size is 1.5"),
    ],
)
def test_a_wrong_option_is_refused(name: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        build_dataset(name, "test", kwargs=kwargs)
    with pytest.raises(DataError, match=message):
        dataset_facts(name, kwargs=kwargs)


# Digits.


def test_digits_are_split_by_class() -> None:
    train, test = build_dataset("digits", "train"), build_dataset("digits", "test")
    assert (sized(train), sized(test)) == (1297, 500)
    labels = torch.tensor([test[index][1] for index in range(500)])
    assert labels.bincount().tolist() == [50] * 10


def test_digits_splits_share_no_image_and_lose_none() -> None:
    from sklearn.datasets import load_digits

    pixels = [
        (dataset[index][0] * 16).to(torch.uint8).numpy().tobytes()
        for dataset in (build_dataset("digits", "train"), build_dataset("digits", "test"))
        for index in range(sized(dataset))
    ]
    expected = [image.astype(np.uint8).tobytes() for image in load_digits().images]
    assert sorted(pixels) == sorted(expected)


def test_digits_images_are_scaled_to_one() -> None:
    dataset = build_dataset("digits", "test")
    image, label = dataset[0]
    assert (image.shape, image.dtype, type(label)) == ((1, 8, 8), torch.float32, int)
    images = torch.stack([dataset[index][0] for index in range(500)])
    assert (float(images.min()), float(images.max())) == (0.0, 1.0)


def test_digits_split_is_the_documented_one() -> None:
    """Recorded: a change of the permutation would change every published accuracy."""
    dataset = build_dataset("digits", "test")
    content = b"".join(dataset[index][0].numpy().tobytes() for index in range(500))
    assert hashlib.sha256(content).hexdigest() == DIGITS_TEST_SHA256


def test_digits_can_be_batched() -> None:
    images, labels = next(iter(DataLoader(build_dataset("digits", "test"), batch_size=4)))
    assert (images.shape, labels.dtype) == ((4, 1, 8, 8), torch.int64)


@pytest.mark.parametrize("name", ["digits", "fake"])
def test_building_a_dataset_touches_no_global_generator(name: str) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    before = torch.get_rng_state(), pickle.dumps(np.random.get_state()), random.getstate()
    build_dataset(name, "train")[3]
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == pickle.dumps(np.random.get_state())
    assert before[2] == random.getstate()


def refuse_import(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Make a package look as if it were not installed."""
    plain = builtins.__import__

    def refusing(name: str, *arguments: Any, **options: Any) -> Any:
        if name.split(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        return plain(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refusing)


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_import(monkeypatch, "sklearn")
    with pytest.raises(DataError, match=r"needs scikit-learn .*: pip install \"fxfault\[cli\]\""):
        build_dataset("digits", "test")


# Fake images.


def test_fake_images_have_the_shape_asked_for() -> None:
    kwargs = {"size": 7, "image_size": [4, 6], "num_classes": 3, "in_channels": 2}
    dataset = build_dataset("fake", "train", kwargs=kwargs)
    assert sized(dataset) == 7
    assert [dataset[index][0].shape for index in range(7)] == [(2, 4, 6)] * 7
    assert [dataset[index][1] for index in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    assert dataset_facts("fake", kwargs=kwargs) == DatasetFacts(3, 2, (4, 6))


def test_fake_images_depend_on_seed_split_and_index_only() -> None:
    first = build_dataset("fake", "test")[5][0]
    assert torch.equal(first, build_dataset("fake", "test", kwargs={"size": 9})[5][0])
    assert not torch.equal(first, build_dataset("fake", "test")[6][0])
    assert not torch.equal(first, build_dataset("fake", "train")[5][0])
    assert not torch.equal(first, build_dataset("fake", "test", kwargs={"seed": 2})[5][0])


def test_fake_images_end_where_they_should() -> None:
    dataset = build_dataset("fake", "test", kwargs={"size": 2})
    assert torch.equal(dataset[-1][0], dataset[1][0])
    with pytest.raises(IndexError, match="image 2 of 2"):
        dataset[2]


# torchvision's data sets, on files written here.


def write_mnist(root: Path, class_name: str, count: int = 3) -> np.ndarray:
    """Write the four idx files; image `i` is filled with the value `i` and labelled `i`."""
    folder = root / class_name / "raw"
    folder.mkdir(parents=True)
    images = np.repeat(np.arange(count, dtype=np.uint8), 28 * 28)
    labels = np.arange(count, dtype=np.uint8)
    for half in ("train", "t10k"):
        header = struct.pack(">IIII", 0x803, count, 28, 28)
        (folder / f"{half}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = struct.pack(">II", 0x801, count)
        (folder / f"{half}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    return images.reshape(count, 28, 28)


@pytest.mark.parametrize(
    ("name", "class_name", "mean", "std"),
    [("mnist", "MNIST", 0.1307, 0.3081), ("fashion_mnist", "FashionMNIST", 0.2860, 0.3530)],
)
def test_mnist_files_are_read_and_normalised(
    tmp_path: Path, name: str, class_name: str, mean: float, std: float
) -> None:
    pixels = write_mnist(tmp_path, class_name)
    dataset = build_dataset(name, "test", root=tmp_path, kwargs=OFFLINE)
    image, label = dataset[2]
    assert (sized(dataset), label, type(label)) == (3, 2, int)
    expected = (torch.from_numpy(pixels[2]).float() / 255 - mean) / std
    torch.testing.assert_close(image, expected.unsqueeze(0))
    assert dataset_facts(dataset) == dataset_facts(name) == DatasetFacts(10, 1, (28, 28))


def test_images_are_resized_when_asked(tmp_path: Path) -> None:
    write_mnist(tmp_path, "MNIST")
    kwargs = {"image_size": 32}
    dataset = build_dataset("mnist", "train", root=str(tmp_path), kwargs=kwargs)
    assert dataset[1][0].shape == (1, 32, 32)
    assert dataset_facts(dataset).image_size == (32, 32)


def test_torchvision_data_can_be_sent_to_a_worker(tmp_path: Path) -> None:
    write_mnist(tmp_path, "MNIST")
    dataset = build_dataset("mnist", "test", root=tmp_path)
    clone = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(clone[1][0], dataset[1][0])


CIFAR_PIXELS = np.random.RandomState(0).randint(0, 256, (4, 3 * 32 * 32), dtype=np.uint8)


def write_pickle(file: Path, content: dict[str, Any]) -> str:
    """Write a pickle and return its MD5, which torchvision checks."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(pickle.dumps(content))
    return hashlib.md5(file.read_bytes()).hexdigest()


@pytest.fixture
def tiny_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    class_type = import_torchvision().datasets.CIFAR10
    folder = tmp_path / class_type.base_folder
    batch = {"data": CIFAR_PIXELS, "labels": [3, 1, 4, 9]}
    train = [["data_batch_1", write_pickle(folder / "data_batch_1", batch)]]
    test = [["test_batch", write_pickle(folder / "test_batch", batch)]]
    names = {"label_names": [f"class {index}" for index in range(10)]}
    meta = class_type.meta | {"md5": write_pickle(folder / "batches.meta", names)}
    monkeypatch.setattr(class_type, "train_list", train)
    monkeypatch.setattr(class_type, "test_list", test)
    monkeypatch.setattr(class_type, "meta", meta)
    return tmp_path


@pytest.fixture
def tiny_cifar100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    class_type = import_torchvision().datasets.CIFAR100
    folder = tmp_path / class_type.base_folder
    batch = {"data": CIFAR_PIXELS, "fine_labels": [3, 1, 4, 99]}
    train = [["train", write_pickle(folder / "train", batch)]]
    test = [["test", write_pickle(folder / "test", batch)]]
    names = {"fine_label_names": [f"class {index}" for index in range(100)]}
    meta = class_type.meta | {"md5": write_pickle(folder / "meta", names)}
    monkeypatch.setattr(class_type, "train_list", train)
    monkeypatch.setattr(class_type, "test_list", test)
    monkeypatch.setattr(class_type, "meta", meta)
    return tmp_path


def cifar_expected(index: int, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    image = torch.from_numpy(CIFAR_PIXELS[index].reshape(3, 32, 32).copy()).float() / 255
    return (image - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def test_cifar10_batches_are_read_and_normalised(tiny_cifar10: Path) -> None:
    dataset = build_dataset("cifar10", "test", root=tiny_cifar10, kwargs=OFFLINE)
    image, label = dataset[3]
    assert (sized(dataset), label) == (4, 9)
    expected = cifar_expected(3, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    torch.testing.assert_close(image, expected)
    assert dataset_facts(dataset) == DatasetFacts(10, 3, (32, 32))


def test_cifar100_batches_are_read_and_normalised(tiny_cifar100: Path) -> None:
    dataset = build_dataset("cifar100", "train", root=tiny_cifar100, kwargs=OFFLINE)
    image, label = dataset[3]
    assert label == 99
    expected = cifar_expected(3, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
    torch.testing.assert_close(image, expected)
    assert dataset_facts(dataset) == dataset_facts("cifar100") == DatasetFacts(100, 3, (32, 32))


def test_augmentation_moves_training_images_only(tiny_cifar10: Path) -> None:
    kwargs = {"augment": True, "download": False}
    torch.manual_seed(0)
    train = build_dataset("cifar10", "train", root=tiny_cifar10, kwargs=kwargs)
    test = build_dataset("cifar10", "test", root=tiny_cifar10, kwargs=kwargs)
    assert train[0][0].shape == (3, 32, 32)
    assert any(not torch.equal(train[0][0], train[0][0]) for _ in range(3))
    assert torch.equal(test[0][0], test[0][0])


def test_svhn_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.io import savemat  # type: ignore[import-untyped]

    class_type = import_torchvision().datasets.SVHN
    pixels = np.full((32, 32, 3, 2), 255, dtype=np.uint8)
    file = tmp_path / "test_32x32.mat"
    savemat(file, {"X": pixels, "y": np.array([[10], [7]], dtype=np.uint8)})
    md5 = hashlib.md5(file.read_bytes()).hexdigest()
    lists = class_type.split_list | {"test": ["http://nowhere.invalid", file.name, md5]}
    monkeypatch.setattr(class_type, "split_list", lists)
    dataset = build_dataset("svhn", "test", root=tmp_path, kwargs=OFFLINE)
    assert [dataset[index][1] for index in range(2)] == [0, 7]  # the file says 10 for a zero
    torch.testing.assert_close(dataset[0][0][0, 0, 0], torch.tensor((1 - 0.4377) / 0.1980))
    assert dataset_facts(dataset).num_classes == 10
    refuse_import(monkeypatch, "scipy")
    with pytest.raises(DataError, match=r"'svhn' needs another package .*pip install"):
        build_dataset("svhn", "test", root=tmp_path, kwargs=OFFLINE)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "fashion_mnist", "svhn"])
@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [(OFFLINE, "download is false"), ({}, "the download failed .*no network in tests")],
)
def test_absent_data_says_where_it_should_be_and_where_it_comes_from(
    tmp_path: Path, name: str, kwargs: dict[str, Any], reason: str
) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        build_dataset(name, "train", root=tmp_path, kwargs=kwargs)
    message = str(caught.value)
    assert str(tmp_path) in message
    assert "(from http" in message
    assert "train" in message or "data_batch_1" in message
    assert "\n" not in message


def test_a_download_prints_nothing_on_stdout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def chatty(dataset: Any) -> None:
        print("Downloading")
        write_mnist(Path(dataset.root), "MNIST")

    monkeypatch.setattr(import_torchvision().datasets.MNIST, "download", chatty)
    assert sized(build_dataset("mnist", "test", root=tmp_path)) == 3
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "Downloading\n")


def test_damaged_cifar_batch_is_refused(tiny_cifar10: Path) -> None:
    file = tiny_cifar10 / "cifar-10-batches-py" / "test_batch"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(DataError, match="its files are not the published ones"):
        build_dataset("cifar10", "test", root=tiny_cifar10, kwargs=OFFLINE)


@pytest.mark.parametrize("kept", [0, 10, 500])
def test_truncated_mnist_file_is_refused(tmp_path: Path, kept: int) -> None:
    write_mnist(tmp_path, "MNIST")
    file = tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"cannot be read .*delete them and fetch them again"):
        build_dataset("mnist", "test", root=tmp_path)


def test_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.write_text("")
    with pytest.raises(DataError, match="the download failed"):
        build_dataset("mnist", "test", root=root)


# Folders of pictures.


def write_picture(file: Path, colour: tuple[int, int, int], size: tuple[int, int]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(file)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for split in ("train", "test"):
        write_picture(tmp_path / split / "cat" / "1.png", (255, 0, 0), (40, 20))
        write_picture(tmp_path / split / "dog" / "1.png", (0, 255, 0), (20, 40))
        write_picture(tmp_path / split / "dog" / "2.jpg", (0, 0, 255), (30, 30))
    return tmp_path


def test_folder_of_pictures_is_read_and_normalised(pictures: Path) -> None:
    dataset = build_dataset("image_folder", "test", root=pictures, kwargs={"image_size": 16})
    assert [dataset[index][1] for index in range(sized(dataset))] == [0, 1, 1]
    assert dataset[0][0].shape == (3, 16, 16)
    expected = torch.tensor([(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225])
    torch.testing.assert_close(dataset[0][0][:, 8, 8], expected)


@pytest.mark.parametrize(
    ("kwargs", "size"),
    [({}, (224, 224)), ({"image_size": 8}, (8, 8)), ({"image_size": [8, 12]}, (8, 12))],
)
def test_folder_of_pictures_has_the_size_asked_for(
    pictures: Path, kwargs: dict[str, Any], size: tuple[int, int]
) -> None:
    dataset = build_dataset("image_folder", "train", root=pictures, kwargs=kwargs)
    assert {dataset[index][0].shape for index in range(3)} == {(3, *size)}
    facts = DatasetFacts(2, 3, size)
    assert dataset_facts("image_folder", root=pictures, kwargs=kwargs) == facts
    assert dataset_facts(dataset) == facts


def test_val_stands_in_for_test(pictures: Path) -> None:
    (pictures / "test").rename(pictures / "val")
    assert sized(build_dataset("image_folder", "test", root=pictures)) == 3


def test_pictures_without_the_split_are_refused(pictures: Path) -> None:
    (pictures / "train").rename(pictures / "training")
    with pytest.raises(DataError, match=r"no folder train in .*train/cat/1.png"):
        build_dataset("image_folder", "train", root=pictures)
    assert dataset_facts("image_folder", root=pictures).num_classes == 2


def test_a_root_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder test or val in"):
        build_dataset("image_folder", "test", root=tmp_path)
    with pytest.raises(DataError, match="no folder train in"):
        dataset_facts("image_folder", root=tmp_path)


def test_splits_with_different_classes_are_refused(pictures: Path) -> None:
    write_picture(pictures / "train" / "ant" / "1.png", (0, 0, 0), (8, 8))
    with pytest.raises(DataError, match=r"train and test in .* only one of them has ant"):
        build_dataset("image_folder", "test", root=pictures)


def test_a_class_without_pictures_is_refused(pictures: Path) -> None:
    (pictures / "test" / "cat" / "1.png").unlink()
    with pytest.raises(DataError, match=r"cannot be used .*cat"):
        build_dataset("image_folder", "test", root=pictures)


def test_a_split_without_classes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    with pytest.raises(DataError, match=r"cannot be used .*it must hold one folder for each class"):
        build_dataset("image_folder", "test", root=tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a picture", None])
def test_a_broken_picture_is_named(pictures: Path, content: bytes | None) -> None:
    file = pictures / "test" / "dog" / "1.png"
    file.write_bytes(file.read_bytes()[:-30] if content is None else content)
    dataset = build_dataset("image_folder", "test", root=pictures)
    with pytest.raises(DataError, match=r"dog.1\.png cannot be read .*replace or remove it"):
        dataset[1]


# Data sets of the user's own.

OWN_MODULE = """
import torch
from torch.utils.data import Dataset, IterableDataset, TensorDataset

class Own(Dataset):
    classes = ["a", "b", "c"]
    def __init__(self, split, size=4):
        self.split, self.size = split, size
    def __len__(self):
        return self.size
    def __getitem__(self, index):
        return torch.full((2, 5, 6), float(index)), index % 3

class Stream(IterableDataset):
    def __init__(self, split):
        pass
    def __iter__(self):
        yield torch.zeros(1), 0

def tensors(split):
    return TensorDataset(torch.zeros(3, 1, 2, 2), torch.tensor([0, 1, 0]))

def items(split, item):
    return [item]

def bytes_image(split):
    return [(torch.zeros(1, 2, 2, dtype=torch.uint8), 0)]

def float_label(split):
    return [(torch.zeros(1, 2, 2), 0.5)]

def vector_label(split):
    return [(torch.zeros(1, 2, 2), torch.zeros(3))]

def vectors(split):
    return [(torch.zeros(4), 1)]

def fails(split):
    raise FileNotFoundError("no such\\nfile")
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_data.py").write_text(OWN_MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_data", raising=False)
    return "own_data"


def test_own_data_is_built_for_the_split(own_module: str) -> None:
    dataset: Any = build_dataset(f"{own_module}:Own", "train", kwargs={"size": 5})
    assert (dataset.split, len(dataset)) == ("train", 5)
    facts = DatasetFacts(3, 2, (5, 6))
    assert dataset_facts(f"{own_module}:Own") == dataset_facts(dataset) == facts
    assert dataset_facts(Subset(dataset, [1, 2])) == facts


def test_own_labels_may_be_tensors(own_module: str) -> None:
    dataset = build_dataset(f"{own_module}:tensors", "test")
    assert isinstance(dataset, TensorDataset)
    with pytest.raises(DataError, match="num_classes is None; give it"):
        dataset_facts(dataset)


@pytest.mark.parametrize(
    ("factory", "kwargs", "message"),
    [
        ("Stream", {}, "type Stream; it must return a map-style data set"),
        ("items", {"item": 3}, "its first item is int; it must be a pair"),
        ("items", {"item": [1, 2, 3]}, "its first item is list; it must be a pair"),
        ("items", {"item": ["cat.png", 0]}, r"its first item is \['str', 'int'\]"),
        ("bytes_image", {}, "it must be a pair of a float tensor"),
        ("float_label", {}, "the label of its first item is 0.5; it must be an integer"),
        ("vector_label", {}, r"the label of its first item is tensor\(\[0., 0., 0.\]\)"),
        ("Own", {"size": 0}, "its test split is empty"),
        ("Own", {"split": "train"}, "kwargs must not hold 'split'"),
        ("Own", {"length": 3}, r"Own\(split, length\) raised TypeError"),
        ("fails", {}, "raised FileNotFoundError: no such file$"),
        ("Owm", {}, r"has no 'Owm' \(did you mean 'Own'\?\)"),
    ],
)
def test_own_data_that_cannot_be_used_is_refused(
    own_module: str, factory: str, kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(FxFaultError, match=message) as caught:
        build_dataset(f"{own_module}:{factory}", "test", kwargs=kwargs)
    assert "\n" not in str(caught.value)


def test_own_data_without_pictures_cannot_size_a_network(own_module: str) -> None:
    with pytest.raises(DataError, match=r"its images have the shape \(4,\)"):
        dataset_facts(f"{own_module}:vectors")


def test_a_stream_is_a_data_set_that_has_no_length() -> None:
    """What the refusal of a stream rests on."""
    assert not hasattr(IterableDataset, "__len__")


# Importing torchvision.


def imports(
    monkeypatch: pytest.MonkeyPatch, *outcomes: types.ModuleType | Exception
) -> tuple[list[str], list[object]]:
    """Let `import_torchvision` see these outcomes; returns what it imported and declared."""
    pending, imported, declared = list(outcomes), [], []

    def import_module(name: str) -> types.ModuleType:
        imported.append(name)
        outcome = pending.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    stand_in = types.SimpleNamespace(import_module=import_module)
    monkeypatch.setattr(torchvision_import_module, "importlib", stand_in)
    monkeypatch.setattr(
        torchvision_import_module, "_declare_schemas", lambda: declared.append(object())
    )
    return imported, declared


MISMATCH = RuntimeError("operator torchvision::nms does not exist")


def test_torchvision_that_imports_cleanly_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("torchvision")
    imported, declared = imports(monkeypatch, module)
    assert import_torchvision() is module
    assert (imported, declared) == (["torchvision"], [])


def test_torchvision_built_for_another_torch_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = types.ModuleType("torchvision")
    imported, declared = imports(monkeypatch, MISMATCH, module)
    assert import_torchvision() is module
    assert (len(imported), len(declared)) == (2, 1)


@pytest.mark.parametrize(
    ("outcomes", "message"),
    [
        ([ModuleNotFoundError("No module named 'torchvision'")], "No module named 'torchvision'"),
        ([RuntimeError("compiled with another\nCUDA")], "RuntimeError: compiled with another CUDA"),
        ([MISMATCH, OSError("libc10.so")], "OSError: libc10.so"),
    ],
)
def test_torchvision_that_cannot_be_imported_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, outcomes: list[Exception], message: str
) -> None:
    imports(monkeypatch, *outcomes)
    with pytest.raises(DataError, match=rf"{message}.*pip install \"fxfault\[cli\]\""):
        import_torchvision()


def test_torchvision_can_be_used_after_the_import() -> None:
    """In a fresh process, and with the import that this machine needs, whichever that is."""
    code = (
        "from fxfault.data.torchvision_import import import_torchvision as load\n"
        "torchvision = load()\n"
        "assert load() is torchvision\n"
        "import torch\n"
        "from torchvision.transforms import v2\n"
        "torchvision.datasets.ImageFolder, torchvision.models.resnet18\n"
        "assert v2.Resize(4)(torch.zeros(1, 8, 8)).shape == (1, 4, 4)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "error::UserWarning", "-c", code]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_declared_schemas_outlive_the_import() -> None:
    if not torchvision_import_module._kept_libraries:
        import_torchvision()
    if not torchvision_import_module._kept_libraries:
        pytest.skip("torchvision imports cleanly here")
    assert "Tensor dets" in str(torch.ops.torchvision.nms.default._schema)
