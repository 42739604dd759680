"""Loading weights: all of them or none."""

from __future__ import annotations

import copy
import hashlib
import io
import os
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import brevitas.nn as qnn
import numpy as np
import pytest
import torch
from brevitas.quant import Int8WeightPerTensorFloat
from torch import nn
from torch.utils.data import DataLoader

from fxfault.data import build_dataset
from fxfault.errors import DataError
from fxfault.models import build_model
from fxfault.models.checkpoints import CheckpointInfo, bundled_checkpoints, load_checkpoint


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def digits_net(seed: int = 0, **changes: Any) -> nn.Module:
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "num_classes": 10,
        "in_channels": 1,
        "image_size": (8, 8),
        "weight_bit_width": 4,
        "act_bit_width": 4,
    }
    return build_model("quant_digits", **(settings | changes))


def calibrated(seed: int = 1) -> nn.Module:
    """A network that has been through one training-mode forward, in eval mode."""
    model = digits_net(seed)
    model(torch.rand(4, 1, 8, 8))
    return model.eval()


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer, those that state_dict() leaves out included."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def assert_unchanged(model: nn.Module, before: dict[str, torch.Tensor]) -> None:
    after = snapshot(model)
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def assert_same_weights(model: nn.Module, other: nn.Module) -> None:
    weights, expected = model.state_dict(), other.state_dict()
    assert list(weights) == list(expected)
    assert all(torch.equal(weights[key], expected[key]) for key in expected)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "weights.pt"


def assert_refused(file: Path, message: str, model: nn.Module | None = None) -> None:
    """Loading fails on one line that matches, and changes nothing."""
    model = digits_net() if model is None else model
    before, modules = snapshot(model), list(model.modules())
    with pytest.raises(DataError, match=message) as caught:
        load_checkpoint(file, model)
    assert "\n" not in str(caught.value)
    assert_unchanged(model, before)
    assert list(model.modules()) == modules


# What loads.


def test_a_trained_checkpoint_loads_into_a_fresh_network(file: Path) -> None:
    source, target = calibrated(), digits_net().eval()
    torch.save(source.state_dict(), file)
    assert len(target.state_dict()) < len(source.state_dict())  # the trap: scales are left out
    info = load_checkpoint(file, target)
    images = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(target(images), source(images))
    assert info == CheckpointInfo(
        str(file), hashlib.sha256(file.read_bytes()).hexdigest(), tuple(source.state_dict())
    )


def test_a_checkpoint_loads_twice_and_into_a_calibrated_network(file: Path) -> None:
    source, target = calibrated(1), calibrated(2)
    torch.save(source.state_dict(), file)
    for _ in range(2):
        load_checkpoint(str(file), target)
    assert_same_weights(target, source)


@pytest.mark.parametrize("key", ["model_state_dict", "state_dict", "model"])
def test_a_state_dict_is_found_under_the_usual_keys(file: Path, key: str) -> None:
    source, target = calibrated(), digits_net()
    torch.save({"epoch": 3, key: source.state_dict(), "optimizer": {"lr": 0.1}}, file)
    load_checkpoint(file, target)
    assert_same_weights(target, source)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
def test_a_wrapper_s_prefix_is_taken_off(file: Path, prefix: str) -> None:
    source, target = calibrated(), digits_net()
    wrapped = OrderedDict((prefix + key, value) for key, value in source.state_dict().items())
    torch.save(wrapped, file)
    info = load_checkpoint(file, target)
    assert info.keys == tuple(source.state_dict())


def test_a_prefix_that_is_the_network_s_own_stays(file: Path) -> None:
    source, target = nn.DataParallel(nn.Linear(2, 2)), nn.DataParallel(nn.Linear(2, 2))
    torch.save(source.state_dict(), file)
    assert load_checkpoint(file, target).keys == ("module.weight", "module.bias")


def test_a_prefix_comes_off_although_a_part_of_the_network_has_that_name(file: Path) -> None:
    parts = {"module": nn.Linear(2, 2), "head": nn.Linear(2, 2)}
    source, target = nn.DataParallel(nn.ModuleDict(parts)), copy.deepcopy(nn.ModuleDict(parts))
    torch.save(source.state_dict(), file)
    assert load_checkpoint(file, target).keys == tuple(target.state_dict())


