"""Graph passes: trace, insert, strip, inspect."""

from fxfault.passes.insert import InsertFaults
from fxfault.passes.strip import StripFaults
from fxfault.passes.traced_module import TracedModule
from fxfault.passes.tracing import Container, containers_of, trace

__all__ = [
    "Container",
    "InsertFaults",
    "StripFaults",
    "TracedModule",
    "containers_of",
    "trace",
]
