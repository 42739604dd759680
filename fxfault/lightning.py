"""Fault-aware training with PyTorch Lightning, by one line in a script of one's own."""

from fxfault.training.fault_aware import FaultAwareTraining

__all__ = ["FaultAwareTraining"]
