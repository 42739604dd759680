"""Graph passes: trace, insert, strip, freeze, compile; and ways to look at what they did."""

from fxfault.passes.compilation import Compilation, Difference, compile
from fxfault.passes.drawing import to_dot, to_svg
from fxfault.passes.freeze import FreezeLayers, FrozenPart, frozen_parts, refresh
from fxfault.passes.insert import InsertFaults
from fxfault.passes.inspection import Inspection, code_of, diff, inspect, probe
from fxfault.passes.strip import StripFaults
from fxfault.passes.traced_module import TracedModule
from fxfault.passes.tracing import Container, containers_of, trace

__all__ = [
    "Compilation",
    "Container",
    "Difference",
    "FreezeLayers",
    "FrozenPart",
    "InsertFaults",
    "Inspection",
    "StripFaults",
    "TracedModule",
    "code_of",
    "compile",
    "containers_of",
    "diff",
    "frozen_parts",
    "inspect",
    "probe",
    "refresh",
    "to_dot",
    "to_svg",
    "trace",
]
