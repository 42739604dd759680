"""The fault-free run that incremental runs start from.

It finds out whether samples of the model may leave their batches, measures the cost of each part,
and keeps activations within the budget.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_hooks
from torch.utils import _pytree as pytree

from fxfault.data.batches import Batch
from fxfault.errors import DataError
from fxfault.evaluation.full.judging import Judge, NoRowsError, taken
from fxfault.evaluation.full.model_state import modules_of, own_forwards, state_of
from fxfault.evaluation.full.predictions import InputShapes, OnBatch, predict
from fxfault.evaluation.incremental.batch_independence import (
    Independence,
    independence,
    sizes_that_agree,
)
from fxfault.evaluation.incremental.golden_cache import (
    INPUT,
    GoldenCache,
    bytes_of,
    is_out_of_memory,
)
from fxfault.evaluation.incremental.states import Cut, advance
from fxfault.evaluation.incremental.survey import Survey
from fxfault.faults.bits import same_bits
from fxfault.faults.layouts import Layout
from fxfault.passes.segments import split_at_sites
from fxfault.sites.fault_sites import faults_of
from fxfault.sites.live_values import leaves_of
from fxfault.sites.sample_layouts import measure_on

NO_GRAPH = "no graph shows a place in its forward to start from"
HOOKS = "there are forward hooks, which a run that starts in the middle would pass by"
CHANGES = "its forward gives other results each time, or changes parameters or buffers"
KEPT = "the forward of {} keeps its own code, which may ask about several samples at once"
OWN_FORWARD = "its graph is not what runs: {}"
MEET = "its samples are not independent at {}: {}"
SHARED = "what the samples of a batch share at {} changes from batch to batch"
SHAPES = "the inputs of its samples differ in shape from batch to batch"
NO_MEMORY = "there is no memory to try it on batches of other sizes"
NO_ROWS = (
    "its outputs are not tensors with a row for each sample, which could be put together again"
)
NOT_ONE = "its batches have {}, and only one tensor can be kept and packed"
TOO_LARGE = (
    "its outputs and targets take about {:.2g} GB, more than the memory for them (cache_memory) has"
)
OTHER_SIZES = "it fails on batches of other sizes ({})"

MOST_SIZES = 4  # If the data has batches of more sizes, those of the others stay whole.


@dataclass
class GoldenRun:
    """The fault-free run.

    Attributes:
        segments: the parts of the model between the cuts.
        cuts: the start of each segment.
        cache: states at cuts.
        why_whole: why batches must stay whole; None if their samples may leave them.
        mixing: whether samples may influence each other, so that any may change.
        found: whether samples may leave their batches, and the sizes of batches for them.
        layouts: layouts of the sites for which it is known which samples they strike.
        alone: batches that stay whole anyway, as batches of their size round differently.
        result: result for the data, set at the end of the run.
    """

    segments: tuple[Any, ...]
    cuts: tuple[Cut, ...]
    cache: GoldenCache
    why_whole: str | None
    mixing: bool
    found: Independence
    layouts: dict[str, Layout]
    alone: set[int] = field(default_factory=set)
    result: Any = field(init=False)

    @property
    def pack_sizes(self) -> list[tuple[int, ...]]:
        """Sizes of the batches that struck samples may be put into, ascending, by segment."""
        starts = {cut.site: place for place, cut in enumerate(self.cuts)}
        by_part = self.found.sizes_by_part
        if starts.keys() - by_part.keys():  # A segment starts at a quantiser inside a layer.
            return [self.found.sizes] * len(self.cuts)
        sizes = [set(by_part[cut.site]) for cut in self.cuts]
        place = 0
        for part, allowed in by_part.items():
            place = starts.get(part, place)
            sizes[place] &= set(allowed)
        return [tuple(sorted(some)) for some in sizes]

    @property
    def offsets(self) -> list[int]:
        """Number of the first sample of each batch, followed by the number of all samples."""
        return [0, *itertools.accumulate(self.result.sizes)]


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


def first_batch(judge: Judge, loader: Iterable[Any], device: torch.device | str) -> Batch:
    """The first batch on a device.

    Raises:
        DataError: there is no sample.
    """
    first = next((batch.to(device) for batch in taken(judge, loader)), None)
    if first is None:
        what = "accuracy" if judge.metric is None else judge.metric.name
        raise DataError(f"{what}: the data has no sample")
    return first


def why_not_one(batch: Batch) -> str | None:
    """Why the states of a batch cannot be kept and packed, as it has not one tensor as input."""
    if len(batch.inputs) == 1 and not batch.keywords and isinstance(batch.inputs[0], Tensor):
        return None
    what = ", ".join([type(x).__name__ for x in batch.inputs] + list(batch.keywords))
    return NOT_ONE.format(f"several inputs ({what})")


def memory_left(
    model: nn.Module, first: Batch, judge: Judge, batches: int, budget: int
) -> int | str:
    """The bytes that are left for activations beside kept outputs; or why there is no room.

    Args:
        model: the model, in eval mode with its sites disabled, under `no_grad`.
        first: the first batch.
        judge: what is kept of the outputs.
        batches: number of batches.
        budget: largest number of bytes for both.
    """
    if judge.metric is None:
        return budget
    room = _bytes_of_outputs(model, first, judge) * batches
    if 2 * room > budget:
        return TOO_LARGE.format(room / 1e9)
    return budget - 2 * room  # Those of a trial come beside the golden ones.


def record(
    model: Any,
    loader: Iterable[Any],
    device: torch.device | str,
    budget: int,
    on_batch: OnBatch | None,
    judge: Judge,
) -> GoldenRun | str:
    """Run a model without faults, and keep the states that later runs start from.

    The batches have one tensor as input; see `why_not_one`.

    Args:
        model: the transformed model, in eval mode with its sites disabled, under `no_grad`.
        loader: batches of (inputs, labels), the same in each pass.
        device: the device of the model.
        budget: largest number of bytes for activations, and with a metric for outputs.
        on_batch: called after each batch.
        judge: what is kept of the outputs.

    Returns:
        The run; or why the model can only be run in full.

    Raises:
        DataError: there is no sample, or the judge cannot use the outputs.
    """
    started = time.perf_counter()
    first = first_batch(judge, loader, device)
    inputs = first.inputs[0]
    loading = time.perf_counter() - started
    segments, faults = split_at_sites(model), faults_of(model)
    measure_on(faults, taken(judge, loader), device)
    # No site strikes, so any numbers will do; numbered forwards do not move the clock.
    with faults.samples(torch.arange(len(inputs))):
        try:
            repeats = _repeats(model, segments, inputs, judge)
        except NoRowsError:
            return NO_ROWS
        if not repeats:
            return CHANGES
        found = _with_layouts(model, _examine(model, segments, inputs))
        left = memory_left(model, first, judge, count_batches(loader), budget)
        if isinstance(left, str):
            return left
        survey = Survey(model, segments, inputs, found, loading, judge)
    kept = survey.choose(left, count_batches(loader))
    golden = GoldenRun(
        *_split(model, survey.cuts, kept),
        cache=GoldenCache(kept),
        why_whole=found.why_not,
        mixing=found.mixing,
        found=found,
        layouts={k: v for k, v in survey.layouts.items() if k not in found.mixed},
    )
    _go_through(model, loader, device, golden, on_batch, judge)
    if golden.cache.sites != tuple(kept):  # Memory ran out.
        golden.segments, golden.cuts = _split(model, survey.cuts, golden.cache.sites)
    return golden


def _split(
    model: nn.Module, cuts: Sequence[Cut], kept: Collection[str]
) -> tuple[tuple[Any, ...], tuple[Cut, ...]]:
    """Segments that start at the kept states, and their cuts."""
    segments = split_at_sites(model, kept)
    return segments, tuple(cut for cut in cuts if cut.site == INPUT or cut.site in kept)


def count_batches(loader: Any) -> int:
    """Number of batches in a pass over some data."""
    try:
        return len(loader)
    except TypeError:  # An iterable without a length.
        return sum(1 for _ in loader)


def _bytes_of_outputs(model: nn.Module, batch: Batch, judge: Judge) -> int:
    """Size of the outputs and targets of a batch."""
    outputs = judge.rows(model(*batch.inputs, **batch.keywords), batch.samples)
    return bytes_of([*outputs, *pytree.tree_leaves(batch.targets)])


def _repeats(model: nn.Module, segments: Sequence[Any], inputs: Tensor, judge: Judge) -> bool:
    """Whether the model, and its segments one by one, give the same twice and change nothing."""
    before = state_of(model)
    whole = judge.rows(model(inputs.clone()), len(inputs))
    state: Any = (inputs.clone(),)
    for number in range(len(segments)):
        state = advance(model, segments, number, state)
    again = judge.rows(state, len(inputs))
    return all(map(same_bits, whole, again)) and state_of(model) == before


def _examine(model: Any, segments: Sequence[Any], inputs: Tensor) -> Independence:
    """Whether samples may leave their batch."""
    kept = [path for segment in segments for path in segment.kept]
    # A part that is called with other arguments than it was traced for runs its Python code.
    kept += [path for path, part in model.named_modules() if part.__dict__.get("_ran_own_forward")]
    if kept:
        return Independence(KEPT.format(", ".join(kept[:3])), mixing=True)
    try:
        return independence(model, inputs)
    # A model's code, or torch, may raise anything for a batch that it does not expect.
    except Exception as error:
        if is_out_of_memory(error):
            return Independence(NO_MEMORY, mixing=True)
        return Independence(OTHER_SIZES.format(" ".join(str(error).split())), mixing=True)


def _with_layouts(model: Any, found: Independence) -> Independence:
    """The finding, unless the layout of a site tells that samples meet there."""
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


def _go_through(
    model: Any,
    loader: Iterable[Any],
    device: torch.device | str,
    golden: GoldenRun,
    on_batch: OnBatch | None,
    judge: Judge,
) -> None:
    """Run all batches, and note their results and states."""
    agree: dict[int, bool] = {}

    def forward(number: int, batch: Batch) -> Any:
        inputs, size = batch.inputs[0], batch.samples
        if size not in agree:
            agree[size] = not agree or _agrees(model, inputs, golden, len(agree))
        if not agree[size]:
            golden.alone.add(number)
        return _golden_batch(model, inputs, number, golden)

    everything = model, loader, device, on_batch, faults_of(model), forward, judge
    golden.result = predict(*everything, shapes=InputShapes(strict=True))


def _agrees(model: Any, inputs: Tensor, golden: GoldenRun, seen: int) -> bool:
    """Whether samples of a batch of another size may be put with those of the first."""
    if golden.why_whole is not None:
        return True
    return seen < MOST_SIZES and sizes_that_agree(model, inputs, golden.found)


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
    """Keep batches whole if a leaf that belongs to no sample differs between batches."""
    assert cut.roles is not None
    if cut.site not in golden.cache.sites:
        return
    for role, leaf, first in zip(cut.roles, leaves, golden.cache.leaves(cut.site, 0), strict=True):
        if role is None and not same_bits(leaf, first):
            golden.why_whole, golden.mixing = SHARED.format(cut.site), True
