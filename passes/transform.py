"""`fxfault.transform` and `fxfault.strip`: the passes, applied to a model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, cast

from torch import nn

from fxfault.config.curriculum import epoch_plan
from fxfault.config.fault_injection import FaultInjectionConfig
from fxfault.faults.fault_models import label_of
from fxfault.passes.checking import check
from fxfault.passes.faulty_module import FaultyModule
from fxfault.passes.insert import InsertFaults
from fxfault.passes.sites_of_model import sites_or_none
from fxfault.passes.strip import StripFaults
from fxfault.passes.tracing.containers import trace
from fxfault.passes.tracing.sharing import twin
from fxfault.passes.tracing.targets import copied_rule
from fxfault.passes.tracing.traced_module import twin_of_traced
from fxfault.sites.fault_sites import FaultSites, faults_of
from fxfault.strike.listing import list_ahead

logger = logging.getLogger(__name__)


def transform(
    model: nn.Module,
    config: FaultInjectionConfig | Mapping[str, Any],
    example_inputs: Any = None,
) -> FaultyModule:
    """Make a model with quantised activations that faults can hit.

    The model is traced, and a `fault_inject` call is inserted after every target. As with
    any torch.fx graph module, the result shares layers, parameters and buffers with
    `model`: training, loading, moving or switching one to evaluation shows in the other.
    `model` itself is not changed, and `state_dict` has the same keys in the same order. If the
    configuration has a curriculum, the model starts with its values for epoch 0.

    >>> import torch
    >>> from brevitas.nn import QuantReLU
    >>> model = nn.Sequential(nn.Linear(4, 4), QuantReLU(bit_width=4)).eval()
    >>> faulty = transform(
    ...     model, {"enabled": True, "probability": 100.0, "apply_during": "eval", "seed": 1}
    ... )
    >>> list(faulty.state_dict()) == list(model.state_dict())
    True
    >>> faulty.faults
    FaultSites(1 site, 1 armed, seed 1)

    Args:
        model: a network with Brevitas activation layers.
        config: the faults, their places and their times.
        example_inputs: the inputs of one batch: a tensor, or a tuple of the arguments of a call.
            If given, the result is compared with `model`; see `fxfault.check`.

    Returns:
        A model with the sites at `.faults`; `model` itself, without any, if `enabled` is false.

    Raises:
        ConfigError: the configuration has errors.
        TransformError: the model has no target, has sites already, or has targets whose
            output is not an integer QuantTensor; or the check fails.
        SiteError: `layers` or `injection_layer` names a site that does not exist, or a selected
            site's word has fewer bits than the fault model strikes.
    """
    if isinstance(config, FaultInjectionConfig):
        config.validate()
    else:
        config = FaultInjectionConfig.from_dict(config)
    if not config.enabled:
        return cast(FaultyModule, model)  # As if it had sites: loops ask `enabled` first.
    insert: Any = InsertFaults(config)
    insert.requires(model)
    faulty = insert(trace(model, config)).graph_module
    sites = faults_of(faulty)
    sites.attach(faulty, original=model, list_ahead=list_ahead)
    if config.faults is not None or len(config.memories) > 1:
        sites.set_faults(config)
    sites.select(config.layers)
    sites.check_words()
    if example_inputs is not None:
        inputs = example_inputs if type(example_inputs) is tuple else (example_inputs,)
        check(faulty, model, *inputs)
    if config.track_statistics:
        sites.new_statistics()
    if config.verbose:
        _log(sites)
    return cast(FaultyModule, faulty)


def _log(sites: FaultSites) -> None:
    config = sites.config
    logger.info("Fault injection enabled: %d injection layers added", len(sites))
    logger.info("  Mode: %s", config.mode)
    entries = epoch_plan(config, 0).entries
    if len(entries) == 1 and entries[0].probability is not None:
        of = " of the bits" if entries[0].rate_unit == "bit" else ""
        logger.info("  Probability: %s%%%s", entries[0].probability, of)
        logger.info("  Injection type: %s", label_of(sites[0].fault_model))
    else:
        logger.info("  Faults: %s", "; ".join(map(str, entries)))
    logger.info("  Apply during: %s", config.apply_during)


def strip(model: nn.Module) -> nn.Module:
    """Make a model without fault sites from a transformed one, which is not changed.

    The result is the traced model: its graph has the same text as that of `fxfault.passes.trace`.
    `FaultInjector.remove` returns the untraced model.

    >>> from brevitas.nn import QuantReLU
    >>> model = nn.Sequential(nn.Linear(4, 4), QuantReLU(bit_width=4))
    >>> strip(transform(model, {"enabled": True})).code == trace(model).code
    True

    Args:
        model: the result of `transform`; a model without sites is returned as it is.
    """
    sites = sites_or_none(model)
    if sites is None:
        return model
    strip_faults: Any = StripFaults()
    return strip_faults(
        twin(model, copied_rule(sites.config), new_object=twin_of_traced)
    ).graph_module
