"""Recompute the running statistics of batch norms, with or without faults.

Training under faults leaves statistics of the noisy network, averaged over about ten steps. A
network that is run clean, or always under faults, needs other statistics.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fxfault.data.batches import Batch
from fxfault.errors import ConfigError, DataError, SiteError
from fxfault.faults.random_numbers import stream_key
from fxfault.sites.fault_sites import ATTRIBUTE_NAMES, FaultSites
from fxfault.training.generators import preserved_generators
from fxfault.training.model_errors import quoting_model

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """Batch norms of a network that keep running statistics, by module path.

    >>> list(batch_norms(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))))
    ['1']
    >>> batch_norms(nn.BatchNorm1d(2, track_running_stats=False))
    {}
    """
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        and module.track_running_stats
        and all(getattr(module, name) is not None for name in _BUFFERS)
    }


def calibrate_batch_norm(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    faults: Literal["clean", "faulty"] = "clean",
    device: torch.device | str | None = None,
) -> int:
    """Recompute the running statistics of all batch norms, and change nothing else.

    The network runs once over the batches without gradients, with batch norms in training mode and
    everything else in evaluation mode (no dropout, fixed scales). Each statistic becomes the mean
    over all batches, as in `torch.optim.swa_utils.update_bn`, whatever the momentum of the layer. A
    batch norm that no batch reached keeps its statistics. The function restores modes, momenta,
    global generators, and the clock and statistics of sites; after an error it also restores the
    running statistics.

    If several processes call it on the same batches, all get the same statistics: they exchange
    nothing (not even `SyncBatchNorm` does).

    >>> model = nn.Sequential(nn.BatchNorm1d(1), nn.Dropout(0.5))
    >>> calibrate_batch_norm(model, [torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0], [7.0]])])
    1
    >>> model[0].running_mean, model[0].running_var, model.training
    (tensor([4.]), tensor([2.]), True)

    Args:
        model: any network, or one from `fxfault.transform`.
        batches: inputs of the network, or lists and tuples that start with them, or what
            `fxfault.data.batches.take_apart` returns; batches as large as those of training, in
            random order.
        faults: `clean` runs without faults; `faulty` lets them strike at every selected site in
            every batch, whatever `apply_during`, `epoch_interval` and `step_interval` say. Their
            seed is derived from that of the sites.
        device: device to move batches to; default: that of the network.

    Returns:
        Number of batch norms that the batches reached.

    Raises:
        ConfigError: `faults` is invalid, or no batch norm keeps running statistics.
        SiteError: `faults` is `faulty` and the network has no sites.
        DataError: there is no batch, or the network fails; its error is quoted.
    """
    if faults not in ("clean", "faulty"):
        raise ConfigError(f"faults: got {faults!r}, allowed: 'clean' or 'faulty'")
    layers = batch_norms(model)
    if not layers:
        raise ConfigError(
            f"{type(model).__name__} has no batch norm with running statistics: there is nothing "
            "to calibrate"
        )
    sites = _sites_of(model)
    if faults == "faulty" and sites is None:
        raise SiteError(
            f"{type(model).__name__} has no fault sites: give fxfault.transform(model, config), "
            "or calibrate it clean"
        )
    if device is None:
        device = next(iter(layers.values())).running_mean.device  # type: ignore[union-attr]
    with preserved_generators(), _only_batch_norm_training(model, layers), torch.no_grad():
        with _faults_set(sites, faults == "faulty"):
            _run(model, batches, device)
        if sites is not None:
            sites.check()
        return sum(bool(layer.num_batches_tracked) for layer in layers.values())


def _run(model: nn.Module, batches: Iterable[Any], device: torch.device | str) -> None:
    is_empty = True
    for batch in batches:
        is_empty = False
        if not isinstance(batch, Batch):
            inputs = batch[0] if isinstance(batch, (list, tuple)) else batch
            batch = Batch((inputs,), {}, None, len(inputs))
        batch = batch.to(device)
        with quoting_model("the calibration of batch norms", batch.inputs, batch.keywords):
            model(*batch.inputs, **batch.keywords)
    if is_empty:
        raise DataError("there is no batch to calibrate batch norms with")


def _sites_of(model: nn.Module) -> FaultSites | None:
    found = (vars(model).get(name) for name in ATTRIBUTE_NAMES)
    return next((sites for sites in found if isinstance(sites, FaultSites)), None)


@contextmanager
def _only_batch_norm_training(model: nn.Module, layers: dict[str, _BatchNorm]) -> Iterator[None]:
    """Let batch norms average over all batches of the block; restore everything else after it."""
    modes = [(module, module.training) for module in model.modules()]
    momenta = [(layer, layer.momentum) for layer in layers.values()]
    before = [
        (layer, copy.deepcopy(dict(layer.named_buffers(recurse=False))))
        for layer in layers.values()
    ]
    try:
        model.eval()
        for layer in layers.values():
            layer.train()
            layer.momentum = None
            layer.reset_running_stats()
            if isinstance(layer, nn.SyncBatchNorm):
                # Its own forward would wait for processes that may have ended.
                layer.forward = types.MethodType(_BatchNorm.forward, layer)  # type: ignore[method-assign]
        yield
    except BaseException:
        _set_back(before)
        raise
    finally:
        for layer, momentum in momenta:
            layer.momentum = momentum
            if isinstance(layer, nn.SyncBatchNorm):
                del layer.forward
        for module, training in modes:
            module.training = training
    _set_back([(layer, old) for layer, old in before if not layer.num_batches_tracked])


def _set_back(before: list[tuple[_BatchNorm, dict[str, torch.Tensor]]]) -> None:
    with torch.no_grad():
        for layer, buffers in before:
            for name, old in buffers.items():
                getattr(layer, name).copy_(old)


@contextmanager
def _faults_set(sites: FaultSites | None, strike: bool) -> Iterator[None]:
    """Let sites strike in every forward or in none; restore clock and statistics afterwards."""
    if sites is None:
        yield
        return
    clock, statistics = sites.clock, sites.statistics
    position, seed = clock.state(), clock.seed
    sites.set_statistics(None)
    clock.enabled, clock.apply_during = strike, "eval"
    # Draw other faults than an evaluation under the same seed draws for the same sample numbers.
    clock.seed = stream_key(seed, "batch norm") >> 1
    clock.reset()
    try:
        yield
    finally:
        clock.seed = seed  # First, as the sites follow the layer that the seed draws.
        clock.restore(position)
        sites.set_statistics(statistics)
