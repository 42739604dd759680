"""Which elements of each activation belong to which sample, measured on clean data.

A few samples are run, then the same ones in another order, then some of them as a batch of another
size. At each site every dimension that could hold the samples, in consecutive rows or in several
pieces, is a candidate; it is right where the activation of the exchanged batch is the exchanged
activation, bit for bit, and where the batch of another size has the same share for each sample:

    two views, torch.cat([x, x.flip(-1)])     (2N, F)     a0 a1 a2 b0 b1 b2
    the batch with its samples 0 and 2 swapped            a2 a1 a0 b2 b1 b0   every N-th row

What no candidate explains (samples sorted by their length or score, a choice among samples) does
not belong to samples: its faults are those of the batch.

Kernels may round by the place of a sample in the batch, which a quantiser seldom shows, and then
as one step. So where no candidate fits bit for bit, one does whose differences are single steps, at
no more than one element in a hundred, and no more than a tenth of those that exchanging samples
makes at all: a wrong candidate compares samples with others, which differ nearly everywhere. What
fits goes on as the exchanged activation, so that roundings do not add up along the network.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxfault.faults.bits import same_bits
from fxfault.faults.layouts import CONSTANT, Arrangement
from fxfault.faults.random_numbers import counter_hash, stream_key, uniform_int63, uniform_open
from fxfault.sites.live_values import SampleRows, gather
from fxfault.sites.measuring import armed_at_zero
from fxfault.sites.site import FaultSite

if TYPE_CHECKING:
    from torch import nn

    from fxfault.sites.fault_sites import FaultSites
    from fxfault.sites.site import FaultSite

# Samples that are run, and of how many the batch of another size has. Primes, as few dimensions
# are multiples of them by chance; networks that take pairs or groups of samples get the others.
SIZES = ((7, 5), (8, 4), (12, 6))

# Of the elements, how many may differ by one step where kernels round by place.
RARE = 0.01
# And of those that exchanging samples changes, how many.
UNEXPLAINED = 0.1

# How far roundings may move what comes into a layer, of its largest value.
ROUNDING = 1e-3

SHARED = "they influence each other (a sample's values moved when others left the batch)"
ORDER = "its values follow the order of the samples in the batch"
NO_SHARE = "no dimension of its shape {} for {} samples holds a share for each"
OTHER_SIZE = "its share for each sample changes with their number"
SAME = "what comes in is the same for all samples"
RANDOM = "its forward gives other results each time"
CALLS = "its calls in one forward lie in different ways"


class SampleLayouts:
    """Measures how samples lie at the sites of a model.

    Attributes:
        why_not: why it could not be measured, as a sentence; None: it was, or was not tried.
    """

    def __init__(self) -> None:
        self.why_not: str | None = None
        self._key: Any = None

    def measure(self, sites: FaultSites, inputs: Sequence[Any]) -> bool:
        """Measure, unless that was done with these inputs and parameters.

        Modes, settings, clock, statistics, buffers and random states are as before afterwards.

        Args:
            sites: of the model; not struck meanwhile.
            inputs: what it is called with: a batch.

        Returns:
            Whether a site has another arrangement than before.
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
            # Whatever a model raises for so many samples.
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
    """Measure on the first samples of some data, the same whatever its batch size.

    Args:
        sites: of the model, in whatever mode.
        loader: gives batches of (inputs, labels).
        device: where the model is.
    """
    with _random_state_kept():  # A loader draws when it starts.
        inputs = _first_samples(loader)
    if inputs is not None:
        sites.measure_layouts(inputs.to(device))


def _first_samples(loader: Iterable[Any]) -> Any:
    """As many samples as are needed, out of the first batches; None where there are none."""
    parts: list[Tensor] = []
    for inputs, *_ in loader:
        if not isinstance(inputs, Tensor) or inputs.dim() == 0:
            return inputs if not parts else parts[0]
        if parts and (inputs.shape[1:] != parts[0].shape[1:] or inputs.dtype != parts[0].dtype):
            break
        parts.append(inputs[: SIZES[-1][0]])
        if sum(map(len, parts)) >= SIZES[-1][0]:
            break
    return torch.cat(parts) if parts else None


# -- one measurement ------------------------------------------------------------------------


