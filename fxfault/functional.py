"""The operations that the insert pass puts into a graph.

`fault_inject` strikes one activation; `begin_forward` moves the clock. Work follows
the number of hits: only the elements that are hit are read, converted and written.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx.node import has_side_effect
from torch.utils import _pytree as pytree

from fxfault import kernels
from fxfault.draws import Draw, draw_of, samples_struck
from fxfault.errors import SiteError, TransformError
from fxfault.operators import begin_compiled, strike_compiled
from fxfault.quant_tensors import IntQuantTensor, makes_private_tensor
from fxfault.recomputation import Moment, moment_of, recomputing
from fxfault.sampling import Hits, Layout
from fxfault.site import FaultSite
from fxfault.sites import FaultSites
from fxfault.strikes import Change, Strike, Sums, merged, read, write

# Elements up to which a copy is made without asking whether it is needed.
SMALL = 1 << 16

# Hits up to which it is likely enough that there is none.
FEW = 5


@has_side_effect  # type: ignore[untyped-decorator]
def begin_forward(sites: FaultSites, *inputs: Any) -> None:
    """Move the clock of a model's sites: one forward of the whole model starts.

    Args:
        sites: the model's sites.
        inputs: the model's inputs; the leading dimension of the tensor with most
            dimensions among them is the batch.
    """
    if torch.compiler.is_dynamo_compiling():
        begin_compiled(sites.clock.handle.number, inputs)
    else:
        begin(sites, inputs)


def begin(sites: FaultSites, inputs: Sequence[Any]) -> None:
    """What `begin_forward` does, in compiled code too."""
    if not recomputing():
        _refuse_recording(sites)
        sites.look_at_layers()
        sites.prepare(inputs)
        sites.clock.begin(_batch_size(inputs))
        if not sites.told_quiet:
            sites.say_if_quiet()


def _refuse_recording(sites: FaultSites) -> None:
    """Refuse to be traced or exported with faults: a recording has those of one forward, or none.

    Raises:
        TransformError: it would.
    """
    is_tracing = torch.jit.is_tracing()  # type: ignore[attr-defined]
    recording = is_tracing or torch.compiler.is_exporting()
    if recording and sites.clock.enabled:
        raise TransformError(
            "a model with faults cannot be traced by torch.jit or exported (torch.export, ONNX): "
            "its faults are drawn anew in each forward; set model.faults.enabled = False to export "
            "it without faults, or export the model as given (fxfault.strip gives it back)"
        )


def _batch_size(inputs: Sequence[Any]) -> int:
    leaves = [x for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor) and x.dim() > 0]
    # The one with most dimensions, the first of those: a temperature or a table of weights
    # that comes along has fewer than the samples.
    return max(leaves, key=lambda x: x.dim()).shape[0] if leaves else 1


def fault_inject(x: Any, site: FaultSite) -> Any:
    """Strike a quantised activation with the faults of a site.

    Where the site is not armed, the very object that came in goes on.

    Args:
        x: what the activation layer returned: an `IntQuantTensor` of any shape, in
            float16, bfloat16, float32 or float64, or the plain value of one that the
            layer handed over (`fxfault.layer_outputs`).
        site: state and settings of the place.

    Returns:
        What came in, of the same type and memory format, with faults.

    Raises:
        SiteError: the value has no integer word, or its dtype cannot hold the codes.
    """
    if torch.compiler.is_dynamo_compiling():
        return _inject_compiled(x, site)
    activation = x if site.output is None else site.output.take(x)
    moment = None if activation is None else moment_of(site)
    if moment is None:  # Not armed; or the layer has struck it, before its hooks.
        return x
    return _with_value(x, activation, _strike(activation, site, moment))


def strike_call(x: Any, site: FaultSite, extra: int = 0) -> Any:
    """Strike what a layer has quantised, in the layer itself; see `fxfault.layer_outputs`.

    Args:
        x: an `IntQuantTensor`; nobody else has it.
        site: state and settings of the place.
        extra: how many calls this is after the one that the site is of.

    Returns:
        What came in, of the same type, with faults.
    """
    if torch.compiler.is_dynamo_compiling():
        value = _strike_compiled(x, site)
        return x if value is None else type(x)(value, *x[1:])
    moment = moment_of(site, extra)
    return x if moment is None else _with_value(x, x, _strike(x, site, moment))


def _with_value(x: Any, activation: Any, value: Tensor | None) -> Any:
    """What goes on in the place of an activation that was struck."""
    if value is None or value is activation.value:  # Struck in place, or not at all.
        return x
    if activation is not x:  # A plain value, of which the layer handed the QuantTensor over.
        return value
    return x._replace(value=value)


class Struck(NamedTuple):
    """An activation after a strike.

    Attributes:
        values: the values with faults.
        stopped: None where every gradient passes; else the flat row-major positions that were
            hit (int64, one dimension) and the factor of the gradient there, which is 0, or 1
            at positions that only fill the index up.
    """

    values: Tensor
    stopped: tuple[Tensor, Tensor] | None = None


class FaultInject(torch.autograd.Function):
    """Put the faulty values in the place of the clean ones, with a choice of gradients.

    `ste` (straight-through) passes every gradient on; `zero_faulty` stops it exactly at
    the elements that were hit. A gradient towards the written values does not exist.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, faults: Struck) -> Tensor:
        """Give the values with faults.

        Args:
            ctx: of autograd.
            value: the clean values, any shape and memory format.
            faults: what became of them; no tensor itself, as autograd takes an output that is
                an input for a view and forbids to change it in place.
        """
        ctx.zero_faulty = faults.stopped is not None
        if faults.stopped is not None:
            ctx.save_for_backward(*faults.stopped)
        return faults.values

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        """Pass the gradient on, without the hit elements if so asked."""
        if ctx.zero_faulty:
            index, factor = ctx.saved_tensors
            grad_output = grad_output.clone()
            if factor.dim() == 0 and grad_output.is_contiguous():
                grad_output.view(-1).index_fill_(0, index, 0.0)
            else:
                # No product with the factor: infinity times 0 is not 0.
                kept = torch.where(factor == 0, 0.0, read(grad_output, index))
                write(grad_output, index, kept)
        return grad_output, None