def test_the_old_file_format_loads(file: Path) -> None:
    source, target = calibrated(), digits_net()
    torch.save(source.state_dict(), file, _use_new_zipfile_serialization=False)
    load_checkpoint(file, target)
    assert_same_weights(target, source)


def test_training_mode_is_kept(file: Path) -> None:
    torch.save(calibrated().state_dict(), file)
    for model in (digits_net().train(), digits_net().eval()):
        is_training = model.training
        load_checkpoint(file, model)
        scales = [name for name, _ in model.named_modules() if name.endswith("scaling_impl")]
        kept = [model.get_submodule(name).training for name in ["", "features.1", *scales]]
        assert set(kept) == {is_training}


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter:UserWarning")
def test_a_network_stays_on_its_device(file: Path) -> None:
    """Brevitas builds quantisers anew on the CPU when they are loaded."""
    torch.save(calibrated().state_dict(), file)
    model = digits_net().to("meta")
    load_checkpoint(file, model)
    assert {str(parameter.device) for parameter in model.parameters()} == {"meta"}


def test_a_home_folder_is_expanded(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(nn.Linear(1, 1).state_dict(), file)
    monkeypatch.setenv("HOME", str(file.parent))
    assert load_checkpoint("~/weights.pt", nn.Linear(1, 1)).path == "~/weights.pt"


# The weights that come with fxfault.


def test_bundled_digits_reach_the_accuracy_that_is_claimed() -> None:
    model = digits_net().eval()
    info = load_checkpoint("bundled:digits", model)
    images, labels = next(iter(DataLoader(build_dataset("digits", "test"), batch_size=500)))
    with torch.no_grad():
        accuracy = (model(images).argmax(1) == labels).float().mean().item()
    assert accuracy >= 0.97
    assert (info.path, len(info.sha256)) == ("bundled:digits", 64)


def test_an_unknown_bundled_name_is_refused_with_the_nearest(tmp_path: Path) -> None:
    names = ("digit_segmenter", "digits", "digits_fat", "mnist_lenet", "mnist_tfc")
    assert bundled_checkpoints() == tuple(f"bundled:{name}" for name in names)
    for name in ("bundled:digit", "bundled:", "bundled:../digits"):
        with pytest.raises(DataError, match=r"no such weights come with fxfault.*bundled:digits"):
            load_checkpoint(name, digits_net())


# Files that are no checkpoint.


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path / "none.pt", "there is no such file; check the path, or name one of")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path, "is a folder: name the file in it")


def test_a_path_through_a_file_is_refused(file: Path) -> None:
    file.write_text("")
    assert_refused(file / "weights.pt", "cannot be read: NotADirectoryError")


def zip_of_text() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("readme.txt", "hello")
    return content.getvalue()


