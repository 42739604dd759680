"""Which layers the passes are about: those that have a word which faults may strike."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection

from torch import nn

from fxfault.config.fault_injection import FaultInjectionConfig
from fxfault.quantisers.inner_quantisers import gives_word, is_named, makes_words_inside
from fxfault.quantisers.quant_tensors import is_of_type
from fxfault.quantisers.stored_words import KINDS, float_tensors_of, has_memory

Rule = Callable[[nn.Module], bool]
"""Says whether a pass is about a layer."""


def target_rule(
    targets: Collection[str], memories: Collection[str], word: str = "quantised"
) -> Rule:
    """The layers that have a word of their own for faults to strike; tracing stops at them.

    Args:
        targets: class names of the layers whose activations are struck; patterns for IEEE words.
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


def output_rule(config: FaultInjectionConfig) -> Rule:
    """The layers whose output a configuration may strike."""
    return functools.partial(_is_output, targets=_targets_of(config), word=config.word)


def inner_rule(config: FaultInjectionConfig) -> Rule:
    """The layers inside which a configuration may strike activations."""
    return functools.partial(_is_inner, targets=_targets_of(config), word=config.word)


def _targets_of(config: FaultInjectionConfig) -> tuple[str, ...]:
    return tuple(config.targets) if "activations" in config.memories else ()


def _is_output(module: nn.Module, targets: tuple[str, ...], word: str) -> bool:
    if word == "ieee":
        return is_of_type(module, targets)
    return is_named(module, targets) and gives_word(module)


def _is_inner(module: nn.Module, targets: tuple[str, ...], word: str) -> bool:
    return word == "quantised" and is_named(module, targets) and makes_words_inside(module)


def _is_target(
    module: nn.Module, targets: tuple[str, ...], memories: tuple[str, ...], word: str
) -> bool:
    activations = targets if "activations" in memories else ()
    if _is_output(module, activations, word) or _is_inner(module, activations, word):
        return True
    return any(kind in memories and has_memory(module, kind) for kind in KINDS)