@dataclass
class _Seen:
    """What one call of a site showed.

    Attributes:
        values: of the first run.
        step: of its quantiser, the largest.
        candidates: that explain all runs so far, bit for bit or nearly; None before any.
        why: why there are none.
        shared: whether samples influence each other.
        changes: whether any run made other values.
    """

    values: Tensor
    step: float
    candidates: list[SampleRows] = field(default_factory=list)
    why: str | None = None
    shared: bool = False
    changes: bool = False


def _measured(
    sites: FaultSites, inputs: Sequence[Any], samples: int, other: int
) -> tuple[list[Arrangement | None], str | None]:
    """Run and compare; None for a site that was not reached, or why it tells nothing."""
    given = batch_size_of(inputs)
    batch = samples or given
    inputs = _as_batch(inputs, given, batch) if samples else tuple(inputs)
    seen: list[list[_Seen]] = [[] for _ in sites]
    orders = _orders(batch)
    with _observing(sites) as run:
        run(inputs, _recorder(seen, batch))
        for order in orders:
            run(_taken(inputs, batch, order), _comparer(seen, batch, order, compare=_exchange))
        for some in _parts(batch, other) if other else ():
            run(_taken(inputs, batch, some), _comparer(seen, batch, some, compare=_shrink))
        if any(call.why == ORDER for calls in seen for call in calls):
            run(inputs, _comparer(seen, batch, torch.arange(batch), compare=_repeat), again=True)
        if orders and any(map(_is_open, seen)):
            _look_before(sites, seen, run, inputs, batch, orders[0])
    found: list[Arrangement | None] = []
    last: SampleRows | None = None
    for calls in seen:
        each = [_arrangement(call, last) for call in calls]
        found.append(None if _is_random(calls) else _common(each))
        sure = [call.candidates[0] for call in calls if len(call.candidates) == 1]
        last = sure[0] if sure else last
    random_at = next((s.name for s, c in zip(sites, seen, strict=True) if _is_random(c)), None)
    return found, None if random_at is None else f"{RANDOM} ({random_at})"


def _is_random(calls: list[_Seen]) -> bool:
    return any(call.why == RANDOM for call in calls)


def _is_open(calls: list[_Seen]) -> bool:
    return any(len(call.candidates) > 1 for call in calls)


def _look_before(
    sites: FaultSites,
    seen: list[list[_Seen]],
    run: Callable[..., None],
    inputs: Any,
    batch: int,
    order: Tensor,
) -> None:
    """Tell by what comes into the layers how those lie whose activations several ways explain.

    An activation that is the same for all samples (a dead layer) mostly comes of values that are
    not. What comes in has the shape of what comes out.
    """
    ways = {
        site.module_path for site in sites if any(len(c.candidates) > 1 for c in seen[site.index])
    }
    latest: dict[str, Any] = {}
    hooks = []
    for path in ways:
        try:
            layer = sites.clock.model.get_submodule(path)
        except AttributeError:  # A model that is itself a target.
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
                _decide(calls[number], before[site.index, number], found, order)
        return getattr(x, "value", x)  # type: ignore[no-any-return]

    try:
        run(inputs, lambda site, x: look(site, x, exchanged=False))
        run(_taken(inputs, batch, order), lambda site, x: look(site, x, exchanged=True))
    finally:
        for hook in hooks:
            hook.remove()


def _decide(call: _Seen, before: Tensor, exchanged: Tensor, order: Tensor) -> None:
    """Keep the candidates that explain what came into the layer, up to roundings."""
    if not (before.shape == exchanged.shape == call.values.shape) or not before.numel():
        return
    scale = before.double().abs().max()
    errors = {
        role: (gather([(before, order)], role).double() - exchanged.double()).abs().max()
        for role in call.candidates
    }
    good = [role for role, error in errors.items() if error <= ROUNDING * scale]
    call.candidates = good or call.candidates


def _recorder(seen: list[list[_Seen]], batch: int) -> Callable[[FaultSite, Any], Tensor]:
    def record(site: FaultSite, x: Any) -> Tensor:
        value = getattr(x, "value", x)
        call = _Seen(value.detach().clone(), _step_of(x))
        call.candidates = _candidates(tuple(value.shape), batch)
        if not call.candidates:
            call.why = NO_SHARE.format(tuple(value.shape), batch)
        seen[site.index].append(call)
        return value  # type: ignore[no-any-return]

    return record


