"""Which layers the passes are about: those that have a word which faults may strike."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection

from torch import nn

from fxfault.config.fault_injection import FaultInjectionConfig
from fxfault.quantisers.inner_quantisers import gives_word, is_named, makes_words_inside
from fxfault.quantisers.stored_words import KINDS, has_memory

Rule = Callable[[nn.Module], bool]
"""Says whether a pass is about a layer."""


def target_rule(targets: Collection[str], memories: Collection[str]) -> Rule:
    """The layers whose words faults may strike.

    Args:
        targets: class names of the layers whose activations are struck.
        memories: what faults may strike: `activations`, `weights`, `biases`.
    """
    return functools.partial(_is_target, targets=tuple(targets), memories=tuple(memories))


def rule_of(config: FaultInjectionConfig) -> Rule:
    """The layers whose words a configuration may strike."""
    return target_rule(config.targets, config.memories)


def output_rule(config: FaultInjectionConfig) -> Rule:
    """The layers whose output a configuration may strike."""
    return functools.partial(_is_output, targets=_targets_of(config))


def inner_rule(config: FaultInjectionConfig) -> Rule:
    """The layers inside which a configuration may strike activations."""
    return functools.partial(_is_inner, targets=_targets_of(config))


def _targets_of(config: FaultInjectionConfig) -> tuple[str, ...]:
    return tuple(config.targets) if "activations" in config.memories else ()


def _is_output(module: nn.Module, targets: tuple[str, ...]) -> bool:
    return is_named(module, targets) and gives_word(module)


def _is_inner(module: nn.Module, targets: tuple[str, ...]) -> bool:
    return is_named(module, targets) and makes_words_inside(module)


def _is_target(module: nn.Module, targets: tuple[str, ...], memories: tuple[str, ...]) -> bool:
    activations = targets if "activations" in memories else ()
    if _is_output(module, activations) or _is_inner(module, activations):
        return True
    return any(kind in memories and has_memory(module, kind) for kind in KINDS)
