"""States of a model at its cuts, the places where a forward can start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fxfault.functional import fault_inject
from fxfault.sites.live_values import Role, Rows, SampleCount, SampleRows, gather
from fxfault.sites.site import FaultSite


@dataclass(frozen=True)
class Cut:
    """A place where the forward can start.

    Attributes:
        site: name of the site that strikes there; `INPUT` for the model's input.
        structure: structure of the state there; see `structure_of`.
        roles: roles of its leaves; None if samples cannot be taken out of their batch.
        seconds: time from the data of one batch to this place.
        bytes: size of the state of one batch.
    """

    site: str
    structure: Any
    roles: tuple[Role, ...] | None
    seconds: float
    bytes: int

    def assemble(self, parts: Sequence[tuple[Sequence[Any], Tensor]], size: int) -> list[Any]:
        """Make the leaves of a batch from samples of others.

        Args:
            parts: leaves of some batches, and the samples to take from each.
            size: number of samples of all parts.
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


def advance(model: nn.Module, segments: Sequence[Any], number: int, state: Any) -> Any:
    """Run one segment.

    Args:
        model: the transformed model.
        segments: its segments.
        number: number of the segment to run.
        state: the state at its start.

    Returns:
        The state at the start of the next segment, or the model's output after the last one.
    """
    if segments[number].takes_struck:
        state = _struck(segments[number].site, state)
    result = segments[number].function(model, *state)
    following = segments[number + 1] if number + 1 < len(segments) else None
    if following is None or not following.takes_struck:
        return result
    return _captured(following.site, result)


def _struck(site: FaultSite, state: Any) -> Any:
    output = site.output
    assert output is not None
    if output.returns_quant_tensor:
        output.hand_over(state[0])
        return (fault_inject(state[0], site), *state[1:])
    *state, parameters = state
    if parameters is not None:  # Of the QuantTensor with this plain value.
        output.hand_over(parameters._replace(value=state[0]))
    return (fault_inject(state[0], site), *state[1:])


def _captured(site: FaultSite, state: Any) -> Any:
    """A state, followed by the scale and so on of a plain value that is about to be struck."""
    output = site.output
    assert output is not None
    kept = output.kept
    output.forget()
    if output.returns_quant_tensor:
        return state
    is_of_value = kept is not None and kept.value is state[0]
    return (*state, kept._replace(value=None) if is_of_value else None)
