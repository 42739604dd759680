"""Fault-aware training with PyTorch Lightning, in one line of your own script."""

from fxfault.training.fault_aware import FaultAwareTraining

__all__ = ["FaultAwareTraining"]