def _inject_compiled(x: Any, site: FaultSite) -> Any:
    """`fault_inject` in code that is being compiled."""
    activation, struck = (x, False) if site.output is None else site.output.take_compiled(x)
    if struck:
        return x
    value = _strike_compiled(activation, site)
    if value is None:
        return x
    # torch 2.13 loses track of what `_replace` gives.
    return value if activation is not x else type(x)(value, *x[1:])


def _strike_compiled(x: Any, site: FaultSite) -> Any:
    """Leave the strike to an operator, which a compiler takes as it is."""
    if not isinstance(x, IntQuantTensor):
        return _strike_out_of_graph(x, site)
    zero_faulty = site.gradient_mode == "zero_faulty"
    return strike_compiled(x, site.clock.handle.number, site.index, zero_faulty)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _strike_out_of_graph(x: Any, site: FaultSite) -> Tensor | None:
    """Refuse what has no integer word if the site is armed by then, as without a compiler."""
    moment = moment_of(site)
    return None if moment is None else _strike(x, site, moment)


def overwrite(x: Any, site: FaultSite, hits: Tensor | None = None) -> None:
    """Strike an activation in place, if the site is armed.

    Args:
        x: IntQuantTensor; its values are part of no gradient's graph.
        site: state and settings of the place.
        hits: None, or bool in the shape of the values, all false: takes note of what is hit.
    """
    moment = moment_of(site)
    if moment is None:
        return
    if site.observer is not None:
        values = site.observer(x)
        if values is not x.value:
            x.value.copy_(values)
        return
    layout = _note(x, site, moment)
    if x.value.numel() == 0:
        return
    keep = hits is not None
    struck = _write_faults(x, site, moment, layout, stopping=keep, in_place=True)
    if hits is not None and struck is not None and struck.stopped is not None:
        index, factor = struck.stopped
        write(hits, index, (factor == 0).expand_as(index))


def _strike(x: Any, site: FaultSite, moment: Moment) -> Tensor:
    """Strike the values of an activation and see to their gradient.

    Returns:
        The values with faults; those that came in, where nothing is hit.
    """
    if site.observer is not None:
        return site.observer(x)
    if not isinstance(x, IntQuantTensor):
        raise SiteError(
            f"site {site.name}: expected an IntQuantTensor from {site.module_type}, got "
            f"{type(x).__name__}; enable its quantiser, transform the model again if its forward "
            "was replaced, or set `unsupported: skip`"
        )
    value: Tensor = x.value
    layout = _note(x, site, moment)
    if value.numel() == 0:
        return value
    stopping = value.requires_grad and site.gradient_mode == "zero_faulty"
    if torch.is_grad_enabled():
        with torch.no_grad():
            struck = _write_faults(x, site, moment, layout, stopping)
    else:  # As evaluations run; entering it once more would take time.
        struck = _write_faults(x, site, moment, layout, stopping)
    if struck is None:
        return value
    return FaultInject.apply(value, struck) if value.requires_grad else struck.values


def _note(x: Any, site: FaultSite, moment: Moment) -> Layout:
    """Note what an armed forward shows of a site; returns the layout of its activation."""
    site.signed = x.signed
    site.scale = x.scale.detach() if x.scale.requires_grad else x.scale
    layout = site.layout_of(tuple(x.value.shape), _batch_of(moment, x.value))
    site.elements = layout.elements
    return layout


