"""Candidates for how samples lie in an activation, and the runs that rule them out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from fxfault.faults.bits import same_bits
from fxfault.faults.layouts import CONSTANT, Arrangement
from fxfault.sites.live_values import SampleRows, gather

# The share of the elements that may differ by one step if kernels round by place.
RARE = 0.01
# The same of the elements that exchanging samples changes.
UNEXPLAINED = 0.1

# How far roundings may move a layer's input, as a share of its largest value.
ROUNDING = 1e-3

SHARED = "they influence each other (a sample's values moved when others left the batch)"
ORDER = "its values follow the order of the samples in the batch"
NO_SHARE = "no dimension of its shape {} for {} samples holds a share for each"
OTHER_SIZE = "its share for each sample changes with their number"
SAME = "what comes in is the same for all samples"
RANDOM = "its forward gives other results each time"
CALLS = "its calls in one forward lie in different ways"


@dataclass
class Call:
    """What one call of a site showed.

    Attributes:
        values: the activation of the first run.
        step: the largest step of its quantiser.
        candidates: candidates that explain all runs so far, bit for bit or nearly.
        why: why there is no candidate.
        shared: whether samples influence each other.
        changes: whether any run had other values.
    """

    values: Tensor
    step: float
    candidates: list[SampleRows] = field(default_factory=list)
    why: str | None = None
    shared: bool = False
    changes: bool = False


def decide(call: Call, before: Tensor, exchanged: Tensor, order: Tensor) -> None:
    """Keep the candidates that explain the layer's input, up to roundings."""
    if not (before.shape == exchanged.shape == call.values.shape) or not before.numel():
        return
    scale = before.double().abs().max()
    errors = {
        role: (gather([(before, order)], role).double() - exchanged.double()).abs().max()
        for role in call.candidates
    }
    good = [role for role, error in errors.items() if error <= ROUNDING * scale]
    call.candidates = good or call.candidates


def exchange(call: Call, value: Tensor, samples: Tensor) -> Tensor | None:
    """Keep the candidates that turn an exchanged batch into the exchanged activation.

    Returns:
        That activation; None if there is no candidate.
    """
    if value.shape != call.values.shape:
        call.candidates, call.why = [], ORDER
        return None
    changed = _differing(value, call.values)
    call.changes |= changed > 0
    expected = {role: gather([(call.values, samples)], role) for role in call.candidates}
    kept = [role for role in call.candidates if same_bits(expected[role], value)]
    if not kept:
        kept = [
            role
            for role in call.candidates
            if _nearly(expected[role], value, call.step, UNEXPLAINED * changed)
        ]
    if not kept and call.candidates:
        call.why = ORDER
    call.candidates = kept
    return expected[kept[0]] if kept else None


def repeat(call: Call, value: Tensor, samples: Tensor) -> Tensor | None:
    """Note whether an activation depends on random numbers."""
    if call.why == ORDER and not same_bits(value, call.values):
        call.why = RANDOM
    return None


def shrink(call: Call, value: Tensor, samples: Tensor) -> Tensor | None:
    """Keep the candidates with the same share of each sample in a batch of another size."""
    call.changes |= value.shape != call.values.shape or _differing(value, call.values) > 0
    if not call.candidates:
        return None
    fitting, exact, near = [], {}, {}
    for role in call.candidates:
        expected = gather([(call.values, samples)], role)
        if expected.shape != value.shape:
            continue
        fitting.append(role)
        if same_bits(expected, value):
            exact[role] = expected
        elif _nearly(expected, value, call.step, float("inf")):
            near[role] = expected
    good = exact or near
    call.shared |= bool(fitting) and not good
    call.candidates = list(good) or fitting
    if not call.candidates:
        call.why = OTHER_SIZE
    return next(iter(good.values())) if good else None


def candidates_for(shape: tuple[int, ...], batch: int) -> list[SampleRows]:
    """All ways in which samples may lie along a dimension, consecutive rows first."""
    return [
        SampleRows(dim, size // batch // outer, outer)
        for dim, size in enumerate(shape)
        if size and size % batch == 0
        for outer in range(1, size // batch + 1)
        if size // batch % outer == 0
    ]


def _nearly(a: Tensor, b: Tensor, step: float, most: float) -> bool:
    """Whether two activations differ as if by kernels that round by place."""
    differing = _differing(a, b)
    if differing > min(most, max(1.0, RARE * a.numel())):
        return False
    if not a.is_floating_point():
        return False
    return bool(((a.double() - b.double()).abs() <= 1.001 * step).all())


def _differing(a: Tensor, b: Tensor) -> int:
    return int((a != b).sum()) if a.shape == b.shape else max(a.numel(), b.numel())


def step_of(x: Any) -> float:
    """The largest step of a QuantTensor; 0 for a plain tensor."""
    scale = getattr(x, "scale", None)
    return float(scale.detach().max()) if isinstance(scale, Tensor) and scale.numel() else 0.0


def arrangement_of(call: Call, last: SampleRows | None) -> Arrangement:
    """The arrangement that one call showed; `last` is the only candidate of an earlier site."""
    if not call.candidates:
        why = call.why or ORDER
        return Arrangement(why_batch=why if call.changes else CONSTANT)
    # If several explain everything, as for constants, take that of the site before.
    role = call.candidates[0]
    if len(call.candidates) > 1 and last in call.candidates:
        role = last
    pieces = role.outer
    for size in call.values.shape[: role.dim]:
        pieces *= size
    return Arrangement(
        role.dim,
        role.outer,
        role.each,
        pieces,
        why_shared=SHARED if call.shared else None,
        why_guessed=SAME if len(call.candidates) > 1 else None,
    )


def common_arrangement(calls: Sequence[Arrangement]) -> Arrangement | None:
    """The arrangement that all calls of a site in one forward share."""
    if not calls:
        return None
    ways = {(a.dim, a.outer, a.each if a.outer > 1 else 0, a.why_batch is None) for a in calls}
    if len(ways) > 1:
        return Arrangement(why_batch=CALLS)
    shared = next((a.why_shared for a in calls if a.why_shared is not None), None)
    return replace(calls[0], why_shared=shared)
