"""Which layers the passes are about: those that have a word which faults may strike."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection

from torch import nn

from fxfault.config.fault_injection import FaultInjectionConfig
from fxfault.quantisers.quant_tensors import is_activation
from fxfault.quantisers.stored_words import KINDS, has_memory

Rule = Callable[[nn.Module], bool]
"""Says whether a pass is about a layer."""


def target_rule(targets: Collection[str], memories: Collection[str]) -> Rule:
    """The layers whose words faults may strike.

    Args:
        targets: class names of the activation layers.
        memories: what faults may strike: `activations`, `weights`, `biases`.
    """
    return functools.partial(_is_target, targets=tuple(targets), memories=tuple(memories))


def rule_of(config: FaultInjectionConfig) -> Rule:
    """The layers whose words a configuration may strike."""
    return target_rule(config.targets, config.memories)


def activation_rule(config: FaultInjectionConfig) -> Rule:
    """The layers whose output a configuration may strike."""
    return target_rule(config.targets, set(config.memories) & {"activations"})


def _is_target(module: nn.Module, targets: tuple[str, ...], memories: tuple[str, ...]) -> bool:
    if "activations" in memories and is_activation(module, targets):
        return True
    return any(kind in memories and has_memory(module, kind) for kind in KINDS)
