"""When an activation is struck, and what the strike follows from.

Gradient checkpointing: a part that runs again in the backward meets the same faults.

By then the clock may have moved on (two forwards, then one backward), and of the calls of a
shared layer the last one is repeated first. So what a strike followed from is kept with the
checkpoint that it happened in, and looked up there when that checkpoint is run again.

torch tells the function that it repeats neither that this is a repetition nor of what
(`context_fn` belongs to the caller, and only one of the two kinds of checkpoint takes it). Both
are read off the Python stack, where torch's own frames hold the checkpoint. This can go once
`torch.utils.checkpoint` lets others keep something with a checkpoint.
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

from fxfault.errors import TransformError
from fxfault.sites.fault_sites import FaultSites
from fxfault.sites.sample_layouts import batch_size_of
from fxfault.sites.site import FaultSite

# The number of the backward that runs in this thread; -1 for none.
_backward: Callable[[], int] = torch._C._current_graph_task_id  # type: ignore[attr-defined]

_FILE = torch.utils.checkpoint.__file__
_ATTRIBUTE = "_fxfault_strikes"


class Moment(NamedTuple):
    """What a strike follows from, besides the settings of its site.

    Attributes:
        key: of the random numbers.
        batch: samples of the forward; None before any.
        first_sample: number of the first sample of the batch.
        given: the numbers of the samples where somebody gave them (`FaultSites.samples`).
    """

    key: int
    batch: int | None
    first_sample: int
    given: Tensor | None


@dataclass
class _Strikes:
    """The strikes within one checkpoint, site by site in the order of their calls.

    Attributes:
        moments: of each call.
        repeated: how many of them a backward, by its number, has repeated.
    """

    moments: dict[FaultSite, list[Moment]] = field(default_factory=dict)
    repeated: dict[tuple[int, FaultSite], int] = field(default_factory=dict)

    def add(self, site: FaultSite, moment: Moment) -> None:
        self.moments.setdefault(site, []).append(moment)

    def next(self, site: FaultSite) -> Moment | None:
        """The moment of the next call in this backward; None where it was not struck."""
        turn = (_backward(), site)
        done = self.repeated.get(turn, 0)
        self.repeated[turn] = done + 1
        moments = self.moments.get(site, [])
        return moments[done] if done < len(moments) else None


def begin(sites: FaultSites, inputs: Sequence[Any]) -> None:
    """What `begin_forward` does, in compiled code too."""
    if not recomputing():
        refuse_recording(sites)
        sites.look_at_layers()
        sites.prepare(inputs)
        sites.clock.begin(batch_size_of(inputs))
        if not sites.told_quiet:
            sites.say_if_quiet()


def refuse_recording(sites: FaultSites) -> None:
    """Refuse to be recorded with faults: a recording has the faults of one forward, or none.

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


def recomputing() -> bool:
    """Whether a backward runs: gradient checkpointing then repeats a forward."""
    return _backward() != -1


def moment_of(site: FaultSite, extra: int = 0) -> Moment | None:
    """What the strike of a site that is reached now follows from; None: it is not struck.

    Args:
        site: that is reached.
        extra: how many calls this is after the one that the site is of.
    """
    clock, armed, again = site.clock, site.armed, _backward() != -1
    if not (armed or again):  # What a backward repeats may have been armed.
        return None
    training = clock.training
    if not (training or again or torch.is_grad_enabled()):
        # An evaluation; looking for checkpoints takes time.
        return Moment(site.stream(extra=extra), clock.batch, clock.first_sample, clock.given)
    running, repeated = _checkpoints()
    if repeated is not None and (training or _ATTRIBUTE in vars(repeated)):
        moment = _strikes(repeated).next(site)
    else:  # If repeated, then not seen before: as good as the clock knows.
        moment = _moment_now(site, again, extra) if armed else None
    if moment is not None:
        for checkpoint in running:
            _strikes(checkpoint).add(site, moment)
    return moment


def _moment_now(site: FaultSite, again: bool, extra: int) -> Moment:
    clock = site.clock
    return Moment(site.stream(again, extra), clock.batch, clock.first_sample, clock.given)


def _strikes(checkpoint: Any) -> _Strikes:
    kept = vars(checkpoint).setdefault(_ATTRIBUTE, _Strikes())
    assert isinstance(kept, _Strikes)
    return kept


def _checkpoints() -> tuple[list[Any], Any]:
    """The checkpoints that run for the first time around the caller, and the one that repeats.

    A checkpoint within one that is repeated runs for the first time itself: torch makes a
    new one for it.

    Returns:
        The objects that torch keeps for them; None for the second where nothing is repeated.
    """
    running: list[Any] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename == _FILE:
            names, name = frame.f_locals, frame.f_code.co_name
            if name == "unpack_hook":  # Without reentrant autograd.
                return running, names["frame"]
            if name == "backward":  # With it.
                return running, names["ctx"]
            if name == "forward":
                running.append(names["ctx"])
            elif name == "checkpoint" and "gen" in names:
                running.append(names["gen"].gi_frame.f_locals["new_frame"])
        frame = frame.f_back
    return running, None
