"""Estimate the statistics of batch norm anew, with or without faults.

Training under faults leaves running means and variances of the noisy network, an average with
a memory of some ten steps. What a network is to be run as, clean or faulty, has others.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fxfault.errors import FOREIGN, ConfigError, DataError, FxFaultError, SiteError
from fxfault.faults.random_numbers import stream_key
from fxfault.messages import quote_error
from fxfault.sites.fault_sites import ATTRIBUTE_NAMES, FaultSites
from fxfault.training.generators import preserved_generators

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """The batch norms of a network that keep running statistics, by their path.

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
    """Estimate the running statistics of all batch norms anew, and change nothing else.

    The network runs once over the batches, without gradients, batch norms in training mode and
    all else in evaluation mode (no dropout, settled scales). Each statistic becomes the mean
    over all batches, as torch has it for `momentum=None` and `torch.optim.swa_utils.update_bn`,
    whatever the momentum of the layer. A batch norm that no batch reached keeps what it had.
    Modes, momenta, global generators, and the clock and the statistics of sites are afterwards
    as before; after an error so are the running statistics.

    Each process of several that runs it on the same batches gets the same statistics: nothing
    is exchanged between them (also not by `SyncBatchNorm`).

    >>> model = nn.Sequential(nn.BatchNorm1d(1), nn.Dropout(0.5))
    >>> calibrate_batch_norm(model, [torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0], [7.0]])])
    1
    >>> model[0].running_mean, model[0].running_var, model.training
    (tensor([4.]), tensor([2.]), True)

    Args:
        model: any network, or one from `fxfault.transform`.
        batches: what the network is called with, or lists and tuples of which it is the first
            item; batches as large as those of training, in random order.
        faults: `clean` runs without faults; `faulty` lets them strike at every selected site in
            every batch, whatever `apply_during`, `epoch_interval` and `step_interval` say, drawn
            from a seed of their own that follows from that of the sites.
        device: that batches are moved to; None takes that of the network.

    Returns:
        How many batch norms the batches reached.

    Raises:
        ConfigError: `faults` is neither, or no batch norm keeps running statistics.
        SiteError: `faulty`, and the network has no sites.
        DataError: there is no batch, or the network fails on one; its error is quoted.
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
        inputs = batch[0] if isinstance(batch, (list, tuple)) else batch
        try:
            model(inputs.to(device))
        except FxFaultError:
            raise
        except torch.OutOfMemoryError as error:
            raise DataError("out of memory: lower training.batch_size") from error
        except FOREIGN as error:  # a network may fail in any way
            raise DataError(
                f"the model fails while its batch norms are calibrated, on inputs of shape "
                f"{tuple(inputs.shape)}: {quote_error(error)}"
            ) from error
    if is_empty:
        raise DataError("there is no batch to calibrate batch norms by")


def _sites_of(model: nn.Module) -> FaultSites | None:
    found = (vars(model).get(name) for name in ATTRIBUTE_NAMES)
    return next((sites for sites in found if isinstance(sites, FaultSites)), None)


@contextmanager
def _only_batch_norm_training(model: nn.Module, layers: dict[str, _BatchNorm]) -> Iterator[None]:
    """Let batch norms average over what they see from here on; set the rest back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    momenta = [(layer, layer.momentum) for layer in layers.values()]
    before = [
        (layer, {name: getattr(layer, name).clone() for name in _BUFFERS})
        for layer in layers.values()
    ]
    try:
        model.eval()
        for layer in layers.values():
            layer.train()
            layer.momentum = None
            layer.reset_running_stats()
            if isinstance(layer, nn.SyncBatchNorm):
                # Its own would wait for processes that may not be there any more.
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
    """Let sites strike in every forward, or in none; then clock and statistics are as before."""
    if sites is None:
        yield
        return
    clock, statistics = sites.clock, sites.statistics
    position, seed = clock.state(), clock.seed
    sites.set_statistics(None)
    clock.enabled, clock.apply_during = strike, "eval"
    # Not the faults that an evaluation under the same seed gives to samples of these numbers.
    clock.seed = stream_key(seed, "batch norm") >> 1
    clock.reset()
    try:
        yield
    finally:
        clock.seed = seed  # First: to the layer that another seed draws, sites would follow.
        clock.restore(position)
        sites.set_statistics(statistics)
