"""`FaultInjector`: the interface of the specification, on top of `transform` and `model.faults`."""

from __future__ import annotations

from torch import nn

from fxfault.config.fault_injection import FaultInjectionConfig
from fxfault.errors import ConfigError
from fxfault.passes.faulty_module import FaultyModule
from fxfault.passes.sites_of_model import sites_or_none
from fxfault.passes.transform import transform
from fxfault.sites.statistics import FaultStatistics


class FaultInjector:
    """Inject faults into a model and control them from a training or evaluation loop.

    Every method but `inject` does nothing to a model without sites, so that a loop runs
    unchanged if the configuration says `enabled: false`.

    >>> from brevitas.nn import QuantReLU
    >>> injector = FaultInjector()
    >>> clean = nn.Sequential(nn.Linear(4, 4), QuantReLU(bit_width=4))
    >>> model = injector.inject(clean, FaultInjectionConfig(enabled=True, probability=5.0))
    >>> injector.get_num_layers(model)
    1
    >>> injector.update_probability(model, 10.0, layer_id=0)
    >>> injector.remove(model) is clean
    True
    """

    QUANT_TARGET_LAYERS = frozenset(FaultInjectionConfig().targets)

    def inject(self, model: nn.Module, config: FaultInjectionConfig) -> FaultyModule:
        """See `fxfault.transform`."""
        return transform(model, config)

    def remove(self, model: nn.Module) -> nn.Module:
        """Return the model object that `inject` was given, with the changes of training."""
        sites = sites_or_none(model)
        if sites is None:
            return model
        modes = {path: module.training for path, module in model.named_modules()}
        for path, module in sites.original.named_modules():
            module.training = modes.get(path, module.training)
        return sites.original

    def get_num_layers(self, model: nn.Module) -> int:
        """Number of sites."""
        sites = sites_or_none(model)
        return 0 if sites is None else len(sites)

    def update_probability(
        self, model: nn.Module, probability: float, layer_id: int | None = None
    ) -> None:
        """Set the probability of one site or of all, in percent, without tracing again.

        Raises:
            ConfigError: the probability is not a number from 0 to 100, or the configuration has
                `num_faults` or `faults` instead of a probability.
        """
        sites = sites_or_none(model)
        if sites is None:
            return
        if layer_id is None:
            sites.set_probability(probability)
        else:
            sites[layer_id].set_probability(probability)

    def update_epoch(self, model: nn.Module, epoch: int) -> None:
        """Set the epoch, which `epoch_interval`, a curriculum and the faults of training follow.

        Raises:
            ConfigError: `epoch` is not an integer of at least 0.
        """
        sites = sites_or_none(model)
        if sites is not None:
            sites.set_epoch(epoch)

    def reset_counters(self, model: nn.Module) -> None:
        """Restart the numbers of samples and steps at 0."""
        sites = sites_or_none(model)
        if sites is not None:
            sites.reset()

    def set_condition_injector(
        self, model: nn.Module, num_iterations: int, step_interval: float
    ) -> None:
        """Set the probability that a training step is noisy.

        A `step_interval` in the configuration's curriculum wins, because the loop of the
        specification passes the configured value after `update_epoch` and must not undo the
        curriculum. The arguments are only checked then.

        Each step is drawn by its number, so that draws do not depend on how many follow;
        `num_iterations` is only checked.

        Raises:
            ConfigError: `step_interval` is not from 0 to 1, or `num_iterations` is below 1.
        """
        if not 0 <= step_interval <= 1:
            raise ConfigError(f"step_interval: got {step_interval!r}, allowed: 0 to 1")
        if num_iterations < 1:
            raise ConfigError(f"num_iterations: got {num_iterations!r}, allowed: 1 and up")
        sites = sites_or_none(model)
        if sites is not None and not sites.governs("step_interval"):
            sites.clock.step_interval = float(step_interval)

    def set_enabled(self, model: nn.Module, enabled: bool) -> None:
        """Switch all sites on or off."""
        sites = sites_or_none(model)
        if sites is not None:
            sites.enabled = enabled

    def set_statistics(self, model: nn.Module, statistics: FaultStatistics) -> None:
        """Record armed forwards in `statistics`."""
        sites = sites_or_none(model)
        if sites is not None:
            sites.set_statistics(statistics)