def _comparer(
    seen: list[list[_Seen]], batch: int, samples: Tensor, compare: Any
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
        same = compare(calls[number], value, batch, samples)
        return value if same is None else same

    return observe


def _exchange(call: _Seen, value: Tensor, batch: int, samples: Tensor) -> Tensor | None:
    """Keep the candidates under which an exchanged batch gives the exchanged activation.

    Returns:
        That activation; None where no candidate gives it.
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


def _repeat(call: _Seen, value: Tensor, batch: int, samples: Tensor) -> Tensor | None:
    """See whether an activation is another one with other random numbers."""
    if call.why == ORDER and not same_bits(value, call.values):
        call.why = RANDOM
    return None


def _shrink(call: _Seen, value: Tensor, batch: int, samples: Tensor) -> Tensor | None:
    """Keep the candidates that have the same share of each sample in a batch of another size."""
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


def _candidates(shape: tuple[int, ...], batch: int) -> list[SampleRows]:
    """Every way in which samples may lie along a dimension; consecutive rows come first."""
    return [
        SampleRows(dim, size // batch // outer, outer)
        for dim, size in enumerate(shape)
        if size and size % batch == 0
        for outer in range(1, size // batch + 1)
        if size // batch % outer == 0
    ]


def _nearly(a: Tensor, b: Tensor, step: float, most: float) -> bool:
    """Whether two activations differ as kernels that round by place make them differ."""
    differing = _differing(a, b)
    if differing > min(most, max(1.0, RARE * a.numel())):
        return False
    if not a.is_floating_point():
        return False
    return bool(((a.double() - b.double()).abs() <= 1.001 * step).all())


def _differing(a: Tensor, b: Tensor) -> int:
    return int((a != b).sum()) if a.shape == b.shape else max(a.numel(), b.numel())


def _step_of(x: Any) -> float:
    scale = getattr(x, "scale", None)
    return float(scale.detach().max()) if isinstance(scale, Tensor) and scale.numel() else 0.0


def _arrangement(call: _Seen, last: SampleRows | None) -> Arrangement:
    if not call.candidates:
        why = call.why or ORDER
        return Arrangement(why_batch=why if call.changes else CONSTANT)
    # Where several explain all, as for constants, the one that was found before it does.
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


def _common(calls: Sequence[Arrangement]) -> Arrangement | None:
    """What all calls of a site in one forward have in common."""
    if not calls:
        return None
    ways = {(a.dim, a.outer, a.each if a.outer > 1 else 0, a.why_batch is None) for a in calls}
    if len(ways) > 1:
        return Arrangement(why_batch=CALLS)
    shared = next((a.why_shared for a in calls if a.why_shared is not None), None)
    return replace(calls[0], why_shared=shared)


# -- running --------------------------------------------------------------------------------


def _orders(batch: int) -> list[Tensor]:
    """Orders in which the samples run: one of our own drawing, and neighbours exchanged."""
    places = torch.arange(batch)
    if batch < 2:
        return []
    for number in range(64):
        drawn = torch.argsort(uniform_int63(stream_key("sample layouts", number), places))
        if not (drawn == places).any():  # No sample stays.
            break
    neighbours = places.clone()
    neighbours[: batch // 2 * 2] = neighbours[: batch // 2 * 2].view(-1, 2).flip(1).flatten()
    return [drawn] if torch.equal(drawn, neighbours) else [drawn, neighbours]


def _parts(batch: int, size: int) -> list[Tensor]:
    """Batches of another size: the first samples, and only others, so that each is missed once."""
    return [torch.arange(size), size + torch.arange(size) % (batch - size)]


def _taken(inputs: Sequence[Any], batch: int, samples: Tensor) -> Any:
    return pytree.tree_map(
        lambda x: _of_samples(x, batch, lambda x: x[samples.to(x.device)]), inputs
    )


def _of_samples(x: Any, batch: int, change: Callable[[Tensor], Tensor]) -> Any:
    """Change what has an entry for each sample; the rest stays."""
    return change(x) if isinstance(x, Tensor) and x.dim() > 0 and len(x) == batch else x


def _as_batch(inputs: Sequence[Any], given: int, batch: int) -> Any:
    """Make a batch of some size of one of another size.

    What is missing is made of the samples that are there, their entries moved round, so that no
    two samples are the same. Numbers that are all the same show nothing, and are drawn.
    """
    samples = torch.arange(batch) % max(1, given)
    turns = torch.arange(batch) // max(1, given)

    def change(x: Tensor) -> Tensor:
        if x.is_floating_point() and x.numel() and bool((x == x.flatten()[0]).all()):
            counters = torch.arange(batch * x[0].numel())
            drawn = uniform_open(counter_hash(stream_key("sample layouts"), counters))
            made = (4 * drawn - 2).view(batch, *x.shape[1:])
            return made.to(x.device, x.dtype)
        made = x[samples.to(x.device)]
        if given < batch and x.dim() > 1:
            for place in range(given, batch):
                moved = made[place].flatten().roll(int(turns[place]))
                made[place] = moved.view_as(made[place])
        return made

    return pytree.tree_map(lambda x: _of_samples(x, given, change), tuple(inputs))


class _State:
    """What forwards of a model may leave behind: buffers, and plain attributes of its modules.

    A spiking layer that keeps its membrane, or a counter, must start each run as it was.
    """

    def __init__(self, model: nn.Module) -> None:
        self._tables = [
            (table, {name: value for name, value in table.items() if _is_plain(value)})
            for module in model.modules()
            for table in (vars(module), module._buffers)
        ]
        values = [v for _, kept in self._tables for v in kept.values()]
        self._lists = [(v, list(v)) for v in values if isinstance(v, list)]
        tensors = [v for v in values if isinstance(v, Tensor) and not v.is_inference()]
        self._tensors = [(t, t.detach().clone(), t._version) for t in tensors]

    def restore(self) -> None:
        """Put back what has changed."""
        for table, kept in self._tables:
            for name in [n for n, v in table.items() if n not in kept and isinstance(v, Tensor)]:
                del table[name]
            for name, value in kept.items():
                if table.get(name, self) is not value:
                    table[name] = value
        for now, before in self._lists:
            if len(now) != len(before) or any(a is not b for a, b in zip(now, before, strict=True)):
                now[:] = before
        for place, (tensor, copy, version) in enumerate(self._tensors):
            if tensor._version != version:
                tensor.copy_(copy)
                self._tensors[place] = (tensor, copy, tensor._version)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (Tensor, bool, int, float, tuple, list))


@contextmanager
def _observing(sites: FaultSites) -> Iterator[Callable[..., None]]:
    """Let the model run without faults, its activations looked at; all is as before afterwards."""
    model = sites.clock.model
    modes = {module: module.training for module in model.modules()}

    def run(inputs: Any, observe: Callable[[FaultSite, Any], Tensor], again: bool = False) -> None:
        for site in sites:
            site.observer = _bound(observe, site)
        try:
            with _random_state_kept():  # So each run draws what the others draw.
                if again:  # But this one others.
                    torch.rand(3), random.random(), np.random.rand()
                model(*inputs)
        finally:
            state.restore()

    try:
        with armed_at_zero(sites), torch.no_grad(), torch._C._EnableTorchFunction():
            model.eval()
            state = _State(model)
            with torch.compiler.set_stance("force_eager"):
                yield run
    finally:
        for site in sites:
            site.observer = None
        for module, training in modes.items():
            module.training = training


def _bound(observe: Callable[[FaultSite, Any], Tensor], site: FaultSite) -> Callable[[Any], Tensor]:
    return lambda x: observe(site, x)


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """Leave the global generators as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _key_of(sites: FaultSites, inputs: Sequence[Any]) -> Any:
    """What a measurement follows from."""
    digest = hashlib.blake2b()
    for leaf in pytree.tree_leaves(inputs):
        if isinstance(leaf, Tensor):
            part = leaf.detach()[: SIZES[-1][0]] if leaf.dim() else leaf.detach()
            digest.update(repr((part.dtype, tuple(leaf.shape))).encode())
            digest.update(part.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            digest.update(type(leaf).__name__.encode())
    parameters = sites.clock.model.parameters()
    versions = [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in parameters]
    return digest.hexdigest(), versions


def batch_size_of(inputs: Sequence[Any]) -> int:
    """The samples that the inputs of a model are a batch of; 1 if there is no tensor among them."""
    leaves = [x for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor) and x.dim() > 0]
    # The one with most dimensions, the first of those: a temperature or a table of weights
    # that comes along has fewer than the samples.
    return max(leaves, key=lambda x: x.dim()).shape[0] if leaves else 1
