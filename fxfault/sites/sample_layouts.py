"""Measure on clean data which elements of each activation belong to which sample.

A few samples run, then the same ones in another order, then some of them as a batch of another
size. At each site, every dimension that could hold the samples, in consecutive rows or in several
pieces, is a candidate. A candidate is right if the exchanged batch has the exchanged activation,
bit for bit, and the batch of another size has the same share for each sample:

    two views, torch.cat([x, x.flip(-1)])     (2N, F)     a0 a1 a2 b0 b1 b2
    the batch with its samples 0 and 2 swapped            a2 a1 a0 b2 b1 b0   every N-th row

An activation that no candidate explains (samples sorted by their length or score, a choice among
samples) does not belong to samples: its faults are those of the batch.

Kernels may round by the place of a sample in the batch. A quantiser seldom shows this, and then as
one step. So if no candidate fits bit for bit, one with few differences still fits: single steps, in
at most one element of a hundred, and in at most a tenth of the elements that exchanging samples
changes. A wrong candidate compares different samples, which differ nearly everywhere. The network
goes on with the exchanged activation, so that roundings do not add up.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxfault.data.batches import Batch, take_apart
from fxfault.errors import SiteError
from fxfault.faults.layouts import Arrangement
from fxfault.sites.layout_candidates import (
    CALLS,
    NO_SHARE,
    ORDER,
    RANDOM,
    Call,
    arrangement_of,
    candidates_for,
    common_arrangement,
    decide,
    exchange,
    repeat,
    shrink,
    step_of,
)
from fxfault.sites.layout_runs import (
    as_batch,
    observing,
    orders,
    parts,
    random_state_kept,
    taken,
)
from fxfault.sites.live_values import SampleRows
from fxfault.sites.measuring import versions_of
from fxfault.sites.site import FaultSite

if TYPE_CHECKING:
    from torch import nn

    from fxfault.sites.fault_sites import FaultSites

# Numbers of samples of the batch, and of the batch of another size. Primes come first, as few
# dimensions are multiples of them by chance; the others are for networks that take pairs or groups.
SIZES = ((7, 5), (8, 4), (12, 6))


class SampleLayouts:
    """Measures how samples lie at the sites of a model.

    Attributes:
        why_not: why measuring failed, as a sentence; None if it did not, or was not tried.
    """

    def __init__(self) -> None:
        self.why_not: str | None = None
        self._key: Any = None

    def measure(self, sites: FaultSites, inputs: Sequence[Any]) -> bool:
        """Measure, unless that was done with these inputs and parameters.

        Modes, settings, clock, statistics, buffers and random states are restored afterwards.

        Args:
            sites: the sites of the model; nothing strikes meanwhile.
            inputs: the positional inputs of the model, a batch.

        Returns:
            Whether the arrangement of any site changed.
        """
        key = _key_of(sites, inputs)
        if key == self._key:
            return False
        before = [site.seen.arrangement for site in sites]
        error = None
        for samples, other in (*SIZES, (0, 0)):
            try:
                found, self.why_not = _measured(sites, inputs, samples, other)
                break
            # A model may raise anything for so many samples.
            except Exception as raised:
                error = raised
        else:
            text = " ".join(str(error).split())
            self.why_not = f"it fails on batches of other sizes ({text[:200]})"
            return False
        for site, arrangement in zip(sites, found, strict=True):
            if arrangement is not None:
                site.seen.arrangement = arrangement
        self._key = key
        return before != [site.seen.arrangement for site in sites]


def measure_on(sites: FaultSites, loader: Iterable[Any], device: Any) -> None:
    """Measure on the first samples of some data, whatever its batch size.

    Args:
        sites: the sites of the model, which may be in any mode.
        loader: batches, see `fxfault.data.batches`.
        device: the device of the model.
    """
    with random_state_kept():  # A loader draws when it starts.
        inputs = _first_samples(loader, sites.clock.model)
    if inputs is not None:
        sites.measure_layouts(*pytree.tree_map(lambda x: _moved(x, device), inputs))


def _moved(value: Any, device: Any) -> Any:
    return value.to(device) if hasattr(value, "to") else value


def _first_samples(loader: Iterable[Any], model: nn.Module) -> tuple[Any, ...] | None:
    """As many samples as needed, from the first batches; None if there are none."""
    parts: list[Tensor] = []
    for given in loader:
        inputs = positional(take_apart(given, forward=model.forward), model)
        (only,) = inputs if len(inputs) == 1 else (None,)
        if not isinstance(only, Tensor) or only.dim() == 0:
            return inputs if not parts else (parts[0],)
        if parts and (only.shape[1:] != parts[0].shape[1:] or only.dtype != parts[0].dtype):
            break
        parts.append(only[: SIZES[-1][0]])
        if sum(map(len, parts)) >= SIZES[-1][0]:
            break
    return (torch.cat(parts),) if parts else None


def positional(batch: Batch, model: nn.Module) -> tuple[Any, ...]:
    """The inputs of a batch by position, those by keyword in their places in the forward.

    >>> net = torch.nn.TransformerEncoderLayer(8, 2)
    >>> batch = Batch((torch.zeros(3, 1, 8),), {"src_key_padding_mask": torch.zeros(1, 3)}, None, 1)
    >>> [type(x).__name__ for x in positional(batch, net)]
    ['Tensor', 'NoneType', 'Tensor']

    Args:
        batch: the batch.
        model: the model that takes it.

    Raises:
        SiteError: the forward takes a keyword that has no place.
    """
    if not batch.keywords:
        return batch.inputs
    try:
        signature = inspect.signature(model.forward)
        bound = signature.bind(*batch.inputs, **batch.keywords)
    except (TypeError, ValueError) as error:
        raise SiteError(f"the forward of the network does not take the batch: {error}") from error
    bound.apply_defaults()
    if bound.kwargs:
        given = [name for name in batch.keywords if name in bound.kwargs]
        if given:
            raise SiteError(
                f"the forward of the network takes {', '.join(given)} by keyword only; give it "
                "parameters with a place, as samples are found in inputs by position"
            )
    values = list(bound.args)
    last = max(list(bound.arguments).index(name) for name in batch.keywords)
    return tuple(values[: max(last + 1, len(batch.inputs))])


# -- one measurement ------------------------------------------------------------------------


def _measured(
    sites: FaultSites, inputs: Sequence[Any], samples: int, other: int
) -> tuple[list[Arrangement | None], str | None]:
    """Run and compare.

    Returns:
        The arrangement of each site, None if it was not reached or is random; and why a site that
        is random tells nothing.
    """
    given = batch_size_of(inputs)
    batch = samples or given
    inputs = as_batch(inputs, given, batch) if samples else tuple(inputs)
    seen: list[list[Call]] = [[] for _ in sites]
    swaps = orders(batch)
    with observing(sites) as run:
        run(inputs, _recorder(seen, batch))
        for order in swaps:
            run(taken(inputs, batch, order), _comparer(seen, order, exchange))
        for some in parts(batch, other) if other else ():
            run(taken(inputs, batch, some), _comparer(seen, some, shrink))
        if any(call.why == ORDER for calls in seen for call in calls):
            run(inputs, _comparer(seen, torch.arange(batch), repeat), again=True)
        if swaps and any(map(_is_open, seen)):
            _look_before(sites, seen, run, inputs, batch, swaps[0])
    found: list[Arrangement | None] = []
    last: SampleRows | None = None
    for calls in seen:
        each = [arrangement_of(call, last) for call in calls]
        found.append(None if _is_random(calls) else common_arrangement(each))
        sure = [call.candidates[0] for call in calls if len(call.candidates) == 1]
        last = sure[0] if sure else last
    random_at = next((s.name for s, c in zip(sites, seen, strict=True) if _is_random(c)), None)
    return found, None if random_at is None else f"{RANDOM} ({random_at})"


def _is_random(calls: list[Call]) -> bool:
    return any(call.why == RANDOM for call in calls)


def _is_open(calls: list[Call]) -> bool:
    return any(len(call.candidates) > 1 for call in calls)


def _look_before(
    sites: FaultSites,
    seen: list[list[Call]],
    run: Callable[..., None],
    inputs: Any,
    batch: int,
    order: Tensor,
) -> None:
    """Judge activations with several candidates by the inputs of their layers.

    If an activation is the same for all samples (a dead layer), its layer's input mostly is not;
    both have the same shape.
    """
    latest: dict[str, Any] = {}
    hooks = []
    for path in {site.module_path for site in sites if _is_open(seen[site.index])}:
        try:
            layer = sites.clock.model.get_submodule(path)
        except AttributeError:  # The model is itself a target.
            continue

        def keep(_: nn.Module, given: Any, path: str = path) -> None:
            latest[path] = getattr(given[0], "value", given[0]) if given else None

        hooks.append(layer.register_forward_pre_hook(keep))
    before: dict[tuple[int, int], Tensor] = {}
    counts: dict[tuple[bool, int], int] = {}

    def look(site: FaultSite, x: Any, exchanged: bool) -> Tensor:
        number = counts[exchanged, site.index] = counts.get((exchanged, site.index), -1) + 1
        found, calls = latest.get(site.module_path), seen[site.index]
        if isinstance(found, Tensor) and number < len(calls):
            if not exchanged:
                before[site.index, number] = found.detach().clone()
            elif (site.index, number) in before:
                decide(calls[number], before[site.index, number], found, order)
        return getattr(x, "value", x)  # type: ignore[no-any-return]

    try:
        run(inputs, lambda site, x: look(site, x, exchanged=False))
        run(taken(inputs, batch, order), lambda site, x: look(site, x, exchanged=True))
    finally:
        for hook in hooks:
            hook.remove()


def _recorder(seen: list[list[Call]], batch: int) -> Callable[[FaultSite, Any], Tensor]:
    def record(site: FaultSite, x: Any) -> Tensor:
        value = getattr(x, "value", x)
        call = Call(value.detach().clone(), step_of(x))
        call.candidates = candidates_for(tuple(value.shape), batch)
        if not call.candidates:
            call.why = NO_SHARE.format(tuple(value.shape), batch)
        seen[site.index].append(call)
        return value  # type: ignore[no-any-return]

    return record


def _comparer(
    seen: list[list[Call]], samples: Tensor, compare: Any
) -> Callable[[FaultSite, Any], Tensor]:
    counts = [0] * len(seen)

    def observe(site: FaultSite, x: Any) -> Tensor:
        value = getattr(x, "value", x)
        calls, number = seen[site.index], counts[site.index]
        counts[site.index] += 1
        if number >= len(calls):
            for call in calls:
                call.candidates, call.why = [], CALLS
            return value  # type: ignore[no-any-return]
        same = compare(calls[number], value, samples)
        return value if same is None else same

    return observe


def _key_of(sites: FaultSites, inputs: Sequence[Any]) -> Any:
    """What a measurement depends on."""
    digest = hashlib.blake2b()
    for leaf in pytree.tree_leaves(inputs):
        if isinstance(leaf, Tensor):
            part = leaf.detach()[: SIZES[-1][0]] if leaf.dim() else leaf.detach()
            digest.update(repr((part.dtype, tuple(leaf.shape))).encode())
            digest.update(part.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            digest.update(type(leaf).__name__.encode())
    return digest.hexdigest(), versions_of(sites.clock.model.parameters())


def batch_size_of(inputs: Sequence[Any]) -> int:
    """Number of samples in the inputs of a model; 1 if there is no tensor among them."""
    leaves = [x for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor) and x.dim() > 0]
    # By the first tensor with the most dimensions: a temperature or a table of weights among the
    # inputs has fewer than the samples.
    return max(leaves, key=lambda x: x.dim()).shape[0] if leaves else 1
