"""Passes over the graph: trace, insert, strip, freeze and compile; views of their results."""

from fxfault.passes.code_text import code_of, diff
from fxfault.passes.compilation import Compilation, Difference, compile
from fxfault.passes.drawing import to_dot, to_svg
from fxfault.passes.freeze import FreezeLayers, FrozenPart, frozen_parts, refresh
from fxfault.passes.insert import InsertFaults
from fxfault.passes.inspection import Inspection, inspect, probe
from fxfault.passes.strip import StripFaults
from fxfault.passes.tracing.containers import Container, containers_of, trace
from fxfault.passes.tracing.traced_module import TracedModule

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
