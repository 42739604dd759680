"""Decides when an activation is struck, and which random numbers the strike uses.

Gradient checkpointing runs a part of the forward again during the backward. That part must meet
the same faults. By then the clock may have moved (two forwards, then one backward), and the last
call of a shared layer is repeated first. So each strike stores its moment with the checkpoint
that it happened in, and a repetition looks it up there.

torch does not tell a function that it is being repeated, or for which checkpoint: `context_fn`
belongs to the caller, and only one of the two kinds of checkpoint accepts it. So both facts are
read from the Python stack, where frames of torch hold the checkpoint. This code can go once
`torch.utils.checkpoint` lets others attach data to a checkpoint.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NamedTuple

import torch
import torch.utils.checkpoint
from torch import Tensor

from fxfault.errors import SiteError, TransformError
from fxfault.faults.torch_versions import is_exporting
from fxfault.sites.fault_sites import FaultSites
from fxfault.sites.sample_layouts import batch_size_of
from fxfault.sites.site import OUTPUT, FaultSite

# Returns the number of the backward that runs in this thread, or -1.
_backward: Callable[[], int] = torch._C._current_graph_task_id  # type: ignore[attr-defined]

_FILE = torch.utils.checkpoint.__file__
_ATTRIBUTE = "_fxfault_strikes"


class Moment(NamedTuple):
    """What determines a strike, besides the settings of its site.

    Attributes:
        key: key of the random numbers, 64 bits.
        batch: samples in the forward; None before the first forward.
        first_sample: number of the first sample of the batch.
        given: numbers of all samples if the caller gave them (`FaultSites.samples`), else None.
        call: which call of the site in its forward this is, from 1.
    """

    key: int
    batch: int | None
    first_sample: int
    given: Tensor | None
    call: int = 1


# A call whose words were struck before: a repetition must not take the moment of the next call.
_PASSED = Moment(0, None, 0, None)


@dataclass
class _Strikes:
    """The strikes within one checkpoint.

    Attributes:
        moments: moments of each site's calls, in order.
        repeated: calls that each backward (by its number) has repeated at each site.
    """

    moments: dict[FaultSite, list[Moment]] = field(default_factory=dict)
    repeated: dict[tuple[int, FaultSite], int] = field(default_factory=dict)

    def add(self, site: FaultSite, moment: Moment) -> None:
        self.moments.setdefault(site, []).append(moment)

    def next(self, site: FaultSite) -> Moment | None:
        """The moment of the next call in this backward; None if it was not struck."""
        turn = (_backward(), site)
        done = self.repeated.get(turn, 0)
        self.repeated[turn] = done + 1
        moments = self.moments.get(site, [])
        return moments[done] if done < len(moments) else None


def begin(sites: FaultSites, inputs: Sequence[Any]) -> None:
    """Do the work of `begin_forward`; compiled code calls it, too."""
    if not recomputing():
        refuse_recording(sites)
        if sites.parameters is not None and sites.running_depth == 0 and sites.clock.enabled:
            raise SiteError(
                "memory: got 'parameters' in compiled code, which reads parameters itself; run the "
                "model without torch.compile, or choose another memory"
            )
        sites.look_at_layers()
        sites.prepare(inputs)
        sites.clock.begin(batch_size_of(inputs))
        if sites.edges is not None:
            sites.edges.begin(sites.clock.forward)
        if not sites.told_quiet:
            sites.say_if_quiet()


def refuse_recording(sites: FaultSites) -> None:
    """Refuse to be recorded with faults: a recording would repeat those of one forward, or none.

    Raises:
        TransformError: a tracer or exporter records an enabled model.
    """
    is_tracing = torch.jit.is_tracing()  # type: ignore[attr-defined]
    recording = is_tracing or is_exporting()
    if recording and sites.clock.enabled:
        raise TransformError(
            "a model with faults cannot be traced by torch.jit or exported (torch.export, ONNX): "
            "each forward draws new faults; set model.faults.enabled = False to export "
            "it without faults, or export the model as given (fxfault.strip gives it back)"
        )


def recomputing() -> bool:
    """Say whether a backward runs; a forward during a backward repeats a checkpoint."""
    return _backward() != -1


def moment_of(site: FaultSite, extra: int = 0, passes: bool = False) -> Moment | None:
    """The moment of a strike at this call of a site; None if the site is not struck.

    Args:
        site: the site that the forward has reached.
        extra: calls of the layer since the one that the site stands for.
        passes: whether the words of this call were struck before they reached the site.
    """
    clock, armed, again = site.clock, site.armed, _backward() != -1
    if not (armed or again or passes):  # A call that a backward repeats may have been armed.
        return None
    training = clock.training
    if not (training or again or torch.is_grad_enabled()):
        # An evaluation has no checkpoints; to look for some would take time.
        if passes or not armed:
            return None
        if site.stored is not None:
            return _moment_now(site, again, extra)
        key = site.stream(extra=extra)
        call = site._calls[1] if site.counts_calls or site.part != OUTPUT else 1 + extra
        return Moment(key, clock.batch, clock.first_sample, clock.given, call)
    running, repeated = _checkpoints()
    if repeated is not None and (training or _ATTRIBUTE in vars(repeated)):
        moment = _strikes(repeated).next(site)
    else:  # A repetition of a call that was not seen uses the clock as it is now.
        moment = _moment_now(site, again, extra) if armed and not passes else None
        moment = _PASSED if passes else moment
    if moment is not None:
        for checkpoint in running:
            _strikes(checkpoint).add(site, moment)
    return None if moment is _PASSED else moment


def _moment_now(site: FaultSite, again: bool, extra: int) -> Moment:
    clock, key = site.clock, site.stream(again, extra)
    if site.stored is not None:  # The whole tensor is one sample.
        return Moment(key, 1, clock.stored_draw, None, 1)
    call = site._calls[1] if site.counts_calls or site.part != OUTPUT else 1 + extra
    return Moment(key, clock.batch, clock.first_sample, clock.given, call)


def _strikes(checkpoint: Any) -> _Strikes:
    kept = vars(checkpoint).setdefault(_ATTRIBUTE, _Strikes())
    assert isinstance(kept, _Strikes)
    return kept


def _checkpoints() -> tuple[list[Any], Any]:
    """Find the checkpoints around the caller.

    A checkpoint inside a repeated one counts as running for the first time, because torch makes a
    new object for it.

    Returns:
        torch's objects for the checkpoints that run for the first time, and for the checkpoint
        that is being repeated, or None.
    """
    running: list[Any] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename == _FILE:
            names, name = frame.f_locals, frame.f_code.co_name
            if name == "unpack_hook":  # use_reentrant=False
                return running, names["frame"]
            if name == "backward":  # use_reentrant=True
                return running, names["ctx"]
            if name == "forward":
                running.append(names["ctx"])
            elif "gen" in names:  # Of `checkpoint`, or in torch 2.15 of what it calls.
                running.append(names["gen"].gi_frame.f_locals["new_frame"])
        frame = frame.f_back
    return running, None
