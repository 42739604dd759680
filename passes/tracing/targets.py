"""Which layers the passes are about: those that have a word which faults may strike."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection

from torch import nn

from fxfault.config.fault_injection import FaultInjectionConfig
from fxfault.quantisers.quant_tensors import is_activation, is_of_type
from fxfault.quantisers.stored_words import KINDS, float_tensors_of, has_memory

Rule = Callable[[nn.Module], bool]
"""Says whether a pass is about a layer."""


def target_rule(
    targets: Collection[str], memories: Collection[str], word: str = "quantised"
) -> Rule:
    """The layers that have a word of their own for faults to strike; tracing stops at them.

    Args:
        targets: class names of the layers whose outputs may be struck; patterns for IEEE words.
        memories: what faults may strike: `activations`, `weights`, `biases`, `parameters`.
        word: the words of activations: `quantised` or `ieee`.
    """
    return functools.partial(
        _is_target, targets=tuple(targets), memories=tuple(memories), word=word
    )


def rule_of(config: FaultInjectionConfig) -> Rule:
    """The layers that have a word of their own for a configuration to strike."""
    return target_rule(config.targets, config.memories, config.word)


def copied_rule(config: FaultInjectionConfig) -> Rule:
    """The modules of which a model under faults needs copies: those that are struck in any way."""
    if "parameters" not in config.memories:
        return rule_of(config)
    is_target = rule_of(config)
    return lambda module: is_target(module) or bool(float_tensors_of(module))


def activation_rule(config: FaultInjectionConfig) -> Rule:
    """The layers whose output a configuration may strike."""
    return target_rule(config.targets, set(config.memories) & {"activations"}, config.word)


def _is_target(
    module: nn.Module, targets: tuple[str, ...], memories: tuple[str, ...], word: str
) -> bool:
    if "activations" in memories:
        found = is_of_type(module, targets) if word == "ieee" else is_activation(module, targets)
        if found:
            return True
    return any(kind in memories and has_memory(module, kind) for kind in KINDS)
