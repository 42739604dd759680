"""Find out on clean data whether a model's samples may be run in other batches than their own.

Two things forbid it. Samples may influence each other (by a normalisation over the batch, or a
scale taken from it). And kernels may round differently for another number of samples, or at another
place in the batch: a convolution of one image adds up in another order than one of 64. So a batch
and others made of its samples run side by side, and the results of every operation are compared
bit for bit. The last result alone is not enough: a quantiser hides most roundings, not all.

Small batches often agree in all convolutions and differ in a linear layer behind them. So the sizes
that may be used are found for each part of the graph, from one fault site to the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from fxfault.faults.bits import same_bits
from fxfault.faults.random_numbers import stream_key, uniform_int63
from fxfault.functional import begin_forward, fault_inject
from fxfault.sites.live_values import (
    SampleRows,
    equal_samples,
    gather,
    leaves_of,
    roles_of,
)
from fxfault.sites.site import FaultSite

INFLUENCE = (
    "its samples influence each other in eval mode (the results of half of a batch moved when the "
    "other half was changed)"
)
PLACE = "its results are rounded by the place of a sample in the batch"


@dataclass(frozen=True)
class Independence:
    """Whether samples may leave their batches.

    Attributes:
        why_not: why samples must stay in their batches; None if they may leave.
        mixing: whether samples may influence each other.
        sizes: sizes of batches that give the same bits, ascending.
        sizes_by_part: the same for the part of the graph from each site on, and with the name ""
            for that before the first site, in order; the sizes above are in each.
        mixed: names of sites without a share of the activation for each sample; their faults
            belong to the batch.
    """

    why_not: str | None
    mixing: bool
    sizes: tuple[int, ...] = ()
    sizes_by_part: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    mixed: frozenset[str] = frozenset()


@dataclass(eq=False)
class _Trial:
    """A batch made of samples of another one.

    Attributes:
        samples: places of the samples in the original batch, int64.
        looked_at: places in the new batch where results are compared.
        differs: parts of the graph with a result that is another one; see `Independence`.
    """

    samples: Tensor
    looked_at: Tensor
    differs: set[str] = field(default_factory=set)
    run: Interpreter = field(init=False)

    @property
    def size(self) -> int:
        return len(self.samples)

    @property
    def same(self) -> bool:
        """Whether all results have been the same so far."""
        return not self.differs


def independence(model: GraphModule, inputs: Tensor) -> Independence:
    """Examine a model on one batch.

    Args:
        model: the transformed model, in eval mode with its sites disabled, under `no_grad`.
        inputs: inputs of a whole batch; the first dimension is the batch.
    """
    sizes = _sizes_below(len(inputs))
    try:
        return _examined(model, inputs, sizes)
    # A model may raise anything for a single sample: batch statistics, a squeezed dimension.
    except Exception:
        several = [size for size in sizes if size > 1]
        if several in ([], sizes):
            raise
        return _examined(model, inputs, several)


def _examined(model: GraphModule, inputs: Tensor, sizes: Sequence[int]) -> Independence:
    batch = len(inputs)
    order = torch.argsort(uniform_int63(stream_key("batch order"), torch.arange(batch)))
    half, places = batch // 2, torch.arange(batch)
    front, back = places[:half], places[half:]
    trials = {
        "front": _Trial(torch.cat([front, front.flip(0), front[: batch - 2 * half]]), front),
        "back": _Trial(torch.cat([back.flip(0)[:half], back]), back),
        "order": _Trial(places.flip(0), places),
    }
    if half == 0:  # Nothing to change: the only sample is its own neighbour.
        trials = {"order": _Trial(places, places)}
    small = {size: (_some(order, size), _some(order.flip(0), size)) for size in sizes}
    every = [*trials.values(), *(trial for pair in small.values() for trial in pair)]
    seen = _run_side_by_side(model, inputs, every)
    mixed = seen.mixed
    if not all(trials[name].same for name in ("front", "back") if name in trials):
        return Independence(INFLUENCE, mixing=True)
    if not trials["order"].same:
        return Independence(PLACE, mixing=False, mixed=mixed)
    small = {size: pair for size, pair in small.items() if size < batch}
    good = [size for size, pair in small.items() if all(trial.same for trial in pair)]
    by_part = {
        part: (*(n for n, pair in small.items() if _agrees_in(part, pair, seen)), batch)
        for part in seen.parts
    }
    return Independence(None, False, (*good, batch), by_part, mixed)


def _agrees_in(part: str, trials: Iterable[_Trial], seen: _Seen) -> bool:
    """Whether trials agree in a part; where not all can be compared, they must everywhere."""
    return all(trial.same or part not in trial.differs | seen.unknown for trial in trials)


def _sizes_below(batch: int) -> list[int]:
    """Sizes to try: the powers of two and the numbers halfway between, below the batch's."""
    powers = [1 << n for n in range(batch.bit_length())]
    sizes = {size for power in powers for size in (power, power * 3 // 2) if size < batch}
    return sorted(sizes) or [2]  # Only a second size shows what belongs to a sample.


def _some(order: Tensor, size: int) -> _Trial:
    return _Trial(order[torch.arange(size) % len(order)], torch.arange(size))


def sizes_that_agree(model: GraphModule, inputs: Tensor, found: Independence) -> bool:
    """Whether batches of all sizes that were found give the bits of a batch of another size, too.

    Args:
        model: as for `independence`.
        inputs: inputs of the other batch.
        found: the sizes for each part.
    """
    order = torch.arange(len(inputs)).flip(0)
    # A batch of the same size shows how samples lie; see `_compare`.
    sizes = sorted({len(inputs)}.union(*found.sizes_by_part.values()))
    trials = {size: _some(order, size) for size in sizes}
    seen = _run_side_by_side(model, inputs, list(trials.values()))
    return trials[len(inputs)].same and all(
        _agrees_in(part, [trials[size]], seen)
        for part, allowed in found.sizes_by_part.items()
        for size in allowed
    )


@dataclass
class _Seen:
    """What running batches side by side has shown.

    Attributes:
        parts: the parts of the graph, in order; see `Independence`.
        unknown: those with results that cannot be compared.
        mixed: names of the sites with an activation that is not laid out by samples.
    """

    parts: list[str]
    unknown: set[str]
    mixed: frozenset[str]


def _run_side_by_side(model: GraphModule, inputs: Tensor, trials: Sequence[_Trial]) -> _Seen:
    """Run a batch and the trials node by node, and note differences in the trials."""
    whole = _interpreter(model, inputs)
    for trial in trials:
        trial.run = _interpreter(model, inputs.index_select(0, trial.samples.to(inputs.device)))
    mixed, part = set(), ""
    seen = _Seen([part], set(), frozenset())
    for node in model.graph.nodes:
        if node.target is begin_forward:  # The clock need not move: no site strikes.
            continue
        site = whole.env[node.args[1]] if node.target is fault_inject else None
        if site is not None and site.stored is None:
            part = site.name
            seen.parts.append(part)
        results = [_step(run, node) for run in (whole, *(trial.run for trial in trials))]
        if node.op in ("placeholder", "get_attr"):
            continue
        if not _compare(results[0], len(inputs), results[1:], trials, node.op == "output", part):
            seen.unknown.add(part)
        if site is not None and not _by_samples(site, results, len(inputs), trials):
            mixed.add(site.name)
    seen.mixed = frozenset(mixed)
    return seen


def _interpreter(model: GraphModule, inputs: Tensor) -> Interpreter:
    interpreter = Interpreter(model)
    interpreter.args_iter = iter((inputs,))
    return interpreter


def _step(run: Interpreter, node: Node) -> Any:
    result = run.run_node(node)
    run.env[node] = result
    for unused in run.user_to_last_uses.get(node, ()):
        del run.env[unused]
    return result


def _compare(
    whole: Any,
    batch: int,
    others: Sequence[Any],
    trials: Sequence[_Trial],
    is_output: bool,
    part: str,
) -> bool:
    """Compare one node's results, and note differences in the trials.

    If all trials differ, samples may lie in a way that we do not recognise (windows of several
    images side by side). That proves nothing; the output decides.

    Returns:
        Whether all could be compared.
    """
    known = True
    other = next(k for k, trial in enumerate(trials) if trial.size != batch)
    for place, leaf in enumerate(leaves_of(whole)):
        leaves = [leaves_of(result)[place] for result in others]
        found = [False] * len(trials)
        try:
            roles = roles_of(leaf, batch, leaves[other], trials[other].size)
        except ValueError:
            roles = []
        for role in roles:  # The first that explains most trials, or else any.
            these = [
                _same(leaf, role, share, trial) for share, trial in zip(leaves, trials, strict=True)
            ]
            found = these if sum(these) > sum(found) else found
            if 2 * sum(found) > len(found):
                break
        known &= any(found)
        if any(found) or is_output:
            for trial, same in zip(trials, found, strict=True):
                trial.differs |= set() if same else {part}
    return known


def _same(leaf: Any, role: Any, share: Any, trial: _Trial) -> bool:
    if not isinstance(role, SampleRows):
        return role is not None or same_bits(leaf, share)
    at = trial.looked_at
    expected = gather([(leaf, trial.samples[at])], role)
    found = share if len(at) == trial.size else gather([(share, at)], role)
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    return bool(equal_samples(found, expected, role).all())


def _by_samples(
    site: FaultSite, results: Sequence[Any], batch: int, trials: Sequence[_Trial]
) -> bool:
    """Whether each sample has a share of the activation, with the same layout in every batch."""
    values = [getattr(result, "value", result) for result in results]
    sizes = [batch, *(trial.size for trial in trials)]
    layouts = [site.layout_of(tuple(v.shape), n) for v, n in zip(values, sizes, strict=True)]
    return all(
        layout.samples == size and replace(layout, samples=0) == replace(layouts[0], samples=0)
        for layout, size in zip(layouts, sizes, strict=True)
    )
