"""Values of the `fault_injection` section that are allowed, but not together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from fxfault.config.entries import CURRICULUM_SETTINGS, CurriculumPoint, FaultEntry
from fxfault.messages import got

if TYPE_CHECKING:
    from fxfault.config.fault_injection import FaultInjectionConfig
    from fxfault.faults.fault_models import FaultModel


def contradictions(config: FaultInjectionConfig | None, where: str) -> list[str]:
    """List the contradictions of a section.

    Args:
        config: a section whose values are allowed one by one; None has no contradictions.
        where: path of the section in its file; empty for the top level.
    """
    if config is None:
        return []
    points = [point for point in config.curriculum or () if isinstance(point, CurriculumPoint)]
    if config.faults is not None:
        found = [*_beside_entries(config, points)]
    else:
        found = [*_of_one_fault(config, points), *_memory_problems(config)]
    if config.persist != "step" and not _strikes_stored_words(config):
        found.append(
            f"persist: got {got(config.persist)}, allowed with a memory of weights or biases, as "
            "the faults of activations are drawn for each sample"
        )
    found += _float_problems(config)
    prefix = f"{where}." if where else ""
    return [prefix + problem for problem in found]


def entry_problems(entries: Sequence[FaultEntry | None]) -> Iterator[str]:
    """Yield the contradictions of each entry of `faults`; None stands for an unreadable entry."""
    for index, entry in enumerate(entries):
        if entry is None:
            continue
        if entry.replay is not None:
            for key in _said_beside_replay(entry):
                yield f"[{index}].{key}: given beside replay, whose list says all; leave it out"
            continue
        if (entry.probability is None) == (entry.num_faults is None):
            have = "neither" if entry.probability is None else "both"
            yield f"[{index}]: has {have}, allowed: one of probability and num_faults"
        for problem in (*_word_problems(entry, [entry.injection_type]), *_memory_problems(entry)):
            yield f"[{index}].{problem}"


def _said_beside_replay(entry: FaultEntry) -> list[str]:
    defaults = {**_defaults_of(entry), "replay": entry.replay, "memory": entry.memory}
    return [key for key, value in defaults.items() if getattr(entry, key) != value]


def point_problems(points: Sequence[CurriculumPoint | None]) -> Iterator[str]:
    """Yield the points that come too early and those without a setting; None as above."""
    last = -1
    for index, point in enumerate(points):
        if point is None:
            continue
        if point.epoch <= last:
            yield (
                f"[{index}].epoch: got {got(point.epoch)}, allowed: an integer above {last}, "
                "because the points ascend"
            )
        last = max(last, point.epoch)
        if all(getattr(point, name) is None for name in CURRICULUM_SETTINGS):
            yield (
                f"[{index}]: names no setting, allowed: at least one of "
                f"{', '.join(CURRICULUM_SETTINGS)}"
            )


def _word_problems(fault: Any, models: Sequence[str | FaultModel]) -> Iterator[str]:
    """Yield which of `bit`, `burst_length` and `rate_unit` do not fit the fault models."""
    if (fault.bit, fault.burst_length, fault.rate_unit) == (None, None, "element"):
        return
    from fxfault.faults.fault_models import fault_model_names, get_fault_model, takes

    def allowed(key: str) -> str:
        fit = [repr(name) for name in fault_model_names() if takes(get_fault_model(name), key)]
        return f"allowed with an injection_type of {', '.join(fit)}"

    named = [get_fault_model(model) for model in models if isinstance(model, str)]
    if fault.bit == "each":
        yield (
            "bit: got 'each' (str), which stands for many runs: make it an axis of a study "
            "(fxfault campaign), or give one bit, from 0 to 31, or 'random'"
        )
    for key in ("bit", "burst_length"):
        value = getattr(fault, key)
        if value not in (None, "each") and not any(takes(model, key) for model in named):
            yield f"{key}: got {got(value)}, {allowed(key)}"
    if fault.rate_unit == "bit":
        if not all(takes(get_fault_model(model), "rate_unit") for model in models):
            yield f"rate_unit: got 'bit' (str), {allowed('rate_unit')}"
        elif fault.bit not in (None, "random", "each"):
            yield (
                f"bit: got {got(fault.bit)}, allowed with rate_unit: bit: null or 'random', "
                "because every bit is drawn by itself"
            )


def _memory_problems(fault: FaultEntry | FaultInjectionConfig) -> Iterator[str]:
    """Yield why faults cannot be counted: those of a sample, and those of a whole trial."""
    kinds = [fault.memory] if isinstance(fault.memory, str) else list(fault.memory)
    if fault.num_faults is not None and "activations" in kinds and len(kinds) > 1:
        yield (
            f"num_faults: got {got(fault.num_faults)} beside memory: {', '.join(kinds)}, allowed: "
            "activations alone, of which each sample has so many hit, or weights and biases, of "
            "which each trial has; give each an entry of `faults`"
        )


def _float_problems(config: FaultInjectionConfig) -> Iterator[str]:
    """Yield what IEEE words do not allow."""
    targets = _defaults_of(config)["targets"]
    if config.word == "ieee" and "activations" not in config.memories:
        yield f"word: got 'ieee' (str), allowed with a memory of {got('activations')}"
    elif config.word == "ieee" and tuple(config.targets) == targets:
        yield (
            "targets: missing, name the module types whose float outputs `word: ieee` strikes, "
            "such as `targets: [ReLU, Conv2d]`"
        )
    elif config.word != "ieee" and any(c in name for name in config.targets for c in "*?["):
        yield f"targets: got {got(config.targets)}, allowed: class names; patterns with word: ieee"
    if "parameters" in config.memories and config.apply_during != "eval" and config.enabled:
        yield (
            f"memory: got 'parameters' with apply_during: {config.apply_during}, allowed: eval, as "
            "training updates these words"
        )


def _strikes_stored_words(config: FaultInjectionConfig) -> bool:
    return any(kind != "activations" for kind in config.memories)


def _of_one_fault(config: FaultInjectionConfig, points: Sequence[CurriculumPoint]) -> Iterator[str]:
    types = [point.injection_type for point in points if point.injection_type is not None]
    yield from _word_problems(config, [config.injection_type, *types])
    if config.num_faults is not None:
        if config.probability != _defaults_of(config)["probability"]:
            yield (
                f"probability: got {got(config.probability)} beside num_faults, which replaces "
                "it; leave one out"
            )
        if any(point.probability is not None for point in points):
            yield "curriculum: changes probability, which num_faults replaces"
        if config.hw_mask:
            yield (
                f"num_faults: got {got(config.num_faults)}, allowed with hw_mask: null; "
                "`probability` says how many units are broken"
            )
    if config.hw_mask and config.rate_unit == "bit":
        yield (
            "rate_unit: got 'bit' (str), allowed with hw_mask: 'element', as a broken unit "
            "computes whole values"
        )


def _beside_entries(
    config: FaultInjectionConfig, points: Sequence[CurriculumPoint]
) -> Iterator[str]:
    """Yield what the section itself must leave to the entries of `faults`."""
    defaults = _defaults_of(config)
    for key in (*(field.name for field in fields(FaultEntry)), "hw_mask"):
        if key in defaults and getattr(config, key) != defaults[key]:
            yield f"{key}: got {got(getattr(config, key))} beside faults; set it in their entries"
    entries = [entry for entry in config.faults or () if isinstance(entry, FaultEntry)]
    if config.mode == "layer" and any(entry.replay is not None for entry in entries):
        yield "mode: got 'layer' (str) beside replay, whose list says which sites are struck"
    for key in ("probability", "injection_type"):
        if any(getattr(point, key) is not None for point in points):
            yield f"curriculum: changes {key}, which each entry of faults sets itself"


def _defaults_of(config: FaultInjectionConfig | FaultEntry) -> dict[str, Any]:
    return {field.name: field.default for field in fields(config)}