@pytest.mark.parametrize(
    "content", [b"", b"hello world\n", bytes(1000), b"\x89PNG\r\n\x1a\n" + bytes(99), zip_of_text()]
)
def test_what_is_no_checkpoint_is_refused(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    assert_refused(file, f"is not a PyTorch checkpoint, or is cut short .{len(content)} bytes.")


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("share", [0.001, 0.3, 0.9, 0.999])
def test_a_truncated_checkpoint_is_refused(file: Path, share: float, is_zip: bool) -> None:
    torch.save(calibrated().state_dict(), file, _use_new_zipfile_serialization=is_zip)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    assert_refused(file, "is not a PyTorch checkpoint, or is cut short")


class Trap:
    """Unpickled, it would create a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return (open, (str(self.file), "w"))


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_code_in_a_file_is_refused_and_not_run(file: Path, kind: str) -> None:
    trace = file.with_name("trace")
    content = {"state_dict": digits_net().state_dict(), "extra": Trap(trace)}
    if kind == "pickle":
        file.write_bytes(pickle.dumps({"extra": Trap(trace)}))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=kind == "zip")
    assert_refused(file, r"is refused: it holds Python objects.*would run code from the file")
    assert not trace.exists()


def test_the_object_that_is_refused_is_named(file: Path) -> None:
    torch.save({"model": nn.Linear(2, 2)}, file)
    assert_refused(file, r"Python objects \(torch.nn.modules.linear.Linear, near 'model'\) beside")


def test_a_numpy_number_beside_the_weights_is_refused(file: Path) -> None:
    torch.save({"state_dict": digits_net().state_dict(), "best": np.float64(0.9)}, file)
    assert_refused(file, r"Python objects \(numpy.*, near 'best'\) beside tensors")


@pytest.mark.filterwarnings("ignore:`torch.jit.(script|save)` is deprecated")
def test_a_torchscript_archive_is_refused(file: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), file)
    assert_refused(file, "is refused: it holds Python objects beside tensors")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), "holds a Tensor, no weights"),
        ([1, 2], "holds a list, no weights"),
        ({}, "holds a mapping with 0 keys"),
        ({"epoch": 3, "accuracy": 0.9}, r"holds a mapping with 2 keys \(epoch, accuracy\)"),
        ({"state_dict": {"epoch": 3}}, r"holds a mapping with 1 key \(epoch\)"),
        ({1: torch.zeros(3)}, r"holds a mapping with 1 key \(1\)"),
    ],
)
def test_a_file_without_weights_is_refused(file: Path, content: Any, message: str) -> None:
    torch.save(content, file)
    assert_refused(file, message)


# Weights that do not fit.


def test_another_architecture_is_refused_with_counts(file: Path) -> None:
    cnv = build_model(
        "quant_cnv",
        num_classes=10,
        in_channels=3,
        image_size=(32, 32),
        weight_bit_width=2,
        act_bit_width=2,
    )
    cnv(torch.rand(2, 3, 32, 32))
    torch.save(cnv.state_dict(), file)
    assert_refused(
        file,
        r"does not fit the network: \d+ missing keys? \(.*\); \d+ unexpected keys \(.*, \.\.\.\); "
        r"\d+ wrong shapes \(.* instead of .*\)\. Build the network with the name",
    )


def test_other_classes_are_refused_with_both_shapes(file: Path) -> None:
    other = digits_net(num_classes=7)
    other(torch.rand(2, 1, 8, 8))
    torch.save(other.state_dict(), file)
    assert_refused(
        file,
        r"network: 2 wrong shapes \(classifier.3.weight \(7, 64\) instead of \(10, 64\), "
        r"classifier.3.bias \(7,\) instead of \(10,\)\)\. Build",
    )


def test_other_activations_are_refused(file: Path) -> None:
    """Binary activations have no learned scale."""
    other = digits_net(kwargs={"input_bit_width": 1})
    torch.save(other.state_dict(), file)
    assert_refused(file, r"network: 1 missing key \(input_quant\.act_quant\)\. Only")


@pytest.mark.parametrize("target", [digits_net, calibrated])
def test_a_checkpoint_from_before_calibration_is_refused(file: Path, target: Any) -> None:
    torch.save(digits_net(3).state_dict(), file)
    assert_refused(
        file,
        r"1 missing key \(input_quant.*\)\. Only parameters of quantisers are missing: it was "
        r"saved before a forward in training mode",
        target(),
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(file: Path, value: float) -> None:
    state = calibrated().state_dict()
    state["features.0.weight"][0, 0, 0, 0] = value
    state["classifier.3.bias"][2] = value
    torch.save(state, file)
    assert_refused(
        file, r"NaN or infinite values in 2 tensors \(features.0.weight, classifier.3.bias\)"
    )


class _Stubborn(nn.Linear):
    def _load_from_state_dict(self, *_arguments: Any) -> None:
        raise KeyError("old\nformat")


def test_a_network_that_fails_to_load_says_so(file: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), file)
    assert_refused(file, "cannot be loaded: KeyError: .old.nformat", _Stubborn(2, 2))


class _SharedQuantiser(nn.Module):
    """One weight quantiser for two layers: Brevitas then tracks the weights of both."""

    def __init__(self) -> None:
        super().__init__()
        self.first = qnn.QuantLinear(3, 3, bias=False, weight_quant=Int8WeightPerTensorFloat)
        self.second = qnn.QuantLinear(3, 3, bias=False, weight_quant=self.first.weight_quant)
        self.last = nn.Linear(3, 2)


def test_the_trial_on_a_copy_never_reaches_the_original(file: Path) -> None:
    """Not even where quantisers, which loading builds anew, track the weights of two layers."""
    model = _SharedQuantiser()
    state = copy.deepcopy(model.state_dict())
    tracked = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    for name in tracked:
        state[name] = torch.ones_like(model.get_parameter(name))
    state["another.weight"] = torch.ones(1)
    torch.save(state, file)
    assert_refused(file, r"1 unexpected key \(another.weight\)", model)


def test_nothing_of_a_failed_load_is_left(file: Path) -> None:
    """The keys before the wrong one must not be loaded either."""
    state = calibrated(5).state_dict()
    state["classifier.3.bias"] = torch.zeros(3)
    torch.save(state, file)
    for model in (digits_net(), calibrated(2)):
        images = torch.rand(2, 1, 8, 8)
        model.eval()
        with torch.no_grad():
            before = model(images)
            assert_refused(file, "wrong shape", model)
            assert torch.equal(model(images), before)


# The script that makes the bundled weights out of a training's checkpoint.


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_weights_are_bundled_out_of_a_checkpoint(file: Path) -> None:
    root = Path(__file__).parents[1]
    network = calibrated(1)
    wrapped = {f"network.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": wrapped, "epoch": 3}, file)
    out = file.parent / "bundled.pt"
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.bundle_checkpoint", "digits", str(file), str(out)],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    state = torch.load(out, weights_only=True)
    assert state.keys() == network.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())
    load_checkpoint(out, digits_net())


STRANGE: dict[str, Any] = {
    "sparse": lambda w: w.to_sparse(),
    "sparse_csr": lambda w: w.flatten(1).to_sparse_csr(),
    "meta": lambda w: w.to("meta"),
    "nested": lambda w: torch.nested.nested_tensor([w[0], w[1]]),
    "quantised": lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8),
    "bits8": lambda w: torch.zeros(w.shape, dtype=torch.uint8).view(torch.bits8),
    "claims shape": lambda w: torch.zeros(1).expand(2**40),
    "bytes, of which": lambda w: torch.zeros(1).as_strided((2**31, 2**30), (0, 0)),
    "complex64": lambda w: w.to(torch.complex64),
    "bool": lambda w: w > 0,
    "int32": lambda w: w.to(torch.int32),
    "beyond what": lambda w: torch.full_like(w, 1e300, dtype=torch.float64),
}


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_can_be_no_weights_are_refused(file: Path, kind: str) -> None:
    state = calibrated().state_dict()
    key = "features.0.weight"
    torch.save({**state, key: STRANGE[kind](state[key])}, file)
    model = digits_net()
    before = snapshot(model)
    with pytest.raises(DataError, match=kind) as caught:
        load_checkpoint(file, model)
    assert key in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in snapshot(model).items())


def test_a_view_of_the_right_shape_and_wider_floats_load(file: Path) -> None:
    state = calibrated().state_dict()
    key = "features.0.weight"
    torch.save({**state, key: torch.tensor(0.5).double().expand(state[key].shape)}, file)
    model = digits_net()
    load_checkpoint(file, model)
    assert (model.state_dict()[key] == 0.5).all()


# -- what is not read -----------------------------------------------------------------------


def test_what_is_no_regular_file_or_too_large_is_no_checkpoint(tmp_path: Path) -> None:
    pipe, large = tmp_path / "pipe", tmp_path / "large.pt"
    os.mkfifo(pipe)
    with open(large, "wb") as file:
        file.truncate(100 * 2**30)
    for path, problem in (
        (pipe, "is a pipe, expected a regular file; give it"),
        ("/dev/zero", "is a device, expected a regular file; give it"),
        (large, r"has 100\.0 GiB, allowed: up to 32\.0 MiB; give it"),
    ):
        with pytest.raises(DataError, match=rf"checkpoint '{path}' {problem}"):
            load_checkpoint(path, nn.Linear(1, 1))


def test_an_archive_that_unpacks_to_more_than_the_network_needs_is_refused(tmp_path: Path) -> None:
    path, packed = tmp_path / "a.pt", tmp_path / "packed.pt"
    torch.save({"weight": torch.zeros(2**24), "bias": torch.zeros(1)}, path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert packed.stat().st_size < 2**20
    with pytest.raises(DataError, match=r"packed\.pt' is refused: its .* unpack to 64\.0 MiB, all"):
        load_checkpoint(packed, nn.Linear(1, 1))
