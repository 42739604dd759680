"""Check what a caller gives: a network, batches, a metric, a device, and rates of faults."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from fxfault.config.fault_injection import FaultInjectionConfig
from fxfault.config.given import read_config
from fxfault.data.batches import Taker
from fxfault.errors import ConfigError, DataError
from fxfault.experiment.parts import Batches, load_metric, pick_device
from fxfault.experiment.sections import ExperimentConfig
from fxfault.messages import got
from fxfault.metrics.metric import Metric, make_metric
from fxfault.passes.freeze import thaw
from fxfault.sites.fault_sites import sites_or_none

_RANDOM = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
_BATCHES = "allowed: batches that can be read again and again, such as a DataLoader or a list"


def plain_model(model: Any) -> tuple[nn.Module, FaultInjectionConfig | None]:
    """The network without sites, and the configuration of its sites if it has any.

    Raises:
        ConfigError: it is no network.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model: got {type(model).__name__}, allowed: a torch.nn.Module")
    model = thaw(model)
    sites = sites_or_none(model)
    return (model, None) if sites is None else (sites.original, sites.config)


def config_of(given: Any, of_sites: FaultInjectionConfig | None) -> FaultInjectionConfig:
    """Read the faults; without any, they are those that the network was transformed with.

    Raises:
        ConfigError: there are none, or a value is not allowed.
    """
    if given is not None:
        return read_config(given, "config", enabled=True, apply_during="eval")
    if of_sites is None:
        raise ConfigError(
            "config: missing; say which faults strike, for instance "
            '{"injection_type": "random", "probability": 1.0}; only a model of '
            "fxfault.transform has faults of its own"
        )
    return of_sites


def on_device(model: nn.Module, name: Any) -> tuple[nn.Module, torch.device]:
    """The network on a device: a copy, if it is on another one.

    Args:
        model: the network.
        name: `auto`, `cpu`, `cuda`, `cuda:N` or a torch.device; None: where the network is.

    Raises:
        ConfigError: there is no such device.
    """
    tensors = [*model.parameters(), *model.buffers()]
    here = tensors[0].device if tensors else torch.device("cpu")
    if name is None:
        return model, here
    if not isinstance(name, (str, torch.device)):
        raise ConfigError(f"device: got {got(name)}, allowed: 'auto', 'cpu', 'cuda' or 'cuda:1'")
    try:
        device = torch.device("cpu" if name == "auto" else name)
    except RuntimeError as error:
        allowed = "'auto', 'cpu', 'cuda' or 'cuda:1'"
        raise ConfigError(f"device: got {got(name)}, allowed: {allowed}") from error
    if name == "auto" or device.type == "cuda":
        device = pick_device(str(name), "device")
    if all(tensor.device == device for tensor in tensors):
        return model, device
    return copy.deepcopy(model).to(device), device


def batches_of(loader: Any, model: nn.Module, taker: Taker | None) -> Batches:
    """The batches of a loader.

    Raises:
        ConfigError: it gives single samples, can be read only once, or shuffles.
        DataError: it fails, or a batch cannot be taken apart.
    """
    if isinstance(loader, Dataset):
        kind = type(loader).__name__
        raise ConfigError(
            f"loader: got the data set {kind}, which gives single samples; {_BATCHES}: wrap it in "
            "torch.utils.data.DataLoader(dataset, batch_size=64)"
        )
    if isinstance(loader, tuple) and any(isinstance(part, Tensor) for part in loader):
        raise ConfigError(
            f"loader: got a tuple of tensors, which looks like a single batch; {_BATCHES}: give "
            "[(inputs, targets)]"
        )
    if isinstance(loader, (Tensor, str, Mapping)) or not isinstance(loader, Iterable):
        raise ConfigError(f"loader: got {type(loader).__name__}, {_BATCHES}")
    if not isinstance(loader, DataLoader):
        if iter(loader) is loader:
            raise ConfigError(
                f"loader: got {type(loader).__name__}, which can be read only once; {_BATCHES}: "
                "give list(loader)"
            )
        return _counted(loader, model, taker)
    sampler = getattr(loader.batch_sampler, "sampler", None) or loader.sampler
    if isinstance(sampler, _RANDOM):
        raise ConfigError(
            "loader: it shuffles, and the faults of a sample depend on its place in the data; "
            "give a DataLoader with shuffle=False"
        )
    counted = isinstance(loader.dataset, IterableDataset) or loader.drop_last
    if counted and loader.batch_sampler is not None:
        return _counted(loader, model, taker)
    return Batches(loader, 1, taker, model.forward)


def _counted(loader: Any, model: nn.Module, taker: Taker | None) -> Batches:
    """The batches of something that does not tell its number of samples."""
    found = Batches(loader, None, taker, model.forward)
    if not found.samples:
        raise DataError(f"loader: {type(loader).__name__} gives no sample")
    return found


def name_of_data(loader: Any) -> str:
    """The name of the data for reports: the class of the data set."""
    return type(getattr(loader, "dataset", loader)).__name__


def metric_of(given: Any) -> Metric | None:
    """Make a metric; None for the accuracy of a classifier.

    Args:
        given: None; a name as in `metric: NAME` of a file; the mapping of such a section; a
            `Metric`; a function of outputs and targets; or an object with `update` and `compute`.

    Raises:
        ConfigError: there is no such metric, or a value is not allowed.
        DataError: the user's function or class cannot be imported or made.
    """
    if given is None or isinstance(given, Metric):
        return given
    if isinstance(given, str):
        return make_metric(given)
    if isinstance(given, Mapping):
        return load_metric(ExperimentConfig.from_dict({"metric": given}))
    collects = all(callable(getattr(given, name, None)) for name in ("update", "compute"))
    if isinstance(given, type) or not (callable(given) or collects):
        raise ConfigError(
            f"metric: got {got(given)}, allowed: a name such as 'mse', a function of outputs and "
            "targets, or an object with update() and compute()"
        )
    asked = {
        name: value
        for name in ("higher_is_better", "tolerance", "unit", "needs_golden")
        if (value := getattr(given, name, None)) is not None
    }
    return Metric(given, getattr(given, "__name__", type(given).__name__), **asked)


def count_of(value: Any, name: str, least: int = 1) -> int:
    """Check a whole number.

    >>> count_of(0, "runs")
    Traceback (most recent call last):
    ...
    fxfault.errors.ConfigError: runs: got 0 (int), allowed: an integer of at least 1
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ConfigError(f"{name}: got {got(value)}, allowed: an integer of at least {least}")
    return int(value)


def share_of(value: Any, name: str) -> float:
    """Check a share in percent.

    >>> share_of("5", "verify")
    Traceback (most recent call last):
    ...
    fxfault.errors.ConfigError: verify: got '5' (str), allowed: a number from 0 to 100, in percent
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not 0 <= float(value) <= 100:
        raise ConfigError(f"{name}: got {got(value)}, allowed: a number from 0 to 100, in percent")
    return float(value)


def listed(values: Any, name: str, example: str) -> list[Any]:
    """Check that several values were given; they are checked one by one when they are used.

    Raises:
        ConfigError: there is none, or it is a single value.
    """
    if isinstance(values, (str, Mapping)) or not isinstance(values, Iterable):
        raise ConfigError(f"{name}: got {got(values)}, allowed: a list such as {example}")
    found = list(values)
    if not found:
        raise ConfigError(f"{name}: got an empty list, allowed: a list such as {example}")
    return found