def _write_faults(
    x: Any,
    site: FaultSite,
    moment: Moment,
    layout: Layout,
    stopping: bool,
    in_place: bool = False,
) -> Struck | None:
    """Strike a copy of the values, or the values themselves where nobody else sees them.

    Args:
        x: IntQuantTensor of at least one element.
        site: state and settings of the place.
        moment: what the strike follows from.
        layout: of the values.
        stopping: whether to tell where gradients end.
        in_place: strike the values themselves in any case.

    Returns:
        None where nothing is hit.
    """
    values = _Values(x.value, site, x.value.requires_grad)
    if in_place:
        values.may_overwrite = True
    sums = None
    if site.statistics is not None and not recomputing():
        sums = Sums(x, site.statistics.cosine)
    kept: list[Hits] = []
    several: list[Change] = []
    for part in _changes(Strike(x, site), values, moment, layout, record=bool(sums) or stopping):
        if sums is not None and site.several is None:
            sums.add(part)
        elif sums is not None:
            several.append(part)
        if stopping:
            kept.append(part.hits)
    if sums is not None:
        if several:
            sums.add(merged(several))
        sums.record(site)
    if values.written is None:
        return None
    return Struck(values.written, _stopped(kept, x.value) if kept else None)


class _Values:
    """The values of an activation, and what faults are written into once there are any.

    Attributes:
        clean: no part of a gradient's graph.
        written: a copy, or the values themselves where nobody else sees them; None so far.
    """

    def __init__(self, value: Tensor, site: FaultSite, needs_grad: bool) -> None:
        self.clean = value.detach() if needs_grad else value
        self.written: Tensor | None = None
        self._site = site
        self._needs_grad = needs_grad

    @functools.cached_property
    def may_overwrite(self) -> bool:
        """Whether the copy can be spared.

        Small tensors are copied faster than the question is answered.
        """
        if self._needs_grad or self._site.layer is None or self.clean.numel() < SMALL:
            return False
        return makes_private_tensor(self._site.layer, self._site._cache)

    def to_write(self) -> Tensor:
        """What to write faults into."""
        if self.written is None:
            self.written = self.clean if self.may_overwrite else self.clean.clone()
        return self.written


def _changes(
    strike: Strike, values: _Values, moment: Moment, layout: Layout, record: bool
) -> Iterator[Change]:
    """Strike the values; gives what was changed, part by part, if it is to be recorded."""
    site = strike.site
    if site.probability == 0:
        return
    numbers, bits = moment.numbers(layout.samples), strike.word.bit_width
    looping = strike.takes_loop(values.clean)
    for fault in site.faults:
        known = bits if isinstance(bits, int) else None
        draw = draw_of(site, fault, moment.key, numbers, layout, known)
        strike.check(fault.model, draw.width)
        loop = strike.fault_of(fault.model) if looping else None
        if loop is not None and draw.by_element:
            yield from _by_loop(strike, values, loop, draw, record)
            continue
        for hits in draw.hits(values.clean.device):
            if loop is not None:
                yield strike.at_by_loop(values.to_write(), loop, hits)
            else:
                yield strike.write(values.to_write(), hits, fault.model)


def _by_loop(
    strike: Strike, values: _Values, loop: kernels.Fault, draw: Draw, record: bool
) -> Iterator[Change]:
    """Draw and strike in one compiled loop."""
    if draw.probability == 0:
        return
    unlikely = draw.expected < FEW and values.written is None and not values.may_overwrite
    if unlikely and not draw.samples_hit().any():  # Looked at twice rather than copied for nothing.
        return
    room = draw.room() if record else 0
    yield from strike.by_loop(values.to_write(), loop, draw.stream(), room)


def _stopped(hits: list[Hits], values: Tensor) -> tuple[Tensor, Tensor]:
    """Where gradients end, and which of them pass all the same; see `Struck`."""
    index = torch.cat([part.index for part in hits])
    if all(part.writes is None for part in hits):  # Only hits of a fixed size have them.
        return index, torch.zeros((), dtype=values.dtype, device=index.device)
    stops = torch.cat([_writes(part) for part in hits])
    if len(hits) > 1:  # What fills one fault up may stand where another one hits.
        anywhere = torch.zeros(values.numel(), dtype=torch.uint8, device=index.device)
        stops = anywhere.scatter_reduce_(0, index, stops.byte(), "amax")[index].bool()
    return index, (~stops).to(values.dtype)


def _writes(hits: Hits) -> Tensor:
    return torch.ones_like(hits.index, dtype=torch.bool) if hits.writes is None else hits.writes


def _batch_of(moment: Moment, value: Tensor) -> int:
    """The batch of the forward; before any, the tensor's own leading dimension."""
    if moment.batch is None:
        return value.shape[0] if value.dim() else 1
    return moment.batch


def struck_samples(site: FaultSite, numbers: Tensor, layout: Layout) -> Tensor:
    """Say which samples the next evaluation would hit at a site, without an activation.

    Args:
        site: of the graph itself; one that a container calls draws for each of its calls.
        numbers: of the samples, int64, one dimension.
        layout: of the site's activation; its number of samples is not looked at.

    Returns:
        bool, on the CPU, one for each number; all false where the site is not armed.

    Raises:
        SiteError: a container may call the site more than once in a forward; or it is not known
            yet how much there is to hit (see `FaultSites.measure`).
    """
    if site.counts_calls:
        raise SiteError(
            f"site {site.name}: a container calls it, so its faults are not known ahead"
        )
    if not site.armed:
        return torch.zeros(len(numbers), dtype=torch.bool)
    return samples_struck(site, site.stream(), numbers, layout)
