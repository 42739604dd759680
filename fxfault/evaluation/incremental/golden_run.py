"""The fault-free run that incremental runs start from.

It finds out what may be done with the model at all (whether its samples may leave their batches),
what each part of it costs, and keeps activations within the budget.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_hooks

from fxfault.errors import DataError
from fxfault.evaluation.full.predictions import (
    OnBatch,
    Predictions,
    labels_of,
    modules_of,
    own_forwards,
    ranked,
    scores_of,
    state_of,
)
from fxfault.evaluation.incremental.batch_independence import (
    Independence,
    independence,
    sizes_that_agree,
)
from fxfault.evaluation.incremental.golden_cache import (
    INPUT,
    Candidate,
    GoldenCache,
    bytes_of,
    choose,
    is_out_of_memory,
)
from fxfault.faults.layouts import Layout
from fxfault.functional import fault_inject
from fxfault.passes.segments import split_at_sites
from fxfault.sites.fault_sites import faults_of
from fxfault.sites.live_values import (
    Role,
    Rows,
    SampleCount,
    SampleRows,
    gather,
    leaves_of,
    roles_of,
    same_bits,
    structure_of,
    with_leaves,
)
from fxfault.sites.sample_layouts import measure_on
from fxfault.sites.site import FaultSite

NO_GRAPH = "no graph shows a place in its forward to start from"
HOOKS = "there are forward hooks, which a run that starts in the middle would pass by"
CHANGES = "its forward gives other results each time, or changes parameters or buffers"
KEPT = "the forward of {} keeps its own code, which may ask about several samples at once"
OWN_FORWARD = "its graph is not what runs: {}"
MEET = "its samples are not independent at {}: {}"
SHARED = "what the samples of a batch share at {} changes from batch to batch"
NO_MEMORY = "there is no memory to try it on batches of other sizes"
OTHER_SIZES = "it fails on batches of other sizes ({})"

MOST_SIZES = 4  # Batches of more sizes than that stay as they are.


@dataclass(frozen=True)
class Cut:
    """A place where the forward can start.

    Attributes:
        site: name of the site that strikes there; `INPUT` for the model's input.
        structure: of the state there; see `structure_of`.
        roles: of its leaves; None where samples cannot be taken out of their batch.
        seconds: from the data of one batch to here.
        bytes: of the state of one batch.
    """

    site: str
    structure: Any
    roles: tuple[Role, ...] | None
    seconds: float
    bytes: int

    def assemble(self, parts: Sequence[tuple[Sequence[Any], Tensor]], size: int) -> list[Any]:
        """Make the leaves of a batch from samples of others.

        Args:
            parts: leaves of some batches, and which samples to take of each.
            size: samples in all.
        """
        assert self.roles is not None
        made: list[Any] = []
        for place, role in enumerate(self.roles):
            if isinstance(role, SampleRows):
                rows: list[Rows] = [(leaves[place], samples) for leaves, samples in parts]
                made.append(gather(rows, role))
            elif isinstance(role, SampleCount):
                made.append(role.each * size)
            else:
                made.append(parts[0][0][place])
        return made


@dataclass
class GoldenRun:
    """What is known of the fault-free run.

    Attributes:
        predictions: of the data; None while it is going on.
        sizes: of its batches.
        segments: the parts of the model between the cuts.
        cuts: the start of each of them.
        cache: states at cuts.
        why_whole: why batches have to stay whole; None: their samples may leave them.
        mixing: whether samples may influence each other, so that none is sure to stay as it was.
        pack_sizes: sizes of the batches that struck samples may be put into, ascending.
        alone: batches that stay whole all the same, as another size is rounded in another way.
        layouts: of the sites of which it is known which samples they strike.
    """

    segments: tuple[Any, ...]
    cuts: tuple[Cut, ...]
    cache: GoldenCache
    why_whole: str | None
    mixing: bool
    pack_sizes: tuple[int, ...]
    layouts: dict[str, Layout]
    sizes: list[int] = field(default_factory=list)
    alone: set[int] = field(default_factory=set)
    predictions: Predictions | None = None

    @property
    def offsets(self) -> list[int]:
        """Number of the first sample of each batch, and last of all samples."""
        return [0, *itertools.accumulate(self.sizes)]


# -- states ---------------------------------------------------------------------------------


def advance(model: nn.Module, segments: Sequence[Any], number: int, state: Any) -> Any:
    """Run one segment.

    Args:
        model: transformed.
        segments: of it.
        number: of the segment to run.
        state: at its start.

    Returns:
        The state at the start of the next one, or what the model returns.
    """
    site = segments[number].site
    if site is not None:
        state = _struck(site, state)
    result = segments[number].function(model, *state)
    return result if number + 1 == len(segments) else _captured(segments[number + 1].site, result)


def _struck(site: FaultSite, state: Any) -> Any:
    output = site.output
    assert output is not None
    if output.returns_quant_tensor:
        output.hand_over(state[0])
        return (fault_inject(state[0], site), *state[1:])
    *state, parameters = state
    if parameters is not None:  # Of the QuantTensor that the plain value came out of.
        output.hand_over(parameters._replace(value=state[0]))
    return (fault_inject(state[0], site), *state[1:])


def _captured(site: FaultSite, state: Any) -> Any:
    """A state, and last the scale and so on of a plain value that is about to be struck."""
    output = site.output
    assert output is not None
    kept = output.kept
    output.forget()
    if output.returns_quant_tensor:
        return state
    is_of_value = kept is not None and kept.value is state[0]
    return (*state, kept._replace(value=None) if is_of_value else None)


# -- the run --------------------------------------------------------------------------------


def why_never_incremental(model: nn.Module) -> str | None:
    """Why a model can only be run in full, as far as one sees without running it."""
    if len(split_at_sites(model)) < 2:
        return NO_GRAPH
    changed = own_forwards(modules_of(model))
    if changed:
        return OWN_FORWARD.format(changed[0])
    hooks = [model._forward_hooks, model._forward_pre_hooks]
    hooks += [torch_hooks._global_forward_hooks, torch_hooks._global_forward_pre_hooks]
    return HOOKS if any(hooks) else None


def record(
    model: Any,
    loader: Iterable[Any],
    device: torch.device | str,
    budget: int,
    on_batch: OnBatch | None,
) -> GoldenRun | None:
    """Run a model without faults and keep what later runs start from.

    Args:
        model: transformed, in eval mode with its sites disabled, under `no_grad`.
        loader: gives the same batches each time.
        device: where the model is.
        budget: bytes for activations.
        on_batch: called after each batch.

    Returns:
        The run; None where the model does not give the same results each time.

    Raises:
        DataError: there is no sample, or the model returns no scores.
    """
    started = time.perf_counter()
    inputs = next((inputs.to(device) for inputs, _ in loader), None)
    if inputs is None:
        raise DataError("accuracy: the data has no sample")
    loading = time.perf_counter() - started
    segments = split_at_sites(model)
    measure_on(faults_of(model), loader, device)
    with _numbered(model, len(inputs)):
        if not _repeats(model, segments, inputs):
            return None
        found = _with_layouts(model, _examine(model, segments, inputs))
        survey = _Survey(model, segments, inputs, found, loading)
    kept = survey.choose(budget, _count(loader))
    golden = GoldenRun(
        *_split(model, survey.cuts, kept),
        cache=GoldenCache(kept),
        why_whole=found.why_not,
        mixing=found.mixing,
        pack_sizes=found.sizes,
        layouts={k: v for k, v in survey.layouts.items() if k not in found.mixed},
    )
    _go_through(model, loader, device, golden, on_batch)
    if golden.cache.sites != tuple(kept):  # Memory gave out.
        golden.segments, golden.cuts = _split(model, survey.cuts, golden.cache.sites)
    return golden


def _split(
    model: nn.Module, cuts: Sequence[Cut], kept: Collection[str]
) -> tuple[tuple[Any, ...], tuple[Cut, ...]]:
    """Segments that start where states are kept, and their cuts."""
    segments = split_at_sites(model, kept)
    return segments, tuple(cut for cut in cuts if cut.site == INPUT or cut.site in kept)


def _numbered(model: nn.Module, samples: int) -> AbstractContextManager[None]:
    """Let forwards not move the clock; no site strikes, so that any numbers will do."""
    return faults_of(model).samples(torch.arange(samples))


def _count(loader: Any) -> int:
    """Number of batches."""
    try:
        return len(loader)
    except TypeError:  # An iterable without a length.
        return sum(1 for _ in loader)


def _repeats(model: nn.Module, segments: Sequence[Any], inputs: Tensor) -> bool:
    """Whether the model, and its segments one by one, give the same twice and change nothing."""
    before = state_of(model)
    whole = scores_of(model(inputs.clone()), len(inputs))
    state: Any = (inputs.clone(),)
    for number in range(len(segments)):
        state = advance(model, segments, number, state)
    return same_bits(whole, scores_of(state, len(inputs))) and state_of(model) == before


def _examine(model: Any, segments: Sequence[Any], inputs: Tensor) -> Independence:
    """Whether samples may leave their batch."""
    kept = [path for segment in segments for path in segment.kept]
    # Calls that give a part other arguments than it was traced for run its Python code.
    kept += [path for path, part in model.named_modules() if part.__dict__.get("_ran_own_forward")]
    if kept:
        return Independence(KEPT.format(", ".join(kept[:3])), mixing=True)
    try:
        return independence(model, inputs)
    # Whatever a model's code, or torch, raises for a batch that it does not expect.
    except Exception as error:
        if is_out_of_memory(error):
            return Independence(NO_MEMORY, mixing=True)
        return Independence(OTHER_SIZES.format(" ".join(str(error).split())), mixing=True)


def _with_layouts(model: Any, found: Independence) -> Independence:
    """What was found, and what the layouts of the sites tell of samples that meet each other."""
    if found.why_not is not None and found.mixing:
        return found
    for site in faults_of(model):
        lies = site.seen.arrangement
        if lies is None or not lies.mixing:
            continue
        why = lies.why_shared or lies.why_guessed
        why = why or f"its activation belongs to the batch: {lies.why_batch}"
        return Independence(MEET.format(site.name, why), mixing=True)
    return found


class _Survey:
    """What each place costs, and whether samples can be taken out of their batch there.

    Beside the batch itself two others run: a smaller one, which shows by its shapes what belongs
    to a sample, and one in reverse order, which is put together anew at every cut.
    """

    def __init__(
        self,
        model: Any,
        segments: Sequence[Any],
        inputs: Tensor,
        found: Independence,
        loading: float,
    ) -> None:
        self.segments = segments
        self.whole_batches = found.why_not is not None
        self.cuts: list[Cut] = []
        self.layouts: dict[str, Layout] = {}
        self.batch = len(inputs)
        # Whether samples lie in one piece wherever that was measured, as in most networks.
        lies = [site.seen.arrangement for site in faults_of(model)]
        self.is_plain = all(one is None or one.outer == 1 for one in lies)
        self.order = torch.arange(self.batch).flip(0)
        self.some = torch.arange(min(found.sizes, default=1)) % self.batch
        if len(self.some) == self.batch:
            self.some = torch.arange(2 * self.batch) % self.batch
        others = [inputs[samples.to(inputs.device)] for samples in (self.order, self.some)]
        states = [(inputs,)] if self.whole_batches else [(x,) for x in (inputs, *others)]
        seconds = loading
        for number in range(len(segments)):
            self._look(number, states, seconds)
            started = _now(inputs.device)
            states[0] = advance(model, segments, number, states[0])
            seconds += _now(inputs.device) - started
            for place, samples in enumerate((self.order, self.some)[: len(states) - 1], start=1):
                with _numbered(model, len(samples)):
                    states[place] = advance(model, segments, number, states[place])
        if not self.whole_batches:
            scores, turned = (scores_of(state, self.batch) for state in states[:2])
            if not same_bits(turned, scores[self.order.to(scores.device)]):
                # What is shared between two values was torn apart at some cut.
                self.cuts[1:] = [replace(cut, roles=None) for cut in self.cuts[1:]]

    def _look(self, number: int, states: list[Any], seconds: float) -> None:
        site = self.segments[number].site
        leaves = leaves_of(states[0])
        cut = Cut(
            site=INPUT if site is None else site.name,
            structure=structure_of(states[0]),
            roles=None if self.whole_batches else self._roles(site, leaves, states),
            seconds=seconds,
            bytes=bytes_of(leaves),
        )
        if site is not None:
            value = getattr(states[0][0], "value", states[0][0])
            layout = site.layout_of(tuple(value.shape), self.batch)
            if site.seen.arrangement is None or site.seen.arrangement.why_batch is None:
                self.layouts[site.name] = layout
        if cut.roles is not None:
            turned = cut.assemble([(leaves, self.order)], self.batch)
            if all(map(same_bits, turned, leaves_of(states[1]))):
                states[1] = with_leaves(states[0], iter(turned))
            else:
                cut = replace(cut, roles=None)
        self.cuts.append(cut)

    def _roles(
        self, site: FaultSite | None, leaves: list[Any], states: list[Any]
    ) -> tuple[Role, ...] | None:
        """How each leaf belongs to samples, so that the reversed batch has the reversed leaf."""
        found: list[Role] = []
        for leaf, turned, other in zip(leaves, *map(leaves_of, states[1:]), strict=True):
            try:
                roles = roles_of(leaf, self.batch, other, len(self.some))
            except ValueError:  # Not made of samples in a way that we know.
                return None
            if len(roles) > 1:
                roles = self._explaining(site, roles, leaf, turned)
            if not roles:
                return None
            found.append(roles[0])
        return tuple(found)

    def _explaining(
        self, site: FaultSite | None, roles: list[Role], leaf: Any, turned: Any
    ) -> list[Role]:
        """Which roles explain a leaf; of several only one that is likely enough, first."""
        roles = [role for role in roles if self._explains(role, leaf, turned)]
        if len(roles) < 2 or self.is_plain:
            return roles
        # The same for all samples, or there is only one: it lies as the site's activation does.
        lies = None if site is None else site.seen.arrangement
        if lies is None or lies.why_batch is not None:
            return []
        return [r for r in roles if r == SampleRows(lies.dim, lies.each, lies.outer)]

    def _explains(self, role: Role, leaf: Any, turned: Any) -> bool:
        assert isinstance(role, SampleRows)
        return same_bits(gather([(leaf, self.order)], role), turned)

    def choose(self, budget: int, batches: int) -> list[str]:
        """Sites at which states should be kept, within a budget of bytes."""
        starts = [n for n, segment in enumerate(self.segments) for _ in segment.sites]
        candidates = [
            Candidate(number, cut.bytes * batches, cut.seconds)
            for number, cut in enumerate(self.cuts)
            if self.whole_batches or cut.roles is not None
        ]
        return [self.cuts[place].site for place in choose(candidates, starts, budget)]


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _go_through(
    model: Any,
    loader: Iterable[Any],
    device: torch.device | str,
    golden: GoldenRun,
    on_batch: OnBatch | None,
) -> None:
    """Run all batches, and note what comes out and what is kept."""
    top, labels = [], []
    agree: dict[int, bool] = {}
    for number, (images, given) in enumerate(loader):
        inputs, done = images.to(device), sum(golden.sizes)
        right = labels_of(given, done)
        with _numbered(model, len(right)):
            if len(right) not in agree:
                agree[len(right)] = not agree or _agrees(model, inputs, golden, len(agree))
            if not agree[len(right)]:
                golden.alone.add(number)
            output = _golden_batch(model, inputs, number, golden)
        scores = scores_of(output, len(right))
        top.append(ranked(scores))
        labels.append(labels_of(right, done, scores.shape[1]))
        golden.sizes.append(len(right))
        if on_batch is not None:
            on_batch(len(right))
    classes = scores.shape[1]
    golden.predictions = Predictions(torch.cat(top).cpu(), torch.cat(labels).cpu(), None, classes)


def _agrees(model: Any, inputs: Tensor, golden: GoldenRun, seen: int) -> bool:
    """Whether samples of a batch of another size may be put with those of the first."""
    if golden.why_whole is not None:
        return True
    return seen < MOST_SIZES and sizes_that_agree(model, inputs, golden.pack_sizes)


def _golden_batch(model: Any, inputs: Tensor, number: int, golden: GoldenRun) -> Any:
    state: Any = (inputs,)
    for place, cut in enumerate(golden.cuts):
        if cut.site in golden.cache.sites:
            leaves = leaves_of(state)
            golden.cache.keep(cut.site, leaves)
            if number > 0 and golden.why_whole is None:
                _check_shared(golden, cut, leaves)
        state = advance(model, golden.segments, place, state)
    return state


def _check_shared(golden: GoldenRun, cut: Cut, leaves: Sequence[Any]) -> None:
    """What belongs to no sample must be the same in all batches."""
    assert cut.roles is not None
    if cut.site not in golden.cache.sites:
        return
    for role, leaf, first in zip(cut.roles, leaves, golden.cache.leaves(cut.site, 0), strict=True):
        if role is None and not same_bits(leaf, first):
            golden.why_whole, golden.mixing = SHARED.format(cut.site), True
